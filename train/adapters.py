"""Low-rank adapters: a matrix W learns as W + B A with W fixed (Hu et al., DOI 10.48550/arXiv.2106.09685).

The sum is formed before it is used, so a merged model gives the same bits as the one that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class AdaptedLinear(nn.Module):
    """A linear layer whose `weight` is `base` + `up` @ `down`; `up` is zero at the start."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base, self.bias = base.weight, base.bias
        rank = min(rank, *base.weight.shape)
        down = torch.empty(rank, base.in_features, dtype=base.weight.dtype)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        self.down = nn.Parameter(down.to(base.weight.device))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    @property
    def weight(self) -> Tensor:
        """[outputs, inputs], for all who read the weight of a linear layer."""
        return self.base + self.up @ self.down

    def forward(self, values: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return nn.functional.linear(values, self.weight, self.bias)

    def merged(self) -> nn.Linear:
        """The same layer without an adapter."""
        plain = nn.Linear(self.base.shape[1], self.base.shape[0], bias=self.bias is not None)
        plain.weight = nn.Parameter(self.weight.detach())
        plain.bias = self.bias
        return plain


def add_adapters(encoder: nn.Module, rank: int, seed: int) -> None:
    """Give every linear layer of an encoder an adapter, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parent, name, child in _layers(encoder, nn.Linear):
            setattr(parent, name, AdaptedLinear(child, rank))  # type: ignore[arg-type]


def merge_adapters(encoder: nn.Module) -> None:
    """The inverse, with what was learnt in the plain weights."""
    for parent, name, child in _layers(encoder, AdaptedLinear):
        setattr(parent, name, child.merged())


def _layers(root: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(module, name of a child of that kind, the child)."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                yield parent, name, child
