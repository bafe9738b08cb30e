"""Crystals, torsions and dynamics as benchmarks, on potentials whose answers are known."""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from calculators_for_tests import Gone, Peer
from labelled import need_adios
from support import random_model

import gfm_calc.benchmarks
from gfm_calc import GFMCalculator
from gfm_calc.benchmarks import crystals, force_sets, stability
from gfm_calc.benchmarks.contenders import Process, ProcessEndedError
from gfm_calc.benchmarks.crystals import choose, elements, means, phonon_row, volume_row
from gfm_calc.benchmarks.relative_energies import run_relative_energies
from gfm_calc.benchmarks.remote import RemoteCalculator, remote_calculators
from gfm_calc.benchmarks.report import tables
from gfm_calc.benchmarks.stability import System, nearest, run_system, run_systems, systems, water_box
from gfm_calc.benchmarks.structures import CRYSTALS
from gfm_calc.checkpoint import load_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError
from gfm_calc.predictor import Predictor

PEERS = Path(gfm_calc.benchmarks.__file__).parent / "peers"
EMT_PEER = """
import argparse, sys
sys.path.insert(0, {folder!r})
import calculate
from ase.calculators.emt import EMT
from measure import answer_jobs
calculate.MODELS["emt"] = ("EMT", lambda device: (EMT(), "1"))
parser = argparse.ArgumentParser()
parser.add_argument("--model", default="emt")
answer_jobs(calculate.start, parser)
"""


def crystal(symbol: str = "Cu", a: float = 3.7, **info: object) -> Atoms:
    atoms = bulk(symbol, "fcc", a=a)
    atoms.info |= info
    return atoms


def test_elements_begin_as_experiments_find_them():
    found = {str(atoms.symbols[0]): atoms for atoms in elements({"Fe", "Po"})}
    assert {"Cu", "Si", "Mg", "W"} <= set(found) and not {"Fe", "Po", "Ga", "O"} & set(found) and len(found) >= 40
    assert found["Cu"].info["mp_id"] == "fcc" and len(found["Mg"]) == 2 and all(found["Si"].pbc)
    row = volume_row(found["Cu"], {"gfm": EMT()})
    assert row["reference"] == {"volume": pytest.approx(3.61**3 / 4, rel=1e-3)} and row["id"] == "fcc"
    (mean,) = means({"crystals": [row], "phonons": []})
    assert mean["crystals"]["volume"]["mean"] == pytest.approx(
        100 * (row["models"]["gfm"]["volume"] / 11.76 - 1), abs=0.1
    )
    assert "bulk_modulus" not in mean["crystals"]
    result = {
        "benchmark": "crystals",
        "elements": True,
        "models": {"gfm": "ours"},
        "crystals": [row],
        "phonons": [],
        "means": [mean],
    }
    shown, detail = tables(result)
    assert "elements" in shown.title and shown.header == ["model", "relaxed", "volume, %"] and len(detail.rows) == 2


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Files of phonopy with forces by EMT."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    folder = tmp_path_factory.mktemp("sets")
    for symbol in ("Cu", "Au"):
        atoms = bulk(symbol, "fcc", a=3.65, cubic=True)
        cell = PhonopyAtoms(
            symbols=list(atoms.symbols), cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
        )
        phonon = Phonopy(cell, supercell_matrix=[2, 2, 2], primitive_matrix="F")
        phonon.generate_displacements(distance=0.01)
        phonon.forces = [force_sets._forces(one, EMT()) for one in phonon.supercells_with_displacements]
        phonon.save(folder / f"{symbol}.yaml", settings={"force_sets": True, "displacements": True})
    return folder


class Changed(EMT):
    """Forces of EMT times a factor, and a constant one, which the supercell at rest shows as well."""

    factor = 1.0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.factor * self.results["forces"] + 0.3


class Half(Changed):
    factor = 0.5


