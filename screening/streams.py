"""Candidates as numbered streams: candidate i is a pure function of i, so any process can make any of them at any time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from gfm_calc.errors import ConfigError, GFMError

Made = tuple[str, Atoms | GFMError]


class Stream(Protocol):
    """A finite sequence of candidates; may be pickled to other processes."""

    def __len__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """JSON values that decide every candidate: the same identity, the same candidates."""

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """(where it comes from, the structure or why there is none) of candidates `start` to `stop`."""


@dataclass(kw_only=True, slots=True)
class Candidate:
    """One candidate on its way through a screening.

    Attributes:
        number: in the whole stream.
        source: where it comes from, for people.
        atoms: the structure, None where there is none.
        error: why it cannot be predicted.
        totals: (charge, spin).
        edges: (edge_index [2, E], edge_cell_shift [E, 3]) within the model's cutoff.
        closest: shortest distance over the sum of the covalent radii.
    """

    number: int
    source: str
    atoms: Atoms | None = None
    error: GFMError | None = None
    totals: tuple[int, int] = (0, 1)
    edges: tuple[np.ndarray, np.ndarray] | None = None
    closest: float | None = None


class Joined:
    """Streams one after the other, as one; see `Stream`.

    Raises:
        ConfigError: no candidates in all of them.
    """

    def __init__(self, streams: Sequence[Stream]):
        self.streams = list(streams)
        self._ends = list(accumulate(len(stream) for stream in self.streams))
        if not self._ends or not self._ends[-1]:
            raise ConfigError("there are no candidates: every input is empty")

    def __len__(self) -> int:
        return self._ends[-1]

    def identity(self) -> dict[str, Any]:
        """The identities of the parts, in order."""
        return {"kind": "joined", "parts": [stream.identity() for stream in self.streams]}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        while start < stop:
            part = bisect_right(self._ends, start)
            before = self._ends[part] - len(self.streams[part])
            end = min(stop, self._ends[part])
            yield from self.streams[part].made(start - before, end - before)
            start = end
