"""Runs of `gfm train`, one after the other, on structures that are prepared once: what comparisons of recipes are made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfm_calc.errors import GFMError
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import Recipe
from gfm_calc.train.run_folder import begin


def train(run: Path, recipe: Recipe, heads: Sequence[Head]) -> dict[str, Any]:
    """Train on one thread, in a process of its own; the folder is gone afterwards.

    Args:
        run: a folder that is not there yet.
        heads: as `preparation.prepare` gives them.

    Returns:
        RUN/errors.json, and "telemetry", that of the process.

    Raises:
        GFMError: the run failed.
    """
    begin(run, recipe, heads)
    words = [str(run / "recipe.toml"), "-o", str(run), "--device", "cpu", "--threads", "1", "--no-report", "--resume"]
    done = subprocess.run([sys.executable, "-m", "gfm_calc.train", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        names = ", ".join(head.spec.name for head in heads[:3])
        raise GFMError(f"the run of {names} failed: {lines[-1] if lines else 'it said nothing'}")
    found = json.loads((run / "errors.json").read_text())
    found["telemetry"] = json.loads((run / "telemetry.json").read_text())["ranks"][0]
    shutil.rmtree(run)
    return found
