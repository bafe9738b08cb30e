"""The loss: per-atom energy, forces and stress of a batch whose structures belong to different heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gfm_calc.encoders.base import scatter_sum
from gfm_calc.model import GFMModel, ModelInputs

_SOFT = 1e-6  # under the root of a norm, so that a perfect prediction has a gradient


class Labels(NamedTuple):
    """Targets of a batch (N atoms, B structures): atom_head [N], the head of each atom's structure; energy [B] in eV,
    reference energies subtracted; forces [N, 3] eV/Å; stress [B, 3, 3] eV/Å³; atoms [B]; volume [B] Å³; and the weight
    of every label, 0 where it is missing: energy_weight [B], force_weight [N], stress_weight [B]."""

    atom_head: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    atoms: Tensor
    volume: Tensor
    energy_weight: Tensor
    force_weight: Tensor
    stress_weight: Tensor


def batch_loss(model: GFMModel, vectors: Tensor, inputs: ModelInputs, labels: Labels) -> tuple[Tensor, Tensor]:
    """The loss and its parts.

    Energies enter by their absolute error an atom, forces by the length of the error vector, stress by its Frobenius
    norm: errors are not squared, so that the strained frames do not drown the others.

    Args:
        vectors: [E, 3], a leaf that requires its gradient; takes the place of `inputs.edge_vector`.

    Returns:
        loss [], parts [3]: the unweighted sums of energy, force and stress errors.
    """
    energies = model.atom_energies(inputs._replace(edge_vector=vectors))
    own = energies.gather(0, labels.atom_head.unsqueeze(0)).squeeze(0)
    (gradient,) = torch.autograd.grad(own.sum(), vectors, create_graph=True)
    source, target = inputs.edge_index[0], inputs.edge_index[1]
    atoms, structures = own.shape[0], labels.energy.shape[0]
    forces = scatter_sum(gradient, target, atoms) - scatter_sum(gradient, source, atoms)
    totals = scatter_sum(own, inputs.batch, structures)
    outer = (vectors.unsqueeze(2) * gradient.unsqueeze(1)).reshape(-1, 9)
    virial = scatter_sum(outer, inputs.batch.index_select(0, target), structures).view(-1, 3, 3)

    energy_error = ((totals - labels.energy) / labels.atoms).abs() * labels.energy_weight
    force_error = ((forces - labels.forces).square().sum(-1) + _SOFT).sqrt() * labels.force_weight
    stress_error = virial / labels.volume.view(-1, 1, 1) - labels.stress
    stress_error = (stress_error.square().sum((1, 2)) + _SOFT).sqrt() * labels.stress_weight
    parts = torch.stack([energy_error.sum(), force_error.sum(), stress_error.sum()])
    return parts.sum(), parts.detach()
