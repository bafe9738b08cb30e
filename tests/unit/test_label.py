"""Labelling and perturbing: nothing lost, nothing done twice, failures recorded; seeds decide."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from labelled import make_dataset, need_adios
from support import ROOT

from gfm_calc.data import label as label_module
from gfm_calc.data.calculators import make_calculator
from gfm_calc.data.label import LabelJob, label
from gfm_calc.data.perturb import PerturbJob, displaced, perturb
from gfm_calc.data.readers import read
from gfm_calc.data.workers import WorkerDiedError, run_in_processes
from gfm_calc.errors import ConfigError, GFMError, InputFileError, InvalidStructureError

SUM = "calculators_for_tests:Sum"
NASTY = "calculators_for_tests:Nasty"


def write(path, structures):
    ase.io.write(path, structures, format="extxyz")
    return path


@pytest.fixture
def metals(tmp_path):
    """Distorted copper, charges and groups, and labels of somebody else that must not survive."""
    structures = []
    for seed in range(6):
        atoms = bulk("Cu") * (2, 1, 1) if seed % 2 else Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5 + 1e-11 * seed]])
        atoms.rattle(0.1, seed=seed)
        atoms.info |= {"group": f"g{seed % 2}", "dft_energy": 17.0}
        structures.append(atoms)
    structures[2].info["charge"] = 1
    return write(tmp_path / "metals.xyz", structures)


# ---- label ----


def test_labels_are_those_of_the_calculator(metals, tmp_path):
    job = LabelJob(inputs=(metals,), output=tmp_path / "out.extxyz", calculator="emt", processes=0)
    outcome = label(job)
    assert (outcome.labelled, outcome.failed, outcome.taken_over) == (6, 0, 0)
    records = list(read(job.output))
    for frame, (record, atoms) in enumerate(zip(records, ase.io.read(metals, ":"), strict=True)):
        assert np.array_equal(record.positions, np.round(atoms.positions, 8))
        atoms.positions = record.positions
        atoms.calc = EMT()
        assert record.energy == atoms.get_potential_energy()
        assert record.forces == pytest.approx(atoms.get_forces(), abs=1e-8)
        if atoms.pbc.all():
            assert record.stress == pytest.approx(atoms.get_stress(voigt=False), abs=1e-15)
        else:
            assert record.stress is None
        assert record.group == f"g{frame % 2}" and record.charge == (1 if frame == 2 else None)
    text = job.output.read_text()
    assert "dft_energy" not in text and "calculator=emt" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metals.xyz", "out.extxyz"]


def test_forces_are_those_of_fixed_atoms_too(tmp_path):
    from ase.constraints import FixAtoms

    atoms = molecule("H2O")
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "in.traj", atoms)
    label(LabelJob(inputs=(tmp_path / "in.traj",), output=tmp_path / "out.xyz", calculator=SUM, processes=0))
    (record,) = read(tmp_path / "out.xyz")
    assert (record.forces[:, 0] == 1).all()


def test_a_dataset_gets_another_fidelity(tmp_path):
    need_adios()
    dataset = make_dataset(tmp_path / "data", (12,))
    label(LabelJob(inputs=(dataset.directory,), output=tmp_path / "out.xyz", calculator=SUM, processes=0))
    for record, given in zip(ase.io.read(tmp_path / "out.xyz", ":"), dataset.records(), strict=True):
        assert record.get_potential_energy() == given.atomic_numbers.sum()
        assert record.info["group"] == (given.group or f"{given.source}:{given.frame}")


def test_misbehaving_calculators(tmp_path):
    structures = [
        Atoms(symbols, positions=[[0, 0, 0], [0, 0, 2]]) for symbols in ("H2", "He2", "C2", "Li2", "Be2", "B2", "N2")
    ]
    path = write(tmp_path / "in.xyz", structures)
    with open(path, "a") as handle:
        handle.write("1\nProperties=species:S:1:pos:R:3\nH nan 0 0\n")
    job = LabelJob(inputs=(path,), output=tmp_path / "out.xyz", calculator=NASTY, processes=2, timeout=20.0)
    outcome = label(job)
    assert (outcome.labelled, outcome.failed) == (3, 5)
    assert [str(atoms.symbols) for atoms in ase.io.read(job.output, ":")] == ["H2", "C2", "N2"]
    reasons = [json.loads(line) for line in job.failures.read_text().splitlines()]
    assert [(r["source"], r["frame"]) for r in reasons] == [("in.xyz", k) for k in (1, 3, 4, 5, 7)]
    expected = ["its process died (signal 9)", "took longer than 20 s", "RuntimeError: does not converge",
                "its energy is not finite", "position is NaN or infinite"]  # fmt: skip
    assert [r["reason"] for r in reasons] == expected
    assert outcome.first_failure == "in.xyz, frame 1: its process died (signal 9)"


def test_a_calculator_that_a_structure_broke_is_not_used_for_the_next(tmp_path):
    """Nasty returns NaN for ever after B2; in one process, in this order."""
    structures = [Atoms(symbols, positions=[[0, 0, 0], [0, 0, 2]]) for symbols in ("H2", "B2", "N2")]
    job = LabelJob(
        inputs=(write(tmp_path / "in.xyz", structures),), output=tmp_path / "out.xyz", calculator=NASTY, processes=0
    )
    outcome = label(job)
    assert (outcome.labelled, outcome.failed) == (2, 1) and "energy is not finite" in outcome.first_failure


def test_an_interrupted_run_goes_on(metals, tmp_path, monkeypatch):
    log = tmp_path / "log"
    options = json.dumps({"log": str(log)})
    job = LabelJob(inputs=(metals,), output=tmp_path / "out.xyz", calculator=SUM, options=options, processes=0)
    real = label_module._label_one

    def dies(atoms, source, frame, *rest):
        if frame == 4:
            raise KeyboardInterrupt
        return real(atoms, source, frame, *rest)

    monkeypatch.setattr(label_module, "_label_one", dies)
    with pytest.raises(KeyboardInterrupt):
        label(job)
    assert not job.output.exists() and len(log.read_text().split()) == 4
    with open(job.journal, "ab") as handle:
        handle.write(b'{"n": 4, "te')  # cut off in the middle of a line
    monkeypatch.setattr(label_module, "_label_one", real)
    with pytest.raises(ConfigError, match="an unfinished run of other inputs or another calculator"):
        label(LabelJob(inputs=(metals,), output=job.output, calculator="emt", processes=0))
    outcome = label(job)
    assert (outcome.labelled, outcome.taken_over) == (6, 4) and len(log.read_text().split()) == 6
    assert [a.info["frame"] for a in ase.io.read(job.output, ":")] == list(range(6))
    assert not job.journal.exists()


def test_a_killed_run_goes_on(tmp_path):
    structures = [Atoms("H2", positions=[[0, 0, 0], [0, 0, 1 + k / 100]]) for k in range(300)]
    path, log = write(tmp_path / "in.xyz", structures), tmp_path / "log"
    code = f"""if True:
        from pathlib import Path
        from gfm_calc.data.label import LabelJob, label
        import json, time
        from calculators_for_tests import Sum
        Sum.misbehave = lambda self, atoms: time.sleep(0.02)
        label(LabelJob(inputs=(Path({str(path)!r}),), output=Path({str(tmp_path / "out.xyz")!r}),
                       calculator={SUM!r}, options=json.dumps(dict(log={str(log)!r})), processes=0))
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    running = subprocess.Popen([sys.executable, "-c", code], env=env)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split()) > 20) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    options = json.dumps({"log": str(log)})
    job = LabelJob(inputs=(path,), output=tmp_path / "out.xyz", calculator=SUM, options=options, processes=0)
    outcome = label(job)
    assert outcome.labelled == 300 and 20 <= outcome.taken_over < 300
    assert len(log.read_text().split()) <= 301, "more than the one that was cut off was done twice"
    assert [a.info["frame"] for a in ase.io.read(job.output, ":")] == list(range(300))


