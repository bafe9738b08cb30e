"""Training structures squeezed to where no data are: there errors are large, and a network that has not been told expects any.

How large is not known, only that they are no smaller than where the model has learnt: that is a bound L.  Were errors distributed
exponentially about u, one would be at least L with the chance exp(-L/u); its logarithm is what the fit adds for each bound.  It
presses where u is smaller than L, and hardly where u is larger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from gfm_calc.data.sampling import spread_indices
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel
from gfm_calc.train.preparation import Head
from gfm_calc.train.residuals import Residuals, seen
from gfm_calc.uncertainty import expected_errors

_FACTORS = (0.55, 0.7)  # of lengths, drawn between: closer than any data come, of molecules, too
_BOUND = 0.99  # quantile of the errors on the training side
_STRUCTURES, _ATOMS = 200, 3000  # of bounds, at most
_JUDGED_AT, _JUDGED = (0.8, 0.6), 16  # factors and training structures that say whether errors vanish


def bounds(model: GFMModel, head: Head, train: Residuals, seed: int) -> Residuals:
    """Squeezed structures of the training side, whose "errors" are what theirs are at least: those that only one of a hundred of
    `train` surpasses."""
    count = min(_STRUCTURES, int(_ATOMS / head.atoms) + 1)
    factors = np.random.default_rng(seed).uniform(*_FACTORS, count)
    structures = [squeezed(atoms, factor) for atoms, factor in zip(_some(head, count), factors)]
    x, gate = _seen(model, structures)
    sizes = torch.tensor([len(atoms) for atoms in structures])
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    forces = torch.full((len(x),), _quantile(train.forces), dtype=torch.float64)
    forces[gate == 0] = torch.nan  # an atom by itself has no errors
    energy = torch.full((len(sizes),), _quantile(train.energy), dtype=torch.float64)
    energy[scatter_sum(gate, owner, len(sizes)) == 0] = torch.nan
    return Residuals(x, gate, owner, sizes, forces, energy)


def vanishes(model: GFMModel, head: Head, weights: Sequence[Tensor]) -> bool:
    """Whether the expected force errors of some training structures are smaller when these are squeezed: an error that is not
    expected is worse than none that is known."""
    structures, means = _some(head, _JUDGED), []
    for factor in (1.0, *_JUDGED_AT):
        x, gate = _seen(model, [squeezed(atoms, factor) for atoms in structures])
        means.append(float(expected_errors(x, gate, weights)[..., 0].mean()))
    return min(means[1:]) < means[0]


def squeezed(atoms: Atoms, factor: float) -> Atoms:
    """All lengths times `factor`."""
    changed = atoms.copy()
    changed.set_cell(atoms.cell.array * factor)
    changed.positions = atoms.positions * factor
    return changed


def _some(head: Head, count: int) -> list[Atoms]:
    rows = head.sides["train"][spread_indices(len(head.sides["train"]), count)]
    return [head.dataset.record(int(row)).structure() for row in rows]


def _seen(model: GFMModel, structures: Sequence[Atoms]) -> tuple[Tensor, Tensor]:
    """`residuals.seen` of a structure after the other: squeezed ones have many neighbours."""
    graphs = (GraphBatch.from_graphs([AtomicGraph.build(atoms, model.config.cutoff)]) for atoms in structures)
    xs, gates = zip(*(seen(model, graph) for graph in graphs))
    return torch.cat(xs), torch.cat(gates)


def _quantile(errors: Tensor) -> float:
    known = errors[torch.isfinite(errors)]
    return float(np.quantile(known.numpy(), _BOUND)) if len(known) else torch.nan
