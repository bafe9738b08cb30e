"""Fits of few labels that are judged by what they have not seen: ridge regression, Gaussian processes, and how to mix them.

Errors of structures that are left out, with their groups, come in closed form: B_GG^-1 r_G for each group G, with B the identity
less the matrix that takes labels to the values fitted, and r what the fit leaves (Allen, DOI 10.1080/00401706.1974.10489157).  Of
a Gaussian process B is the inverse of its covariance, and r that times the labels (Rasmussen and Williams 2006, eq. 5.12, ISBN
026218253X).  The scales of the columns, and of a process the mean of the labels, are those of all structures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_PARTS = 5  # of which one is left out at most
# Over the number of structures; of columns of spread 1.
_RIDGES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
_TINY = 1e-13  # of a structure without which nothing is known of some column
_LENGTHS = (0.3, 1.0, 3.0, 10.0)  # squared, in medians of the squared distances
_NOISES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # variance of what is no function, over that of the function
# Labels that are farther off than so many times the middle error are wild: misplaced points, not the rare structures of a
# property, where no more than one of twenty is.  Before any fit, off the middle label; then off what a fit says when they are
# left out.  On other structures of the training side of six properties that are no sums, 40 labels, errors of what was not drawn
# stay what they were (0.98 for one); with one label of 40 set 30, 150 or 10,000 times the middle deviation away they come to
# 0.0004 to 0.7.  4 times instead of 10, and any number of them, gains 1 % without such labels (200: 3 %), and loses what is rare.
_FAR, _WILD, _RARE = 50.0, 10.0, 0.05
_CLEAR = 0.9  # times the error of the mean of several, is what one of them alone must come to


def together(groups: np.ndarray) -> list[np.ndarray]:
    """Indices of the structures that are left out together: those of each group, of one with more than a fifth of all in parts of
    structures that follow each other, so that enough is left to judge by."""
    order = np.argsort(groups, kind="stable")
    most = math.ceil(len(groups) / _PARTS)
    found = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return [part for group in found if len(group) for part in np.array_split(group, math.ceil(len(group) / most))]


class Fit:
    """Least squares of labels [n] on parts [n, p] of the columns, each of mean 0 and a spread of the `freedom` of its part (a
    ridge holds those with a larger one back less); the mean is free.  Columns are decomposed once, see `of`."""

    def __init__(self, parts: Sequence[np.ndarray], labels: np.ndarray, freedom: Sequence[float]):
        columns = np.concatenate(parts, axis=1)
        free = np.repeat(freedom, [part.shape[1] for part in parts])
        self._mean, spread = columns.mean(axis=0), columns.std(axis=0)
        self._spread = np.where(spread > 1e-9 * max(1e-300, spread.max()), spread, np.inf) / free
        self._left, self._values, self._right = np.linalg.svd(
            (columns - self._mean) / self._spread, full_matrices=False
        )
        self._take(labels)

    def of(self, labels: np.ndarray) -> Fit:
        """The fit of other labels [n] on the same columns."""
        other = copy.copy(self)
        other._take(labels)
        return other

    def _take(self, labels: np.ndarray) -> None:
        self._offset = labels.mean()
        self._centred = labels - self._offset
        self._inside = self._left.T @ self._centred

    def _kept(self, ridge: float) -> np.ndarray:
        return self._values**2 / (self._values**2 + ridge * len(self._centred))

    def left_out(self, ridge: float, groups: Sequence[np.ndarray]) -> np.ndarray:
        """[n], the error of each structure by the fit to all other groups (but for the scale of the columns)."""
        kept = self._kept(ridge)
        residual = self._centred - self._left @ (kept * self._inside)
        return _over_blocks(residual, self._left, -kept, groups, diagonal=1 + _TINY, constant=-1 / len(residual))

    def weights(self, ridge: float) -> np.ndarray:
        """[p + 1]: of the columns as they were given, and a constant."""
        turned = self._kept(ridge) / np.maximum(self._values, 1e-300) * self._inside
        found = (self._right.T @ turned) / self._spread
        return np.append(found, self._offset - self._mean @ found)


def _over_blocks(
    values: np.ndarray, left: np.ndarray, between: np.ndarray, groups: Sequence[np.ndarray], *, diagonal: float = 0.0,
    constant: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """B_GG^-1 values_G of each group G, [n], with B = left diag(between) left^T + diagonal I + constant; left: [n, p]."""
    found = values / (np.square(left) @ between + diagonal + constant)
    for group in groups:
        if len(group) > 1:
            own = left[group]
            block = (own * between) @ own.T + diagonal * np.eye(len(group)) + constant
            found[group] = np.linalg.solve(block, values[group])
    return found


class Held(NamedTuple):
    """A fit that is held back as predicts best: what it leaves [n] of structures that are left out; weights [p + 1]."""

    residual: np.ndarray
    weights: np.ndarray


def best(fit: Fit, groups: Sequence[np.ndarray]) -> Held:
    """With the ridge that leaves least."""
    errors = {ridge: fit.left_out(ridge, groups) for ridge in _RIDGES}
    ridge = min(errors, key=lambda one: np.abs(errors[one]).mean())
    return Held(errors[ridge], fit.weights(ridge))


class Process(NamedTuple):
    """A Gaussian process on features [n, p]: inverse_lengths [p], weights [n] of its structures, the constant beside them,
    and what it leaves [n] of structures that are left out."""

    inverse_lengths: np.ndarray
    weights: np.ndarray
    constant: float
    residual: np.ndarray


class Likeness:
    """How alike structures are, by features [n, p], at each of several lengths: what a process is made of, decomposed once."""

    def __init__(self, features: np.ndarray):
        spread = features.std(axis=0)
        self._inverse = np.divide(1.0, spread, where=spread > 1e-6 * spread.max(), out=np.zeros_like(spread))
        x = (features - features.mean(axis=0)) * self._inverse
        squares = np.square(x).sum(axis=1)
        distances = np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0)
        apart = distances[distances > 1e-6]
        self._middle = float(np.median(apart)) if len(apart) else 1.0
        self._parts = [
            (length, *np.linalg.eigh(1 + np.exp(-distances / (length * self._middle)))) for length in _LENGTHS
        ]

    def process(self, labels: np.ndarray, groups: Sequence[np.ndarray]) -> Process:
        """One whose covariance is one and a Gaussian (Rasmussen and Williams, eq. 2.23), with the length and the noise that leave
        least.

        Args:
            labels: [n].  groups: see `together`.
        """
        offset = labels.mean()
        best: tuple[float, float, np.ndarray, np.ndarray] | None = None
        for length, values, vectors in self._parts:
            inside = vectors.T @ (labels - offset)
            for noise in _NOISES:
                weights = vectors @ (inside / (values + noise))
                residual = _over_blocks(weights, vectors, 1 / (values + noise), groups)
                error = float(np.abs(residual).mean())
                if best is None or error < best[0]:
                    best = error, length, weights, residual
        assert best is not None
        _, length, weights, residual = best
        inverse_lengths = self._inverse / np.sqrt(length * self._middle)
        return Process(inverse_lengths, weights, float(offset + weights.sum()), residual)


def within(labels: np.ndarray) -> np.ndarray:
    """Labels [n] without those that lie far outside all others: they are moved to where far begins."""
    middle = np.median(labels)
    return labels - tamed_off(labels - middle, _FAR)


def tamed(labels: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Labels [n] of which none is wild: those far off what a fit says of structures that are left out are moved towards that.

    A fit to them is one of Huber's (DOI 10.1214/aoms/1177703732, by modified residuals).

    Args:
        residual: [n], label less what is said.
    """
    return labels - tamed_off(residual, _WILD)


def tamed_off(residual: np.ndarray, times: float) -> np.ndarray:
    """[n], what is taken off those beyond so many times the middle size (of half zeros, of the others); nothing where they are
    many."""
    size = np.abs(residual)
    most = times * float(np.median(size) or np.median(size[size > 0] if size.any() else size))
    if (size > most).sum() > max(1, _RARE * len(size)):
        return np.zeros_like(residual)
    return residual - np.clip(residual, -most, most)


def shares_of(residuals: Sequence[np.ndarray]) -> list[float]:
    """Of several fits, from the errors [n] of structures that each leaves out: the same of all, but where one alone is clearly
    better than their mean."""
    mean = np.abs(np.mean(residuals, axis=0)).mean()
    alone = [np.abs(residual).mean() for residual in residuals]
    if min(alone) < _CLEAR * mean:
        return [float(number == np.argmin(alone)) for number in range(len(residuals))]
    return [1 / len(residuals)] * len(residuals)
