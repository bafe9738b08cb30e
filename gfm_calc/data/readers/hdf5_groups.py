"""HDF5: ANI-1x, QM7-X, Transition1x, and any file whose groups hold elements, positions and labels.

The layout is known by its names.  Links that lead out of the file are not followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GFMError, InputFileError, InvalidStructureError, one_line
from .names import plain
from .options import Layout, ReadOptions, Units
from .raw import RawFrame
from .tables import CELL, NUMBERS, PBC, POSITIONS, field_of, frame_of, with_stated_units

FORMAT = "hdf5"
_MAX_DEPTH = 8
_BLOCK = 1 << 22  # bytes read at a time from one array
_MAX_ROW = 1 << 28  # bytes of one frame of one array
_EV = Units(energy="eV", length="A", forces="eV/A")
ANI1X = Layout(name="ani1x", units=Units(energy="Ha", length="A", forces="Ha/A"))
TRANSITION1X = Layout(name="transition1x", units=_EV)
QM7X = Layout(
    name="qm7x",
    units=_EV,
    energy=("ePBE0+MBD", "ePBE0"),
    forces=("totFOR", "pbe0FOR"),
    stress=(),
    pairs={"ePBE0+MBD": "totFOR", "ePBE0": "pbe0FOR"},
)
_GENERIC = Layout(name=FORMAT)
# Each reaction of Transition1x holds its end points beside the path; the transition state is in the path.
_END_POINTS = ("reactant", "product")


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every frame of every group, in the order of the names.

    Raises:
        InputFileError: not HDF5, damaged, or without a group that holds elements and positions.
    """
    import h5py

    frame = 0
    try:
        with h5py.File(path, "r") as file:
            for group, layout, name in _blocks(h5py, file, path):
                for found in _frames_of(group, layout, name, path, frame, options):
                    if found is not None:
                        yield found
                    frame += 1
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # what h5py raises on damage
        raise InputFileError(f"{path}, frame {frame}: not readable as HDF5 ({one_line(error)}): damaged?") from error
    if frame == 0:
        raise InputFileError(
            f"{path}: no group with elements ({', '.join(NUMBERS[:3])}) and positions ({POSITIONS[0]}, ...)"
        )


def _blocks(h5py: Any, file: Any, path: Path) -> Iterator[tuple[Any, Layout, str]]:
    """(group, layout, group name for splits) of every group that holds frames."""
    if isinstance(_inside(h5py, file, "data", path), h5py.Group) and _is_transition1x(h5py, file, path):
        yield from _transition1x(h5py, file["data"], path)
        return
    yield from _walk(h5py, file, path, "", 0)


def _walk(h5py: Any, group: Any, path: Path, name: str, depth: int) -> Iterator[tuple[Any, Layout, str]]:
    if depth > _MAX_DEPTH:
        raise InputFileError(f"{path}: groups are nested too deeply at {name}")
    datasets = {key for key in group if isinstance(_inside(h5py, group, key, path), h5py.Dataset)}
    if field_of(datasets, NUMBERS, "elements", f"{path}, group {name}") is not None:
        yield group, _layout_of(group, datasets, path, name), _split_name(datasets, name)
        return
    for key in group:
        if isinstance(_inside(h5py, group, key, path), h5py.Group):
            yield from _walk(h5py, group[key], path, f"{name}/{key}" if name else key, depth + 1)


def _inside(h5py: Any, group: Any, key: str, path: Path) -> Any:
    """What is linked as `key`, None where it is missing.

    Raises:
        InputFileError: a link or an array that lies in another file.
    """
    link = group.get(key, getlink=True)
    if link is None:
        return None
    if isinstance(link, h5py.ExternalLink):
        raise InputFileError(f"{path}: {key[:40]} is a link to another file, which is not followed")
    found = group.get(key)
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise InputFileError(f"{path}: {key[:40]} is stored in another file, which is not read")
    return found


def _layout_of(group: Any, datasets: set[str], path: Path, name: str) -> Layout:
    if {"atNUM", "atXYZ"} <= datasets:
        return QM7X
    if any(key.startswith("wb97x_dz.") for key in datasets):
        return ANI1X
    attributes = {key: group.attrs[key] for key in group.attrs} | {
        key: group.file.attrs[key] for key in group.file.attrs
    }
    units = {key: value for key, value in attributes.items() if isinstance(value, str | bytes)}
    for key in datasets:  # a unit beside the array that has it
        stated = group[key].attrs.get("units", group[key].attrs.get("unit"))
        if isinstance(stated, str | bytes):
            kind = "length" if plain(key) in POSITIONS else "energy" if "energ" in key.lower() else None
            kind = "forces" if kind is None and "forc" in key.lower() else kind
            if kind:
                units[f"{kind}_unit"] = stated
    return with_stated_units(_GENERIC, units, f"{path}, group {name}")


