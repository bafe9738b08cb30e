"""Chunk after chunk: candidates in, one Parquet file each out.

This thread makes candidates and neighbour lists and predicts, another one writes; processes, or beside a GPU a thread, make
candidates ahead.  What is in a
chunk depends on the settings and the candidates alone: not on the number of processes, nor on who did what before.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from gfm_calc.artifacts import write_once
from gfm_calc.errors import GFMError, OutsideDomainError, one_line
from gfm_calc.graph import AtomicGraph, GraphArrays, GraphBatch
from gfm_calc.model import Prediction
from gfm_calc.predictor import Predictor, check_domain, split_rows
from gfm_calc.screening.domain import Domain, arranged, encoded, features_seen
from gfm_calc.screening.folder import Folder
from gfm_calc.screening.prepare import find_neighbours, prepared
from gfm_calc.screening.relaxation import relax_all
from gfm_calc.screening.rows import Rows
from gfm_calc.screening.settings import Relaxation, Settings
from gfm_calc.screening.streams import Candidate, Stream
from gfm_calc.screening.table import sealed

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_WAITING = 2  # chunks that may wait to be written
_TOO_LARGE = GFMError("does not fit into the memory of this machine, even alone")
_Graph = AtomicGraph | GraphArrays
_Wanted = tuple[Candidate, GraphArrays, np.ndarray]  # with the heads [H] that know it
_Outcome = tuple[GraphBatch, dict[str, Prediction], np.ndarray]  # with the distances [H, B] from training data


@dataclass(kw_only=True)
class Tally:
    """What one process has done: `seconds` in each stage ("waiting" for candidates, "graphs", "model", "rows", "writing",
    the last by the thread that writes), and counts of `chunks`, `candidates`, `atoms` and `edges` predicted."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[str] = field(default_factory=Counter)


class Engine:
    """Predicts chunks.

    Args:
        predictor: with the heads of the settings.
        settings: see `Settings`.
        elements: {head: {symbol: eV/atom}}.
        domain: of the model, None where it is not known.
    """

    def __init__(
        self, predictor: Predictor, settings: Settings, elements: Mapping[str, Mapping[str, float]],
        domain: Domain | None = None,
    ):  # fmt: skip
        self.predictor, self.settings, self.elements, self.domain = predictor, settings, elements, domain
        self.tally = Tally()
        self._ceiling = np.inf  # edges of a batch that the memory does not hold

    def rows(self, candidates: Sequence[Candidate], first: int, last: int) -> Rows:
        """The rows of the candidates `first` to `last`."""
        since = time.perf_counter()
        rows = Rows(self.settings, self.predictor.specs, self.elements, first, last)
        wanted: list[_Wanted] = []
        for candidate in candidates:
            rows.describe(candidate)
            if candidate.error is None:
                found = self._graph(candidate, rows)
                wanted += [found] if found is not None else []
        self.tally.seconds["graphs"] += time.perf_counter() - since
        if self.settings.relax is not None:
            wanted = list(self._relaxed(wanted, self.settings.relax, rows))
        for chosen, outcome in self._batches([graph for _, graph, _ in wanted]):
            self._enter([wanted[k] for k in chosen], outcome, rows)
        return rows

    def _graph(self, candidate: Candidate, rows: Rows) -> _Wanted | None:
        """With the heads [H] that know it; None where none does."""
        graph = _arrays(candidate)
        known = np.ones(len(self.predictor.specs), bool)
        for head, spec in enumerate(self.predictor.specs if self.settings.strict else ()):
            try:
                check_domain(spec, graph, source=candidate.source)
            except OutsideDomainError as error:
                known[head] = False
                rows.fail(candidate, error, head)
        return (candidate, graph, known) if known.any() else None

    def _relaxed(self, wanted: Sequence[_Wanted], how: Relaxation, rows: Rows) -> Iterator[_Wanted]:
        """The same structures relaxed; those that cannot be are rows now."""
        (head,) = self.predictor.heads

        def predict(graphs: Sequence[AtomicGraph]) -> list[Prediction | GFMError]:
            found: list[Prediction | GFMError] = [_TOO_LARGE] * len(graphs)
            for chosen, outcome in self._batches(graphs):
                if outcome is not None:
                    split = split_rows(outcome[1], outcome[0], self.predictor.model.dtype)
                    for k, one in zip(chosen, split):
                        found[k] = one if isinstance(one, GFMError) else one[head]
            return found

        structures = [candidate.atoms for candidate, _, _ in wanted if candidate.atoms is not None]
        cutoff = self.predictor.model.config.cutoff
        ended = sorted(relax_all(structures, how, cutoff, predict), key=lambda item: item[0])
        for (candidate, _, known), (_, relaxed) in zip(wanted, ended):
            rows.describe_relaxed(candidate, relaxed)
            if candidate.error is None:
                find_neighbours(candidate, cutoff)
                yield candidate, _arrays(candidate), known

    def _enter(self, several: Sequence[_Wanted], outcome: _Outcome | None, rows: Rows) -> None:
        since = time.perf_counter()
        if outcome is None:
            for candidate, _, _ in several:
                rows.fail(candidate, _TOO_LARGE)
            return
        known = np.stack([heads for _, _, heads in several], axis=1)
        batch, found, far = outcome
        rows.fill([candidate for candidate, _, _ in several], batch, found, known, far)
        self.tally.seconds["rows"] += time.perf_counter() - since

    def _batches(self, graphs: Sequence[_Graph]) -> Iterator[tuple[list[int], _Outcome | None]]:
        """(indices, outcome) of batches within the budget, largest graphs first; None: not even one fits the memory."""
        order = by_size(graphs)
        budget = budgeted([graphs[k] for k in order], self.settings.max_atoms, self.settings.max_edges)
        waiting = [[order[k] for k in chosen] for chosen in budget][::-1]
        while waiting:
            chosen = waiting.pop()
            edges = sum(graphs[k].edge_index.shape[1] for k in chosen)
            since = time.perf_counter()
            outcome = None
            if edges < self._ceiling or len(chosen) == 1:
                outcome = self._batch([graphs[k] for k in chosen])
            self.tally.seconds["model"] += time.perf_counter() - since
            if outcome is None and len(chosen) > 1:
                self._ceiling = min(self._ceiling, edges)
                middle = len(chosen) // 2
                waiting += [chosen[middle:], chosen[:middle]]
                continue
            self.tally.counts += Counter(atoms=sum(graphs[k].num_nodes for k in chosen), edges=edges)
            yield chosen, outcome

    def _batch(self, graphs: Sequence[_Graph]) -> _Outcome | None:
        """None where the memory does not hold it."""
        try:
            return self._predict(graphs)
        except (MemoryError, torch.OutOfMemoryError):
            pass
        except RuntimeError as error:  # torch's allocator of the CPU
            if not any(words in one_line(error).lower() for words in _NO_MEMORY):
                raise
        if self.predictor.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _predict(self, graphs: Sequence[_Graph]) -> _Outcome:
        if self.domain is None:
            batch, found = self.predictor.predict_batch(graphs)
            return batch, found, np.full((len(found), len(graphs)), np.nan)
        model = self.predictor.model
        if self.settings.compile:  # no place to look into it
            batch, found = self.predictor.predict_batch(graphs)
            features = encoded(model, batch)
        else:
            with features_seen(model) as seen:
                batch, found = self.predictor.predict_batch(graphs)
            features = arranged(seen[0], batch)
        return batch, found, self.domain.distances(list(found), features)


