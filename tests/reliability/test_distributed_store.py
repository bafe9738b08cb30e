"""Datasets in the memory of MPI ranks: every structure from every rank, no owner needed, and what happens when one dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from labelled import make_dataset, need_adios, records
from support import ROOT

from gfm_calc.data.store import open_dataset

COUNTS = (70, 1, 60)
PRELUDE = """
import os, signal, sys, time
import numpy as np
from mpi4py import MPI
from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.store import open_dataset
comm = MPI.COMM_WORLD
dataset = open_dataset(sys.argv[1])
NAMES = ("ptr", "atomic_numbers", "positions", "forces", "cell", "pbc", "energy", "stress", "charge", "spin", "frame")

def check(found, wanted):
    for name in NAMES:
        shape = wanted.positions.shape if name == "forces" else wanted.cell.shape  # of labels that nobody has
        a, b = (np.full(shape, np.nan) if x is None else x for x in (getattr(found, name), getattr(wanted, name)))
        np.testing.assert_array_equal(a, b, err_msg=name)
"""


@pytest.fixture(scope="module")
def mpirun():
    """The launcher of the environment's own MPI."""
    if find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install 'gfm-calc[mpi]'")
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("there is no mpirun: pip install 'gfm-calc[mpi]'")
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    need_adios()
    return make_dataset(tmp_path_factory.mktemp("store") / "data", COUNTS)


def run_ranks(mpirun, ranks: int, code: str, *words, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run a program on ranks; a job that hangs is ended, all of it, and fails the test."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [mpirun, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-c", PRELUDE + code, *map(str, words)]
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=env,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        out, err = job.communicate()
        pytest.fail(f"the job hung:\n{out[-2000:]}\n{err[-2000:]}")
    return subprocess.CompletedProcess(command, job.returncode, out, err)


EVERYTHING = """
layouts = [{}, {"node_size": 1}, {"node_size": 2}, {"group_size": 2}, {"group_size": 2, "node_size": 1}, {"group_size": 3}]
order = np.random.default_rng(comm.rank).permutation(len(dataset))
for layout in layouts:
    with DistributedStore(dataset, comm, **layout) as store:
        assert len(store) == len(dataset)
        check(store.read(range(len(dataset))), dataset.read(range(len(dataset))))
        check(store.read(order), dataset.read(order))
        for index in order.tolist():
            check(store.read([index]), dataset.read([index]))
        parts = np.array_split(order, 9)
        for block, part in zip(store.prefetch(parts), parts, strict=True):
            check(block, dataset.read(part))
        assert store.atom_counts(order).tolist() == dataset.atom_counts(order).tolist()
chosen = np.arange(100, 3, -7)
with DistributedStore(dataset, comm, indices=chosen) as store:
    check(store.read(range(len(chosen))), dataset.read(chosen))
total = comm.reduce(1)
if comm.rank == 0:
    print("ranks that agree:", total)
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_structure_from_every_rank(mpirun, dataset, ranks):
    done = run_ranks(mpirun, ranks, EVERYTHING, dataset.directory)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"ranks that agree: {ranks}" in done.stdout


OWNERS_COMPUTE = """
with DistributedStore(dataset, comm, node_size=1) as store:
    comm.Barrier()
    if comm.rank == 0:
        start = time.monotonic()
        for _ in range(20):
            store.read(range(len(dataset)))
        print("seconds:", time.monotonic() - start)
    else:
        time.sleep(20)  # as long as they please: reading needs nothing of them
"""


def test_owners_take_no_part_in_reading(mpirun, dataset):
    done = run_ranks(mpirun, 2, OWNERS_COMPUTE, dataset.directory)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split("seconds:")[1].split()[0]) < 19


DIES = """
store = DistributedStore(dataset, comm, **{"shared": {}, "messages": {"node_size": 1}}[sys.argv[3]])
comm.Barrier()
if comm.rank == 1:
    print("dies at", time.time(), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif sys.argv[2] == "raises":
        raise RuntimeError("the cable is out")
    elif sys.argv[2] == "exits":
        os._exit(3)
while True:
    for block in store.prefetch(np.array_split(np.arange(len(dataset)), 5)):
        pass
"""
# mpirun says what killed a rank; a rank that exits says so by the job's exit code alone, or by that of the rank that mpirun then
# kills, whichever it hears of last.
CAUSES = {"killed": ({9}, "killed (signal 9)"), "raises": ({1}, "the cable is out"), "exits": ({3, 9}, "")}


@pytest.mark.promise("R8")
@pytest.mark.parametrize("way", ["shared", "messages"])
@pytest.mark.parametrize("how", CAUSES)
def test_a_rank_that_dies_ends_the_job(mpirun, dataset, how, way):
    done = run_ranks(mpirun, 2, DIES, dataset.directory, how, way)
    seconds = time.time() - float(done.stdout.split("dies at")[1].split()[0])
    codes, words = CAUSES[how]
    assert seconds < 10, f"{seconds:.1f} s until the job had ended"
    assert done.returncode in codes
    assert words in (done.stdout + done.stderr).lower(), done.stdout + done.stderr


BUILD = """
from pathlib import Path
from labelled import HEAD, RecordTask
from gfm_calc.data.build import build_mpi
tasks = [RecordTask(count=count, seed=seed) for seed, count in enumerate((70, 1, 60))]
built = build_mpi(Path(sys.argv[2]), tasks, HEAD, comm, shard_atoms=150)
assert built.digest == dataset.digest, "the same inputs give the same dataset"
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_build_what_one_process_builds(mpirun, dataset, tmp_path, ranks):
    done = run_ranks(mpirun, ranks, BUILD, dataset.directory, tmp_path / "built")
    assert done.returncode == 0, done.stderr[-3000:]
    built = open_dataset(tmp_path / "built")
    built.verify()
    assert len(built) == sum(COUNTS) == sum(len(records(n, s)) for s, n in enumerate(COUNTS))


TOO_MANY = """
DistributedStore(dataset, comm, indices=np.arange(1))
"""


def test_more_ranks_than_structures(mpirun, dataset):
    done = run_ranks(mpirun, 2, TOO_MANY, dataset.directory)
    assert done.returncode != 0 and "2 ranks cannot share 1 structures" in done.stderr
