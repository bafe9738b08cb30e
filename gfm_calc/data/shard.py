"""A shard: one block of structures in one ADIOS2 BP5 file, written once.

`write_shard` lets ADIOS2 write the file and then finds each column in it, byte for byte.  Reading needs no ADIOS2: rows
are read in place, at the offsets found then, after the pieces they lie in have been compared with their digests
(`ShardFile`); a damaged BP5 file can hang or crash ADIOS2's own reader.  Any other ADIOS2 program reads the shards, too.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import sha256_of_file, sync_path
from ..errors import CorruptFileError, GFMError, MissingDependencyError, one_line
from .block import ATOM_COLUMNS, NO_CHARGE, NO_SPIN, Block
from .columns import Encoding, decode, encode
from .schema import Record

CHUNK = 1 << 18  # bytes that are checked at once
DATA = "data.0"  # the file of a .bp directory that holds the columns
_FILES = (DATA, "md.0", "md.idx", "mmd.0")
_UNITS = {"positions": "Å", "cell": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "charge": "e"}
_ROW_COLUMNS = ("cell", "pbc", "energy", "stress", "charge", "spin", "frame")
NAMES = ("group", "source")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What a dataset knows about a shard: `name` of its directory, sizes, {file: {size, sha256}}, and
    {column: (offset in bytes, Encoding)}."""

    name: str
    structures: int
    atoms: int
    files: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, tuple[int, Encoding]]

    @property
    def num_chunks(self) -> int:
        """Pieces of its data file that have a digest each."""
        return -(-self.files[DATA]["size"] // CHUNK)

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        columns = {name: {"offset": offset, **how.to_mapping()} for name, (offset, how) in self.columns.items()}
        return {
            "name": self.name, "structures": self.structures, "atoms": self.atoms,
            "files": {name: dict(entry) for name, entry in self.files.items()}, "columns": columns,
        }  # fmt: skip

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: Path) -> ShardInfo:
        """The inverse; CorruptFileError where the numbers do not fit together."""
        try:
            columns = {}
            for name, entry in values["columns"].items():
                how = Encoding(**{key: value for key, value in entry.items() if key != "offset"})
                columns[name] = (entry["offset"], how)
            info = cls(**{**values, "columns": columns})
            if not _is_sound(info):
                raise ValueError("sizes do not fit together")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFileError(f"{where}: its table of shards is damaged ({one_line(error)})") from error
        return info


def _is_sound(info: ShardInfo) -> bool:
    sizes = [info.structures, info.atoms, *(entry["size"] for entry in info.files.values())]
    if set(info.files) != set(_FILES) or not all(type(size) is int and size >= 0 for size in sizes):
        return False
    for name, (offset, how) in info.columns.items():
        inside = how.is_sound() and type(offset) is int and 0 <= offset <= info.files[DATA]["size"] - how.num_bytes
        rows = {**dict.fromkeys(ATOM_COLUMNS, info.atoms), **dict.fromkeys((*_ROW_COLUMNS, *NAMES), info.structures)}
        if not inside or how.rows != rows.get(name, how.rows):
            return False
    needed = {"atomic_numbers", "positions", *_ROW_COLUMNS, *NAMES} - {"stress"}
    return isinstance(info.name, str) and needed <= set(info.columns)


# ---- writing ----


def write_shard(block: Block, path: Path) -> tuple[ShardInfo, bytes]:
    """Write `block` as the BP5 directory `path` (replaced where it is there).

    ADIOS2 ends the process on some errors of the disk: call this in a process that may die.

    Returns:
        the shard's info, named as `path`, and the SHA-256 digests of the pieces of its data file, 32 bytes each.

    Raises:
        GFMError: the disk refused, or what was written is not what is on the disk.
        MissingDependencyError: no adios2.
    """
    columns = _columns(block)
    encoded = {name: encode(column, plain=name == "energy") for name, column in columns.items()}
    shutil.rmtree(path, ignore_errors=True)
    try:
        _write_bp5(path, encoded)
        for entry in os.listdir(path):
            if entry not in _FILES:
                os.unlink(path / entry)  # a timing profile
            else:
                sync_path(path / entry)
        sync_path(path)
        offsets = _find_columns(path / DATA, encoded)
    except (OSError, RuntimeError, ValueError) as error:
        raise GFMError(f"{path}: could not be written ({one_line(error)})") from error
    files = {name: {"size": (path / name).stat().st_size, "sha256": sha256_of_file(path / name)} for name in _FILES}
    info = ShardInfo(
        name=path.name, structures=len(block), atoms=len(block.atomic_numbers), files=files,
        columns={name: (offsets[name], how) for name, (_, how) in encoded.items()},
    )  # fmt: skip
    return info, chunk_digests(path / DATA)


