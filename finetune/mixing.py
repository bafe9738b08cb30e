"""Of many fits to few labels, the mean of the best (see `fits` for one of them): what `readout` writes as a head.

Each old head gives a least-squares fit with its hidden units; the four that predict best what they have not seen are averaged,
for the best one of many owes its place to chance.  Two Gaussian processes, which err elsewhere, take part where structures are
compared.  Labels that say less than they seem to are dealt with: wild ones, and zeros of what is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gfm_calc.finetune.described import Described
from gfm_calc.finetune.fits import Fit, Likeness, Process, best, shares_of, tamed, within
from gfm_calc.heads import WIDTHS

# Of what elements add to a sum: nothing holds back the last one, but with few labels many elements are rare, and layers know
# elements as well.  Of what they add to a mean, the first.
FREEDOMS = (0.3, 1.0, 3.0, 30.0, 1e3)
# Of the energy, one column.  Errors of training labels that are left out, without it and with 3, 30 and 300 of it: 40 labels of
# U0 of QM9 9.4, 8.7, 7.4 and 7.3 meV an atom (200: 6.44, 6.41, 6.34, 6.34), of its gap 778, 776, 758 and 758 meV; of formation
# energies 0.326, 0.319, 0.305 and 0.305 eV an atom (200: 0.119, 0.114, 0.110, 0.110).
_FREEDOM_OF_ENERGY = 30.0
_TAMINGS, _WORTH = 5, 0.95  # rounds of taming wild labels; of the error of the others before, what makes one worth it
_HELPFUL = 0.98  # of the error without a first guess, what it must come to: it costs nothing
# Rounds of moving zeros.  1,500 band gaps of the training side, half of them 0, errors of what was not drawn over those of fits
# to the labels as they are, with predictions below 0 cut off, and with 1, 2, 4 and 8 rounds: 40 labels 0.98, 0.96, 0.95, 0.94
# and 0.94; 200 labels 0.91, 0.89, 0.88, 0.87 and 0.86; 800 labels 0.92, 0.89, 0.88, 0.87 and 0.86.
_MOVES = 8
_SPARED = 1  # hidden units of each head that make room for a linear function, see `readout`


class OfHead(NamedTuple):
    """The fit with hidden units of one head: its number, which units, and as `fits.Held`."""

    head: int
    kept: np.ndarray
    residual: np.ndarray
    weights: np.ndarray

    @property
    def error(self) -> float:
        return float(np.abs(self.residual).mean())


class Mixed(NamedTuple):
    """Fits and processes that are to be added up.

    Attributes:
        fits: the best ones with hidden units of a head.  processes: on the structures that are judged.
        shares: of the mean of the fits, and of each process.
        guess: [2 + 1], a linear function of the orbitals and a constant that they come on top of; None: of nothing.
        residual: [n], what all leave of labels that are left out.
        labels: [n], without wild ones.  calm: [n], whether that is what was given.
    """

    fits: list[OfHead]
    processes: list[Process]
    shares: list[float]
    guess: np.ndarray | None
    residual: np.ndarray
    labels: np.ndarray
    calm: np.ndarray

    def error(self, judged: np.ndarray) -> float:
        """Mean absolute error of those judged whose labels are calm."""
        return float(np.abs(self.residual[judged[self.calm[judged]]]).mean())


def mix(seen: Described, *, is_sum: bool, compares: bool, tames: bool) -> Mixed:
    """The best that is found.

    Args:
        is_sum: over atoms.  compares: with Gaussian processes.
        tames: labels that are wild; in a sum what a rare element adds is far off, and right.
    """
    known = _Known(seen, freedom_of(seen) if is_sum else FREEDOMS[0], compares=compares)
    plain = _fitted(seen, known, heads=WIDTHS, tames=tames)
    if not seen.orbitals.shape[1]:
        return plain
    held = best(Fit([seen.orbitals], plain.labels, [1.0]), seen.groups)
    taken = plain.labels - held.residual
    beyond = _fitted(seen.less(taken), known, heads=WIDTHS - 1, tames=tames)  # the guess takes the room of one
    both = seen.judged[(plain.calm & beyond.calm)[seen.judged]]
    if np.abs(beyond.residual[both]).mean() < _HELPFUL * np.abs(plain.residual[both]).mean():
        return beyond._replace(guess=held.weights, labels=beyond.labels + taken)
    return plain


class _Known:
    """What is known of structures, ready to be fitted to any labels."""

    def __init__(self, seen: Described, freedom: float, *, compares: bool):
        self._seen = seen
        self._fits = [_columns(number, seen, freedom) for number in range(len(seen.output))]
        self._alike = [Likeness(x[seen.judged]) for x in (seen.layers, seen.features)] if compares else []

    def mixed(self, labels: np.ndarray, given: np.ndarray, *, heads: int) -> Mixed:
        """Of so many heads; what it leaves is of the labels [n] that were given, of which others may be fitted."""
        fits = sorted((one.of(labels, self._seen.groups) for one in self._fits), key=lambda one: one.error)[:heads]
        residual, judged = np.mean([one.residual for one in fits], axis=0), self._seen.judged
        processes = [one.process(labels[judged], self._seen.judged_groups) for one in self._alike]
        residuals = [residual[judged], *(one.residual for one in processes)]
        shares = shares_of(residuals)
        residual[judged] = sum(share * one for share, one in zip(shares, residuals))
        return Mixed(fits, processes, shares, None, given - labels + residual, labels, labels == given)


def _fitted(seen: Described, known: _Known, *, heads: int, tames: bool) -> Mixed:
    def mixed(labels: np.ndarray) -> Mixed:
        return known.mixed(labels, seen.labels, heads=heads)

    return _above_the_least(_without_wild(seen, mixed, tames=tames), seen, mixed)


def _without_wild(seen: Described, mixed: Callable[[np.ndarray], Mixed], *, tames: bool) -> Mixed:
    """A fit to labels of which none is wild (see `fits`); what it leaves is of the labels as they are."""
    found = mixed(seen.labels)
    for number in range(_TAMINGS if tames else 0):
        calm = within(seen.labels) if number == 0 else tamed(seen.labels, _cut(found, seen).residual)
        others = calm == seen.labels
        again = found if others.all() else mixed(calm)
        after, before = (np.abs(_cut(one, seen).residual[others]).mean() for one in (again, found))
        if after < _WORTH * before:
            found = again
        elif number:
            break
    return found


def _cut(found: Mixed, seen: Described) -> Mixed:
    """The same, with what is said of structures that are left out no smaller than it can be."""
    return found._replace(residual=seen.labels - np.maximum(seen.labels - found.residual, seen.least))


def _above_the_least(found: Mixed, seen: Described, mixed: Callable[[np.ndarray], Mixed]) -> Mixed:
    """The fit where values below the least one there can be count as that, and labels at it say no more than "not above".

    Tobit regression (Tobin, DOI 10.2307/1907382) by steps of the EM algorithm (Dempster et al., DOI
    10.1111/j.2517-6161.1977.tb01600.x): labels at the least move to where a fit without them puts them below it.

    Args:
        found: a fit to labels of which none is wild.
    """
    if np.isinf(seen.least).all():
        return found
    result, last, moves = _cut(found, seen), found, found.calm & (seen.labels <= seen.least)
    for _ in range(_MOVES):
        last = mixed(np.where(moves, np.minimum(seen.labels - last.residual, seen.least), found.labels))
        again = _cut(last, seen)._replace(labels=found.labels, calm=found.calm)
        if not again.error(seen.judged) < result.error(seen.judged):
            break
        result = again
    return result


def freedom_of(seen: Described) -> float:
    """Of what elements add, beside the layers: the one that leaves least."""
    errors = {
        freedom: np.abs(
            best(Fit([seen.layers, seen.composition], seen.labels, [1.0, freedom]), seen.groups).residual
        ).mean()
        for freedom in FREEDOMS
    }
    return min(errors, key=errors.__getitem__)


class _Columns(NamedTuple):
    """What is known with the units of one head: its number, which units they are, with which weights they add up to its energy,
    and a fit on them, the layers, the composition and the energy."""

    head: int
    kept: np.ndarray
    output: np.ndarray
    fit: Fit

    def of(self, labels: np.ndarray, groups: Sequence[np.ndarray]) -> OfHead:
        """The fit to labels [n]; groups: that are left out together."""
        residual, weights = best(self.fit.of(labels), groups)
        weights[: len(self.kept)] += weights[-2] * self.output  # the energy is a sum of the units
        return OfHead(self.head, self.kept, residual, np.delete(weights, -2))


def _columns(number: int, seen: Described, freedom: float) -> _Columns:
    units = seen.hidden[:, number]
    kept = _widest(units, units.shape[1] - _SPARED)
    output = seen.output[number, kept]
    parts = [units[:, kept], seen.layers, seen.composition, units[:, kept] @ output[:, None]]
    return _Columns(number, kept, output, Fit(parts, seen.labels, [1.0, 1.0, freedom, _FREEDOM_OF_ENERGY]))


def _widest(units: np.ndarray, count: int) -> np.ndarray:
    """The columns [n, K] with the largest spreads, ascending."""
    return np.sort(np.argsort(-units.std(axis=0), kind="stable")[:count])