class Refusing(EMT):
    def calculate(self, *args, **kwargs):
        raise GFMError("no")


def test_frequencies_are_compared_at_the_geometry_of_the_file(sets):
    phonon = force_sets._read(sets / "Cu.yaml")
    one = force_sets.row("Cu", phonon, {"same": Changed(), "none": Refusing(), "soft": Half()})
    assert one["formula"] == "Cu" and one["displacements"] == 1 and one["atoms"] == 32
    same, soft = one["models"]["same"], one["models"]["soft"]
    assert same["mean_absolute"] < 1e-3 and not one["reference"]["imaginary"]
    assert same["highest"] == pytest.approx(one["reference"]["highest"], rel=1e-3)
    assert soft["highest"] == pytest.approx(one["reference"]["highest"] / 2**0.5, rel=1e-3)
    assert soft["mean"] == -soft["mean_absolute"] < -0.5
    assert one["models"]["none"] == {"error": "no"}
    (mean,) = force_sets.means([{**one, "models": {"same": same}}])
    assert mean["done"] == mean["compared"] == 1 and mean["highest"] < 0.1 and mean["reference_imaginary"] == 0
    assert force_sets.means([one]) == []  # nothing that all did


def test_phonons_as_a_command(sets, tmp_path, capsys):
    out = tmp_path / "phonons.json"
    words = ["bench", "phonons", "--head", "pypolymlp-agau", "-o", str(out)]
    assert main([*words, "--force-sets", str(sets)]) == 0
    said = capsys.readouterr().out
    assert "over 1 crystals" in said and "gfm-calc, pypolymlp-agau" in said
    found = json.loads(out.read_text())
    assert found["unseen"] == ["Cu"] and [one["name"] for one in found["rows"]] == ["Au"]
    assert set(found["rows"][0]["models"]["gfm"]) == {"mean_absolute", "mean", "highest", "imaginary"}
    shown, detail = tables(found)
    assert len(shown.rows) == 1 and len(detail.rows) == 2


@pytest.mark.parametrize("what", ["nothing", "no forces", "no phonopy"])
def test_files_that_tell_no_phonons(what, sets, tmp_path, capsys):
    import phonopy

    if what == "no forces":
        phonon = phonopy.load(sets / "Cu.yaml", produce_fc=False, log_level=0)
        phonon.save(tmp_path / "a.yaml", settings={"force_sets": False, "displacements": True})
    elif what == "no phonopy":
        (tmp_path / "a.yaml").write_text("phonopy: [1, 2")
    words = ["bench", "phonons", "-o", str(tmp_path / "found.json"), "--force-sets", str(tmp_path)]
    assert main(words) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert ("holds no *.yaml of phonopy" if what == "nothing" else "a.yaml: ") in line and "displacements" in line


