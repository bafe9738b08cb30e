"""Labelled structures and small datasets that the tests of the data platform share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Dataset

HEAD = HeadSpec(name="test-head", code="none", functional="noise")
NEEDS_ADIOS = "adios2 is not installed: pip install 'gfm-calc[adios]'"


def need_adios() -> None:
    """Skip the test, with the reason, where shards cannot be written."""
    pytest.importorskip("adios2", reason=NEEDS_ADIOS)


def random_record(random: np.random.Generator, frame: int) -> Record:
    """Anything that a store must give back: every label may be missing, numbers are printed decimals, float32 or float64."""
    n = int(random.integers(1, 12))
    kind = random.integers(3)

    def numbers(*shape: int, scale: float = 1.0) -> np.ndarray:
        values = scale * random.normal(size=shape)
        return [values, np.round(values, 5), values.astype(np.float32).astype(np.float64)][kind]

    periodic = random.random() < 0.5
    return Record(
        atomic_numbers=random.integers(1, 119, n), positions=numbers(n, 3, scale=5.0),
        cell=numbers(3, 3, scale=0.3) + 10 * np.eye(3) if periodic else np.zeros((3, 3)),
        pbc=random.random(3) < 0.7 if periodic else np.zeros(3, bool),
        energy=float(numbers(scale=1e4)) if random.random() < 0.9 else float("nan"),
        forces=numbers(n, 3) if random.random() < 0.8 else None,
        stress=numbers(3, 3, scale=1e-2) if periodic and random.random() < 0.6 else None,
        charge=int(random.integers(-100, 101)) if random.random() < 0.5 else None,
        spin=int(random.integers(1, 9)) if random.random() < 0.5 else None,
        group=["", "plain", "ümlaut α", f"g{random.integers(5)}"][random.integers(4)], source=f"file{frame // 40}.xyz",
        frame=frame,
    )  # fmt: skip


def records(count: int, seed: int = 0) -> list[Record]:
    """`count` random records."""
    random = np.random.default_rng(seed)
    return [random_record(random, frame) for frame in range(count)]


def difference(first: Record, second: Record) -> str | None:
    """The field in which two records are not equal bit for bit (but for the sign of zeros), or None."""
    for name in (field.name for field in fields(Record)):
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            same = a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
        else:
            same = type(a) is type(b) and (a == b or (a != a and b != b))
        if not same:
            return name
    return None


@dataclass(frozen=True, kw_only=True)
class RecordTask:
    """Random records as a task of a build.

    `dies_at`: before that record is read for the first and the second time (`marker` remembers), the process is killed; a
    build tries once again by itself.
    """

    count: int
    seed: int = 0
    dies_at: int | None = None
    marker: Path | None = None

    def identity(self) -> list[Any]:
        """What the records depend on."""
        return [self.count, self.seed]

    def records(self) -> Iterator[Record]:
        """The records."""
        for k, record in enumerate(records(self.count, self.seed)):
            if k == self.dies_at and (deaths := self.marker.stat().st_size if self.marker.exists() else 0) < 2:
                self.marker.write_bytes(bytes(deaths + 1))
                os.kill(os.getpid(), signal.SIGKILL)
            yield record

    def inputs(self) -> list[dict[str, Any]]:
        """One file of this name."""
        return [{"name": f"random-{self.seed}", "size": self.count, "sha256": f"{self.seed}-{self.count}"}]


def make_dataset(directory: Path, counts: Sequence[int], *, shard_atoms: int = 150, **options: Any) -> Dataset:
    """A dataset of a task for each of `counts`, built in this process."""
    tasks = [RecordTask(count=count, seed=seed) for seed, count in enumerate(counts)]
    return build(directory, tasks, HEAD, **{"processes": 0, "shard_atoms": shard_atoms, **options})
