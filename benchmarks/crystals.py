"""`gfm bench crystals`: volumes, bulk moduli, phonons and heat capacities of crystals, of our head and of published models.

Every model relaxes the same start with the same optimiser and goes through the same fits.  References: volume and bulk modulus
are those of the file of elasticity (PBE, Voigt-Reuss-Hill), or, of elements, volumes those of experiments at room temperature
(lattice constants of `ase.data`); heat capacities those of the file of phonons; phonon frequencies those of SevenNet-l3i5, the
teacher of the distilled heads, where its environment is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols, reference_states

from gfm_calc.benchmarks.contenders import ProcessEndedError
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.remote import releases, remote_calculators
from gfm_calc.calculator import GFMCalculator
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.eos import energy_of_volume, fit_birch_murnaghan
from gfm_calc.commands.phonons import IMAGINARY, NOISE, force_constants
from gfm_calc.commands.progress import Progress
from gfm_calc.commands.relax import Relaxation, relax
from gfm_calc.data.sampling import spread_indices
from gfm_calc.errors import ConvergenceError, GFMError, one_line
from gfm_calc.structures import read_structures

OURS, TEACHER = "gfm", "teacher"
_RELAXATION = Relaxation(fmax=0.005, steps=400, optimizer="LBFGS", cell=True)
_SPAN, _POINTS = 0.05, 7  # of the equation of state
_CELL_ATOMS = 6  # of a crystal, at most
_SUPERCELL, _SUPERCELL_ATOMS = 9.0, 130  # Å a side, at least; atoms, at most
_MESH = (6, 6, 6)
_NOBLE = {"He", "Ne", "Ar", "Kr", "Xe", "Rn"}
_STRUCTURES = ("fcc", "bcc", "hcp", "diamond")
_STIFF, _SOFT = 450.0, 5.0  # GPa; bulk moduli beyond are slips of the reference or layers that slide


@dataclass(frozen=True, kw_only=True)
class CrystalPlan:
    """What to measure.

    Attributes:
        model: packaged name or directory.  head: of it.
        elasticity: structures with `bulk_modulus_vrh_gpa`; None leaves volumes and bulk moduli out.
        elements: volumes and bulk moduli of elements in their place.
        heat_capacity: structures with `heat_capacity` at 300 K in J/mol/K; None leaves phonons out.
        crystals, phonons: how many of each, elements and binary compounds in turns.
        peers: {"chgnet" | "sevennet": python of an environment that has it}.
    """

    model: str
    head: str
    elasticity: Path | None = None
    elements: bool = False
    heat_capacity: Path | None = None
    crystals: int = 48
    phonons: int = 16
    peers: Mapping[str, str] | None = None


def run_crystals(plan: CrystalPlan) -> dict[str, Any]:
    """{"models": key -> name, "peers": title -> version, "crystals": rows, "phonons": rows, "means": rows}; see `volume_row`,
    `phonon_row`, `means`.
    """
    model = load_model(plan.model, dtype=torch.float64)
    ours = GFMCalculator(model, head=plan.head)
    unseen = set(model.specs[plan.head].unseen(list(range(1, 119))))
    found: dict[str, Any] = {"crystals": [], "phonons": []}
    with remote_calculators(plan.peers or {}, threads=1) as others:
        calculators = {OURS: ours, **others}
        jobs: list[tuple[str, list[Atoms], Any]] = []
        if plan.elements:
            jobs.append(("crystals", elements(unseen), volume_row))
        elif plan.elasticity is not None:
            chosen = choose(plan.elasticity, "bulk_modulus_vrh_gpa", plan.crystals, unseen)
            jobs.append(("crystals", chosen, volume_row))
        if plan.heat_capacity is not None:
            jobs.append(("phonons", choose(plan.heat_capacity, "heat_capacity", plan.phonons, unseen), phonon_row))
        for part, chosen, measure in jobs:
            with Progress(part, "crystals", len(chosen)) as progress:
                for atoms in chosen:
                    found[part].append(measure(atoms, calculators))
                    progress.advance(note=str(atoms.symbols))
        names, versions = {key: calculator.title for key, calculator in others.items()}, releases(others)
    models = {OURS: f"gfm-calc, {plan.head}", **names}
    return {"models": models, "peers": versions, "elements": plan.elements, **found, "means": means(found)}


def choose(path: Path, label: str, count: int, unseen: set[str]) -> list[Atoms]:
    """`count` small crystals that have the label, one a formula, as many elements as binary compounds where there are enough;
    evenly spread over the file, the same every time.

    Raises:
        GFMError: the file has none.
    """
    kinds: tuple[dict[str, Atoms], dict[str, Atoms]] = ({}, {})
    for atoms in read_structures(path):
        elements = set(atoms.symbols)
        value = float(atoms.info.get(label, np.nan))
        if len(atoms) > _CELL_ATOMS or len(elements) > 2 or elements & unseen or not np.isfinite(value):
            continue
        if "modulus" in label and not _SOFT <= value <= _STIFF:
            continue
        if len(atoms) * np.prod(supercell(atoms)) > _SUPERCELL_ATOMS and label == "heat_capacity":
            continue
        kinds[len(elements) - 1].setdefault(atoms.get_chemical_formula(empirical=True), atoms)
    single_ones, compounds = (list(kind.values()) for kind in kinds)
    single = min(len(single_ones), max(count // 2, count - len(compounds)))
    chosen = [*_evenly(single_ones, single), *_evenly(compounds, count - single)]
    if not chosen:
        raise GFMError(
            f"{path}: no crystal of at most {_CELL_ATOMS} atoms with {label} that the head knows the elements of"
        )
    return chosen


def elements(unseen: set[str]) -> list[Atoms]:
    """Primitive cells of the elements whose stable crystals are fcc, bcc, hcp or of diamond, at the lattice constants of
    experiments, by atomic number; without noble gases, which PBE hardly binds."""
    found = []
    for symbol, state in zip(chemical_symbols, reference_states):
        if (
            symbol not in unseen | _NOBLE
            and state is not None
            and state["symmetry"] in _STRUCTURES
            and "basis" not in state
        ):
            found.append(bulk(symbol))
            found[-1].info["mp_id"] = state["symmetry"]  # stands where others have their number
    return found


def volume_row(atoms: Atoms, calculators: Mapping[str, Any]) -> dict[str, Any]:
    """{name, id, atoms, reference: {volume, bulk_modulus}, models: key -> the same or {error}}; Å³ an atom, GPa.

    A bulk modulus that the structure does not come with is not among the references."""
    reference = {"volume": rounded(atoms.get_volume() / len(atoms))}
    if "bulk_modulus_vrh_gpa" in atoms.info:
        reference["bulk_modulus"] = rounded(atoms.info["bulk_modulus_vrh_gpa"])
    found = {key: _tried(_volume, atoms, calculator) for key, calculator in calculators.items()}
    return {**_about(atoms), "reference": reference, "models": found}


def phonon_row(atoms: Atoms, calculators: Mapping[str, Any]) -> dict[str, Any]:
    """{name, id, atoms, supercell, reference: {heat_capacity}, models: key -> {heat_capacity, highest, imaginary, and where
    the teacher is among them mean_difference} or {error}}; J/mol/K of the cell in the file, THz."""
    modes: dict[str, np.ndarray] = {}

    def measure(key: str) -> dict[str, Any]:
        modes[key], capacity = _phonons(atoms, calculators[key])
        return {"heat_capacity": rounded(capacity), "highest": rounded(modes[key].max()),
                "imaginary": bool(modes[key].min() < IMAGINARY)}  # fmt: skip

    found = {key: _tried(measure, key) for key in calculators}
    if TEACHER in modes:
        for key in modes.keys() - {TEACHER}:
            found[key]["mean_difference"] = rounded(np.abs(modes[key] - modes[TEACHER]).mean())
    reference = {"heat_capacity": rounded(atoms.info["heat_capacity"])}
    return {**_about(atoms), "supercell": list(supercell(atoms)), "reference": reference, "models": found}


def means(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row a model: how many of how many it did, mean relative errors of volume and bulk modulus (%), mean errors of heat
    capacity (J/mol/K) and frequencies (THz), over the crystals that every model did."""
    rows: list[dict[str, Any]] = []
    keys = list(dict.fromkeys(key for part in ("crystals", "phonons") for row in found[part] for key in row["models"]))
    for key in keys:
        row: dict[str, Any] = {"model": key}
        for part in ("crystals", "phonons"):
            done = [r for r in found[part] if "error" not in r["models"][key]]
            both = [r for r in found[part] if not any("error" in m for m in r["models"].values())]
            row[part] = {"done": len(done), "of": len(found[part]), "compared": len(both)}
            for name, relative in (("volume", True), ("bulk_modulus", True), ("heat_capacity", False)):
                pairs = [(r["models"][key][name], r["reference"][name]) for r in both if name in r["reference"]]
                if pairs:
                    wrong = [100 * (a / b - 1) if relative else a - b for a, b in pairs]
                    row[part][name] = {"mean_absolute": rounded(np.abs(wrong).mean()), "mean": rounded(np.mean(wrong)),
                                       "median_absolute": rounded(np.median(np.abs(wrong)))}  # fmt: skip
            apart = [m["mean_difference"] for r in both if "mean_difference" in (m := r["models"][key])]
            if apart:
                row[part]["mean_difference"] = rounded(np.mean(apart))
            row[part]["imaginary"] = sum(r["models"][key].get("imaginary", False) for r in both)
        rows.append(row)
    return rows


