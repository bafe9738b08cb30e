"""Steps of training on batches that are ready: those of `train.trainer.Trainer`, for a stopwatch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from gfm_calc.config import ModelConfig
from gfm_calc.data.loader import LabelledBatch, labelled_batches
from gfm_calc.data.sampling import Batch
from gfm_calc.data.store import Dataset
from gfm_calc.train.parallel import Place, Ranks
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import DataRecipe, Recipe, RunRecipe
from gfm_calc.train.trainer import Trainer


def ready_batches(dataset: Dataset, size: int, cutoff: float) -> Iterator[LabelledBatch]:
    """The structures of a dataset in order, `size` a batch."""
    for first in range(0, len(dataset), size):
        index = np.arange(first, min(first + size, len(dataset)))
        drawn = Batch(head=np.zeros(len(index), np.int64), index=index)
        yield from labelled_batches(dataset.read(index), drawn, cutoff)


def endless_recipe(
    data: Path, config: ModelConfig, size: int, *, heads: Sequence[str] = (), compile: bool = False
) -> Recipe:
    """A recipe that never ends: float32, nothing held out, a batch a step.

    Args:
        data: a dataset, or a folder of them.
        size: structures a step.
        heads: of the datasets; () stands for all.
        compile: the step.
    """
    return Recipe(
        data=DataRecipe(path=str(data), heads=tuple(heads), validation=0.0, test=0.0), model=config,
        run=RunRecipe(steps=10**9, structures=size, max_atoms=10**9, max_edges=10**12, compile=compile),
    )  # fmt: skip


class TrainingSteps:
    """The trainer that `gfm train` would make, and its step from a batch with edges to new weights: geometry and targets,
    forward, forces, loss, backward, norm and clipping of the gradient, AdamW, running average of the weights.

    Args:
        recipe: see `endless_recipe`.  heads: what `prepare` found for it.
    """

    def __init__(self, recipe: Recipe, heads: Sequence[Head]):
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.trainer = Trainer(recipe, heads, Ranks(Place(), "cpu"), folder)
        self._objective = self._stack.enter_context(self.trainer.compiled())

    def run(self, batches: Sequence[LabelledBatch]) -> float:
        """A step on each batch, of structures of the trainer's heads; the last loss.

        Raises:
            BadBatchError: a loss or gradient that is not finite.
        """
        for batch in batches:
            line = self.trainer.train_step(self._objective, self.trainer.prepared([batch]))
        return line["loss"]

    def close(self) -> None:
        """Take back what compiling has set, and remove the trainer's folder."""
        self._stack.close()
