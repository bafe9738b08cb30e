"""`gfm relax`, `md`, `eos`, `phonons`: real runs on a small model, and the physics beneath on known potentials."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.io import read, write

from gfm_calc import GFMCalculator
from gfm_calc.cli import main
from gfm_calc.commands import eos, md, phonons, relax
from gfm_calc.errors import ConfigError, ConvergenceError


@pytest.fixture
def gfm(tmp_path, saved_model, capsys):
    """Run a command on `atoms`, written to in.extxyz; (code, stdout, stderr)."""

    def run(command, atoms, out, *more):
        write(tmp_path / "in.extxyz", atoms)
        model = ["--model", str(saved_model), "--head", "first"]
        code = main([command, str(tmp_path / "in.extxyz"), "-o", str(tmp_path / out), *model, *map(str, more)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def table(path) -> dict[str, np.ndarray]:
    with open(path) as handle:
        rows = list(csv.DictReader(handle))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


# ---- relax ----


@pytest.mark.parametrize("optimizer", relax.OPTIMIZERS)
def test_relax_ends_where_the_forces_vanish(tmp_path, saved_model, gfm, optimizer):
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=1, spin=2)
    atoms.set_constraint(FixAtoms([0]))
    code, out, _ = gfm("relax", atoms, "out.extxyz", "--optimizer", optimizer, "--trajectory", tmp_path / "t.traj")
    found = read(tmp_path / "out.extxyz")
    assert code == 0 and out.startswith(f"{tmp_path}/out.extxyz: relaxed, energy ")
    assert found.info["converged"] and (found.info["charge"], found.info["spin"]) == (1, 2)
    assert found.constraints[0].index.tolist() == [0] and (found.positions[0] == atoms.positions[0]).all()
    energy = found.get_potential_energy()
    found.calc = GFMCalculator(saved_model, head="first")
    assert found.get_potential_energy() == pytest.approx(energy, abs=1e-4)
    assert np.linalg.norm(found.get_forces(), axis=1).max() < 0.021
    steps = read(tmp_path / "t.traj", ":")
    assert len(steps) > 2 and (steps[0].positions == atoms.positions).all()
    assert steps[-1].get_potential_energy() < steps[0].get_potential_energy()


def test_relax_with_the_cell_ends_without_stress(tmp_path, saved_model, gfm):
    atoms = bulk("NaCl", "rocksalt", a=5.2)
    code, out, _ = gfm("relax", atoms, "out.cif", "--cell", "--fmax", 1e-3, "--dtype", "float64")
    found = read(tmp_path / "out.cif")
    assert code == 0 and ", volume " in out
    found.calc = GFMCalculator(saved_model, head="first", dtype="float64")
    assert np.abs(found.get_stress()).max() * found.get_volume() / 2 < 2e-3
    assert abs(found.get_volume() - atoms.get_volume()) > 0.1


def test_relax_under_pressure():
    atoms = bulk("Cu", a=3.6)
    atoms.calc = EMT()
    assert relax.relax(atoms, relax.Relaxation(cell=True, pressure=5.0, fmax=1e-4)).converged
    np.testing.assert_allclose(atoms.get_stress()[:3], -5.0 * units.GPa, rtol=1e-2)


def test_relax_of_a_slab_moves_only_its_periodic_directions(tmp_path, gfm):
    slab = fcc111("Al", (1, 1, 3), vacuum=7.0)
    code, _, err = gfm("relax", slab, "out.extxyz", "--cell", "--steps", 5)
    found = read(tmp_path / "out.extxyz")
    assert code in (0, 1) and ("not relaxed" in err or not code)
    assert (found.cell[2] == slab.cell[2]).all() and not np.allclose(found.cell[:2], slab.cell[:2], atol=1e-6)


def test_relax_that_is_not_done_says_so_and_keeps_what_it_has(tmp_path, gfm):
    code, out, err = gfm("relax", molecule("C6H6"), "out.extxyz", "--steps", 2)
    assert (code, out) == (1, "") and "in.extxyz, frame 0: not relaxed, largest force" in err
    assert err.splitlines()[-1].startswith("gfm: error: ") and not read(tmp_path / "out.extxyz").info["converged"]


def test_relax_keeps_symmetry_where_asked():
    from ase.spacegroup.symmetrize import check_symmetry

    atoms = bulk("Cu", a=3.5, cubic=True)
    atoms.calc = EMT()
    relax.relax(atoms, relax.Relaxation(cell=True, symmetry=True, fmax=1e-3))
    assert check_symmetry(atoms, 1e-6).number == 225 and atoms.constraints == []


@pytest.mark.parametrize(
    "more, words",
    [
        (["--cell"], "is not periodic"),
        (["--pressure", "1"], "--pressure acts on the cell: add --cell"),
        (["--trajectory", "t.cif"], "a trajectory is .traj, .extxyz or .xyz"),
        (["--frame", "1"], "has no frame 1"),
    ],
)
def test_relax_refuses(tmp_path, gfm, more, words):
    code, _, err = gfm("relax", molecule("H2O"), "out.extxyz", *more)
    assert code == 1 and words in err and not (tmp_path / "out.extxyz").exists()


# ---- md ----


def test_md_nve_conserves_energy_and_is_reproducible(tmp_path, gfm):
    options = (
        "--temperature",
        300,
        "--time-step",
        0.5,
        "--steps",
        100,
        "--every",
        5,
        "--dtype",
        "float64",
        "--seed",
        3,
    )
    code, out, _ = gfm("md", molecule("CH3OH"), "one.traj", *options)
    assert code == 0 and "21 frames" in out
    log = table(tmp_path / "one.traj.csv")
    assert list(log) == ["step", "time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K"]
    assert log["time_fs"].tolist() == [2.5 * k for k in range(21)]
    assert np.ptp(log["total_eV"]) < 0.02 * np.ptp(log["kinetic_eV"])
    np.testing.assert_allclose(log["total_eV"], log["potential_eV"] + log["kinetic_eV"], atol=1e-8)
    frames = read(tmp_path / "one.traj", ":")
    assert frames[7].get_potential_energy() == pytest.approx(log["potential_eV"][7], abs=1e-8)
    assert np.abs(frames[0].get_momenta().sum(axis=0)).max() < 1e-10
    gfm("md", molecule("CH3OH"), "two.extxyz", *options)
    assert (tmp_path / "two.extxyz.csv").read_text() == (tmp_path / "one.traj.csv").read_text()
    again = read(tmp_path / "two.extxyz", ":")
    assert len(again) == 21 and again[4].info["time_fs"] == 10.0


def test_md_nvt_reaches_its_temperature():
    atoms = bulk("Cu", a=3.6, cubic=True) * (2, 2, 2)
    atoms.calc = EMT()
    dynamics = md.prepare(atoms, md.Dynamics(ensemble="nvt", temperature=500, time_step=4, friction=0.02))
    dynamics.run(200)
    found = []
    dynamics.attach(lambda: found.append(atoms.get_temperature()))
    dynamics.run(600)
    assert np.mean(found) == pytest.approx(500, rel=0.1)


def test_md_npt_changes_the_volume_and_not_the_shape(tmp_path, gfm):
    atoms = bulk("NaCl", "rocksalt", a=5.4)
    code, _, _ = gfm("md", atoms, "out.traj", "--temperature", 300, "--ensemble", "npt", "--steps", 30, "--pressure", 2)
    log = table(tmp_path / "out.traj.csv")
    last = read(tmp_path / "out.traj")
    assert code == 0 and len(set(log["volume_A3"])) > 1
    np.testing.assert_allclose(last.cell.angles(), atoms.cell.angles(), atol=1e-6)


def test_md_keeps_constraints_and_velocities(tmp_path, gfm):
    atoms = molecule("CH3OH")
    atoms.set_constraint(FixAtoms([1]))
    atoms.set_momenta(np.full((6, 3), 0.1))
    gfm("md", atoms, "out.traj", "--temperature", 300, "--steps", 10, "--keep-velocities")
    frames = read(tmp_path / "out.traj", ":")
    assert (frames[-1].positions[1] == atoms.positions[1]).all()
    np.testing.assert_allclose(frames[0].get_momenta()[0], 0.1)


@pytest.mark.parametrize("atoms", [molecule("H2O"), fcc111("Al", (1, 1, 2), vacuum=6.0)], ids=["molecule", "slab"])
def test_md_npt_needs_a_crystal(tmp_path, gfm, atoms):
    code, _, err = gfm("md", atoms, "out.traj", "--temperature", 300, "--ensemble", "npt")
    assert code == 1 and "npt needs a structure that is periodic along three axes" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.extxyz"]


def test_md_that_blows_up_ends_with_one_line(tmp_path, gfm):
    code, _, err = gfm("md", molecule("C6H6"), "out.traj", "--temperature", 3000, "--time-step", 50, "--steps", 200)
    assert code == 1 and err.count("gfm: error: ") == 1 and "Traceback" not in err
    assert len(read(tmp_path / "out.traj", ":")) >= 1


# ---- eos ----


def test_birch_murnaghan_is_recovered_exactly():
    exact = eos.BirchMurnaghan(volume=47.3, energy=-14.9876, bulk_modulus=136.2, derivative=5.1)
    volumes = np.linspace(43, 52, 9)
    found = eos.fit_birch_murnaghan(volumes, exact(volumes))
    for name in ("volume", "energy", "bulk_modulus", "derivative"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=1e-6)
    assert found.residual < 1e-10


def test_birch_murnaghan_is_what_its_parameters_say():
    """V0, B0 and B0' against differences of the curve, pressures from -dE/dV."""
    curve = eos.BirchMurnaghan(volume=40.0, energy=1.0, bulk_modulus=100.0, derivative=4.6)
    step = 1e-3

    def pressure(volume):
        return -(curve(volume + step) - curve(volume - step)) / (2 * step) / units.GPa

    def modulus(volume):
        return -volume * (pressure(volume + step) - pressure(volume - step)) / (2 * step)

    assert pressure(40.0) == pytest.approx(0, abs=1e-4) and modulus(40.0) == pytest.approx(100, rel=1e-3)
    slope = (modulus(40.2) - modulus(39.8)) / (pressure(40.2) - pressure(39.8))
    assert slope == pytest.approx(4.6, rel=1e-2)


