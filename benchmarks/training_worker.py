"""Our side of `gfm bench training`: the steps of `train.trainer.Trainer` under the stopwatch that the peers run under."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gfm_calc import __version__
from gfm_calc.benchmarks.peers.measure import answer_jobs
from gfm_calc.benchmarks.peers.steps import Arrays, clocked
from gfm_calc.config import ModelConfig
from gfm_calc.data.loader import LabelledBatch, labelled_batches
from gfm_calc.data.sampling import Batch
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.train.parallel import Place, Ranks
from gfm_calc.train.preparation import prepare
from gfm_calc.train.recipe import DataRecipe, Recipe, RunRecipe
from gfm_calc.train.trainer import Trainer


def ready_batches(dataset: Dataset, size: int, cutoff: float) -> Iterator[LabelledBatch]:
    """The structures of a dataset in order, `size` a batch."""
    for first in range(0, len(dataset), size):
        index = np.arange(first, min(first + size, len(dataset)))
        drawn = Batch(head=np.zeros(len(index), np.int64), index=index)
        yield from labelled_batches(dataset.read(index), drawn, cutoff)


def make_trainer(data: Path, config: ModelConfig, size: int, *, compile: bool, folder: Path) -> Trainer:
    """The trainer that `gfm train` would make of this dataset and model, in float32."""
    recipe = Recipe(
        data=DataRecipe(path=str(data), validation=0.0, test=0.0), model=config,
        run=RunRecipe(steps=10**9, structures=size, max_atoms=10**9, max_edges=10**12, compile=compile),
    )  # fmt: skip
    return Trainer(recipe, prepare(recipe, config.cutoff), Ranks(Place(), "cpu"), folder)


class GFMTrainee:
    """See `peers.steps.Trainee`.  A step is that of `gfm train` from a batch with edges to new weights: geometry and targets,
    forward, forces, loss, backward, norm and clipping of the gradient, AdamW, running average of the weights."""

    def __init__(self, data: Path, config: ModelConfig, size: int, *, compile: bool):
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.mode = "compiled" if compile else "eager"
        self.config = config
        self.trainer = make_trainer(data, config, size, compile=compile, folder=folder)
        self.batches = list(ready_batches(open_dataset(data), size, config.cutoff))
        self.objective = self._stack.enter_context(self.trainer.compiled())

    def describe(self) -> dict[str, Any]:
        """Name, version, model, number of parameters and mode."""
        c = self.config
        model = f"PaiNN, width {c.num_features}, {c.num_layers} layers, {c.num_radial} radial functions, head {c.head_width}"
        return {
            "name": "gfm-calc", "mode": self.mode, "version": __version__, "torch": torch.__version__, "model": model,
            "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
        }  # fmt: skip

    def turn(self, batches: list[Arrays]) -> Callable[[], float]:
        """A step on each batch; they are made from the dataset, and checked to be those of the stopwatch."""
        for own, given in zip(self.batches, batches, strict=True):
            if not np.array_equal(own.graph.edge_index.numpy(), given["pairs"]):
                raise ValueError("these are not the batches of the dataset")

        def run() -> float:
            for batch in self.batches:
                line = self.trainer.train_step(self.objective, self.trainer.prepared([batch]))
            return line["loss"]

        return run


def _make(options: argparse.Namespace) -> GFMTrainee:
    config = ModelConfig(**json.loads(options.model))
    return GFMTrainee(options.data, config, options.batch, compile=options.compile)


def main() -> None:
    """Entry point of `python -m gfm_calc.benchmarks.training_worker`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="dataset of gfm data build")
    parser.add_argument("--model", required=True, help="JSON of the model's configuration")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    answer_jobs(clocked(_make, parser), parser)


if __name__ == "__main__":
    main()
