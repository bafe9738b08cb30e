"""Result files as tables: aligned for the terminal, Markdown for README and model card."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gfm_calc.benchmarks.digests import DIGESTS
from gfm_calc.benchmarks.report_accuracy import accuracy
from gfm_calc.benchmarks.report_physics import conformers, crystals, phonons, stability, torsions
from gfm_calc.benchmarks.report_screening import screening
from gfm_calc.benchmarks.report_training import (
    ablation,
    alone,
    finetune,
    labels,
    multitask,
    pretraining,
    scaling,
    training,
)
from gfm_calc.benchmarks.report_uncertainty import uncertainty, uncertainty_settings
from gfm_calc.benchmarks.tables import Table, figure
from gfm_calc.errors import ConfigError, did_you_mean

_NUMBER = re.compile(r"-|[-+]?[\d,.]+(e[-+]?\d+)?")
_DIGEST = re.compile(rf"<!-- ({'|'.join(DIGESTS)}) -->.*?<!-- end of \1 -->", re.DOTALL)
_OPEN, _CLOSE = re.compile(r"<!-- results(?: of ([\w, ]+))? -->"), "<!-- end of results -->"


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


def markdown(result: Mapping[str, Any], *, summary: bool = False, weights: str = "") -> str:
    """The tables of one result in Markdown (the main ones in a `summary`), with a line on where the figures come from.

    Args:
        weights: id of today's weights: figures of others are said to be of earlier ones.
    """
    shown = [markdown_table(one.title, one.header, one.rows) for one in tables(result) if not (summary and one.detail)]
    return "\n\n".join([*shown, origin(result, weights)])


def with_results(text: str, results: Iterable[Mapping[str, Any]], *, weights: str = "") -> str:
    """`text` (a README) with what stands between its two result marks replaced by summaries of `results`, of some benchmarks
    alone where the first mark names them: `<!-- results of accuracy, speed -->`.  Between `<!-- glance -->` and
    `<!-- end of glance -->`, and other names of `DIGESTS`, where it has them, comes that table.

    Args:
        weights: see `markdown`.

    Raises:
        ConfigError: it has no such marks, or they name a benchmark that has no tables.
    """
    results = list(results)
    text = _DIGEST.sub(lambda marks: _digest(marks, results, weights), text)
    mark = _OPEN.search(text)
    _, closed, after = text[mark.end() :].partition(_CLOSE) if mark else ("", "", "")
    if _DIGEST.search(text) and "<!-- result" not in text and _CLOSE not in text:
        return text  # digests alone
    if mark is None or not closed:
        raise ConfigError(f"no place for the results: mark it with <!-- results --> and {_CLOSE}")
    wanted = _named(mark) or list(_TABLES)
    for name in wanted:
        if name not in _TABLES:
            raise ConfigError(f"{mark[0]}: no tables for benchmark {name!r}{did_you_mean(name, _TABLES)}")
    chosen = [result for result in results if result["benchmark"] in wanted]
    shown = [markdown(result, summary=True, weights=weights) for result in chosen]
    return "\n\n".join([text[: mark.end()], *shown, f"{_CLOSE}{after}"])


def without_results(text: str, results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The benchmarks that the first result mark of `text` names, or its digests take, and none of `results` is of."""
    mark, known = _OPEN.search(text), {result["benchmark"] for result in results}
    names = [*(_named(mark) if mark else []), *(name for one in _DIGEST.findall(text) for name in DIGESTS[one][1])]
    return [name for name in dict.fromkeys(names) if name not in known]


def _digest(marks: re.Match[str], results: Sequence[Mapping[str, Any]], weights: str) -> str:
    """Marks with the table between them; as they were, where the results say nothing of it."""
    shown = DIGESTS[marks[1]][0](results, weights)
    return f"<!-- {marks[1]} -->\n\n{_rows_alone(shown)}\n\n<!-- end of {marks[1]} -->" if shown.rows else marks[0]


def _named(mark: re.Match[str]) -> list[str]:
    """The benchmarks that a mark asks for; none where it wants all there are."""
    return [name.strip() for name in mark[1].split(",")] if mark[1] else []


