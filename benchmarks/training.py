"""`gfm bench training`: structures a second of training on energies and forces, ours and peers' side by side.

Every contender is a process of its own with one thread.  All train on the same structures, in the same batches, with the same
neighbours, and take turns (one pass over all batches each), so that a change in the machine's mood meets all of them alike;
a ratio is the median of those of the turns.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from gfm_calc.benchmarks import structures
from gfm_calc.benchmarks.contenders import Process
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.training_steps import ready_batches
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec, ModelConfig, to_mapping
from gfm_calc.data.build import build
from gfm_calc.data.readers import read
from gfm_calc.data.store import Dataset
from gfm_calc.data.tasks import FileTask
from gfm_calc.errors import ConfigError, GFMError, did_you_mean

PEERS = {"hydragnn": "hydragnn_train.py", "schnetpack": "schnetpack_train.py"}
CUTOFF = 5.0  # Å
CAP = 20  # neighbours an atom in HydraGNN's lead configuration
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Match:
    """A peer's model and what of ours it is measured against.

    Attributes:
        key: on the command line.  name: for the report.
        peer: which.  options: of its script.  edges: kinds of edges that it is measured with, "all" or "capped".
        ours: {label: model}.
        wanted: the ratio of structures a second that we aim at.
    """

    key: str
    name: str
    peer: str
    options: tuple[str, ...] = ()
    edges: tuple[str, ...] = ("all",)
    ours: Mapping[str, ModelConfig]
    wanted: float


def _painn(width: int, layers: int, radial: int, head: int) -> ModelConfig:
    return ModelConfig(
        num_features=width, num_layers=layers, num_radial=radial, head_width=head, cutoff=CUTOFF, repulsion=None
    )


MATCHES = (
    Match(
        key="hydragnn", name="HydraGNN's lead PaiNN", peer="hydragnn", edges=("all", "capped"), wanted=3.0,
        ours={"as wide and deep": _painn(337, 2, 4, 776)},
    ),
    Match(
        key="schnetpack-128", name="schnetpack's PaiNN, width 128", peer="schnetpack", options=("--width", "128"),
        wanted=1.5,
        ours={"as wide and deep": _painn(128, 3, 20, 64)},
    ),
    Match(
        key="schnetpack-64", name="schnetpack's PaiNN, width 64", peer="schnetpack", options=("--width", "64"),
        wanted=1.5,
        ours={"as wide and deep": _painn(64, 3, 20, 32)},
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What to measure.

    Attributes:
        peers: {"hydragnn" | "schnetpack": python of an environment that has it}; ours alone without.
        checkout: of HydraGNN; None takes that of the environment variable HYDRAGNN_CHECKOUT.
        frames: path of labelled structures; None takes 256 made ones (see `labelled`).
        batch: structures in a step.  turns: measurements of each contender.
        compile: ours compiled too, beside eager.
        matches: what to compare.
    """

    peers: Mapping[str, str] = field(default_factory=dict)
    checkout: Path | None = None
    frames: Path | None = None
    count: int = 256
    batch: int = 32
    turns: int = 7
    compile: bool = True
    matches: Sequence[Match] = MATCHES

    def __post_init__(self) -> None:
        for name in self.peers:
            if name not in PEERS:
                raise ConfigError(f"no peer {name!r}{did_you_mean(name, PEERS)}; peers: {', '.join(PEERS)}")
        if "hydragnn" in self.peers and self.checkout is None and not os.environ.get("HYDRAGNN_CHECKOUT"):
            raise ConfigError(
                "HydraGNN is run from a checkout: name its folder with --checkout, or in HYDRAGNN_CHECKOUT"
            )


def matches_of(keys: Sequence[str]) -> list[Match]:
    """The matches with these keys, in that order; ConfigError where there is none of that name."""
    known = {match.key: match for match in MATCHES}
    for key in keys:
        if key not in known:
            raise ConfigError(f"no match {key!r}{did_you_mean(key, known)}; matches: {', '.join(known)}")
    return [known[key] for key in keys]


