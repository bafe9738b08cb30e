"""How stiff a head says crystals are: against differences of its energies, and what has none."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from support import batch_of, predict, random_model

from gfm_calc import stiffness
from gfm_calc.checkpoint import load_model, save_model, subset
from gfm_calc.config import HeadSpec
from gfm_calc.errors import ConfigError
from gfm_calc.finetune.combine import combine
from gfm_calc.stiffness import COLUMNS, STRAINS, Stiffness
from gfm_calc.train.mean import mean_of

GPA = 160.21766208


def crystal(seed=0):
    atoms = bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=seed)
    return atoms


def columns(model, frames, head="first"):
    batch = batch_of(model, *frames)
    return Stiffness(subset(model, [head])).columns(model.inputs(batch), batch)


def energy(model, atoms, strain):
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return predict(model, moved, "first").energy.item()


def bend(model, atoms, strain, step=3e-5):
    """d²E/dx² of a strain x times `strain`, over the volume, GPa."""
    below, middle, above = (energy(model, atoms, x * step * strain) for x in (-1, 0, 1))
    return (below + above - 2 * middle) / step**2 / atoms.get_volume() * GPA


def test_moduli_are_second_differences_of_the_energy():
    model, atoms = random_model(), crystal()
    found = dict(zip(COLUMNS, columns(model, [atoms])[0].tolist()))
    assert found["bulk"] == pytest.approx(bend(model, atoms, np.eye(3)) / 9, rel=2e-4)
    trace = 0.0
    for a in range(3):
        for b in range(3):
            unit = np.zeros((3, 3))
            unit[a, b] += 0.5
            unit[b, a] += 0.5
            trace += bend(model, atoms, unit)  # E is flat along the antisymmetric part
    assert found["shear"] == pytest.approx((trace - 3 * found["bulk"]) / 10, rel=1e-3)
    assert found["bulk, bent"] == pytest.approx(np.arcsinh(found["bulk"] / 10))
    assert found["shear, bent"] == pytest.approx(np.arcsinh(found["shear"] / 10))
    stress = predict(model, atoms, "first").stress[0].numpy()
    assert found["stress, bent"] == pytest.approx(np.arcsinh(np.trace(stress) / 3 * GPA / 2))
    assert found["number density"] == pytest.approx(len(atoms) / atoms.get_volume())
    assert found["mass density"] == pytest.approx(atoms.get_masses().sum() / atoms.get_volume())


def test_neither_rotation_nor_supercell_nor_company_changes_them(monkeypatch):
    model, atoms = random_model(), crystal()
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    alone = columns(model, [atoms])[0, STRAINS]  # of vibrations see test_vibrations
    frames = [molecule("H2O"), turned, atoms.repeat((1, 2, 1)), bulk("Cu"), atoms]
    together = columns(model, frames)[:, STRAINS]
    for row in (1, 2, 4):
        torch.testing.assert_close(together[row], alone, rtol=1e-7, atol=1e-9)
    monkeypatch.setattr(stiffness, "_MOST_EDGES", 1)  # a structure at a time
    torch.testing.assert_close(columns(model, frames)[:, STRAINS], together, rtol=1e-9, atol=1e-12)


def test_what_is_no_crystal_has_none():
    slab = crystal()
    slab.pbc = (True, True, False)
    assert not columns(random_model(), [molecule("H2O"), slab]).any()
    gas = bulk("Ar", a=30.0)  # no neighbours
    found = dict(zip(COLUMNS, columns(random_model(), [gas])[0].tolist()))
    assert found["bulk"] == found["shear"] == found["stress, bent"] == 0.0 and found["number density"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_adds_it_and_keeps_it(dtype, tmp_path):
    """To a sum over atoms for each atom; through casts, files and other heads."""
    model = random_model(properties=True)
    module = model.properties[1].stiffness
    assert model.specs["volume"].stiffness == "first" and isinstance(module, Stiffness)
    atoms = crystal()
    batch = batch_of(model, atoms)
    whole = predict(model, atoms, "volume").value.item()
    added = module(model.inputs(batch), batch).item() * len(atoms)
    save_model(model, tmp_path / "model")
    for one in (load_model(tmp_path / "model", dtype=dtype), subset(model, ["volume"]).to(dtype)):
        assert predict(one, atoms, "volume").value.item() == pytest.approx(
            whole, rel=1e-4 if dtype == torch.float32 else 1e-9
        )
        own = one.properties[one.property_heads.index("volume")].stiffness
        assert own.weights.dtype == torch.float64 and torch.equal(own.weights, module.weights)
    assert abs(added) > 1e-3 * abs(whole)
    silent = load_model(tmp_path / "model")
    silent.properties[1].stiffness.weights.zero_()
    assert predict(silent, atoms, "volume").value.item() == pytest.approx(whole - added, rel=1e-9)


def test_half_precision_leaves_second_derivatives_alone():
    model, frames = random_model(dtype=torch.float32), [crystal(), crystal(1)]
    wanted = columns(model, frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(columns(model, frames), wanted)


def test_what_overflows_is_seen():
    model = subset(random_model(), ["first"])
    model.energy_stack.output.fill_(torch.inf)
    assert not columns(model, [crystal()]).isfinite().all() and columns(model, [molecule("H2O")]).isfinite().all()


def test_an_old_head_keeps_it_beside_another_encoder():
    start, trained = random_model(properties=True), random_model(seed=5, heads=("other",))
    found = combine(trained, start, ["volume", "first"], cards=start.specs, note="moved")
    new, old = (one.properties[one.property_heads.index("volume")].stiffness for one in (found, start))
    state = new.state_dict()
    assert state.keys() == old.state_dict().keys() and len(state) > 10
    assert all(torch.equal(state[name], tensor) for name, tensor in old.state_dict().items())


def test_models_of_different_guesses_have_no_mean():
    first, second = random_model(properties=True), random_model(properties=True, seed=1)
    with pytest.raises(ConfigError, match="different first guesses: there is no mean of them"):
        mean_of([subset(first, list(first.specs)), subset(second, list(second.specs))])


def test_it_is_predicted_where_no_gradient_is_recorded():
    model, atoms = random_model(properties=True), crystal()
    wanted = predict(model, atoms, "volume").value
    with torch.inference_mode():
        assert torch.equal(predict(model, atoms, "volume").value, wanted)


@pytest.mark.parametrize(
    "values", [{"kind": "vector"}, {"kind": "class", "extensive": False}, {"stiffness": "No Name"}]
)
def test_cards_that_cannot_be(values):
    with pytest.raises(ConfigError, match="stiffness must be a head's name, of a scalar"):
        HeadSpec(**{"name": "mine", "kind": "scalar", "stiffness": "old", **values})
