"""Labelled frames to fine-tune on, and the command line."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from gfm_calc.checkpoint import load_model
from gfm_calc.predictor import Predictor

TEACHER, HEAD = "gfm-small", "gfn2-xtb"  # its labels are exact derivatives of each other


@cache
def _teacher():
    return load_model(TEACHER)


def labelled(structures: list[Atoms], head: str = HEAD) -> list[Atoms]:
    """The structures with energies, forces and (crystals) stresses of a packaged head."""
    found = []
    for atoms, row in zip(structures, Predictor(_teacher(), [head], strict=False).predict(structures)):
        one = row[head]
        results = {"energy": one.energy.item(), "forces": one.forces.numpy()}
        if atoms.pbc.all():
            results["stress"] = one.stress[0].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms = atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, **results)
        found.append(atoms)
    return found


def molecules(count: int = 30, seed: int = 0) -> list[Atoms]:
    """Rattled methanol, labelled."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        atoms = molecule("CH3OH")
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return labelled(found)


def crystals(count: int = 60, seed: int = 0) -> list[Atoms]:
    """Strained and rattled copper, labelled."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        strain = random.normal(scale=0.01, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return labelled(found, "distilled-7net-l3i5")


def relabelled(atoms: Atoms, **changes) -> Atoms:
    """A copy with other labels: values, functions of the old ones, or None to leave one out."""
    results = dict(atoms.calc.results)
    for name, change in changes.items():
        results[name] = change(results[name]) if callable(change) else change
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **{k: v for k, v in results.items() if v is not None})
    return copy


def write(path: Path, frames: list[Atoms]) -> Path:
    """Frames as extended XYZ."""
    ase.io.write(path, frames, format="extxyz")
    return path


def words(data, output: Path, *more: str) -> list[str]:
    """The command line of a short fine-tuning."""
    paths = [str(path) for path in (data if isinstance(data, list | tuple) else [data])]
    return [
        "finetune",
        *paths,
        "--head",
        "mine",
        "-o",
        str(output),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--no-report",
        *more,
    ]
