"""`gfm bench physics`: energy conservation, relaxations and pair curves of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from gfm_calc.benchmarks.dynamics import nve_systems, run_nve
from gfm_calc.benchmarks.pairs import run_like_pairs, run_pairs
from gfm_calc.benchmarks.relaxations import cases, run_case, teacher_references, xtb_reference
from gfm_calc.benchmarks.remote import RemoteCalculator, releases, remote_calculators
from gfm_calc.benchmarks.speed import pick_head
from gfm_calc.benchmarks.structures import CRYSTALS
from gfm_calc.calculator import GFMCalculator
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.progress import Progress
from gfm_calc.data.calculators import make_calculator
from gfm_calc.errors import GFMError, MissingDependencyError, one_line
from gfm_calc.model import GFMModel

PARTS = ("nve", "relaxations", "pairs", "like_pairs")  # the last beside published models
USUAL = PARTS[:3]


def run_physics(
    model: str | Path,
    *,
    head: str | None = None,
    picoseconds: float = 20.0,
    device: str | None = None,
    compile: bool = False,
    peers: Mapping[str, str] | None = None,
    parts: Sequence[str] = USUAL,
) -> dict[str, Any]:
    """Measure, ours in float64; {part: rows} for the `parts` asked for, and "peers", title -> version, where there are some.

    Args:
        head: for everything, or None for the head that each structure wants (the first that knows its elements where the
            model lacks that one).
        picoseconds: of each constant-energy run.
        compile: compile the networks for the constant-energy runs.
        peers: {"chgnet" | "sevennet": python of its environment}: published models, which run the same dynamics of crystals
            and pairs of like atoms (hours, of many picoseconds); sevennet, which is two, also gives the references of
            crystals and of pairs.
    """
    loaded = load_model(model, dtype=torch.float64, device=device or "cpu")
    found: dict[str, Any] = {}
    with remote_calculators(peers or {}, threads=torch.get_num_threads()) as others:
        if others:
            found["peers"] = releases(others)
        if "relaxations" in parts:
            found["relaxations"] = _relaxations(loaded, head, others.get("teacher"))
        if "nve" in parts:
            loaded.compile(enabled=compile)
            found["nve"] = _nve(loaded, head, picoseconds, others)
            loaded.compile(enabled=False)
        if "pairs" in parts:
            heads = list(loaded.energy_heads) if head is None else [head]
            found["pairs"] = run_pairs(loaded, heads, _label_methods(others.get("teacher")))
        if "like_pairs" in parts:
            titled = {other.title: other for other in others.values()}
            own = head or (CRYSTALS if CRYSTALS in loaded.specs else loaded.energy_heads[0])
            found["like_pairs"] = run_like_pairs(loaded, own, titled)
    return found


def _label_methods(teacher: Calculator | None) -> dict[str, Callable[[Atoms], Calculator]]:
    """{head: what gives the method of its labels}, of those that are at hand."""
    found: dict[str, Callable[[Atoms], Calculator]] = {}
    if teacher is not None:
        found[CRYSTALS] = lambda atoms: teacher
    for method in ("GFN1-xTB", "GFN2-xTB"):
        with suppress(MissingDependencyError):
            found[method.lower()] = make_calculator(f"tblite:{method}")
    return found


def _nve(
    model: GFMModel, head: str | None, picoseconds: float, others: Mapping[str, RemoteCalculator]
) -> list[dict[str, Any]]:
    rows = []
    for system in nve_systems():
        ours = _calculator(model, system, head)
        rows.append(run_nve(system, ours, ours.head, picoseconds=picoseconds))
        if system.head == CRYSTALS:
            for other in others.values():
                try:
                    rows.append(run_nve(system, other, other.title, picoseconds=picoseconds))
                except GFMError as error:  # what the others have done for an hour is not lost
                    rows.append({"name": system.name, "head": other.title, "error": one_line(error)})
    return rows


def _relaxations(model: GFMModel, head: str | None, teacher: Calculator | None) -> list[dict[str, Any]]:
    wanted = cases()
    crystals = [case for case in wanted if case.head.startswith("distilled")]
    references = teacher_references(crystals, teacher) if teacher is not None else {}
    rows = []
    with Progress("relaxations", "structures", len(wanted)) as progress:
        for case in wanted:
            reference = references.get(case.name) if case in crystals else xtb_reference(case)
            rows.append(run_case(case, _calculator(model, case, head), reference))
            progress.advance(note=case.name)
    return rows


def _calculator(model: GFMModel, case: Any, head: str | None) -> GFMCalculator:
    """With `head`, or the head that the case wants, or another that knows its elements."""
    wanted = head or (case.head if case.head in model.specs else pick_head(model.specs, [case.atoms], None))
    return GFMCalculator(model, head=wanted)
