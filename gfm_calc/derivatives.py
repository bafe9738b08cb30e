"""Second derivatives of the energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .graph import GraphBatch
    from .model import GFMModel, ModelInputs

_ROWS_AT_ONCE, _EDGES_AT_ONCE = 16, 65536  # at most: the memory of the batched backward pass goes with rows times edges


def hessian(model: GFMModel, batch: GraphBatch, head: str) -> Tensor:
    """d²E/dr² of one structure, [3n, 3n] in eV/Å², float64 on the CPU, symmetrised.

    Args:
        batch: a single structure.
        head: an energy head.
    """
    with torch.inference_mode(False):
        index = torch.tensor([model.energy_heads.index(head)], device=model.device)
        full = hessian_rows(lambda inputs: model.atom_energies(inputs, index), model.inputs(batch), batch.num_nodes)
    return 0.5 * (full + full.t())


@torch.inference_mode(False)
@torch.enable_grad()
def hessian_rows(energies: Callable[[ModelInputs], Tensor], inputs: ModelInputs, atoms: int) -> Tensor:
    """Rows of d²E/dr² of one structure, those of its first atoms: [3 atoms, 3n] in eV/Å², float64 on the CPU, not symmetrised.

    With positions r and edge vectors v = A r, it is A^T (d²E/dv²) A; each row is one backward pass through the gradient, several
    rows at a time.

    Args:
        energies: of the atoms, [n] in eV.
        atoms: how many.
    """
    source, target = inputs.edge_index[0], inputs.edge_index[1]
    count, vectors = len(inputs.atomic_numbers), inputs.edge_vector.detach()
    if vectors.shape[0] == 0:
        return torch.zeros(3 * atoms, 3 * count, dtype=torch.float64)
    # Displacements from the structure: the leaf whose second derivatives are wanted.
    moved = torch.zeros(count, 3, dtype=vectors.dtype, device=vectors.device, requires_grad=True)
    displaced = vectors + moved.index_select(0, source) - moved.index_select(0, target)
    energy = energies(inputs._replace(edge_vector=displaced)).sum()
    (gradient,) = torch.autograd.grad(energy, moved, create_graph=True)
    flat = gradient.reshape(-1)
    at_once = max(1, min(_ROWS_AT_ONCE, _EDGES_AT_ONCE // len(vectors)))
    rows = []
    for start in range(0, 3 * atoms, at_once):
        stop = min(start + at_once, 3 * atoms)
        seeds = torch.zeros(stop - start, 3 * count, dtype=flat.dtype, device=flat.device)
        seeds.diagonal(start).fill_(1.0)
        (block,) = torch.autograd.grad(flat, moved, grad_outputs=seeds, is_grads_batched=True, retain_graph=True)
        rows.append(block.reshape(stop - start, -1).cpu().to(torch.float64))
    return torch.cat(rows)
