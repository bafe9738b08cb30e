"""What fine-tuning did to the old heads: how far their predictions have moved on structures made for the purpose.

The structures are those of `replay` with another seed, so no run trains on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gfm_calc.finetune.replay import labelled
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

SEED, COUNT = 990001, 48


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one head.

    Attributes:
        head: its name.  structures: how many were compared.
        energy: mean absolute change, eV/atom.  forces: of a component, eV/Å.
        error: mean absolute error of the head's forces before, eV/Å, by its card; NaN where the card does not say.
        loss: what the change adds to that error where the two have nothing to do with each other, as a fraction of it:
            sqrt(1 + (forces / error)²) - 1; NaN without `error`.
    """

    head: str
    structures: int
    energy: float
    forces: float
    error: float
    loss: float


def measure(before: GFMModel, after: GFMModel, heads: Sequence[str]) -> list[Drift]:
    """How far the predictions of the heads moved from one model to the other."""
    found = []
    for head in heads:
        records = labelled(before, head, COUNT, SEED)
        stream = Predictor(after, [head], strict=False).predict(record.structure() for record in records)
        moved = [(record, row[head]) for record, row in zip(records, stream)]  # type: ignore[index]
        if not moved:
            continue
        energy = np.mean([abs(one.energy.item() - record.energy) / len(record) for record, one in moved])
        forces = np.concatenate([np.abs(one.forces.numpy() - record.forces).ravel() for record, one in moved]).mean()
        error = card_error(before, head)
        loss = math.sqrt(1 + (forces / error) ** 2) - 1 if error > 0 else math.nan
        found.append(
            Drift(head=head, structures=len(moved), energy=float(energy), forces=float(forces), error=error, loss=loss)
        )
    return found


def card_error(model: GFMModel, head: str) -> float:
    """Mean absolute error of a head's forces by its card, eV/Å; NaN where it does not say."""
    return 1e-3 * model.specs[head].test_errors.get("forces_mae_mev_per_a", math.nan)
