"""Of many fits to few labels, the mean of the best (see `fits` for one of them): what `readout` writes as a head.

Each old head gives a least-squares fit with its hidden units; the four that predict best what they have not seen are averaged,
for the best one of many owes its place to chance.  Two Gaussian processes, which err elsewhere, take part where structures are
compared.  Labels that say less than they seem to are dealt with: wild ones, and zeros of what is never negative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gfm_calc.finetune.described import Described
from gfm_calc.finetune.fits import Fit, Process, best, process_of, shares_of, tamed, within
from gfm_calc.heads import WIDTHS

# Of what elements add to a sum: nothing holds back the last one, but with few labels many elements are rare, and layers know
# elements as well.  Of what they add to a mean, the first.
FREEDOMS = (0.3, 1.0, 3.0, 30.0, 1e3)
# Of the energy, one column.  Errors of training labels that are left out, without it and with 3, 30 and 300 of it: 40 labels of
# U0 of QM9 9.4, 8.7, 7.4 and 7.3 meV an atom (200: 6.44, 6.41, 6.34, 6.34), of its gap 778, 776, 758 and 758 meV; of formation
# energies 0.326, 0.319, 0.305 and 0.305 eV an atom (200: 0.119, 0.114, 0.110, 0.110).
_FREEDOM_OF_ENERGY = 30.0
_TAMINGS = 5  # rounds of taming wild labels
_WORTH = 0.95  # of the error before, what makes taming, or a first guess, worth it
# Rounds of moving zeros.  1,500 band gaps of the training side, half of them 0, errors of what was not drawn over those of fits
# to the labels as they are, with predictions below 0 cut off, and with 1, 2 and 4 rounds: 40 labels 0.98, 0.96, 0.95, 0.94;
# 200 labels 0.91, 0.89, 0.88, 0.87.
_MOVES = 3
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
    freedom = freedom_of(seen) if is_sum else FREEDOMS[0]

    def mixed(labels: np.ndarray, of: Described, heads: int) -> Mixed:
        found = _mixed(of._replace(labels=labels), heads=heads, freedom=freedom, compares=compares)
        return found._replace(residual=of.labels - labels + found.residual, calm=labels == of.labels)

    def fitted(of: Described, heads: int) -> Mixed:
        found = _without_wild(of, lambda labels: mixed(labels, of, heads), tames=tames)
        return _above_the_least(found, of, lambda labels: mixed(labels, of, heads))

    plain = fitted(seen, WIDTHS)
    if not seen.orbitals.shape[1]:
        return plain
    held = best(Fit([seen.orbitals], plain.labels, [1.0]), seen.groups)
    taken = plain.labels - held.residual
    beyond = fitted(seen.less(taken), WIDTHS - 1)  # the guess takes the room of one
    if beyond.error(seen.judged) < _WORTH * plain.error(seen.judged):
        return beyond._replace(guess=held.weights, labels=beyond.labels + taken)
    return plain


def _without_wild(seen: Described, mixed: Callable[[np.ndarray], Mixed], *, tames: bool) -> Mixed:
    """A fit to labels of which none is wild (see `fits`); what it leaves is of the labels as they are."""
    found = mixed(seen.labels)
    for number in range(_TAMINGS if tames else 0):
        calm = within(seen.labels) if number == 0 else tamed(seen.labels, found.residual)
        others = calm == seen.labels
        again = found if others.all() else mixed(calm)
        if np.abs(again.residual[others]).mean() < _WORTH * np.abs(found.residual[others]).mean():
            found = again
        elif number:
            break
    return found


def _above_the_least(found: Mixed, seen: Described, mixed: Callable[[np.ndarray], Mixed]) -> Mixed:
    """The fit where values below the least one there can be count as that, and labels at it say no more than "not above".

    Tobit regression (Tobin, DOI 10.2307/1907382) by steps of the EM algorithm (Dempster et al., DOI
    10.1111/j.2517-6161.1977.tb01600.x): labels at the least move to where a fit without them puts them below it.

    Args:
        found: a fit to labels of which none is wild.
    """
    if np.isinf(seen.least).all():
        return found

    def cut(one: Mixed) -> Mixed:
        said = np.maximum(seen.labels - one.residual, seen.least)
        return one._replace(residual=seen.labels - said, labels=found.labels, calm=found.calm)

    result, last = cut(found), found
    for _ in range(_MOVES):
        said = seen.labels - last.residual
        last = mixed(np.where(seen.labels <= seen.least, np.minimum(said, seen.least), found.labels))
        if not cut(last).error(seen.judged) < result.error(seen.judged):
            break
        result = cut(last)
    return result


def _mixed(seen: Described, *, heads: int, freedom: float, compares: bool) -> Mixed:
    fits = sorted((_of_head(number, seen, freedom) for number in range(len(seen.output))), key=lambda one: one.error)
    fits = fits[:heads]
    residual = np.mean([one.residual for one in fits], axis=0)
    processes: list[Process] = []
    judged = seen.judged
    if compares:
        pairs = seen.layers, seen.features
        processes = [process_of(x[judged], seen.labels[judged], seen.judged_groups) for x in pairs]
    residuals = [residual[judged], *(one.residual for one in processes)]
    shares = shares_of(residuals)
    residual[judged] = sum(share * one for share, one in zip(shares, residuals))
    return Mixed(fits, processes, shares, None, residual, seen.labels, np.ones(len(residual), bool))


def freedom_of(seen: Described) -> float:
    """Of what elements add, beside the layers: the one that leaves least."""
    errors = {
        freedom: np.abs(
            best(Fit([seen.layers, seen.composition], seen.labels, [1.0, freedom]), seen.groups).residual
        ).mean()
        for freedom in FREEDOMS
    }
    return min(errors, key=errors.__getitem__)


def _of_head(number: int, seen: Described, freedom: float) -> OfHead:
    units = seen.hidden[:, number]
    kept = _widest(units, units.shape[1] - _SPARED)
    output = seen.output[number, kept]
    parts = [units[:, kept], seen.layers, seen.composition, units[:, kept] @ output[:, None]]
    fit = Fit(parts, seen.labels, [1.0, 1.0, freedom, _FREEDOM_OF_ENERGY])
    residual, weights = best(fit, seen.groups)
    weights[: len(kept)] += weights[-2] * output  # the energy is a sum of the units
    return OfHead(number, kept, residual, np.delete(weights, -2))


def _widest(units: np.ndarray, count: int) -> np.ndarray:
    """The columns [n, K] with the largest spreads, ascending."""
    return np.sort(np.argsort(-units.std(axis=0), kind="stable")[:count])