def test_nothing_is_overwritten(metals, tmp_path):
    output = tmp_path / "out.xyz"
    output.write_text("mine")
    job = LabelJob(inputs=(metals,), output=output, calculator=SUM, processes=0)
    with pytest.raises(GFMError, match="exists; add --overwrite"):
        label(job)
    assert output.read_text() == "mine"
    label(LabelJob(inputs=(metals,), output=output, calculator=SUM, processes=0, overwrite=True))
    assert len(ase.io.read(output, ":")) == 6


def test_when_nothing_can_be_labelled(tmp_path):
    path = write(tmp_path / "in.xyz", [Atoms("Be2", positions=[[0, 0, 0], [0, 0, 2]])])
    job = LabelJob(inputs=(path,), output=tmp_path / "out.xyz", calculator=NASTY, processes=0)
    with pytest.raises(
        GFMError, match=r"none of the 1 structures could be labelled; in\.xyz, frame 0: RuntimeError: does not"
    ):
        label(job)
    assert not job.output.exists() and not job.failures.exists()
    with pytest.raises(InputFileError, match="no such file"):
        label(LabelJob(inputs=(tmp_path / "none.xyz",), output=tmp_path / "x.xyz", calculator=SUM, processes=0))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("emmt", "{}", "did you mean 'emt'"), ("tblite:GFN3", "{}", "no method 'GFN3'"), ("emt:x", "{}", "takes no"),
        ("nowhere:Class", "{}", "cannot be imported"), ("ase.build:nothing", "{}", "cannot be imported"),
        ("calculators_for_tests:NOT_A_CLASS", "{}", "is no class"), ("calculators_for_tests:Useless", "{}", "gives no ASE"),
        (SUM, '{"power": 3}', "cannot be made"), (SUM, "[1]", "JSON object"), (SUM, "{", "JSON object"),
        ("dftd3:", "{}", "give dftd3:FUNCTIONAL"), ("dftd3:PBE/d9", "{}", "give dftd3:FUNCTIONAL"),
        ("gfm:no-such-model", "{}", "cannot be made"),
    ],
)  # fmt: skip
def test_calculators_that_do_not_exist(name, options, reason):
    with pytest.raises(GFMError, match=reason) as caught:
        make_calculator(name, options)
    assert "\n" not in str(caught.value)