def markdown_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table under its title; columns of numbers are set flush right."""
    return f"**{title}**\n\n{_rows_alone(Table(title, header, rows))}"


def _rows_alone(table: Table) -> str:
    """A pipe table without a title."""
    numeric = numeric_columns(table.header, table.rows)
    rule = "|".join("---:" if k in numeric else "---" for k in range(len(table.header)))
    lines = [table.header, *table.rows]
    head, *body = ("| " + " | ".join(row) + " |" for row in lines)
    return "\n".join([head, f"|{rule}|", *body])


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Indices of the columns that hold nothing but numbers and dashes."""
    return [k for k in range(len(header)) if all(_NUMBER.fullmatch(row[k]) for row in rows)]


def origin(result: Mapping[str, Any], weights: str = "") -> str:
    """`command`, machine, versions, date and model in one line; see `markdown`."""
    about = result["provenance"]
    machine = about["machine"]
    place = machine.get("accelerator") or f"{machine['processor']}, {machine['cores']} cores"
    shown = ("gfm-calc", "python", "torch", "ase", "CHGNet", "CHGNet 0.3.0", "SevenNet-0", "SevenNet-l3i5", "HydraGNN",
             "schnetpack", "tblite", "MACE (random weights)", "torch-sim (MACE, random weights)")  # fmt: skip
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in shown if name in about["versions"])
    earlier = " **(earlier weights)**" if weights and about["weights"] not in ("", weights) else ""
    model = f"; model id {about['model_id']}{earlier}" if about["model_id"] else ""
    return f"`{about['command']}` on {about['date']}; {place}; {versions}{model}."


def _speed(result: Mapping[str, Any]) -> Iterator[Table]:
    batches, dynamics = result["batches"], result["dynamics"]
    keys = list(dict.fromkeys((row["contender"], row["threads"]) for row in batches + dynamics))
    labels = [f"{_contender(result, name)}, {threads} thread{'s' if threads > 1 else ''}" for name, threads in keys]
    columns = list(dict.fromkeys((row["set"], row["batch"]) for row in batches))
    for unit in ("structures_per_s", "atoms_per_s") if columns else ():
        cells = {(r["contender"], r["threads"], r["set"], r["batch"]): figure(r.get(unit)) for r in batches}
        rows = [[label, *(cells.get((*key, *c), "-") for c in columns)] for label, key in zip(labels, keys)]
        title = f"Energy and forces, {unit.split('_')[0]} a second, from ase.Atoms to numbers, neighbour lists included"
        header = ["", *(f"{_size(batches, name)}, batch {batch}" for name, batch in columns)]
        yield Table(title, header, rows, detail=unit == "atoms_per_s")
    systems = list(dict.fromkeys((row["system"], row["atoms"]) for row in dynamics))
    if systems:
        steps = {(r["contender"], r["threads"], r["system"]): figure(r.get("ms_per_step")) for r in dynamics}
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
                [*shown, figure(row[key]["loop"]), figure(row[key]["rerun"])]
                for shown, row in zip(rows[1:], result["batches"])
            ]
        yield Table(f"All {count} heads against one, {title}", [*header, *(f"{m}, ms" for m in more)], rows)


def _ratio(cell: Mapping[str, float]) -> list[str]:
    return [figure(cell["one"]), figure(cell["all"]), f"{cell['ratio']:.2f}"]


