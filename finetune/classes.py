"""How well a class is told: the area under the receiver operating characteristic."""

from __future__ import annotations

import numpy as np

from gfm_calc.data.loader import Loader
from gfm_calc.data.store import Selection
from gfm_calc.model import GFMModel
from gfm_calc.ranks import roc_auc


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
