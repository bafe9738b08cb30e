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
FAST = (
    set(vars(Atoms())) == _ATOMS and set(vars(_EMPTY)) == _CALCULATOR and set(vars(Cell(np.eye(3)))) == {"array"}
)  # fmt: skip


def labelled_atoms(record: Record, head: str) -> Atoms:
    """`record.to_atoms()` with `head` in `info`.  The record's arrays become those of the result: give it up."""
    if not FAST:
        atoms = record.to_atoms()
        atoms.info["head"] = head
        return atoms
    info: dict[str, Any] = {"head": head}
    for name in ("charge", "spin"):
        if (value := getattr(record, name)) is not None:
            info[name] = value
    for name in ("group", "source"):
        if value := getattr(record, name):
            info[name] = value
    results: dict[str, Any] = {} if math.isnan(record.energy) else {"energy": record.energy}
    if record.forces is not None:
        results["forces"] = record.forces
    if record.stress is not None:
        (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = record.stress.tolist()
        results["stress"] = np.array([xx, yy, zz, (yz + zy) / 2, (xz + zx) / 2, (xy + yx) / 2])
    cell, pbc, numbers, positions = record.cell, record.pbc, record.atomic_numbers, record.positions
    calculator = SinglePointCalculator.__new__(SinglePointCalculator)
    calculator.__dict__.update(
        atoms=_atoms(cell.copy(), pbc.copy(), numbers.copy(), positions.copy(), info.copy(), None), results=results,
        parameters=_EMPTY.parameters.copy(), _directory=".", prefix=None, use_cache=False,
        get_spin_polarized=calculator._deprecated_get_spin_polarized,
    )  # fmt: skip
    return _atoms(cell, pbc, numbers, positions, info, calculator)


def _atoms(cell, pbc, numbers, positions, info, calculator) -> Atoms:
    atoms, box = Atoms.__new__(Atoms), Cell.__new__(Cell)
    box.array = cell
    atoms.__dict__.update(
        _cellobj=box, _pbc=pbc, _celldisp=np.zeros((3, 1)), _constraints=[], info=info,
        arrays={"numbers": numbers, "positions": positions}, _calc=calculator,
    )  # fmt: skip
    return atoms
