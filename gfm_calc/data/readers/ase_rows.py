"""Rows of ASE databases, whatever they are kept in: a dict of the row in, a raw frame out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GFMError, InputFileError, InvalidStructureError
from .. import units as unit_tables
from .names import is_number
from .options import ASE_UNITS, Layout, Units
from .raw import RawFrame, flags_from, floats_from, no_cell, no_pbc, numbers_from

# Columns that ASE's calculators fill, in ASE's units.
CALCULATED = Layout(
    name="ase", units=ASE_UNITS, energy=("energy", "free_energy"), forces=("forces",), stress=("stress",)
)
# Labels in `data` or in the key-value pairs, whose units are those of whoever wrote them; geometry is ASE's.
LOOSE = Layout(name="ase", units=Units(length="A"))
_RESULTS = ("energy", "free_energy", "forces", "stress")


def frame_of_row(row: Mapping[str, Any], path: Path, frame: int, loose: Layout = LOOSE) -> RawFrame:
    """The raw frame of a row.

    Args:
        row: what ASE keeps of an AtomsRow: numbers, positions, cell, pbc, results, constraints, key_value_pairs, data.
        loose: the layout where the calculator's columns are empty.

    Raises:
        InvalidStructureError: a part that is missing or of the wrong shape.
    """
    where: dict[str, Any] = {"source": str(path), "frame": frame}
    if "numbers" not in row or "positions" not in row:
        raise InvalidStructureError("a row without numbers or positions", **where)
    numbers = numbers_from(row["numbers"], str(path), frame)
    count = len(numbers)
    given = {key: row[key] for key in _RESULTS if row.get(key) is not None}
    scalars: dict[str, Any] = {key: given[key] for key in ("energy", "free_energy", "stress") if key in given}
    arrays = {}
    if "forces" in given:
        arrays["forces"] = floats_from(given["forces"], (count, 3), "forces", str(path), frame)
    for part in ("key_value_pairs", "data"):
        values = row.get(part)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            _sort(str(name), value, part, count, scalars, arrays)
    return RawFrame(
        atomic_numbers=numbers,
        positions=floats_from(row["positions"], (count, 3), "positions", str(path), frame),
        cell=no_cell() if row.get("cell") is None else _cell(row["cell"], path, frame),
        pbc=no_pbc() if row.get("pbc") is None else flags_from(row["pbc"], str(path), frame),
        scalars=scalars,
        arrays=arrays,
        layout=CALCULATED if given.keys() & {"energy", "free_energy", "forces"} else loose,
        source=path.name,
        path=str(path),
        frame=frame,
        fixed=_fixed(row.get("constraints"), count),
    )


def loose_layout(metadata: Any, path: Path) -> Layout:
    """The layout of labels in `data`, with the units that SchNetPack's metadata state.

    Raises:
        InputFileError: a unit that is not known.
    """
    if not isinstance(metadata, Mapping):
        return LOOSE
    properties = metadata.get("_property_unit_dict")
    stated: dict[str, str] = {}
    try:
        if isinstance(metadata.get("_distance_unit"), str):
            stated["length"] = unit_tables.length_unit(metadata["_distance_unit"])
        for name, unit in properties.items() if isinstance(properties, Mapping) else ():
            for kind in ("energy", "forces", "stress"):
                if str(name).lower() == kind and isinstance(unit, str):
                    stated[kind] = getattr(unit_tables, f"{kind}_unit")(unit)
    except GFMError as error:
        raise InputFileError(f"{path}: its metadata: {error}") from error
    return replace(LOOSE, units=replace(LOOSE.units, **stated, declared=True)) if stated else LOOSE


def decoded(value: Any) -> Any:
    """ASE's JSON with {"__ndarray__": [shape, dtype, flat]} turned into arrays."""
    if isinstance(value, dict):
        if "__ndarray__" in value:
            shape, dtype, flat = value["__ndarray__"]
            return np.array(flat, dtype=_dtype(dtype)).reshape(shape)
        return {key: decoded(part) for key, part in value.items()}
    return (
        [decoded(part) for part in value] if isinstance(value, list) and value and isinstance(value[0], dict) else value
    )


def _dtype(name: Any) -> np.dtype:
    dtype = np.dtype(str(name))
    if dtype.kind not in "fiub":
        raise ValueError(f"array of {dtype}")
    return dtype


def _sort(name: str, value: Any, part: str, count: int, scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    taken = name in scalars or name in arrays
    name = f"{part}.{name}" if taken else name
    if isinstance(value, str) or is_number(value):
        scalars[name] = value
        return
    if not isinstance(value, list | tuple | np.ndarray):
        return
    try:
        array = np.asarray(value)
    except ValueError:
        return
    if array.dtype.kind not in "fiu":
        return
    if array.ndim and len(array) == count and array.ndim <= 2 and name != "stress":
        arrays[name] = array
    elif array.size <= 9:
        scalars[name] = array


def _cell(value: Any, path: Path, frame: int) -> np.ndarray:
    if isinstance(value, Mapping):  # ASE's Cell as an object
        value = value.get("array", value)
        value = decoded(value) if isinstance(value, dict) else value
    return floats_from(value, (3, 3), "cell", str(path), frame)


def _fixed(constraints: Any, count: int) -> np.ndarray | None:
    """Indices of the atoms of FixAtoms and FixCartesian; other constraints are left aside."""
    if isinstance(constraints, str):
        try:
            constraints = json.loads(constraints)
        except (ValueError, RecursionError):
            return None
    found: set[int] = set()
    for constraint in constraints if isinstance(constraints, list) else ():
        if isinstance(constraint, Mapping) and constraint.get("name") in ("FixAtoms", "FixCartesian"):
            kwargs = constraint.get("kwargs")
            kwargs = kwargs if isinstance(kwargs, Mapping) else {}
            indices = kwargs.get("indices", kwargs.get("a", ()))
            indices = decoded(indices) if isinstance(indices, dict) else indices
            array = np.atleast_1d(np.asarray(indices))
            if array.dtype.kind in "iu" and array.ndim == 1:
                found |= {int(k) for k in array if 0 <= k < count}
    return np.array(sorted(found), dtype=np.int64) if found else None