def _physics(result: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        [
            row["name"], row["head"], f"{row['picoseconds']:g}", f"{row['timestep_fs']:g}", f"{row['temperature_k']:.0f}",
            f"{row['slope_mev_per_atom_per_ps']:.2g}", f"{row['rms_fluctuation_mev_per_atom']:.2g}",
        ]
        if "error" not in row
        else [row["name"], row["head"], "-", "-", "-", row["error"], "-"]
        for row in result.get("nve", [])
    ]  # fmt: skip
    header = ["system", "head or model", "ps", "step, fs", "K", "drift, meV/atom/ps", "rms fluctuation, meV/atom"]
    yield Table("Energy conservation at constant energy, ours in float64", header, rows)
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
            row["head"], str(row["elements"]), f"{row['pairs']:,}", f"{len(row['extra_minima']):,}",
            "-" if row["in_reference"] is None else f"{len(row['in_reference']):,}", _first(row["extra_minima"]),
            _first(row["soft"]),
        ]
        for row in result.get("pairs", [])
    ]  # fmt: skip
    header = [
        "head",
        "elements",
        "pairs",
        "with a second minimum",
        "by the labels' method, too",
        "which",
        "without a wall",
    ]
    yield Table("Curves of isolated pairs of atoms, from 0.5 Å to the cutoff", header, rows, detail=True)
    like = result.get("like_pairs", [])
    count = max((row.get("pairs", 0) for row in like), default=0)
    rows = [
        [
            row["model"], f"{row['pairs']:,} of {count:,}", f"{len(row['extra_minima']):,}", _first(row["extra_minima"]),
            f"{len(row['soft']):,}", _first(row["soft"]),
        ]
        if "error" not in row
        else [row["model"], "-", "-", row["error"], "-", "-"]
        for row in like
    ]  # fmt: skip
    header = ["head or model", "pairs", "with a second minimum", "which", "without a wall", "which"]
    yield Table("Curves of isolated pairs of like atoms", header, rows)


def _first(names: Iterable[str], most: int = 12) -> str:
    found = list(names)
    return " ".join(found[:most]) + (f" and {len(found) - most:,} more" if len(found) > most else "") or "-"


def _geometry(found: Mapping[str, float] | None) -> str:
    """'H-O 0.96 Å, H-O-H 104.5°' from the names of `relaxations.geometry`."""
    if not found:
        return "-"
    kept = ((name.rsplit("_", 1), value) for name, value in found.items() if not name.startswith("largest"))
    return ", ".join(
        f"{name} {value:.1f}°" if unit == "deg" else f"{name} {value:.3f} Å" for (name, unit), value in kept
    )


def _data(result: Mapping[str, Any]) -> Iterator[Table]:
    pool, million = result.get("pool"), result.get("million")
    if pool:
        yield from _pool(pool)
    yield from _reads(result.get("reads", {"sets": []}))
    sets = result.get("loader", {"sets": []})["sets"]
    keys = ["atoms_per_structure", "edges_per_atom", "loader", "here", "eager", "compiled"]
    keys += ["loader_over_eager", "loader_over_compiled"]
    header = ["", "atoms", "edges an atom", "loader, 2 processes", "loader, none", "training, eager", "compiled",
              "loader / eager", "loader / compiled"]  # fmt: skip
    rows = [[row["set"], *(figure(row[key]) for key in keys)] for row in sets]
    yield Table("Structures a second: the loader, and what one thread of training the small model takes", header, rows)
    header = ["", "ranks", "compared", "way", "one, µs", "99 %", "32 at once, µs", "99 %", "MB/s"]
    rows = [
        [job["set"], str(job["ranks"]), f"{job['compared']:,}", way, *_microseconds(found["single"]),
         *_microseconds(found["batch"]), figure(found["batch_mb_per_s"])]
        for job in result.get("ranks", {"jobs": []})["jobs"] for way, found in job["ways"].items()
    ]  # fmt: skip
    yield Table("Structures from the memory of other MPI ranks, and from the disk's cache", header, rows)
    if million:
        yield _million(million)


def _pool(pool: Mapping[str, Any]) -> Iterator[Table]:
    size, build, split = pool["bytes"], pool["build"], pool["split"]
    rows = [
        ["files, heads, frames", f"{pool['files']}, {len(pool['heads'])}, {pool['frames']:,}"],
        ["read back bit for bit", f"{pool['compared']['frames'] - pool['compared']['differing']:,} frames"],
        [f"build, {build['processes']} processes", f"{figure(build['frames_per_s'])} frames/s, "
         f"{figure(build['mb_per_s'])} MB/s of text, {figure(build['peak_mb'])} MB a process"],
        ["bytes on disk", _megabytes(size["ours"])],
        *([name, f"{_megabytes(size[key])}, {size[key] / size['ours']:.2f} times ours"]
          for name, key in (("as extxyz.xz", "extxyz_xz"), ("as extxyz", "extxyz"))),
        [f"as float32 with edges of {size['cutoff']:g} Å", f"{_megabytes(size['with_edges'])}, "
         f"{size['with_edges'] / size['ours']:.2f} times ours (reckoned from {size['edges']:,} edges)"],
        ["split by group over all heads", f"{split['train']:,} training, {split['validation']:,} validation, {split['test']:,} "
         f"test; {split['leaks']} structures on two sides ({split['shared_before']} before groups that share one were joined)"],
    ]  # fmt: skip
    yield Table("A folder of labelled files as datasets", ["", ""], rows)
    header = ["head", "files", "frames", "atoms", "MB", "seconds", "training frames", "elements", "residual, eV/atom"]
    rows = [
        [row["head"], str(row["files"]), f"{row['frames']:,}", f"{row['atoms']:,}", f"{row['bytes'] / 1e6:.2f}",
         figure(row["seconds"]), f"{row['train_frames']:,}", str(row["fitted_elements"]), figure(row["residual_ev_per_atom"])]
        for row in pool["heads"]
    ]  # fmt: skip
    yield Table("Each head: build, and reference energies fitted to its training side", header, rows, detail=True)