def test_tblite_gets_charge_and_spin():
    pytest.importorskip("tblite", reason="tblite is not installed: pip install 'gfm-calc[xtb]'")
    give = make_calculator("tblite:GFN1-xTB")
    water, ion = molecule("H2O"), molecule("H2O")
    ion.info.update(charge=1)
    assert give(water) is give(molecule("CH4")) and give(ion) is not give(water)
    found = {q: give(a).get_property("energy", a) for q, a in ((0, water), (1, ion))}
    assert found[1] - found[0] > 5


def test_a_model_of_ours_labels(saved_model, tmp_path, model):
    from gfm_calc.calculator import GFMCalculator

    path = write(tmp_path / "in.xyz", [molecule("H2O")])
    job = LabelJob(inputs=(path,), output=tmp_path / "out.xyz", calculator=f"gfm:{saved_model}:second", processes=0)
    label(job)
    (record,) = read(job.output)
    atoms = record.structure()
    atoms.calc = GFMCalculator(saved_model, "second")
    assert record.energy == atoms.get_potential_energy()


# ---- processes ----


def _double(value):
    return 2 * value


def test_processes_in_turn():
    seen = dict(run_in_processes(_double, [(k,) for k in range(20)], 2))
    assert seen == {k: 2 * k for k in range(20)}
    outcome = dict(run_in_processes(os.kill, [(0, 0), ("x", 0)], 0))
    assert isinstance(outcome[1], TypeError)
    assert list(run_in_processes(_double, [], 3)) == []


def _dies_once(folder, number):
    """The first process that gets a number is killed, as by a system without memory."""
    mark = Path(folder) / str(number)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return number