def supercell(atoms: Atoms) -> tuple[int, int, int]:
    """Repetitions that make each side long enough for finite displacements."""
    a, b, c = (max(1, int(np.ceil(_SUPERCELL / length))) for length in atoms.cell.lengths())
    return a, b, c


def _volume(atoms: Atoms, calculator: Any) -> dict[str, Any]:
    relaxed = _relaxed(atoms, calculator)
    volumes, energies = energy_of_volume(relaxed, span=_SPAN, points=_POINTS, relax_atoms=True)
    fit = fit_birch_murnaghan(volumes, energies)
    return {"volume": rounded(fit.volume / len(atoms)), "bulk_modulus": rounded(fit.bulk_modulus)}


def _phonons(atoms: Atoms, calculator: Any) -> tuple[np.ndarray, float]:
    """Frequencies [points, modes] (THz) on the mesh, sorted, and the heat capacity of the file's cell at 300 K (J/mol/K)."""
    relaxed = _relaxed(atoms, calculator)
    phonon = force_constants(relaxed, supercell(atoms), symprec=1e-3)
    phonon.run_mesh(list(_MESH), is_gamma_center=True, is_mesh_symmetry=False)
    modes = np.sort(phonon.mesh.frequencies, axis=1)
    phonon.run_thermal_properties(temperatures=[300.0], cutoff_frequency=NOISE)
    capacity = float(phonon.thermal_properties.heat_capacity[0])
    return modes, capacity * len(atoms) / len(phonon.primitive)


def _relaxed(atoms: Atoms, calculator: Any) -> Atoms:
    relaxed = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True, calculator=calculator)
    if not relax(relaxed, _RELAXATION).converged:
        raise ConvergenceError(f"not relaxed after {_RELAXATION.steps} steps")
    return relaxed


def _tried(measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    try:
        return measure(*args)
    except ProcessEndedError:
        raise
    except GFMError as error:
        return {"error": one_line(error)}


def _about(atoms: Atoms) -> dict[str, Any]:
    return {
        "name": atoms.get_chemical_formula(empirical=True),
        "id": str(atoms.info.get("mp_id", "")),
        "atoms": len(atoms),
    }


def _evenly(found: list[Atoms], count: int) -> list[Atoms]:
    return [found[k] for k in spread_indices(len(found), count)] if count > 0 else []