def chunk_digests(path: Path) -> bytes:
    """SHA-256 of each piece of `CHUNK` bytes of a file, one after the other."""
    found = bytearray()
    with open(path, "rb") as handle:
        while piece := handle.read(CHUNK):
            found += hashlib.sha256(piece).digest()
    return bytes(found)


def _columns(block: Block) -> dict[str, np.ndarray]:
    found = {name: getattr(block, name) for name in (*ATOM_COLUMNS, *_ROW_COLUMNS)}
    found = {name: column for name, column in found.items() if column is not None}
    found["pbc"] = block.pbc.astype(np.uint8)
    found["ptr"] = block.ptr
    for name in NAMES:
        words = getattr(block, name) or [""] * len(block)
        known = {word: k for k, word in enumerate(dict.fromkeys(words))}
        texts = [word.encode() for word in known]
        found[name] = np.array([known[word] for word in words], np.int64)
        found[f"{name}_ptr"] = np.cumsum([0] + [len(text) for text in texts], dtype=np.int64)
        found[f"{name}_text"] = np.frombuffer(b"".join(texts), np.uint8)
    return found


def _write_bp5(path: Path, encoded: Mapping[str, tuple[np.ndarray, Encoding]]) -> None:
    try:
        from adios2 import Adios
        from adios2.bindings import Mode
    except ImportError as error:
        raise MissingDependencyError("datasets need ADIOS2 to be written: pip install 'gfm-calc[adios]'") from error
    io = Adios().declare_io("shard")
    io.set_engine("BP5")
    io.set_parameters({"StatsLevel": "0"})
    writer = io.open(str(path), Mode.Write)
    writer.begin_step()
    for name, (array, how) in encoded.items():
        if array.size:
            shape = list(array.shape)
            writer.put(io.define_variable(name, array, shape, [0] * array.ndim, shape, True), array, Mode.Sync)
        for key, value in (("unit", _UNITS.get(name)), ("decimals", how.decimals), ("rows", how.rows)):
            if value is not None:
                io.define_attribute(f"{name}/{key}", value)
    writer.end_step()
    writer.close()


def _find_columns(path: Path, encoded: Mapping[str, tuple[np.ndarray, Encoding]]) -> dict[str, int]:
    """Where each column begins in the file; an error where one is not there, complete."""
    offsets, after = {}, 0
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, (array, _) in encoded.items():
            raw = array.reshape(-1).view(np.uint8).data if array.size else b""
            at = data.find(raw, after)
            if at < 0:
                raise ValueError(f"column {name} is not in the file as it was written")
            offsets[name], after = at, at + len(raw)
    return offsets


# ---- reading ----


class ShardFile:
    """An open data file whose pieces are compared with their digests once, when they are first read.

    Args:
        path, size: of the file.
        digests: 32 bytes for each piece of `CHUNK` bytes.
        seen: one byte a piece, 1 where it was found good; kept by the caller, so that a file may be closed.
    """

    def __init__(self, path: Path, size: int, digests: memoryview, seen: memoryview):
        self.path, self.size, self._digests, self._seen = path, size, digests, seen
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CorruptFileError(f"{path}: cannot be read ({one_line(error)})") from error
        if os.fstat(self._descriptor).st_size != size:
            self.close()
            raise CorruptFileError(f"{path}: is not {size} bytes as its manifest says: damaged, fetch it again")

    def close(self) -> None:
        """Close the file; reading then is an error."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`.

        Raises:
            CorruptFileError: beyond the end, or not what its digest says.
        """
        if not count:
            return b""
        first, last = offset // CHUNK, (offset + count - 1) // CHUNK
        if not (self._seen[first] and self._seen[last]) or last > first + 1:
            self._check(first, last)
        return self._pread(offset, count)

    def _check(self, first: int, last: int) -> None:
        for chunk in range(first, last + 1):
            if not self._seen[chunk]:
                piece = self._pread(chunk * CHUNK, min(CHUNK, self.size - chunk * CHUNK))
                if hashlib.sha256(piece).digest() != self._digests[32 * chunk : 32 * chunk + 32]:
                    raise CorruptFileError(
                        f"{self.path}: its checksum does not match the manifest: damaged, fetch it again"
                    )
                self._seen[chunk] = 1

    def _pread(self, offset: int, count: int) -> bytes:
        try:
            found = os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise CorruptFileError(f"{self.path}: cannot be read ({one_line(error)})") from error
        if len(found) != count:
            raise CorruptFileError(f"{self.path}: ends too early: damaged, fetch it again")
        return found


