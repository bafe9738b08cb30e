"""An inspection as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from .consistency import Slope
from .file_statistics import FORCE_BINS
from .findings import Finding, kind_of_energies
from .inspection import FileInspection, Inspection

SCHEMA = 1
# Columns of the statistics that are summarised, with their units.
RANGES = {
    "num_atoms": "atoms",
    "energy": "eV",
    "energy_per_atom": "eV/atom",
    "residual": "eV/atom after reference energies",
    "max_force": "eV/Å",
    "net_force": "eV/Å",
    "pressure": "eV/Å³",
    "volume": "Å³/atom",
    "closest": "of a bond",
    "charge": "e",
    "spin": "2S+1",
}
_BINS = 40


def mapping(inspection: Inspection) -> dict[str, Any]:
    """Everything that an inspection found: what NaN would be is null."""
    return {
        "schema": SCHEMA,
        "worst": inspection.worst,
        "frames": len(inspection.table),
        "files": [_file(file) for file in inspection.files],
        "findings": _findings(inspection.findings),
    }


def ranges(file: FileInspection) -> dict[str, dict[str, Any]]:
    """name -> {"unit", "count", "min", "median", "max", "histogram": {"edges", "counts"}} of the columns."""
    found = {}
    for name, unit in RANGES.items():
        values = file.statistics.columns.get(name)
        known = values[np.isfinite(values)] if values is not None else np.zeros(0)
        if len(known):
            counts, edges = np.histogram(known, bins=_BINS)
            found[name] = {
                "unit": unit,
                "count": len(known),
                "min": float(known.min()),
                "median": float(np.median(known)),
                "max": float(known.max()),
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            }
    return found


def periodicity(file: FileInspection) -> dict[str, int]:
    """{"molecules", "chains", "slabs", "crystals"} by the number of periodic axes -> frames."""
    count = np.bincount(file.statistics["axes"].astype(int), minlength=4)
    return {name: int(n) for name, n in zip(("molecules", "chains", "slabs", "crystals"), count) if n}


def _file(file: FileInspection) -> dict[str, Any]:
    columns, kind = file.statistics, kind_of_energies(file)
    return {
        "path": file.path,
        "format": file.format,
        "frames": len(columns),
        "atoms": int(columns["num_atoms"].sum()),
        "unusable_frames": file.num_errors,
        "errors": file.errors,
        "broken": file.broken,
        "elements": {
            symbol: {"atoms": int(columns.element_atoms[z]), "frames": int(columns.element_frames[z])}
            for symbol, z in zip(columns.elements, np.flatnonzero(columns.element_frames))
        },
        "compositions": columns.num_compositions,
        "periodicity": periodicity(file),
        "conventions": [
            {**plain(asdict(convention)), "frames": frames} for convention, frames in file.conventions.items()
        ],
        "other_keys": file.other_keys,
        "energy_kind": None if kind is None else plain(asdict(kind)),
        "ranges": ranges(file),
        "force_components": {"edges": FORCE_BINS.tolist(), "counts": columns.force_histogram.tolist()},
        "forces_against_energies": _slope(file.forces_check),
        "stress_against_energies": _slope(file.stress_check),
        "stiffness_eV_per_A2": plain(file.curvature),
        "constrained_frames": columns.num_fixed,
        "isolated_atoms": file.isolated,
        "reference_fit": None if file.fit is None else plain(asdict(file.fit)),
        "findings": _findings(file.findings),
    }


def _slope(slope: Slope) -> dict[str, Any]:
    return plain(asdict(slope))


def _findings(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [plain(asdict(finding)) for finding in findings]


def plain(value: Any) -> Any:
    """`value` with tuples as lists and NaN or infinity as None."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
