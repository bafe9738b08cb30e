"""NumPy archives of one molecule (rMD17, MD17, sGDML) or of frames padded to one size, streamed.

The archive is read row by row, so memory does not grow with it; arrays of Python objects would have to be unpickled and
are refused.  rMD17's own archives are known to be in kcal/mol and Å; others say it, or the user does.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ...errors import GFMError, InputFileError, InvalidStructureError
from .options import Layout, ReadOptions, Units
from .raw import RawFrame
from .tables import NUMBERS, POSITIONS, field_of, frame_of, with_stated_units

FORMAT = "npz"
_GENERIC = Layout(name="npz")
_RMD17 = Layout(
    name="rmd17",
    units=Units(energy="kcal/mol", length="A"),
    energy=("energies",),
    forces=("forces",),
    stress=(),
)
_RMD17_FIELDS = {"nuclear_charges", "coords", "energies", "forces", "old_energies", "old_forces"}
_SMALL = 1 << 20  # bytes: arrays up to here are read at once
_MAX_ROW = 1 << 28  # bytes of one frame of one array
_SHORT = {"z": "z", "r": "r", "e": "energy", "f": "forces"}  # MD17's and sGDML's one-letter names


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every frame of the archive.

    Raises:
        InputFileError: no archive of arrays, arrays of objects, or arrays that do not fit together.
    """
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            columns = {name[:-4]: _Column(stack.enter_context(archive.open(name)), path, name[:-4]) for name in names}
        except zipfile.BadZipFile as error:
            raise InputFileError(f"{path}: not an .npz archive: damaged, or not what its name says") from error
        if set(columns) >= _RMD17_FIELDS:
            layout, ignored = _RMD17, {name for name in columns if name.startswith("old_")}
        else:
            texts = {name: column.whole() for name, column in columns.items() if column.is_text}
            layout, ignored = with_stated_units(_GENERIC, texts, str(path)), set(texts)
        yield from _rows({name: c for name, c in columns.items() if name not in ignored}, layout, path)


def _rows(columns: dict[str, _Column], layout: Layout, path: Path) -> Iterator[RawFrame | GFMError]:
    numbers, positions = _geometry(columns, path)
    shape = columns[positions].shape
    if len(shape) == 2:  # one frame
        row = {name: column.whole() for name, column in columns.items()}
        yield frame_of(_renamed(row), layout, path, 0, group=path.name)
        return
    if len(shape) != 3 or shape[2] != 3:
        raise InputFileError(f"{path}: {positions} has shape {list(shape)}, expected [frames, atoms, 3]")
    per_frame = [name for name, column in columns.items() if column.shape[:1] == shape[:1]]
    if len(columns[numbers].shape) == 1:
        per_frame = [name for name in per_frame if name != numbers]
    constant = {name: column.whole() for name, column in columns.items() if name not in per_frame}
    for name in per_frame:
        columns[name].start()
    several = len(columns[numbers].shape) == 2
    for frame in range(shape[0]):
        row = constant | {name: columns[name].next_row() for name in per_frame}
        try:
            row = _unpadded(row, numbers, shape[1]) if several else row
            yield frame_of(_renamed(row), layout, path, frame, group="" if several else path.name)
        except InvalidStructureError as error:
            yield error


def _geometry(columns: dict[str, _Column], path: Path) -> tuple[str, str]:
    numbers = field_of(columns, NUMBERS, "elements", str(path))
    positions = field_of(columns, POSITIONS, "positions", str(path))
    if numbers is None or positions is None:
        what = "elements (z, nuclear_charges, ...)" if numbers is None else "positions (R, coords, ...)"
        raise InputFileError(f"{path}: no array of {what}; it holds {', '.join(columns) or 'nothing'}")
    return numbers, positions


def _unpadded(row: dict[str, Any], numbers: str, width: int) -> dict[str, Any]:
    """Rows of molecules of several sizes end in zeros where there is no atom."""
    count = int(np.count_nonzero(row[numbers]))
    return {
        name: value[:count] if isinstance(value, np.ndarray) and value.shape[:1] == (width,) else value
        for name, value in row.items()
    }


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """MD17's E and F by the names that say what they are."""
    return {_SHORT.get(name.lower(), name) if len(name) == 1 else name: value for name, value in row.items()}


class _Column:
    """One array of the archive, read front to back."""

    def __init__(self, handle: IO[bytes], path: Path, name: str):
        self._handle, self._where = handle, f"{path}: array {name}"
        try:
            version = npy.read_magic(handle)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
            if read is None:
                raise ValueError(f"version {version}")
            self.shape, self._fortran, self.dtype = read(handle)
        except Exception as error:  # the header is a Python literal, and may be anything in a damaged file
            raise InputFileError(f"{self._where}: its header is damaged") from error
        if self.dtype.hasobject:
            raise InputFileError(
                f"{self._where} holds Python objects, which would have to be unpickled: save it as numbers"
            )
        if any(not 0 <= length < 1 << 40 for length in self.shape):
            raise InputFileError(f"{self._where}: shape {self.shape} is damaged")
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))
        if self._row_bytes > _MAX_ROW:
            raise InputFileError(f"{self._where}: one row has {self._row_bytes} bytes: damaged")
        self._block: np.ndarray | None = None
        self._next = self._left = 0

    @property
    def is_text(self) -> bool:
        """Whether it holds words."""
        return self.dtype.kind in "US"

    def whole(self) -> np.ndarray:
        """The array, which must not be large."""
        size = self.dtype.itemsize * int(np.prod(self.shape, dtype=object))
        if size > _MAX_ROW:
            raise InputFileError(f"{self._where}: {size} bytes, but not a row for each frame")
        array = np.frombuffer(self._read(size), self.dtype)
        return array.reshape(self.shape, order="F" if self._fortran else "C")

    def start(self) -> None:
        """Prepare for `next_row`."""
        if self._fortran and len(self.shape) > 1:
            size = self.dtype.itemsize * int(np.prod(self.shape, dtype=object))
            if size > 1 << 31:
                raise InputFileError(f"{self._where} is stored column by column (Fortran order): save it in C order")
            self._block, self._left = self.whole(), 0
        else:
            self._left = self.shape[0]

    def next_row(self) -> Any:
        """The next entry along the first axis."""
        if self._block is None or self._next == len(self._block):
            if not self._left:
                raise InputFileError(f"{self._where}: ends too soon: truncated")
            rows = max(1, min(self._left, _SMALL // max(1, self._row_bytes)))
            flat = np.frombuffer(self._read(rows * self._row_bytes), self.dtype)
            self._block, self._next, self._left = flat.reshape(rows, *self.shape[1:]), 0, self._left - rows
        row = self._block[self._next]
        self._next += 1
        return row

    def _read(self, size: int) -> bytes:
        try:
            data = self._handle.read(size)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise InputFileError(f"{self._where}: its checksum does not match: damaged") from error
        if len(data) != size:
            raise InputFileError(f"{self._where}: ends too soon: truncated")
        return data
