"""`gfm bench phonons`: frequencies beside those of calculated force sets, of our head and of published models.

Nothing is relaxed: every model gives forces on the displaced supercells of the file, less those on the supercell at rest, so that
force constants of one geometry are compared, through the same fits.  No correction for long-range dipoles, in either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers as NUMBER_OF

from gfm_calc.benchmarks.contenders import ProcessEndedError
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.remote import releases, remote_calculators
from gfm_calc.calculator import GFMCalculator
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.phonons import IMAGINARY, require_phonopy
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import GFMError, InputFileError, one_line

OURS = "gfm"
_MESH = (6, 6, 6)


@dataclass(frozen=True, kw_only=True)
class ForceSetPlan:
    """What to measure.

    Attributes:
        model: packaged name or directory.  head: of it.
        folder: with a YAML file of phonopy a crystal, which holds displacements and forces.
        peers: {"chgnet" | "sevennet": python of an environment that has it}.
    """

    model: str
    head: str
    folder: Path
    peers: Mapping[str, str]


def run_force_sets(plan: ForceSetPlan) -> dict[str, Any]:
    """{"models": key -> name, "peers": title -> version, "rows": see `row`, "means": see `means`, "unseen": names of
    crystals with elements that the head has not seen}.

    Raises:
        MissingDependencyError: phonopy is not installed.
        InputFileError: a file that is none of phonopy's or holds no forces, or no files.
    """
    crystals = {path.stem: _read(path) for path in sorted(plan.folder.glob("*.yaml"))}
    if not crystals:
        raise InputFileError(f"{plan.folder}: holds no *.yaml of phonopy with displacements and forces")
    model = load_model(plan.model, dtype=torch.float64)
    card = model.specs[model.spec(plan.head).name]
    unseen = [name for name, p in crystals.items() if card.unseen([NUMBER_OF[s] for s in p.unitcell.symbols])]
    rows = []
    with remote_calculators(plan.peers, threads=1) as others:
        calculators = {OURS: GFMCalculator(model, head=plan.head), **others}
        names, versions = {key: calculator.title for key, calculator in others.items()}, releases(others)
        known = {name: phonon for name, phonon in crystals.items() if name not in unseen}
        with Progress("phonons", "crystals", len(known)) as progress:
            for name, phonon in known.items():
                rows.append(row(name, phonon, calculators))
                progress.advance(note=rows[-1]["formula"])
    models = {OURS: f"gfm-calc, {plan.head}", **names}
    return {"models": models, "peers": versions, "rows": rows, "means": means(rows), "unseen": unseen}


def _read(path: Path) -> Any:
    require_phonopy()
    import phonopy

    try:
        phonon = phonopy.load(path, produce_fc=False, is_nac=False, log_level=0)
        complete = len(phonon.forces) == len(phonon.displacements) > 0
    except Exception as error:  # phonopy raises whatever its parsers meet
        raise InputFileError(
            f"{path}: not a file of phonopy with displacements and forces ({one_line(error)})"
        ) from error
    if not complete:
        raise InputFileError(f"{path}: holds no forces for its displacements")
    return phonon


def row(name: str, phonon: Any, calculators: Mapping[str, Any]) -> dict[str, Any]:
    """{name, formula, displacements, atoms (of the supercell), reference: {highest, imaginary}, models: key -> {mean_absolute and
    mean (of the differences of all frequencies on a mesh), highest, imaginary} or {error}}; THz.

    Args:
        phonon: a `phonopy.Phonopy` with forces; it is changed.
    """
    cells = [cell for cell in phonon.supercells_with_displacements if cell is not None]
    reference = _modes(phonon)
    about = {
        "name": name, "formula": Atoms(phonon.unitcell.symbols).get_chemical_formula(empirical=True),
        "displacements": len(cells), "atoms": len(phonon.supercell),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for key, calculator in calculators.items():
        try:
            rest = _forces(phonon.supercell, calculator)
            phonon.forces = [_forces(cell, calculator) - rest for cell in cells]
        except ProcessEndedError:
            raise
        except GFMError as error:
            found[key] = {"error": one_line(error)}
            continue
        modes = _modes(phonon)
        away = modes - reference
        found[key] = {"mean_absolute": rounded(np.abs(away).mean()), "mean": rounded(away.mean()), **_ends(modes)}
    return {**about, "reference": _ends(reference), "models": found}


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{model, done, compared, mean_absolute, mean, median_absolute, highest (mean absolute error, %), imaginary}, over the
    crystals that all models did; `reference_imaginary` of them have imaginary modes by the reference."""
    both = [one for one in rows if not any("error" in found for found in one["models"].values())]
    found = []
    for key in rows[0]["models"] if rows else ():
        own = [one["models"][key] for one in both]
        if not own:
            continue
        highest = [100 * abs(o["highest"] / one["reference"]["highest"] - 1) for o, one in zip(own, both)]
        found.append({
            "model": key, "done": sum("error" not in one["models"][key] for one in rows), "compared": len(both),
            "mean_absolute": rounded(np.mean([o["mean_absolute"] for o in own])),
            "mean": rounded(np.mean([o["mean"] for o in own])),
            "median_absolute": rounded(np.median([o["mean_absolute"] for o in own])), "highest": rounded(np.mean(highest)),
            "imaginary": sum(o["imaginary"] for o in own),
            "reference_imaginary": sum(one["reference"]["imaginary"] for one in both),
        })  # fmt: skip
    return found


def _ends(modes: np.ndarray) -> dict[str, Any]:
    return {"highest": rounded(modes.max()), "imaginary": bool(modes.min() < IMAGINARY)}


def _modes(phonon: Any) -> np.ndarray:
    """Frequencies [points, modes] (THz) on the mesh, ascending."""
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    phonon.run_mesh(list(_MESH), is_gamma_center=True, is_mesh_symmetry=False)
    return np.sort(phonon.mesh.frequencies, axis=1)


def _forces(cell: Any, calculator: Any) -> np.ndarray:
    atoms = Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True, calculator=calculator)
    return np.asarray(atoms.get_forces())
