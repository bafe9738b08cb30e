"""What every encoder shares: the interface, the edge geometry and the embedding of elements, charge and spin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import MAX_ATOMIC_NUMBER, ModelConfig
from .basis import bessel_basis, polynomial_envelope


class EdgeGeometry(NamedTuple):
    """What encoders see of the edges: edge_index [2, E], source j and target i; distance [E] in Å; unit [E, 3] (from i to j);
    radial [E, R], the basis times the envelope; envelope [E]."""

    edge_index: Tensor
    distance: Tensor
    unit: Tensor
    radial: Tensor
    envelope: Tensor

    @property
    def source(self) -> Tensor:
        """[E]"""
        return self.edge_index[0]

    @property
    def target(self) -> Tensor:
        """[E]"""
        return self.edge_index[1]


def edge_geometry(edge_vector: Tensor, edge_index: Tensor, config: ModelConfig) -> EdgeGeometry:
    """Distances, directions and radial basis of every edge.

    Args:
        edge_vector: [E, 3] in Å, r_j - r_i + S @ cell.
        edge_index: [2, E].
    """
    distance = edge_vector.square().sum(dim=-1).sqrt()
    unit = edge_vector / distance.unsqueeze(-1)
    envelope = polynomial_envelope(distance, config.cutoff, config.envelope_exponent)
    radial = bessel_basis(distance, config.cutoff, config.num_radial) * envelope.unsqueeze(-1)
    return EdgeGeometry(edge_index, distance, unit, radial, envelope)


class NodeEmbedding(nn.Module):
    """Initial features of every atom: a learned vector an element, plus what charge and spin add.

    The total charge and the unpaired electrons beyond the lowest possible number are shared out over the atoms with
    learned element weights (the shares sum to the total, as in SpookyNet, DOI 10.1038/s41467-021-27504-0, there with
    attention), then mapped to features by a bias-free network: a neutral structure in its lowest spin state gets exactly
    nothing, so two such fragments far apart are exactly the sum of the fragments.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.num_features
        self.element = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width)
        self.share = nn.Embedding(MAX_ATOMIC_NUMBER + 1, 2)
        nn.init.zeros_(self.share.weight)
        self.condition = nn.Sequential(nn.Linear(2, width, bias=False), nn.SiLU(), nn.Linear(width, width, bias=False))

    def forward(self, atomic_numbers: Tensor, batch: Tensor, totals: Tensor | None) -> Tensor:
        """[N, F] from atomic_numbers [N], batch [N] and totals [B, 2] (charge in e, excess unpaired electrons).

        `totals` None stands for all zero and skips the work.
        """
        features = self.element(atomic_numbers)
        if totals is None:
            return features
        weight = nn.functional.softplus(self.share(atomic_numbers))
        norm = weight.new_zeros(totals.shape).index_add(0, batch, weight)
        shares = weight * (totals / norm).index_select(0, batch)
        return features + self.condition(shares)


class Encoder(nn.Module):
    """Interface of all encoders.  A subclass takes a `ModelConfig` and is equivariant by construction.

    Attributes: `recompute`, compute each layer again in the backward pass instead of keeping what it made.  Of the class, ends
    of names of parameters: `writes`, with zeros in which a layer adds nothing to its atoms; `reads`, whose columns are hidden
    units or radial functions.  Where there are none the encoder cannot grow (see `train.growth`).
    """

    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.recompute = config, False

    @property
    def native(self) -> bool:
        """Whether it runs its own compiled code here, rather than operations of torch alone."""
        return False

    def forward(self, features: Tensor, edges: EdgeGeometry) -> tuple[tuple[Tensor, ...], Tensor]:
        """Initial features [N, F] and edges -> scalars [N, F] after each layer, and vectors [N, 3, F] after the last."""
        raise NotImplementedError


class ExactBuffers(nn.Module):
    """A module whose buffers named in `exact` stay float64 when the model is cast: rounding them would move energies of
    1e4 eV, and casting back would not undo it."""

    exact: tuple[str, ...] = ()

    def _apply(self, fn, recurse=True):
        kept = {name: getattr(self, name) for name in self.exact}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            setattr(self, name, tensor.to(getattr(self, name).device))
        return self


def soft_norm(values: Tensor) -> Tensor:
    """An atom's features over the root of one plus their mean square: as they are where they are small, of size one where they
    are large.

    Scalars and vectors of a layer multiply each other; without a bound each layer raises what is unusual about an atom to a
    higher power.  Smooth everywhere, and vectors only change their length.

    Args:
        values: scalars [N, F] or vectors [N, 3, F].
    """
    square = values.square().mean(dim=-1, keepdim=True)
    if values.ndim == 3:
        square = square.sum(dim=1, keepdim=True)
    return values * torch.rsqrt(1.0 + square)


def scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of `values` [E, ...] into [size, ...] by `index` [E]; deterministic on CPU, forward and backward.

    Sums of bfloat16 are float32.
    """
    if values.dtype == torch.bfloat16:
        values = values.float()
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def init_linear(module: nn.Module) -> None:
    """Xavier weights, zero biases: for `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