def test_eos_of_a_known_potential():
    """EMT copper: lattice constant 3.59 Å, bulk modulus from the stress of two strained cells."""
    atoms = bulk("Cu", a=3.61)
    atoms.calc = EMT()
    fit = eos.fit_birch_murnaghan(*eos.energy_of_volume(atoms, span=0.04))
    assert (4 * fit.volume) ** (1 / 3) == pytest.approx(3.59, abs=0.005)
    pressures = []
    for scale in (0.999, 1.001):
        strained = bulk("Cu", a=(4 * fit.volume * scale) ** (1 / 3))
        strained.calc = EMT()
        pressures.append(-strained.get_stress()[:3].mean() / units.GPa)
    assert fit.bulk_modulus == pytest.approx((pressures[0] - pressures[1]) / 0.002, rel=0.02)


def test_eos_without_a_minimum_says_where_to_look():
    atoms = bulk("Cu", a=3.9)
    atoms.calc = EMT()
    with pytest.raises(ConvergenceError, match=r"no minimum of the energy between .* Å³.*--relax"):
        eos.fit_birch_murnaghan(*eos.energy_of_volume(atoms, span=0.04))


@pytest.mark.parametrize("option", ["--relax", "--relax-atoms"])
def test_eos_of_what_does_not_come_to_rest(tmp_path, gfm, option, monkeypatch):
    """No volumes and moduli of a structure that is still on its way."""
    monkeypatch.setattr(eos, "_STEPS", 1)
    crystal = bulk("NaCl", "rocksalt", a=5.2)
    crystal.rattle(0.1, seed=1)
    code, _, said = gfm("eos", crystal, "eos", option)
    assert code == 1 and "not relaxed after 1 steps" in said and not (tmp_path / "eos").exists()