class Column:
    """One column of an open shard: rows in place, decoded."""

    def __init__(self, offset: int, how: Encoding, file: ShardFile):
        self._how, self._file, self._offset, self._width = how, file, offset, how.row_bytes
        self._dtype, self._rows, self._tail = np.dtype(how.dtype), how.shape[0], how.shape[1:]
        self._constant = decode(self._raw([(0, 1)]), how)[0] if how.constant else None

    def row(self, index: int) -> Any:
        """Row `index`; it may be shared, so it is for reading only."""
        return self.rows(index, index + 1)[0] if self._constant is None else self._constant

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`."""
        return self.gather(((start, stop),))

    def gather(self, runs: Sequence[tuple[int, int]]) -> np.ndarray:
        """The rows of several half-open ranges, one after the other.

        Raises:
            CorruptFileError: damaged.
        """
        if self._constant is not None:
            return np.repeat(self._constant[None], sum(stop - start for start, stop in runs), axis=0)
        return decode(self._raw(runs), self._how)

    def _raw(self, runs: Sequence[tuple[int, int]]) -> np.ndarray:
        parts = []
        for start, stop in runs:
            if not 0 <= start <= stop <= self._rows:
                raise CorruptFileError(f"{self._file.path}: has no rows {start} to {stop}: damaged, fetch it again")
            parts.append(self._file.read(self._offset + start * self._width, (stop - start) * self._width))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(data, self._dtype).reshape(-1, *self._tail)


class Shard:
    """An open shard: `columns` {name: Column}, and the words of the columns of names."""

    def __init__(self, info: ShardInfo, file: ShardFile):
        self.columns = {name: Column(offset, how, file) for name, (offset, how) in info.columns.items()}
        several = {name: info.columns[f"{name}_ptr"][1].rows > 2 for name in NAMES}
        self._only_word = {name: None if several[name] else self._word(name, 0) for name in NAMES}

    def read(self, name: str, runs: Sequence[tuple[int, int]]) -> Any:
        """Rows of a column (see `Column.gather`); None where the shard has no such column."""
        column = self.columns.get(name)
        return None if column is None else column.gather(runs)

    def words(self, name: str, runs: Sequence[tuple[int, int]]) -> list[str]:
        """The words of a column of names."""
        word = self._only_word[name]
        if word is not None:
            return [word] * sum(stop - start for start, stop in runs)
        numbers = self.columns[name].gather(runs).tolist()
        words = {number: self._word(name, number) for number in set(numbers)}
        return [words[number] for number in numbers]

    def word(self, name: str, row: int) -> str:
        """The word of one row."""
        word = self._only_word[name]
        return self._word(name, int(self.columns[name].row(row))) if word is None else word

    def _word(self, name: str, number: int) -> str:
        start, stop = self.columns[f"{name}_ptr"].rows(number, number + 2).tolist()
        return self.columns[f"{name}_text"].rows(start, stop).tobytes().decode("utf-8", "replace")

    def record(self, row: int, first_atom: int, stop_atom: int) -> Record:
        """One structure, whose atoms are these of the shard."""
        columns = self.columns
        forces = columns["forces"].rows(first_atom, stop_atom) if "forces" in columns else None
        stress = columns["stress"].row(row) if "stress" in columns else None
        charge, spin = int(columns["charge"].row(row)), int(columns["spin"].row(row))
        return Record(
            atomic_numbers=columns["atomic_numbers"].rows(first_atom, stop_atom).astype(np.int64),
            positions=columns["positions"].rows(first_atom, stop_atom), cell=columns["cell"].row(row),
            pbc=columns["pbc"].row(row).astype(bool), energy=float(columns["energy"].row(row)),
            forces=None if forces is None or isnan(forces[0, 0]) else forces,
            stress=None if stress is None or isnan(stress[0, 0]) else stress,
            charge=None if charge == NO_CHARGE else charge, spin=None if spin == NO_SPIN else spin,
            group=self.word("group", row), source=self.word("source", row), frame=int(columns["frame"].row(row)),
        )  # fmt: skip