def _arrays(candidate: Candidate) -> GraphArrays:
    atoms = candidate.atoms
    assert atoms is not None and candidate.edges is not None
    return GraphArrays(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, *candidate.totals, *candidate.edges)


def by_size(graphs: Sequence[_Graph]) -> list[int]:
    """Indices from the graph with most edges to that with fewest, so that batches are even; equal ones keep their order."""
    edges = [graph.edge_index.shape[1] for graph in graphs]
    return sorted(range(len(graphs)), key=lambda k: (-edges[k], k))


def budgeted(graphs: Sequence[AtomicGraph], max_atoms: int, max_edges: int) -> Iterator[list[int]]:
    """Indices of graphs, in order, in batches within the budget; a graph beyond it is a batch of its own."""
    held: list[int] = []
    atoms = edges = 0
    for index, graph in enumerate(graphs):
        more = graph.num_nodes, graph.edge_index.shape[1]
        if held and (atoms + more[0] > max_atoms or edges + more[1] > max_edges):
            yield held
            held, atoms, edges = [], 0, 0
        held.append(index)
        atoms, edges = atoms + more[0], edges + more[1]
    if held:
        yield held


def screen(
    engine: Engine, stream: Stream, folder: Folder, chunks: Iterable[int], *, workers: int = 0,
    on_chunk: Callable[[Rows], None] = lambda rows: None,
) -> None:  # fmt: skip
    """Predict and write `chunks`, each claimed by this process; the claims are given back as the files are there.

    Args:
        workers: processes that make candidates and neighbour lists; 0: this one, in a thread where there is a GPU.
        on_chunk: told of every chunk as it goes to be written.

    Raises:
        GFMError: the disk refused, or an input has gone.
    """
    taken: list[int] = []
    model = engine.predictor.model

    def ranges() -> Iterator[tuple[int, int]]:
        for chunk in chunks:
            taken.append(chunk)
            yield folder.range_of(chunk)

    def write(chunk: int, rows: Rows) -> None:
        since = time.perf_counter()
        about = {"screening": folder.digest, "chunk": str(chunk), "model_id": model.model_id}
        write_once(folder.path_of(chunk), sealed(rows.values, rows.columns, about))
        folder.claims.release(str(chunk))
        engine.tally.seconds["writing"] += time.perf_counter() - since

    writing: list[Future[None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="gfm-writer") as writer:
        since = time.perf_counter()
        ahead = model.device.type == "cuda"
        for candidates in prepared(stream, model.config.cutoff, ranges(), workers=workers, ahead=ahead):
            engine.tally.seconds["waiting"] += time.perf_counter() - since
            chunk = taken.pop(0)
            rows = engine.rows(candidates, *folder.range_of(chunk))
            while len(writing) >= _WAITING:
                _done(writing.pop(0), folder)
            writing.append(writer.submit(write, chunk, rows))
            engine.tally.counts += Counter(chunks=1, candidates=len(candidates))
            on_chunk(rows)
            since = time.perf_counter()
        for future in writing:
            _done(future, folder)


def _done(future: Future[None], folder: Folder) -> None:
    try:
        future.result()
    except OSError as error:
        raise GFMError(
            f"{folder.directory}: could not be written ({one_line(error)}); give the same command again to go on"
        ) from error
