"""How long a step of a run takes on this machine, found by trying."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gfm_calc.train.parallel import Place, Ranks
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import Recipe
from gfm_calc.train.trainer import Trainer

_TRIED = 5  # steps; the first one, in which memory is found and code is loaded, does not count


def seconds_of_step(recipe: Recipe, heads: Sequence[Head], device: str | None) -> float:
    """The median over a few steps of the run on one process, in s; nothing of them stays.

    Args:
        recipe: of the run.  heads: as `preparation.prepare` gives them.  device: see `Ranks`.

    Raises:
        BadBatchError: see `RunRecipe.on_bad_batch`.
    """
    ranks, seconds = Ranks(Place(), device, patience=recipe.parallel.patience), []
    try:
        with tempfile.TemporaryDirectory(prefix="gfm-pace-") as folder:
            trainer = Trainer(recipe, heads, ranks, Path(folder))
            with trainer.compiled() as objective:
                since = time.perf_counter()
                for drawn in trainer.loader.steps(trainer.plan, 0, _TRIED):
                    trainer.train_step(objective, trainer.prepared(drawn))
                    now = time.perf_counter()
                    seconds.append(now - since)
                    since = now
            trainer.close()
    finally:
        ranks.close()
    return statistics.median(seconds[1:])
