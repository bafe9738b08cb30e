"""Frames of every file of a folder, as datasets that reads, loader and ranks are measured on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.readers import read
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Dataset
from gfm_calc.data.tasks import FileTask


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """The first frames of each of `paths`, as many of each as `count` allows, small files first; of those that are
    periodic, or of those that are not."""

    paths: tuple[Path, ...]
    count: int
    periodic: bool

    def identity(self) -> list[Any]:
        """Files and counts."""
        return [FileTask(paths=self.paths).identity(), self.count, self.periodic]

    def records(self) -> Iterator[Record]:
        """The frames."""
        missing = self.count
        for number, path in enumerate(self.paths):
            share = -(-missing // (len(self.paths) - number))
            for record in read(path):
                if share == 0:
                    break
                if bool(record.pbc.any()) == self.periodic:
                    yield record
                    share, missing = share - 1, missing - 1

    def inputs(self) -> list[dict[str, Any]]:
        """The files."""
        return FileTask(paths=self.paths).inputs()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A dataset, and {"structures", "atoms", "files"} for the result."""

    dataset: Dataset
    about: dict[str, Any]


def files_of(folder: Path) -> list[Path]:
    """The .extxyz.xz files of a folder, by name."""
    return sorted(folder.glob("*.extxyz.xz"))


def make_sample(folder: Path, scratch: Path, molecules: int, crystals: int, *, processes: int) -> dict[str, Sample]:
    """ "molecules" and "crystals": frames of all files that begin with such a one, as a dataset each below `scratch`."""
    kinds: dict[bool, list[Path]] = {False: [], True: []}
    for path in sorted(files_of(folder), key=lambda path: path.stat().st_size):
        kinds[bool(next(read(path)).pbc.any())].append(path)
    samples = {}
    for name, count, periodic in (("molecules", molecules, False), ("crystals", crystals, True)):
        if kinds[periodic] and count:
            task = SampleTask(paths=tuple(kinds[periodic]), count=count, periodic=periodic)
            dataset = build(
                scratch / name, [task], HeadSpec(name=name, code="several", functional="several"), processes=processes
            )
            about = {"structures": len(dataset), "atoms": dataset.num_atoms, "files": len(task.paths)}
            samples[name] = Sample(dataset=dataset, about=about)
    return samples


# ---- stopwatches ----


def latencies(call: Callable[[Any], Any], items: Iterable[Any]) -> list[float]:
    """Seconds of `call(item)` for each item."""
    found = []
    for item in items:
        started = time.perf_counter()
        call(item)
        found.append(time.perf_counter() - started)
    return found


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """{"median_us", "p99_us"}."""
    return {"median_us": rounded(1e6 * statistics.median(seconds)), "p99_us": rounded(1e6 * np.quantile(seconds, 0.99))}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
