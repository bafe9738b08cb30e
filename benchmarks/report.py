"""Result files as tables: aligned for the terminal, Markdown for README and model card."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gfm_calc.errors import ConfigError, did_you_mean

_NUMBER = re.compile(r"-|[-+]?[\d,.]+(e[-+]?\d+)?")
_OPEN, _CLOSE = "<!-- results -->", "<!-- end of results -->"


class Table(NamedTuple):
    """`detail` tables are left out of summaries."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    detail: bool = False


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The tables of one result.

    Raises:
        ConfigError: a benchmark that has none, or a result that lacks its parts.
    """
    name = result["benchmark"]
    if name not in _TABLES:
        raise ConfigError(f"no tables for benchmark {name!r}{did_you_mean(name, _TABLES)}")
    try:
        return [found for found in _TABLES[name](result) if found.rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the {name} result lacks parts ({type(error).__name__}: {error})") from error


def markdown(result: Mapping[str, Any], *, summary: bool = False) -> str:
    """The tables of one result in Markdown (the main ones in a `summary`), with a line on where the figures come from."""
    chosen = [found for found in tables(result) if not (summary and found.detail)]
    return "\n\n".join([*(markdown_table(found.title, found.header, found.rows) for found in chosen), origin(result)])


def with_results(text: str, results: Iterable[Mapping[str, Any]]) -> str:
    """`text` (a README) with what stands between its two result marks replaced by summaries of `results`.

    Raises:
        ConfigError: it has no such marks.
    """
    before, opened, rest = text.partition(_OPEN)
    _, closed, after = rest.partition(_CLOSE)
    if not opened or not closed:
        raise ConfigError(f"no place for the results: mark it with {_OPEN} and {_CLOSE}")
    shown = "\n\n".join(markdown(result, summary=True) for result in results)
    return f"{before}{_OPEN}\n\n{shown}\n\n{_CLOSE}{after}"


def markdown_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table under its title; columns of numbers are set flush right."""
    rule = "|".join("---:" if k in numeric_columns(header, rows) else "---" for k in range(len(header)))
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", f"|{rule}|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Indices of the columns that hold nothing but numbers and dashes."""
    return [k for k in range(len(header)) if all(_NUMBER.fullmatch(row[k]) for row in rows)]


def origin(result: Mapping[str, Any]) -> str:
    """`command`, machine, versions and date in one line."""
    about = result["provenance"]
    machine = about["machine"]
    place = machine.get("accelerator") or f"{machine['processor']}, {machine['cores']} cores"
    shown = ("gfm-calc", "python", "torch", "ase", "CHGNet", "SevenNet-0", "tblite")
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in shown if name in about["versions"])
    model = f"; model id {about['model_id']}" if about["model_id"] else ""
    return f"`{about['command']}` on {about['date']}; {place}; {versions}{model}."


def _speed(result: Mapping[str, Any]) -> Iterator[Table]:
    batches, dynamics = result["batches"], result["dynamics"]
    keys = list(dict.fromkeys((row["contender"], row["threads"]) for row in batches + dynamics))
    labels = [f"{_contender(result, name)}, {threads} thread{'s' if threads > 1 else ''}" for name, threads in keys]
    columns = list(dict.fromkeys((row["set"], row["batch"]) for row in batches))
    for unit in ("structures_per_s", "atoms_per_s") if columns else ():
        cells = {(r["contender"], r["threads"], r["set"], r["batch"]): _figure(r.get(unit)) for r in batches}
        rows = [[label, *(cells.get((*key, *c), "-") for c in columns)] for label, key in zip(labels, keys)]
        title = f"Energy and forces, {unit.split('_')[0]} a second, from ase.Atoms to numbers, neighbour lists included"
        header = ["", *(f"{_size(batches, name)}, batch {batch}" for name, batch in columns)]
        yield Table(title, header, rows, detail=unit == "atoms_per_s")
    systems = list(dict.fromkeys((row["system"], row["atoms"]) for row in dynamics))
    if systems:
        steps = {(r["contender"], r["threads"], r["system"]): _figure(r.get("ms_per_step")) for r in dynamics}
        rows = [[label, *(steps.get((*key, name), "-") for name, _ in systems)] for label, key in zip(labels, keys)]
        yield Table("Milliseconds an MD step", ["", *(f"{name}, {atoms} atoms" for name, atoms in systems)], rows)
    told = {c["name"]: [c["name"], c["version"], c["model"], f"{c['parameters']:,}"] for c in result["contenders"]}
    yield Table("What was measured", ["code", "version", "model", "parameters"], list(told.values()))


def _contender(result: Mapping[str, Any], key: str) -> str:
    about: Mapping[str, Any] = next((c for c in result["contenders"] if c["key"] == key), {})
    return f"{about['name']} {about['mode']}" if "mode" in about else about.get("name", key)


def _size(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """'molecules of 8.1 atoms': the mean, from the two rates."""
    row = next((r for r in rows if r["set"] == name and "error" not in r), None)
    return name if row is None else f"{name} of {row['atoms_per_s'] / row['structures_per_s']:.2g} atoms"


def _heads(result: Mapping[str, Any]) -> Iterator[Table]:
    count = result["heads"]
    header = ["", "atoms", "one head, ms", f"{count} heads, ms", "ratio"]
    compare = result["calculator"]
    for key, title in (("energies_ms", "energies"), ("forces_ms", "energies and forces")):
        rows = [["compare_heads, one molecule", str(compare["atoms"]), *_ratio(compare[key])]]
        rows += [
            [f"{row['structures']}, batch {row['batch']}", str(row["atoms"]), *_ratio(row[key])]
            for row in result["batches"]
        ]
        more = ["a gradient a head", "encoder again a head"] if key == "forces_ms" else []
        if more:
            rows = [[*rows[0], "-", "-"]] + [
                [*shown, _figure(row[key]["loop"]), _figure(row[key]["rerun"])]
                for shown, row in zip(rows[1:], result["batches"])
            ]
        yield Table(f"All {count} heads against one, {title}", [*header, *(f"{m}, ms" for m in more)], rows)


def _ratio(cell: Mapping[str, float]) -> list[str]:
    return [_figure(cell["one"]), _figure(cell["all"]), f"{cell['ratio']:.2f}"]


def _accuracy(result: Mapping[str, Any]) -> Iterator[Table]:
    energy, forces, stress = "energy_mae_mev_per_atom", "forces_mae_mev_per_a", "stress_mae_mev_per_a3"
    header = ["head", "frames", "formulas", "energy", "mean", "references", "forces", "zero", "stress", "zero"]
    rows = []
    for entry in result["heads"]:
        name, model, mean = entry["head"], entry["model"], entry["mean"]
        cells = [model.get(energy), mean.get(energy), entry["references"].get(energy)]
        cells += [model.get(forces), mean.get(forces), model.get(stress), mean.get(stress)]
        rows.append([name, str(model["frames"]), str(entry["compositions"]), *map(_figure, cells)])
    unit = "energy meV/atom, forces meV/Å, stress meV/Å³"
    yield Table(f"Test errors (MAE, {unit}) beside predictors that know nothing", header, rows)
    header = ["data file", "head", "frames", "energy MAE", "RMSE", "forces MAE", "RMSE", "stress MAE"]
    rows = []
    for entry in result["heads"]:
        for source, found in entry["by_source"].items():
            keys = (energy, "energy_rmse_mev_per_atom", forces, "forces_rmse_mev_per_a", stress)
            rows.append([source, entry["head"], str(found["frames"]), *(_figure(found.get(key)) for key in keys)])
    yield Table(f"Test errors by data file ({unit})", header, rows, detail=True)


def _physics(result: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        [
            row["name"], row["head"], f"{row['picoseconds']:g}", f"{row['timestep_fs']:g}", f"{row['temperature_k']:.0f}",
            f"{row['slope_mev_per_atom_per_ps']:.2g}", f"{row['rms_fluctuation_mev_per_atom']:.2g}",
        ]
        for row in result.get("nve", [])
    ]  # fmt: skip
    header = ["system", "head", "ps", "step, fs", "K", "drift, meV/atom/ps", "rms fluctuation, meV/atom"]
    yield Table("Energy conservation at constant energy, float64", header, rows)
    rows = [
        [
            row["name"], row["head"], "yes" if row["converged"] else f"no: {row.get('error', 'step limit')}",
            str(row.get("steps", "-")), _geometry(row.get("geometry")), _geometry(row.get("reference")),
        ]
        for row in result.get("relaxations", [])
    ]  # fmt: skip
    yield Table("Relaxations", ["structure", "head", "converged", "steps", "geometry", "reference"], rows)
    rows = [
        [
            row["head"], str(row["elements"]), str(len(row["extra_minima"])), " ".join(row["extra_minima"]) or "-",
            " ".join(row["soft"]) or "-",
        ]
        for row in result.get("pairs", [])
    ]  # fmt: skip
    header = ["head", "elements", "with a second minimum", "which", "without a wall"]
    yield Table("Pair curves of X2 from 0.3 of the bonding distance to the cutoff", header, rows, detail=True)


def _geometry(found: Mapping[str, float] | None) -> str:
    """'H-O 0.96 Å, H-O-H 104.5°' from the names of `relaxations.geometry`."""
    if not found:
        return "-"
    kept = ((name.rsplit("_", 1), value) for name, value in found.items() if not name.startswith("largest"))
    return ", ".join(
        f"{name} {value:.1f}°" if unit == "deg" else f"{name} {value:.3f} Å" for (name, unit), value in kept
    )


def _reliability(result: Mapping[str, Any]) -> Iterator[Table]:
    header = ["promise", "tests", "cases", "failed", "tests skipped"]
    rows = [[str(row[key]) for key in ("promise", "tests", "count", "failed", "skipped")] for row in result["promises"]]
    yield Table(f"Promises, {result['settings']['counts']} counts", header, rows)


def _figure(value: float | None) -> str:
    """Three significant digits, without exponents where they can be avoided."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{float(f'{value:.3g}'):.0f}"


_TABLES: dict[str, Callable[[Mapping[str, Any]], Iterator[Table]]] = {
    "speed": _speed, "heads": _heads, "accuracy": _accuracy, "physics": _physics, "reliability": _reliability,
}  # fmt: skip
