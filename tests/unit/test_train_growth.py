"""A larger model that goes on where a smaller one is: the same energies, and room that learns."""

from dataclasses import replace

import pytest
import torch
from ase.build import bulk, molecule
from support import batch_of, predict, random_model

from gfm_calc.errors import ConfigError
from gfm_calc.train.adapters import add_adapters
from gfm_calc.train.growth import GROWS, grown

ELEMENTS = ("H", "C", "O", "Cu")
MORE = {"num_layers": 3, "num_radial": 11, "expansion": 3, "head_width": 29}
SMALL = {"num_layers": 2, "num_radial": 6, "head_width": 8, "num_features": 16}


def structures():
    metal = bulk("Cu", cubic=True)
    metal.rattle(0.1, seed=1)
    charged = molecule("CH3CH2OH")
    charged.info["charge"] = 1
    return [molecule("CH3CH2OH"), charged, metal]


@pytest.mark.parametrize("names", [[name] for name in GROWS] + [list(GROWS)], ids=lambda names: "+".join(names))
@pytest.mark.parametrize(("norm", "dtype"), [(None, torch.float64), ("soft", torch.float64), ("soft", torch.float32)])
def test_a_grown_model_gives_the_same_numbers(names, norm, dtype):
    source = random_model(heads=("one", "two"), elements=ELEMENTS, norm=norm, dtype=dtype, **SMALL)
    close = 1e-10 if dtype == torch.float64 else 1e-4
    state = torch.get_rng_state()
    before = {name: parameter.clone() for name, parameter in source.named_parameters()}
    model = grown(source, replace(source.config, **{name: MORE[name] for name in names}), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in source.parameters())
    for atoms in structures():
        for head in ("one", "two"):
            wanted, found = predict(source, atoms, head), predict(model, atoms, head)
            torch.testing.assert_close(found.energy, wanted.energy, rtol=0, atol=close)
            torch.testing.assert_close(found.forces, wanted.forces, rtol=0, atol=close)
    assert all(torch.equal(before[name], parameter) for name, parameter in source.named_parameters())


def test_what_is_new_learns():
    """Zeros that nothing reaches would stay zeros: after a step of new weights alone, all that is new has gradients."""
    source = random_model(elements=ELEMENTS, norm="soft", **SMALL)
    model = grown(source, replace(source.config, **MORE), seed=3).requires_grad_(True)
    old = dict(source.named_parameters())

    energies(model).backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            new = torch.ones_like(parameter, dtype=torch.bool)
            if name in old:
                new[tuple(slice(0, size) for size in old[name].shape)] = False
            parameter -= torch.where(new, 0.01 * parameter.grad, 0.0)
    model.zero_grad()
    energies(model).backward()
    for name, parameter in model.named_parameters():
        if name not in old:
            assert parameter.grad.abs().max() > 0, name
        elif parameter.shape != old[name].shape:
            new = parameter.grad.clone()
            new[tuple(slice(0, size) for size in old[name].shape)] = 0.0
            assert new.abs().max() > 0, name


def energies(model):
    """Of all structures by all heads, with gradients."""
    return sum(model.decode(model.encode(model.inputs(batch_of(model, atoms)))).sum() for atoms in structures())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"num_features": 32},
            "model.num_features is 16 there; only num_layers, num_radial, expansion, head_width may",
        ),
        ({"cutoff": 6.0}, "model.cutoff is 4.5 there"),
        ({"num_layers": 1, "expansion": 2}, "model.num_layers is 2 there, which can become more, not less"),
    ],
)
def test_other_changes_are_refused(change, said):
    source = random_model(elements=ELEMENTS, **SMALL)
    with pytest.raises(ConfigError) as error:
        grown(source, replace(source.config, **change), seed=1)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_heads_of_properties_do_not_grow():
    source = random_model(elements=ELEMENTS, properties=True, **SMALL)
    assert (
        grown(source, replace(source.config, expansion=2, num_radial=9), seed=1).property_heads == source.property_heads
    )
    for name in ("num_layers", "head_width"):
        with pytest.raises(ConfigError, match=rf"model\.{name} cannot grow with a head of a property \("):
            grown(source, replace(source.config, **{name: MORE[name]}), seed=1)


def test_properties_and_expected_errors_stay():
    source = random_model(elements=ELEMENTS, properties=True, uncertainty=("first", "gap"), **SMALL)
    model = grown(source, replace(source.config, expansion=2, num_radial=9), seed=1)
    assert model.uncertainty is not source.uncertainty
    for head in (*source.property_heads, "first"):
        atoms = structures()[2] if source.specs[head].stiffness else structures()[0]
        errors = {"uncertainty": head in ("first", "gap")}
        found, wanted = predict(model, atoms, head, **errors), predict(source, atoms, head, **errors)
        if head == "first":
            torch.testing.assert_close(found.energy_uncertainty, wanted.energy_uncertainty, rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(found.value, wanted.value, rtol=0, atol=1e-7)


def test_what_is_no_plain_model_is_refused():
    source = random_model(elements=ELEMENTS, **SMALL)
    add_adapters(source.encoder, 2, seed=1)
    with pytest.raises(ConfigError, match="merge its adapters first"):
        grown(source, replace(source.config, expansion=2), seed=1)
    source = random_model(elements=ELEMENTS, **SMALL)
    source.encoder.writes = ()  # another encoder, that does not say how
    with pytest.raises(ConfigError, match="the encoder painn cannot grow"):
        grown(source, replace(source.config, expansion=2), seed=1)
