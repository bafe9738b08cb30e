"""Forces, virial and stress from the gradient with respect to the vectors between atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import GraphBatch


def mechanics(gradient: Tensor, vectors: Tensor, batch: GraphBatch, *, per_atom: bool) -> dict[str, Tensor]:
    """Forces, virial and stress from g_e = dE/d(edge_vector_e), in float64 on the CPU.

    An edge vector is r_j - r_i + S @ cell, so the force on j is -g, that on i is +g, and under a strain eps,
    edge_vector -> edge_vector (1 + eps), dE/d(eps) is the sum of edge_vector (x) g: exactly the derivatives that the
    usual strain trick gives (Knuth et al., DOI 10.1016/j.cpc.2015.01.003), without a second set of inputs.

    Args:
        gradient, vectors: [E, 3].
        per_atom: each atom's share of the stress too (half of each edge to either end).
    """
    g = gradient.detach().to("cpu", torch.float64)
    r = vectors.to("cpu", torch.float64)
    source, target, owner = batch.edge_index[0].cpu(), batch.edge_index[1].cpu(), batch.batch.cpu()
    atoms = owner.shape[0]
    forces = g.new_zeros(atoms, 3).index_add(0, target, g).index_add(0, source, -g)
    shares = None
    if batch.num_graphs == 1 and not per_atom:
        virial = (r.t() @ g).unsqueeze(0)
    else:
        outer = (0.5 * r.unsqueeze(2) * g.unsqueeze(1)).view(-1, 9)
        shares = g.new_zeros(atoms, 9).index_add(0, target, outer).index_add(0, source, outer).view(-1, 3, 3)
        virial = g.new_zeros(batch.num_graphs, 3, 3).index_add(0, owner, shares)
    # Rotational invariance makes the virial symmetric; rounding does not.
    virial = 0.5 * (virial + virial.transpose(1, 2))
    cell, pbc = batch.cell.cpu(), batch.pbc.cpu()
    strains = torch.stack([periodic_strains(c, p) for c, p in zip(cell, pbc)])
    volume = torch.linalg.det(cell).abs().view(-1, 1, 1)
    found = {"forces": forces, "virial": virial, "stress": strains @ virial @ strains / volume}
    if per_atom and shares is not None:
        shares = 0.5 * (shares + shares.transpose(1, 2))
        strains, volume = strains.index_select(0, owner), volume.index_select(0, owner)
        found["stresses"] = strains @ shares @ strains / volume
    return found


def periodic_strains(cell: Tensor, pbc: Tensor) -> Tensor:
    """[3, 3] projector on the directions in which a cell [3, 3] can be strained: all of them with three periodic axes;
    those of the periodic axes where the other cell vectors stand at right angles to them; else there is no stress: NaN."""
    if pbc.all():
        return torch.eye(3, dtype=torch.float64)
    none = torch.full((3, 3), torch.nan, dtype=torch.float64)
    if not pbc.any() or torch.linalg.det(cell).abs() < 1e-8:
        return none
    unit = cell / cell.norm(dim=1, keepdim=True)
    if (unit[pbc] @ unit[~pbc].t()).abs().max() > 1e-6:
        return none
    basis, _ = torch.linalg.qr(cell[pbc].t())
    return basis @ basis.t()
