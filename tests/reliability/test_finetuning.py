"""Fine-tuning that is cut off goes on to the same bits; on a full disk nothing is lost; the calculator gives the figures."""

import json
import signal

import ase.io
import numpy as np
import pytest
import safetensors.numpy
from finetuning import molecules, relabelled, words, write
from training import Job

from gfm_calc import GFMCalculator
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec, to_mapping
from gfm_calc.finetune import plan

SHORT = ("--steps", "12", "--strategy", "full", "--keep-heads", "gfn2-xtb", "--accept", "energy-unit")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Labels that differ from what a head of the model says, so that there is something to learn."""
    found = [relabelled(a, energy=lambda e: 1.3 * e, forces=lambda f: 1.3 * f) for a in molecules(30)]
    return write(tmp_path_factory.mktemp("frames") / "frames.extxyz", found)


@pytest.fixture(scope="module")
def whole(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(frames, folder, *SHORT)) == 0
    assert not json.loads((folder / "errors.json").read_text())["warning"], "no test of anything: the start is the best"
    return folder


def weights(folder):
    return next((folder / "model").glob("weights-*.safetensors")).read_bytes()


def state(folder):
    """The tensors of the newest checkpoint without random numbers, which tell how a process was started.  The model may not
    show them: it may be what it was at the start."""
    newest = sorted((folder / "run" / "checkpoints").iterdir())[-1]
    tensors = safetensors.numpy.load_file(next(newest.glob("part*.safetensors")))
    return {name: tensor.tobytes() for name, tensor in tensors.items() if not name.startswith("random/")}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "structures_per_s"} for line in lines]


@pytest.mark.promise("R1", count=2)
@pytest.mark.parametrize("what, code", [("kill", -signal.SIGKILL), ("term", 143)])
def test_an_interrupted_run_goes_on_to_the_same_bits(frames, whole, tmp_path, what, code):
    folder, log = tmp_path / "out", tmp_path / "log"
    job = Job(words(frames, folder, *SHORT), fault=("at_step", 7, what), log=log)
    assert job.wait() == [code], job.said()
    assert not (folder / "model").exists()
    refused = Job(words(frames, folder, *SHORT), log=tmp_path / "log1")
    assert refused.wait() == [1] and "go on with --resume" in refused.said()
    goes_on = Job(words(frames, folder, *SHORT, "--resume"), log=tmp_path / "log2")
    assert goes_on.wait() == [0], goes_on.said()
    assert weights(folder) == weights(whole) and losses(folder) == losses(whole) and state(folder) == state(whole)


CHEAP = (*SHORT, "--cheap-labels", "gfm:gfm-small:gfn1-xtb", "--cheap-structures", "40", "--cheap-steps", "8")


@pytest.fixture(scope="module")
def whole_after_cheap(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cheap") / "out"
    assert main(words(frames, folder, *CHEAP)) == 0
    return folder


@pytest.mark.promise("R1", count=2)
@pytest.mark.parametrize("folder_of_fault, step", [("first", 7), ("second", 10)])
def test_a_run_that_learns_cheap_labels_first_goes_on_to_the_same_bits(
    frames, whole_after_cheap, tmp_path, folder_of_fault, step
):
    """Killed while it learns those, or its own."""
    folder = tmp_path / "out"
    job = Job(words(frames, folder, *CHEAP), fault=("at_step", step, "kill"), log=tmp_path / "log")
    assert job.wait() == [-signal.SIGKILL], job.said()
    assert (folder / "cheap" / "model").exists() == (folder_of_fault == "second")
    other = Job(words(frames, folder, *CHEAP, "--seed", "3"), log=tmp_path / "log1")
    assert other.wait() == [1] and "go on with --resume" in other.said()
    goes_on = Job(words(frames, folder, *CHEAP, "--resume"), log=tmp_path / "log2")
    assert goes_on.wait() == [0], goes_on.said()
    assert weights(folder) == weights(whole_after_cheap) and losses(folder) == losses(whole_after_cheap)
    assert state(folder) == state(whole_after_cheap)


def test_what_cheap_labels_leave_behind(whole, whole_after_cheap):
    """A model of the old heads and the new one, other weights than without, old heads measured against the user's model."""
    told = json.loads((whole_after_cheap / "errors.json").read_text())
    calculator = GFMCalculator(whole_after_cheap / "model", head="mine", device="cpu")
    assert list(calculator.heads) == ["gfn2-xtb", "mine"]
    assert "cheap" not in calculator.heads["gfn2-xtb"].description
    assert weights(whole_after_cheap) != weights(whole)
    assert told["started_from"] == json.loads((whole / "errors.json").read_text())["started_from"]
    assert any("gfm:gfm-small:gfn1-xtb" in reason and "meV/Å" in reason for reason in told["strategy"]["reasons"])
    assert told["ranking"][0]["head"] in ("mine-cheap", "gfn2-xtb")
    assert [row["head"] for row in told["forgetting"]] == ["gfn2-xtb"]
    structures = ase.io.read(whole_after_cheap / "cheap-labels" / "labels.extxyz", ":")
    assert len(structures) >= 40
    energies = [atoms.get_potential_energy() for atoms in structures]
    teacher = GFMCalculator("gfm-small", head="gfn1-xtb", device="cpu")
    assert energies[5] == pytest.approx(teacher.get_potential_energy(structures[5]), abs=1e-3)