def _notes_and_sleeps(path):
    Path(path).write_text(str(os.getpid()))
    while True:  # at full cost, as a calculator would
        sum(range(10**5))


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """However that ends."""
    noted = tmp_path / "pid"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_label; "
        "from gfm_calc.data.workers import run_in_processes; "
        "list(run_in_processes(test_label._notes_and_sleeps, [(sys.argv[2],)], 1))"
    )
    folders = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(noted)], env={**os.environ, "PYTHONPATH": folders}
    )
    for _ in range(600):
        if noted.exists() and noted.read_text():
            break
        time.sleep(0.1)
    worker = int(noted.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _runs(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker goes on without the process that started it")


def _runs(pid):
    """Whether a process is there, and not only its entry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_call_whose_process_was_killed_is_tried_again(tmp_path):
    outcome = dict(run_in_processes(_dies_once, [(str(tmp_path), k) for k in range(3)], 2))
    assert outcome == {0: 0, 1: 1, 2: 2}


def test_processes_that_die():
    calls = [(code,) for code in (3, 0)]
    outcomes = dict(run_in_processes(os._exit, calls, 1))
    assert all(isinstance(outcome, WorkerDiedError) for outcome in outcomes.values())
    assert "exit code 3" in str(outcomes[0]) and "exit code 0" in str(outcomes[1])


# ---- perturb ----


def test_the_seed_decides(metals):
    job = PerturbJob(inputs=(metals,), copies=3, rattle=0.05, strain=0.02, seed=4, processes=0)
    first, again = list(perturb(job)), list(perturb(job))
    assert first == again and len(first) == 6
    other = list(perturb(PerturbJob(inputs=(metals,), copies=3, rattle=0.05, strain=0.02, seed=5, processes=0)))
    assert not set(first) & set(other)


def test_perturbed_structures_keep_their_group(metals, tmp_path):
    path = tmp_path / "out.xyz"
    path.write_text("".join(perturb(PerturbJob(inputs=(metals,), copies=2, rattle=0.05, processes=0))))
    frames = ase.io.read(path, ":")
    assert [atoms.info["group"] for atoms in frames] == [f"g{k // 2 % 2}" for k in range(12)]
    assert [atoms.info["frame"] for atoms in frames] == [k // 2 for k in range(12)]
    assert all("rattle 0.05" in atoms.info["perturbation"] for atoms in frames)
    assert frames[4].info["charge"] == 1 and "charge" not in frames[0].info


def test_dynamics_of_a_calculator_that_hangs_lose_one_structure(tmp_path):
    write(tmp_path / "in.xyz", [Atoms("Li"), Atoms("B")])
    found = list(
        perturb(PerturbJob(inputs=(tmp_path / "in.xyz",), calculator=NASTY, every=1, timeout=3.0, processes=1))
    )
    assert isinstance(found[0], WorkerDiedError) and "in.xyz: frame 0: took longer than 3 s" in str(found[0])
    assert len(found) == 2


def test_sizes_of_displacements():
    random = np.random.default_rng(0)
    crystal = bulk("Cu", cubic=True) * (4, 4, 4)
    moved = displaced(crystal, random, rattle=0.05, strain=0.0)
    assert np.std(moved.positions - crystal.positions) == pytest.approx(0.05, rel=0.05)
    assert np.array_equal(moved.cell, crystal.cell)
    strained = displaced(crystal, random, rattle=0.0, strain=0.03)
    change = np.linalg.solve(crystal.cell.array, strained.cell.array) - np.eye(3)
    assert np.abs(change).max() <= 0.03 and np.allclose(change, change.T) and np.abs(change).min() > 0
    assert strained.get_scaled_positions() == pytest.approx(crystal.get_scaled_positions())
    slab = bulk("Cu") * (2, 2, 1)
    slab.pbc = (True, True, False)
    change = np.linalg.solve(slab.cell.array, displaced(slab, random, rattle=0, strain=0.03).cell.array) - np.eye(3)
    assert np.abs(change[2]).max() < 1e-12 and np.abs(change[:2, :2]).max() > 0
    molecular = displaced(molecule("H2O"), random, rattle=0.0, strain=0.03)
    assert np.array_equal(molecular.positions, molecule("H2O").positions)


def test_atoms_stay_apart():
    with pytest.raises(InvalidStructureError, match="smaller rattle"):
        displaced(bulk("Cu") * (3, 3, 3), np.random.default_rng(0), rattle=3.0, strain=0.0)


def test_dynamics(tmp_path):
    path = write(tmp_path / "in.xyz", [bulk("Cu", cubic=True), molecule("H2O")])
    job = PerturbJob(
        inputs=(path,), copies=3, calculator="emt", temperature=600, every=4, time_step=2.0, seed=1, processes=0
    )
    first = list(perturb(job))
    assert first == list(perturb(job))
    (tmp_path / "out.xyz").write_text(first[0])
    frames = ase.io.read(tmp_path / "out.xyz", ":")
    assert len(frames) == 3
    moved = [np.abs(a.positions - bulk("Cu", cubic=True).positions).max() for a in frames]
    assert 0.001 < moved[0] < 0.5 and len(set(moved)) == 3
    wild = PerturbJob(inputs=(path,), calculator="emt", temperature=1e5, every=50, time_step=500.0, processes=0)
    assert all(isinstance(found, GFMError) for found in perturb(wild))


@pytest.mark.parametrize(
    "values",
    [
        {}, {"rattle": -1.0}, {"rattle": 0.1, "copies": 0}, {"strain": 0.9}, {"rattle": 0.1, "seed": -1},
        {"rattle": 0.1, "calculator": "emt"}, {"calculator": "emt", "every": 0}, {"rattle": 0.1, "closest": 2.0},
        {"rattle": float("nan")}, {"calculator": "emt", "temperature": float("nan")},
    ],
)  # fmt: skip
def test_impossible_perturbations(values, metals):
    with pytest.raises(ConfigError):
        PerturbJob(inputs=(metals,), **values)