def _reads(reads: Mapping[str, Any]) -> Iterator[Table]:
    header = [
        "",
        "format",
        "MB",
        "one structure, µs",
        "99 %",
        "just opened",
        "times ours",
        "structures/s, by 32",
        "ours times",
    ]
    rows = []
    for found in reads["sets"]:
        ours = found["formats"]["gfm-calc"]
        for name, row in found["formats"].items():
            slower = row["median_us"] / ours["median_us"], ours["structures_per_s"] / row["structures_per_s"]
            rows.append([
                f"{found['structures']:,} {found['set']}", name, f"{row['bytes'] / 1e6:.2f}", *_microseconds(row),
                figure(row["first_us"]), f"{slower[0]:.2f}", figure(row["structures_per_s"]), f"{slower[1]:.2f}",
            ])  # fmt: skip
    yield Table("Random reads: a structure as ase.Atoms with labels, and batches of 32 as arrays", header, rows)


def _million(million: Mapping[str, Any]) -> Table:
    opened, reads, peak = million["open"], million["reads"], million["peak_mb"]
    rows = [
        ["build, 2 processes", f"{figure(million['seconds'])} s, {figure(million['structures_per_s'])} structures/s"],
        ["memory while it is built", f"{figure(peak['largest_child'])} MB a process, {figure(peak['parent'])} MB beside them"],
        ["on disk", f"{_megabytes(million['bytes']['all'])}, of which the index {_megabytes(million['bytes']['index'])}"],
        ["time to open", f"{figure(1e3 * opened['seconds'])} ms"],
        ["memory when open", f"{figure(opened['grown_mb'])} MB, {figure(opened['after_reads_mb'] - opened['memory_mb'])} MB "
         "more after the reads"],
        *([f"random read, {name}", "{} µs (99 %: {})".format(*_microseconds(reads[key]))]
          for name, key in (("just opened", "first"), ("the same again", "again"))),
    ]  # fmt: skip
    return Table(f"{million['structures']:,} synthetic structures, {million['atoms']:,} atoms", ["", ""], rows)


def _microseconds(found: Mapping[str, float]) -> list[str]:
    return [figure(found["median_us"]), figure(found["p99_us"])]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _reliability(result: Mapping[str, Any]) -> Iterator[Table]:
    header = ["promise", "tests", "cases", "failed", "tests skipped"]
    rows = [[str(row[key]) for key in ("promise", "tests", "count", "failed", "skipped")] for row in result["promises"]]
    yield Table(f"Promises, {result['settings']['counts']} counts", header, rows)


_TABLES: dict[str, Callable[[Mapping[str, Any]], Iterator[Table]]] = {
    "speed": _speed, "heads": _heads, "accuracy": accuracy, "physics": _physics, "data": _data,
    "reliability": _reliability, "scaling": scaling, "multitask": multitask, "alone": alone,
    "ablation": ablation, "training": training,
    "screening": screening, "finetune": finetune, "labels": labels, "pretraining": pretraining,
    "uncertainty": uncertainty, "crystals": crystals,
    "phonons": phonons,
    "torsions": torsions, "conformers": conformers, "stability": stability,
    "uncertainty_settings": uncertainty_settings,
}  # fmt: skip
