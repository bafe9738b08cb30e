"""The one stopwatch for all contenders: ours and each peer run it in a process of their own.

Needs NumPy, torch and ASE only, since it runs in environments without gfm-calc.  A contender gives `predict` and
`calculator`; the process answers one JSON line for each JSON line that it is sent:

    {"job": "batch", "set": NAME, "batch": B, "seconds": S}   -> {"calls": n, "seconds": total}, a call doing B structures
    {"job": "md", "system": NAME, "seconds": S, "timestep": fs} -> {"calls": n, "seconds": total}, a call being one step
    {"job": "check", "set": NAME} -> {"difference": largest |batch path - calculator| of a few structures, eV/atom}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

TEMPERATURE = 300.0  # K


class Contender(Protocol):
    """What is measured: `describe` gives name, version, model, parameters; `predict` computes energy and forces of all
    `structures`, from ase.Atoms to numbers, `batch` at a time, and returns the energies in eV; `calculator` gives an ASE
    calculator for MD, and may change the cell of `atoms` to one that it can treat."""

    def describe(self) -> dict[str, Any]: ...

    def predict(self, structures: list[Atoms], batch: int) -> list[float]: ...

    def calculator(self, atoms: Atoms) -> Any: ...


def serve(make: Callable[[argparse.Namespace], Contender], parser: argparse.ArgumentParser) -> None:
    """Load the contender, describe it in a first line, then answer jobs until stdin closes."""
    parser.add_argument("--structures", required=True, help="extended XYZ; info key `set` or `system` names the use")

    def stopwatch(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
        contender = make(options)
        frames = list(ase.io.iread(options.structures, ":", format="extxyz"))
        return contender.describe(), Stopwatch(contender, frames).run

    answer_jobs(stopwatch, parser)


def answer_jobs(
    start: Callable[[argparse.Namespace], tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]],
    parser: argparse.ArgumentParser,
) -> None:
    """Start what is measured, give its description in a first line, then an answer for each job until stdin closes.

    Args:
        start: from the options to (description, function from a job to its answer).
    """
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    replies, sys.stdout = sys.stdout, sys.stderr  # libraries print; replies stay clean
    started = time.perf_counter()
    description, run = start(options)
    seconds = round(time.perf_counter() - started, 2)
    described = {**description, "load_s": seconds, "threads": _threads(options.threads)}
    print(json.dumps(described), file=replies, flush=True)
    for line in sys.stdin:
        try:
            answer = run(json.loads(line))
        except Exception as error:  # a peer that cannot do a job loses that job, not the run
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=replies, flush=True)


class Stopwatch:
    """Structures of a run and the state (warm-up done, MD under way) of each job."""

    def __init__(self, contender: Contender, frames: list[Atoms]):
        self.contender = contender
        self.sets: dict[str, list[Atoms]] = {}
        self.systems: dict[str, Atoms] = {}
        for atoms in frames:
            if "set" in atoms.info:
                self.sets.setdefault(atoms.info["set"], []).append(atoms)
            else:
                self.systems[atoms.info["system"]] = atoms
        self.paces: dict[str, float] = {}
        self.runs: dict[str, VelocityVerlet] = {}

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One measurement: as many calls as fill the seconds asked for, at least one."""
        if job["job"] == "check":
            return {"difference": self._difference(self.sets[job["set"]][:4])}
        key = json.dumps(job, sort_keys=True)
        call = self._batch(job) if job["job"] == "batch" else self._step(job, key)
        if key not in self.paces:
            first = _seconds(call, 1)  # allocations, caches, compilation: not part of the pace
            if first < 5.0:
                call()
            self.paces[key] = first if first >= 5.0 else _seconds(call, 1)
        calls = max(1, round(job["seconds"] / self.paces[key]))
        seconds = _seconds(call, calls)
        self.paces[key] = seconds / calls
        return {"calls": calls, "seconds": seconds}

    def _batch(self, job: dict[str, Any]) -> Callable[[], Any]:
        # A batch of 1 goes through 16 structures one at a time, so that every kind is in it.
        structures = self.sets[job["set"]][: max(job["batch"], 16)]
        return lambda: self.contender.predict(structures, job["batch"])

    def _difference(self, structures: list[Atoms]) -> float:
        """What is timed must be what the model's users get: the batch path against the calculator, eV/atom."""
        energies = self.contender.predict(structures, len(structures))
        worst = 0.0
        for atoms, energy in zip(structures, energies):
            atoms = atoms.copy()
            atoms.calc = self.contender.calculator(atoms)
            worst = max(worst, abs(float(atoms.get_potential_energy()) - energy) / len(atoms))
        return worst

    def _step(self, job: dict[str, Any], key: str) -> Callable[[], Any]:
        if key not in self.runs:
            atoms = self.systems[job["system"]].copy()
            thermalize(atoms, TEMPERATURE)
            atoms.calc = self.contender.calculator(atoms)
            self.runs[key] = VelocityVerlet(atoms, job["timestep"] * units.fs)
        return lambda: self.runs[key].run(1)


def thermalize(atoms: Atoms, kelvin: float, seed: int = 0) -> None:
    """Momenta from the Maxwell-Boltzmann distribution (ASE renamed its own function between the versions we work with)."""
    spread = np.sqrt(atoms.get_masses()[:, None] * units.kB * kelvin)
    atoms.set_momenta(spread * np.random.default_rng(seed).normal(size=(len(atoms), 3)))


def structures_in(job: dict[str, Any]) -> int:
    """How many structures one call of a batch job computes."""
    return max(job["batch"], 16)


def batches(structures: list[Atoms], size: int) -> list[list[Atoms]]:
    """`structures` cut into lists of `size`."""
    return [structures[k : k + size] for k in range(0, len(structures), size)]


def _seconds(call: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - started


def _threads(wanted: int) -> int:
    """The threads torch will use; they come from OMP_NUM_THREADS, which the parent has set."""
    import torch

    if torch.get_num_threads() != wanted or os.environ.get("OMP_NUM_THREADS") != str(wanted):
        raise SystemExit(f"asked for {wanted} threads, torch has {torch.get_num_threads()}")
    return torch.get_num_threads()