@pytest.mark.parametrize("what", ["phonons", "crystals"])
def test_releases_of_peers_are_told(sets, tmp_path, monkeypatch, what):
    """Of what ran, in the result; the calculators stand in for processes of other environments."""
    peer = Changed()
    peer.title, peer.release = "Changed", "1.2"
    for module in (force_sets, crystals):
        monkeypatch.setattr(module, "remote_calculators", lambda peers, threads: nullcontext({"changed": peer}))
    monkeypatch.setattr(crystals, "elements", lambda unseen: [bulk("Au", a=4.0)])
    job = ["--force-sets", str(sets)] if what == "phonons" else ["--elements"]
    words = ["--head", "pypolymlp-agau", "--peer", "chgnet=python", "-o", str(tmp_path / "found.json")]
    assert main(["bench", what, *job, *words]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["provenance"]["versions"]["Changed"] == "1.2" and found["models"]["changed"] == "Changed"


def test_elements_take_the_place_of_a_file(tmp_path, capsys):
    words = ["bench", "crystals", "-o", str(tmp_path / "found.json")]
    assert main(words) == 1 and "give --elasticity or --elements" in capsys.readouterr().err
    assert main([*words, "--elements", "--elasticity", "x.extxyz"]) == 1
    assert "--elements takes the place of --elasticity" in capsys.readouterr().err


def test_volume_and_bulk_modulus_of_a_known_potential():
    atoms = crystal(bulk_modulus_vrh_gpa=140.0, mp_id="mp-30")
    row = volume_row(atoms, {"gfm": EMT()})
    found = row["models"]["gfm"]
    assert found["volume"] == pytest.approx(3.59**3 / 4, rel=5e-3)  # of EMT
    assert found["bulk_modulus"] == pytest.approx(134, rel=0.03)
    assert row["reference"] == {"volume": pytest.approx(3.7**3 / 4, rel=1e-3), "bulk_modulus": 140.0}
    assert row["id"] == "mp-30" and row["name"] == "Cu"


def test_phonons_agree_with_themselves_and_tend_to_dulong_and_petit():
    pytest.importorskip("phonopy", reason="phonons are phonopy's")
    row = phonon_row(crystal(heat_capacity=24.0), {"gfm": EMT(), "teacher": EMT()})
    found = row["models"]["gfm"]
    assert found["mean_difference"] < 1e-6 and not found["imaginary"]
    assert 22 < found["heat_capacity"] < 3 * 8.3145
    assert 6 < found["highest"] < 9  # THz, of copper
    (mean, _) = means({"crystals": [], "phonons": [row]})
    assert mean["phonons"]["heat_capacity"]["mean"] == pytest.approx(found["heat_capacity"] - 24.0, abs=1e-2)


def test_a_model_that_fails_loses_the_crystal_and_the_mean_is_over_what_all_did():
    row = volume_row(crystal(bulk_modulus_vrh_gpa=140.0), {"gfm": EMT()})
    failed = {**row, "models": {**row["models"], "chgnet": {"error": "out of memory"}}}
    both = {**row, "models": {**row["models"], "chgnet": row["models"]["gfm"]}}
    ours, peer = means({"crystals": [both, failed], "phonons": []})
    assert ours["crystals"]["done"] == 2 and peer["crystals"]["done"] == 1
    assert ours["crystals"]["compared"] == peer["crystals"]["compared"] == 1
    result = {"benchmark": "crystals", "models": {"gfm": "ours", "chgnet": "theirs"}, "crystals": [both, failed],
              "phonons": [], "means": [ours, peer]}  # fmt: skip
    summary, detail = tables(result)
    assert summary.rows[1][1] == "1 of 2" and any("out of memory" in row for row in detail.rows)


def test_crystals_are_chosen_small_known_and_one_a_formula(tmp_path):
    path = tmp_path / "elastic.extxyz"
    big = crystal("Ni", bulk_modulus_vrh_gpa=180.0).repeat(2)
    frames = [crystal(s, bulk_modulus_vrh_gpa=100.0) for s in ("Cu", "Al", "Ag", "Au", "Pd", "Pb")]
    soft, copy = crystal("Pt", bulk_modulus_vrh_gpa=0.1), crystal("Cu", a=3.5, bulk_modulus_vrh_gpa=90.0)
    ase.io.write(path, [*frames, copy, soft, big, crystal("Na"), bulk("NaCl", "rocksalt", a=5.6)], format="extxyz")
    chosen = choose(path, "bulk_modulus_vrh_gpa", 10, {"Pb"})
    assert [str(atoms.symbols) for atoms in chosen] == ["Cu", "Al", "Ag", "Au", "Pd"]
    assert len(choose(path, "bulk_modulus_vrh_gpa", 3, set())) == 3
    with pytest.raises(GFMError, match="no crystal"):
        choose(path, "heat_capacity", 3, set())


def test_a_model_in_another_process_gives_what_it_gives_here(tmp_path):
    script = tmp_path / "emt.py"
    script.write_text(EMT_PEER.format(folder=str(PEERS)))
    process = Process("emt", [sys.executable, str(script), "--threads", "1"], 1)
    try:
        atoms = crystal(a=3.5).repeat(2)
        atoms.rattle(0.1, seed=1)
        here, there = atoms.copy(), atoms.copy()
        here.calc, there.calc = EMT(), RemoteCalculator(process)
        assert there.get_potential_energy() == here.get_potential_energy()
        assert np.array_equal(there.get_forces(), here.get_forces())
        assert np.array_equal(there.get_stress(), here.get_stress())
        there.symbols[:] = "Zr"  # EMT has no such element
        with pytest.raises(GFMError, match="^EMT: .*Zr"):
            there.get_potential_energy()
        there.symbols[:] = "Cu"
        assert there.get_potential_energy() == here.get_potential_energy()  # one failure ends nothing
    finally:
        process.close()


def test_a_process_that_ended_is_charged_to_no_crystal(sets):
    """Volumes, phonons and force sets end with it, instead of counting the others as failed."""
    copper = crystal(a=3.6, heat_capacity=24.0)
    for measure in (volume_row, phonon_row):
        with pytest.raises(ProcessEndedError, match="Killed"):
            measure(copper, {"gone": Gone()})
    phonon = force_sets._read(sets / "Cu.yaml")
    with pytest.raises(ProcessEndedError, match="Killed"):
        force_sets.row("Cu", phonon, {"gone": Gone()})


def test_peers_that_are_none_are_named():
    with (
        pytest.raises(ConfigError, match="no peer 'chgnt'.*did you mean 'chgnet'"),
        remote_calculators({"chgnt": "x"}, threads=1),
    ):
        pass


REFERENCES = {"torsions": "ccsdt_cbs", "conformers": "dlpno_ccsdt"}


@pytest.fixture(scope="module")
def scan():
    """Ethanol turned about its C-O bond: as `gfn2` the packaged model's own numbers, as reference a tent of 1 kcal/mol."""
    frames = []
    for k, angle in enumerate(np.linspace(0, 180, 5)):
        atoms = molecule("CH3CH2OH")
        atoms.rotate_dihedral(0, 1, 2, 3, angle, indices=[3])
        atoms.info |= {f"rel_{name}_kcal": 1.0 - abs(k - 2) for name in REFERENCES.values()}
        frames.append(atoms)
    rows = list(Predictor(load_model("gfm-small"), ["gfn2-xtb"], forces=False).predict(frames))
    for atoms, row in zip(frames, rows):
        atoms.info["rel_gfn2_kcal"] = 23.060548 * (row["gfn2-xtb"].energy.item() - rows[0]["gfn2-xtb"].energy.item())
    return frames


def labelled(frames, key, name, **info):
    copies = [atoms.copy() for atoms in frames]
    for atoms in copies:
        atoms.info |= {key: name, **info}
    return copies


@pytest.mark.parametrize("kind, key", [("torsions", "torsion"), ("conformers", "group")])
def test_relative_energies_of_the_model_itself_have_no_error_against_its_own_level(scan, tmp_path, kind, key):
    path = tmp_path / "scans.extxyz"
    frames = [*labelled(scan, key, "seven"), *labelled(scan, key, "eight", charge=9), *labelled(scan[:1], key, "nine")]
    ase.io.write(path, frames, format="extxyz")
    found = run_relative_energies(kind, "gfm-small", "gfn2-xtb", path)
    (row,) = found["rows"]
    assert row["points"] == 5 and row["against"] < 0.01  # positions have 8 digits in the file
    assert row["errors"]["gfn2"] == pytest.approx(row["errors"]["gfn2-xtb"], abs=0.02)
    assert row["ranks"]["gfn2"] == row["ranks"]["gfn2-xtb"]
    assert found["left_out"] == {"unseen charges": 1, "unseen elements": 0, "single geometries": 1}
    own, right = (np.array([atoms.info[f"rel_{name}_kcal"] for atoms in scan]) for name in ("gfn2", REFERENCES[kind]))
    lowest = int(np.argmin(right))
    wanted = {
        "torsions": np.sqrt(np.square((own - own[lowest]) - (right - right[lowest])).mean()),
        "conformers": np.abs((own - own.mean()) - (right - right.mean())).mean(),
    }
    assert row["errors"]["gfn2"] == pytest.approx(wanted[kind], rel=1e-3)
    assert len(tables({"benchmark": kind, **found})) == 2


def test_molecules_of_compositions_that_are_not_in_the_data_count_apart(scan, tmp_path):
    need_adios()
    other = [molecule("CH3CHO", vacuum=3) for _ in scan]
    for atoms, given in zip(other, scan):
        atoms.rattle(0.05, seed=len(atoms.info))
        atoms.info |= given.info
    frames = [*labelled(scan, "torsion", "seven"), *labelled(other, "torsion", "eight")]
    ase.io.write(tmp_path / "scans.extxyz", frames, format="extxyz")
    known = molecule("CH3OCH3")  # the composition of ethanol
    known.calc = EMT()
    known.get_forces()
    ase.io.write(tmp_path / "known.extxyz", known)
    build(
        tmp_path / "data" / "gfn2-xtb", file_tasks([tmp_path / "known.extxyz"]), HeadSpec(name="gfn2-xtb"), processes=0
    )
    found = run_relative_energies(
        "torsions", "gfm-small", "gfn2-xtb", tmp_path / "scans.extxyz", data=tmp_path / "data"
    )
    assert {row["name"]: row["seen"] for row in found["rows"]} == {"seven": True, "eight": False}
    (eight,) = [row for row in found["rows"] if row["name"] == "eight"]
    assert found["unseen"]["count"] == 1 and found["unseen"]["means"] == eight["errors"]
    (shown, _) = tables({"benchmark": "torsions", **found})
    assert "not in the head's data" in shown.header[-1]
    with pytest.raises(GFMError, match="no data of head gfn1-xtb"):
        run_relative_energies("torsions", "gfm-small", "gfn1-xtb", tmp_path / "scans.extxyz", data=tmp_path / "data")


def test_geometries_without_the_reference_are_named(scan, tmp_path):
    frames = labelled(scan, "torsion", "seven")
    del frames[3].info["rel_ccsdt_cbs_kcal"]
    ase.io.write(tmp_path / "scans.extxyz", frames, format="extxyz")
    with pytest.raises(GFMError, match="seven: a geometry without rel_ccsdt_cbs_kcal"):
        run_relative_energies("torsions", "gfm-small", "gfn2-xtb", tmp_path / "scans.extxyz")


def test_twenty_systems_of_many_kinds():
    found = systems()
    assert len(found) >= 20 and len({system.name for system in found}) == len(found)
    assert all(nearest(system.atoms) > 0.7 for system in found)
    kinds = {tuple(system.atoms.pbc) for system in found}
    assert kinds == {(False,) * 3, (True,) * 3, (True, True, False)}


def test_water_in_a_box_has_the_density_of_water():
    box = water_box(32)
    grams = box.get_masses().sum() / 6.02214e23
    assert grams / (box.get_volume() * 1e-24) == pytest.approx(1.0, rel=2e-3)
    assert len(box) == 96 and nearest(box) > 0.8


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda atoms: atoms.positions.__setitem__(0, atoms.positions[1] + 0.2), "of their covalent distance"),
        (lambda atoms: atoms.positions.__setitem__(0, atoms.positions[0] + 9.0), "the bond of atoms 0 and"),
        (lambda atoms: atoms.positions.__setitem__(0, np.nan), "no numbers"),
    ],
)
def test_faults_are_seen(change, word):
    atoms = molecule("CH3CH2OH")
    bonds = stability._bonds(atoms)
    assert stability._fault(atoms, bonds, nearest(atoms), 1.0) == ""
    change(atoms)
    closest = nearest(atoms) if np.isfinite(atoms.positions).all() else 1.0
    assert word in stability._fault(atoms, bonds, closest, 1.0)


