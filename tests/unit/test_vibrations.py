"""How crystals vibrate by a head: against its forces, a supercell, and what physics knows."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.phonons import Phonons
from support import batch_of, random_model

from gfm_calc import GFMCalculator, load_model
from gfm_calc.checkpoint import subset
from gfm_calc.stiffness import COLUMNS, STRAINS, Stiffness
from gfm_calc.vibrations import VIBRATIONS, repeats_of


def modes(model, *frames, head="first", **wanted):
    batch = batch_of(model, *frames)
    module = Stiffness(subset(model, [head]))
    return module.columns(model.inputs(batch), batch, **{"strains": False, **wanted})[:, len(STRAINS) :]


def crystal(seed=0):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.1, seed=seed)
    return atoms


def test_waves_are_those_of_the_supercell():
    """All that fit into it, however it is written down; a mean over them, and the highest."""
    model, atoms = random_model(), crystal()
    repeats = repeats_of(torch.from_numpy(atoms.cell.array))
    assert repeats == (2, 2, 2)
    alone = dict(zip(VIBRATIONS, modes(model, atoms)[0].tolist()))
    for k in range(1, 4):
        found = dict(zip(VIBRATIONS, modes(model, atoms.repeat((2, 2, 2)[:k] + (1,) * (3 - k)))[0].tolist()))
        for name in VIBRATIONS:
            if name != "highest, mean over waves":
                assert found[name] == pytest.approx(alone[name], rel=1e-6)
    assert found["highest, mean over waves"] == pytest.approx(found["highest"])  # one wave is left
    assert alone["highest, mean over waves"] < alone["highest"]


def test_frequencies_are_those_of_finite_displacements(tmp_path):
    """Of ase, with the supercell of the same size, at its waves."""
    model, atoms = random_model(), crystal()
    phonons = Phonons(
        atoms, GFMCalculator(model, head="first"), supercell=(2, 2, 2), delta=1e-3, name=str(tmp_path / "p")
    )
    phonons.run()
    phonons.read(acoustic=False, symmetrize=0)
    energies = phonons.band_structure(np.array(np.meshgrid(*[[0.0, 0.5]] * 3)).reshape(3, -1).T, verbose=False)
    terahertz = np.abs(energies) * 241.798926
    found = dict(zip(VIBRATIONS, modes(model, atoms)[0].tolist()))
    assert found["highest"] == pytest.approx(terahertz.max(), rel=1e-3)
    assert found["highest, mean over waves"] == pytest.approx(terahertz.max(axis=1).mean(), rel=1e-3)
    x = np.maximum(np.abs(energies) / (8.617333e-5 * 300), 1e-6)
    heat = 3 * np.mean(x**2 * np.exp(x) / np.expm1(x) ** 2)
    assert found["heat capacity"] == pytest.approx(heat, rel=1e-4)


def test_company_and_orientation_change_nothing():
    model, atoms = random_model(), crystal()
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    slab = crystal(1)
    slab.pbc = (True, True, False)
    alone = modes(model, atoms)[0]
    together = modes(model, slab, turned, bulk("Cu"), atoms)
    torch.testing.assert_close(together[1], alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together[3], alone, rtol=1e-9, atol=1e-9)
    assert not together[0].any()


def test_what_is_not_wanted_is_not_made(monkeypatch):
    model = random_model()
    batch = batch_of(model, crystal())
    module = Stiffness(subset(model, ["first"]))
    both = module.columns(model.inputs(batch), batch)[0]
    assert both[: len(STRAINS)].all() and both[len(STRAINS) :].all()
    for part, name in ((slice(0, 7), "_modes"), (slice(7, 12), "_strained")):
        with monkeypatch.context() as patch:
            patch.setattr(Stiffness, name, None)  # would fail
            module.weights.zero_()
            module.weights[:-1][part] = 1.0
            value = module(model.inputs(batch), batch)
        assert value.item() == pytest.approx(both[part].sum().item())


def test_gases_are_classical_and_what_overflows_is_seen():
    model = random_model()
    found = dict(zip(VIBRATIONS, modes(model, bulk("Ar", a=30.0))[0].tolist()))
    assert found["heat capacity"] == found["heat capacity, atoms alone"] == 3.0 and found["highest"] == 0.0
    broken = subset(model, ["first"])
    broken.energy_stack.output.fill_(torch.inf)
    assert modes(broken, crystal()).isnan().all()


def test_heat_capacities_of_crystals():
    """Measured at 300 K (CRC Handbook), in k_B an atom: diamond 0.74, silicon 2.38, rock salt 3.0, lead 3.2 (with expansion)."""
    model = load_model("gfm-small")
    frames = [bulk("C", a=3.567), bulk("Si", a=5.43), bulk("NaCl", "rocksalt", a=5.64), bulk("Pb", a=4.95)]
    found = modes(model, *frames, head="distilled-7net-l3i5")
    np.testing.assert_allclose(found[:, 0].numpy(), [0.74, 2.38, 2.95, 3.0], atol=0.25)
    assert COLUMNS[len(STRAINS)] == "heat capacity"
