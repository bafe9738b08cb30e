"""One labelled structure, whatever file it came from: `Record`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from ase import Atoms

from ..errors import InvalidStructureError

_FREE = 8.0  # Å between an atom and its images: farther than a cutoff is
MAX_ENERGY = 1.0e9  # eV; beyond, a float64 energy has lost the digits that anybody trains on


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One labelled structure of n atoms; its arrays are for reading only.

    Attributes:
        atomic_numbers: [n] int64.
        positions: [n, 3] float64, Å.
        cell: [3, 3] float64, rows are the cell vectors, Å; zero where there is none.
        pbc: [3] bool.
        energy: eV; NaN where the source has none.
        forces: [n, 3] float64, eV/Å, or None.
        stress: [3, 3] float64, eV/Å³, tension positive, or None.
        value: [k] float64, a property of the structure, or None; k is 1, or 3 for a vector; in the unit of its head.
        atom_values: [n, k] float64, a property of its atoms, or None.
        charge: total charge in e, or None where the source does not say.
        spin: multiplicity 2S+1, or None where the source does not say.
        group: what must stay on one side of a split (molecule, trajectory, material); "" where the source does not say.
        source: name of the file, without its folder.
        frame: index in that file.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    value: np.ndarray | None = None
    atom_values: np.ndarray | None = None
    charge: int | None = None
    spin: int | None = None
    group: str = ""
    source: str = ""
    frame: int = 0

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def is_free_atom(self) -> bool:
        """Whether it is one atom, without a cell or in so large a one that its images are nothing to it.

        It gives a reference energy, and nothing else to learn.
        """
        if len(self) > 1:
            return False
        steps = np.array(list(product((-1, 0, 1), repeat=3)))
        steps = steps[(steps != 0).any(axis=1) & (steps[:, ~self.pbc] == 0).all(axis=1)]
        return bool((np.linalg.norm(steps @ self.cell, axis=1) > _FREE).all())

    def structure(self) -> Atoms:
        """The structure with charge and spin in `info`, without labels."""
        info = {k: v for k, v in (("charge", self.charge), ("spin", self.spin)) if v is not None}
        return Atoms(self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, info=info)

    def to_atoms(self) -> Atoms:
        """ase.Atoms with the labels in a SinglePointCalculator; charge, spin, group and source in `info`."""
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        atoms = self.structure()
        atoms.info |= {k: v for k, v in (("group", self.group), ("source", self.source)) if v}
        results: dict[str, Any] = {}
        if not math.isnan(self.energy):
            results["energy"] = self.energy
        if self.forces is not None:
            results["forces"] = self.forces
        if self.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(self.stress)
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    @classmethod
    def from_atoms(cls, atoms: Atoms, *, source: str | None = None, frame: int = 0, group: str | None = None) -> Record:
        """The structure and the labels that its calculator already holds (ASE's units and signs).

        Args:
            source, group: None takes those in `atoms.info`, or "".

        Raises:
            InvalidStructureError: an unsound structure or label, see `checked`.
        """
        from ase.stress import voigt_6_to_full_3x3_stress

        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        stress = results.get("stress")
        info = atoms.info
        return checked(
            cls(
                atomic_numbers=np.asarray(atoms.numbers, np.int64),
                positions=np.array(atoms.positions, np.float64),
                cell=np.array(atoms.cell.array, np.float64),
                pbc=np.array(atoms.pbc, bool),
                energy=float(results.get("energy", math.nan)),
                forces=None if results.get("forces") is None else np.array(results["forces"], np.float64),
                stress=None if stress is None else _full(np.asarray(stress, np.float64), voigt_6_to_full_3x3_stress),
                charge=info.get("charge"),
                spin=info.get("spin"),
                group=str(info.get("group", "") if group is None else group),
                source=str(info.get("source", "") if source is None else source),
                frame=frame,
            ),
            energy_given="energy" in results,
        )


def checked(record: Record, *, energy_given: bool = True, source: str | None = None) -> Record:
    """`record`, if its structure and labels are sound; charge and spin come out as int or None.

    Args:
        energy_given: the source held an energy, so NaN is damage.
        source: what to call the file in errors (default: `record.source`).

    Raises:
        InvalidStructureError: what `graph.validate_atoms` and `graph.charge_and_spin` refuse; a label that is NaN or
            infinite, of the wrong shape, or far beyond any physical size.
    """
    from ..graph import charge_and_spin, validate_atoms

    where: dict[str, Any] = {"source": (source or record.source) or None, "frame": record.frame}
    structure = record.structure()
    validate_atoms(structure, **where)
    if record.charge is not None or record.spin is not None:
        charge, spin = charge_and_spin(structure, **where)
        object.__setattr__(record, "charge", None if record.charge is None else charge)
        object.__setattr__(record, "spin", None if record.spin is None else spin)
    if energy_given and not abs(record.energy) <= MAX_ENERGY:
        size = "is not a finite number" if not math.isfinite(record.energy) else f"is {record.energy:.3g} eV: no unit"
        raise InvalidStructureError(f"energy {size}: mend the label or leave the frame out", **where)
    _check_label("forces", record.forces, (len(record), 3), where)
    _check_label("stress", record.stress, (3, 3), where)
    _check_property(record, where)
    if record.stress is not None and not record.pbc.any():
        raise InvalidStructureError("has a stress but no periodic direction: set pbc or drop the stress", **where)
    return record


def _check_label(name: str, value: np.ndarray | None, shape: tuple[int, ...], where: dict) -> None:
    if value is None:
        return
    if value.shape != shape:
        raise InvalidStructureError(f"{name} have shape {list(value.shape)}, expected {list(shape)}", **where)
    if np.abs(value).max() <= MAX_ENERGY:  # False for NaN, too
        return
    row = int(np.flatnonzero(~(np.abs(value) <= MAX_ENERGY).all(axis=1))[0])
    largest = np.abs(value[row]).max()
    what = f"hold {largest:.3g}, beyond any physical size" if np.isfinite(largest) else "are not finite"
    raise InvalidStructureError(
        f"{name} {what}: mend the label or leave the frame out", **where, atom=row if name == "forces" else None
    )


def _check_property(record: Record, where: dict) -> None:
    for name, value in (("value", record.value), ("atom_values", record.atom_values)):
        if value is not None and not (np.abs(value) <= MAX_ENERGY).all():
            wrong = ~(np.abs(value) <= MAX_ENERGY)
            first = value[wrong][0]
            what = f"is {first:.3g}: too large for a label" if np.isfinite(first) else "is not finite"
            raise InvalidStructureError(
                f"the property {what}: mend the label or leave the frame out", **where,
                atom=int(np.flatnonzero(wrong.reshape(len(value), -1).any(axis=1))[0]) if name == "atom_values" else None,
            )  # fmt: skip


def _full(stress: np.ndarray, from_voigt) -> np.ndarray:
    return from_voigt(stress) if stress.shape == (6,) else stress
