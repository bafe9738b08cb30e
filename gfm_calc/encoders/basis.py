"""Radial functions: a Bessel basis and a polynomial envelope, smooth to the second derivative at the cutoff."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def polynomial_envelope(distance: Tensor, cutoff: float | Tensor, exponent: int) -> Tensor:
    """u(r) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r/cutoff; 0 beyond.

    Value, first and second derivative vanish at the cutoff.  Source: Gasteiger, Groß, Günnemann, ICLR 2020,
    DOI 10.48550/arXiv.2003.03123, eq. 8.

    Args:
        distance: [E] in Å.
        cutoff: in Å, one number or [E].
        exponent: p >= 3.

    Returns:
        [E], from 1 at r = 0 to 0 at the cutoff.
    """
    p = exponent
    # The clamp keeps the value and the gradient exactly zero beyond the cutoff.
    x = (distance / cutoff).clamp(max=1.0)
    xp = x**p
    return 1.0 + xp * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * (p * (p + 1) / 2)))


def bessel_basis(distance: Tensor, cutoff: float, num_radial: int) -> Tensor:
    """sqrt(2/c) sin(n pi r / c) / r for n = 1 ... num_radial.

    Source: Gasteiger, Groß, Günnemann, ICLR 2020, DOI 10.48550/arXiv.2003.03123, eq. 7.  The sines of the multiples come
    from one sine and one cosine by the Chebyshev recurrence, which is several times cheaper than num_radial sines.

    Args:
        distance: [E] in Å, > 0.
        cutoff: c in Å.

    Returns:
        [E, num_radial] in Å^(-3/2).
    """
    angle = distance * (math.pi / cutoff)
    twice_cosine = 2.0 * torch.cos(angle)
    current = torch.sin(angle) * (math.sqrt(2.0 / cutoff) / distance)
    previous = torch.zeros_like(current)
    columns = []
    for _ in range(num_radial):
        columns.append(current)
        current, previous = twice_cosine * current - previous, current
    return torch.stack(columns, dim=-1)
