"""The distributed store on MPI ranks: every structure from every rank, how long a get takes, and from disk for comparison.

`python -m mpi4py -m gfm_calc.benchmarks.data_ranks DATASET RESULT` is what each rank runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.benchmarks.data_sample import Sample, latencies, quantiles
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.commands.progress import Progress
from gfm_calc.data.block import Block
from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.errors import GFMError, MissingDependencyError

LAYOUTS = {"shared memory": None, "one-sided": 1}  # ranks that share memory; None: those of a node
BATCH = 32
_SINGLE, _BATCHED, _ROUNDS = 400, 40, 5
_TIMEOUT = 600.0  # seconds of a job


def run_ranks(samples: Mapping[str, Sample], scratch: Path, ranks: Sequence[int]) -> dict[str, Any]:
    """Measure, a job of mpirun for each dataset and number of ranks.

    Returns:
        {"jobs": rows}: {set, ranks, structures, compared (structures fetched and compared with the file, all ranks and
        layouts together), ways: {"shared memory" | "one-sided" | "disk": {single: {median_us, p99_us}, batch: {...},
        batch_mb_per_s}}}, measured by rank 0, on structures that other ranks hold, while these sleep.

    Raises:
        GFMError: a job failed, or a structure is not what the file holds.
        MissingDependencyError: no mpirun.
    """
    mpirun, rows = _mpirun(), []
    with Progress("ranks", "jobs", len(samples) * len(ranks)) as progress:
        for name, sample in samples.items():
            for count in ranks:
                out = scratch / f"{name}-{count}.json"
                _run([mpirun, "-n", str(count), sys.executable, "-m", "mpi4py", "-m", __name__,
                      str(sample.dataset.directory), str(out)])  # fmt: skip
                rows.append({"set": name, **sample.about, **json.loads(out.read_bytes())})
                progress.advance(note=f"{name}, {count} ranks")
    return {"jobs": rows, "batch": BATCH}


def _mpirun() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise MissingDependencyError("the part ranks needs MPI: pip install 'gfm-calc[mpi]'")
    return found


def _run(command: Sequence[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=env,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, complaints = job.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        raise GFMError(f"the job of {command[2]} ranks did not end within {_TIMEOUT:g} s") from error
    if job.returncode:
        last = complaints.strip().splitlines()[-1:] or ["no message"]
        raise GFMError(f"the job of {command[2]} ranks failed: {last[0]}")


# ---- what each rank does ----


def main(directory: str, out: str) -> None:
    """Check and measure; rank 0 writes the figures."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    dataset = open_dataset(directory)
    compared, ways = 0, {}
    for name, node_size in LAYOUTS.items():
        with DistributedStore(dataset, comm, node_size=node_size) as store:
            compared += _compare(store, dataset, comm.rank)
            if comm.rank == 0:
                ways[name] = _measured(store.read, dataset, first=len(dataset) // comm.size + 1)
            _sleep_until_all_are_here(comm)
    total = comm.reduce(compared)
    if comm.rank == 0:
        ways["disk"] = _measured(dataset.read, dataset, first=len(dataset) // comm.size + 1)
        Path(out).write_text(json.dumps({"ranks": comm.size, "compared": total, "ways": ways}))


def _sleep_until_all_are_here(comm: Any) -> None:
    request = comm.Ibarrier()  # a barrier would burn the processor that rank 0 measures on
    while not request.Test():
        time.sleep(0.02)


def _compare(store: DistributedStore, dataset: Dataset, rank: int) -> int:
    """Fetch every structure, in an order of this rank's own; the number of them."""
    order = np.random.default_rng(rank).permutation(len(dataset))
    for part in np.array_split(order, -(-len(order) // 256)):
        name = different(store.read(part), dataset.read(part))
        if name is not None:
            raise GFMError(f"{dataset.directory}: {name} from memory is not what the file holds (rank {rank})")
    return len(order)


def different(found: Block, wanted: Block) -> str | None:
    """The column in which two blocks are not equal, or None; a label that nobody has may be None or NaN."""
    for name in (field.name for field in fields(Block) if field.name not in ("group", "source")):
        a, b = getattr(found, name), getattr(wanted, name)
        if a is None or b is None:
            given = b if a is None else a
            same = given is None or bool(np.isnan(given).all())
        else:
            same = np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        if not same:
            return name
    return None


def _measured(read: Callable[..., Block], dataset: Dataset, first: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    single: list[float] = []
    batched: list[float] = []
    moved = 0
    for round in range(_ROUNDS + 1):
        lone = random.integers(first, len(dataset), (_SINGLE, 1))
        groups = random.integers(first, len(dataset), (_BATCHED, BATCH))
        times = latencies(read, lone), latencies(read, groups)
        if round:  # the first warms up
            single, batched = single + times[0], batched + times[1]
            moved += sum(_bytes(dataset.read(group)) for group in groups)
    return {
        "single": quantiles(single), "batch": quantiles(batched), "batch_mb_per_s": rounded(moved / 1e6 / sum(batched)),
    }  # fmt: skip


def _bytes(block: Block) -> int:
    arrays = (getattr(block, field.name) for field in fields(Block))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


if __name__ == "__main__":
    main(*sys.argv[1:])
