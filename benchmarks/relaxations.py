"""Relaxations of everyday structures, and how far the relaxed geometry lies from that of the labels' own method.

References: molecules, GFN2-xTB itself (tblite, where it is installed); crystals and the slab, SevenNet-l3i5, the teacher of
the distilled heads (where its environment is given).  Each is relaxed from the same start by the same optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, minimize_rotation_and_translation, molecule
from ase.neighborlist import natural_cutoffs, neighbor_list

from gfm_calc.benchmarks import structures
from gfm_calc.calculator import GFMCalculator
from gfm_calc.commands.relax import Relaxation, relax
from gfm_calc.errors import GFMError, one_line

RELAXATION = Relaxation(fmax=0.01, steps=500, optimizer="BFGS")  # of all models compared


@dataclass(frozen=True, kw_only=True)
class Case:
    """A structure to relax with a head that it wants, the cell too where `cell`."""

    name: str
    atoms: Atoms
    head: str
    cell: bool = False


def cases() -> list[Case]:
    """Water, ethanol, aspirin; NaCl, Cu, Si, MgO; a Cu(111) slab at a fixed lattice constant.  All start distorted."""
    found = [
        Case(name=name, atoms=atoms, head="gfn2-xtb")
        for name, atoms in (
            ("water", molecule("H2O")), ("ethanol", molecule("CH3CH2OH")), ("aspirin", structures.aspirin()),
        )
    ]  # fmt: skip
    for name, prototype, a in (
        ("NaCl", "rocksalt", 5.5),
        ("Cu", "fcc", 3.5),
        ("Si", "diamond", 5.3),
        ("MgO", "rocksalt", 4.1),
    ):
        atoms = bulk(name, prototype, a=a, cubic=True)
        found.append(Case(name=name, atoms=atoms, head="distilled-7net-l3i5", cell=True))
    found.append(Case(name="Cu(111) slab", atoms=structures.slab(), head="distilled-7net-l3i5"))
    for seed, case in enumerate(found):
        case.atoms.rattle(0.05, seed=seed)
        case.atoms.info.clear()
    return found


def run_case(case: Case, calculator: GFMCalculator, reference: Atoms | None) -> dict[str, Any]:
    """Relax; name, head, converged, steps, fmax (eV/Å), `geometry` and, with a reference, `reference` and `rmsd_a`."""
    atoms = case.atoms.copy()
    atoms.calc = calculator
    try:
        relaxed = relax(atoms, replace(RELAXATION, cell=case.cell))
    except GFMError as error:
        return {"name": case.name, "head": calculator.head, "converged": False, "error": one_line(error)}
    row: dict[str, Any] = {
        "name": case.name, "head": calculator.head, "converged": relaxed.converged, "steps": relaxed.steps,
        "fmax_ev_per_a": float(f"{np.linalg.norm(atoms.get_forces(), axis=1).max():.3g}"), "geometry": geometry(atoms),
    }  # fmt: skip
    if reference is not None:
        row["reference"] = geometry(reference)
        if not atoms.pbc.any():
            row |= _distances(atoms, reference)
    return row


def geometry(atoms: Atoms) -> dict[str, float]:
    """The numbers that people look at: bond lengths in Å by kind (means) and the H-O-H angle; lattice constant; spacings
    of the two outermost layers of a slab."""
    if atoms.pbc.all():
        cells = {
            "a_a": float(np.cbrt(atoms.get_volume())),
            "largest_angle_off_90_deg": float(np.abs(atoms.cell.angles() - 90).max()),
        }
        return {name: round(value, 4) for name, value in cells.items()}
    if atoms.pbc.any():
        layers = np.sort(atoms.positions[:, 2]).reshape(-1, 4).mean(axis=1)
        return {"d12_a": round(float(layers[-1] - layers[-2]), 4), "d23_a": round(float(layers[-2] - layers[-3]), 4)}
    kinds: dict[str, list[float]] = {}
    for i, j, length in _bonds(atoms):
        kinds.setdefault("-".join(sorted((atoms[i].symbol, atoms[j].symbol))) + "_a", []).append(length)
    found = {kind: round(float(np.mean(lengths)), 4) for kind, lengths in sorted(kinds.items())}
    if sorted(atoms.numbers) == [1, 1, 8]:
        oxygen = int(np.argmax(atoms.numbers))
        first, second = (k for k in range(3) if k != oxygen)
        found["H-O-H_deg"] = round(float(atoms.get_angle(first, oxygen, second)), 2)
    return found


def xtb_reference(case: Case) -> Atoms | None:
    """The case relaxed with GFN2-xTB; None where tblite is not installed."""
    try:
        from tblite.ase import TBLite
    except ImportError:
        return None
    atoms = case.atoms.copy()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return atoms if relax(atoms, replace(RELAXATION, cell=case.cell)).converged else None


def teacher_references(wanted: list[Case], teacher: Any) -> dict[str, Atoms]:
    """{name: case relaxed with the teacher's calculator}, of those that converge."""
    found = {}
    for case in wanted:
        atoms = case.atoms.copy()
        atoms.calc = teacher
        if relax(atoms, replace(RELAXATION, cell=case.cell)).converged:
            found[case.name] = atoms
    return found


def _bonds(atoms: Atoms) -> list[tuple[int, int, float]]:
    i, j, lengths = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=1.2))
    return [(int(a), int(b), float(d)) for a, b, d in zip(i, j, lengths) if a < b]


def _distances(atoms: Atoms, reference: Atoms) -> dict[str, float]:
    """rmsd_a after the best rotation; largest_bond_error_a over the reference's bonds."""
    moved, fixed = atoms.copy(), reference.copy()
    moved.calc = None
    minimize_rotation_and_translation(fixed, moved)
    rmsd = float(np.sqrt(np.square(moved.positions - fixed.positions).sum(axis=1).mean()))
    worst = max(abs(atoms.get_distance(i, j) - length) for i, j, length in _bonds(reference))
    return {"rmsd_a": round(rmsd, 4), "largest_bond_error_a": round(float(worst), 4)}
