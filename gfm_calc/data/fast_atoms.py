"""ase.Atoms from arrays, without the time that its constructors take (they would be most of a random read).

Only where this version of ASE keeps in its objects what we know of; otherwise the constructors are called.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell

from .schema import Record

_ATOMS = {"_cellobj", "_pbc", "arrays", "_celldisp", "_constraints", "info", "_calc"}
_CALCULATOR = {"atoms", "results", "parameters", "_directory", "prefix", "get_spin_polarized", "use_cache"}
_EMPTY = SinglePointCalculator(Atoms())
FAST = set(vars(Atoms())) == _ATOMS and set(vars(_EMPTY)) == _CALCULATOR


def labelled_atoms(record: Record, head: str) -> Atoms:
    """`record.to_atoms()` with `head` in `info`; the record's arrays may be shared, the result's are its own."""
    if not FAST:
        atoms = record.to_atoms()
        atoms.info["head"] = head
        return atoms
    info = {
        "charge": record.charge,
        "spin": record.spin,
        "group": record.group or None,
        "source": record.source or None,
    }
    atoms = _atoms(record, {key: value for key, value in info.items() if value is not None} | {"head": head})
    results: dict[str, Any] = {} if math.isnan(record.energy) else {"energy": record.energy}
    if record.forces is not None:
        results["forces"] = record.forces.copy()
    if record.stress is not None:
        s = record.stress
        off_diagonal = (s[1, 2] + s[2, 1], s[0, 2] + s[2, 0], s[0, 1] + s[1, 0])
        results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], *(value / 2 for value in off_diagonal)])
    calculator = SinglePointCalculator.__new__(SinglePointCalculator)
    vars(calculator).update(
        atoms=_atoms(record, dict(atoms.info)), results=results, parameters=_EMPTY.parameters.copy(), _directory=".",
        prefix=None, use_cache=False, get_spin_polarized=calculator._deprecated_get_spin_polarized,
    )  # fmt: skip
    vars(atoms)["_calc"] = calculator
    return atoms


def _atoms(record: Record, info: dict[str, Any]) -> Atoms:
    atoms = Atoms.__new__(Atoms)
    vars(atoms).update(
        _cellobj=Cell(record.cell.copy()), _pbc=record.pbc.copy(), _celldisp=np.zeros((3, 1)), _constraints=[], info=info,
        arrays={"numbers": record.atomic_numbers.copy(), "positions": record.positions.copy()}, _calc=None,
    )  # fmt: skip
    return atoms
