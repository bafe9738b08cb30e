"""Our side of `gfm bench training`: the steps of `train.trainer.Trainer` under the stopwatch that the peers run under."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gfm_calc import __version__
from gfm_calc.benchmarks.peers.measure import answer_jobs
from gfm_calc.benchmarks.peers.steps import Arrays, clocked
from gfm_calc.benchmarks.training_steps import TrainingSteps, endless_recipe, ready_batches
from gfm_calc.config import ModelConfig
from gfm_calc.data.store import open_dataset
from gfm_calc.train.preparation import prepare


class GFMTrainee:
    """See `peers.steps.Trainee`; a step is that of `training_steps.TrainingSteps`."""

    def __init__(self, data: Path, config: ModelConfig, size: int, *, compile: bool):
        self.mode = "compiled" if compile else "eager"
        self.config = config
        recipe = endless_recipe(data, config, size, compile=compile)
        self.steps = TrainingSteps(recipe, prepare(recipe, config.cutoff))
        self.batches = list(ready_batches(open_dataset(data), size, config.cutoff))

    def describe(self) -> dict[str, Any]:
        """Name, version, model, number of parameters and mode."""
        c = self.config
        model = f"PaiNN, width {c.num_features}, {c.num_layers} layers, {c.num_radial} radial functions, head {c.head_width}"
        model += f", networks {c.expansion} times as wide" if c.expansion > 1 else ""
        return {
            "name": "gfm-calc", "mode": self.mode, "version": __version__, "torch": torch.__version__, "model": model,
            "parameters": sum(p.numel() for p in self.steps.trainer.model.parameters()),
        }  # fmt: skip

    def turn(self, batches: list[Arrays]) -> Callable[[], float]:
        """A step on each batch; they are made from the dataset, and checked to be those of the stopwatch."""
        for own, given in zip(self.batches, batches, strict=True):
            if not np.array_equal(own.graph.edge_index.numpy(), given["pairs"]):
                raise ValueError("these are not the batches of the dataset")

        return lambda: self.steps.run(self.batches)


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
