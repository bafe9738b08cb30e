"""R1, R7, R10 for training: killed anywhere, also inside the writing of a checkpoint, a resumed run gives the same bits."""

import random
import signal
import time

import pytest
from training import Job, argv, differences, make_datasets, outcome

from gfm_calc.artifacts import MANIFEST


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("training") / "datasets")


def reference(data, folder, world: int, *settings: str):
    """An uninterrupted run: (its outcome, its seconds)."""
    since = time.monotonic()
    job = Job(argv(data, folder / "whole", *settings), world, log=folder / "whole.log")
    assert job.wait() == [0] * world, job.said()
    return outcome(folder / "whole"), time.monotonic() - since


def victim_died(job: Job) -> bool:
    return any(process.exitcode for process in job.processes)


def kill_at_random(data, folder, world: int, kills: int, tally, *settings: str) -> None:
    wanted, seconds = reference(data, folder, world, *settings)
    chance = random.Random(20261122 + world)
    done = number = 0
    while done < kills:
        run = folder / f"run{number}"
        number += 1
        for _ in range(50):
            flags = ["--resume"] if (run / "recipe.toml").exists() else []
            job = Job(argv(data, run, *settings, flags=flags), world, log=folder / "log")
            if done < kills:
                job.processes[-1].join(chance.uniform(0.1, 0.9) * seconds)
                victim = chance.choice(job.processes)
                if victim.is_alive():
                    victim.kill()
                    victim.join()
                    done += 1
            codes = job.wait(6 if victim_died(job) else 120)  # a launcher ends the others, too
            if codes == [0] * world:
                break
        tally.check(differences(wanted, outcome(run)) == [], f"{run.name}: {differences(wanted, outcome(run))}")


@pytest.mark.promise("R1")
def test_killed_and_resumed_on_one_process(data, tmp_path, tally):
    kill_at_random(data, tmp_path, 1, 6, tally)
    tally.verdict()


@pytest.mark.promise("R1")
def test_killed_and_resumed_on_two_processes(data, tmp_path, tally):
    kill_at_random(data, tmp_path, 2, 4, tally, "parallel.mode=multitask")
    tally.verdict()


@pytest.mark.slow
@pytest.mark.promise("R1")
@pytest.mark.parametrize("world, kills", [(1, 100), (2, 100)])
def test_killed_and_resumed_often(data, tmp_path, tally, world, kills):
    kill_at_random(data, tmp_path, world, kills, tally)
    tally.verdict()


@pytest.mark.promise("R10")
@pytest.mark.parametrize("what", ["kill", "refuse"])
def test_every_write_of_a_checkpoint_may_be_the_last(data, tmp_path, tally, what):
    """Two checkpoints are written in full and then replaced: each write, flush and rename of them fails once."""
    settings = ("run.steps=6", "run.save_every=2", "run.validate_every=0")
    wanted, _ = reference(data, tmp_path, 1, *settings)
    number, failed = 0, True
    while failed:
        number += 3 if number > 8 else 1
        run = tmp_path / f"run{number}"
        job = Job(argv(data, run, *settings), fault=("at_write", number, what), log=tmp_path / f"{number}.log")
        (code,) = job.wait()
        failed = code != 0
        if failed:
            assert code == (-signal.SIGKILL if what == "kill" else 1), job.said()
            if what == "refuse":
                tally.check("a checkpoint could not be written (" in job.said(), job.said())
            assert Job(argv(data, run, *settings, flags=["--resume"]), log=tmp_path / "log").wait() == [0]
        tally.check(differences(wanted, outcome(run)) == [], f"write {number}: {differences(wanted, outcome(run))}")
    assert number > 10
    tally.verdict()


def test_a_damaged_checkpoint_is_left_for_an_older_one(data, tmp_path):
    wanted, _ = reference(data, tmp_path, 1)
    run = tmp_path / "run"
    job = Job(argv(data, run), fault=("at_step", 22, "kill"), log=tmp_path / "log")
    assert job.wait() == [-signal.SIGKILL]
    newest = sorted((run / "checkpoints").glob(f"step-*/{MANIFEST}"))[-1].parent  # the kill may have left one without
    part = next(newest.glob("part0-*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    job = Job(argv(data, run, flags=["--resume"]), log=tmp_path / "log2")
    assert job.wait() == [0]
    assert "its checksum does not match" in job.said() and "an older checkpoint is used" in job.said()
    assert differences(wanted, outcome(run)) == []


def test_a_signal_saves_and_ends_the_run(data, tmp_path):
    wanted, _ = reference(data, tmp_path, 2)
    run = tmp_path / "run"
    job = Job(argv(data, run), 2, fault=("at_step", 9, "term"), fault_rank=1, log=tmp_path / "log")
    assert job.wait() == [143, 143], job.said()
    assert "stopped at step 10 of 24 (SIGTERM); --resume goes on" in job.said()
    assert Job(argv(data, run, flags=["--resume"]), 2, log=tmp_path / "log").wait() == [0, 0]
    assert differences(wanted, outcome(run)) == []


@pytest.mark.slow
@pytest.mark.promise("R1", count=2)
def test_a_compiled_run_is_killed_and_resumed(data, tmp_path):
    """Each process compiles for itself: what another one compiled is not to be found."""
    words = ("run.compile=true", "run.dtype=bf16", "run.steps=16", "run.validate_every=6")

    def trained(run, name: str, fault=(), flags=()) -> int:
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"compiled-{name}")}
        job = Job(
            argv(data, run, *words, flags=flags), fault=fault, log=tmp_path / f"{name}.log", environment=environment
        )
        (code,) = job.wait(600)
        assert code in (0, -signal.SIGKILL) and (tmp_path / f"compiled-{name}").is_dir(), job.said()
        return code

    assert trained(tmp_path / "whole", "whole") == 0
    for number, flags in ((6, ()), (13, ["--resume"])):
        assert trained(tmp_path / "run", f"killed{number}", ("at_step", number, "kill"), flags) == -signal.SIGKILL
    assert trained(tmp_path / "run", "resumed", flags=["--resume"]) == 0
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "run")) == []


def test_a_limit_of_time_saves_and_ends_the_run(data, tmp_path):
    wanted, _ = reference(data, tmp_path, 1)
    run = tmp_path / "run"
    job = Job(argv(data, run, "run.max_minutes=0.01"), fault=("slow", 0.2), log=tmp_path / "log")
    assert job.wait() == [0]
    assert "(out of time); --resume goes on" in job.said() and not (run / "model").exists()
    assert Job(argv(data, run, flags=["--resume"])).wait() == [0]
    assert differences(wanted, outcome(run)) == []
