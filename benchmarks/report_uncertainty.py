"""The tables of `gfm bench uncertainty`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
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
    """Means over heads, and what a row differs by from the mean of the first one and its repeats with other seeds."""
    base, rows = _base(result["rows"]), []
    names = list(base[0]["heads"])
    usual = {name: statistics.fmean(row["heads"][name]["surprise"] for row in base) for name in names}
    spread = statistics.stdev(_surprise(row) for row in base) if len(base) > 1 else None
    for row in result["rows"]:
        more = [row["heads"][name]["surprise"] - usual[name] for name in names]
        mean = statistics.fmean(more)
        cells = [f"{mean:+.4f}", f"{mean / spread:+.1f}" if spread else "-"]
        cells.append(f"{sum(value < 0 for value in more)} of {len(more)}")
        for what in _UNITS:
            told = [row["heads"][name][what] for name in names if what in row["heads"][name]]
            for key in ("spearman", "auroc", "miscalibration"):
                values = [cell[key] for cell in told if cell[key] is not None]
                cells.append(figure(statistics.fmean(values)) if values else "-")
        rows.append([row["setting"], *cells])
    title = "Ways to learn expected errors, judged by validation structures of other groups than those that say when to stop: "
    title += f"means over {len(names)} heads"
    if spread is not None:
        title += f"; standard deviation of the first's over {len(base)} seeds: {spread:.2g}, up to twice that is noise"
    if result.get("left_out"):
        title += f". Too few such structures: {', '.join(result['left_out'])}"
    header = ["", "surprise more than the first's mean", "over its spread", "heads with less"]
    header += [f"{key}, {what}" for what in _UNITS for key in ("Spearman", "AUROC", "miscalibration")]
    yield Table(title, header, rows)


def _base(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row, and its repeats with other seeds (the first results had none)."""
    return [rows[0], *(row for row in rows[1:] if row.get("seed") != rows[0].get("seed"))]


def _surprise(row: Mapping[str, Any]) -> float:
    return statistics.fmean(found["surprise"] for found in row["heads"].values())


def _pair(cell: Mapping[str, Any]) -> str:
    return f"{figure(cell['spearman'])} / {figure(cell['auroc'])}"


def _row(row: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    own = cell["expected"]
    told = [own["spearman"], own["auroc"], own["ratio"], own["miscalibration"], own["within_two"]]
    return [row["head"], row["set"], str(row["structures"]), figure(cell["error"]), *map(figure, told)]
