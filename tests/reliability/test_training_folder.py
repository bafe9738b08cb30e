"""The run folder: one job at a time, the recipe that it began with, and clear words where something is wrong."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import ROOT
from training import Job, argv, differences, make_datasets, outcome

SHORT = ("run.steps=8", "run.save_every=2", "run.validate_every=4")
SHARED = """
import sys
import gfm_calc.train.trainer as trainer
from gfm_calc.cli import main
real = trainer.training_sources
def told(*given, **options):
    found = real(*given, **options)
    sys.stdout.write(f"parts in memory: {len(found[0]._bounds) - 1}\\n")
    sys.stdout.flush()
    return found
trainer.training_sources = told
sys.exit(main(sys.argv[1:]))
"""
PLATEAU = "optimizer.schedule=plateau"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("training") / "datasets")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(data, run, *SHORT)[0] == [0]
    return run


def train(data, run, *settings, world=1, flags=(), fault=(), fault_rank=0):
    """(exit codes, lines that were printed)."""
    log = run.parent / f"{time.monotonic_ns()}.log"
    job = Job(argv(data, run, *settings, flags=flags), world, fault=fault, fault_rank=fault_rank, log=log)
    codes = job.wait()
    return codes, job.said().splitlines()


def content(folder):
    """What is there but for writes that were cut off, which may be swept away."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.parent.name.endswith(".tmp")]
    return {path: path.read_bytes() for path in files}


def refused(data, run, *settings, **options) -> str:
    """The one line of a refusal, which changes nothing in the folder."""
    before = content(run) if run.is_dir() else {}
    codes, said = train(data, run, *settings, **options)
    assert set(codes) == {1}, said
    errors = [line for line in said if not line.startswith(("ranks", "gfm: note"))]
    assert len(errors) == 1 and errors[0].startswith("gfm: error: "), said
    assert not before or content(run) == before
    return errors[0]


@pytest.mark.parametrize("world", [1, 2])
def test_wrong_data_are_refused_in_one_line(data, tmp_path, world):
    (tmp_path / "empty").mkdir()
    for setting, said in (
        (f"data.path={tmp_path / 'gone'}", "no such directory"),
        (f"data.path={tmp_path / 'empty'}", "holds no dataset"),
        (f"data.split={tmp_path / 'split.json'}", "cannot be read"),
    ):
        assert said in refused(data, tmp_path / "run", setting, world=world)
    assert train(data, tmp_path / "run", *SHORT, world=world)[0] == [0] * world  # the folder is still free


@pytest.mark.parametrize(
    "setting, said",
    [
        ("model.num_features=16", "the run began with model.num_features = 8, not 16"),
        ("model.num_layers=1", "the run began with model.num_layers = 2, not 1"),
        ("data.path=/elsewhere", "the run began with data.path = "),
        ('data.heads=["none"]', "the run began with data.heads = "),
        ("data.tau=1.0", "the run began with data.tau = 0.5, not 1.0"),
        ("run.seed=3", "the run began with run.seed = 0, not 3"),
        ("objective.uncertainty=true", "the run began with objective.uncertainty = False, not True"),
    ],
)
def test_a_run_keeps_what_it_began_with(data, finished, setting, said):
    assert said in refused(data, finished, *SHORT, setting, flags=["--resume"])


def test_a_run_is_not_begun_again(data, finished):
    assert "holds a run; go on with --resume" in refused(data, finished, *SHORT)


