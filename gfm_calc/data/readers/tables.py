"""Rows of named values (npz, HDF5, JSON lines, parquet, TFRecord) to raw frames: which column is the geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GFMError, InputFileError, InvalidStructureError
from .. import units as unit_tables
from .names import is_number, is_stress, plain
from .options import Layout
from .raw import RawFrame, flags_from, floats_from, no_cell, no_pbc, numbers_from

NUMBERS = (
    "atomic_numbers", "numbers", "nuclear_charges", "z", "atnum", "symbols", "species", "elements", "atomic_symbols",
    "chemical_symbols", "atom_types",
)  # fmt: skip
POSITIONS = ("positions", "pos", "coordinates", "coords", "r", "xyz", "atxyz", "geometry", "conformations")
FRACTIONAL = ("frac", "frac_coords", "fractional", "fractional_coordinates", "fractional_positions", "scaled_positions")
CELL = ("cell", "lattice", "lattice_vectors", "unit_cell", "lattice_matrix", "cell_vectors")
PBC = ("pbc", "periodic")
_UNIT_FIELDS = {
    "energy": ("energy_unit", "energy_units", "e_unit"),
    "length": ("length_unit", "length_units", "r_unit", "distance_unit", "position_unit"),
    "forces": ("forces_unit", "force_unit", "forces_units"),
    "stress": ("stress_unit", "stress_units"),
}


def field_of(names: Any, aliases: tuple[str, ...], what: str, where: str) -> str | None:
    """The one name among `names` that is an alias, None where there is none.

    Raises:
        InputFileError: several.
    """
    found = [name for name in names if plain(str(name)) in aliases]
    if len(found) > 1:
        raise InputFileError(
            f"{where}: {', '.join(map(str, found))} may all be the {what}: keep one of them in the file"
        )
    return found[0] if found else None


def frame_of(
    row: Mapping[str, Any],
    layout: Layout,
    path: Path,
    frame: int,
    *,
    group: str = "",
    ignore: frozenset[str] = frozenset(),
) -> RawFrame:
    """The raw frame of one row.

    Args:
        row: name -> value; geometry is found by the aliases above, what is left is scalars and per-atom arrays.
        ignore: names that are neither.

    Raises:
        InputFileError: no geometry, or several columns that may be it.
        InvalidStructureError: a geometry of the wrong shape, or an element that is none.
    """
    where = f"{path}, frame {frame}"
    keys = {
        "numbers": field_of(row, NUMBERS, "elements", where),
        "positions": field_of(row, POSITIONS, "positions", where),
        "cell": field_of(row, CELL, "cell", where),
        "pbc": field_of(row, PBC, "periodic boundary conditions", where),
    }
    of_cell = None if keys["positions"] is not None else field_of(row, FRACTIONAL, "fractional positions", where)
    if of_cell is not None and keys["cell"] is not None:
        keys["positions"] = of_cell
    for what in ("numbers", "positions"):
        if keys[what] is None:
            known = ", ".join(NUMBERS[:4] if what == "numbers" else POSITIONS[:4])
            raise InputFileError(f"{where}: no {what}; they are looked for under {known}, ...: found {_shown(row)}")
    numbers = numbers_from(row[keys["numbers"]], str(path), frame)
    positions = floats_from(row[keys["positions"]], (len(numbers), 3), str(keys["positions"]), str(path), frame)
    cell, pbc = _cell(row, keys["cell"], keys["pbc"], path, frame)
    if of_cell is not None:
        positions = positions @ cell
    taken = {name for name in keys.values() if name is not None} | ignore
    scalars, arrays = _rest(row, taken, len(numbers))
    return RawFrame(
        atomic_numbers=numbers, positions=positions, cell=cell, pbc=pbc, scalars=scalars, arrays=arrays, layout=layout,
        group=group, source=path.name, path=str(path), frame=frame,
    )  # fmt: skip


def with_stated_units(layout: Layout, fields: Mapping[str, Any], where: str) -> Layout:
    """`layout` with the units that `fields` state ('energy_unit', 'r_unit', ...).

    Raises:
        InputFileError: a unit that is not known.
    """
    stated: dict[str, Any] = {}
    for kind, aliases in _UNIT_FIELDS.items():
        for name in fields:
            if plain(str(name)) in aliases:
                try:
                    stated[kind] = getattr(unit_tables, f"{kind}_unit")(_text(fields[name]))
                except GFMError as error:
                    raise InputFileError(f"{where}: {name}: {error}") from error
    if not stated:
        return layout
    return replace(layout, units=replace(layout.units, **stated, declared=True))


def _cell(row: Mapping[str, Any], cell_key: str | None, pbc_key: str | None, path: Path, frame: int):
    cell, pbc = no_cell(), no_pbc()
    given = cell_key is not None and row[cell_key] is not None
    if given:
        value: Any = np.array(row[cell_key], dtype=object)
        if value.size == 3:
            cell = np.diag(floats_from(row[cell_key], (3,), "cell", str(path), frame))
        elif value.size == 6 and value.ndim == 1:
            raise InvalidStructureError(
                "the cell has six numbers: give its three vectors (nine numbers)", source=str(path), frame=frame
            )
        else:
            cell = floats_from(row[cell_key], (3, 3), "cell", str(path), frame)
    if pbc_key is not None and row[pbc_key] is not None:
        pbc = flags_from(row[pbc_key], str(path), frame)
    elif given and cell.any():
        pbc = np.ones(3, bool)
    return cell, pbc


def _rest(row: Mapping[str, Any], taken: set[str], count: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    scalars: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in row.items():
        if name in taken or value is None:
            continue
        if isinstance(value, str | bytes) or is_number(value):
            scalars[str(name)] = _text(value) if isinstance(value, bytes) else value
            continue
        array = _array(value)
        if array is None:
            continue
        if is_stress(str(name)) and array.size in (6, 9):  # [3, 3] of a structure of three atoms, too
            scalars[str(name)] = array
        elif array.ndim and len(array) == count:
            arrays[str(name)] = array
        elif array.size == 3 * count and array.ndim == 1 and count not in (2, 3):
            arrays[str(name)] = array.reshape(count, 3)
        else:
            scalars[str(name)] = array
    return scalars, arrays


def _array(value: Any) -> np.ndarray | None:
    """An array of numbers, or None."""
    try:
        array = np.asarray(value)
        if array.dtype == object:
            array = np.stack([np.asarray(row, dtype=np.float64) for row in array])
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.dtype.kind in "fiub" else None


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(row: Mapping[str, Any]) -> str:
    names = [str(name)[:30] for name in row]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
