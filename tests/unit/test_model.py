"""The model: heads by name, what is asked for and no more, inputs that matter, nothing left behind."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from support import batch_of, head_spec, predict, random_model, same, structures

from gfm_calc.checkpoint import subset
from gfm_calc.config import ModelConfig
from gfm_calc.derivatives import hessian
from gfm_calc.errors import ConfigError, HeadError
from gfm_calc.fields import OUTPUT_FIELDS
from gfm_calc.model import GFMModel


def test_unknown_heads_name_the_closest(model):
    with pytest.raises(HeadError, match=r"no head 'frist' \(did you mean 'first'\?\); heads: first, second, third"):
        model.spec("frist")
    for head in (0, 1.0, None, ["first"], b"first"):
        with pytest.raises(HeadError, match="a head is named by a string"):
            model.spec(head)
    batch = batch_of(model, Atoms("H"))
    with pytest.raises(HeadError, match="no head chosen; heads: first"):
        model.predict(batch, [])
    with pytest.raises(HeadError):
        model.predict(batch, ["first", "none"])


def test_two_heads_of_one_name_and_unknown_encoders():
    with pytest.raises(HeadError, match="same name"):
        GFMModel(ModelConfig(num_features=4), [head_spec("a"), head_spec("a")])
    with pytest.raises(ConfigError, match=r"unknown encoder 'pain' \(did you mean 'painn'\?\)"):
        GFMModel(ModelConfig(encoder="pain"), [head_spec("a")])


def test_outputs_follow_the_table_of_fields(model):
    several = [structures()[name] for name in ("molecule", "crystal", "slab")]
    knowing = random_model(uncertainty=("second",))
    found = knowing.predict(batch_of(model, *several), ["second"], stresses=True, uncertainty=True)["second"]
    sizes = {"atom": sum(map(len, several)), "graph": 3}
    for name, field in OUTPUT_FIELDS.items():
        tensor = getattr(found, name)
        assert tuple(tensor.shape) == (sizes[field.level], *field.shape), name
        assert str(tensor.dtype) == f"torch.{field.dtype}", name
        assert not tensor.requires_grad, name
    assert found.head == "second"


def test_nothing_is_computed_that_was_not_asked_for(model):
    found = predict(model, molecule("H2O"), forces=False)
    assert found.forces is found.stress is found.stresses is found.virial is found.value is None
    assert predict(model, molecule("H2O")).stresses is None
    silent = predict(random_model(uncertainty=("first",)), molecule("H2O"))
    assert silent.energy_uncertainty is silent.forces_uncertainty is None


def test_charge_and_spin_are_inputs(model):
    energies = set()
    for info in ({}, {"charge": 1}, {"charge": -1}, {"charge": 1, "spin": 4}, {"spin": 3}):
        atoms = molecule("CH3OH")
        atoms.info.update(info)
        energies.add(round(predict(model, atoms).energy.item(), 6))
    assert len(energies) == 5
    default, explicit = molecule("CH3OH"), molecule("CH3OH")
    explicit.info.update(charge=0, spin=1)
    assert same(predict(model, default), predict(model, explicit))


def test_charge_in_a_batch_stays_with_its_structure(model):
    neutral, cation = molecule("CH3OH"), molecule("CH3OH")
    cation.info["charge"] = 1
    both = model.predict(batch_of(model, neutral, cation), ["first"])["first"].energy
    for found, atoms in zip(both, (neutral, cation)):
        assert abs(found - predict(model, atoms).energy[0]) < 1e-9


def test_repulsion_keeps_atoms_apart():
    """Energies rise steeply where there are no data, and are the network's alone at bonding distance."""
    bare, walled = random_model(repulsion=None), random_model()
    walled_energy = [
        predict(walled, Atoms("CO", positions=[[0, 0, 0], [0, 0, d]])).energy.item() for d in (0.2, 0.4, 0.8, 1.6)
    ]
    bare_energy = [
        predict(bare, Atoms("CO", positions=[[0, 0, 0], [0, 0, d]])).energy.item() for d in (0.2, 0.4, 0.8, 1.6)
    ]
    added = [w - b for w, b in zip(walled_energy, bare_energy)]
    assert added[0] > 2 * added[1] > 4 * added[2] > 0
    assert added[0] > 500
    assert abs(added[3]) < 1e-9


def test_subset_keeps_the_numbers():
    model = random_model(properties=True)
    batch = batch_of(model, *structures().values())
    smaller = subset(model, ["third", "dipoles", "first"])
    assert list(smaller.specs) == ["third", "dipoles", "first"]
    wanted, found = (m.predict(batch, ["third", "dipoles"]) for m in (model, smaller))
    torch.testing.assert_close(found["third"].energy, wanted["third"].energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(found["third"].forces, wanted["third"].forces, rtol=0, atol=1e-9)
    assert torch.equal(found["dipoles"].value, wanted["dipoles"].value)
    with pytest.raises(HeadError):
        subset(model, ["fourth"])


@pytest.mark.parametrize("name", ["molecule", "crystal", "tiny cell"])
def test_hessian_is_the_derivative_of_the_forces(model, name):
    atoms, step = structures()[name], 1e-4
    found = hessian(model, batch_of(model, atoms), "second")
    assert torch.equal(found, found.t())
    for index in ((0, 0), (len(atoms) - 1, 2)):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * step
            forces.append(predict(model, moved, "second").forces.flatten())
        row = found[3 * index[0] + index[1]]
        torch.testing.assert_close(row, (forces[1] - forces[0]) / (2 * step), rtol=1e-5, atol=1e-5)


def test_predicting_under_no_grad_and_leaving_grad_mode_alone(model):
    atoms = bulk("Cu", cubic=True)
    wanted = predict(model, atoms)
    with torch.no_grad():
        assert same(predict(model, atoms), wanted)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_predictions_leave_batch_and_weights_alone(model):
    batch = batch_of(model, structures()["molecule"], structures()["slab"])
    before = {name: batch[name].clone() for name in batch.keys() if isinstance(batch[name], torch.Tensor)}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.predict(batch, list(model.energy_heads), stresses=True)
    assert all(torch.equal(batch[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("repulsion", ["zbl", None])
def test_large_batches_give_each_head_its_own_gradient(repulsion, monkeypatch):
    """Head by head, or all heads in one batched gradient: the same forces and errors to expect, those of each head alone."""
    model = random_model(repulsion=repulsion, uncertainty=("second",))
    batch = batch_of(model, *(structures()[name] for name in ("molecule", "crystal", "slab")))
    heads = ["second", "first"]
    together = model.predict(batch, heads, stresses=True)
    monkeypatch.setattr("gfm_calc.model._BATCHED_GRADIENT_EDGES", 0)
    apart = model.predict(batch, heads, stresses=True)
    for head in heads:
        alone = model.predict(batch, [head], stresses=True)[head]
        for found in (together[head], apart[head]):
            for name in ("energy", "energies", "forces", "virial", "stresses"):
                torch.testing.assert_close(
                    getattr(found, name), getattr(alone, name), rtol=1e-11, atol=1e-11, equal_nan=True
                )
    errors = model.predict(batch, ["second"], uncertainty=True)["second"]
    twice = model.predict(batch, ["second", "second"], uncertainty=True)["second"]
    assert torch.equal(errors.energy_uncertainty, twice.energy_uncertainty)
    assert not torch.equal(together["first"].forces, together["second"].forces)
