"""The loader beside training: batches a second that two processes make, and that one thread of training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from gfm_calc.benchmarks.data_sample import Sample
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.training_steps import TrainingSteps, endless_recipe
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.progress import Progress
from gfm_calc.data.loader import LabelledBatch, Loader, Source
from gfm_calc.data.sampling import SamplingPlan
from gfm_calc.train.preparation import prepare
from gfm_calc.train.recipe import Recipe

WORKERS, BATCH, AHEAD = 2, 32, 4
MODEL = "gfm-small"
MODES = ("eager", "compiled")
LOADED, TRAINED = 120, 10  # batches a turn


def run_loader(samples: Mapping[str, Sample], *, rounds: int = 5, modes: Sequence[str] = MODES) -> dict[str, Any]:
    """Measure.

    Args:
        samples: datasets in one folder, by the names of their heads.
        modes: of training, of `MODES`.

    Returns:
        model, workers, batch; sets, rows {set, atoms_per_structure, edges_per_atom, loader, eager, compiled (structures
        a second), loader_over_eager, loader_over_compiled, here (loader without worker processes)}.
    """
    config = load_model(MODEL).config
    (data,) = {sample.dataset.directory.parent for sample in samples.values()}
    choices = [(name,) for name in samples] + ([tuple(samples)] if len(samples) > 1 else [])
    rows = []
    with Progress("loader", "sets", len(choices)) as progress:
        for heads in choices:
            name = heads[0] if len(heads) == 1 else "both"
            rows.append({"set": name, **_row(endless_recipe(data, config, BATCH, heads=heads), rounds, modes)})
            progress.advance(note=name)
    return {"model": MODEL, "workers": WORKERS, "batch": BATCH, "threads": torch.get_num_threads(), "sets": rows}


def _row(recipe: Recipe, rounds: int, modes: Sequence[str]) -> dict[str, Any]:
    cutoff = recipe.model.cutoff
    heads = prepare(recipe, cutoff)
    with ExitStack() as stack:
        steps = {}
        for name in modes:
            run = replace(recipe.run, compile=name == "compiled")
            steps[name] = TrainingSteps(replace(recipe, run=run), heads)
            stack.callback(steps[name].close)
        return _measured([head.select("train") for head in heads], cutoff, steps, rounds)


def _measured(
    sources: Sequence[Source], cutoff: float, steps: Mapping[str, TrainingSteps], rounds: int
) -> dict[str, Any]:
    plan = SamplingPlan(counts=tuple(map(len, sources)), seed=0, structures=BATCH)
    streams = {}
    for name, workers in (("loader", WORKERS), ("here", 0)):
        streams[name] = Loader(sources, cutoff, max_atoms=1 << 30, workers=workers, ahead=AHEAD).steps(plan)
    kept = [next(streams["here"])[0] for _ in range(3 * TRAINED)]
    for training in steps.values():
        training.run(kept[:3])  # warms up
    rates: dict[str, list[float]] = {name: [] for name in (*streams, *steps)}
    for turn in range(rounds):
        for name, count in (("loader", LOADED), ("here", LOADED // 4)):
            rates[name].append(_rate(streams[name], count))
        for name, training in steps.items():
            part = [kept[(turn * TRAINED + k) % len(kept)] for k in range(TRAINED)]
            seconds = _seconds(lambda: training.run(part))  # noqa: B023
            rates[name].append(TRAINED * BATCH / seconds)
    found = {name: rounded(median(values)) for name, values in rates.items()}
    atoms = sum(len(batch.graph.atomic_numbers) for batch in kept)
    edges = sum(batch.graph.edge_index.shape[1] for batch in kept)
    return {
        "atoms_per_structure": rounded(atoms / (BATCH * len(kept))), "edges_per_atom": rounded(edges / atoms), **found,
        **{f"loader_over_{name}": rounded(found["loader"] / found[name]) for name in steps},
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
