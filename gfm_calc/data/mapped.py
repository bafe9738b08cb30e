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
from .shard import CHUNK, NAMES, ShardInfo

Rows = slice | np.ndarray  # which rows of a column: a range, or their numbers
_FORMATS = {"|u1": "B", "|i1": "b", "<u2": "H", "<i2": "h", "<u4": "I", "<i4": "i", "<i8": "q", "<f4": "f", "<f8": "d"}


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
        self.path, self._size, self._digests, self._seen = path, size, digests, seen
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
        if not (self._seen[first] and self._seen[last]) or last > first + 1:
            for chunk in range(first, last + 1):
                self._check_chunk(chunk)

    def check_pieces(self, starts: np.ndarray, length: int) -> None:
        """The same for pieces of one length, in any order."""
        chunks = np.concatenate([starts // CHUNK, (starts + (length - 1)) // CHUNK])
        for chunk in np.unique(chunks[self._seen_array[chunks] == 0]).tolist():
            self._check_chunk(chunk)

    def _check_chunk(self, chunk: int) -> None:
        if self._seen[chunk]:
            return
        try:
            piece = os.pread(self._descriptor, min(CHUNK, self._size - chunk * CHUNK), chunk * CHUNK)
        except OSError as error:
            raise CorruptFileError(f"{self.path}: cannot be read ({one_line(error)})") from error
        if hashlib.sha256(piece).digest() != self._digests[32 * chunk : 32 * chunk + 32]:
            raise CorruptFileError(f"{self.path}: its checksum does not match the manifest: damaged, fetch it again")
        self._seen[chunk] = 1


class Column:
    """One column of a mapped file.  All that it gives are copies."""

    def __init__(self, offset: int, how: Encoding, file: MappedFile):
        self._offset, self._width, self._how, self._file = offset, how.row_bytes, how, file
        self._dtype, self._rows = np.dtype(how.dtype), how.shape[0]
        self._shape = (-1, *how.shape[1:])
        self._items = self._width // self._dtype.itemsize
        self._unpack = struct.Struct("<" + _FORMATS[how.dtype]).unpack_from
        self._scale = None if how.decimals is None else 10.0**how.decimals
        self._constant = decode(self._raw(slice(0, 1)), how)[0] if how.constant else None

    def value(self, row: int) -> Any:
        """The number in a row of a column of single numbers."""
        if self._constant is not None:
            return self._constant.item()
        start = self._offset + row * self._width
        self._check(row, row + 1, start)
        (found,) = self._unpack(self._file.map, start)
        if self._scale is None:
            return found
        return float("nan") if self._how.holes and found == NAN else found / self._scale

    def row(self, row: int) -> np.ndarray:
        """A row."""
        return self.rows(slice(row, row + 1))[0]

    def rows(self, rows: Rows) -> np.ndarray:
        """Some rows.

        Raises:
            CorruptFileError: damaged.
        """
        if self._constant is not None:
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            return np.repeat(self._constant[None], count, axis=0)
        return decode(self._raw(rows), self._how)

    def _raw(self, rows: Rows) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop = rows.start, rows.stop
            first = self._offset + start * self._width
            self._check(start, stop, first)
            return np.frombuffer(self._file.map, self._dtype, (stop - start) * self._items, first).reshape(self._shape)
        if rows.size and (rows.min() < 0 or rows.max() >= self._rows):
            self._check(-1, 0, 0)
        if rows.size and self._width:
            self._file.check_pieces(self._offset + rows * self._width, self._width)
        whole = np.frombuffer(self._file.map, self._dtype, self._rows * self._items, self._offset)
        return whole.reshape(self._shape)[rows]

    def _check(self, start: int, stop: int, first: int) -> None:
        if not 0 <= start <= stop <= self._rows:
            raise CorruptFileError(f"{self._file.path}: has no rows {start} to {stop}: damaged, fetch it again")
        if stop > start and self._width:
            self._file.check(first, first + (stop - start) * self._width)


class Shard:
    """An open shard."""

    def __init__(self, info: ShardInfo, file: MappedFile):
        self.file = file
        self._columns = {name: Column(offset, how, file) for name, (offset, how) in info.columns.items()}
        several = {name: info.columns[f"{name}_ptr"][1].rows > 2 for name in NAMES}
        self._only_word = {name: None if several[name] else self._word(name, 0) for name in NAMES}

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
        columns, atoms = self._columns, slice(first_atom, stop_atom)
        forces = columns["forces"].rows(atoms) if "forces" in columns else None
        stress = columns["stress"].row(row) if "stress" in columns else None
        charge, spin = columns["charge"].value(row), columns["spin"].value(row)
        return Record(
            atomic_numbers=columns["atomic_numbers"].rows(atoms).astype(np.int64),
            positions=columns["positions"].rows(atoms), cell=columns["cell"].row(row),
            pbc=columns["pbc"].row(row).astype(bool), energy=columns["energy"].value(row),
            forces=None if forces is None or isnan(forces[0, 0]) else forces,
            stress=None if stress is None or isnan(stress[0, 0]) else stress,
            charge=None if charge == NO_CHARGE else charge, spin=None if spin == NO_SPIN else spin,
            group=self._word_of("group", row), source=self._word_of("source", row), frame=columns["frame"].value(row),
        )  # fmt: skip

    def _word_of(self, name: str, row: int) -> str:
        word = self._only_word[name]
        return self._word(name, self._columns[name].value(row)) if word is None else word

    def _word(self, name: str, number: int) -> str:
        start, stop = self._columns[f"{name}_ptr"].rows(slice(number, number + 2)).tolist()
        return self._columns[f"{name}_text"].rows(slice(start, stop)).tobytes().decode("utf-8", "replace")