def run_training(plan: TrainingPlan) -> dict[str, Any]:
    """Measure; returns the "structures" and "matches" of the result.

    structures: count, atoms a structure, edges an atom, and the same with at most `CAP` neighbours.  matches: {name, peer,
    wanted, rows, ratios}; rows {contender, label, mode, edges, parameters, structures_per_s, ms_per_step, spread, peak_mb,
    start_mb}; ratios {ours, peer, edges, ratio, least, largest} of structures a second.

    Raises:
        GFMError: a contender that does not start, or that cannot do its steps.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = _dataset(plan, folder)
        about = write_batches(dataset, plan.batch, folder / "batches.npz")
        found = []
        with Progress("training", "turns", len(plan.matches) * plan.turns) as progress:
            for match in plan.matches:
                found.append(_measure(plan, match, dataset.directory, folder / "batches.npz", progress))
    return {"structures": about, "matches": found}


def peer_versions(matches: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{name: version} of the peers that were measured."""
    return {row["name"]: row["version"] for match in matches for row in match["rows"] if row["mode"] == "peer"}


def labelled(count: int, seed: int = 0) -> list[Atoms]:
    """Acetylsalicylic acid with 0, 1, 2 or 3 molecules of water around, 21 to 30 atoms, rattled; the labels, which do not
    matter to a stopwatch, are those of ASE's EMT."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        atoms = structures.aspirin()
        for _ in range(number % 4):
            atoms.extend(_water_beside(atoms, random))
        atoms.rattle(0.05, rng=random)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info = {"group": f"structure {number}"}
        found.append(atoms)
    return found


def _water_beside(atoms: Atoms, random: np.random.Generator) -> Atoms:
    """A water molecule 2.8 Å from the nearest atom, in a random direction."""
    water = structures.water_cluster(1, seed=int(random.integers(1 << 30)))
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    start = atoms.positions.mean(axis=0) - water.positions.mean(axis=0)
    for away in np.arange(0.0, 40.0, 0.2):
        moved = water.positions + start + away * direction
        if np.linalg.norm(moved[:, None] - atoms.positions[None], axis=2).min() >= 2.8:
            break
    water.positions = moved
    return water


def write_batches(dataset: Dataset, size: int, path: Path) -> dict[str, Any]:
    """The batches of a dataset for `peers.steps.read_batches`; what is in them."""
    arrays: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(("structures", "atoms", "edges", "capped"), 0)
    for number, batch in enumerate(ready_batches(dataset, size, CUTOFF)):
        graph = batch.graph
        source, target = graph.edge_index.numpy()
        structure, positions = graph.batch.numpy(), graph.positions.numpy()
        cells = graph.cell.numpy()[structure[target]]
        shifts = np.einsum("ei,eij->ej", graph.edge_cell_shift.numpy().astype(float), cells)
        keep = nearest(target, np.linalg.norm(positions[source] + shifts - positions[target], axis=1), CAP)
        own = {
            "numbers": graph.atomic_numbers.numpy(), "positions": positions, "structure": structure,
            "energy": batch.energy.numpy(), "forces": batch.forces.numpy(),
            "all.pairs": graph.edge_index.numpy(), "all.shifts": shifts,
            "capped.pairs": graph.edge_index.numpy()[:, keep], "capped.shifts": shifts[keep],
        }  # fmt: skip
        if not np.isfinite(own["energy"]).all() or not np.isfinite(own["forces"]).all():
            raise ConfigError("the structures need energies and forces, all of them: training is timed on both")
        arrays |= {f"{number}.{name}": array for name, array in own.items()}
        sizes = {"structures": len(batch), "atoms": len(structure), "edges": len(source), "capped": int(keep.sum())}
        counts = {name: counts[name] + sizes[name] for name in counts}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return {
        "count": counts["structures"], "atoms_per_structure": rounded(counts["atoms"] / counts["structures"]),
        "edges_per_atom": rounded(counts["edges"] / counts["atoms"]),
        "edges_per_atom_capped": rounded(counts["capped"] / counts["atoms"]),
    }  # fmt: skip


def nearest(target: np.ndarray, distance: np.ndarray, most: int) -> np.ndarray:
    """Which edges [E] are among the `most` shortest of their target."""
    order = np.lexsort((distance, target))
    first = np.searchsorted(target[order], target[order])
    kept = np.zeros(len(target), bool)
    kept[order] = np.arange(len(target)) - first < most
    return kept


def _dataset(plan: TrainingPlan, folder: Path) -> Dataset:
    path = folder / "structures.extxyz"
    ase.io.write(path, labelled(plan.count) if plan.frames is None else list(_first(plan.frames, plan.count)))
    head = HeadSpec(name="bench", code="several", functional="several")
    return build(folder / "dataset", [FileTask(paths=(path,))], head, processes=0)


def _first(path: Path, count: int) -> Iterator[Atoms]:
    for number, record in enumerate(read(path)):
        if number == count:
            return
        yield record.to_atoms()


def _measure(plan: TrainingPlan, match: Match, data: Path, batches: Path, progress: Progress) -> dict[str, Any]:
    """One match: all its contenders, turn by turn."""
    running: list[tuple[Process, dict[str, Any]]] = []
    seconds: dict[tuple[int, str], list[float]] = {}
    edges: dict[str, int] = {}
    try:
        for row, command in _contenders(plan, match, data):
            progress.advance(0, note=f"{match.name}: starting {row['contender']}")
            process = Process(row["contender"], [*command, "--batches", str(batches), "--threads", "1"], 1)
            running.append((process, row))
        for _ in range(plan.turns):
            for number, (process, row) in enumerate(running):
                for kind in match.edges if row["mode"] == "peer" else ("all",):
                    answer = _ask(process, {"job": "steps", "edges": kind})
                    if edges.setdefault(kind, answer["edges"]) != answer["edges"]:
                        raise GFMError(f"{process.name}: has other edges than the contenders before it")
                    seconds.setdefault((number, kind), []).append(answer["seconds"] / answer["steps"])
            progress.advance(note=match.name)
        rows = []
        for (number, kind), times in seconds.items():
            process, row = running[number]
            about = {key: process.description[key] for key in ("name", "version", "torch", "model", "parameters")}
            rows.append(
                {**row, **about, "edges": kind, **_speed(times, plan.batch), **_ask(process, {"job": "memory"})}
            )
    finally:
        for process, _ in running:
            process.close()
    return {
        "name": match.name, "peer": match.peer, "wanted": match.wanted, "rows": rows,
        "ratios": _ratios(rows, list(seconds.values())),
    }  # fmt: skip


def _contenders(plan: TrainingPlan, match: Match, data: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """(start of the row, command line) of each contender of a match."""
    if match.peer in plan.peers:
        checkout = [] if match.peer != "hydragnn" or plan.checkout is None else ["--checkout", str(plan.checkout)]
        script = [plan.peers[match.peer], str(_HERE / "peers" / PEERS[match.peer])]
        yield {"contender": match.peer, "label": "peer", "mode": "peer"}, [*script, *match.options, *checkout]
    for label, config in match.ours.items():
        for mode in ("eager", "compiled") if plan.compile else ("eager",):
            command = [
                sys.executable, "-m", "gfm_calc.benchmarks.training_worker", "--data", str(data), "--batch",
                str(plan.batch), "--model", json.dumps(to_mapping(config)), *(["--compile"] if mode == "compiled" else []),
            ]  # fmt: skip
            yield {"contender": f"gfm-calc {mode}, {label}", "label": label, "mode": mode}, command


def _ask(process: Process, job: Mapping[str, Any]) -> dict[str, Any]:
    answer = process.ask(job)
    if "error" in answer:
        raise GFMError(f"{process.name}: {answer['error']}")
    return answer


def _speed(times: Sequence[float], batch: int) -> dict[str, float]:
    """From the seconds a step of each turn."""
    median = statistics.median(times)
    return {
        "structures_per_s": rounded(batch / median), "ms_per_step": rounded(1e3 * median),
        "spread": rounded((max(times) - min(times)) / median, 3),
    }  # fmt: skip


def _ratios(rows: Sequence[Mapping[str, Any]], times: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Of each of ours to each way of the peer, turn by turn."""
    found = []
    for row, own in zip(rows, times):
        for other, theirs in zip(rows, times):
            if row["mode"] == "peer" or other["mode"] != "peer":
                continue
            turns = [b / a for a, b in zip(own, theirs)]
            found.append({
                "ours": row["contender"], "edges": other["edges"], "ratio": rounded(statistics.median(turns), 3),
                "least": rounded(min(turns), 3), "largest": rounded(max(turns), 3),
            })  # fmt: skip
    return found
