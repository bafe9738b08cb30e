"""What fine-tuning did to the old heads: how far their predictions have moved.

Of a packaged head on structures of its own kind that nothing was trained on (see `exemplars`), of others on those that
`replay.made` gives with another seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from gfm_calc.errors import GFMError
from gfm_calc.finetune.exemplars import exemplars
from gfm_calc.finetune.replay import label, made
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

SEED, COUNT = 990001, 48


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one head.

    Attributes:
        head: its name.  structures: how many were compared.  held_out: they are of its own kind, see `exemplars`.
        energy: mean absolute change, eV/atom.  forces: of a component, eV/Å.  Of a head of a property: NaN.
        value: mean absolute change of the property, in the unit of its card (of a class: of the probability); NaN of energies.
        energy_error, error: mean absolute errors of the head's energies, eV/atom, and forces, eV/Å, before, by its card; NaN
            where the card does not say.
        energy_loss, loss: what the changes add to those errors where the two have nothing to do with each other, as a fraction
            of them: sqrt(1 + (change / error)²) - 1; NaN without error.
    """

    head: str
    structures: int
    held_out: bool
    energy: float = math.nan
    forces: float = math.nan
    energy_error: float = math.nan
    error: float = math.nan
    energy_loss: float = math.nan
    loss: float = math.nan
    value: float = math.nan


def measure(before: GFMModel, after: GFMModel, heads: Sequence[str]) -> list[Drift]:
    """How far the predictions of the heads moved from one model to the other."""
    found = []
    for head in heads:
        if before.specs[head].kind != "energy":
            found += _of_property(before, after, head)
            continue
        probe, held_out = _probe(before, head)
        records = label(before, head, probe)
        stream = Predictor(after, [head], strict=False).predict(record.structure() for record in records)
        moved = [(record, row[head]) for record, row in zip(records, stream)]  # type: ignore[index]
        if not moved:
            continue
        energy = float(np.mean([abs(one.energy.item() - record.energy) / len(record) for record, one in moved]))
        forces = float(
            np.concatenate([np.abs(one.forces.numpy() - record.forces).ravel() for record, one in moved]).mean()
        )
        energy_error, error = card_error(before, head, "energy"), card_error(before, head)
        found.append(
            Drift(
                head=head, structures=len(moved), held_out=held_out, energy=energy, forces=forces, energy_error=energy_error,
                error=error, energy_loss=_added(energy, energy_error), loss=_added(forces, error),
            )
        )  # fmt: skip
    return found


def _added(change: float, error: float) -> float:
    return math.sqrt(1 + (change / error) ** 2) - 1 if error > 0 else math.nan


def _probe(model: GFMModel, head: str) -> tuple[list[Atoms], bool]:
    """Structures for a head, and whether they are held-out ones of its own kind."""
    spec = model.specs[head]
    own = exemplars(spec, "test")
    return (own, True) if own else (made(spec, COUNT, SEED), False)


def _of_property(before: GFMModel, after: GFMModel, head: str) -> list[Drift]:
    probe = made(before.specs[head], COUNT, SEED)
    values = []
    for model in (before, after):
        stream = Predictor(model, [head], strict=False).predict(probe, on_error="yield")
        values.append([None if isinstance(row, GFMError) else row[head].value for row in stream])
    moved = [float((two - one).abs().mean()) for one, two in zip(*values) if one is not None and two is not None]
    if not moved:
        return []
    return [Drift(head=head, structures=len(moved), held_out=False, value=float(np.mean(moved)))]


_CARD = {"energy": "energy_mae_mev_per_atom", "forces": "forces_mae_mev_per_a"}


def card_error(model: GFMModel, head: str, term: str = "forces") -> float:
    """Mean absolute error of a head's forces by its card, eV/Å, or of its "energy", eV/atom; NaN where it does not say."""
    return 1e-3 * model.specs[head].test_errors.get(_CARD[term], math.nan)
