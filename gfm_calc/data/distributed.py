"""Datasets in the memory of many processes: each MPI rank holds a part, any rank reads any structure.

Reading is one-sided (MPI-3 passive target): the owner takes no part in it, and nobody waits for anybody.  Ranks of one
node read each other's parts through shared memory.  Ranks may be divided into groups of which each holds the whole
dataset, as in DDStore (DOI 10.1145/3624062.3624171).  One process alone needs no MPI.

Run the ranks under `python -m mpi4py`, so that an error of one ends them all; if a rank is killed, mpirun ends the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, MissingDependencyError
from .block import Block
from .prefetch import prefetched
from .store import Dataset

# What is known of a structure beside its atoms; `start` is where these lie in the owner's payload.
ROW = np.dtype([
    ("start", "<i8"), ("atoms", "<i4"), ("has_forces", "?"), ("has_stress", "?"), ("charge", "<i2"), ("spin", "<u2"),
    ("pbc", "?", (3,)), ("frame", "<i8"), ("energy", "<f8"), ("cell", "<f8", (3, 3)), ("stress", "<f8", (3, 3)),
])  # fmt: skip
_LOAD = 4096  # structures that are read from the disk at once


class DistributedStore:
    """A dataset (or some of its structures) in memory.

    Args:
        dataset: what to hold.
        comm: mpi4py communicator, whose ranks all call this; None for one process alone.
        indices: structures of the dataset to hold (default: all); index k of the store is `indices[k]` there.
        group_size: ranks that share one copy of the dataset (default: all ranks); more copies, fewer reads of others.
        node_size: ranks that share memory (default: those of a node; 1: none, all reads are one-sided messages).

    Attributes: `memory`, bytes that this rank holds.

    Raises:
        ConfigError: sizes that are not positive, more ranks in a group than structures, or labels of a property.
        CorruptFileError: the dataset is damaged.
    """

    in_memory = True  # of this process: it cannot be handed to others

    def __init__(
        self, dataset: Dataset, comm: Any = None, *, indices: np.ndarray | None = None, group_size: int | None = None,
        node_size: int | None = None,
    ):  # fmt: skip
        count = len(dataset) if indices is None else len(indices)
        if count < 1 or (group_size is not None and group_size < 1) or (node_size is not None and node_size < 1):
            raise ConfigError("a store needs at least one structure, and groups and nodes of at least one rank")
        if any({"value", "atom_values"} & info.columns.keys() for info in dataset.shards):
            raise ConfigError(f"{dataset.directory}: properties are not held in memory: set data.memory = false")
        self.head, self.directory = dataset.head, dataset.directory
        self._length = count
        self._memory: _Windows | None = None
        if comm is None or comm.size == 1:
            parts, rank = 1, 0
        else:
            group = comm.Split(comm.rank // (group_size or comm.size), comm.rank)
            parts, rank = group.size, group.rank
        if parts > count:
            raise ConfigError(f"{parts} ranks cannot share {count} structures: use smaller groups")
        self._bounds = np.arange(parts + 1) * count // parts
        own = np.arange(self._bounds[rank], self._bounds[rank + 1])
        own = own if indices is None else np.asarray(indices, np.int64)[own]
        sizes = (len(own) * ROW.itemsize, _payload_bytes(dataset, own))
        if parts == 1:
            buffers = [np.empty(size, np.uint8) for size in sizes]
            self._parts: dict[int, tuple[np.ndarray, np.ndarray]] = {0: (buffers[0].view(ROW), buffers[1])}
        else:
            self._memory = _Windows(group, sizes, node_size)
            self._parts = self._memory.local
        self.memory = sum(sizes)
        _fill(dataset, own, *self._parts[rank])
        if self._memory is not None:
            self._memory.open()

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int] | np.ndarray, *, names: bool = False) -> Block:
        """The structures `indices`, in that order, as `Dataset.read` gives them, but without group and source.

        Raises:
            IndexError: none, or one beyond the end.
            ConfigError: `names`, which are not held in memory.
        """
        if names:
            raise ConfigError("groups and sources are not held in memory: read them from the dataset")
        owner, rows = self._rows(indices)
        return _unpack(rows, self._payloads(owner, rows))

    def atom_counts(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Number of atoms of the structures `indices`, int64."""
        return self._rows(indices)[1]["atoms"].astype(np.int64)

    def densities(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Atoms an Å³ of the structures `indices`, NaN for those without three periodic axes."""
        rows = self._rows(indices)[1]
        found = np.full(len(rows), np.nan)
        periodic = rows["pbc"].all(axis=1)
        found[periodic] = rows["atoms"][periodic] / np.abs(np.linalg.det(rows["cell"][periodic]))
        return found

    def prefetch(self, batches: Iterable[Sequence[int] | np.ndarray], *, depth: int = 2) -> Iterator[Block]:
        """`read` of each of `batches`, in order, done ahead in a thread (without one where MPI allows no threads)."""
        if self._memory is not None and not self._memory.allows_threads:
            return (self.read(batch) for batch in batches)
        return prefetched(map(self.read, batches), depth=depth)

    def close(self) -> None:
        """Let go of the memory; to be called by all ranks."""
        if self._memory is not None:
            self._memory.close()
        self._parts, self._memory = {}, None

    def __enter__(self) -> DistributedStore:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:  # after an error the other ranks are somewhere else: closing would wait for them
            self.close()

    def _rows(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = np.asarray(indices, np.int64)
        if not wanted.size or wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"indices must lie within 0 and {len(self) - 1}, and be at least one")
        owner = np.searchsorted(self._bounds, wanted, side="right") - 1
        place = wanted - self._bounds[owner]
        rows = np.empty(len(wanted), ROW)
        far = set()
        for part in np.unique(owner).tolist():
            chosen = np.flatnonzero(owner == part)
            if part in self._parts:
                rows[chosen] = self._parts[part][0][place[chosen]]
                continue
            far.add(part)
            for k in chosen.tolist():
                self._memory.get_row(part, int(place[k]), rows[k : k + 1])
        if far:
            self._memory.complete_rows(far)
        return owner, rows

    def _payloads(self, owner: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
        found, far = [], set()
        sizes = _atom_bytes(rows).tolist()
        for part, start, size in zip(owner.tolist(), rows["start"].tolist(), sizes):
            if part in self._parts:
                found.append(self._parts[part][1][start : start + size])
                continue
            far.add(part)
            found.append(np.empty(size, np.uint8))
            self._memory.get_payload(part, start, found[-1])
        if far:
            self._memory.complete_payloads(far)
        return found


class _Windows:
    """The memory of all ranks of a group, and one-sided reading from it."""

    def __init__(self, group: Any, sizes: tuple[int, int], node_size: int | None):
        try:
            from mpi4py import MPI
        except ImportError as error:  # pragma: no cover - a communicator came from somewhere
            raise MissingDependencyError("several ranks need MPI: pip install 'gfm-calc[mpi]'") from error
        self.allows_threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._group, self._byte = group, MPI.BYTE
        # Memory that MPI allocates can be read while its owner computes; memory lent to MPI waits for the owner's calls.
        self._windows = [MPI.Win.Allocate(size, 1, comm=group) for size in sizes]
        self.local: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        can_share = MPI.Get_version() >= (4, 1)  # the standard that lets such memory be shared
        for rank in range(group.size):
            near = node_size is None or rank // node_size == group.rank // node_size
            if rank == group.rank:
                views: list[Any] = [window.tomemory() for window in self._windows]
            elif near and can_share:
                views = [window.Shared_query(rank)[0] for window in self._windows]
            else:
                continue
            rows, payload = (np.frombuffer(view, np.uint8) for view in views)
            if rows.size:  # else on another node
                self.local[rank] = rows[: rows.size // ROW.itemsize * ROW.itemsize].view(ROW), payload

    def open(self) -> None:
        """All parts are filled: from now on they are read."""
        for window in self._windows:
            window.Lock_all()
            window.Sync()
        self._group.Barrier()
        for window in self._windows:
            window.Sync()

    def get_row(self, rank: int, place: int, into: np.ndarray) -> None:
        """Begin to read a row."""
        self._windows[0].Get([into.view(np.uint8), self._byte], rank, target=place * ROW.itemsize)

    def get_payload(self, rank: int, start: int, into: np.ndarray) -> None:
        """Begin to read the atoms of a structure."""
        self._windows[1].Get([into, self._byte], rank, target=start)

    def complete_rows(self, ranks: Iterable[int]) -> None:
        """Wait until what was asked of `ranks` has come."""
        for rank in ranks:
            self._windows[0].Flush(rank)

    def complete_payloads(self, ranks: Iterable[int]) -> None:
        """The same for atoms."""
        for rank in ranks:
            self._windows[1].Flush(rank)

    def close(self) -> None:
        """Free the memory, once nobody reads any more."""
        self._group.Barrier()
        self.local = {}
        for window in self._windows:
            window.Unlock_all()
            window.Free()


def _payload_bytes(dataset: Dataset, own: np.ndarray) -> int:
    """Enough for the atoms of the structures `own`."""
    atoms = sum(int(dataset.atom_counts(own[k : k + _LOAD]).sum()) for k in range(0, len(own), _LOAD))
    with_forces = any("forces" in info.columns for info in dataset.shards)
    return atoms * (25 + 24 * with_forces) + 8 * len(own)


def _atom_bytes(rows: np.ndarray) -> np.ndarray:
    return rows["atoms"].astype(np.int64) * (25 + 24 * rows["has_forces"])


def _fill(dataset: Dataset, own: np.ndarray, rows: np.ndarray, payload: np.ndarray) -> None:
    at = 0
    for first in range(0, len(own), _LOAD):
        block = dataset.read(own[first : first + _LOAD])
        part = rows[first : first + len(block)]
        part["atoms"] = block.num_atoms
        part["has_forces"], part["has_stress"] = block.forces is not None, block.stress is not None
        for name in ("charge", "spin", "pbc", "frame", "energy", "cell"):
            part[name] = getattr(block, name)
        part["stress"] = np.nan if block.stress is None else block.stress
        sizes = _atom_bytes(part)
        part["start"] = at + np.concatenate([[0], np.cumsum(-(-sizes[:-1] // 8) * 8)])
        for k, start in enumerate(part["start"].tolist()):
            atoms = slice(int(block.ptr[k]), int(block.ptr[k + 1]))
            for array in (block.positions, block.forces, block.atomic_numbers):
                if array is not None:
                    raw = array[atoms].reshape(-1).view(np.uint8)
                    payload[start : start + raw.size] = raw
                    start += raw.size
        at = int(part["start"][-1] + -(-sizes[-1] // 8) * 8)


def _unpack(rows: np.ndarray, payloads: Sequence[np.ndarray]) -> Block:
    ptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(rows["atoms"], out=ptr[1:])
    numbers, positions = np.empty(ptr[-1], np.uint8), np.empty((ptr[-1], 3))
    forces = np.full((ptr[-1], 3), np.nan) if rows["has_forces"].any() else None
    ends = ptr.tolist()
    for k, (raw, has_forces) in enumerate(zip(payloads, rows["has_forces"].tolist())):
        first, last = ends[k], ends[k + 1]
        size = 24 * (last - first)
        positions[first:last] = raw[:size].view(np.float64).reshape(-1, 3)
        if has_forces:
            forces[first:last] = raw[size : 2 * size].view(np.float64).reshape(-1, 3)  # type: ignore[index]
        numbers[first:last] = raw[raw.size - (last - first) :]
    # Columns of their own: torch takes none whose stride, that of a row, is no multiple of the item.
    column: dict[str, Any] = {name: rows[name].copy() for name in ("cell", "pbc", "energy", "charge", "spin", "frame")}
    stress = rows["stress"].copy() if rows["has_stress"].any() else None
    return Block(ptr=ptr, atomic_numbers=numbers, positions=positions, forces=forces, stress=stress, **column)
