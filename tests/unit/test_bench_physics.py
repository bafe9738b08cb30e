"""The measures of physics on cases whose answer is known."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from calculators_for_tests import Gone, Peer
from support import random_model

from gfm_calc import GFMCalculator
from gfm_calc.benchmarks import pairs, physics
from gfm_calc.benchmarks.dynamics import drift, nve_systems, run_nve
from gfm_calc.benchmarks.pairs import minima, run_like_pairs, run_pairs
from gfm_calc.benchmarks.physics import run_physics
from gfm_calc.benchmarks.relaxations import cases, geometry, run_case, teacher_references, xtb_reference
from gfm_calc.benchmarks.remote import remote_calculators
from gfm_calc.benchmarks.report import tables
from gfm_calc.benchmarks.structures import slab
from gfm_calc.errors import GFMError


def test_drift_is_the_slope_of_the_total_energy():
    times = np.linspace(0.01, 20, 2000)
    energies = -3.0 + 2e-5 * times + 1e-4 * np.sin(40 * times)
    found = drift(times, energies)
    assert found["slope_mev_per_atom_per_ps"] == pytest.approx(0.02, abs=1e-3)
    assert found["rms_fluctuation_mev_per_atom"] == pytest.approx(0.1 / np.sqrt(2), rel=0.02)
    assert found["slope_first_half"] == pytest.approx(0.02, abs=2e-3)


def test_drift_tells_a_step_from_a_slope():
    times = np.linspace(0, 10, 1000)
    found = drift(times, np.where(times > 5, 1e-3, 0.0))
    assert abs(found["slope_first_half"]) < 1e-12 and abs(found["slope_second_half"]) < 1e-12
    assert found["slope_mev_per_atom_per_ps"] > 0.1


def test_minima_are_counted_with_their_barriers():
    r = np.linspace(0.8, 5, 400)
    morse = (1 - np.exp(-1.5 * (r - 1.5))) ** 2 - 1
    assert minima(r, morse) == [pytest.approx(1.5, abs=0.02)]
    assert minima(r, morse - 0.3 * np.exp(-20 * (r - 3) ** 2)) == [
        pytest.approx(1.5, abs=0.02),
        pytest.approx(3.0, abs=0.05),
    ]
    assert minima(r, morse - 0.005 * np.exp(-200 * (r - 3) ** 2)) == [pytest.approx(1.5, abs=0.02)]  # a dip of 5 meV
    assert minima(r, np.exp(-r)) == []


def test_geometry_of_water_crystal_and_slab():
    water = molecule("H2O")
    found = geometry(water)
    assert found["H-O_a"] == pytest.approx(water.get_distance(0, 1), abs=1e-4)
    assert found["H-O-H_deg"] == pytest.approx(water.get_angle(1, 0, 2), abs=0.01)
    assert geometry(bulk("NaCl", "rocksalt", a=5.6, cubic=True)) == {"a_a": 5.6, "largest_angle_off_90_deg": 0.0}
    assert geometry(slab())["d12_a"] == pytest.approx(3.63 / np.sqrt(3), abs=1e-3)
    assert set(geometry(molecule("CH3CH2OH"))) == {"C-C_a", "C-H_a", "C-O_a", "H-O_a"}


def test_relaxation_rows_compare_with_the_reference():
    (water,) = (case for case in cases() if case.name == "water")
    reference = molecule("H2O")
    row = run_case(water, GFMCalculator(random_model(), head="first"), reference)
    assert row["name"] == "water" and row["reference"] == geometry(reference)
    assert row["converged"] == (row["fmax_ev_per_a"] <= 0.01)
    assert row["rmsd_a"] > 0 and row["largest_bond_error_a"] > 0


def test_cases_start_away_from_any_minimum_and_are_the_same_every_time():
    assert [case.name for case in cases()] == ["water", "ethanol", "aspirin", "NaCl", "Cu", "Si", "MgO", "Cu(111) slab"]
    assert all((a.atoms.positions == b.atoms.positions).all() for a, b in zip(cases(), cases()))


def test_xtb_reference_has_the_geometry_of_water():
    pytest.importorskip("tblite", reason="the reference is tblite's own GFN2-xTB")
    relaxed = xtb_reference(cases()[0])
    assert relaxed is not None
    assert geometry(relaxed)["H-O_a"] == pytest.approx(0.959, abs=0.005)


def test_a_reference_environment_that_fails_is_named_in_one_line():
    with (
        pytest.raises(GFMError, match="sevennet: .*sevenn") as caught,
        remote_calculators({"sevennet": sys.executable}, threads=1),
    ):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(GFMError, match="no-such-python"), remote_calculators({"sevennet": "no-such-python"}, threads=1):
        pass


def test_references_are_relaxed_by_the_calculator_given():
    (copper,) = (case for case in cases() if case.name == "Cu")
    found = teacher_references([copper], EMT())
    assert geometry(found["Cu"])["a_a"] == pytest.approx(3.59, abs=0.01)


def test_nve_systems_have_64_atoms_or_nearly():
    assert [len(system.atoms) for system in nve_systems()] == [64, 64, 63]


def test_nve_run_conserves_energy_over_a_few_steps():
    system = nve_systems()[0]
    row = run_nve(system, GFMCalculator(random_model(), head="first"), "first", picoseconds=0.04, sample_every=2)
    assert row["picoseconds"] == pytest.approx(0.04) and row["atoms"] == 64
    assert row["rms_fluctuation_mev_per_atom"] < 5.0


def test_pair_curves_cover_every_pair_of_the_head():
    model = random_model(elements=("H", "Cu"))
    (row,) = run_pairs(model, ["first"])
    assert (row["elements"], row["pairs"]) == (2, 3) and set(row["extra_minima"]) <= {"H-H", "H-Cu", "Cu-Cu"}
    assert row["soft"] == [] and row["in_reference"] is None  # the ZBL wall


class TwoMinima(Calculator):
    """A wall and two minima for pairs with hydrogen, of which those of two hydrogens fail beyond 2 Å."""

    implemented_properties = ["energy"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        r, light = atoms.get_distance(0, 1), sum(atoms.numbers == 1)
        if light == 2 and r > 2:
            raise RuntimeError("no convergence")
        self.results = {"energy": np.exp(-r) + (np.cos(3 * r) if light else 0.0)}


def test_pair_curves_are_compared_with_those_of_the_labels(monkeypatch):
    """All of the model have two minima; of the reference one pair has them, one lacks the outer one, one has none."""
    model, cutoff = random_model(elements=("H", "Cu")), 4.5
    names = [("H", "H"), ("H", "Cu"), ("Cu", "Cu")]

    def waves(pair):
        r = pairs._distances(pair, model.config.cutoff)
        return np.where(r < cutoff, np.exp(-r) + np.cos(3 * r), 0)

    monkeypatch.setattr(pairs, "_curves", lambda *args: iter([(pair, {"first": waves(pair)}) for pair in names]))
    (row,) = run_pairs(model, ["first"], {"first": lambda atoms: TwoMinima()})
    assert list(row["extra_minima"]) == ["H-H", "H-Cu", "Cu-Cu"] and row["in_reference"] == ["H-Cu"]


def test_pairs_of_like_atoms_by_other_models():
    """Each in a box of its own: one with a well and a dip, one with a hole where a wall should be, one that fails."""
    model, boxed = random_model(elements=("H", "Cu", "Ag")), []

    class Boxed(Calculator):
        implemented_properties = ["energy"]

        def calculate(self, atoms=None, *more):
            super().calculate(atoms, *more)
            boxed.append(atoms.pbc.all() and atoms.cell.lengths().min() > 20)
            r = atoms.get_distance(0, 1)
            if atoms[0].symbol == "H" and r > 2:
                raise RuntimeError("no convergence")
            well = -np.exp(-20 * (r - 2.2) ** 2) - 0.5 * np.exp(-20 * (r - 3.6) ** 2)
            self.results = {"energy": well if atoms[0].symbol == "Cu" else r}

    ours, other = run_like_pairs(model, "first", {"other": Boxed()})
    (every,) = run_pairs(model, ["first"])
    like = ("H-H", "Cu-Cu", "Ag-Ag")
    assert ours["pairs"] == 3 and ours["soft"] == []
    assert ours["extra_minima"] == {k: v for k, v in every["extra_minima"].items() if k in like}
    assert (other["model"], other["pairs"], other["soft"]) == ("other", 2, ["Ag-Ag"]) and all(boxed)
    assert other["extra_minima"] == {"Cu-Cu": [pytest.approx(3.6, abs=0.05)]}
    shown = {table.title: table for table in tables({"benchmark": "physics", "like_pairs": [ours, other]})}
    assert [row[1] for row in shown["Curves of isolated pairs of like atoms"].rows] == ["3 of 3", "2 of 3"]


def test_a_process_that_ended_is_no_property_of_its_model(monkeypatch, saved_model):
    """Pair curves and dynamics at constant energy say so, and the others go on."""
    ours, gone, other = run_like_pairs(random_model(elements=("Cu",)), "first", {"gone": Gone(), "other": Peer()})
    assert (
        gone == {"model": "gone", "error": "gone: its process ended: Killed"} and ours["pairs"] == other["pairs"] == 1
    )
    assert len(tables({"benchmark": "physics", "like_pairs": [ours, gone, other]})[-1].rows) == 3
    monkeypatch.setattr(physics, "remote_calculators", lambda peers, threads: nullcontext({"emt": Gone()}))
    system = replace(nve_systems()[0], atoms=bulk("Cu", cubic=True))
    monkeypatch.setattr(physics, "nve_systems", lambda: [system])
    monkeypatch.setattr(physics, "_calculator", lambda *_: SimpleNamespace(head="ours"))
    row = run_nve(system, EMT(), "ours", picoseconds=0.02)
    monkeypatch.setattr(physics, "run_nve", lambda s, c, head, **m: row if head == "ours" else run_nve(s, c, head, **m))
    found = run_physics(saved_model, parts=("nve",), picoseconds=0.02, peers={"x": "y"})
    assert [one.get("error") for one in found["nve"]] == [None, "gone: its process ended: Killed"]
    assert found["peers"] == {"Gone": "1"}
    assert len(tables({"benchmark": "physics", **found})[0].rows) == 2


def test_a_model_without_our_head_of_crystals_has_like_pairs(saved_model):
    found = run_physics(saved_model, parts=("like_pairs",))
    assert [row["model"] for row in found["like_pairs"]] == ["first"]


def test_other_models_run_the_crystals_at_constant_energy(monkeypatch, saved_model):
    """And our head all systems."""
    seen = []
    monkeypatch.setattr(physics, "run_nve", lambda system, _, head, **more: seen.append((system.name, head)) or {})
    monkeypatch.setattr(physics, "remote_calculators", lambda peers, threads: nullcontext({"emt": Peer()}))
    monkeypatch.setattr(physics, "_calculator", lambda *_: SimpleNamespace(head="ours"))
    run_physics(saved_model, parts=("nve",), peers={"emt": "python"})
    assert seen == [
        ("Cu, 64 atoms", "ours"), ("Cu, 64 atoms", "Effective medium"), ("NaCl, 64 atoms", "ours"),
        ("NaCl, 64 atoms", "Effective medium"), ("(H2O)21 cluster", "ours"),
    ]  # fmt: skip


def test_heads_of_other_elements_have_pairs_of_their_own():
    model = random_model(heads=("first", "second"), elements=("H", "C", "Cu"))
    model.specs["second"] = replace(model.specs["second"], elements=("H", "C"))
    rows = run_pairs(model, ["first", "second"])
    assert [row["pairs"] for row in rows] == [6, 3]
    (alone,) = run_pairs(model, ["second"])
    assert alone == rows[1]


def test_physics_uses_the_head_named(saved_model):
    found = run_physics(saved_model, head="second", parts=("pairs",))
    assert [row["head"] for row in found["pairs"]] == ["second"]
    assert set(found) == {"pairs"}


def test_atoms_given_to_geometry_are_left_alone():
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]])
    before = atoms.copy()
    geometry(atoms)
    assert atoms == before
