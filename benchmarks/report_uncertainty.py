"""The tables of `gfm bench uncertainty`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from gfm_calc.benchmarks.tables import Table, figure

_UNITS = {"forces": "meV/Å", "energy": "meV/atom"}
_METHODS = {
    "expected": "expected errors (the model's own)", "committee": "committee of last layers",
    "posterior": "last layers from their posterior", "distance": "distance to training atoms", "force": "size of the force",
}  # fmt: skip


def uncertainty(result: Mapping[str, Any]) -> Iterator[Table]:
    """How well each way to guess errors does, on average; how well the model's own does, head by head."""
    columns = [(label, what) for label in ("held out", "outside") for what in _UNITS]
    found = {(row["set"], row["what"], row["method"]): row for row in result["means"]}
    columns = [column for column in columns if (*column, "expected") in found]
    rows = [
        [name, *(_pair(found[label, what, method]) for label, what in columns)] for method, name in _METHODS.items()
    ]  # fmt: skip
    title = "Guessing errors: Spearman / AUROC, means over heads (held out) and files (outside the training data)"
    yield Table(title, ["", *(f"{what}, {label}" for label, what in columns)], rows)
    header = [
        "head",
        "set",
        "frames",
        "error",
        "Spearman",
        "AUROC",
        "error / expected",
        "miscalibration",
        "within twice",
    ]
    for what, unit in _UNITS.items():
        rows = [_row(row, row[what]) for row in result["rows"] if what in row]
        yield Table(f"Expected errors of {what}, errors in {unit}", header, rows, detail=True)


def uncertainty_settings(result: Mapping[str, Any]) -> Iterator[Table]:
    """Means over heads, the first row's and what the others differ by."""
    base, rows = result["rows"][0]["heads"], []
    for row in result["rows"]:
        heads = row["heads"]
        more = [heads[name]["surprise"] - base[name]["surprise"] for name in base]
        cells = [f"{statistics.fmean(more):+.3f}", f"{sum(value < 0 for value in more)} of {len(more)}"]
        for what in _UNITS:
            told = [heads[name][what] for name in base if what in base[name]]
            for key in ("spearman", "auroc", "miscalibration"):
                values = [cell[key] for cell in told if cell[key] is not None]
                cells.append(figure(statistics.fmean(values)) if values else "-")
        rows.append([row["setting"], *cells])
    title = f"Ways to learn expected errors, judged by validation structures alone, means over {len(base)} heads"
    header = ["", "surprise more than the first's", "heads with less"]
    header += [f"{key}, {what}" for what in _UNITS for key in ("Spearman", "AUROC", "miscalibration")]
    yield Table(title, header, rows)


def _pair(cell: Mapping[str, Any]) -> str:
    return f"{figure(cell['spearman'])} / {figure(cell['auroc'])}"


def _row(row: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    own = cell["expected"]
    told = [own["spearman"], own["auroc"], own["ratio"], own["miscalibration"], own["within_two"]]
    return [row["head"], row["set"], str(row["structures"]), figure(cell["error"]), *map(figure, told)]
