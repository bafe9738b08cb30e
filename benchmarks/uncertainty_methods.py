"""Other ways to guess a model's errors, to compare its own with: each fitted on training structures of a head.

    force         the size of the force itself; of the energy: its mean over atoms
    distance      mean distance to the three nearest training atoms in the encoder's scalars; of the energy: its mean
    posterior     8 last layers drawn from their Laplace posterior (DOI 10.1088/2632-2153/ad805f), about the model's own
    committee     8 last layers, each fitted to the residuals of a bootstrap of the training structures
    expected      the model's own (see `gfm_calc.uncertainty`)

The spread of last layers is taken from their forces, a backward pass each, and from their energies an atom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gfm_calc.data.loader import LabelledBatch
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.model import GFMModel

METHODS = ("expected", "committee", "posterior", "distance", "force")
_MEMBERS = 8
_NEIGHBORS, _REFERENCES = 3, 4000
_RIDGE = 1e-3  # of the mean eigenvalue
_SOFT = 0.3  # eV/Å: violent forces count less, as in training


class Known(NamedTuple):
    """What a method may look at: scalars [N, F], activations of the last layer [N, K], forces [N, 3] and energy [B] of the
    model, batch [N], atoms [B], and the derivatives of the forces by the last layer, [N, 3, K], or by members, [N, 3, M]."""

    scalars: Tensor
    activations: Tensor
    forces: Tensor
    energy: Tensor
    batch: Tensor
    atoms: Tensor
    slopes: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Over the atoms of each structure, [B, ...]."""
        count = self.atoms.view(-1, *[1] * (values.ndim - 1))
        return scatter_sum(values, self.batch, len(self.atoms)) / count


def look(model: GFMModel, batch: LabelledBatch, head: str, members: Tensor | None = None) -> Known:
    """A batch as the methods see it.

    Args:
        members: [M, K], last layers; None for each of its K weights alone.
    """
    inputs, row = model.inputs(batch.graph), model.energy_heads.index(head)
    vectors = inputs.edge_vector.detach().requires_grad_()
    encoded = model.encode(inputs._replace(edge_vector=vectors))
    stack, count = model.energy_stack, len(inputs.atomic_numbers)
    inner = encoded.scalars @ stack.hidden[row] + stack.hidden_bias[row]
    activations = torch.nn.functional.silu(inner) * encoded.gate.unsqueeze(1) * stack.scale[row].to(inner.dtype)
    outputs = activations if members is None else activations @ members.to(activations.dtype).t()
    slopes = []
    for total in outputs.sum(dim=0):
        (gradient,) = torch.autograd.grad(total, vectors, retain_graph=True)
        slopes.append(
            scatter_sum(gradient, inputs.edge_index[1], count) - scatter_sum(gradient, inputs.edge_index[0], count)
        )
    found = model.predict(batch.graph, [head])[head]
    assert found.forces is not None and found.energy is not None
    return Known(
        encoded.scalars.detach(), activations.detach().double(), found.forces, found.energy, inputs.batch,
        batch.graph.ptr.diff(), torch.stack(slopes, dim=2).double(),
    )  # fmt: skip


class Alternatives:
    """The methods but "expected", for one head.

    Args:
        train: batches of the training side.
        seed: of bootstraps and draws.
    """

    def __init__(self, model: GFMModel, head: str, train: Sequence[LabelledBatch], seed: int = 0):
        self.model, self.head = model, head
        generator = torch.Generator().manual_seed(seed)
        known = [look(model, batch, head) for batch in train]
        scalars = torch.cat([one.scalars for one in known])
        self.mean, self.deviation = scalars.mean(dim=0), scalars.std(dim=0) + 1e-3
        chosen = torch.randperm(len(scalars), generator=generator)[:_REFERENCES]
        self.references = self._standard(scalars[chosen])
        sides = [_normal_equations(one, batch) for one, batch in zip(known, train)]
        matrices, right = (torch.cat([side[k] for side in sides]) for k in (0, 1))  # [B, K, K], [B, K]
        whole = _with_ridge(matrices.sum(dim=0))
        normal = torch.randn(_MEMBERS, len(whole), generator=generator, dtype=whole.dtype)
        posterior = normal @ torch.linalg.cholesky(torch.linalg.inv(whole)).t()
        drawn = torch.poisson(torch.ones(_MEMBERS, len(matrices), dtype=whole.dtype), generator=generator)
        fitted = [torch.linalg.solve(_with_ridge(torch.einsum("b,bij->ij", n, matrices)), n @ right) for n in drawn]
        committee = torch.stack(fitted)
        self.members = torch.cat([committee - committee.mean(dim=0), posterior])

    def _standard(self, scalars: Tensor) -> Tensor:
        return (scalars - self.mean) / self.deviation

    def guess(self, batch: LabelledBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """{method: (for the force on each atom [N], for the energy an atom of each structure [B])}, of any scale."""
        known = look(self.model, batch, self.head, self.members)
        size = known.forces.norm(dim=1)
        nearest = (
            torch.cdist(self._standard(known.scalars), self.references)
            .topk(_NEIGHBORS, largest=False)
            .values.mean(dim=1)
        )
        found = {"force": (size, known.mean(size)), "distance": (nearest, known.mean(nearest))}
        energies = known.mean(known.activations @ self.members.t())
        for name, part in (("committee", slice(0, _MEMBERS)), ("posterior", slice(_MEMBERS, None))):
            spread = known.slopes[:, :, part].square().sum(dim=1).mean(dim=1).sqrt()
            found[name] = (spread, energies[:, part].square().mean(dim=1).sqrt())
        return found


def _normal_equations(known: Known, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
    """Of the least squares that fit a last layer to the residuals of the forces, by structure: [B, K, K] and [B, K]."""
    residual = batch.forces - known.forces
    weight = torch.isfinite(residual).all(dim=1) / (_SOFT + known.forces.norm(dim=1))
    weighted = known.slopes * weight.view(-1, 1, 1)
    matrices = torch.einsum("ncj,nck->njk", weighted, known.slopes)
    right = torch.einsum("nck,nc->nk", weighted, residual.nan_to_num())
    count = len(known.atoms)
    return scatter_sum(matrices, known.batch, count), scatter_sum(right, known.batch, count)


def _with_ridge(matrix: Tensor) -> Tensor:
    return matrix + _RIDGE * matrix.trace() / len(matrix) * torch.eye(len(matrix), dtype=matrix.dtype)
