"""Candidates made ready for the model: the structure, its neighbours, or the error; ahead of time and elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from gfm_calc.data.prefetch import prefetched
from gfm_calc.data.workers import run_in_processes
from gfm_calc.errors import GFMError, InvalidStructureError
from gfm_calc.graph import MIN_DISTANCE, charge_and_spin, refuse_overlap, validate_atoms
from gfm_calc.neighbors import neighbor_list
from gfm_calc.screening.streams import Candidate, Stream
from gfm_calc.screening.templates import Scaled

AHEAD = 2  # chunks made ready before they are needed, by a thread


def prepare(stream: Stream, cutoff: float, first: int, last: int) -> list[Candidate]:
    """Candidates `first` to `last` with their edges within `cutoff` (Å)."""
    made = enumerate(stream.made(first, last), first)
    return [_ready(number, source, found, cutoff) for number, (source, found) in made]


def prepared(
    stream: Stream, cutoff: float, ranges: Iterable[tuple[int, int]], *, workers: int, ahead: bool = False
) -> Iterator[list[Candidate]]:
    """`prepare` of every range, in their order: made ahead by `workers` processes; or by this one, `ahead` in a thread.

    A thread is for a GPU that would wait.  On a CPU it gains nothing: it shares the interpreter with the model, which gets
    it back late after every operation, and one process to a core uses all of them (`gfm bench screening`).

    Raises:
        GFMError: a range that could not be made at all (a bad candidate does not stop the others).
    """
    here = (prepare(stream, cutoff, *chosen) for chosen in ranges)
    if not workers and not ahead:
        yield from here
        return
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
        candidate.totals = charge_and_spin(found, source=source)
        candidate.atoms = found  # sound enough for a formula
        find_neighbours(candidate, cutoff)
    except InvalidStructureError as error:
        candidate.error = error.at(source=source)
    return candidate


def find_neighbours(candidate: Candidate, cutoff: float) -> None:
    """Fill in `edges` and `closest` of a candidate with validated atoms; InvalidStructureError where two are at one place."""
    atoms = candidate.atoms
    assert atoms is not None
    if isinstance(atoms, Scaled) and atoms.template is not None:
        edges, lengths = atoms.template.edges(atoms.scale, cutoff)
        atoms.template = None
        if len(lengths) and lengths.min() < MIN_DISTANCE:
            refuse_overlap(atoms.positions, atoms.cell.array, edges)
    else:
        positions, cell = np.asarray(atoms.positions, np.float64), np.asarray(atoms.cell.array, np.float64)
        edges = neighbor_list(positions, cell, atoms.pbc, cutoff)
        lengths = np.sqrt(refuse_overlap(positions, cell, edges))
    candidate.edges, candidate.closest = edges, None
    if len(lengths):
        radii = covalent_radii[atoms.numbers]
        candidate.closest = float((lengths / (radii[edges[0][0]] + radii[edges[0][1]])).min())