@pytest.mark.promise("R10", count=4)
@pytest.mark.parametrize("where", ["datasets", "checkpoints", "model", "errors.json"])
def test_a_full_disk_loses_nothing(frames, whole, tmp_path, where):
    folder = tmp_path / "out"
    job = Job(words(frames, folder, *SHORT), fault=("full_disk", where), log=tmp_path / "log")
    assert job.wait() == [1]
    lines = [line for line in job.said().splitlines() if line.startswith("gfm: error:")]
    assert len(lines) == 1 and "No space left on device" in lines[0], job.said()
    assert "--resume" in lines[0], lines[0]
    goes_on = Job(words(frames, folder, *SHORT, "--resume"), log=tmp_path / "log2")
    assert goes_on.wait() == [0], goes_on.said()
    assert weights(folder) == weights(whole)


def test_another_job_does_not_take_the_place_of_one_that_trained(whole, frames, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main(words(frames, whole, *SHORT, "--resume", "--seed", "4")) == 1
    assert "the job began with seed = 0, not 4" in capsys.readouterr().err
    assert main(words(frames, whole, *SHORT, "--resume", "--functional", "r2SCAN")) == 1
    assert 'not "r2SCAN"' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_a_job_of_an_older_version_is_no_other_one():
    """It kept less of the card, or knew fewer of its fields."""
    card = to_mapping(HeadSpec(name="mine", functional="PBE"))
    now = {"seed": 3, "card": json.loads(json.dumps(card))}
    fewer = {key: value for key, value in now["card"].items() if key not in ("stiffness", "landmarks")}
    for began in (now, {"seed": 3, "head": "mine", "kind": ["energy", card["extensive"]]}, {"seed": 3, "card": fewer}):
        assert plan._changes(began, now) == {}
    other = {**now, "card": {**now["card"], "functional": "r2SCAN"}}
    assert set(plan._changes(other, now)) == {"card"} and set(plan._changes({**now, "seed": 4}, now)) == {"seed"}
    assert set(plan._changes({"seed": 3, "head": "other", "kind": ["energy", card["extensive"]]}, now)) == {"head"}


@pytest.mark.promise("R12", count=1)
def test_the_calculator_gives_the_figures_of_the_validation(whole, frames, tmp_path):
    told = json.loads((whole / "errors.json").read_text())
    calculator = GFMCalculator(whole / "model", head="mine", device="cpu")
    assert calculator.model_id == told["model_id"]
    from gfm_calc.train.preparation import load_preparation

    head = next(h for h in load_preparation(whole / "run" / "data") if h.spec.name == "mine")
    energy, forces = [], []
    for record in head.dataset.read(head.sides[told["side"]]).records():
        atoms = record.structure()
        atoms.calc = calculator
        energy.append(abs(atoms.get_potential_energy() - record.energy) / len(record))
        forces.append(np.abs(atoms.get_forces() - record.forces).ravel())
    assert 1000 * np.mean(energy) == pytest.approx(told["after"]["energy_mae_mev_per_atom"], rel=1e-4)
    assert 1000 * np.concatenate(forces).mean() == pytest.approx(told["after"]["forces_mae_mev_per_a"], rel=1e-4)
    card = calculator.heads["mine"]
    assert card.test_errors["forces_mae_mev_per_a"] == pytest.approx(told["after"]["forces_mae_mev_per_a"], rel=1e-4)
    assert ase.io.read(frames, 0).calc.results["energy"] == pytest.approx(
        card.reference_energy(ase.io.read(frames, 0).numbers), abs=60
    )
