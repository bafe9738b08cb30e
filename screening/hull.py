"""Distances from the convex hull of formation energies: what a candidate would win, or lose, by falling apart.

The hull at a composition is the lowest energy of any mixture of phases with that composition: a linear program with one
constraint an element, whose optimum mixes no more phases than there are elements.  The elements are phases, so the simplex
method has a place to begin; phases of other elements take no part, so every program is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from ase import Atoms

from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor
from gfm_calc.screening.elements import table_of
from gfm_calc.screening.formulas import composition_of, reduced_formula

_TINY = 1e-12  # eV/atom; smaller gains are rounding
_STALLED = (
    20  # pivots without a gain, after which the first phase that gains is taken instead of the best (Bland's rule)
)
_MOST_SUBSETS = 12  # elements, beyond which all phases are looked through


class Hull:
    """Phases of one head: the lowest and the second lowest formation energy of each composition."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._formulas: list[str] = []
        self._lowest: list[float] = []
        self._second: list[float] = []
        self._owner: list[int] = []
        self._systems: dict[frozenset[int], list[int]] = {}
        self._others: dict[str, float] = {}

    def add(self, formula: str, energy: float, owner: int = -1) -> None:
        """A phase.

        Args:
            energy: of formation, eV/atom; NaN is passed over.
            owner: number of the candidate, -1 for phases that are none.
        """
        if not np.isfinite(energy):
            return
        self._others.clear()
        place = self._place.setdefault(formula, len(self._lowest))
        if place == len(self._lowest):
            self._formulas.append(formula)
            self._lowest.append(energy)
            self._second.append(np.inf)
            self._owner.append(owner)
            self._systems.setdefault(frozenset(composition_of(formula)), []).append(place)
        elif energy < self._lowest[place]:
            self._second[place], self._lowest[place], self._owner[place] = self._lowest[place], energy, owner
        else:
            self._second[place] = min(self._second[place], energy)

    def distance(self, formula: str, energy: float, owner: int = -2) -> float:
        """How far a phase, eV/atom, lies above the hull of all others; below zero: it is stable, by so much.

        Args:
            owner: its number, where it has been added.
        """
        place = self._place.get(formula)
        rival = np.inf
        if place is not None:
            rival = self._second[place] if self._owner[place] == owner else self._lowest[place]
        return energy - min(self._of_others(formula), rival)

    def _of_others(self, formula: str) -> float:
        """The hull at a composition, of phases of other compositions."""
        if formula not in self._others:
            composition = composition_of(formula)
            names = [place for place in self._within(composition) if self._lowest[place] < 0.0]
            own = self._place.get(formula)
            columns = [place for place in names if place != own]
            energies = np.array([self._lowest[place] for place in columns])
            fractions = [_fractions(composition_of(self._formulas[place]), tuple(composition)) for place in columns]
            wanted = np.array(_fractions(composition, tuple(composition)))
            self._others[formula] = lowest_mixture(
                np.array(fractions).reshape(len(columns), len(composition)), energies, wanted
            )
        return self._others[formula]

    def _within(self, composition: Mapping[int, int]) -> list[int]:
        """Phases of no other elements."""
        elements = frozenset(composition)
        if len(elements) > _MOST_SUBSETS:
            return [place for system, several in self._systems.items() if system <= elements for place in several]
        found = []
        for size in range(1, len(elements) + 1):
            for some in combinations(sorted(elements), size):
                found += self._systems.get(frozenset(some), [])
        return found


def lowest_mixture(fractions: np.ndarray, energies: np.ndarray, wanted: np.ndarray) -> float:
    """The lowest energy of a mixture of phases that has the composition `wanted`; the elements, at zero, are phases too.

    minimise c x subject to A x = wanted, x >= 0, by the primal simplex method (Dantzig, DOI 10.1515/9781400884179),
    beginning with the elements.

    Args:
        fractions: [phases, elements], of each phase.  energies: [phases] eV/atom.  wanted: [elements], summing to 1.
    """
    size = len(wanted)
    if not len(energies) or size == 1:
        return float(min(0.0, *energies)) if len(energies) else 0.0
    columns = np.vstack([np.eye(size), fractions])
    costs = np.concatenate([np.zeros(size), energies])
    basis, value, stalled = list(range(size)), 0.0, 0
    amounts = np.array(wanted, float)
    while True:
        matrix = columns[basis].T
        prices = np.linalg.solve(matrix.T, costs[basis])
        gains = costs - columns @ prices
        gains[basis] = 0.0
        enters = int((gains < -_TINY).argmax() if stalled > _STALLED else gains.argmin())
        if gains[enters] >= -_TINY:
            return value
        direction = np.linalg.solve(matrix, columns[enters])
        limits = np.full(size, np.inf)
        np.divide(amounts, direction, out=limits, where=direction > 1e-11)
        ties = np.flatnonzero(limits <= limits.min() + 1e-15)
        leaves = int(min(ties, key=lambda k: basis[k]))
        amounts = np.maximum(amounts - limits[leaves] * direction, 0.0)
        amounts[leaves] = limits[leaves]
        basis[leaves] = enters
        now = float(costs[basis] @ amounts)
        stalled = stalled + 1 if now > value - _TINY else 0
        value = now


def phases_of(
    predictor: Predictor, structures: Sequence[Atoms], elements: Mapping[str, Mapping[str, float]]
) -> dict[str, list[tuple[str, float]]]:
    """{head: [(formula, formation energy in eV/atom)]} of competing phases, each predicted as it is.

    Raises:
        GFMError: a structure that no head can predict.
    """
    found: dict[str, list[tuple[str, float]]] = {spec.name: [] for spec in predictor.specs}
    refused: dict[int, list[GFMError]] = {}
    for head, phases in found.items():
        one = Predictor(predictor.model, [head], forces=False)
        one.mixed = predictor.mixed
        table = table_of(elements.get(head, {}))
        for number, outcome in enumerate(one.predict(structures, on_error="yield")):
            if isinstance(outcome, GFMError):
                refused.setdefault(number, []).append(outcome)
                continue
            numbers = structures[number].numbers
            energy = (outcome[head].energy.item() - table[numbers].sum()) / len(numbers)
            phases.append((reduced_formula(numbers), energy))
    for errors in refused.values():
        if len(errors) == len(found):
            raise GFMError(f"phases: {errors[0]}")
    return found


def hulls(phases: Mapping[str, Iterable[tuple[str, float]]]) -> dict[str, Hull]:
    """{head: Hull} of the phases at hand, to which candidates may be added."""
    found = {head: Hull() for head in phases}
    for head, several in phases.items():
        for formula, energy in several:
            found[head].add(formula, energy)
    return found


def _fractions(composition: Mapping[int, int], order: Sequence[int]) -> list[float]:
    total = sum(composition.values())
    return [composition.get(element, 0) / total for element in order]
