"""Every encoder under the physics contract."""

from contract import PhysicsContract

from gfm_calc.encoders import ENCODERS


class TestPaiNN(PhysicsContract):
    encoder = "painn"


def test_every_encoder_is_under_contract():
    assert {contract.encoder for contract in PhysicsContract.__subclasses__()} == set(ENCODERS)