def test_eos_writes_its_files(tmp_path, saved_model, gfm):
    code, out, _ = gfm("eos", bulk("NaCl", "rocksalt", a=5.2), "eos", "--relax", "--range", 0.03)
    assert code == 0, "the random model has a minimum here"
    found = json.loads((tmp_path / "eos" / "eos.json").read_text())
    rows = table(tmp_path / "eos" / "eos.csv")
    assert len(rows["volume_A3"]) == 13 and rows["volume_A3"].min() < found["volume"] < rows["volume_A3"].max()
    np.testing.assert_allclose(rows["fit_eV"], rows["energy_eV"], atol=5 * found["residual"] + 1e-9)
    assert found["linear_scale"] == pytest.approx(1, abs=2e-3) and f"V0 {found['volume']:.4f}" in out
    assert (tmp_path / "eos" / "eos.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "eos").iterdir()) == ["eos.csv", "eos.json", "eos.png"]
    (tmp_path / "eos" / "mine.txt").write_text("kept")
    before = (tmp_path / "eos" / "eos.json").read_text()
    assert gfm("eos", bulk("NaCl", "rocksalt", a=5.2), "eos")[0] == 1  # exists
    assert (tmp_path / "eos" / "eos.json").read_text() == before
    assert gfm("eos", bulk("NaCl", "rocksalt", a=5.2), "eos", "--overwrite", "--relax")[0] == 0
    assert (tmp_path / "eos" / "mine.txt").read_text() == "kept"


def test_eos_needs_a_crystal_and_enough_points(tmp_path, gfm):
    for atoms, more in ((molecule("H2O"), []), (bulk("Cu"), ["--points", 4]), (bulk("Cu"), ["--range", 0.6])):
        code, _, err = gfm("eos", atoms, "eos", *more)
        assert code == 1 and "equation of state needs" in err and not (tmp_path / "eos").exists()


# ---- phonons ----


def test_phonons_of_a_known_potential():
    """A Lennard-Jones crystal: acoustic modes vanish at the zone centre, and the fastest mode is the Hessian's."""
    pytest.importorskip("phonopy", reason="phonons are an extra")
    atoms = bulk("Ar", a=5.3, cubic=True)
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=True)
    relax.relax(atoms, relax.Relaxation(cell=True, symmetry=True, fmax=1e-5, steps=2000))
    phonon = phonons.force_constants(atoms, (2, 2, 2))
    phonon.run_mesh([2, 2, 2], is_gamma_center=True)
    phonon.auto_band_structure(npoints=11)
    found = phonons.extremes(phonon)
    assert not found["imaginary"] and abs(found["lowest_frequency_THz"]) < 1e-3
    full = atoms * (2, 2, 2)
    full.calc = atoms.calc
    rows = []
    for axis in range(3):
        pair = []
        for sign in (1, -1):
            moved = full.copy()
            moved.calc = atoms.calc
            moved.positions[0, axis] += 0.005 * sign
            pair.append(moved.get_forces().ravel())
        rows.append((pair[1] - pair[0]) / 0.01)
    # The X point, (0, 0, 1) in units of 2 pi / a: planes along z alternate.
    phase = np.cos(2 * np.pi * (full.positions[:, 2] - full.positions[0, 2]) / atoms.cell[2, 2])
    dynamical = np.einsum("iaj,a->ij", np.reshape(rows, (3, -1, 3)), phase) / full.get_masses()[0]
    at_x = np.sqrt(np.linalg.eigvalsh(dynamical) * units._e / units._amu) * 1e10 / (2 * np.pi) / 1e12
    assert found["highest_frequency_THz"] == pytest.approx(at_x.max(), rel=1e-3)


