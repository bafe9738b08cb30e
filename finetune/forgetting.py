"""What fine-tuning did to the old heads: how far their predictions have moved on structures made for the purpose.

The structures are those of `replay` with another seed, so no run trains on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gfm_calc.errors import GFMError
from gfm_calc.finetune.replay import labelled, structures
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

SEED, COUNT = 990001, 48


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one head.

    Attributes:
        head: its name.  structures: how many were compared.
        energy: mean absolute change, eV/atom.  forces: of a component, eV/Å.  Of a head of a property: NaN.
        value: mean absolute change of the property, in the unit of its card (of a class: of the probability); NaN of energies.
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
    value: float = math.nan


def measure(before: GFMModel, after: GFMModel, heads: Sequence[str]) -> list[Drift]:
    """How far the predictions of the heads moved from one model to the other."""
    found = []
    for head in heads:
        if before.specs[head].kind != "energy":
            found += _of_property(before, after, head)
            continue
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


def _of_property(before: GFMModel, after: GFMModel, head: str) -> list[Drift]:
    made = structures(before.specs[head], COUNT, SEED)
    values = []
    for model in (before, after):
        stream = Predictor(model, [head], strict=False).predict(made, on_error="yield")
        values.append([None if isinstance(row, GFMError) else row[head].value for row in stream])
    moved = [float((two - one).abs().mean()) for one, two in zip(*values) if one is not None and two is not None]
    if not moved:
        return []
    nan = math.nan
    value = float(np.mean(moved))
    return [Drift(head=head, structures=len(moved), energy=nan, forces=nan, error=nan, loss=nan, value=value)]


def card_error(model: GFMModel, head: str) -> float:
    """Mean absolute error of a head's forces by its card, eV/Å; NaN where it does not say."""
    return 1e-3 * model.specs[head].test_errors.get("forces_mae_mev_per_a", math.nan)
