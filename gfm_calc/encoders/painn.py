"""PaiNN, the polarizable atom interaction network.

Source: Schütt, Unke, Gastegger, ICML 2021, DOI 10.48550/arXiv.2102.03150.  Differences: the element embedding has full
width from the first layer; the networks within an atom may be wider than its features; the radial filter has no bias outside
the envelope; sums over neighbours are divided by the square root of the average neighbour count; the first layer omits the
terms in the vectors, which are zero there; the norm of vectors is rounded off at zero (see `_EPSILON`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from . import painn_message as fused
from .base import EdgeGeometry, Encoder, init_linear, mlp, scatter_sum, soft_norm

# Under the root of |v|².  At sites of high symmetry v vanishes, and a small value would put a kink of its width into the
# energy there: forces of ideal crystals that jump, phonons without meaning.  0.01 is smooth on the scale of real distortions.
_EPSILON = 1e-2


class PaiNN(Encoder):
    """`num_layers` rounds of message and update; see `Encoder.forward`."""

    writes = ("source.2.weight", "source.2.bias", "gate.2.weight", "gate.2.bias")
    reads = ("source.2.weight", "gate.2.weight", "filter.weight")

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.messages = nn.ModuleList(Message(config, first=layer == 0) for layer in range(config.num_layers))
        self.updates = nn.ModuleList(Update(config) for _ in range(config.num_layers))
        self.apply(init_linear)

    @property
    def native(self) -> bool:
        """See `Encoder.native`."""
        return fused.available(next(self.parameters()))

    def forward(self, features: Tensor, edges: EdgeGeometry) -> tuple[tuple[Tensor, ...], Tensor]:
        scalars = features
        layers: list[Tensor] = []
        vectors: Tensor | None = None
        for message, update in zip(self.messages, self.updates):
            layer = partial(_layer, message, update)
            if self.recompute and torch.is_grad_enabled():
                scalars, vectors = checkpoint(layer, scalars, vectors, edges, use_reentrant=False)
            else:
                scalars, vectors = layer(scalars, vectors, edges)
            layers.append(scalars)
        assert vectors is not None
        return tuple(layers), vectors


def _layer(message: nn.Module, update: nn.Module, scalars: Tensor, vectors: Tensor | None, edges: EdgeGeometry):
    return update(*message(scalars, vectors, edges))


class Message(nn.Module):
    """Sums over neighbours: eq. 7 and 8 of the paper."""

    def __init__(self, config: ModelConfig, *, first: bool):
        super().__init__()
        width = config.num_features
        self.parts = 2 if first else 3
        self.scale = config.avg_num_neighbors**-0.5
        self.norm = config.norm is not None
        self.source = mlp(width, config.expansion * width, self.parts * width)
        self.filter = nn.Linear(config.num_radial, self.parts * width, bias=False)

    def forward(self, scalars: Tensor, vectors: Tensor | None, edges: EdgeGeometry) -> tuple[Tensor, Tensor]:
        sent = soft_norm(scalars) if self.norm else scalars
        carried = soft_norm(vectors) if self.norm and vectors is not None else vectors
        features, basis = self.source(sent), edges.radial
        if fused.available(basis):
            features = features.to(basis.dtype)  # where matrix products are bfloat16
            scalar_sum, vector_sum = fused.message(
                features, carried, basis, edges.unit, self.filter.weight, edges.edge_index
            )
        else:
            scalar_sum, vector_sum = self._sums(features, carried, edges)
        scalar_sum, vector_sum = scalar_sum * self.scale, vector_sum * self.scale
        return scalars + scalar_sum, vector_sum if vectors is None else vectors + vector_sum

    def _sums(self, features: Tensor, vectors: Tensor | None, edges: EdgeGeometry) -> tuple[Tensor, Tensor]:
        """What `painn_message.message` computes, in operations of torch."""
        count, width = features.shape[0], features.shape[1] // self.parts
        parts = (features.index_select(0, edges.source) * self.filter(edges.radial)).split(width, dim=-1)
        directed = edges.unit.unsqueeze(-1) * parts[1].unsqueeze(1)
        if vectors is not None:
            directed = directed + vectors.index_select(0, edges.source) * parts[2].unsqueeze(1)
        return scatter_sum(parts[0], edges.target, count), scatter_sum(directed, edges.target, count)


class Update(nn.Module):
    """Mixing within an atom: eq. 9 and 10 of the paper."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.num_features
        self.norm = config.norm is not None
        self.mix = nn.Linear(width, 2 * width, bias=False)
        self.gate = mlp(2 * width, config.expansion * width, 3 * width)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        width = scalars.shape[1]
        mixed, known = (soft_norm(vectors), soft_norm(scalars)) if self.norm else (vectors, scalars)
        left, right = self.mix(mixed).split(width, dim=-1)
        norm = (right.square().sum(dim=1) + _EPSILON).sqrt()
        keep, product, stretch = self.gate(torch.cat([known, norm], dim=-1)).split(width, dim=-1)
        return scalars + keep + product * (left * right).sum(dim=1), vectors + stretch.unsqueeze(1) * left
