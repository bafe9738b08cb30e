"""Second derivatives of the energy."""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import GraphBatch
from .model import GFMModel

_ROWS_AT_ONCE = 16  # bounds the memory of the batched backward pass


@torch.inference_mode(False)
@torch.enable_grad()
def hessian(model: GFMModel, batch: GraphBatch, head: str) -> Tensor:
    """d²E/dr² of one structure, [3n, 3n] in eV/Å², float64 on the CPU, symmetrised.

    With positions r and edge vectors v = A r, the energy's Hessian is A^T (d²E/dv²) A; each row is one backward pass
    through the gradient, several rows at a time.

    Args:
        batch: a single structure.
        head: an energy head.
    """
    inputs = model.inputs(batch)
    source, target = inputs.edge_index[0], inputs.edge_index[1]
    atoms = batch.num_nodes
    size = 3 * atoms
    if inputs.edge_vector.shape[0] == 0:
        return torch.zeros(size, size, dtype=torch.float64)
    index = torch.tensor([model.energy_heads.index(head)], device=model.device)
    # Displacements from the structure: the leaf whose second derivatives are wanted.
    moved = torch.zeros(atoms, 3, dtype=model.dtype, device=model.device, requires_grad=True)
    vectors = inputs.edge_vector + moved.index_select(0, source) - moved.index_select(0, target)
    energy = model.atom_energies(inputs._replace(edge_vector=vectors), index).sum()
    (gradient,) = torch.autograd.grad(energy, moved, create_graph=True)
    flat = gradient.reshape(-1)
    rows = []
    for start in range(0, size, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, size)
        seeds = torch.eye(size, dtype=flat.dtype, device=flat.device)[start:stop]
        (block,) = torch.autograd.grad(flat, moved, grad_outputs=seeds, is_grads_batched=True, retain_graph=True)
        rows.append(block.reshape(stop - start, size).cpu().to(torch.float64))
    full = torch.cat(rows)
    return 0.5 * (full + full.t())
