"""How well one list of numbers puts another in order."""

from __future__ import annotations

import math

import numpy as np

_FEWEST = 3  # pairs; two are always in order, or against it


def rank_correlation(first: np.ndarray, second: np.ndarray, *, fewest: int = _FEWEST) -> float:
    """Spearman's (DOI 10.2307/1412159) of two lists [n]; NaN of fewer than so many pairs, or where one list is constant."""
    from scipy.stats import spearmanr

    if len(first) < fewest or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(spearmanr(first, second).statistic)


def roc_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """How often a yes gets a higher score than a no, ties counting half (Mann and Whitney, DOI 10.1214/aoms/1177730491).

    Args:
        truth: [n] of 0 and 1.  scores: [n].

    Returns:
        0.5 for guesses, 1 where all are told; NaN where there is only one answer.
    """
    yes = truth > 0.5
    positive, negative = int(yes.sum()), int((~yes).sum())
    if not positive or not negative:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[place]
    return float((ranks[yes].sum() - positive * (positive + 1) / 2) / (positive * negative))


def roc_curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What every threshold gives, from (0, 0) to (1, 1).

    Args:
        truth: [n] of 0 and 1, both of which must occur.  scores: [n].

    Returns:
        (false positive rate [k + 1], true positive rate [k + 1]) for k different scores, the highest first.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    yes = np.cumsum(truth[order] > 0.5)[ends]
    no = ends + 1 - yes
    return np.append(0.0, no / no[-1]), np.append(0.0, yes / yes[-1])
