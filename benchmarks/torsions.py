"""`gfm bench torsions`: relative energies along torsion scans of molecules, beside the methods in the file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.checkpoint import load_model
from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor
from gfm_calc.structures import read_structures

REFERENCE = "ccsdt_cbs"
_KCAL = 23.060548  # kcal/mol in an eV


def run_torsions(model: str, head: str, path: Path, against: str = "gfn2") -> dict[str, Any]:
    """Rows, a scan each: name, formula, atoms, points, errors {method: root mean square against REFERENCE, kcal/mol}, where
    the head is one of the methods; `against`, the root mean square of the head against its own level of theory.

    Energies are relative to the geometry that the reference has the lowest, as in the file.

    Args:
        path: frames with `torsion` (which scan) and `rel_METHOD_kcal`.
        against: the method of the file that is the head's own level of theory.

    Raises:
        GFMError: no scan in the file that the head can do.
    """
    scans: dict[str, list[Atoms]] = defaultdict(list)
    for atoms in read_structures(path):
        scans[str(atoms.info.get("torsion", atoms.info.get("group")))].append(atoms)
    loaded = load_model(model)
    predictor = Predictor(loaded, [head], forces=False)
    left = {"charged": 0, "unseen elements": 0}
    rows = []
    for name, frames in scans.items():
        if frames[0].info.get("charge", 0) != 0:
            left["charged"] += 1
        elif loaded.specs[head].unseen(frames[0].numbers.tolist()):
            left["unseen elements"] += 1
        else:
            rows.append(_row(name, frames, predictor, head, against))
    if not rows:
        raise GFMError(f"{path}: no torsion scan of neutral molecules whose elements {head} knows")
    methods = rows[0]["errors"]
    average = {method: rounded(np.mean([row["errors"][method] for row in rows])) for method in methods}
    return {
        "head": head, "reference": REFERENCE, "own_level": against, "left_out": left, "rows": rows, "means": average,
        "mean_against_own_level": rounded(np.mean([row["against"] for row in rows])),
    }  # fmt: skip


def _row(name: str, frames: list[Atoms], predictor: Predictor, head: str, against: str) -> dict[str, Any]:
    bare = [Atoms(atoms.numbers, positions=atoms.positions) for atoms in frames]
    found = {key[4:-5]: np.array([atoms.info[key] for atoms in frames]) for key in frames[0].info if _is_method(key)}
    lowest = int(np.argmin(found[REFERENCE]))
    energies = np.array([row[head].energy.item() for row in predictor.predict(bare)])
    relative = {method: values - values[lowest] for method, values in found.items()}
    relative[head] = _KCAL * (energies - energies[lowest])
    errors = {method: _rms(values - relative[REFERENCE]) for method, values in relative.items() if method != REFERENCE}
    return {
        "name": name, "formula": frames[0].get_chemical_formula(), "atoms": len(frames[0]), "points": len(frames),
        "errors": errors, "against": _rms(relative[head] - relative[against]),
    }  # fmt: skip


def _is_method(key: str) -> bool:
    return key.startswith("rel_") and key.endswith("_kcal")


def _rms(values: np.ndarray) -> float:
    return rounded(np.sqrt(np.square(values).mean()))
