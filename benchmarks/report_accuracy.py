"""The tables of `gfm bench accuracy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from gfm_calc.benchmarks.kinds import ELEMENT_GROUPS
from gfm_calc.benchmarks.tables import Table, figure

_MAES = ("energy_mae_mev_per_atom", "forces_mae_mev_per_a", "stress_mae_mev_per_a3")
_RMSES = tuple(name.replace("_mae_", "_rmse_") for name in _MAES)


def accuracy(result: Mapping[str, Any]) -> Iterator[Table]:
    """Errors beside those of trivial predictors, of older weights and of published models; then by what they are split by."""
    energy, forces, stress = _MAES
    header = ["head", "frames", "formulas", "energy", "mean", "references", "forces", "zero", "stress", "zero"]
    rows = []
    for entry in result["heads"]:
        name, model, mean = entry["head"], entry["model"], entry["mean"]
        cells = [model.get(energy), mean.get(energy), entry["references"].get(energy)]
        cells += [model.get(forces), mean.get(forces), model.get(stress), mean.get(stress)]
        rows.append([name, str(model["frames"]), str(entry["compositions"]), *map(figure, cells)])
    unit = "energy meV/atom, forces meV/Å, stress meV/Å³"
    yield Table(f"Test errors (MAE, {unit}) beside predictors that know nothing", header, rows)
    rows = [
        [entry["head"], str(entry["model"]["frames"]), *(figure(entry["model"].get(key)) for key in _RMSES)]
        for entry in result["heads"]
    ]
    yield Table(f"Test errors (RMSE, {unit})", ["head", "frames", "energy", "forces", "stress"], rows, detail=True)
    yield from _before(result["heads"], result.get("before"))
    yield from _beside(result.get("peers", []))
    header = ["data file", "head", "frames", "energy MAE", "RMSE", "forces MAE", "RMSE", "stress MAE", "RMSE"]
    keys = [name for pair in zip(_MAES, _RMSES) for name in pair]
    rows = []
    for entry in result["heads"]:
        for source, found in entry["by_source"].items():
            rows.append([source, entry["head"], str(found["frames"]), *(figure(found.get(key)) for key in keys)])
    yield Table(f"Test errors by data file ({unit})", header, rows, detail=True)
    yield _by_type(result["heads"])
    yield from _by_elements(result["heads"])


def _before(entries: Sequence[Mapping[str, Any]], about: Mapping[str, Any] | None) -> Iterator[Table]:
    """Errors of older weights and of these on the same frames, those that both take; then by data file, since a file of a kind
    that only these were trained on flatters them.

    Args:
        about: the older ones, {"name" ("" for none), "weights"}; None in the first results, which keep their title.
    """
    header, rows, changes = ["head", "energy before", "now", "", "forces before", "now", ""], [], []
    for entry in entries:
        if "before" in entry:
            row = [entry["head"]]
            for key in _MAES[:2]:
                cells, change = _changed(entry["before"], entry.get("now", entry["model"]), key)
                changes += [change] if change is not None and "forces" in key else []
                row += cells
            rows.append(row)
    files, kinds = _by_file(entries)
    title = f"{_older(about)} and these, on the same frames (MAE, meV/atom and meV/Å)"
    if changes:
        title += f"; forces on average {fmean(changes):+.0f} %"
        told = [f"{fmean(found):+.0f} % over {kind}" for kind, found in kinds.items() if found]
        title += f" over heads, {', '.join(told)}" if told else ""
    yield Table(title, header, rows)
    header = ["head", "data file", "frames", "forces before", "now", "", "trained on before"]
    yield Table(f"{_older(about)} and these, by data file (MAE of forces, meV/Å)", header, files, detail=True)


def _by_file(entries: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], dict[str, list[float]]]:
    """Rows of all data files, and the changes in % of forces by whether the older weights were trained on a file."""
    rows = []
    kinds: dict[str, list[float]] = {"data files that the older ones were trained on": [], "other files": []}
    known, others = kinds.values()
    for entry in entries:
        for source, older in entry.get("before_by_source", {}).items():
            cells, change = _changed(older, entry["now_by_source"][source], _MAES[1])
            said = "-"
            if "before_trained_on" in entry:
                said = "yes" if source in entry["before_trained_on"] else "no"
                (known if said == "yes" else others).extend([] if change is None else [change])
            rows.append([entry["head"], source, str(older["frames"]), *cells, said])
    return rows, kinds


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> tuple[list[str], float | None]:
    """Both errors and the change in words, and that in %."""
    first, second = before.get(key), now.get(key)
    change = 100 * (second / first - 1) if first and second is not None else None
    return [figure(first), figure(second), "-" if change is None else f"{change:+.0f} %"], change


def _older(about: Mapping[str, Any] | None) -> str:
    """What weights stand beside these, at the beginning of a title."""
    if about is None:
        return "The weights packaged before,"
    if not about["name"]:
        return f"Weights {about['weights']} (given by --before)"
    return f"{about['name'][0].upper()}{about['name'][1:]} ({about['weights']}, given by --before)"


def _beside(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Published models on the same frames, for each level of theory (older results do not name it): a table of each quantity,
    of the heads where one of them gives it, too."""
    for level in dict.fromkeys(entry.get("level", "") for entry in entries):
        yield from _beside_of(level, [entry for entry in entries if entry.get("level", "") == level])


def _beside_of(level: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    published = f"Published models of {level}" if level else "Published models"
    models = list(dict.fromkeys(model for entry in entries for model in entry["models"]))
    units = ("energies, meV/atom", "forces, meV/Å", "stress, meV/Å³")
    for what, keys in (("MAE", _MAES), ("RMSE", _RMSES)):
        for key, unit in zip(keys, units):
            rows = []
            for entry in entries:
                cells = [entry["models"].get(model, {}).get(key) for model in models]
                if sum(cell is not None for cell in cells) > 1:
                    rows.append([entry["head"], str(entry["frames"]), *map(figure, cells)])
            title = f"{published} on the same held-out frames: {what} of {unit}"
            title += "; where it is many times the MAE, a few frames make both" if what == "RMSE" else ""
            yield Table(title, ["head", "frames", *models], rows, detail=what == "RMSE")


def _by_type(entries: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [entry["head"], kind, str(found["frames"]), *(figure(found.get(key)) for key in _MAES)]
        for entry in entries
        for kind, found in entry.get("by_type", {}).items()
    ]
    header = ["head", "systems", "frames", "energy", "forces", "stress"]
    return Table("Test errors by kind of system (MAE, meV/atom, meV/Å, meV/Å³)", header, rows, detail=True)


def _by_elements(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """A table of forces and one of energies: heads down, groups of elements across."""
    named = {group for entry in entries for group in entry.get("by_elements", {})}
    groups = [group for group in (*ELEMENT_GROUPS, "others") if group in named]
    titles = {
        _MAES[1]: "Test errors of forces by the atom's group of elements (MAE, meV/Å)",
        _MAES[0]: "Test errors of energies of structures with such an element (MAE, meV/atom)",
    }
    for key, title in titles.items():
        rows = [
            [entry["head"], *(figure(entry["by_elements"].get(group, {}).get(key)) for group in groups)]
            for entry in entries
            if entry.get("by_elements")
        ]
        yield Table(title, ["head", *groups], rows, detail=True)
