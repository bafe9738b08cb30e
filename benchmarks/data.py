"""`gfm bench data`: the data platform on a folder of labelled files: build, read, load, share among ranks; and very many.

Other formats hold the same frames and are read in turns with ours, so that a change in the machine's mood meets all alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.data_sample import Sample, files_of, make_sample
from gfm_calc.errors import ConfigError, InputFileError, did_you_mean

PARTS = ("pool", "reads", "loader", "ranks", "million")
_NEED_FILES = ("pool", "reads", "loader", "ranks")


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """What to measure.

    Attributes:
        folder: with .extxyz.xz files, whose frames name their `head` and `group`; needed by all parts but million.
        parts: of `PARTS`.
        scratch: where to make a folder for datasets, which is removed in the end (default: the system's).
        structures: synthetic ones of the part million.
        molecules, crystals: frames from the folder for reads, loader and ranks.
        rounds: of the contenders' turns.
        ranks: numbers of MPI ranks.
        processes: that build; 0 builds in this one.
    """

    folder: Path | None = None
    parts: tuple[str, ...] = PARTS
    scratch: Path | None = None
    structures: int = 10_000_000
    molecules: int = 20_000
    crystals: int = 5_000
    rounds: int = 5
    ranks: tuple[int, ...] = (2, 4)
    processes: int = 2

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"--parts: no part {part!r}{did_you_mean(part, PARTS)}; parts: {', '.join(PARTS)}")
        if self.folder is None and any(part in _NEED_FILES for part in self.parts):
            raise ConfigError(f"--data: name the folder that {', '.join(_NEED_FILES)} are measured on")


def run_data(plan: DataPlan) -> dict[str, Any]:
    """Measure; a key for each part, see `run_pool`, `run_reads`, `run_loader`, `run_ranks` and `run_million`.

    Raises:
        GFMError: a file that cannot be read, or data that do not come back as they were.
    """
    if plan.folder is not None and not files_of(plan.folder):
        raise InputFileError(f"{plan.folder}: holds no .extxyz.xz files")
    with _scratch(plan.scratch) as scratch:
        needs_sample = {"reads", "loader", "ranks"} & set(plan.parts)
        samples = _samples(plan, scratch) if needs_sample else {}
        return {part: _run_part(part, plan, samples, scratch) for part in plan.parts}


def _samples(plan: DataPlan, scratch: Path) -> dict[str, Sample]:
    assert plan.folder is not None  # DataPlan sees to it
    return make_sample(plan.folder, scratch, plan.molecules, plan.crystals, processes=plan.processes)


def _run_part(part: str, plan: DataPlan, samples: dict[str, Sample], scratch: Path) -> Any:
    folder = scratch / part
    folder.mkdir()
    if part == "pool":
        from gfm_calc.benchmarks.data_pool import run_pool

        assert plan.folder is not None
        return run_pool(plan.folder, folder, processes=plan.processes)
    if part == "reads":
        from gfm_calc.benchmarks.data_formats import run_reads

        return run_reads(samples, folder, rounds=plan.rounds)
    if part == "loader":
        from gfm_calc.benchmarks.data_loader import run_loader

        return run_loader(samples, rounds=plan.rounds)
    if part == "ranks":
        from gfm_calc.benchmarks.data_ranks import run_ranks

        return run_ranks(samples, folder, plan.ranks)
    from gfm_calc.benchmarks.data_million import run_million

    return run_million(plan.structures, folder)


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    if parent is not None and not parent.is_dir():
        raise InputFileError(f"{parent}: no such directory; --scratch names one that is there")
    with tempfile.TemporaryDirectory(prefix="gfm-bench-", dir=parent) as folder:
        yield Path(folder)
