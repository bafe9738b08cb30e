"""`gfm bench screening`: what makes a screening fast, how fast it is from file to file, and beside HydraGNN's own.

    ablation    the steps that the papers count: a pass a head, encoder reuse, head skip, one gradient, compilation
    end-to-end  structures a second from a file of structures to Parquet, and the share of every stage
    peer        HydraGNN's fused inference on the same structures and neighbours, model alone and end to end
    processes   one process and two on one folder
    others      CHGNet, SevenNet, MACE and torch-sim by their own batch paths, beside ours
    roofline    bytes and operations of the model, beside what the machine can do
    precision   float64, float32 and bfloat16: how fast, and how far from float64
    workload    the papers' own, random atoms and the lead model, as a screening on any device
    million     a plan of a million candidates: projected from a sample of them, or all of them by some processes
    flags       do the errors fall when rows are dropped that are doubtful?  (needs labelled data)
    discovery   withheld crystals ranked by formation energy, beside the order of their labels  (needs labelled data)

The lead model of the papers (PaiNN, width 337, 2 layers, 16 heads of width 776) has random weights: a stopwatch does not mind.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.roofline import ceilings, roofline
from gfm_calc.benchmarks.screening_peer import beside_peer
from gfm_calc.benchmarks.screening_runs import end_to_end, processes
from gfm_calc.benchmarks.screening_scale import million, precision, workload
from gfm_calc.benchmarks.screening_whole import all_of_it
from gfm_calc.benchmarks.screening_worth import worth
from gfm_calc.benchmarks.speed import SpeedPlan, run_speed
from gfm_calc.benchmarks.structures import crystals
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec, ModelConfig
from gfm_calc.errors import ConfigError
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel, Prediction
from gfm_calc.screening.engine import budgeted, by_size
from gfm_calc.screening.generators import RandomAtoms

PARTS = (
    "ablation",
    "end-to-end",
    "peer",
    "processes",
    "others",
    "roofline",
    "precision",
    "workload",
    "million",
    "flags",
    "discovery",
)
RANDOM_WEIGHTS = frozenset({"ablation", "peer", "workload"})  # parts of the lead model alone
CUTOFF = 5.0  # Å
_KEPT = 4  # heads that a structure needs, of all
_ELEMENTS = ("H", "C", "N", "O", "Na", "Al", "Si", "Cl", "Ti", "Cu")


@dataclass(frozen=True, kw_only=True)
class ScreeningPlan:
    """What to measure.

    Attributes:
        parts: of PARTS.
        model, head: of the parts end-to-end and processes.
        heads: of the lead model.
        count, max_atoms: random structures in a box of 10 Å, for ablation, peer and workload; from 2 atoms on.
        device: of part workload.
        max_edges: of a batch.
        candidates: for end-to-end and processes.
        turns: measurements of each contender, which take turns.
        compile: compiled contenders, too.
        peer: python of an environment with HydraGNN's dependencies.  checkout: of HydraGNN.
        others: {name of `speed.PEERS`: python of an environment that has it}.
        molecule_head: of part precision, beside `head`.
        candidates_file, sampled: of part million, how many of its candidates are predicted.  processes: predict all of them,
            by so many processes; None: only those sampled.
        data, recipe, cache: labelled datasets, what the model was trained with, and a folder that keeps what was prepared.
        known: heads of parts flags and discovery; none: `head`.  frames: held-out structures of each at most.
    """

    parts: Sequence[str] = PARTS
    model: str = "gfm-small"
    head: str = "distilled-7net-l3i5"
    heads: int = 16
    count: int = 24
    max_atoms: int = 60
    max_edges: int = 8192
    candidates: int = 2000
    turns: int = 5
    compile: bool = True
    peer: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    molecule_head: str | None = None
    candidates_file: Path | None = None
    sampled: int = 20_000
    processes: int | None = None
    data: Path | None = None
    recipe: str = "gfm-small"
    cache: Path | None = None
    known: Sequence[str] = ()
    frames: int | None = None
    checkout: Path | None = field(default_factory=lambda: Path(os.environ.get("HYDRAGNN_CHECKOUT", "")))

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"--parts: no part {part!r}; parts: {', '.join(PARTS)}")
        if self.heads < _KEPT:
            raise ConfigError(f"--heads: at least {_KEPT}, of which some are skipped")


def run_screening(plan: ScreeningPlan) -> dict[str, Any]:
    """Measure; a table for each part of the plan (see the functions), and "structures" of ablation and peer."""
    found: dict[str, Any] = {}
    structures = lead_structures(plan)
    if RANDOM_WEIGHTS & set(plan.parts):
        model = lead_model(plan.heads)
        batches = batches_of(structures, plan.max_edges)
        atoms, edges = sum(int(b.num_nodes) for b in batches), sum(b.edge_index.shape[1] for b in batches)
        found["structures"] = {"count": len(structures), "atoms": atoms, "edges": edges, "batches": len(batches)}
        if "ablation" in plan.parts:
            found["ablation"] = ablation(model, batches, plan)
        if "workload" in plan.parts:
            found["workload"] = workload(model, plan)
        if "peer" in plan.parts and plan.peer is not None:
            found["peer"], found["peer_ceilings"] = beside_peer(model, structures, batches, plan), ceilings(plan.turns)
    if "end-to-end" in plan.parts:
        found["end_to_end"] = end_to_end(plan)
    if "processes" in plan.parts:
        found["processes"] = processes(plan)
    found |= _of_packaged(plan)
    if {"flags", "discovery"} & set(plan.parts):
        found |= worth(plan)
    return found


def _of_packaged(plan: ScreeningPlan) -> dict[str, Any]:
    """Parts others, roofline, precision, million."""
    found: dict[str, Any] = {}
    if "others" in plan.parts and plan.others:
        found["others"] = run_speed(SpeedPlan(
            model=plan.model, head=plan.head, threads=(1,), compile=plan.compile, peers=plan.others, batches=(256,), systems=(),
            sets={"crystals": crystals(256)}, repeats=plan.turns,
        ))  # fmt: skip
    if "roofline" in plan.parts:
        graphs = [AtomicGraph.build(atoms, CUTOFF) for atoms in crystals(64)]
        few = next(iter(budgeted(graphs, 10**9, plan.max_edges)))
        found["roofline"] = roofline(load_model(plan.model), plan.head, [graphs[k] for k in few], plan.turns)
    if "precision" in plan.parts:
        found["precision"] = precision(plan)
    if "million" in plan.parts:
        found["million" if plan.processes is None else "whole"] = (million if plan.processes is None else all_of_it)(
            plan
        )
    return found


def lead_model(heads: int) -> GFMModel:
    """The papers' model with random weights."""
    config = ModelConfig(
        num_features=337, num_layers=2, num_radial=4, head_width=776, cutoff=CUTOFF, repulsion=None
    )  # fmt: skip
    specs = [
        HeadSpec(name=f"head{k}", elements=_ELEMENTS, reference_energies=dict.fromkeys(_ELEMENTS, -1.0))
        for k in range(heads)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GFMModel(config, specs).requires_grad_(False).eval()


def lead_structures(plan: ScreeningPlan) -> list[Atoms]:
    """The papers' workload, random atoms in a box of 10 Å, in the order in which the engine takes them."""
    stream = RandomAtoms(count=plan.count, max_atoms=plan.max_atoms, elements=_ELEMENTS)
    made = [atoms for _, atoms in stream.made(0, plan.count) if isinstance(atoms, Atoms)]
    return [made[k] for k in by_size([AtomicGraph.build(atoms, CUTOFF) for atoms in made])]


def batches_of(structures: Sequence[Atoms], max_edges: int) -> list[GraphBatch]:
    """As the engine makes them."""
    graphs = [AtomicGraph.build(atoms, CUTOFF) for atoms in structures]
    order = by_size(graphs)
    chosen = budgeted([graphs[k] for k in order], 10**9, max_edges)
    return [GraphBatch.from_graphs([graphs[order[k]] for k in several]) for several in chosen]


def weights_of(model: GFMModel, kept: int) -> dict[str, float]:
    """The mixture of the measurements: the first `kept` heads count, the others not at all."""
    return {head: (1.0 / kept if k < kept else 0.0) for k, head in enumerate(model.energy_heads)}


def ablation(model: GFMModel, batches: Sequence[GraphBatch], plan: ScreeningPlan) -> list[dict[str, Any]]:
    """Rows {step, structures_per_s, ms, times_first, energy_difference, forces_difference}: the same mixture of heads, each
    step on top of the one before; differences are the largest to the first row, in eV/atom and eV/Å."""
    weights = weights_of(model, _KEPT)
    few = {head: weight for head, weight in weights.items() if weight}

    def summed(found: Mapping[str, Prediction]) -> tuple[np.ndarray, np.ndarray]:
        """Binding energies and forces of the mixture."""
        shares = np.array([weights[head] for head in found])
        energies = np.stack([p.energies.numpy() + 1.0 for p in found.values()])  # every reference energy is -1 eV
        forces = np.stack([p.forces.numpy() for p in found.values()])
        return shares @ energies, np.tensordot(shares, forces, axes=1)

    def mixed(found: Prediction) -> tuple[np.ndarray, np.ndarray]:
        return found.energies.numpy(), found.forces.numpy()

    def a_pass_a_head(batch: GraphBatch) -> tuple[np.ndarray, np.ndarray]:
        return summed({head: model.predict(batch, [head])[head] for head in weights})

    compiled = lead_model(plan.heads).compile() if plan.compile else model
    steps: dict[str, Callable[[GraphBatch], tuple[np.ndarray, np.ndarray]]] = {
        "a pass a head": a_pass_a_head,
        "encoder reuse": lambda batch: summed(model.predict(batch, list(weights))),
        "head skip": lambda batch: summed(model.predict(batch, list(few))),
        "one gradient": lambda batch: mixed(model.predict_mixture(batch, few)),
    }
    if plan.compile:
        steps["compiled"] = lambda batch: mixed(compiled.predict_mixture(batch, few))
    seconds = in_turns({name: _on_all(step, batches) for name, step in steps.items()}, plan.turns, "ablation")
    first = [steps["a pass a head"](batch) for batch in batches]
    rows = []
    for name, step in steps.items():
        own = [step(batch) for batch in batches]
        energy = max(float(np.abs(a[0] - b[0]).max()) for a, b in zip(own, first))
        forces = max(float(np.abs(a[1] - b[1]).max()) for a, b in zip(own, first))
        rows.append({
            "step": name, **speed(seconds[name], plan.count),
            "times_first": rounded(statistics.median(a / b for a, b in zip(seconds["a pass a head"], seconds[name])), 3),
            "energy_difference": rounded(energy, 2), "forces_difference": rounded(forces, 2),
        })  # fmt: skip
    return rows


def _on_all(step: Callable[[GraphBatch], Any], batches: Sequence[GraphBatch]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            step(batch)

    return run


def in_turns(contenders: Mapping[str, Callable[[], Any]], turns: int, label: str) -> dict[str, list[float]]:
    """Seconds of each turn; a first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with Progress(label, "turns", turns + 1) as progress:
        for turn in range(turns + 1):
            for name, call in contenders.items():
                since = time.perf_counter()
                call()
                if turn:
                    found[name].append(time.perf_counter() - since)
            progress.advance()
    return found


def speed(seconds: Sequence[float], count: int) -> dict[str, float]:
    """Structures a second and ms a structure, of the median turn, and the spread of the turns."""
    median = statistics.median(seconds)
    return {
        "structures_per_s": rounded(count / median), "ms": rounded(1e3 * median / count),
        "spread": rounded((max(seconds) - min(seconds)) / median, 3),
    }  # fmt: skip