def test_dynamics_row_says_how_far_it_came():
    system = System(name="Cu", atoms=bulk("Cu", "fcc", a=3.6, cubic=True), head="first", temperature=300, timestep=2.0)
    row = run_system(
        system, GFMCalculator(random_model(elements=("H", "Cu")), head="first"), "first", picoseconds=0.02, every=5
    )
    assert row["picoseconds"] == pytest.approx(0.02) or row["why"]
    assert row["stable"] == (row["why"] == "")
    assert len(tables({"benchmark": "stability", "rows": [row]})[0].rows) == 1


def test_a_peer_runs_the_crystals_beside_ours():
    """And no other system: published models of crystals do not know molecules."""
    copper = System(name="Cu", atoms=bulk("Cu", cubic=True), head=CRYSTALS, temperature=300, timestep=2.0)
    water = System(name="water", atoms=molecule("H2O"), head="first", temperature=300, timestep=0.5)
    rows = run_systems(
        [copper, water], random_model(elements=("H", "O", "Cu")), picoseconds=0.01, weights="w", peers={"emt": Peer()}
    )
    assert [(row["name"], row["head"]) for row in rows] == [
        ("Cu", "first"), ("Cu", "Effective medium"), ("water", "first"),
    ]  # fmt: skip
    assert rows[1]["stable"] and rows[1]["mean_kelvin"] > 0


