"""The tables of `gfm bench accuracy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gfm_calc.benchmarks.kinds import ELEMENT_GROUPS
from gfm_calc.benchmarks.tables import Table, figure

_MAES = ("energy_mae_mev_per_atom", "forces_mae_mev_per_a", "stress_mae_mev_per_a3")


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
    yield _before(result["heads"])
    yield from _beside(result.get("peers", []))
    header = ["data file", "head", "frames", "energy MAE", "RMSE", "forces MAE", "RMSE", "stress MAE"]
    rows = []
    for entry in result["heads"]:
        for source, found in entry["by_source"].items():
            keys = (energy, "energy_rmse_mev_per_atom", forces, "forces_rmse_mev_per_a", stress)
            rows.append([source, entry["head"], str(found["frames"]), *(figure(found.get(key)) for key in keys)])
    yield Table(f"Test errors by data file ({unit})", header, rows, detail=True)
    yield _by_type(result["heads"])
    yield from _by_elements(result["heads"])


def _before(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Errors of the older weights and of these on the same frames, those that both take."""
    rows, changes = [], []
    for entry in entries:
        if "before" in entry:
            row = [entry["head"]]
            for key in ("energy_mae_mev_per_atom", "forces_mae_mev_per_a"):
                before, after = entry["before"].get(key), entry.get("now", entry["model"]).get(key)
                change = None if before is None or after is None else 100 * (after / before - 1)
                changes += [change] if change is not None and "forces" in key else []
                row += [figure(before), figure(after), "-" if change is None else f"{change:+.0f} %"]
            rows.append(row)
    title = "The weights packaged before, and these, on the same frames (MAE, meV/atom and meV/Å)"
    if changes:
        title += f"; forces on average {sum(changes) / len(changes):+.0f} %"
    return Table(title, ["head", "energy before", "now", "", "forces before", "now", ""], rows)


def _beside(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Published models on the same frames: a table of each quantity, of the heads where one of them gives it, too."""
    models = list(dict.fromkeys(model for entry in entries for model in entry["models"]))
    for key, unit in zip(_MAES, ("energies, meV/atom", "forces, meV/Å", "stress, meV/Å³")):
        rows = []
        for entry in entries:
            cells = [entry["models"].get(model, {}).get(key) for model in models]
            if sum(cell is not None for cell in cells) > 1:
                rows.append([entry["head"], str(entry["frames"]), *map(figure, cells)])
        yield Table(f"Published models on the same held-out frames: MAE of {unit}", ["head", "frames", *models], rows)


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
