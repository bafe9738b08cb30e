"""The one stopwatch for steps of training: ours and each peer run it in a process of their own.

Needs NumPy, torch and ASE only.  The batches come ready, neighbours included, in one .npz; the process answers one JSON line
for each JSON line that it is sent:

    {"job": "steps", "edges": NAME} -> {"seconds": total, "steps": n, "loss": last, "edges": of all batches}
    {"job": "memory"}               -> {"peak_mb": of the steps since the warm-up, "start_mb": before the first step}

A step is forward, forces, loss, backward and AdamW on one batch; a job does one on each batch.  The first job with a kind of
edges is preceded by one without the stopwatch.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Trainee(Protocol):
    """What is measured: `describe` gives name, version, model, parameters; `turn` takes batches and returns a function that
    does one step on each of them and returns the last loss.

    Arrays of a batch (N atoms, B structures, E edges): numbers [N], positions [N, 3] Å, structure [N], pairs [2, E] (`[0]`
    source j, `[1]` target i), shifts [E, 3] Å (of the periodic image: r_j + shift - r_i), energy [B] eV, forces [N, 3]
    eV/Å.
    """

    def describe(self) -> dict[str, Any]: ...

    def turn(self, batches: list[Arrays]) -> Callable[[], float]: ...


def clocked(
    make: Callable[[argparse.Namespace], Trainee], parser: argparse.ArgumentParser
) -> Callable[[argparse.Namespace], tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]]:
    """What `measure.answer_jobs` starts: the trainee that `make` loads, under a `StepClock`."""
    parser.add_argument("--batches", required=True, help=".npz of the batches")

    def start(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
        trainee = make(options)
        return trainee.describe(), StepClock(trainee, options.batches).run

    return start


class StepClock:
    """The batches of a run, and what was warmed up."""

    def __init__(self, trainee: Trainee, path: str):
        self.trainee, self.path = trainee, path
        self.warm: set[str] = set()
        self.start = memory("VmRSS")

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One measurement."""
        if job["job"] == "memory":
            return {"peak_mb": memory("VmHWM"), "start_mb": self.start}
        batches = read_batches(self.path, job["edges"])
        if job["edges"] not in self.warm:
            self.trainee.turn(batches)()
            self.warm.add(job["edges"])
            forget_peak()
        turn = self.trainee.turn(batches)
        started = time.perf_counter()
        loss = turn()
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise ValueError("the loss is not finite")
        edges = sum(batch["pairs"].shape[1] for batch in batches)
        return {"seconds": seconds, "steps": len(batches), "loss": loss, "edges": edges}


def read_batches(path: str, edges: str) -> list[Arrays]:
    """The batches of a file that `training.write_batches` wrote, with the kind of edges asked for."""
    found: dict[int, Arrays] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            number, name = key.split(".", 1)
            kind, _, plain = name.rpartition(".")
            if kind in ("", edges):
                found.setdefault(int(number), {})[plain] = file[key]
    return [found[number] for number in sorted(found)]


def memory(field: str) -> float:
    """MB of this process now ("VmRSS") or at most ("VmHWM")."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
        return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def forget_peak() -> None:
    """Let the peak of memory begin anew: what loading and compiling took is not what steps take."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not on this system: the peak is then that of the whole life
