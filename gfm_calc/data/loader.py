"""From stored structures to labelled batches: read, find neighbours, pack; in worker processes.

Edges are made here, for the cutoff of the model, by `gfm_calc.graph`; none are stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from ..errors import ConfigError, GFMError, one_line
from ..graph import AtomicGraph, GraphBatch
from .block import Block
from .sampling import Batch, SamplingPlan, batches
from .workers import safe_path

WORK_OF_ATOM = 8.0  # in edges: what a small model computes for an atom beside its edges


class Source(Protocol):
    """Structures of one head: a `Dataset`, a `Selection` of one, or a `DistributedStore`."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> Block:
        """The structures `indices`."""

    def atom_counts(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Their numbers of atoms."""

    def densities(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Their atoms an Å³, NaN where they are not periodic."""


_KEPT = 40_000  # atoms; the graphs of so few fit into memory, and they are drawn again and again


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledBatch:
    """A batch of B structures (N atoms) and their labels; NaN stands where a structure has no such label.

    Attributes:
        graph: inputs and edges.
        head: [B] int64, which of the loader's sources.  index: [B] int64, which of its structures.
        energy: [B] float64, eV, as labelled: reference energies are not subtracted.
        forces: [N, 3] float64, eV/Å.
        stress: [B, 3, 3] float64, eV/Å³; of cells that are periodic along all axes.
        value: [B, 3] float64, a property of the structures in the unit of its head; numbers are in the first column.
        atom_values: [N, 3] float64, a property of the atoms, the same.
    """

    graph: GraphBatch
    head: Tensor
    index: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    value: Tensor
    atom_values: Tensor

    def __len__(self) -> int:
        return len(self.energy)

    def to(self, device: torch.device | str, **options: Any) -> LabelledBatch:
        """All tensors on a device."""
        values = {f.name: getattr(self, f.name).to(device, **options) for f in dataclasses.fields(self)}
        return LabelledBatch(**values)


def labelled_batches(
    block: Block, drawn: Batch, cutoff: float, *, max_edges: float = float("inf"), names: Sequence[str] = (),
    kept: dict[tuple[int, int], AtomicGraph] | None = None,
) -> list[LabelledBatch]:  # fmt: skip
    """The structures of `block` as one batch, or as several in a row where they have more than `max_edges` edges.

    Args:
        drawn: head and index of each structure.
        cutoff: Å.
        names: of the sources, for messages.
        kept: graphs by head and index, filled here: structures that are drawn again are not searched for neighbours again.

    Raises:
        InvalidStructureError: two atoms at one place; it names the frame of the file (everything else was checked when the
            dataset was built).
    """
    graphs, starts, held = [], [0], 0
    for k, record in enumerate(block.records()):
        key = int(drawn.head[k]), int(drawn.index[k])
        graph = None if kept is None else kept.get(key)
        if graph is None:
            name = f"{names[key[0]]}, structure {key[1]}" if names else None
            graph = AtomicGraph.build(record.structure(), cutoff, source=name, frame=record.frame)
            if kept is not None:
                kept[key] = graph
        edges = graph.edge_index.shape[1]
        if k > starts[-1] and held + edges > max_edges:
            starts.append(k)
            held = 0
        held += edges
        graphs.append(graph)
    ends = [*starts[1:], len(block)]
    return [_pack(block, drawn, graphs, first, last) for first, last in zip(starts, ends)]


def _pack(block: Block, drawn: Batch, graphs: Sequence[AtomicGraph], first: int, last: int) -> LabelledBatch:
    part = slice(first, last)
    atoms = slice(int(block.ptr[first]), int(block.ptr[last]))
    forces = np.full((atoms.stop - atoms.start, 3), np.nan) if block.forces is None else block.forces[atoms]
    graph = GraphBatch.from_graphs(graphs[part])
    stress = torch.full((last - first, 3, 3), math.nan, dtype=torch.float64)
    if block.stress is not None:
        # That of a slab is by the volume of a cell whose height means nothing, and not what a model can say of it.
        whole = graph.pbc.all(dim=1).view(-1, 1, 1)
        stress = torch.where(whole, torch.tensor(block.stress[part]), stress)
    return LabelledBatch(
        graph=graph, head=torch.tensor(drawn.head[part]),
        index=torch.tensor(drawn.index[part]), energy=torch.tensor(block.energy[part]), forces=torch.tensor(forces),
        stress=stress, value=_three(block.value, part), atom_values=_three(block.atom_values, atoms),
    )  # fmt: skip


def _three(values: np.ndarray | None, rows: slice) -> Tensor:
    """Some rows of a property, as three columns."""
    found = torch.full((rows.stop - rows.start, 3), math.nan, dtype=torch.float64)
    if values is not None:
        found[:, : values.shape[1]] = torch.from_numpy(values[rows])
    return found


class Loader:
    """Labelled batches of several heads.

    Args:
        sources: structures of each head.
        cutoff: of the model, Å.
        max_atoms, max_edges: budget of a batch; a structure beyond it is a batch of its own.
        rank, world: which share of every step is made here.
        heads: of the sources, those that these ranks draw from (default: all).
        edges_per_atom: expected of each source, so that shares are equal in work.
        workers: processes that make batches; 0 makes them in this one.  Stores in memory are read in this one.
        ahead: batches that each worker makes ahead.
        names: of the sources, for messages.
    """

    def __init__(
        self, sources: Sequence[Source], cutoff: float, *, max_atoms: int = 4096, max_edges: float = float("inf"),
        rank: int = 0, world: int = 1, workers: int = 0, ahead: int = 4, names: Sequence[str] = (),
        heads: Sequence[int] | None = None, edges_per_atom: Sequence[float] | None = None,
    ):  # fmt: skip
        if not sources or min(len(source) for source in sources) < 1:
            raise ConfigError("a loader needs at least one source, and structures in each")
        if not 0 <= rank < world or max_atoms < 1 or not max_edges >= 1 or workers < 0 or ahead < 1:
            raise ConfigError("a loader needs 0 <= rank < world, positive budgets, workers >= 0 and ahead >= 1")
        self.sources, self.max_atoms, self.rank, self.world = list(sources), max_atoms, rank, world
        self.workers, self.ahead, self.heads = workers, ahead, heads
        self._edges_per_atom = None if edges_per_atom is None else np.asarray(edges_per_atom, float)
        self._max_edges = max_edges
        self._read_here = any(getattr(source, "in_memory", False) for source in sources)
        count = sum(map(len, self.sources))  # first: sizes of millions are not read for nothing
        few = count <= _KEPT and sum(int(s.atom_counts(np.arange(len(s))).sum()) for s in self.sources) <= _KEPT
        self._maker = _Maker(None if self._read_here else self.sources, cutoff, max_edges, tuple(names), keep=few)

    def steps(self, plan: SamplingPlan, start: int = 0, stop: int | None = None) -> Iterator[list[LabelledBatch]]:
        """This rank's batches of the steps `start` to `stop` (default: without end), a list a step.

        The lists depend on the plan, the step, rank and world, and on nothing else.

        Raises:
            ConfigError: the plan counts other structures than the sources hold.
        """
        if plan.counts != tuple(len(source) for source in self.sources):
            raise ConfigError(
                f"the plan counts {plan.counts} structures, the sources hold {[len(s) for s in self.sources]}"
            )

        budget = (self.max_atoms,) if self._edges_per_atom is None else (self._max_edges, self.max_atoms)

        def parts() -> Iterator[list[Batch]]:
            step = start
            while stop is None or step < stop:
                yield batches(plan, step, self.rank, self.world, sizes=self._costs, budget=budget, heads=self.heads)
                step += 1

        return self._grouped(parts())

    def once(self) -> Iterator[LabelledBatch]:
        """Every structure of every source, in order; of several ranks each takes its share of the batches."""
        for group in self._grouped([part] for part in self._all_parts()):
            yield from group

    def _all_parts(self) -> Iterator[Batch]:
        number = 0
        for head, source in enumerate(self.sources):
            for first in range(0, len(source), 4096):
                indices = np.arange(first, min(first + 4096, len(source)))
                ends = np.cumsum(source.atom_counts(indices))
                start = 0
                while start < len(indices):
                    used = ends[start - 1] if start else 0
                    stop = max(start + 1, int(np.searchsorted(ends, used + self.max_atoms, side="right")))
                    if number % self.world == self.rank:
                        yield Batch(head=np.full(stop - start, head), index=indices[start:stop])
                    number += 1
                    start = stop

    def _costs(self, drawn: Batch) -> np.ndarray:
        """Expected work (in edges, where they are known) and atoms of each draw."""
        atoms = self._sizes(drawn)
        if self._edges_per_atom is None:
            return atoms
        neighbors = self._edges_per_atom[drawn.head]
        for head in np.unique(drawn.head).tolist():
            chosen = np.flatnonzero(drawn.head == head)
            density = self.sources[head].densities(drawn.index[chosen])
            dense = np.isfinite(density)
            neighbors[chosen[dense]] = 4 / 3 * math.pi * self._maker.cutoff**3 * density[dense]
        return np.concatenate([atoms * (neighbors + WORK_OF_ATOM)[:, None], atoms], axis=1)

    def _sizes(self, drawn: Batch) -> np.ndarray:
        found = np.empty((len(drawn), 1))
        for head in np.unique(drawn.head).tolist():
            chosen = drawn.head == head
            found[chosen, 0] = self.sources[head].atom_counts(drawn.index[chosen])
        return found

    def _grouped(self, groups: Iterable[list[Batch]]) -> Iterator[list[LabelledBatch]]:
        """What is made of each group of draws, in order."""
        group: list[LabelledBatch] = []
        for found, is_last in _made(self._maker, self._jobs(groups), self.workers, self.ahead):
            group += found
            if is_last:
                yield group
                group = []

    def _jobs(self, groups: Iterable[list[Batch]]) -> Iterator[_Job]:
        for group in groups:
            for number, drawn in enumerate(group, 1):
                block = read_drawn(self.sources, drawn) if self._read_here else None
                yield drawn, block, number == len(group)
            if not group:
                yield None, None, True


_Job = tuple[Batch | None, Block | None, bool]  # what to make, from this block if given; whether its group ends here
_Made = tuple[list[LabelledBatch], bool]


def read_drawn(sources: Sequence[Source], drawn: Batch) -> Block:
    """The structures that were drawn, in that order."""
    heads = np.unique(drawn.head).tolist()
    if len(heads) == 1:
        return sources[heads[0]].read(drawn.index)
    chosen = [np.flatnonzero(drawn.head == head) for head in heads]
    blocks = [sources[head].read(drawn.index[rows]) for head, rows in zip(heads, chosen)]
    return Block.concatenate(blocks).take(np.argsort(np.concatenate(chosen)))


class _Maker:
    """Makes batches of jobs; a copy of it goes to each worker (DataLoader calls it a dataset)."""

    def __init__(
        self, sources: Sequence[Source] | None, cutoff: float, max_edges: float, names: Sequence[str], *, keep: bool
    ):  # fmt: skip
        self.sources, self.cutoff, self.max_edges, self.names = sources, cutoff, max_edges, names
        self.kept: dict[tuple[int, int], AtomicGraph] | None = {} if keep else None

    def __getitem__(self, job: _Job) -> _Made | GFMError:
        drawn, block, is_last = job
        if drawn is None:
            return [], is_last
        try:
            block = read_drawn(self.sources, drawn) if block is None else block  # type: ignore[arg-type]
            found = labelled_batches(
                block, drawn, self.cutoff, max_edges=self.max_edges, names=self.names, kept=self.kept
            )
        except GFMError as error:
            return error  # as a value, so that it arrives as what it is
        return found, is_last


class _PackedMaker(_Maker):
    """The same for a worker: what it makes travels as one piece of shared memory, which is far cheaper than many."""

    def __getitem__(self, job: _Job) -> Any:
        made = super().__getitem__(job)
        return made if isinstance(made, GFMError) else (pack(made[0]), made[1])


def _made(maker: _Maker, jobs: Iterable[_Job], workers: int, ahead: int) -> Iterator[_Made]:
    """The maker's results of all jobs, in order.

    Raises:
        GFMError: what the maker found, or a worker that died.
    """
    for found in map(maker.__getitem__, jobs) if not workers else _by_workers(maker, jobs, workers, ahead):
        if isinstance(found, GFMError):
            raise found
        yield found


def _by_workers(maker: _Maker, jobs: Iterable[_Job], workers: int, ahead: int) -> Iterator[_Made | GFMError]:
    packing: Any = _PackedMaker(maker.sources, maker.cutoff, maker.max_edges, maker.names, keep=maker.kept is not None)
    loader: Any = torch.utils.data.DataLoader(
        packing,
        batch_size=None, sampler=_Once(jobs), num_workers=workers, prefetch_factor=ahead,
        collate_fn=_unchanged, multiprocessing_context="spawn",
        generator=torch.Generator().manual_seed(0),  # its own, so that the program's random numbers are left alone
    )  # fmt: skip
    try:
        with safe_path():
            iterator = iter(loader)
        for found in iterator:
            yield found if isinstance(found, GFMError) else (unpack(*found[0]), found[1])
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise GFMError(f"a worker that makes batches died ({one_line(error)}): out of memory, or killed") from error


Layout = list[dict[str, tuple[torch.dtype, tuple[int, ...], int]]]  # of each batch: {tensor: (type, shape, first byte)}


def pack(several: Sequence[LabelledBatch]) -> tuple[Tensor, Layout]:
    """Batches as one flat tensor, and where in it their tensors are."""
    layout: Layout = []
    parts: list[Tensor] = []
    at = 0
    for batch in several:
        layout.append({})
        for name, tensor in _tensors(batch).items():
            raw = (
                tensor.contiguous().view(-1).view(torch.uint8)
                if tensor.numel()
                else tensor.new_empty(0).view(torch.uint8)
            )
            layout[-1][name] = (tensor.dtype, tuple(tensor.shape), at)
            parts += [raw, torch.empty(-raw.numel() % 16, dtype=torch.uint8)]
            at += raw.numel() + parts[-1].numel()
    return (torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)), layout


def unpack(flat: Tensor, layout: Layout) -> list[LabelledBatch]:
    """The inverse of `pack`; the tensors are views."""
    several = []
    for entry in layout:
        found = {}
        for name, (dtype, shape, at) in entry.items():
            size = math.prod(shape) * dtype.itemsize
            found[name] = flat[at : at + size].view(dtype).view(shape)
        graph = GraphBatch()
        for name in [name for name in found if name not in _LABELS]:
            graph._store[name] = found.pop(name)
        graph._store["num_nodes"] = int(graph._store["ptr"][-1])
        several.append(LabelledBatch(graph=graph, **found))
    return several


_LABELS = tuple(field.name for field in dataclasses.fields(LabelledBatch) if field.name != "graph")


def _tensors(batch: LabelledBatch) -> dict[str, Tensor]:
    graph = {name: value for name, value in batch.graph._store.items() if torch.is_tensor(value)}
    return graph | {name: getattr(batch, name) for name in _LABELS}


class _Once:
    """An iterator in the clothes of a sampler."""

    def __init__(self, jobs: Iterable[_Job]):
        self._jobs = jobs

    def __iter__(self) -> Iterator[_Job]:
        return iter(self._jobs)


def _unchanged(found: Any) -> Any:
    return found
