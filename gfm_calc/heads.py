"""Heads: features of the shared encoder in, energies of a level of theory or properties out.

All energy heads live in one stack of tensors, so decoding many of them is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import atomic_numbers as _NUMBER_OF
from torch import Tensor, nn

from .config import MAX_ATOMIC_NUMBER, HeadSpec, ModelConfig
from .encoders.base import ExactBuffers, init_linear, mlp, scatter_sum
from .landmarks import Landmarks
from .stiffness import Stiffness

WIDTHS = 4  # of a head of energies, has the hidden layer of one of a property: it may begin as several of those
_GATE_SHARPNESS = 3.0


def isolation_gate(envelope_sum: Tensor) -> Tensor:
    """1 - exp(-3 rho), rho [N] the sum of the envelopes over an atom's neighbours.

    Zero, exactly, for an atom without neighbours, so that it keeps its reference energy; 0.95 with one bonded neighbour.
    """
    return -torch.expm1(-_GATE_SHARPNESS * envelope_sum)


class EnergyHeads(ExactBuffers):
    """H energy heads, stacked.  Head h: e_i = gate_i * (scale_h * MLP_h(s_i) + shift_h[Z_i]), one hidden layer, width K.

    Parameters: hidden [H, F, K], hidden_bias [H, K], output [H, K]; shift [H, 119] in eV, what an atom of an element
    gains on average by being bound.  Buffers: scale [H] in eV; reference [H, 119] in eV, float64 whatever the model's
    dtype, not touched by the gate.
    """

    exact = ("scale", "reference")
    scale: Tensor
    reference: Tensor

    def __init__(self, specs: Sequence[HeadSpec], num_features: int, width: int):
        super().__init__()
        count = len(specs)
        self.hidden = nn.Parameter(torch.empty(count, num_features, width))
        self.hidden_bias = nn.Parameter(torch.zeros(count, width))
        self.output = nn.Parameter(torch.empty(count, width))
        self.shift = nn.Parameter(torch.zeros(count, MAX_ATOMIC_NUMBER + 1))
        for index in range(count):
            nn.init.xavier_uniform_(self.hidden.data[index])
            nn.init.uniform_(self.output.data[index], -(width**-0.5), width**-0.5)
        self.register_buffer("scale", torch.ones(count, dtype=torch.float64))
        reference = torch.zeros(count, MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for index, spec in enumerate(specs):
            for symbol, energy in spec.reference_energies.items():
                reference[index, _NUMBER_OF[symbol]] = energy
        # Not part of the weights file: the head cards hold them.
        self.register_buffer("reference", reference, persistent=False)

    def forward(self, scalars: Tensor, gate: Tensor, atomic_numbers: Tensor, index: Tensor | None = None) -> Tensor:
        """Interaction energies [H', N] in eV, reference energies not included.

        Args:
            scalars: [N, F].
            gate: [N], see `isolation_gate`.
            atomic_numbers: [N].
            index: which heads, [H']; None for all.
        """
        stack = (self.hidden, self.hidden_bias, self.output, self.shift, self.scale)
        hidden, bias, output, shift, scale = stack if index is None else (t.index_select(0, index) for t in stack)
        energies = (_units(scalars, hidden, bias) * output).sum(dim=-1) * scale.to(scalars.dtype)
        return (energies.t() + shift.index_select(1, atomic_numbers)) * gate

    def units(self, scalars: Tensor, head: int | None = None) -> Tensor:
        """The hidden units of all heads [N, H, K], or of one [N, K]; scalars: [N, F]."""
        if head is not None:
            return _units(scalars, self.hidden[head : head + 1], self.hidden_bias[head : head + 1])[:, 0]
        return _units(scalars, self.hidden, self.hidden_bias)

    def own(
        self, scalars: Tensor, gate: Tensor, atomic_numbers: Tensor, head: Tensor, slots: Tensor, slot_of: Tensor
    ) -> Tensor:
        """Interaction energies [N] in eV where each atom has one head: for training on a mixture.

        Args:
            scalars, gate, atomic_numbers: as for `forward`.
            head: [N], which head.
            slots: [H, M], the atoms of each head in a row, filled up with any atom.
            slot_of: [N], where in the flattened `slots` each atom is.
        """
        heads, width = slots.shape
        if heads == 1:
            return self(scalars, gate, atomic_numbers)[0]
        rows = scalars.index_select(0, slots.view(-1)).view(heads, width, -1)
        activated = nn.functional.silu(torch.bmm(rows, self.hidden) + self.hidden_bias.unsqueeze(1))
        energies = (activated * self.output.unsqueeze(1)).sum(dim=-1) * self.scale.to(scalars.dtype).unsqueeze(1)
        shift = self.shift.view(-1).index_select(0, head * self.shift.shape[1] + atomic_numbers)
        return (energies.view(-1).index_select(0, slot_of) + shift) * gate


def _units(scalars: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
    """Hidden units [N, H, K] of heads with weights hidden [H, F, K] and bias [H, K]: one matrix product; scalars: [N, F]."""
    heads, features, width = hidden.shape
    flat = scalars @ hidden.permute(1, 0, 2).reshape(features, heads * width)
    return nn.functional.silu(flat.view(-1, heads, width) + bias)


class PropertyHead(ExactBuffers):
    """A property of a structure ("scalar", a sum or a mean over atoms; "vector", a sum; "class", whose mean over atoms is the
    logarithm of the odds of yes) or of its atoms ("atom_scalar", "atom_vector").

    It sees the scalars of all layers of the encoder: what energies need of the first ones has gone through the others, but a
    property may need something else.  Vectors are sums of the encoder's vector features with weights from its scalars, hence
    equivariant.  Scalars begin at the references of the elements on the card.  Scalars and classes may compare structures with
    landmarks as well, and `stiffness` is what the model adds where its card names one (of a sum over atoms: both for each atom).

    Args:
        spec: its card.
        config: of the model.
    """

    exact = ("scale", "shift", "reference")
    scale: Tensor
    shift: Tensor
    reference: Tensor

    def __init__(self, spec: HeadSpec, config: ModelConfig):
        super().__init__()
        self.kind, self.extensive, self.nonnegative = spec.kind, spec.extensive, spec.nonnegative
        inputs, outputs = config.num_layers * config.num_features, config.num_features
        self.net = mlp(inputs, WIDTHS * config.head_width, outputs if spec.kind.endswith("vector") else 1)
        self.net.apply(init_linear)
        self.landmarks = Landmarks(spec.landmarks, config) if spec.landmarks else None
        self.stiffness: Stiffness | None = None
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        reference = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for symbol, value in spec.reference_energies.items():
            reference[_NUMBER_OF[symbol]] = value
        # Not part of the weights file: the head cards hold them.
        self.register_buffer("reference", reference, persistent=False)

    @property
    def is_per_atom_of_sum(self) -> bool:
        """Whether errors are to be divided by the number of atoms, as those of energies are."""
        return self.kind == "scalar" and self.extensive

    def forward(
        self, layers: Sequence[Tensor], vectors: Tensor, atomic_numbers: Tensor, batch: Tensor, counts: Tensor
    ) -> Tensor:
        """[B] ("scalar", "class": log-odds), [B, 3] ("vector"), [N] ("atom_scalar") or [N, 3] ("atom_vector"), float64, in
        the head's unit; also of a head that is `nonnegative` it may be negative here, so that training knows where to go.

        Args:
            layers: scalars [N, F] after each layer of the encoder.
            vectors: [N, 3, F], after the last.
            atomic_numbers: [N].
            batch: [N], the structure of each atom.
            counts: [B], atoms in each structure.
        """
        weights = self.net(torch.cat(list(layers), dim=1))
        if self.kind.endswith("vector"):
            found = (vectors * weights.unsqueeze(1)).sum(dim=-1).to(torch.float64) * self.scale
            return found if self.kind == "atom_vector" else scatter_sum(found, batch, counts.shape[0])
        values = weights.squeeze(-1).to(torch.float64) * self.scale + self.shift
        values = values + self.reference.index_select(0, atomic_numbers)
        if self.kind == "atom_scalar":
            return values
        total = scatter_sum(values, batch, counts.shape[0])
        found = total if self.is_per_atom_of_sum else total / counts
        if self.landmarks is None:
            return found
        compared = self.landmarks(layers, vectors, batch, counts) * self.scale
        return found + (compared * counts if self.is_per_atom_of_sum else compared)
