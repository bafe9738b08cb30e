"""`gfm bench scaling`: training on one process and several, data parallel and multi-task parallel.

Runs of `gfm train` in processes of their own, taking turns:
    equality    losses of all modes and numbers of processes against one process, float64
    weak        structures a second with the same work a process;  strong: with the same work in all
    volume      bytes sent and held by each process, for the papers' lead sizes (an encoder of 1.5 million parameters, 16
                heads of 0.66 million), beside what theory says
    precision   accuracy and speed of the same training in float64, float32 and bf16
    model       a performance model calibrated on the run with one process and on timed sums over processes, its prediction
                for the other runs, and its projection to 2,048 machines of 8 processes
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.children import children
from gfm_calc.benchmarks.performance import calibrate, collective_seconds, predict_step, project
from gfm_calc.errors import GFMError
from gfm_calc.train.datasets import find_datasets

PARTS = ("equality", "weak", "strong", "volume", "precision", "model")
_PORT = 29517
_SMALL = ("model.num_features=64", "model.num_layers=3", "model.head_width=64")
# An encoder of 1.5 million parameters and heads of 0.66 million each, as in DOI 10.48550/arXiv.2506.21788.
_LEAD = ("model.num_features=212", "model.num_layers=3", "model.head_width=3000")


@dataclass(frozen=True, kw_only=True)
class ScalingPlan:
    """What to measure.

    Attributes:
        data: folder of datasets.  processes: numbers of them, the first is 1.
        steps, structures: of each timed run; structures a process.
        repeats: of each timed run; medians are reported.
        parts: of `PARTS`.
    """

    data: Path
    processes: Sequence[int] = (1, 2, 4)
    steps: int = 60
    structures: int = 16
    repeats: int = 3
    parts: Sequence[str] = PARTS


def run_scaling(plan: ScalingPlan) -> dict[str, Any]:
    """Measure.

    Returns:
        data {heads, structures, atoms}, of all datasets; rows of each part, see the module.

    Raises:
        GFMError: no datasets, or a run that fails.
    """
    datasets = find_datasets(str(plan.data))
    counts = {"heads": len(datasets), "structures": sum(map(len, datasets))}
    found: dict[str, Any] = {"data": {**counts, "atoms": sum(dataset.num_atoms for dataset in datasets)}}
    with tempfile.TemporaryDirectory(prefix="gfm-scaling-") as scratch:
        bench = _Bench(plan, Path(scratch))
        if "equality" in plan.parts:
            found["equality"] = bench.equality()
        if "weak" in plan.parts:
            found["weak"] = bench.speed(fixed=False)
        if "strong" in plan.parts:
            found["strong"] = bench.speed(fixed=True)
        if "volume" in plan.parts:
            found["volume"] = bench.volume()
        if "precision" in plan.parts:
            found["precision"] = bench.precision()
        if "model" in plan.parts:
            found["model"] = bench.model(found.get("weak") or bench.speed(fixed=False))
    return found


class _Bench:
    def __init__(self, plan: ScalingPlan, scratch: Path):
        self.plan, self.scratch, self._runs = plan, scratch, 0
        self._lock = threading.Lock()

    def train(self, world: int, *settings: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(lines of the log, telemetry) of a run of `world` processes with one thread each."""
        with self._lock:
            self._runs += 1
            number = self._runs
        run = self.scratch / f"run{number}"
        words = ["tiny", "-o", str(run), "--device", "cpu", "--threads", "1", "--no-report"]
        for setting in (
            f"data.path={self.plan.data.resolve()}",
            "run.validate_every=0",
            "run.save_every=1000000",
            *settings,
        ):
            words += ["--set", setting]
        launch(world, [sys.executable, "-m", "gfm_calc.train", *words], _PORT + number % 1000)
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss" in line], json.loads((run / "telemetry.json").read_text())

    def equality(self) -> list[dict[str, Any]]:
        """Largest relative difference of the losses and gradient norms of 50 steps from those of one process."""
        base = ("run.dtype=float64", "run.steps=50", "run.structures=16", *_SMALL)
        alone, about = self.train(1, *base)
        rows = []
        for world in self.plan.processes[1:]:
            for mode in ("data", "multitask"):
                lines, found = self.train(world, *base, f"parallel.mode={mode}")
                worst = max(
                    max(
                        abs(a["loss"] - b["loss"]) / abs(a["loss"]),
                        abs(a["grad_norm"] - b["grad_norm"]) / a["grad_norm"],
                    )
                    for a, b in zip(alone, lines, strict=True)
                )
                rows.append({
                    "processes": world, "mode": mode, "heads": len(alone[0]["head_losses"]), "steps": len(lines),
                    "largest_difference": worst, **_costs(found), "one_process": _costs(about),
                })  # fmt: skip
        return rows

    def speed(self, *, fixed: bool) -> list[dict[str, Any]]:
        """Structures a second, in all; the same work a process, or (`fixed`) in all.

        "separate" runs, which know nothing of each other, tell what the machine itself gives to several processes.
        """
        plan = self.plan
        most = max(plan.processes)
        modes = ("data", "multitask") if fixed else ("separate", "data", "multitask")
        cases = [(1, "data"), *((world, mode) for world in plan.processes if world > 1 for mode in modes)]
        rates: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
        shares: dict[tuple[int, str], dict[str, float]] = {}
        for _ in range(plan.repeats):
            for world, mode in cases:
                structures = plan.structures * (most if fixed else world)
                rate, shares[world, mode] = self._rate(world, mode, structures)
                rates[world, mode].append(rate)
        rows = []
        for (world, mode), found in rates.items():
            rate = statistics.median(found)
            ratios = [r / a for r, a in zip(found, rates[1, "data"])]  # taken side by side
            beside = [r / a for r, a in zip(found, rates.get((world, "separate"), []))]
            rows.append({
                "processes": world, "mode": mode, "structures_a_step": plan.structures * (most if fixed else world),
                "structures_per_s": rate, "speedup": statistics.median(ratios),
                "efficiency": statistics.median(ratios) / world, "spread": (max(found) - min(found)) / rate,
                "of_separate_runs": statistics.median(beside) if beside else None,
                "seconds_a_step": plan.structures * (most if fixed else world) / rate, **shares[world, mode],
                "more_processes_than_cores": world > (os.cpu_count() or 1),
            })  # fmt: skip
        return rows

    def _rate(self, world: int, mode: str, structures: int) -> tuple[float, dict[str, float]]:
        """(structures a second in all, shares of the time) of a run, its first third left aside."""
        settings = [f"run.steps={self.plan.steps}", *_SMALL]
        if mode == "separate":
            settings.append(f"run.structures={structures // world}")
            with ThreadPoolExecutor(world) as pool:
                found = list(pool.map(lambda _: self.train(1, *settings), range(world)))
            return sum(_settled(lines) for lines, _ in found), _shares(found[0][1])
        lines, about = self.train(world, *settings, f"run.structures={structures}", f"parallel.mode={mode}")
        return _settled(lines), _shares(about)

    def volume(self) -> list[dict[str, Any]]:
        """Bytes of each process for the papers' lead sizes, measured and in theory."""
        rows = []
        for world in self.plan.processes:
            for mode in ("data", "multitask"):
                if world == 1 and mode == "multitask":
                    continue
                _, about = self.train(world, "run.steps=3", "run.structures=8", *_LEAD, f"parallel.mode={mode}")
                heads = [len(line.partition(": ")[2].split(", ")) for line in about["placement"]]
                rows.append({"processes": world, "mode": mode, "heads_a_process": heads, **_costs(about)})
        encoder, head = _sizes(rows)
        for row in rows:
            row |= _theory(row, encoder, head)
        return rows

    def precision(self) -> list[dict[str, Any]]:
        """The same run in several precisions: errors on validation data, speed, difference of the first loss."""
        rows, first = [], None
        for dtype in ("float64", "float32", "bf16"):
            steps = 5 * self.plan.steps
            lines, about = self.train(
                1, f"run.dtype={dtype}", f"run.steps={steps}", f"run.structures={self.plan.structures}", *_SMALL
            )
            first = lines[0]["loss"] if first is None else first
            errors, (memory,) = self.last_validation(), _costs(about)["peak_memory_bytes"]
            rate = statistics.median(line["structures_per_s"] for line in lines[steps // 3 :])
            forces = [row["forces_mae_mev_per_a"] for row in errors.values() if "forces_mae_mev_per_a" in row]
            energies = [row["energy_mae_mev_per_atom"] for row in errors.values()]
            rows.append({
                "dtype": dtype, "steps": steps, "heads": len(errors), "structures_per_s": rate,
                "first_loss_difference": abs(lines[0]["loss"] / first - 1), "peak_memory_bytes": memory,
                "energy_mae_mev_per_atom": statistics.fmean(energies), "forces_mae_mev_per_a": statistics.fmean(forces),
            })  # fmt: skip
        return rows

    def last_validation(self) -> dict[str, dict[str, float]]:
        """{head: errors} of the last validation of the last run."""
        lines = (self.scratch / f"run{self._runs}" / "log.jsonl").read_text().splitlines()
        return next(found["validation"] for found in map(json.loads, reversed(lines)) if "validation" in found)

    def model(self, weak: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The performance model: calibration, predictions beside measurements, projection."""
        machine = calibrate(weak, [self.collectives(world) for world in self.plan.processes if world > 1])
        predicted = [predict_step(machine, row) for row in weak]
        return {"calibration": machine, "predicted": predicted, "projection": project(machine)}

    def collectives(self, world: int) -> dict[str, Any]:
        """Seconds of sums of vectors over `world` processes."""
        out = self.scratch / f"sums{world}.json"
        launch(world, [sys.executable, "-m", collective_seconds.__module__, str(out)], _PORT + 1000 + world)
        return {"processes": world, "sums": json.loads(out.read_text())}


def launch(world: int, command: Sequence[str], port: int) -> None:
    """Run `command` as `world` processes of one job, one thread each.

    Raises:
        GFMError: one of them fails; with what it said.
    """
    with children() as processes:
        for rank in range(world):
            place: dict[str, int | str] = {}
            if world > 1:
                place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
        said = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        lines = [line for text in said for line in text.strip().splitlines()]
        raise GFMError(f"a run of {world} processes failed: {lines[-1] if lines else 'it said nothing'}")


def _costs(about: Mapping[str, Any]) -> dict[str, Any]:
    ranks = about["ranks"]
    return {
        "parameters": [rank["parameters"] for rank in ranks], "state_bytes": [rank["state_bytes"] for rank in ranks],
        "bytes_a_step": [round(rank["bytes_sent_per_step"]) for rank in ranks],
        "peak_memory_bytes": [rank["peak_memory_bytes"] for rank in ranks], "wall_s": max(rank["wall_s"] for rank in ranks),
    }  # fmt: skip


def _settled(lines: Sequence[Mapping[str, Any]]) -> float:
    """Structures a second, the first third of the steps left aside."""
    return statistics.harmonic_mean([line["structures_per_s"] for line in lines[len(lines) // 3 :]])


def _shares(about: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the time of the mean process."""
    found: dict[str, float] = {}
    for name in ("data", "communication"):
        found[f"{name}_share"] = statistics.fmean(rank["seconds"][name] / rank["wall_s"] for rank in about["ranks"])
    return found


def _sizes(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(parameters of the encoder, of a head), from runs with different numbers of heads in a process."""
    whole = rows[0]
    total, heads = whole["parameters"][0], whole["heads_a_process"][0]
    other = next(row for row in rows if row["mode"] == "multitask")
    head = (total - other["parameters"][0]) / (heads - other["heads_a_process"][0])
    return total - heads * head, head


def _theory(row: Mapping[str, Any], encoder: float, head: float) -> dict[str, Any]:
    """What the sizes say: five vectors of float32 for each parameter; a ring sum sends 2 (p - 1) / p of a vector."""
    world = row["processes"]
    heads = row["heads_a_process"] * (world if row["mode"] == "data" else 1)
    sent = 2 * (world - 1) / world * 4
    shared = encoder + (heads[0] * head if row["mode"] == "data" else 0)
    return {
        "theory_state_bytes": [round(20 * (encoder + count * head)) for count in heads],
        "theory_bytes_a_step": [round(sent * shared)] * world, "encoder_parameters": round(encoder),
        "head_parameters": round(head),
    }  # fmt: skip
