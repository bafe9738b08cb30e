"""Updates of matrices whose singular values are all made equal: the optimiser Muon.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale that lets it share AdamW's learning rate is that of
Liu et al., DOI 10.48550/arXiv.2502.16982.
"""

from __future__ import annotations

import math

from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # takes singular values in (0, 1] to about 1 in few rounds
_ROUNDS = 5
_RMS = 0.2  # of an entry of AdamW's update


def orthogonalized(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix's singular value decomposition, times what gives its entries AdamW's usual size.

    Args:
        matrix: [m, n].

    Returns:
        [m, n]; singular values within about 0.7 to 1.2 times the scale; zeros of zeros.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-30)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x) * (_RMS * math.sqrt(max(matrix.shape)))
