"""Reading shards in place: files mapped into memory, each piece compared with its digest before it is first used."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptFileError, one_line
from .block import NO_CHARGE, NO_SPIN
from .columns import NAN, Encoding, decode
from .schema import Record
from .shard import CHUNK, ShardInfo

Rows = slice | np.ndarray  # which rows of a column: a range, or their numbers
_MAX_KNOWN = 1 << 16  # names that are kept for each shard
_FORMATS = {"|u1": "B", "|i1": "b", "<u2": "H", "<i2": "h", "<u4": "I", "<i4": "i", "<i8": "q", "<f4": "f", "<f8": "d"}


_TWO = struct.Struct("<qq").unpack_from
_SINGLE = ("energy", "charge", "spin", "group", "source", "frame")


class MappedFile:
    """A file in memory that is as it was when it was written.

    Args:
        path, size: of the file.
        digests: SHA-256, 32 bytes, of each piece of `CHUNK` bytes.
        seen: one byte a piece, 1 where it was found good; kept by the caller, so that the file may be closed meanwhile.

    Raises:
        CorruptFileError: missing, or of another size.
    """

    def __init__(self, path: Path, size: int, digests: memoryview, seen: memoryview):
        self.path, self._size, self._digests, self.seen = path, size, digests, seen
        self._seen_array = np.frombuffer(seen, np.uint8)
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            self.check_size()
            self.map = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{path}: cannot be read ({one_line(error)}): damaged, fetch it again") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def check_size(self) -> None:
        """CorruptFileError where the file has shrunk (what is beyond its end cannot be touched) or grown."""
        size = os.fstat(self._descriptor).st_size
        if size != self._size:
            raise CorruptFileError(
                f"{self.path}: is {size} bytes, its manifest says {self._size}: damaged, fetch it again"
            )

    def check(self, start: int, stop: int) -> None:
        """CorruptFileError where the bytes from `start` to `stop` (not empty) are not those that were written."""
        first, last = start // CHUNK, (stop - 1) // CHUNK
        seen = self.seen
        if not (seen[first] and seen[last]) or last > first + 1:
            for chunk in range(first, last + 1):
                self._check_chunk(chunk)

    def check_pieces(self, starts: np.ndarray, length: int) -> None:
        """The same for pieces of one length, in any order."""
        chunks = np.concatenate([starts // CHUNK, (starts + (length - 1)) // CHUNK])
        for chunk in np.unique(chunks[self._seen_array[chunks] == 0]).tolist():
            self._check_chunk(chunk)

    def _check_chunk(self, chunk: int) -> None:
        if self.seen[chunk]:
            return
        try:
            piece = os.pread(self._descriptor, min(CHUNK, self._size - chunk * CHUNK), chunk * CHUNK)
        except OSError as error:
            raise CorruptFileError(f"{self.path}: cannot be read ({one_line(error)})") from error
        if hashlib.sha256(piece).digest() != self._digests[32 * chunk : 32 * chunk + 32]:
            raise CorruptFileError(f"{self.path}: its checksum does not match the manifest: damaged, fetch it again")
        self.seen[chunk] = 1


class Column:
    """One column of a mapped file.  All that it gives are copies."""

    def __init__(self, offset: int, how: Encoding, file: MappedFile):
        self._offset, self._width, self._how, self._file = offset, how.row_bytes, how, file
        self._map, self._seen = file.map, file.seen
        self._dtype, self._rows = np.dtype(how.dtype), how.shape[0]
        self._shape, self._folded = (-1, *how.shape[1:]), len(how.shape) > 1
        self._items = self._width // self._dtype.itemsize
        self._unpack = struct.Struct("<" + _FORMATS[how.dtype]).unpack_from
        self._scale, self._holes = None if how.decimals is None else 10.0**how.decimals, how.holes
        # What all rows hold, and, in a column of single numbers, as a number.
        self._constant = self._span(0, 1)[0] if how.constant else None
        self._only = self._constant.item() if self._constant is not None and self._items == 1 else None

    def value(self, row: int) -> Any:
        """The number in a row of a column of single numbers."""
        if self._only is not None:
            return self._only
        at = self._offset + row * self._width
        # As `_check`, without its calls: eight numbers are looked up for every structure that is read.
        if not (0 <= row < self._rows and self._seen[at // CHUNK] and self._seen[(at + self._width - 1) // CHUNK]):
            self._check(row, row + 1)
        (found,) = self._unpack(self._map, at)
        if self._scale is None:
            return found
        return float("nan") if self._holes and found == NAN else found / self._scale

    def two(self, row: int) -> tuple[int, int]:
        """The whole numbers in a row and in the next one, of a column of int64 that is kept as it is."""
        at = self._offset + row * 8
        if not (0 <= row < self._rows - 1 and self._seen[at // CHUNK] and self._seen[(at + 15) // CHUNK]):
            self._check(row, row + 2)
        return _TWO(self._map, at)

    @property
    def only(self) -> Any:
        """The number that all rows of a column of single numbers hold, or None."""
        return self._only

    def row(self, row: int) -> np.ndarray:
        """A row."""
        return self.span(row, row + 1)[0] if self._constant is None else self._constant.copy()

    def span(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`.

        Raises:
            CorruptFileError: damaged.
        """
        if self._constant is not None:
            return np.repeat(self._constant[None], stop - start, axis=0)
        return self._span(start, stop)

    def raw(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop` as they are kept, for integers; not a copy."""
        return self._view(start, stop) if self._constant is None else self.span(start, stop)

    def text(self, start: int, stop: int) -> str:
        """The rows from `start` to `stop` of a column of bytes, as text."""
        if self._constant is not None:
            return self.span(start, stop).tobytes().decode("utf-8", "replace")
        self._check(start, stop)
        return self._map[self._offset + start : self._offset + stop].decode("utf-8", "replace")

    def rows(self, rows: Rows) -> np.ndarray:
        """Some rows, in the order of their numbers."""
        if isinstance(rows, slice):
            return self.span(rows.start, rows.stop)
        if self._constant is not None:
            return np.repeat(self._constant[None], len(rows), axis=0)
        if rows.size and (rows.min() < 0 or rows.max() >= self._rows):
            self._check(-1, 0)
        if rows.size and self._width:
            self._file.check_pieces(self._offset + rows * self._width, self._width)
        whole = np.frombuffer(self._file.map, self._dtype, self._rows * self._items, self._offset)
        return self._decoded(whole.reshape(self._shape)[rows])

    def _span(self, start: int, stop: int) -> np.ndarray:
        return self._decoded(self._view(start, stop))

    def _view(self, start: int, stop: int) -> np.ndarray:
        count, first = (stop - start) * self._items, self._offset + start * self._width
        chunk, last = first // CHUNK, (self._offset + stop * self._width - 1) // CHUNK
        near = 0 <= start < stop <= self._rows and chunk <= last <= chunk + 1
        if not (near and self._seen[chunk] and self._seen[last]):
            self._check(start, stop)
        found = np.frombuffer(self._map, self._dtype, count, first)
        return found.reshape(self._shape) if self._folded else found

    def _decoded(self, raw: np.ndarray) -> np.ndarray:
        if self._scale is None:
            return decode(raw, self._how)
        values = raw / self._scale
        if self._holes and raw.size and raw.min() == NAN:
            values[raw == NAN] = np.nan
        return values

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._rows:
            raise CorruptFileError(f"{self._file.path}: has no rows {start} to {stop}: damaged, fetch it again")
        if stop > start and self._width:
            self._file.check(self._offset + start * self._width, self._offset + stop * self._width)


class Shard:
    """An open shard."""

    def __init__(self, info: ShardInfo, file: MappedFile):
        self.file = file
        self._columns = {name: Column(offset, how, file) for name, (offset, how) in info.columns.items()}
        self._known: dict[tuple[str, int], str] = {}
        # Single numbers of a structure: what all structures share is looked up once.
        self._shared = {name: self._columns[name].only for name in _SINGLE if self._columns[name].only is not None}
        self._own = [(name, self._columns[name].value) for name in _SINGLE if name not in self._shared]

    def read(self, name: str, rows: Rows) -> Any:
        """Rows of a column; None where the shard has no such column."""
        column = self._columns.get(name)
        return None if column is None else column.rows(rows)

    def words(self, name: str, rows: Rows) -> list[str]:
        """The words of a column of names."""
        numbers = self._columns[name].rows(rows).tolist()
        words = {number: self._word(name, number) for number in set(numbers)}
        return [words[number] for number in numbers]

    def record(self, row: int, first_atom: int, stop_atom: int) -> Record:
        """One structure, whose atoms are these of the shard."""
        columns, single = self._columns, self._shared.copy()
        for name, value in self._own:
            single[name] = value(row)
        forces = columns["forces"].span(first_atom, stop_atom) if "forces" in columns else None
        stress = columns["stress"].row(row) if "stress" in columns else None
        charge, spin = single["charge"], single["spin"]
        found = Record.__new__(Record)
        # A frozen dataclass sets its fields one by one, which would be a tenth of a read.
        found.__dict__.update(
            atomic_numbers=columns["atomic_numbers"].raw(first_atom, stop_atom).astype(np.int64),
            positions=columns["positions"].span(first_atom, stop_atom), cell=columns["cell"].row(row),
            pbc=columns["pbc"].raw(row, row + 1)[0].astype(bool), energy=single["energy"],
            forces=None if forces is None or isnan(forces.item(0)) else forces,
            stress=None if stress is None or isnan(stress.item(0)) else stress,
            charge=None if charge == NO_CHARGE else charge, spin=None if spin == NO_SPIN else spin,
            group=self._word("group", single["group"]), source=self._word("source", single["source"]),
            frame=single["frame"],
        )  # fmt: skip
        return found

    def _word(self, name: str, number: int) -> str:
        word = self._known.get((name, number))
        if word is None:
            ends = self._columns[f"{name}_ptr"]
            word = self._columns[f"{name}_text"].text(ends.value(number), ends.value(number + 1))
            if len(self._known) < _MAX_KNOWN:
                self._known[name, number] = word
        return word
