"""Reading shards in place: files mapped into memory, each piece compared with its digest before it is first used."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from math import isnan, nan
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
    """One column of a mapped file.  All that it gives are copies, but for `raw`.

    `value(row)` is the number in a row of a column of single numbers; `span(start, stop)` are the rows from `start` to
    `stop`, `raw(start, stop)` the same as they are kept, for integers.  They are the innermost loop of a random read, so
    they are functions that know their column (see `_value_of` and `_span_of`) and not methods that look it up.

    Raises:
        CorruptFileError: (when it is read) damaged.
    """

    def __init__(self, offset: int, how: Encoding, file: MappedFile):
        self.offset, self.width, self.how, self.file = offset, how.row_bytes, how, file
        self.dtype, self.rows_kept = np.dtype(how.dtype), how.shape[0]
        self._items = self.width // self.dtype.itemsize
        plain, decoded = _span_of(self, decoded=False), _span_of(self, decoded=True)
        self._constant: np.ndarray | None = decoded(0, 1)[0] if how.constant else None
        if self._constant is None:
            self.span, self.raw, self.value = decoded, plain, _value_of(self)
        else:
            only = self._constant.item() if self._items == 1 else None
            self.span = self.raw = self._repeated
            self.value = lambda row: only

    @property
    def only(self) -> Any:
        """The number that all rows of a column of single numbers hold, or None."""
        return self.value(0) if self._constant is not None else None

    def _repeated(self, start: int, stop: int) -> np.ndarray:
        assert self._constant is not None
        found = np.empty((stop - start, *self._constant.shape), self._constant.dtype)
        found[...] = self._constant
        return found

    def two(self, row: int) -> tuple[int, int]:
        """The whole numbers in a row and in the next one, of a column of int64 that is kept as it is."""
        at, seen = self.offset + row * 8, self.file.seen
        if not (0 <= row < self.rows_kept - 1 and seen[at // CHUNK] and seen[(at + 15) // CHUNK]):
            self.check(row, row + 2)
        return _TWO(self.file.map, at)

    def row(self, row: int) -> np.ndarray:
        """A row."""
        return self.span(row, row + 1)[0] if self._constant is None else self._constant.copy()

    def text(self, start: int, stop: int) -> str:
        """The rows from `start` to `stop` of a column of bytes, as text."""
        if self._constant is not None:
            return self.span(start, stop).tobytes().decode("utf-8", "replace")
        self.check(start, stop)
        return self.file.map[self.offset + start : self.offset + stop].decode("utf-8", "replace")

    def rows(self, rows: Rows) -> np.ndarray:
        """Some rows, in the order of their numbers."""
        if isinstance(rows, slice):
            return self.span(rows.start, rows.stop)
        if self._constant is not None:
            return np.repeat(self._constant[None], len(rows), axis=0)
        if rows.size and (rows.min() < 0 or rows.max() >= self.rows_kept):
            self.check(-1, 0)
        if rows.size and self.width:
            self.file.check_pieces(self.offset + rows * self.width, self.width)
        whole = np.ndarray(self.how.shape, self.dtype, self.file.map, self.offset)
        return decode(whole[rows], self.how)

    def check(self, start: int, stop: int) -> None:
        """CorruptFileError where there are no such rows, or where they are damaged."""
        if not 0 <= start <= stop <= self.rows_kept:
            raise CorruptFileError(f"{self.file.path}: has no rows {start} to {stop}: damaged, fetch it again")
        if stop > start and self.width:
            self.file.check(self.offset + start * self.width, self.offset + stop * self.width)


def _value_of(column: Column) -> Callable[[int], Any]:
    """The function that gives the number in a row."""
    offset, width, rows, check = column.offset, column.width, column.rows_kept, column.check
    seen, data, holes = column.file.seen, column.file.map, column.how.holes
    unpack = struct.Struct("<" + _FORMATS[column.how.dtype]).unpack_from
    scale = None if column.how.decimals is None else 10.0**column.how.decimals

    def value(row: int) -> Any:
        at = offset + row * width
        if not (0 <= row < rows and seen[at // CHUNK] and seen[(at + width - 1) // CHUNK]):
            check(row, row + 1)
        (found,) = unpack(data, at)
        if scale is None:
            return found
        return nan if holes and found == NAN else found / scale

    return value


def _span_of(column: Column, *, decoded: bool) -> Callable[[int, int], np.ndarray]:
    """The function that gives rows, as their values or as they are kept."""
    offset, width, rows, check, how = column.offset, column.width, column.rows_kept, column.check, column.how
    seen, data, dtype, tail = column.file.seen, column.file.map, column.dtype, column.how.shape[1:]
    scale = None if column.how.decimals is None else 10.0**column.how.decimals
    simple = scale is not None and not how.holes

    def span(start: int, stop: int) -> np.ndarray:
        first = offset + start * width
        chunk, last = first // CHUNK, (offset + stop * width - 1) // CHUNK
        if not (0 <= start < stop <= rows and chunk <= last <= chunk + 1 and seen[chunk] and seen[last]):
            check(start, stop)
        found = np.ndarray((stop - start, *tail), dtype, data, first)
        if not decoded:
            return found
        return found / scale if simple else decode(found, how)

    return span


class Shard:
    """An open shard."""

    def __init__(self, info: ShardInfo, file: MappedFile):
        self.file = file
        self._columns = {name: Column(offset, how, file) for name, (offset, how) in info.columns.items()}
        self._known: dict[tuple[str, int], str] = {}
        # Single numbers of a structure: what all structures share is looked up once.
        self._shared = {name: self._columns[name].only for name in _SINGLE if self._columns[name].only is not None}
        self._own = [(name, self._columns[name].value) for name in _SINGLE if name not in self._shared]
        self._has_property = "value" in self._columns or "atom_values" in self._columns

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
            pbc=columns["pbc"].row(row).astype(bool), energy=single["energy"],
            forces=None if forces is None or isnan(forces.item(0)) else forces,
            stress=None if stress is None or isnan(stress.item(0)) else stress,
            charge=None if charge == NO_CHARGE else charge, spin=None if spin == NO_SPIN else spin,
            group=self._word("group", single["group"]), source=self._word("source", single["source"]),
            frame=single["frame"], value=None, atom_values=None,
        )  # fmt: skip
        if self._has_property:
            found.__dict__.update(self._property(row, first_atom, stop_atom))
        return found

    def _property(self, row: int, first_atom: int, stop_atom: int) -> dict[str, np.ndarray | None]:
        value = self._columns["value"].row(row) if "value" in self._columns else None
        atoms = self._columns["atom_values"].span(first_atom, stop_atom) if "atom_values" in self._columns else None
        return {
            "value": None if value is None or isnan(value[0]) else value,
            "atom_values": None if atoms is None or np.isnan(atoms).all() else atoms,
        }

    def _word(self, name: str, number: int) -> str:
        word = self._known.get((name, number))
        if word is None:
            ends = self._columns[f"{name}_ptr"]
            word = self._columns[f"{name}_text"].text(ends.value(number), ends.value(number + 1))
            if len(self._known) < _MAX_KNOWN:
                self._known[name, number] = word
        return word