def _split_name(datasets: set[str], name: str) -> str:
    """What belongs together: the molecule, which is the group above QM7-X's conformations."""
    if {"atNUM", "atXYZ"} <= datasets:
        return f"qm7x-{name.rpartition('/')[0]}"
    return name


# ---- Transition1x ----


def _is_transition1x(h5py: Any, file: Any, path: Path) -> bool:
    for formula in file["data"]:
        reactions = _inside(h5py, file["data"], formula, path)
        if isinstance(reactions, h5py.Group):
            return any("reactant" in reactions[key] for key in reactions if isinstance(reactions[key], h5py.Group))
    return False


def _transition1x(h5py: Any, data: Any, path: Path) -> Iterator[tuple[Any, Layout, str]]:
    """ "train", "val" and "test" link to the same reactions as "data", so they are left aside."""
    for formula in data:
        reactions = _inside(h5py, data, formula, path)
        for name in reactions:
            reaction = _inside(h5py, reactions, name, path)
            for end in _END_POINTS:
                if end in reaction:
                    yield reaction[end], TRANSITION1X, formula
            yield reaction, TRANSITION1X, formula


# ---- one group ----


def _frames_of(
    group: Any, layout: Layout, name: str, path: Path, first: int, options: ReadOptions
) -> Iterator[RawFrame | GFMError | None]:
    """None stands for a frame without the label that was asked for."""
    columns = {key: group[key] for key in group if hasattr(group[key], "dtype")}
    numbers = field_of(columns, NUMBERS, "elements", str(path))
    positions = field_of(columns, POSITIONS, "positions", f"{path}, group {name}")
    if numbers is None or positions is None:
        raise InputFileError(f"{path}, group {name}: no {'elements' if numbers is None else 'positions'}")
    shape = columns[positions].shape
    if len(shape) == 2:
        row = {key: _whole(column, path, key) for key, column in columns.items()}
        yield _row(row, layout, path, first, name, options)
        return
    if len(shape) != 3 or shape[2] != 3:
        raise InputFileError(f"{path}, group {name}: {positions} has shape {list(shape)}, expected [frames, atoms, 3]")
    per_frame = [key for key, column in columns.items() if column.shape[:1] == shape[:1]]
    if columns[numbers].ndim == 1:
        per_frame = [key for key in per_frame if key != numbers]
    per_frame = [key for key in per_frame if not (plain(key) in (*CELL, *PBC) and columns[key].shape in ((3,), (3, 3)))]
    constant = {key: _whole(column, path, key) for key, column in columns.items() if key not in per_frame}
    step = _rows_at_once([columns[key] for key in per_frame], path)
    for start in range(0, shape[0], step):
        blocks = {key: columns[key][start : start + step] for key in per_frame}
        for k in range(min(step, shape[0] - start)):
            row = constant | {key: block[k] for key, block in blocks.items()}
            yield _row(row, layout, path, first + start + k, name, options)


def _row(
    row: dict[str, Any], layout: Layout, path: Path, frame: int, name: str, options: ReadOptions
) -> RawFrame | GFMError | None:
    if layout is ANI1X and options.energy_key in row and np.isnan(row[options.energy_key]):
        return None  # ANI-1x writes NaN where a level of theory was not calculated
    try:
        return frame_of(row, layout, path, frame, group=name)
    except InvalidStructureError as error:
        return error


def _whole(column: Any, path: Path, key: str) -> Any:
    if column.size * max(1, column.dtype.itemsize) > _MAX_ROW:
        raise InputFileError(f"{path}: {key} has shape {list(column.shape)}, which is no row for each frame")
    return column[()]


def _rows_at_once(columns: list[Any], path: Path) -> int:
    widest = max(column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=object)) for column in columns)
    if widest > _MAX_ROW:
        raise InputFileError(f"{path}: one frame of an array has {widest} bytes: damaged?")
    return max(1, _BLOCK // max(1, widest))
