"""Short-range nuclear repulsion: the universal ZBL potential, switched off smoothly at bonding distance.

Source: Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Solids" (1985), DOI 10.1007/978-3-642-68779-2_5.
"""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from torch import Tensor

from .config import MAX_ATOMIC_NUMBER, ModelConfig
from .encoders.base import EdgeGeometry, ExactBuffers, scatter_sum
from .encoders.basis import polynomial_envelope

_COULOMB = 14.399645  # e²/(4 pi eps0) in eV Å
_SCREENING = 0.46850  # Å
_TERMS = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))


class ZBLRepulsion(ExactBuffers):
    """V_ij = k Z_i Z_j / r phi(r/a) u(r), u the polynomial envelope that ends at the sum of the covalent radii.

    The networks of all heads are trained on top of it, so it costs no accuracy where there are data and keeps atoms
    apart where there are none.
    """

    exact = ("radii",)
    radii: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.cutoff, self.exponent = config.cutoff, config.envelope_exponent
        radii = torch.tensor(covalent_radii[: MAX_ATOMIC_NUMBER + 1], dtype=torch.float64)
        self.register_buffer("radii", radii, persistent=False)

    def forward(self, atomic_numbers: Tensor, edges: EdgeGeometry) -> Tensor:
        """Energy of each atom, [N] in eV; a pair's energy is shared equally."""
        distance = edges.distance
        charge = atomic_numbers.to(distance.dtype)
        radius = self.radii.to(distance.dtype).index_select(0, atomic_numbers)
        power = charge.pow(0.23)
        source, target = edges.source, edges.target
        end = (radius.index_select(0, source) + radius.index_select(0, target)).clamp(max=self.cutoff)
        x = distance * ((power.index_select(0, source) + power.index_select(0, target)) / _SCREENING)
        screened = sum(weight * torch.exp(-rate * x) for weight, rate in _TERMS)
        charges = charge.index_select(0, source) * charge.index_select(0, target)
        pair = (_COULOMB * charges / distance) * screened * polynomial_envelope(distance, end, self.exponent)
        return scatter_sum(0.5 * pair, target, atomic_numbers.shape[0])
