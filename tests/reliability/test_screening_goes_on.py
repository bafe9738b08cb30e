"""R2: killed at any moment, on any number of processes, a screening has the same rows when it is done: none lost, doubled
or changed."""

import random
import signal
import time

import pytest
from screenings import CHUNK, argv, chunks, column, need_pyarrow, random_candidates
from training import Job

COUNT = 60
WORDS = ("--max-edges", "400", "--where", "max_force < 1e9")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, saved_model):
    """(candidates, an uninterrupted run, its seconds)."""
    need_pyarrow()
    folder = tmp_path_factory.mktemp("screening")
    candidates = random_candidates(folder, COUNT)
    since = time.monotonic()
    job = Job(argv([candidates], folder / "whole", saved_model, *WORDS), log=folder / "log")
    assert job.wait() == [0], job.said()
    assert column(folder / "whole", "candidate").tolist() == list(range(COUNT))
    return candidates, folder / "whole", time.monotonic() - since


def same(wanted, run) -> bool:
    """Chunks, ranking and best structures, byte for byte."""
    names = ("screening.json", "ranking.csv", "best.extxyz", "counts.json")
    return chunks(wanted) == chunks(run) and all((wanted / n).read_bytes() == (run / n).read_bytes() for n in names)


def wait_for_a_moment(job: Job, run, chance: random.Random, seconds: float) -> None:
    """Until some number of chunks is there, and a little longer: a slow machine, too, is hit in its work, not in its imports."""
    wanted = chance.randint(number_of_chunks(run), COUNT // CHUNK)
    while number_of_chunks(run) < wanted and job.processes[0].is_alive():
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.2) * seconds)


def number_of_chunks(run) -> int:
    return len(list(run.glob("chunks/*.parquet")))


def kill_at_random(whole, model, folder, kills: int, tally, world: int) -> None:
    """Every kill is followed by a start on another number of processes; some kills spare a process, which does it all."""
    candidates, wanted, seconds = whole
    chance = random.Random(20261122 + world)
    done = number = 0
    while done < kills:
        run = folder / f"run{world}-{number}"
        number += 1
        for attempt in range(50):
            count = 1 + (world + attempt) % 3
            job = Job(argv([candidates], run, model, *WORDS), count, log=folder / "log")
            if done < kills and attempt < 4:
                wait_for_a_moment(job, run, chance, seconds)
                alive = [process for process in job.processes if process.is_alive()]
                victims = alive if chance.random() < 0.5 else alive[:1]
                for victim in victims:
                    victim.kill()
                    victim.join()
                done += bool(victims)
                if len(victims) == len(alive):
                    job.wait(0)
                    continue
            codes = job.wait(60)
            if codes[0] == 0:
                break
        tally.check(same(wanted, run), run.name)


@pytest.mark.promise("R2")
@pytest.mark.parametrize("world", [1, 2])
def test_killed_and_started_again(whole, saved_model, tmp_path, tally, world):
    kill_at_random(whole, saved_model, tmp_path, 10, tally, world)
    tally.verdict()


@pytest.mark.slow
@pytest.mark.promise("R2")
def test_killed_and_started_again_often(whole, saved_model, tmp_path, tally):
    kill_at_random(whole, saved_model, tmp_path, 200, tally, 2)
    tally.verdict()


@pytest.mark.promise("R2", count=1)
def test_a_process_that_falls_silent_costs_its_chunk_only(whole, saved_model, tmp_path):
    """One of two is stopped for good: the other waits, takes its chunks over, and ends."""
    candidates, wanted, _ = whole
    run = tmp_path / "run"
    job = Job(
        argv([candidates], run, saved_model, *WORDS),
        2,
        fault=("slow_screening", 0.2),
        fault_rank=1,
        log=tmp_path / "log",
    )
    since = time.monotonic()
    while not list(run.glob("chunks/*.parquet")) and time.monotonic() - since < 60:
        time.sleep(0.02)
    job.kill_one(1, signal.SIGSTOP)
    job.processes[0].join(60)
    assert job.processes[0].exitcode == 0, job.said()
    assert same(wanted, run)
    job.kill_one(1, signal.SIGCONT)  # it finishes what was done meanwhile, and changes nothing
    assert job.wait(60) == [0, 0], job.said()
    assert same(wanted, run)


def test_a_disk_that_refuses_is_told(whole, saved_model, tmp_path):
    candidates, wanted, _ = whole
    run = tmp_path / "run"
    job = Job(argv([candidates], run, saved_model, *WORDS), fault=("full_disk_of_chunks", 4), log=tmp_path / "log")
    assert job.wait() == [1]
    assert "could not be written" in job.said() and "give the same command again to go on" in job.said()
    assert Job(argv([candidates], run, saved_model, *WORDS), log=tmp_path / "log").wait() == [0]
    assert same(wanted, run)