def test_runs_of_a_peer_are_kept_by_its_release(tmp_path):
    """Not by our weights; and one whose process ended leaves nothing behind."""
    copper = System(name="Cu", atoms=bulk("Cu", cubic=True), head=CRYSTALS, temperature=300, timestep=2.0)
    run = partial(run_systems, [copper], random_model(elements=("H", "Cu")), picoseconds=0.01, work=tmp_path)
    counts = []

    class Counted(Peer):
        def calculate(self, *more, **options):
            counts.append(0)
            super().calculate(*more, **options)

    with pytest.raises(ProcessEndedError):
        run(weights="w", peers={"emt": Gone()})
    first = run(weights="w", peers={"emt": Counted()})
    once = len(counts)
    assert run(weights="v", peers={"emt": Counted()})[1] == first[1] and len(counts) == once > 0
    newer = Counted()
    newer.release = "2"
    run(weights="v", peers={"emt": newer})
    assert len(counts) > once


def test_dynamics_that_were_interrupted_go_on(tmp_path, monkeypatch):
    """The rows of what is done are kept, those of other weights or another length are not taken for them."""
    model = random_model(elements=("H", "Cu"))
    copper = partial(System, atoms=bulk("Cu", cubic=True), head="first", temperature=300, timestep=2.0)
    chosen = [copper(name=name) for name in ("one", "two")]
    run = partial(run_systems, model=model, weights="w", work=tmp_path)
    (first,) = run(chosen[:1], picoseconds=0.01)
    calls = []
    monkeypatch.setattr(
        stability,
        "run_system",
        lambda system, *_, **more: calls.append(system.name) or {"name": system.name, "head": "first"},
    )
    assert run(chosen, picoseconds=0.01) == [first, {"name": "two", "head": "first"}] and calls == ["two"]
    run(chosen[:1], picoseconds=0.02)
    run(chosen[:1], picoseconds=0.01, weights="v")
    run(chosen[:1], picoseconds=0.01, compiled=True)
    assert len(calls) == 4
    for path in tmp_path.iterdir():
        path.write_text("{}")
    with pytest.raises(CorruptFileError, match="holds no row of one: damaged, remove it"):
        run(chosen, picoseconds=0.01)