def test_a_folder_is_for_one_job_at_a_time(data, finished):
    with open(finished / "run.lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another job trains in this folder" in refused(data, finished, *SHORT, flags=["--resume"], world=2)


def test_a_finished_run_says_so(data, finished):
    before = outcome(finished), (finished / "errors.json").read_bytes()
    codes, said = train(data, finished, *SHORT, flags=["--resume"])
    assert codes == [0] and any("has trained 8 of 8 steps and is over (finished)" in line for line in said)
    assert (outcome(finished), (finished / "errors.json").read_bytes()) == before


def test_an_early_stop_is_kept(data, tmp_path):
    settings = ("run.steps=40", "run.validate_every=2", "run.stop_after=1", "optimizer.learning_rate=0")
    assert train(data, tmp_path / "run", *settings)[0] == [0]
    steps = outcome(tmp_path / "run")["log"][-1]["step"]
    assert steps < 40
    _, said = train(data, tmp_path / "run", *settings, flags=["--resume"])
    assert any("is over (no improvement); to train on, raise run.stop_after" in line for line in said)
    assert outcome(tmp_path / "run")["log"][-1]["step"] == steps


def test_resuming_nothing_begins_and_says_so(data, tmp_path):
    codes, said = train(data, tmp_path / "run", *SHORT, flags=["--resume"])
    assert codes == [0] and "holds no run to go on with; a new one begins" in said[0]


@pytest.mark.promise("R3", count=2)
@pytest.mark.parametrize("world", [1, 2])
def test_without_a_sound_checkpoint_nothing_is_begun_again(data, tmp_path, world):
    run = tmp_path / "run"
    assert -signal.SIGKILL in train(data, run, *SHORT, fault=("at_step", 7, "kill"))[0]
    for part in (run / "checkpoints").glob("step-*/part*"):
        part.write_bytes(part.read_bytes()[:-1])
    assert "no checkpoint of the run is sound" in refused(data, run, *SHORT, flags=["--resume"], world=world)


def test_a_damaged_log_is_cut(data, finished, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, *SHORT, fault=("at_step", 7, "kill"))[0] == [-signal.SIGKILL]
    lines = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(lines[:40] + b"\x00\xff" + lines[42:])
    codes, said = train(data, run, *SHORT, flags=["--resume"])
    assert codes == [0] and any("damaged after 0 bytes" in line for line in said)
    assert outcome(run)["tensors"] == outcome(finished)["tensors"]


def test_schedules_need_validation_structures(data, tmp_path):
    nothing = ("data.validation=0", "data.test=0")
    for setting in (PLATEAU, "run.stop_after=2"):
        assert "need validation structures" in refused(data, tmp_path / "run", *nothing, setting)
        assert "need validations" in refused(data, tmp_path / "run", setting, "run.validate_every=0")
    codes, _ = train(data, tmp_path / "run", *SHORT, *nothing)
    assert codes == [0] and not any("validation" in line for line in outcome(tmp_path / "run")["log"])


def test_a_training_that_diverges_ends(data, tmp_path):
    settings = ("optimizer.learning_rate=10", "optimizer.warmup=0", "run.on_bad_batch=skip", "run.validate_every=0")
    codes, said = train(data, tmp_path / "run", *settings, "run.steps=1000")
    assert codes == [1] and "lower optimizer.learning_rate" in said[-1]
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("world", [1, 2])
def test_memory_changes_nothing(data, tmp_path, world):
    runs = [tmp_path / "disk", tmp_path / "memory"]
    for run, settings in zip(runs, ((), ("data.memory=true", "data.workers=1"))):
        assert train(data, run, *SHORT, "parallel.mode=multitask", *settings, world=world)[0] == [0] * world
    assert differences(*map(outcome, runs)) == []


def test_tensorboard_is_asked_for_before_the_run_begins(data, tmp_path):
    if find_spec("tensorboard"):
        assert train(data, tmp_path / "run", *SHORT, "run.tensorboard=true")[0] == [0]
        assert list((tmp_path / "run" / "events").iterdir())
    else:
        assert "pip install tensorboard" in refused(data, tmp_path / "run", "run.tensorboard=true")
        assert not (tmp_path / "run").exists()


def test_an_interrupt_saves_and_a_second_one_ends_at_once(data, tmp_path):
    run = tmp_path / "run"
    job = Job(argv(data, run, "run.steps=100000", "run.save_every=100000"), fault=("slow", 1.0), log=tmp_path / "log")
    (process,) = job.processes
    deadline = time.monotonic() + 60
    while not (run / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    job.kill(signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130 and "(SIGINT); --resume goes on" in job.said()
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert len(saved) == 1
    again = argv(data, run, "run.steps=100000", "run.save_every=100000", flags=["--resume"])
    job = Job(again, fault=("slow", 60.0), log=tmp_path / "log2")
    (process,) = job.processes
    time.sleep(3)  # it is asleep in its first step
    for _ in range(2):
        job.kill(signal.SIGINT)
        time.sleep(0.5)
    process.join(20)
    assert process.exitcode == 130, job.said()
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == saved


def test_the_recipe_of_a_run_trains_the_same_again(data, finished, tmp_path):
    words = ["train", str(finished / "recipe.toml"), "-o", str(tmp_path / "run"), "--threads", "1", "--no-report"]
    assert Job([*words, "--device", "cpu"], log=tmp_path / "log").wait() == [0]
    assert differences(outcome(finished), outcome(tmp_path / "run")) == []
    assert json.loads((tmp_path / "run" / "errors.json").read_text())["test"]


def test_a_damaged_manifest_of_the_newest_checkpoint(data, finished, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, *SHORT, fault=("at_step", 7, "kill"))[0] == [-signal.SIGKILL]
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "manifest.json").write_text("{")
    codes, said = train(data, run, *SHORT, flags=["--resume"])
    assert codes == [0] and any("an older checkpoint is used" in line for line in said)
    assert differences(outcome(finished), outcome(run)) == []
    assert (run / "checkpoints" / f"{newest.name}.damaged").is_dir()


def test_data_that_have_changed_or_gone_are_refused(tmp_path):
    data, run = make_datasets(tmp_path / "datasets", (20, 15, 10)), tmp_path / "run"
    assert train(data, run, *SHORT, fault=("at_step", 5, "kill"))[0] == [-signal.SIGKILL]
    (data / "clusters").rename(tmp_path / "aside")
    assert "the run's data are gone; put them back" in refused(data, run, *SHORT, flags=["--resume"])
    shutil.copytree(data / "crystals", data / "clusters")
    assert "is not what the run began with" in refused(data, run, *SHORT, flags=["--resume"])


def test_ranks_of_mpi_share_one_copy_in_memory(data, tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if find_spec("mpi4py") is None or not mpirun.exists():
        pytest.skip("there is no mpirun: pip install 'gfm-calc[mpi]'")
    assert train(data, tmp_path / "disk", *SHORT, world=2)[0] == [0, 0]
    words = argv(data, tmp_path / "memory", *SHORT, "data.memory=true")
    command = [str(mpirun), "-n", "2", sys.executable, "-m", "mpi4py", "-c", SHARED, *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parts in memory: 2") == 2
    # Nothing draws random numbers, but processes that are started differently do not begin with the same ones.
    assert set(differences(outcome(tmp_path / "disk"), outcome(tmp_path / "memory"))) <= {"random"}