def test_phonons_writes_its_files(tmp_path, gfm):
    pytest.importorskip("phonopy", reason="phonons are an extra")
    code, out, err = gfm("phonons", bulk("NaCl", "rocksalt", a=5.2), "ph", "--mesh", 4, 4, 4, "--t-max", 300)
    assert code == 0 and "gfm: warning" not in err
    assert sorted(path.name for path in (tmp_path / "ph").iterdir()) == sorted(phonons.FILES)
    summary = json.loads((tmp_path / "ph" / "summary.json").read_text())
    assert (summary["space_group"], summary["primitive_atoms"], summary["head"]) == ("Fm-3m", 2, "first")
    assert ("imaginary modes: lowest" in out) == summary["imaginary"] == (summary["lowest_frequency_THz"] < -0.05)
    thermal = table(tmp_path / "ph" / "thermal_properties.csv")
    assert thermal["temperature_K"].tolist() == [10.0 * k for k in range(31)]
    dos = table(tmp_path / "ph" / "dos.csv")
    assert np.trapezoid(dos["states_per_THz"], dos["frequency_THz"]) == pytest.approx(6, rel=0.05)  # 3 modes an atom
    for name in ("phonons.png", "thermal.png"):
        assert (tmp_path / "ph" / name).read_bytes().startswith(b"\x89PNG")


def test_phonons_need_a_neutral_crystal(tmp_path, gfm):
    charged = bulk("NaCl", "rocksalt", a=5.2)
    charged.info["charge"] = 1
    for atoms, words in ((molecule("H2O"), "phonons need a crystal"), (charged, "are not defined")):
        code, _, err = gfm("phonons", atoms, "ph")
        assert code == 1 and words in err and not (tmp_path / "ph").exists()


def test_a_cell_is_needed_to_relax_one():
    atoms = molecule("H2O")
    with pytest.raises(ConfigError, match="leave --cell out"):
        relax.relax(atoms, relax.Relaxation(cell=True))
