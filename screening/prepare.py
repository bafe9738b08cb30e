"""Candidates made ready for the model: the structure, its neighbours, or the error; ahead of time and elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from gfm_calc.data.prefetch import prefetched
from gfm_calc.data.workers import run_in_processes
from gfm_calc.errors import GFMError, InvalidStructureError
from gfm_calc.graph import charge_and_spin, refuse_overlap, validate_atoms
from gfm_calc.neighbors import edge_vectors, neighbor_list
from gfm_calc.screening.streams import Candidate, Stream

AHEAD = 2  # chunks made ready before they are needed, by a thread


def prepare(stream: Stream, cutoff: float, first: int, last: int) -> list[Candidate]:
    """Candidates `first` to `last` with their edges within `cutoff` (Å)."""
    made = enumerate(stream.made(first, last), first)
    return [_ready(number, source, found, cutoff) for number, (source, found) in made]


def prepared(
    stream: Stream, cutoff: float, ranges: Iterable[tuple[int, int]], *, workers: int
) -> Iterator[list[Candidate]]:
    """`prepare` of every range, in their order, made ahead by a thread, or by `workers` processes.

    Raises:
        GFMError: a range that could not be made at all (a bad candidate does not stop the others).
    """
    here = (prepare(stream, cutoff, *chosen) for chosen in ranges)
    yield from prefetched(_by_processes(stream, cutoff, ranges, workers) if workers else here, depth=AHEAD)


def _by_processes(
    stream: Stream, cutoff: float, ranges: Iterable[tuple[int, int]], workers: int
) -> Iterator[list[Candidate]]:
    early: dict[int, list[Candidate]] = {}
    following = 0
    calls = ((stream, cutoff, first, last) for first, last in ranges)
    for number, outcome in run_in_processes(prepare, calls, workers):
        if isinstance(outcome, Exception):
            raise outcome
        early[number] = outcome
        while following in early:
            yield early.pop(following)
            following += 1


def _ready(number: int, source: str, found: Atoms | GFMError, cutoff: float) -> Candidate:
    if isinstance(found, GFMError):
        return Candidate(number=number, source=source, error=found)
    candidate = Candidate(number=number, source=source)
    try:
        validate_atoms(found, source=source)
        charge_and_spin(found, source=source)
        candidate.atoms = found  # sound enough for a formula
        candidate.edges = edges_of(found, cutoff)
        candidate.closest = closeness(found, candidate.edges)
    except InvalidStructureError as error:
        candidate.error = error.at(source=source)
    return candidate


def edges_of(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges of a validated structure; InvalidStructureError where two atoms are at one place."""
    positions, cell = np.asarray(atoms.positions, np.float64), np.asarray(atoms.cell.array, np.float64)
    edges = neighbor_list(positions, cell, atoms.pbc, cutoff)
    refuse_overlap(positions, cell, edges)
    return edges


def closeness(atoms: Atoms, edges: tuple[np.ndarray, np.ndarray]) -> float | None:
    """The shortest distance over the sum of the covalent radii; None without neighbours."""
    edge_index, shift = edges
    if not edge_index.shape[1]:
        return None
    lengths = np.linalg.norm(edge_vectors(atoms.positions, atoms.cell.array, edge_index, shift), axis=1)
    radii = covalent_radii[atoms.numbers]
    return float((lengths / (radii[edge_index[0]] + radii[edge_index[1]])).min())
