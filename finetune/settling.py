"""Energies of old heads after the encoder has moved: what each element adds is set so that they come closest to what they were.

Replay holds forces in place better than the level of energies, of which every structure has but one.  What is left differs
mostly by composition, and that can be taken back with hardly a change of forces: none but on atoms that are about to be alone,
where the gate of the head closes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from ase.data import chemical_symbols as SYMBOLS

from gfm_calc.data.store import Dataset
from gfm_calc.finetune.exemplars import EXEMPLAR
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

_ROUNDS = 10  # of least squares in which what is off by more than the middle one weighs less: violent structures are off by much
_RIDGE = 0.01  # structures' worth of zeros for each element: one that hardly occurs keeps its shift


def settle(model: GFMModel, replay: Mapping[str, Dataset]) -> None:
    """Change the shifts of heads of energies in place.

    Args:
        replay: head -> structures with the energies that it gave before; its exemplars count alone, where there are any: the
            others are of another kind, and more.
    """
    for head, dataset in replay.items():
        records = list(dataset.read(np.arange(len(dataset)), names=True).records())
        records = [record for record in records if record.source == EXEMPLAR] or records
        stream = Predictor(model, [head], strict=False).predict(record.structure() for record in records)
        counts, changes = [], []
        for record, row in zip(records, stream):
            energy = row[head].energy  # type: ignore[index]
            assert energy is not None
            counts.append(np.bincount(record.atomic_numbers, minlength=len(SYMBOLS)) / len(record))
            changes.append((energy.item() - record.energy) / len(record))
        found = of_elements(np.array(counts), np.array(changes))
        with torch.no_grad():
            shift = model.energy_stack.shift[model.energy_heads.index(head)]
            shift -= torch.from_numpy(found[: len(shift)]).to(shift)


def of_elements(fractions: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """What each element [Z] adds to the changes [n], in their unit.

    The fit is Huber's (DOI 10.1214/aoms/1177703732), which a few wild ones do not bend.

    Args:
        fractions: [n, Z] of the atoms.
    """
    there = np.flatnonzero(fractions.any(axis=0))
    columns = fractions[:, there]
    found = np.zeros(len(there))
    for _ in range(_ROUNDS):
        off = np.abs(changes - columns @ found)
        middle = max(float(np.median(off)), 1e-9)
        weights = middle / np.maximum(off, middle)
        weighted = columns * weights[:, None]
        found = np.linalg.solve(weighted.T @ columns + _RIDGE * np.eye(len(there)), weighted.T @ changes)
    whole = np.zeros(fractions.shape[1])
    whole[there] = found
    return whole
