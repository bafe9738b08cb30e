"""Whole screenings under the stopwatch: the stages of one process, and several processes on one folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import ase.io

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.screening_whole import rate, together
from gfm_calc.benchmarks.structures import crystals
from gfm_calc.commands.progress import Progress
from gfm_calc.predictor import Predictor
from gfm_calc.screening.cli import model_of
from gfm_calc.screening.engine import Engine, screen
from gfm_calc.screening.folder import begin
from gfm_calc.screening.outcome import finish
from gfm_calc.screening.plan import open_streams
from gfm_calc.screening.ranking import Objective, Ranking
from gfm_calc.screening.settings import Settings

if TYPE_CHECKING:
    from gfm_calc.benchmarks.screening import ScreeningPlan

_CHUNK = 100
_NUMBERS = (1, 2)  # of processes


def end_to_end(plan: ScreeningPlan) -> list[dict[str, Any]]:
    """Rows {mode, candidates, atoms, edges, structures_per_s, atoms_per_s, opening_s, finishing_s, shares}: from a file of
    extended XYZ to Parquet, ranking and page.  The rates are those of the chunks; opening the file and the finishing pass
    stand beside them.  shares: what part of the time went to each stage of the thread that predicts, and of the two others."""
    rows = []
    with tempfile.TemporaryDirectory() as name, Progress("end to end", "runs") as progress:
        path = write_candidates(Path(name), plan.candidates)
        modes = [("energies and forces", "forces", False), ("energies", "energies", False)]
        modes += [("energies and forces, compiled", "forces", True)] if plan.compile else []
        for mode, quantity, compiled in modes:
            rows.append({"mode": mode, **_one(plan, path, Path(name) / mode, quantity, compiled)})
            progress.advance(note=mode)
    return rows


def _one(plan: ScreeningPlan, path: Path, folder: Path, quantity: str, compiled: bool) -> dict[str, Any]:
    since = time.perf_counter()
    stream = open_streams([path])
    opening = time.perf_counter() - since
    predictor = Predictor(plan.model, [plan.head], device="cpu", forces=quantity == "forces", compile=compiled)
    settings = Settings(heads=(plan.head,), quantity=quantity, compile=compiled, chunk=_CHUNK)
    about = {"candidates": len(stream), "identity": stream.identity(), "elements_file": ""}
    there = begin(folder, settings, about, lambda: {"model": model_of(plan.model), "elements": {}}, patience=20.0)
    engine = Engine(predictor, settings, {})
    with there.claims:
        screen(engine, stream, there, range(2))  # warms up: allocations, compilation
        engine = Engine(predictor, settings, {})
        since = time.perf_counter()
        screen(engine, stream, there, range(2, there.num_chunks))
        seconds = time.perf_counter() - since
    since = time.perf_counter()
    finish(there, stream, Ranking(objective=Objective(column="energy_per_atom")), report=True)
    finishing = time.perf_counter() - since
    counts = engine.tally.counts
    return {
        "candidates": counts["candidates"], "atoms": counts["atoms"], "edges": counts["edges"],
        "structures_per_s": rounded(counts["candidates"] / seconds), "atoms_per_s": rounded(counts["atoms"] / seconds),
        "opening_s": rounded(opening), "finishing_s": rounded(finishing),
        "shares": {name: rounded(spent / seconds, 3) for name, spent in sorted(engine.tally.seconds.items())},
    }  # fmt: skip


def processes(plan: ScreeningPlan) -> list[dict[str, Any]]:
    """Rows {processes, structures_per_s, times_one}: each with one thread, on one folder; from its first chunk to its last.
    Medians over turns, of which each has all numbers of processes; `times_one` is that of the ratios within a turn.
    (Beside one process the thread that writes has a free core; two processes pay for theirs.)"""
    speeds: dict[int, list[float]] = {number: [] for number in _NUMBERS}
    with tempfile.TemporaryDirectory() as name, Progress("processes", "runs", plan.turns * len(_NUMBERS)) as progress:
        path = write_candidates(Path(name), plan.candidates)
        for turn in range(plan.turns):
            for number in _NUMBERS:
                speeds[number].append(_together(plan, path, Path(name) / f"run{turn}-{number}", number))
                progress.advance(note=f"{number} processes")
    rows = []
    for number, found in speeds.items():
        times = median(speed / one for speed, one in zip(found, speeds[_NUMBERS[0]]))
        rows.append({"processes": number, "structures_per_s": rounded(median(found)), "times_one": rounded(times, 3)})
    return rows


def _together(plan: ScreeningPlan, path: Path, folder: Path, number: int) -> float:
    words = [str(path), "-o", str(folder), "--model", plan.model, "--head", plan.head]
    words += ["--chunk", str(_CHUNK), "--no-report"]
    together(words, number)
    return rate(folder, number, _CHUNK)


def write_candidates(folder: Path, count: int) -> Path:
    """A file of crystals of 8 atoms, rattled."""
    path = folder / "candidates.extxyz"
    ase.io.write(path, crystals(-(-count // _CHUNK) * _CHUNK))
    return path
