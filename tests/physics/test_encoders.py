"""Every encoder under the physics contract."""

import copy

import pytest
import torch
from ase.build import bulk
from contract import PhysicsContract
from support import predict, random_model

from gfm_calc.encoders import ENCODERS
from gfm_calc.encoders.base import soft_norm


class TestPaiNN(PhysicsContract):
    encoder = "painn"


class TestPaiNNWithNorm(PhysicsContract):
    encoder = "painn"
    options = {"norm": "soft"}


def test_a_norm_keeps_layers_from_raising_what_is_large_to_a_higher_power():
    """Weights four times as large: two layers of products alone make some 1e9 times the energy of it."""
    cell, found = bulk("Cu", cubic=True), {}
    cell.rattle(0.1, seed=1)
    for norm in (None, "soft"):
        usual = random_model(norm=norm)
        large = copy.deepcopy(usual)
        for parameter in large.encoder.parameters():
            parameter.mul_(4.0)
        own = usual.specs["first"].reference_energies["Cu"]
        before, after = ((predict(m, cell, "first").energies - own).abs().mean() for m in (usual, large))
        found[norm] = float(after / before)
    assert found["soft"] < 1e4 and found[None] > 1e3 * found["soft"]


@pytest.mark.parametrize("shape", [(5, 16), (5, 3, 16)])
def test_soft_norm_leaves_small_values_and_bounds_large_ones(shape):
    values = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(soft_norm(1e-6 * values), 1e-6 * values, rtol=1e-10, atol=0)
    far = soft_norm(1e6 * values).square().flatten(1).sum(dim=1) / 16
    torch.testing.assert_close(far, torch.ones(5, dtype=torch.float64))


def test_every_encoder_is_under_contract():
    assert {contract.encoder for contract in PhysicsContract.__subclasses__()} == set(ENCODERS)
