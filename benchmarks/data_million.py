"""Very many synthetic structures: memory while they are built, the time to open them, and random reads.

Building and opening run in processes of their own, so that their memory is told apart:
`python -m gfm_calc.benchmarks.data_million build|open DATASET COUNT` prints its figures as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.benchmarks.data_sample import latencies, quantiles, size_of
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.schema import Record
from gfm_calc.data.store import open_dataset
from gfm_calc.errors import GFMError

PROCESSES = 2
_PIECE = 4096  # structures that are made at once
_TASK = 500_000
_READS = 2000


@dataclass(frozen=True, kw_only=True)
class SyntheticTask:
    """Structures `start` to `stop` of an endless seeded series: molecules and cells of 1 to 6 atoms with all labels."""

    start: int
    stop: int
    seed: int = 0

    def identity(self) -> list[int]:
        """What they depend on."""
        return [self.start, self.stop, self.seed]

    def records(self) -> Iterator[Record]:
        """The structures."""
        for piece in range(self.start // _PIECE, -(-self.stop // _PIECE)):
            made = _made(piece, self.seed)
            yield from made[max(0, self.start - piece * _PIECE) : self.stop - piece * _PIECE]

    def inputs(self) -> list[dict[str, Any]]:
        """One source, named by its range."""
        name = f"synthetic-{self.start}-{self.stop}"
        return [{"name": name, "size": self.stop - self.start, "sha256": f"{name}-{self.seed}"}]


def _made(piece: int, seed: int) -> list[Record]:
    """The structures of one piece of the series; every other one is periodic."""
    random = np.random.default_rng([seed, piece])
    counts = random.integers(1, 7, _PIECE)
    ends = np.cumsum(counts)
    total = int(ends[-1])
    numbers = random.integers(1, 90, total)
    positions = np.round(random.uniform(0.0, 8.0, (total, 3)), 5)
    forces = np.round(random.normal(size=(total, 3)), 5)
    energies = np.round(random.normal(-1e3, 1e2, _PIECE), 6).tolist()
    cells = np.round(8.0 * np.eye(3) + random.normal(0.0, 0.1, (_PIECE, 3, 3)), 5)
    stresses = np.round(random.normal(0.0, 0.01, (_PIECE, 3, 3)), 6)
    none, closed, periodic = np.zeros((3, 3)), np.zeros(3, bool), np.ones(3, bool)
    found, first = [], 0
    for k, last in enumerate(ends.tolist()):
        index, crystal = piece * _PIECE + k, k % 2
        found.append(Record(
            atomic_numbers=numbers[first:last], positions=positions[first:last], cell=cells[k] if crystal else none,
            pbc=periodic if crystal else closed, energy=energies[k], forces=forces[first:last],
            stress=stresses[k] if crystal else None, charge=0, spin=1, group=f"group-{index // 100}", source="synthetic",
            frame=index,
        ))  # fmt: skip
        first = last
    return found


def run_million(structures: int, scratch: Path) -> dict[str, Any]:
    """Measure.

    Returns:
        structures, atoms, processes; seconds, structures_per_s; peak_mb {parent, largest_child}; bytes {all, index,
        digests}; open {seconds, memory_mb, grown_mb, after_reads_mb (not backed by files)}; reads {first, again: median_us,
        p99_us}, correct (structures read back and compared).

    Raises:
        GFMError: a structure that does not come back as it was made.
    """
    directory = scratch / "dataset"
    made = _in_process("build", directory, structures)
    opened = _in_process("open", directory, structures)
    index = sum(path.stat().st_size for path in directory.iterdir() if path.is_file() and "index" in path.name)
    digests = sum(path.stat().st_size for path in directory.iterdir() if path.is_file() and "digests" in path.name)
    return {
        "structures": structures, "processes": PROCESSES, **made, **opened,
        "bytes": {"all": size_of(directory), "index": index, "digests": digests},
    }  # fmt: skip


def _in_process(what: str, directory: Path, structures: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, what, str(directory), str(structures)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise GFMError(f"the part million could not {what}: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- in processes of their own ----


def _build(directory: Path, structures: int) -> dict[str, Any]:
    from resource import RUSAGE_CHILDREN, getrusage

    tasks = [SyntheticTask(start=k, stop=min(k + _TASK, structures)) for k in range(0, structures, _TASK)]
    started = time.perf_counter()
    dataset = build(directory, tasks, HeadSpec(name="synthetic", code="none", functional="none"), processes=PROCESSES)
    seconds = time.perf_counter() - started
    child = getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "atoms": dataset.num_atoms, "shards": len(dataset.shards), "seconds": rounded(seconds),
        "structures_per_s": rounded(structures / seconds),
        "peak_mb": {"parent": _memory("VmHWM"), "largest_child": rounded(child)},
    }  # fmt: skip


def _open(directory: Path, structures: int) -> dict[str, Any]:
    before = _memory("RssAnon")
    started = time.perf_counter()
    dataset = open_dataset(directory)
    seconds = time.perf_counter() - started
    after = _memory("RssAnon")
    chosen = np.random.default_rng(2).integers(structures, size=_READS).tolist()
    first, again = latencies(dataset.__getitem__, chosen), latencies(dataset.__getitem__, chosen)
    finished = _memory("RssAnon")
    for index in chosen[:100]:
        _compare(dataset.record(index), index)
    return {
        "open": {
            "seconds": rounded(seconds), "memory_mb": after, "grown_mb": rounded(max(0.0, after - before)),
            "after_reads_mb": finished,
        },
        "reads": {"first": quantiles(first), "again": quantiles(again)}, "compared": 100,
    }  # fmt: skip


def _compare(found: Record, index: int) -> None:
    (wanted,) = SyntheticTask(start=index, stop=index + 1).records()
    same = found.energy == wanted.energy and found.frame == wanted.frame and found.group == wanted.group
    if not same or not np.array_equal(found.positions, wanted.positions):
        raise GFMError(f"structure {index} did not come back as it was made")


def _memory(key: str) -> float:
    """MB of this process, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return rounded(int(line.split()[1]) / 1024)
    raise GFMError(f"the system does not say {key}")


if __name__ == "__main__":
    what, directory, structures = sys.argv[1:]
    measure = {"build": _build, "open": _open}[what]
    print(json.dumps(measure(Path(directory), int(structures))))
