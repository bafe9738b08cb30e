"""The loader beside training: batches a second that two processes make, and that one thread of training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from gfm_calc.benchmarks.data_sample import Sample, figure
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.progress import Progress
from gfm_calc.data.loader import LabelledBatch, Loader
from gfm_calc.data.sampling import SamplingPlan
from gfm_calc.errors import GFMError
from gfm_calc.model import GFMModel
from gfm_calc.train.objective import Objective
from gfm_calc.train.recipe import ObjectiveRecipe

WORKERS, BATCH, AHEAD = 2, 32, 4
MODEL = "gfm-small"
_LOADED, _TRAINED = 120, 10  # batches a turn


def run_loader(samples: Mapping[str, Sample], *, rounds: int = 5) -> dict[str, Any]:
    """Measure.

    Returns:
        model, workers, batch; sets, rows {set, atoms_per_structure, edges_per_atom, loader, eager, compiled (structures
        a second), loader_over_eager, loader_over_compiled, here (loader without worker processes)}.
    """
    from torch._dynamo import config as dynamo_config

    model = load_model(MODEL).requires_grad_()
    choices = {name: [sample] for name, sample in samples.items()}
    if len(choices) > 1:
        choices["both"] = list(samples.values())
    with dynamo_config.patch(trace_autograd_ops=True), Progress("loader", "sets", len(choices)) as progress:
        steps = {name: _Training(model, compiled=name == "compiled") for name in ("eager", "compiled")}
        rows = []
        for name, chosen in choices.items():
            rows.append({"set": name, **_row(chosen, model, steps, rounds)})
            progress.advance(note=name)
    return {"model": MODEL, "workers": WORKERS, "batch": BATCH, "threads": torch.get_num_threads(), "sets": rows}


def _row(chosen: Sequence[Sample], model: GFMModel, steps: Mapping[str, _Training], rounds: int) -> dict[str, Any]:
    datasets = [sample.dataset for sample in chosen]
    plan = SamplingPlan(counts=tuple(map(len, datasets)), seed=0, structures=BATCH)
    streams = {}
    for name, workers in (("loader", WORKERS), ("here", 0)):
        loader = Loader(datasets, model.config.cutoff, max_atoms=1 << 30, workers=workers, ahead=AHEAD)
        streams[name] = loader.steps(plan)
    kept = [next(streams["here"])[0] for _ in range(3 * _TRAINED)]
    for training in steps.values():
        training.run(kept[:3])  # compiles
    rates: dict[str, list[float]] = {name: [] for name in (*streams, *steps)}
    for turn in range(rounds):
        for name, count in (("loader", _LOADED), ("here", _LOADED // 4)):
            rates[name].append(_rate(streams[name], count))
        for name, training in steps.items():
            part = [kept[(turn * _TRAINED + k) % len(kept)] for k in range(_TRAINED)]
            seconds = _seconds(lambda: training.run(part))  # noqa: B023
            rates[name].append(_TRAINED * BATCH / seconds)
    found = {name: figure(median(values)) for name, values in rates.items()}
    atoms = sum(len(batch.graph.atomic_numbers) for batch in kept)
    edges = sum(batch.graph.edge_index.shape[1] for batch in kept)
    return {
        "atoms_per_structure": figure(atoms / (BATCH * len(kept))), "edges_per_atom": figure(edges / atoms), **found,
        "loader_over_eager": figure(found["loader"] / found["eager"]),
        "loader_over_compiled": figure(found["loader"] / found["compiled"]),
    }  # fmt: skip


def _rate(stream: Iterator[list[LabelledBatch]], count: int) -> float:
    """Structures a second, after what the workers had ready."""
    for _ in range(WORKERS * AHEAD + 2):
        next(stream)
    return count * BATCH / _seconds(lambda: [next(stream) for _ in range(count)])


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class _Training:
    """Steps of training: loss, backward, AdamW; on batches that are ready."""

    def __init__(self, model: GFMModel, *, compiled: bool):
        self._model = model
        self._objective = Objective(ObjectiveRecipe(), np.ones(len(model.energy_heads)), "float32")
        self._loss: Callable[..., Any] = (
            torch.compile(self._objective, dynamic=True, fullgraph=True) if compiled else self._objective
        )
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        self._rows = torch.arange(len(model.energy_heads))

    def run(self, batches: Sequence[LabelledBatch]) -> None:
        """One step on each batch; the structures of source k are taken for those of the model's head k."""
        for batch in batches:
            inputs = self._model.inputs(batch.graph)
            labels = self._objective.labels(self._model, batch, self._rows, len(batch))
            vectors = inputs.edge_vector.detach().requires_grad_()
            loss, _ = self._loss(self._model, vectors, inputs, labels, True)
            if not bool(loss.isfinite()):
                raise GFMError("the loss of a step of training is not finite")
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
