"""Datasets on disk: `open_dataset(DIR)` is a sequence of labelled structures, in any number.

A dataset is an artifact (see `gfm_calc.artifacts`): `dataset.json` (head card, inputs, table of shards), `index.bin` (where
each structure's atoms begin), `digests.bin` (a digest for each piece of the large files) and one BP5 directory a shard.
What is read is checked first, once.  Memory does not grow with the number of structures: index and shards are read in place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ..artifacts import open_artifact, sha256_of_file
from ..config import HeadSpec, from_mapping
from ..errors import ConfigError, CorruptFileError, one_line
from .block import Block
from .columns import Encoding
from .fast_atoms import labelled_atoms
from .mapped import Column, MappedFile, Rows, Shard
from .schema import Record
from .shard import CHUNK, DATA, NAMES, ShardInfo

FORMAT_VERSION = 2  # 1 knows neither properties nor flat shards; a dataset without them is written as 1
KIND = "dataset"
_MAX_OPEN = 128  # files at a time


def open_dataset(directory: Path | str) -> Dataset:
    """Open a dataset that `gfm data build` wrote.

    Raises:
        CorruptFileError: missing, damaged, or not a dataset.
        UnsupportedVersionError: written by a newer gfm-calc.
    """
    return Dataset(Path(directory))


class Dataset(Sequence[Atoms]):
    """The structures of one head, on disk; see `open_dataset`.

    `dataset[i]` is an ase.Atoms with its labels in a SinglePointCalculator, and the head's name, charge, spin, group and
    source in `info`.  `record(i)` is the same as plain arrays, `read(indices)` many of them at once.  Datasets may be
    pickled to other processes, which open them for themselves.

    Attributes: `directory`; `head` (HeadSpec, without elements and reference energies: these belong to a split);
    `digest` (stands for the content); `summary` (counts, see `summary.summarise`); `inputs` (the files it was made from).
    """

    def __init__(self, directory: Path):
        self.directory = directory
        artifact = open_artifact(directory, kind=KIND, newest_version=FORMAT_VERSION)
        self.digest = artifact.digest
        table = artifact.read_json("dataset.json")
        where = artifact.path("dataset.json")
        try:
            self.head = from_mapping(HeadSpec, table["head"], str(where))
            self.summary: Mapping[str, Any] = table["summary"]
            self.inputs: Sequence[Mapping[str, Any]] = table["inputs"]
            self.shards = [ShardInfo.from_mapping(values, where) for values in table["shards"]]
        except (KeyError, TypeError, ConfigError) as error:
            raise CorruptFileError(f"{where}: lacks parts ({one_line(error)}): damaged") from error
        self._starts = _cumulative(info.structures for info in self.shards)
        self._first_atoms = _cumulative(info.atoms for info in self.shards)
        for info in self.shards:
            _check_sizes(directory / info.name, info)
        index = artifact.path("index.bin")
        size = 8 * (len(self) + 1)
        self._digests = memoryview(artifact.read("digests.bin"))
        first = _cumulative([-(-size // CHUNK), *(info.num_chunks for info in self.shards)])
        if index.stat().st_size != size or len(self._digests) != 32 * first[-1]:
            raise CorruptFileError(f"{directory}: its index does not fit its shards: damaged, fetch it again")
        self._first_chunks = first
        self._seen = memoryview(bytearray(first[-1]))
        self._index_file = MappedFile(index, size, *self._chunks(0))
        how = Encoding(dtype="<i8", shape=(len(self) + 1,), rows=len(self) + 1)
        self._index = Column(0, how, self._index_file)
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index):
        """Structure `index` as ase.Atoms; a list of them for a slice.

        Raises:
            IndexError: beyond the end.
            CorruptFileError: damaged.
        """
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return labelled_atoms(self.record(index), self.head.name)

    def __iter__(self) -> Iterator[Atoms]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        return f"Dataset({str(self.directory)!r}, head {self.head.name}, {len(self)} structures)"

    def __reduce__(self):
        return _reopen, (self.directory, self.digest)

    @property
    def num_atoms(self) -> int:
        """Atoms of all structures."""
        return self._first_atoms[-1]

    def record(self, index: int) -> Record:
        """Structure `index`, see `__getitem__`, as a `Record`."""
        index = self._checked(index)
        number = bisect_right(self._starts, index) - 1
        first, stop = self._index.two(index)
        before = self._first_atoms[number]
        return self._shard(number).record(index - self._starts[number], first - before, stop - before)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Structures `start` to `stop`, in order, read in blocks."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, 1024):
            yield from self.read(range(first, min(first + 1024, stop)), names=True).records()

    def read(self, indices: Sequence[int] | np.ndarray, *, names: bool = False) -> Block:
        """The structures `indices`, in that order, as one block.

        Args:
            names: groups and sources too.

        Raises:
            IndexError: none, or one beyond the end.
            CorruptFileError: damaged.
        """
        wanted = np.asarray(indices, np.int64)
        if not wanted.size or wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"indices must lie within 0 and {len(self) - 1}, and be at least one")
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        numbers = np.unique(shards).tolist()
        if len(numbers) == 1:
            return self._read(numbers[0], wanted, names=names)
        chosen = [np.flatnonzero(shards == number) for number in numbers]
        block = Block.concatenate([self._read(n, wanted[rows], names=names) for n, rows in zip(numbers, chosen)])
        order = np.concatenate(chosen)
        return block if (np.diff(order) == 1).all() else block.take(np.argsort(order))

    def atom_counts(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Number of atoms of the structures `indices` (default: all, 8 bytes each), int64."""
        if indices is None:
            self._index_file.check_size()
            return np.diff(self._index.rows(slice(0, len(self) + 1)))
        return self._atom_ranges(np.asarray(indices, np.int64))[1]

    def densities(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Atoms an Å³ of the structures `indices`, NaN for those without three periodic axes."""
        wanted = np.asarray(indices, np.int64)
        found = np.full(len(wanted), np.nan)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == number)
            shard, rows = self._shard(number), wanted[chosen] - self._starts[number]
            periodic = shard.read("pbc", rows).astype(bool).all(axis=1)
            volumes = np.abs(np.linalg.det(shard.read("cell", rows)[periodic]))
            found[chosen[periodic]] = self.atom_counts(wanted[chosen[periodic]]) / volumes
        return found

    def groups(self) -> Iterator[list[str]]:
        """The groups of all structures in order, a list a shard."""
        for number, info in enumerate(self.shards):
            yield self._shard(number).words("group", slice(0, info.structures))

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CorruptFileError: the first that differs.
        """
        open_artifact(self.directory, kind=KIND, newest_version=FORMAT_VERSION).verify()
        for info in self.shards:
            for name, entry in info.files.items():
                path = self.directory / info.name / name
                _check_sizes(path.parent, info)
                if sha256_of_file(path) != entry["sha256"]:
                    raise CorruptFileError(f"{path}: its checksum does not match the manifest: damaged, fetch it again")

    def index_pieces(self) -> Iterator[bytes]:
        """The content of the index, checked, in pieces: for a build that adds to this dataset."""
        size = 8 * (len(self) + 1)
        for offset in range(0, size, CHUNK):
            stop = min(offset + CHUNK, size)
            self._index_file.check(offset, stop)
            yield self._index_file.map[offset:stop]

    def shard_digests(self) -> bytes:
        """The digests of the pieces of all shards: for a build that adds to this dataset."""
        return bytes(self._digests[32 * self._first_chunks[1] :])

    # ---- how it is read ----

    def _checked(self, index: int) -> int:
        number = index.__index__()
        if 0 <= number < self._starts[-1]:
            return number
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.directory} has no structure {number}; it holds {len(self)}")
        return number % len(self)

    def _read(self, number: int, indices: np.ndarray, *, names: bool) -> Block:
        """The structures `indices`, all of them in shard `number`."""
        shard = self._shard(number)
        rows: Rows = indices - self._starts[number]
        if len(indices) == indices[-1] - indices[0] + 1 and (np.diff(indices) == 1).all():
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
        starts, counts = self._atom_ranges(indices)
        starts = starts - self._first_atoms[number]
        ptr = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=ptr[1:])
        if isinstance(rows, slice):
            atoms: Rows = slice(int(starts[0]), int(starts[0] + ptr[-1]))
        else:
            atoms = np.arange(ptr[-1]) + np.repeat(starts - ptr[:-1], counts)
        words = {name: shard.words(name, rows) if names else None for name in NAMES}
        return Block(
            ptr=ptr, atomic_numbers=shard.read("atomic_numbers", atoms), positions=shard.read("positions", atoms),
            forces=shard.read("forces", atoms), cell=shard.read("cell", rows), pbc=shard.read("pbc", rows).astype(bool),
            energy=shard.read("energy", rows), stress=shard.read("stress", rows),
            charge=shard.read("charge", rows).astype(np.int16), spin=shard.read("spin", rows).astype(np.uint16),
            frame=shard.read("frame", rows).astype(np.int64), value=shard.read("value", rows),
            atom_values=shard.read("atom_values", atoms), **words,
        )  # fmt: skip

    def _atom_ranges(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(atoms before, number of atoms) of structures."""
        self._index_file.check_size()
        starts = self._index.rows(indices)
        return starts, self._index.rows(indices + 1) - starts

    def _shard(self, number: int) -> Shard:
        shard = self._open.get(number)
        if shard is None:
            info = self.shards[number]
            file = MappedFile(self.directory / info.name / DATA, info.files[DATA]["size"], *self._chunks(number + 1))
            shard = self._open[number] = Shard(info, file)
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)  # closed when nobody reads from it any more
        shard.file.check_size()
        return shard

    def _chunks(self, number: int) -> tuple[memoryview, memoryview]:
        first, last = self._first_chunks[number], self._first_chunks[number + 1]
        return self._digests[32 * first : 32 * last], self._seen[first:last]


class Selection(Sequence[Atoms]):
    """Some structures of a dataset, such as one side of a split: structure k is `indices[k]` of the dataset.

    Raises:
        ConfigError: an index beyond the end.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int] | np.ndarray):
        self.dataset, self.indices = dataset, np.asarray(indices, np.int64)
        if self.indices.size and (self.indices.min() < 0 or self.indices.max() >= len(dataset)):
            raise ConfigError(f"{dataset.directory}: a selection names structures beyond the {len(dataset)} there are")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        """Structure `index` as `Dataset` gives it; another selection for a slice."""
        if isinstance(index, slice):
            return Selection(self.dataset, self.indices[index])
        return self.dataset[int(self.indices[index])]

    def read(self, indices: Sequence[int] | np.ndarray, *, names: bool = False) -> Block:
        """See `Dataset.read`."""
        return self.dataset.read(self.indices[np.asarray(indices, np.int64)], names=names)

    def atom_counts(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """See `Dataset.atom_counts`."""
        wanted = self.indices if indices is None else self.indices[np.asarray(indices, np.int64)]
        return self.dataset.atom_counts(wanted)

    def densities(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `Dataset.densities`."""
        return self.dataset.densities(self.indices[np.asarray(indices, np.int64)])


def _reopen(directory: Path, digest: str) -> Dataset:
    dataset = Dataset(directory)
    if dataset.digest != digest:
        raise CorruptFileError(f"{directory}: was rebuilt meanwhile; open it again")
    return dataset


def _cumulative(counts) -> list[int]:
    total, found = 0, [0]
    for count in counts:
        total += count
        found.append(total)
    return found


def _check_sizes(path: Path, info: ShardInfo) -> None:
    for name, entry in info.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["size"]:
            raise CorruptFileError(f"{file}: missing or of the wrong size: damaged, fetch it again")
