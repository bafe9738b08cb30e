"""How crystals vibrate by a head: against its forces, a supercell, and what physics knows."""

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.phonons import Phonons
from support import batch_of, random_model

from gfm_calc import GFMCalculator, Predictor, load_model
from gfm_calc.checkpoint import subset
from gfm_calc.derivatives import hessian
from gfm_calc.errors import OutsideDomainError
from gfm_calc.stiffness import COLUMNS, MODES, STRAINS, Stiffness
from gfm_calc.vibrations import VIBRATIONS, repeats_of


def modes(model, *frames, head="first", **wanted):
    batch = batch_of(model, *frames)
    module = Stiffness(subset(model, [head]))
    return module.columns(model.inputs(batch), batch, **{"strains": False, **wanted})[:, MODES]


def crystal(seed=0):
    atoms = bulk("NaCl", "rocksalt", a=5.6)  # 3.2 Å wide
    atoms.rattle(0.1, seed=seed)
    return atoms


def explicit(model, atoms, repeats):
    """The columns from all second derivatives of a supercell that is written out; and from those of its first atoms."""
    cell = atoms.repeat(repeats)
    cell.info["charge"] = atoms.info.get("charge", 0) * len(cell) // len(atoms)
    full = hessian(model, batch_of(model, cell), "first").numpy()
    roots = np.repeat(cell.get_masses(), 3) ** -0.5
    scaled = full * roots[:, None] * roots
    terahertz = np.sqrt(np.abs(np.linalg.eigvalsh(scaled))) * units.s / (2e12 * np.pi)
    alone = [np.linalg.eigvalsh(scaled[3 * k : 3 * k + 3, 3 * k : 3 * k + 3]) for k in range(len(atoms))]
    alone = np.sqrt(np.abs(np.concatenate(alone))) * units.s / (2e12 * np.pi)
    heats = []
    for one in (terahertz, alone):
        x = np.maximum(one * 0.0041356677 / (units.kB * 300), 1e-6)
        heats.append(3 * np.mean(x**2 * np.exp(x) / np.expm1(x) ** 2))
    return {
        "heat capacity": heats[0], "heat capacity, atoms alone": heats[1], "highest": terahertz.max(),
        "mean": terahertz.mean(),
    }  # fmt: skip


@pytest.mark.parametrize("charge", [0, 1])
def test_waves_are_those_of_a_supercell(charge):
    """Three times as wide along each vector, in a skew basis and a left-handed one."""
    model, atoms = random_model(), bulk("CuAu", "zincblende", a=4.4)
    atoms.rattle(0.1, seed=1)
    atoms.info["charge"] = charge
    skew = atoms.copy()
    skew.set_cell(np.array([[1, 0, 0], [2, 1, 0], [0, -1, 1]]) @ atoms.cell.array)
    left = atoms.copy()
    left.set_cell(atoms.cell.array[[1, 0, 2]])
    assert repeats_of(atoms.cell.array)[0] == (3, 3, 3) and left.cell.volume > 0 > np.linalg.det(left.cell)
    wanted = explicit(model, atoms, (3, 3, 3))
    found = [dict(zip(VIBRATIONS, row.tolist())) for row in modes(model, atoms, skew, left)]
    for one in found:
        assert {name: one[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
        assert one["highest, mean over waves"] == pytest.approx(found[0]["highest, mean over waves"], rel=1e-6)


def test_a_larger_cell_of_the_same_waves_says_the_same():
    model, atoms = random_model(), crystal()
    assert repeats_of(atoms.cell.array)[0] == (2, 2, 2)
    alone, whole = (dict(zip(VIBRATIONS, row.tolist())) for row in modes(model, atoms, atoms.repeat((2, 2, 2))))
    for name in VIBRATIONS:
        if name != "highest, mean over waves":
            assert whole[name] == pytest.approx(alone[name], rel=1e-6)
    assert whole["highest, mean over waves"] == pytest.approx(whole["highest"])  # one wave is left
    assert alone["highest, mean over waves"] < 0.99 * alone["highest"]


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
    assert both[STRAINS].all() and both[MODES].all()
    for part, name in ((STRAINS, "_modes"), (MODES, "_strained")):
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
    assert COLUMNS[MODES][0] == "heat capacity"


def test_what_is_no_crystal_is_refused():
    """By name; without strict it is the one of its batch that has no value."""
    model, atoms = random_model(properties=True), crystal()
    slab = crystal()
    slab.pbc = (True, True, False)
    with pytest.raises(OutsideDomainError, match="head volume is one of crystals, periodic along three axes$"):
        list(Predictor(model, ["volume"]).predict([slab]))
    found = list(Predictor(model, ["volume"], strict=False).predict([atoms, slab], on_error="yield"))
    assert found[0]["volume"].value.isfinite() and "or it is of no crystal" in str(found[1])
