"""Compositions and energies of many frames, in 16 bytes each, for reference energies of any part of them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping

import numpy as np
from ase.data import chemical_symbols as SYMBOLS

from ..config import MAX_ATOMIC_NUMBER
from .references import MIN_STRUCTURES, RIDGE, ReferenceFit, ReferenceFitter
from .sampling import spread_indices
from .schema import Record


class Compositions:
    """Collects frames; fits reference energies to those that are chosen."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._counts: list[np.ndarray] = []
        self._composition, self._energy = array("q"), array("d")
        self._alone: dict[int, str] = {}
        self._free = array("q")  # rows of free atoms, ions too

    def __len__(self) -> int:
        return len(self._energy)

    def add(self, record: Record) -> None:
        """One more frame."""
        count = np.bincount(record.atomic_numbers, minlength=MAX_ATOMIC_NUMBER + 1)
        key = count.tobytes()
        if key not in self._known:
            self._known[key] = len(self._counts)
            self._counts.append(count)
        if record.is_free_atom:
            self._free.append(len(self))
        if record.is_free_atom and record.charge in (None, 0):
            self._alone[len(self)] = SYMBOLS[int(record.atomic_numbers[0])]
        self._composition.append(self._known[key])
        self._energy.append(record.energy)

    def within(self, frames: np.ndarray, elements: Collection[str]) -> np.ndarray:
        """[frames] bool: whether those frames hold these elements alone."""
        others = np.array([symbol not in elements for symbol in SYMBOLS[: MAX_ATOMIC_NUMBER + 1]])
        strange = np.array([bool(count[others].any()) for count in self._counts], bool)
        return ~strange[np.asarray(self._composition)[frames]]

    def elements(self, frames: np.ndarray, *, labelled: bool = False) -> set[str]:
        """Symbols in those frames ([n] indices); labelled: in those with an energy alone."""
        rows = np.asarray(frames, np.int64)
        rows = rows[np.isfinite(np.asarray(self._energy)[rows])] if labelled else rows
        counts = [self._counts[k] for k in np.unique(np.asarray(self._composition)[rows]).tolist()]
        return {SYMBOLS[z] for z in np.flatnonzero(np.sum(counts, axis=0))} if counts else set()

    def covering(self, frames: np.ndarray, chosen: np.ndarray, *, each: int) -> np.ndarray:
        """`chosen` [n] and more of `frames`: up to `each` with an energy for every element that none of the chosen has."""
        free = np.asarray(self._free)  # what is known of a free atom is not what its element does in others
        rows = np.setdiff1d(np.asarray(frames, np.int64), free)
        rows = rows[np.isfinite(np.asarray(self._energy)[rows])]
        found = np.asarray(chosen, np.int64)
        for symbol in sorted(self.elements(rows) - self.elements(np.setdiff1d(found, free), labelled=True)):
            holding = rows[~self.within(rows, self.elements(rows) - {symbol})]
            found = np.union1d(found, holding[spread_indices(len(holding), each)])
        return found

    def isolated(self, chosen: np.ndarray) -> dict[str, float]:
        """symbol -> eV of the chosen single atoms; of several spin states the lowest.

        Args:
            chosen: [frames] bool.
        """
        found: dict[str, float] = {}
        for index, symbol in self._alone.items():
            if chosen[index] and not math.isnan(self._energy[index]):
                found[symbol] = min(self._energy[index], found.get(symbol, math.inf))
        return found

    def fit(
        self,
        chosen: np.ndarray,
        *,
        known: Mapping[str, float] | None = None,
        ridge: float = RIDGE,
        min_structures: int = MIN_STRUCTURES,
    ) -> ReferenceFit:
        """Reference energies of the chosen frames; see `ReferenceFitter`.

        Args:
            chosen: [frames] bool: the training side.
        """
        fitter = ReferenceFitter(known=known)
        for index in np.flatnonzero(np.asarray(chosen) & np.isfinite(np.asarray(self._energy))).tolist():
            fitter.add_counts(self._counts[self._composition[index]], self._energy[index])
        return fitter.fit(ridge=ridge, min_structures=min_structures)
