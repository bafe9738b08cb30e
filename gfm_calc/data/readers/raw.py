"""A frame as its file has it, before anybody decides which number is the energy: `RawFrame`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import atomic_numbers as NUMBER_OF

from ...errors import InvalidStructureError
from .options import Layout

MAX_ATOMS = 10_000_000  # in a frame; a larger count in a file is damage


@dataclass(kw_only=True, slots=True)
class RawFrame:
    """One frame in the units and under the names of its file.

    Attributes:
        atomic_numbers: [n] int64.
        positions: [n, 3] float64, in the file's length unit.
        cell: [3, 3], rows are vectors, same unit; zero where there is none.
        pbc: [3] bool.
        scalars: what belongs to the structure: name -> number, text or small array.
        arrays: what belongs to its atoms: name -> [n, ...].
        layout: what is known of the format.
        group: what the layout says belongs together, or "".
        source: file name without folder; path: as the user gave it, for messages.
        frame: index in the file.
        fixed: indices of atoms that a constraint holds, or None.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    scalars: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    layout: Layout
    group: str = ""
    source: str
    path: str
    frame: int
    fixed: np.ndarray | None = None


def no_cell() -> np.ndarray:
    """A [3, 3] of zeros."""
    return np.zeros((3, 3))


def no_pbc() -> np.ndarray:
    """[3] False."""
    return np.zeros(3, bool)


def numbers_from(values: Any, path: str, frame: int) -> np.ndarray:
    """[n] int64 atomic numbers from numbers or symbols.

    Raises:
        InvalidStructureError: something that is no element, or not a flat list.
    """
    where: dict[str, Any] = {"source": path, "frame": frame}
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.ndim == 1:
        return values.astype(np.int64)
    array = values if isinstance(values, np.ndarray) else np.asarray(_flat(values, where), dtype=object)
    if array.ndim != 1:
        raise InvalidStructureError(f"the elements have shape {list(array.shape)}, expected a flat list", **where)
    return np.fromiter((_number(value, atom, where) for atom, value in enumerate(array.tolist())), np.int64, len(array))


def _flat(values: Any, where: dict) -> list:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidStructureError(f"the elements are {type(values).__name__}, expected a list", **where)
    return [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in values]


def _number(value: Any, atom: int, where: dict) -> int:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        if value.isdigit() and len(value) < 4:
            return int(value)
        number = NUMBER_OF.get(value) or NUMBER_OF.get(value.strip().capitalize())
        if not number:
            raise InvalidStructureError(f"unknown element {value[:40]!r}", **where, atom=atom)
        return number
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value == int(value):
        if abs(value) < 1000:
            return int(value)
    raise InvalidStructureError(f"{value!r:.40} is no atomic number", **where, atom=atom)


def floats_from(values: Any, shape: tuple[int, ...], name: str, path: str, frame: int) -> np.ndarray:
    """`values` as float64 of `shape`; flat values of the right count are folded.

    Raises:
        InvalidStructureError: no numbers, or too many or too few.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            if array.dtype.kind != "O" or not array.size:
                raise TypeError
            array = np.stack([np.asarray(row, dtype=np.float64) for row in array])  # rows of arrays (parquet)
        array = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        shown = f"{values.tolist() if isinstance(values, np.ndarray) else values!r}"
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        reason = f"{name} holds something that is no number ({shown}): give numbers, of a class 0 and 1"
        raise InvalidStructureError(reason, source=path, frame=frame) from None
    if array.shape == shape:
        return array
    if array.size == math.prod(shape) and array.ndim <= 2:
        return array.reshape(shape)
    raise InvalidStructureError(
        f"{name} has shape {list(array.shape)}, expected {list(shape)}", source=path, frame=frame
    )


def flags_from(values: Any, path: str, frame: int) -> np.ndarray:
    """[3] bool from one or three truth values (or 0 and 1).

    Raises:
        InvalidStructureError: anything else.
    """
    flags = np.asarray(values)
    if flags.dtype.kind in "biuf" and flags.size in (1, 3):
        given = flags.reshape(-1).tolist()
        if all(flag in (0, 1) for flag in given):
            return np.array(given * (3 // len(given)), bool)
    raise InvalidStructureError("pbc must be one or three of true and false (T and F)", source=path, frame=frame)
