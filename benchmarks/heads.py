"""`gfm bench heads`: what many heads cost compared with one, and three ways to get the forces of all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gfm_calc.benchmarks import structures
from gfm_calc.calculator import GFMCalculator
from gfm_calc.commands.progress import Progress
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor


def run_heads(model: GFMModel, *, batches: Sequence[int] = (1, 32, 256), repeats: int = 9) -> dict[str, Any]:
    """Time all energy heads against the first one.

    Returns:
        "heads", their number; "calculator": `compare_heads` of one molecule over all heads and over one; "batches": rows
        {structures, batch, atoms, energies_ms, forces_ms}, each of the last two {one, all, ratio} and forces_ms also
        {loop, rerun}, medians in ms:

        one, all    `Predictor.predict` with one head, with all heads (forces: one batched gradient)
        loop        one encoder pass, then a gradient for each head in turn
        rerun       encoder pass and gradient anew for each head, as if each head were a model
    """
    names = list(model.energy_heads)
    atoms = structures.molecules(16)[8]
    calculator = GFMCalculator(model, head=names[0], strict=False)
    compare = {}
    for forces in (False, True):
        compare["forces_ms" if forces else "energies_ms"] = _against_one(
            lambda: calculator.compare_heads(atoms, names[:1], forces=forces),  # noqa: B023
            lambda: calculator.compare_heads(atoms, forces=forces),  # noqa: B023
            repeats,
        )
    rows = []
    with Progress("heads", "rows", 2 * len(batches)) as progress:
        for name, make in (("molecules", structures.molecules), ("crystals", structures.crystals)):
            for batch in batches:
                rows.append({"structures": name, "batch": batch, **_row(model, make(batch), names, repeats)})
                progress.advance(note=f"{name} {batch}")
    return {"heads": len(names), "calculator": {"atoms": len(atoms), **compare}, "batches": rows}


def _row(model: GFMModel, frames: list, names: list[str], repeats: int) -> dict[str, Any]:
    def stream(heads: Sequence[str], forces: bool) -> Callable[[], Any]:
        predictor = Predictor(model, heads, forces=forces, strict=False)
        return lambda: list(predictor.predict(frames))

    batch = GraphBatch.from_graphs([AtomicGraph.build(atoms, model.config.cutoff) for atoms in frames])
    energies = _against_one(stream(names[:1], False), stream(names, False), repeats)
    forces = _against_one(
        stream(names[:1], True), stream(names, True), repeats,
        loop=lambda: _loop(model, batch), rerun=lambda: _rerun(model, batch, names),
    )  # fmt: skip
    return {"atoms": int(batch.num_nodes), "energies_ms": energies, "forces_ms": forces}


def _loop(model: GFMModel, batch: GraphBatch) -> list[torch.Tensor]:
    inputs = model.inputs(batch)
    vectors = inputs.edge_vector.detach().requires_grad_()
    sums = model.atom_energies(inputs._replace(edge_vector=vectors)).sum(dim=1)
    last = len(sums) - 1
    return [torch.autograd.grad(total, vectors, retain_graph=k < last)[0] for k, total in enumerate(sums)]


def _rerun(model: GFMModel, batch: GraphBatch, names: Sequence[str]) -> list[Any]:
    return [model.predict(batch, [name]) for name in names]


def _against_one(
    one: Callable[[], Any], everything: Callable[[], Any], repeats: int, **others: Callable[[], Any]
) -> dict[str, float]:
    """Medians in ms; the contenders take turns, so that what disturbs one disturbs all."""
    contenders = {"one": one, "all": everything, **others}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 2):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if repeat >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - started)
    found = {name: float(f"{1e3 * statistics.median(values):.4g}") for name, values in times.items()}
    return {**found, "ratio": round(found["all"] / found["one"], 3)}
