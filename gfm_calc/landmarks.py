"""What a structure has in common with structures whose property is known: sums of Gaussians around landmarks.

With x what `features_of_structures` says of a structure, and c_m of landmark m, and two sets of lengths l_p,

    k(x) = sum_p sum_m w_pm exp(-|(x - c_m) / l_p|²)

This is a sum of means of Gaussian processes whose inducing points are the landmarks (Rasmussen and Williams 2006, chapter 2, ISBN
026218253X).  It is no sum over atoms, hence for properties that are none, or of crystals, for each atom: all cells of one crystal
have the same.  The landmarks stay where they were fitted: when the encoder learns on, the network beside them makes up for what
moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .encoders.base import scatter_sum

PROCESSES = 2
_FLOOR = 1e-4  # under roots, which have no slope at zero


def features_of_structures(
    layers: Sequence[Tensor], vectors: Tensor, batch: Tensor, counts: Tensor, dtype: torch.dtype
) -> Tensor:
    """[B, (L + 2) F], in dtype: means over atoms of the scalars after each of L layers, spreads over atoms of the last ones, and
    means of the lengths of vectors.

    Args:
        layers: scalars [N, F] after each layer of the encoder.
        vectors: [N, 3, F], after the last.
        batch: [N], the structure of each atom.
        counts: [B], atoms in each structure.
    """
    sizes = counts.to(dtype).unsqueeze(1)

    def mean(of_atoms: Tensor) -> Tensor:
        return scatter_sum(of_atoms, batch, counts.shape[0]) / sizes

    means = [mean(layer.to(dtype)) for layer in layers]
    away = layers[-1].to(dtype) - means[-1].index_select(0, batch)
    spreads = (mean(away.square()) + _FLOOR).sqrt()
    lengths = mean((vectors.to(dtype).square().sum(dim=1) + _FLOOR).sqrt())
    return torch.cat([*means, spreads, lengths], dim=1)


class Landmarks(nn.Module):
    """k(x) for M landmarks and x of width W, in units of the head's scale.

    Attributes: centres [M, W]; inverse_lengths [P, W], 1 / l; output [P, M], w.
    """

    def __init__(self, count: int, config: ModelConfig):
        super().__init__()
        width = (config.num_layers + 2) * config.num_features
        self.centres = nn.Parameter(torch.zeros(count, width))
        self.inverse_lengths = nn.Parameter(torch.zeros(PROCESSES, width))
        self.output = nn.Parameter(torch.zeros(PROCESSES, count))

    def forward(self, layers: Sequence[Tensor], vectors: Tensor, batch: Tensor, counts: Tensor) -> Tensor:
        """[B] float64; arguments: see `features_of_structures`."""
        x = features_of_structures(layers, vectors, batch, counts, torch.float64)  # squares of them nearly cancel
        found = x.unsqueeze(0) * self.inverse_lengths.double().unsqueeze(1)
        centres = self.centres.double().unsqueeze(0) * self.inverse_lengths.double().unsqueeze(1)
        squares = found.square().sum(2, keepdim=True) + centres.square().sum(2).unsqueeze(1)
        squares = squares - 2 * torch.bmm(found, centres.transpose(1, 2))
        return (torch.exp(-squares.clamp(min=0.0)) * self.output.double().unsqueeze(1)).sum(dim=(0, 2))
