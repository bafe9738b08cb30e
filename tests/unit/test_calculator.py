"""The calculator under ASE's whole contract: nothing stale, nothing changed, the same numbers as the model."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from ase.stress import full_3x3_to_voigt_6_stress
from support import batch_of, predict, random_model, structures

from gfm_calc import GFMCalculator
from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.errors import ConfigError, GFMError, HeadError, InvalidStructureError, OutsideDomainError
from gfm_calc.predictor import Predictor

ELEMENTS = ("H", "C", "N", "O", "Na", "Al", "Si", "Cl", "Cu", "Pt", "Au", "Fe", "Zn")


@pytest.fixture
def calc(model):
    return GFMCalculator(model, head="first", skin=0.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("calculator") / "model"
    save_model(random_model(elements=ELEMENTS), directory)
    return directory


def cell_of_copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


# ---- R12: one path ----


@pytest.mark.promise("R12")
@pytest.mark.parametrize("name", structures())
def test_calculator_predictor_and_model_are_one(model, calc, name):
    atoms = structures()[name]
    wanted = predict(model, atoms, "first", stresses=True)
    (row,) = Predictor(model, ["first"]).predict([atoms])
    assert row["first"].energy.item() == wanted.energy.item()
    atoms.calc = calc
    assert atoms.get_potential_energy() == wanted.energy.item() == calc.results["free_energy"]
    assert np.array_equal(atoms.get_forces(), wanted.forces.numpy())
    assert np.array_equal(atoms.get_potential_energies(), wanted.energies.numpy())
    if atoms.pbc.all():
        plain = predict(model, atoms, "first").stress[0].numpy()
        assert np.array_equal(atoms.get_stress(), full_3x3_to_voigt_6_stress(plain))
        assert np.array_equal(atoms.get_stresses(), full_3x3_to_voigt_6_stress(wanted.stresses.numpy()))


# ---- R11: nothing stale, nothing changed, nothing shared ----

CHANGES = {
    "positions": lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 0.1),
    "a little": lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 1e-9),
    "cell": lambda a: a.set_cell(a.cell * 1.01),
    "cell by much": lambda a: a.set_cell(a.cell * 0.75),
    "cell and positions": lambda a: a.set_cell(a.cell * 1.01, scale_atoms=True),
    "pbc": lambda a: a.set_pbc((True, True, False)),
    "element": lambda a: a.numbers.__setitem__(0, 47),
    "charge": lambda a: a.info.update(charge=2),
    "spin": lambda a: a.info.update(spin=4),
    "one atom less": lambda a: a.__delitem__(0),
    "one atom more": lambda a: a.append("H"),
    "another order": lambda a: a.positions.__setitem__(slice(None), a.positions[::-1].copy()),
}


@pytest.mark.promise("R11")
@pytest.mark.parametrize("skin", [0.0, 0.7])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_stale(model, change, skin):
    atoms = cell_of_copper() + Atoms("H", positions=[[0.9, 0.8, 1.0]])
    atoms.calc = GFMCalculator(model, head="first", skin=skin)
    before = atoms.get_potential_energy(), atoms.get_forces()
    CHANGES[change](atoms)
    if change == "one atom more":
        atoms.positions[-1] = [2.5, 2.6, 2.4]
    wanted = predict(model, atoms, "first")
    assert abs(atoms.get_potential_energy() - wanted.energy.item()) < 1e-9
    np.testing.assert_allclose(atoms.get_forces(), wanted.forces.numpy(), atol=1e-9)
    moved = abs(atoms.get_potential_energy() - before[0])
    assert moved > 0 or not np.array_equal(atoms.get_forces(), before[1])


@pytest.mark.promise("R11")
def test_charge_and_spin_are_read_again(model):
    atoms = molecule("CH3OH")
    atoms.calc = GFMCalculator(model, head="first")
    energies = []
    for info in ({}, {"charge": 1}, {"charge": 1, "spin": 4}, {"charge": -1}, {}):
        atoms.info = dict(info)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[-1]
    assert len({round(e, 6) for e in energies}) == 4


@pytest.mark.promise("R11")
def test_another_head_is_another_result(model):
    atoms = cell_of_copper()
    atoms.calc = calc = GFMCalculator(model, head="first")
    first = atoms.get_potential_energy()
    calc.head = "second"
    assert calc.head == calc.parameters["head"] == "second"
    assert abs(atoms.get_potential_energy() - predict(model, atoms, "second").energy.item()) < 1e-9
    with pytest.raises(HeadError):
        calc.head = "fourth"
    assert calc.head == "second"
    calc.head = "first"
    assert atoms.get_potential_energy() == first
    with pytest.raises(ConfigError, match="set calc.head"):
        calc.set(head="second")


@pytest.mark.promise("R11")
def test_an_error_leaves_no_old_numbers(model):
    atoms, bad = molecule("H2O"), molecule("H2O")
    bad.positions[0] = np.nan
    calc = GFMCalculator(model, head="first")
    atoms.calc = bad.calc = calc
    energy = atoms.get_potential_energy()
    for _ in range(2):
        with pytest.raises(InvalidStructureError, match="atom 0: position is NaN"):
            bad.get_potential_energy()
    assert not calc.results
    overlap = molecule("H2O")
    overlap.positions[1] = overlap.positions[0]
    assert atoms.get_potential_energy() == energy
    with pytest.raises(InvalidStructureError):
        calc.calculate(overlap, ["energy"])
    assert not calc.results
    with pytest.raises(InvalidStructureError):
        calc.get_property("energy", overlap)
    assert atoms.get_potential_energy() == energy


@pytest.mark.promise("R11")
@pytest.mark.parametrize("name", structures())
def test_inputs_are_left_alone(model, name):
    atoms = structures()[name]
    atoms.info["note"] = ["kept"]
    atoms.set_array("tags", np.arange(len(atoms)))
    twin = atoms.copy()
    atoms.calc = calc = GFMCalculator(model, head="first")
    atoms.get_forces()
    calc.compare_heads(atoms)
    calc.delta(atoms, "first", "second")
    calc.descriptors(atoms)
    calc.hessian(atoms)
    assert atoms == twin and atoms.info == twin.info
    assert atoms.arrays.keys() == twin.arrays.keys()
    assert all(np.array_equal(atoms.arrays[key], twin.arrays[key]) for key in twin.arrays)


@pytest.mark.promise("R11")
def test_results_cannot_be_spoilt_from_outside(model):
    atoms = cell_of_copper()
    atoms.calc = GFMCalculator(model, head="first")
    forces = atoms.get_forces()
    wanted = forces.copy()
    forces[:] = 0
    assert np.array_equal(atoms.get_forces(), wanted)


@pytest.mark.promise("R11")
def test_two_calculators_are_independent(model):
    one, two = cell_of_copper(), molecule("CH3OH")
    one.calc, two.calc = GFMCalculator(model, head="first"), GFMCalculator(model, head="second")
    energies = one.get_potential_energy(), two.get_potential_energy()
    for _ in range(3):
        two.rattle(0.01, seed=3)
        two.get_forces()
        assert one.get_potential_energy() == energies[0]
    copied = copy.deepcopy(one)
    copied.positions += 0.0
    copied.positions[0, 0] += 0.2
    copied.calc.head = "third"
    assert copied.get_potential_energy() != energies[0]
    assert one.calc.head == "first"
    assert one.get_potential_energy() == energies[0]
    # One calculator on two structures in turn.
    shared = GFMCalculator(model, head="first")
    one.calc = two.calc = shared
    pair = [(one.get_potential_energy(), two.get_potential_energy()) for _ in range(3)]
    assert pair[0] == pair[1] == pair[2]


@pytest.mark.promise("R11")
def test_copies_of_atoms_have_no_calculator(model):
    atoms = cell_of_copper()
    atoms.calc = GFMCalculator(model, head="first")
    atoms.get_forces()
    assert atoms.copy().calc is None


# ---- Verlet lists ----


@pytest.mark.promise("R12")
@pytest.mark.parametrize("name", ["molecule", "crystal", "slab", "wire", "tiny cell"])
def test_reused_neighbours_equal_fresh_ones_along_md(model, name):
    atoms = structures()[name]
    atoms.calc = calc = GFMCalculator(model, head="first", skin=0.6)
    MaxwellBoltzmannDistribution(atoms, temperature_K=1500, rng=np.random.default_rng(0))
    md = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    for _ in range(60):
        md.run(1)
        fresh = predict(model, atoms, "first")
        assert abs(atoms.get_potential_energy() - fresh.energy.item()) / len(atoms) <= 1e-10
        np.testing.assert_allclose(atoms.get_forces(), fresh.forces.numpy(), rtol=0, atol=1e-9)
    assert 1 <= calc.verlet.builds < 40, "the list was never reused"
    before = calc.verlet.builds
    atoms.positions[0] += 0.4
    atoms.get_forces()
    assert calc.verlet.builds == before + 1


def test_neighbours_follow_the_cell_and_wrapping(model):
    atoms = cell_of_copper()
    atoms.calc = GFMCalculator(model, head="first", skin=1.0)
    atoms.get_forces()
    changes = (
        lambda: atoms.set_cell(atoms.cell * 0.97, scale_atoms=True), lambda: atoms.positions.__iadd__(7.3), atoms.wrap,
    )  # fmt: skip
    for change in changes:
        change()
        np.testing.assert_allclose(atoms.get_forces(), predict(model, atoms, "first").forces.numpy(), atol=1e-9)


# ---- choices at construction ----


def test_a_head_has_to_be_chosen(model, saved):
    with pytest.raises(HeadError, match=r"this model has 3 heads; choose one with head=\.\.\.: first, second, third"):
        GFMCalculator(model)
    with pytest.raises(HeadError, match="did you mean 'second'"):
        GFMCalculator(saved, head="secnd")
    for head in (0, True, ["first"]):
        with pytest.raises(HeadError, match="a head is named by a string"):
            GFMCalculator(model, head=head)
    assert GFMCalculator(random_model(heads=("only",))).head == "only"
    with pytest.raises(HeadError, match="predicts gap, not energies"):
        GFMCalculator(random_model(properties=True), head="gap")


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float16"}, {"device": "abacus"}, {"skin": -1}, {"skin": "0.5"}, {"skin": float("nan")},
        {"charge_from": "nowhere"}, {"dispersion": "d4"}, {"dispersion": "d3bj"},
    ],
)  # fmt: skip
def test_impossible_options(saved, options):
    with pytest.raises(GFMError) as caught:
        GFMCalculator(saved, head="first", **options)
    assert "\n" not in str(caught.value)


def test_domain_is_kept_unless_told_otherwise(saved):
    atoms = Atoms("UO", positions=[[0, 0, 0], [0, 0, 1.8]])
    atoms.calc = GFMCalculator(saved, head="first")
    with pytest.raises(OutsideDomainError, match="head first has not seen U"):
        atoms.get_potential_energy()
    atoms.calc = GFMCalculator(saved, head="first", strict=False)
    assert np.isfinite(atoms.get_potential_energy())


def test_charge_from_initial_charges_and_moments(model):
    atoms, info = molecule("CH3OH"), molecule("CH3OH")
    atoms.set_initial_charges([0.5, 0.5, 0, 0, 0, 0])
    atoms.set_initial_magnetic_moments([3, 0, 0, 0, 0, 0])
    info.info.update(charge=1, spin=4)
    atoms.calc = GFMCalculator(model, head="first", charge_from="initial")
    info.calc = GFMCalculator(model, head="first")
    assert atoms.get_potential_energy() == info.get_potential_energy()
    atoms.set_initial_charges([0.5, 0, 0, 0, 0, 0])
    with pytest.raises(InvalidStructureError, match="initial charges sum to 0.5, not to a whole number"):
        atoms.get_potential_energy()


# ---- stress with fewer than three periodic axes ----


@pytest.mark.parametrize("name", ["slab", "wire"])
def test_stress_of_partial_pbc_is_the_derivative_within_the_axes(model, name):
    atoms = structures()[name]
    atoms.calc = GFMCalculator(model, head="first", skin=0.0)
    if atoms.cell[2, 2] == 0:
        atoms.cell[2, 2] = 20.0
    found = atoms.get_stress(voigt=False)
    free = np.flatnonzero(~atoms.pbc)
    assert not np.abs(found[free]).max() > 1e-15
    step = 1e-4
    for row in np.flatnonzero(atoms.pbc):
        energies = []
        for k in (-2, -1, 1, 2):
            strain = np.eye(3)
            strain[row, row] += k * step
            energies.append(predict(model, _scaled(atoms, strain), "first").energy.item())
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
        assert abs(slope / atoms.get_volume() - found[row, row]) <= 1e-7


def _scaled(atoms: Atoms, strain: np.ndarray) -> Atoms:
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return moved


def test_stress_is_refused_where_there_is_none(model):
    inclined = structures()["slab"]
    inclined.cell[2] = [3.0, 0, 20.0]
    for atoms in (molecule("H2O"), inclined):
        atoms.calc = GFMCalculator(model, head="first")
        with pytest.raises(PropertyNotImplementedError, match="needs a cell"):
            atoms.get_stress()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stresses()
        assert np.isfinite(atoms.get_potential_energy())


# ---- what people do with it ----


@pytest.mark.parametrize("optimizer", [BFGS, LBFGS, FIRE])
def test_optimisers(model, optimizer):
    atoms = cell_of_copper()
    atoms.calc = GFMCalculator(model, head="first")
    before = atoms.get_potential_energy()
    optimizer(atoms, logfile=None).run(fmax=0.05, steps=60)
    assert atoms.get_potential_energy() < before


@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, UnitCellFilter, StrainFilter])
def test_cell_filters(model, cell_filter):
    atoms = bulk("Cu")
    atoms.calc = GFMCalculator(model, head="first")
    before = atoms.get_potential_energy(), np.abs(atoms.get_stress()).max()
    BFGS(cell_filter(atoms), logfile=None).run(fmax=0.05, steps=15)
    assert atoms.get_potential_energy() < before[0]


def test_constraints(model):
    slab = fcc111("Pt", (1, 1, 3), vacuum=8.0)
    add_adsorbate(slab, "O", 1.3, "fcc")
    slab.rattle(0.1, seed=2)
    slab.set_constraint(FixAtoms(indices=[0, 1]))
    slab.calc = GFMCalculator(model, head="second")
    start = slab.positions.copy()
    assert not slab.get_forces()[:2].any() and slab.get_forces(apply_constraint=False)[:2].any()
    FIRE(slab, logfile=None).run(fmax=1e-6, steps=5)
    assert np.array_equal(slab.positions[:2], start[:2]) and not np.array_equal(slab.positions, start)
    ethanol = molecule("CH3CH2OH")
    ethanol.set_constraint(FixBondLength(0, 1))
    ethanol.calc = slab.calc
    length = ethanol.get_distance(0, 1)
    FIRE(ethanol, logfile=None).run(fmax=1e-6, steps=5)
    assert abs(ethanol.get_distance(0, 1) - length) < 1e-8


@pytest.mark.parametrize("shared", [True, False])
def test_nudged_elastic_band(model, shared):
    first = molecule("H2O")
    last = first.copy()
    last.positions[1] += [0.5, 0.3, 0.0]
    images = [first, *[first.copy() for _ in range(3)], last]
    band = NEB(images, allow_shared_calculator=shared)
    band.interpolate()
    one = GFMCalculator(model, head="first")
    for image in images:
        image.calc = one if shared else GFMCalculator(model, head="first")
    forces = band.get_forces()
    assert forces.shape == (9, 3) and np.isfinite(forces).all()
    assert len({round(image.get_potential_energy(), 8) for image in images}) == 5
    BFGS(band, logfile=None).run(fmax=1e-6, steps=2)


def test_single_precision_by_default(saved):
    atoms = cell_of_copper()
    atoms.calc = GFMCalculator(saved, head="first")
    rough = atoms.get_forces()
    atoms.calc = GFMCalculator(saved, head="first", dtype="float64")
    assert 0 < np.abs(rough - atoms.get_forces()).max() < 1e-4


# ---- processes ----


def _energy_of(atoms: Atoms) -> tuple[float, str]:
    return atoms.get_potential_energy(), atoms.calc.head


def test_workers_load_the_model_by_its_path(saved):
    atoms = cell_of_copper()
    atoms.calc = GFMCalculator(saved, head="second", dtype="float64", skin=0.0)
    energy = atoms.get_potential_energy()
    assert len(pickle.dumps(atoms.calc)) < 2000, "weights travel"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(_energy_of, [atoms])
    assert found == (energy, "second")


def test_a_model_in_memory_cannot_travel(model):
    with pytest.raises(GFMError, match="save_model it and give the directory"):
        pickle.dumps(GFMCalculator(model, head="first"))


def test_pickled_options_are_kept(saved):
    calc = GFMCalculator(saved, head="second", dtype="float64", skin=0.3, strict=False, charge_from="initial")
    twin = pickle.loads(pickle.dumps(calc))
    assert twin.parameters == calc.parameters and twin.head == "second"
    assert (twin.strict, twin.charge_from, twin.model_id) == (False, "initial", calc.model_id)


# ---- several heads ----


def test_compare_heads(model):
    atoms = cell_of_copper()
    found = GFMCalculator(model, head="first").compare_heads(atoms)
    assert list(found.energies) == ["first", "second", "third"]
    for head in found.energies:
        alone = predict(model, atoms, head)
        assert abs(found.energies[head] - alone.energy.item()) < 1e-9
        np.testing.assert_allclose(found.forces[head], alone.forces.numpy(), atol=1e-9)
        bound = model.specs[head].reference_energy(atoms.numbers) - found.energies[head]
        assert found.atomisation_energies[head] == pytest.approx(bound, abs=1e-9)
    assert found.comparable == () and np.isnan(found.atomisation_spread), "fitted references are not comparable"
    assert found.forces_spread.shape == (4,) and (found.forces_spread > 0).all()
    assert not found.refused


def test_delta(model):
    atoms = molecule("CH3OH")
    calc = GFMCalculator(model, head="third")
    found = calc.delta(atoms, "first", "second")
    a, b = (predict(model, atoms, head) for head in ("first", "second"))
    np.testing.assert_allclose(found.forces, (b.forces - a.forces).numpy(), atol=1e-9)
    references = [model.specs[head].reference_energy(atoms.numbers) for head in ("first", "second")]
    wanted = (b.energy.item() - references[1]) - (a.energy.item() - references[0])
    assert found.interaction_energy == pytest.approx(wanted, abs=1e-9)
    assert not calc.delta(atoms, "first", "first").forces.any()
    with pytest.raises(HeadError):
        calc.delta(atoms, "first", "fourth")


def test_descriptors_are_invariant(model):
    atoms = molecule("CH3OH")
    calc = GFMCalculator(model, head="first")
    before = calc.descriptors(atoms)
    assert before.shape == (6, model.config.num_features)
    atoms.rotate(33, (1, 2, 3))
    np.testing.assert_allclose(calc.descriptors(atoms), before, atol=1e-10)


def test_hessian_of_the_calculator(model):
    atoms = molecule("H2O")
    found = GFMCalculator(model, head="second").hessian(atoms)
    assert found.shape == (9, 9) and np.array_equal(found, found.T)
    np.testing.assert_allclose(found.reshape(9, 3, 3).sum(axis=1), 0, atol=1e-8)  # translations cost nothing


def test_a_batch_is_not_needed(model):
    """The graph that the calculator builds is the one that everybody builds."""
    atoms = structures()["ion"]
    batch = batch_of(model, atoms)
    assert (batch.charge.item(), batch.spin.item()) == (1, 4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_whatever_mode_the_caller_has_set(saved_model, mode):
    atoms = molecule("CH3CH2OH")
    outside = GFMCalculator(saved_model, head="first", dtype="float64").get_forces(atoms)
    with mode():
        inside = GFMCalculator(saved_model, head="first", dtype="float64")
        np.testing.assert_array_equal(inside.get_forces(atoms), outside)
        hessian = inside.hessian(atoms)
    atoms.rattle(0.01)
    assert np.isfinite(inside.get_forces(atoms)).all() and np.isfinite(hessian).all()


def test_slab_has_the_same_stress_from_calculator_and_predictor(saved_model):
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    slab.cell[2, 2] += 10
    by_calculator = GFMCalculator(saved_model, head="first", dtype="float64").get_stress(slab)
    by_predictor = next(Predictor(saved_model, ["first"], dtype="float64").predict([slab]))["first"].stress[0]
    np.testing.assert_array_equal(by_calculator, full_3x3_to_voigt_6_stress(by_predictor.numpy()))
    assert np.abs(by_calculator[:2]).min() > 0 and not by_calculator[[2, 3, 4]].any()


def test_options_of_a_loaded_model_are_refused(saved_model):
    model = load_model(saved_model)
    for options in ({"compile": True}, {"device": "cpu"}):
        with pytest.raises(GFMError, match="loaded"):
            GFMCalculator(model, head="first", **options)


def test_only_atoms_are_taken(saved_model):
    calculator = GFMCalculator(saved_model, head="first")
    for call in (calculator.descriptors, calculator.compare_heads, lambda a: calculator.get_property("energy", a)):
        with pytest.raises(GFMError, match=r"expected ase\.Atoms"):
            call(["H"])
