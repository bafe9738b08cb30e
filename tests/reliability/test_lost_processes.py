"""R8: a process that dies, raises, exits, stops or computes NaN ends the job, soon, with the cause named."""

import time

import pytest
from training import Job, argv, make_datasets, outcome

SAID = {
    "kill": "died without a word: killed, or out of memory",
    "stop": "has given no sign of life for 3 s",
    "raise": "rank {rank}: ValueError: something went wrong",
    "exit": "died without a word: killed, or out of memory",
    "nan": "step 11: the loss or its gradient is not finite: ",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("training") / "datasets")


@pytest.mark.promise("R8", count=1)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", SAID)
def test_a_lost_process_ends_the_job(data, tmp_path, what, rank):
    settings = ("parallel.mode=multitask", "parallel.patience=3.0", "run.steps=100000", "run.validate_every=0")
    run = tmp_path / "run"
    job = Job(argv(data, run, *settings), 2, fault=("at_step", 10, what), fault_rank=rank, log=tmp_path / "log")
    other = job.processes[1 - rank]
    deadline = time.monotonic() + 60
    while not sorted((run / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    since = time.monotonic()
    other.join(30)
    took = time.monotonic() - since
    assert other.exitcode == 1, job.said()
    assert took < 10, f"{took:.1f} s: {job.said()}"
    assert SAID[what].format(rank=rank) in job.said()
    assert what == "nan" or f"rank {rank}" in job.said()  # of a bad batch the structures are named
    assert job.wait(5)[rank] is not None, "the faulty process is still there"
    finish = (*settings[:2], "run.steps=16", "run.validate_every=0")
    assert Job(argv(data, run, *finish, flags=["--resume"]), 2, log=tmp_path / "log2").wait() == [0, 0]
    assert outcome(run)["log"][15]["step"] == 16


def test_bad_batches_can_be_skipped(data, tmp_path):
    settings = ("run.on_bad_batch=skip", "run.steps=14")
    job = Job(
        argv(data, tmp_path / "run", *settings), 2, fault=("at_step", 10, "nan"), fault_rank=1, log=tmp_path / "log"
    )
    assert job.wait() == [0, 0], job.said()
    assert "step 11: the loss or its gradient is not finite: " in job.said() and "the step is skipped" in job.said()
    assert ".extxyz:" in job.said()  # the structures are named
