"""How well a class is told: the area under the receiver operating characteristic."""

from __future__ import annotations

import numpy as np

from gfm_calc.data.loader import Loader
from gfm_calc.data.store import Selection
from gfm_calc.model import GFMModel


def answers(model: GFMModel, head: str, structures: Selection) -> tuple[np.ndarray, np.ndarray]:
    """(truth [n] of 0 and 1, probability of yes [n]) of the structures that have a label."""
    truth, found = [], []
    for batch in Loader([structures], model.config.cutoff).once():
        value = model.predict(batch.graph, [head])[head].value
        assert value is not None
        truth.append(batch.value[:, 0].numpy())
        found.append(value.numpy())
    labels, scores = np.concatenate(truth), np.concatenate(found)
    return labels[np.isfinite(labels)], scores[np.isfinite(labels)]


def auc_of(model: GFMModel, head: str, structures: Selection) -> float:
    """`roc_auc` of a head on labelled structures."""
    return roc_auc(*answers(model, head, structures))


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
