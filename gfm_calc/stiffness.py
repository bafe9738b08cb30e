"""What a head of energies says of how stiff a crystal is, for properties that have to do with it: against strain, and against
displacements of its atoms (see `vibrations`).

With a strain eps that takes the atoms along (clamped ions), V the volume and E the energy,

    C_abcd = (1/V) d²E / d(eps_ab) d(eps_cd),    K = C_aabb / 9,    G = (C_abab - 3 K) / 10

are Voigt's means of the bulk and the shear modulus (Hill 1952, DOI 10.1088/0370-1298/65/5/307; indices that stand twice are
summed over).  A head that was trained on stresses knows them, and few labels of a modulus show what is left.  The network is
one of its own, which no training moves.  What is not periodic along three axes has no stiffness.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from ase import units
from ase.data import atomic_masses
from torch import Tensor

from .config import MAX_ATOMIC_NUMBER
from .encoders.base import ExactBuffers, scatter_sum
from .vibrations import VIBRATIONS, vibrations

if TYPE_CHECKING:
    from .graph import GraphBatch
    from .model import GFMModel, ModelInputs

_OF_STRAINS = ("bulk", "shear", "bulk, bent", "shear, bent", "stress, bent", "number density", "mass density")
COLUMNS = _OF_STRAINS + VIBRATIONS
STRAINS, MODES = slice(0, len(_OF_STRAINS)), slice(len(_OF_STRAINS), len(COLUMNS))
_STIFFEST = 600.0  # GPa, no crystal is stiffer: beyond, the head is wrong
_BEND, _BEND_OF_STRESS = 10.0, 2.0  # GPa, above which asinh is a logarithm
_MOST_EDGES = 16384  # at a time: second derivatives hold every layer twice
_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


class Stiffness(ExactBuffers):
    """A linear function of `columns`.

    Args:
        network: a model with one head of energies.

    Attributes: weights [13] float64, of the columns, and a constant, in the unit of the head that this is a part of.
    """

    exact = ("weights", "masses")
    weights: Tensor
    masses: Tensor

    def __init__(self, network: GFMModel):
        super().__init__()
        self.network = network
        self.register_buffer("weights", torch.zeros(len(COLUMNS) + 1, dtype=torch.float64))
        masses = torch.from_numpy(atomic_masses[: MAX_ATOMIC_NUMBER + 1]).to(torch.float64)
        self.register_buffer("masses", masses, persistent=False)

    def forward(self, inputs: ModelInputs, batch: GraphBatch) -> Tensor:
        """[B] float64, NaN for what is not periodic along three axes; arguments: see `columns`."""
        weights, constant = self.weights[:-1], self.weights[-1]
        strains, modes = bool(weights[STRAINS].any()), bool(weights[MODES].any())
        used = weights != 0  # what is no number of the others does not matter
        value = self.columns(inputs, batch, strains=strains, modes=modes)[:, used] @ weights[used] + constant
        return torch.where(batch.pbc.all(dim=1).to(value.device), value, torch.nan)

    def columns(self, inputs: ModelInputs, batch: GraphBatch, *, strains: bool = True, modes: bool = True) -> Tensor:
        """`COLUMNS` [B, 12] float64, detached, on the model's device: K and G in GPa, at most 600; asinh of them over 10 GPa, and
        of the mean stress over 2 GPa; atoms and u an Å³; those of `vibrations`.  Zeros where there are not three periodic axes.

        Args:
            inputs: of the batch, in the network's dtype.
            strains, modes: what is wanted; zeros instead of the rest.  The modes take three backward passes an atom.
        """
        device = inputs.edge_vector.device
        volume = torch.linalg.det(batch.cell).abs().to(device)
        crystal = batch.pbc.all(dim=1).to(device) & (volume > 0)
        found = torch.zeros(len(volume), len(COLUMNS), dtype=torch.float64, device=device)
        with torch.autocast(device.type, enabled=False):  # second derivatives are small sums of large terms
            if strains:
                found[:, STRAINS] = self._strained(inputs, batch, torch.where(crystal, volume, torch.inf))
            if modes:
                found[:, MODES] = self._modes(inputs, batch, crystal)
        return torch.where(crystal.unsqueeze(1), found, 0.0)

    def _strained(self, inputs: ModelInputs, batch: GraphBatch, volume: Tensor) -> Tensor:
        """The columns of strains [B, 7]; volume: [B] in Å³."""
        moduli = torch.cat([self._moduli(piece, count) for piece, count in _pieces(inputs, batch)])
        moduli = moduli / units.GPa / volume.unsqueeze(1)
        bulk, shear = moduli[:, :2].clamp(-_STIFFEST, _STIFFEST).unbind(1)  # NaN stays: it is found in the prediction
        atoms = batch.ptr.diff().to(volume.device, torch.float64)
        mass = scatter_sum(self.masses.index_select(0, inputs.atomic_numbers), inputs.batch, len(volume))
        bent = [torch.asinh(bulk / _BEND), torch.asinh(shear / _BEND), torch.asinh(moduli[:, 2] / _BEND_OF_STRESS)]
        return torch.stack([bulk, shear, *bent, atoms / volume, mass / volume], dim=1)

    def _modes(self, inputs: ModelInputs, batch: GraphBatch, crystal: Tensor) -> Tensor:
        """`VIBRATIONS` [B, 5]; crystal: [B], whether it is one."""
        found = torch.zeros(len(crystal), len(VIBRATIONS), dtype=torch.float64)
        masses = self.masses.index_select(0, inputs.atomic_numbers).cpu()
        ptr, ends = _ends(inputs, batch)
        for row in torch.nonzero(crystal).flatten().tolist():
            piece, own = _cut(inputs, ptr, ends, row, row + 1), masses[ptr[row] : ptr[row + 1]]
            shifts = batch.edge_cell_shift[ends[row] : ends[row + 1]].cpu().numpy()
            found[row] = vibrations(self.network.atom_energies, piece, batch.cell[row].cpu().numpy(), shifts, own)
        return found.to(crystal.device)

    def _moduli(self, inputs: ModelInputs, count: int) -> Tensor:
        """V K, V G and V times the mean stress [count, 3] in eV, float64."""
        vectors = inputs.edge_vector.detach()
        if vectors.shape[0] == 0:
            return torch.zeros(count, 3, dtype=torch.float64, device=vectors.device)
        owner = inputs.batch.index_select(0, inputs.edge_index[1])
        with torch.enable_grad():
            strain = torch.zeros(count, 3, 3, dtype=vectors.dtype, device=vectors.device, requires_grad=True)
            even = 0.5 * (strain + strain.transpose(1, 2))
            moved = vectors + torch.bmm(vectors.unsqueeze(1), even.index_select(0, owner)).squeeze(1)
            energy = self.network.atom_energies(inputs._replace(edge_vector=moved)).sum()
            (virial,) = torch.autograd.grad(energy, strain, create_graph=True)
            rows = [
                torch.autograd.grad(virial[:, a, b].sum(), strain, retain_graph=(a, b) != _PAIRS[-1])[0].double()
                for a, b in _PAIRS
            ]
        bulk = torch.stack(rows[:3]).diagonal(dim1=2, dim2=3).sum((0, 2)) / 9
        trace = torch.stack([(1 if a == b else 2) * row[:, a, b] for row, (a, b) in zip(rows, _PAIRS)]).sum(0)
        stress = virial.detach().double().diagonal(dim1=1, dim2=2).mean(1)
        return torch.stack([bulk, (trace - 3 * bulk) / 10, stress], dim=1)


def _pieces(inputs: ModelInputs, batch: GraphBatch) -> Iterator[tuple[ModelInputs, int]]:
    """The batch as batches of fewer edges, and the number of structures in each."""
    ptr, ends = _ends(inputs, batch)
    first = 0
    while first < len(ptr) - 1:
        last = first + 1
        while last < len(ptr) - 1 and ends[last + 1] - ends[first] <= _MOST_EDGES:
            last += 1
        yield _cut(inputs, ptr, ends, first, last), last - first
        first = last


def _ends(inputs: ModelInputs, batch: GraphBatch) -> tuple[list[int], list[int]]:
    """Where the atoms and the edges of each structure begin, and their numbers; edges stand structure by structure."""
    ptr = batch.ptr.tolist()
    of_edges = inputs.batch.index_select(0, inputs.edge_index[1])
    return ptr, torch.searchsorted(of_edges, torch.arange(len(ptr), device=of_edges.device)).tolist()


def _cut(inputs: ModelInputs, ptr: list[int], ends: list[int], first: int, last: int) -> ModelInputs:
    """Structures `first` to `last`, without that."""
    atoms, edges = slice(ptr[first], ptr[last]), slice(ends[first], ends[last])
    totals = None if inputs.totals is None else inputs.totals[first:last]
    return inputs._replace(
        edge_vector=inputs.edge_vector[edges], atomic_numbers=inputs.atomic_numbers[atoms],
        edge_index=inputs.edge_index[:, edges] - ptr[first], batch=inputs.batch[atoms] - first, totals=totals,
    )  # fmt: skip
