"""`gfm bench torsions | conformers`: relative energies of geometries of one molecule, beside the methods in the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ase import Atoms

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.checkpoint import load_model
from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor
from gfm_calc.ranks import rank_correlation
from gfm_calc.structures import read_structures
from gfm_calc.train.datasets import find_datasets

_BLOCK = 4096  # structures that are read at a time
_KCAL = 23.060548  # kcal/mol in an eV


@dataclass(frozen=True)
class Kind:
    """What is compared.

    Attributes:
        reference: the method of the file that is right.
        zero: of the energies of a molecule: "lowest", the geometry that the reference has the lowest; or "mean".
        error: "root mean square" or "mean absolute", over the geometries of a molecule.
        key: of `atoms.info` that tells the molecule (or its scan), and what it is called.
    """

    reference: str
    zero: str
    error: str
    key: str
    named: str


KINDS = MappingProxyType({
    "torsions": Kind("ccsdt_cbs", "lowest", "root mean square", "torsion", "torsion scan"),
    "conformers": Kind("dlpno_ccsdt", "mean", "mean absolute", "group", "molecule with several conformers"),
})  # fmt: skip


def run_relative_energies(
    kind: str, model: str, head: str, path: Path, against: str = "gfn2", data: Path | None = None
) -> dict[str, Any]:
    """Rows, a molecule each: name, formula, charge, atoms, points, errors {method: against the reference, kcal/mol}, ranks
    {method: rank correlation with it}, where the head is one of the methods; `against`, the head against its own level of
    theory; with `data` also `seen`, whether a structure of that composition is there.

    Args:
        kind: one of `KINDS`.
        path: frames with `Kind.key` and `rel_METHOD_kcal`, energies relative to any zero of the molecule.
        against: the method of the file that is the head's own level of theory.
        data: folder of datasets, the head's among them.

    Raises:
        GFMError: nothing in the file that the head can do; a frame without one of the methods.
    """
    about = KINDS[kind]
    sets: dict[str, list[Atoms]] = defaultdict(list)
    for atoms in read_structures(path):
        sets[str(atoms.info.get(about.key, atoms.info.get("group")))].append(atoms)
    loaded = load_model(model)
    predictor = Predictor(loaded, [head], forces=False)
    known = None if data is None else _compositions(data, head)
    spec = loaded.spec(head)
    left = {"unseen charges": 0, "unseen elements": 0, "single geometries": 0}
    rows = []
    for name, frames in sets.items():
        if not spec.charges[0] <= frames[0].info.get("charge", 0) <= spec.charges[1]:
            left["unseen charges"] += 1
        elif spec.unseen(frames[0].numbers.tolist()):
            left["unseen elements"] += 1
        elif len(frames) < 2:
            left["single geometries"] += 1
        else:
            row = _row(about, name, frames, predictor, head, against)
            rows.append(row if known is None else {**row, "seen": frames[0].get_chemical_formula() in known})
    if not rows:
        raise GFMError(f"{path}: no {about.named} of charges and elements that {head} knows")
    new = [row for row in rows if not row.get("seen", True)]
    return {
        "head": head, "reference": about.reference, "own_level": against, "zero": about.zero, "error": about.error,
        "left_out": left, "rows": rows, **_means(rows), **({"unseen": {"count": len(new), **_means(new)}} if new else {}),
    }  # fmt: skip


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    average = {
        part: {method: rounded(np.mean([row[part][method] for row in rows])) for method in rows[0][part]}
        for part in ("errors", "ranks")
    }
    return {
        "means": average["errors"], "mean_ranks": average["ranks"],
        "mean_against_own_level": rounded(np.mean([row["against"] for row in rows])),
    }  # fmt: skip


def _compositions(data: Path, head: str) -> set[str]:
    """Formulas of the structures of a head, on all sides of a split."""
    for dataset in find_datasets(str(data)):
        if dataset.head.name == head:
            break
    else:
        raise GFMError(f"{data}: has no data of head {head}")
    found: set[bytes] = set()
    for first in range(0, len(dataset), _BLOCK):
        block = dataset.read(np.arange(first, min(first + _BLOCK, len(dataset))))
        found.update(np.sort(record.atomic_numbers).astype(np.uint8).tobytes() for record in block.records())
    return {Atoms(np.frombuffer(numbers, np.uint8)).get_chemical_formula() for numbers in found}


def _row(
    about: Kind, name: str, frames: list[Atoms], predictor: Predictor, head: str, against: str
) -> dict[str, Any]:  # fmt: skip
    charge = int(frames[0].info.get("charge", 0))
    bare = [Atoms(atoms.numbers, positions=atoms.positions, info={"charge": charge}) for atoms in frames]
    found = {
        method: _energies(name, method, frames) for method in {**_methods(frames[0]), about.reference: 0, against: 0}
    }
    found[head] = _KCAL * np.array([row[head].energy.item() for row in predictor.predict(bare)])
    lowest = int(np.argmin(found[about.reference]))
    relative = {
        method: values - (values[lowest] if about.zero == "lowest" else values.mean())
        for method, values in found.items()
    }
    right = relative[about.reference]
    others = {method: values for method, values in relative.items() if method != about.reference}
    size = _root_mean_square if about.error == "root mean square" else _mean_absolute
    return {
        "name": name, "formula": frames[0].get_chemical_formula(), "charge": charge, "atoms": len(frames[0]),
        "points": len(frames),
        "errors": {method: rounded(size(values - right)) for method, values in others.items()},
        "ranks": {method: _rank(values, right) for method, values in others.items()},
        "against": rounded(size(relative[head] - relative[against])),
    }  # fmt: skip


def _methods(atoms: Atoms) -> dict[str, int]:
    return {key[4:-5]: 0 for key in atoms.info if key.startswith("rel_") and key.endswith("_kcal")}


def _energies(name: str, method: str, frames: list[Atoms]) -> np.ndarray:
    key = f"rel_{method}_kcal"
    for atoms in frames:
        if key not in atoms.info:
            raise GFMError(f"{name}: a geometry without {key}")
    return np.array([float(atoms.info[key]) for atoms in frames])


def _rank(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; 0 where there is no order to compare: one of them is constant, or not finite."""
    found = rank_correlation(first, second, fewest=2)
    return 0.0 if np.isnan(found) else rounded(found, 3)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _mean_absolute(values: np.ndarray) -> float:
    return float(np.abs(values).mean())
