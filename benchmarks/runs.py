"""Runs of `gfm train`, one after the other, on structures that are prepared once: what comparisons of recipes are made of.

The errors of a finished run are kept in the folder of the comparison until it ends, so that one that was interrupted goes on
where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gfm_calc import __version__
from gfm_calc.artifacts import canonical_json, read_json, write_file
from gfm_calc.benchmarks.provenance import weights_id
from gfm_calc.checkpoint import open_model
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import GFMError
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import Recipe, to_toml
from gfm_calc.train.run_folder import begin


@contextmanager
def folder_of_runs(work: Path | None) -> Iterator[Path]:
    """Where the runs of a comparison work: `work`, which stays, or a folder that is gone afterwards."""
    if work is not None:
        if work.exists() and not work.is_dir():
            raise GFMError(f"--work {work}: is a file; give a folder")
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="gfm-runs-") as scratch:
        yield Path(scratch)


def train(folder: Path, recipe: Recipe, heads: Sequence[Head]) -> dict[str, Any]:
    """Train on one thread, in a process of its own; or what `folder` keeps of the same run.

    Args:
        folder: of the comparison, see `folder_of_runs`.
        heads: as `preparation.prepare` gives them.

    Returns:
        RUN/errors.json, and "telemetry", that of the process.

    Raises:
        GFMError: the run failed.
    """
    run = folder / _name_of(recipe, heads)
    kept = run.with_suffix(".json")
    if kept.exists():
        return read_json(kept)
    if not (run / "recipe.toml").exists():
        begin(run, recipe, heads)
    words = [str(run / "recipe.toml"), "-o", str(run), "--device", "cpu", "--threads", "1", "--no-report", "--resume"]
    done = subprocess.run([sys.executable, "-m", "gfm_calc.train", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        names = ", ".join(head.spec.name for head in heads[:3])
        raise GFMError(f"the run of {names} failed: {lines[-1] if lines else 'it said nothing'}")
    found = json.loads((run / "errors.json").read_text())
    found["telemetry"] = json.loads((run / "telemetry.json").read_text())["ranks"][0]
    write_file(kept, canonical_json(found))
    shutil.rmtree(run)
    return found


def train_all(
    folder: Path, runs: Mapping[str, tuple[Recipe, Sequence[Head]]], progress: Progress, processes: int = 1
) -> dict[str, dict[str, Any]]:
    """`train` of each of `runs`, so many at a time, begun in their order; one that fails ends those that have not begun."""
    found: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(processes) as pool:
        begun = {name: pool.submit(train, folder, *run) for name, run in runs.items()}
        try:
            for name, run in begun.items():
                found[name] = run.result()
                progress.advance(note=name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _name_of(recipe: Recipe, heads: Sequence[Head]) -> str:
    """Another one for every recipe, for other data or weights to begin with, and for another version of ours."""
    begun = weights_id(open_model(recipe.start.model)) if recipe.start.model else ""
    about = [
        __version__,
        to_toml(recipe),
        begun,
        *(f"{head.spec.name} {head.dataset.digest} {head.share!r}" for head in heads),
    ]
    return "run-" + hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
