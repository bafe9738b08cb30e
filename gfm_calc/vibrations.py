"""How a crystal vibrates, from the second derivatives of its energy.

With H_R those between the atoms of a cell and of its copy R in a supercell that is `_WIDTH` wide at least, and m their masses,
the eigenvalues lambda of m^-1/2 (sum over R of H_R e^iqR) m^-1/2, at all waves q that fit into the supercell, are squares of
angular frequencies: nu = sqrt(|lambda|) / 2 pi (Born and Huang 1954, ISBN 0198503695).  At the temperature T a mode has the heat
capacity k_B x² e^x / (e^x - 1)² with x = h nu / k_B T (Einstein, DOI 10.1002/andp.19063270110); k_B for one without frequency.
Where the atoms of a cell move alone (and their copies in other supercells with them), the 3 x 3 blocks on the diagonal of H_0
take its place.  Three modes at q = 0 have no frequency; imaginary ones count as real.

The supercell is one of the shortest basis of the lattice, so that no other basis changes anything.  Cells of other sizes (a
conventional instead of a primitive one) fit other waves, and their numbers differ somewhat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import units
from torch import Tensor

from .derivatives import hessian_rows
from .neighbors import reduced_cell

if TYPE_CHECKING:
    from .model import ModelInputs

VIBRATIONS = ("heat capacity", "heat capacity, atoms alone", "highest", "highest, mean over waves", "mean")
_TEMPERATURE = 300.0  # K
_WIDTH = 6.0  # Å; a fit to 200 phonons of crystals is as good with 4 and 8, and a tenth worse with single cells
_THZ = units.s / (2 * math.pi * 1e12)  # of an angular frequency of 1 sqrt(eV/u)/Å
_HIGHEST = 500.0  # THz, nothing vibrates faster: beyond, the head is wrong


def repeats_of(cell: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """How often each vector of the shortest basis of a crystal's cell [3, 3] (Å) is repeated in the supercell; and that basis H,
    integers, with H @ cell the vectors."""
    shortest, basis = reduced_cell(cell, np.ones(3, bool))
    volume = abs(np.linalg.det(shortest))
    widths = [volume / np.linalg.norm(np.cross(shortest[k - 2], shortest[k - 1])) for k in range(3)]
    first, second, third = (max(1, math.ceil(_WIDTH / width - 1e-6)) for width in widths)
    return (first, second, third), basis


def vibrations(
    energies: Callable[[ModelInputs], Tensor], inputs: ModelInputs, cell: np.ndarray, shifts: np.ndarray, masses: Tensor
) -> Tensor:  # fmt: skip
    """`VIBRATIONS` [5] float64 on the CPU: heat capacities at 300 K in k_B an atom; the highest frequency, the mean over waves of
    the highest, and the mean of all in THz; NaN where the second derivatives are not finite.

    Args:
        energies: of the atoms.
        inputs: of one crystal.
        cell: [3, 3] in Å.
        shifts: [E, 3], of its edges, in cells.
        masses: [n] in u, float64, on the CPU.
    """
    repeats, basis = repeats_of(cell)
    atoms, copies = len(masses), math.prod(repeats)
    in_basis = torch.from_numpy(np.rint(shifts @ np.linalg.inv(basis)).astype(np.int64)).to(inputs.edge_index.device)
    rows = hessian_rows(energies, _supercell(inputs, in_basis, repeats), atoms)
    if not torch.isfinite(rows).all():
        return torch.full((len(VIBRATIONS),), torch.nan, dtype=torch.float64)
    roots = masses.rsqrt().repeat_interleave(3)
    blocks = rows.view(3 * atoms, *repeats, 3 * atoms) * roots.view(-1, 1, 1, 1, 1) * roots
    waves = torch.fft.fftn(blocks, dim=(1, 2, 3)).reshape(3 * atoms, copies, 3 * atoms).transpose(0, 1)
    together = _frequencies(torch.linalg.eigvalsh(0.5 * (waves + waves.mH)))
    own = blocks[:, 0, 0, 0].view(atoms, 3, atoms, 3).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    alone = _frequencies(torch.linalg.eigvalsh(0.5 * (own + own.mT)))
    heats = [3 * _heat_capacity(one).mean() for one in (together, alone)]
    return torch.stack([*heats, together.max(), together.amax(dim=1).mean(), together.mean()])


def _supercell(inputs: ModelInputs, shifts: Tensor, repeats: Sequence[int]) -> ModelInputs:
    """The crystal with as many copies of its cell, the last index the fastest, the cell itself first."""
    (source, target), atoms = inputs.edge_index, len(inputs.atomic_numbers)
    first, second, third = repeats
    edges = []
    for number, (a, b, c) in enumerate(itertools.product(*map(range, repeats))):
        x, y, z = (shifts + shifts.new_tensor([a, b, c])).unbind(1)
        copy = (x % first * second + y % second) * third + z % third
        edges.append(torch.stack([source + copy * atoms, target + number * atoms]))
    copies = len(edges)
    return inputs._replace(
        edge_vector=inputs.edge_vector.repeat(copies, 1), atomic_numbers=inputs.atomic_numbers.repeat(copies),
        edge_index=torch.cat(edges, dim=1), batch=inputs.batch.repeat(copies),
        totals=None if inputs.totals is None else inputs.totals * copies,
    )  # fmt: skip


def _frequencies(squares: Tensor) -> Tensor:
    """In THz, of eigenvalues in eV/(Å² u)."""
    return (squares.abs().sqrt() * _THZ).clamp(max=_HIGHEST)


def _heat_capacity(frequencies: Tensor) -> Tensor:
    """In k_B; frequencies in THz."""
    half = frequencies * (units._hplanck * 1e12 / (2 * units._k * _TEMPERATURE))
    return torch.where(half < 1e-4, 1.0, (half / torch.sinh(half.clamp(min=1e-4))).square())
