"""A shard: one block of structures in one ADIOS2 BP5 file, written once.

`write_shard` lets ADIOS2 write the file and then finds each column in it, byte for byte.  Reading needs no ADIOS2 (see
`mapped`): a damaged BP5 file can hang or crash its reader.  Any other ADIOS2 program reads the shards, too.
`write_flat_shard` puts the same columns into a plain file: for datasets that no other program is to read.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import sha256_of_file, sync_path, write_file
from ..errors import CorruptFileError, GFMError, MissingDependencyError, one_line
from .block import ATOM_COLUMNS, Block
from .columns import Encoding, encode

CHUNK = 1 << 18  # bytes that are checked at once
DATA = "data.0"  # the file of a .bp directory that holds the columns
_FILES = (DATA, "md.0", "md.idx", "mmd.0")
_UNITS = {"positions": "Å", "cell": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "charge": "e"}
_ROW_COLUMNS = ("cell", "pbc", "energy", "stress", "charge", "spin", "frame", "value")
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

    @property
    def format_version(self) -> int:
        """The first version of the format of datasets that knows such shards."""
        return 2 if set(self.files) == {DATA} or {"value", "atom_values"} & self.columns.keys() else 1

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
    if set(info.files) not in ({*_FILES}, {DATA}) or not all(type(size) is int and size >= 0 for size in sizes):
        return False
    for name, (offset, how) in info.columns.items():
        inside = how.is_sound() and type(offset) is int and 0 <= offset <= info.files[DATA]["size"] - how.num_bytes
        rows = {**dict.fromkeys(ATOM_COLUMNS, info.atoms), **dict.fromkeys((*_ROW_COLUMNS, *NAMES), info.structures)}
        if not inside or how.rows != rows.get(name, how.rows):
            return False
    needed = {"atomic_numbers", "positions", *_ROW_COLUMNS, *NAMES} - {"stress", "value"}
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
    return _described(block, path, _FILES, encoded, offsets)


def write_flat_shard(block: Block, path: Path) -> tuple[ShardInfo, bytes]:
    """`write_shard` without ADIOS2: the directory holds the columns, one after the other, and nothing else.

    Raises:
        GFMError: the disk refused.
    """
    encoded = {name: encode(column, plain=name == "energy") for name, column in _columns(block).items()}
    offsets, content = {}, bytearray()
    for name, (array, _) in encoded.items():
        content += bytes(-len(content) % 8)
        offsets[name] = len(content)
        content += array.tobytes()
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(parents=True)
        write_file(path / DATA, bytes(content))
    except OSError as error:
        raise GFMError(f"{path}: could not be written ({one_line(error)})") from error
    return _described(block, path, (DATA,), encoded, offsets)


def _described(
    block: Block, path: Path, names: Sequence[str], encoded: Mapping[str, tuple[np.ndarray, Encoding]],
    offsets: Mapping[str, int],
) -> tuple[ShardInfo, bytes]:  # fmt: skip
    """What was written: the files `names`, and where the columns are in the first of them."""
    files = {name: {"size": (path / name).stat().st_size, "sha256": sha256_of_file(path / name)} for name in names}
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
