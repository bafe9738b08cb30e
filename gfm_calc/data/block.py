"""Many labelled structures as flat arrays: `Block`, what shards, memory and the loader hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from ase import Atoms

from .schema import Record

NO_CHARGE = -128  # in `charge`: the source does not say
NO_SPIN = 0  # in `spin`: the source does not say


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """n labelled structures with A atoms in all; structure k owns the atoms ptr[k]:ptr[k+1].

    Attributes:
        ptr: [n+1] int64.
        atomic_numbers: [A] uint8.
        positions: [A, 3] float64, Å.
        forces: [A, 3] float64, eV/Å, NaN where a structure has none; may be None where none has any.
        cell: [n, 3, 3] float64, Å, rows are the cell vectors.
        pbc: [n, 3] bool.
        energy: [n] float64, eV, NaN where there is none.
        stress: [n, 3, 3] float64, eV/Å³, NaN where a structure has none; may be None where none has any.
        value: [n, k] float64, a property of the structures, NaN where one has none; None where none has any.
        atom_values: [A, k] float64, a property of the atoms, the same.
        charge: [n] int16, e, or NO_CHARGE.  spin: [n] uint16, multiplicity 2S+1, or NO_SPIN.
        frame: [n] int64, index in the file it came from.
        group, source: n names each, or None where they were not read.
    """

    ptr: np.ndarray
    atomic_numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray | None
    cell: np.ndarray
    pbc: np.ndarray
    energy: np.ndarray
    stress: np.ndarray | None
    charge: np.ndarray
    spin: np.ndarray
    frame: np.ndarray
    group: Sequence[str] | None = None
    source: Sequence[str] | None = None
    value: np.ndarray | None = None
    atom_values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def num_atoms(self) -> np.ndarray:
        """Atoms of each structure, [n]."""
        return np.diff(self.ptr)

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> Block:
        """Pack records; the order is kept.

        Raises:
            ValueError: no records.
        """
        if not records:
            raise ValueError("a block needs at least one structure")
        counts = [len(record) for record in records]
        some_forces = any(record.forces is not None for record in records)
        some_stress = any(record.stress is not None for record in records)
        forces = [_or_nan(record.forces, (n, 3)) for record, n in zip(records, counts)] if some_forces else None
        stress = [_or_nan(record.stress, (3, 3)) for record in records] if some_stress else None
        return cls(
            ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            atomic_numbers=np.concatenate([record.atomic_numbers for record in records]).astype(np.uint8),
            positions=np.concatenate([record.positions for record in records]),
            forces=None if forces is None else np.concatenate(forces),
            cell=np.stack([record.cell for record in records]),
            pbc=np.stack([record.pbc for record in records]),
            energy=np.array([record.energy for record in records], np.float64),
            stress=None if stress is None else np.stack(stress),
            charge=np.array([NO_CHARGE if r.charge is None else r.charge for r in records], np.int16),
            spin=np.array([NO_SPIN if r.spin is None else r.spin for r in records], np.uint16),
            frame=np.array([record.frame for record in records], np.int64),
            group=[record.group for record in records],
            source=[record.source for record in records],
            value=_stacked([record.value for record in records], [1] * len(records)),
            atom_values=_stacked([record.atom_values for record in records], counts),
        )

    @classmethod
    def concatenate(cls, blocks: Sequence[Block]) -> Block:
        """Several blocks as one; the order is kept."""
        if len(blocks) == 1:
            return blocks[0]
        joined = {}
        for name in (field.name for field in fields(cls) if field.name != "ptr"):
            joined[name] = _join(name, blocks)
        counts = np.concatenate([block.num_atoms for block in blocks])
        return cls(ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), **joined)

    def record(self, index: int) -> Record:
        """Structure `index` as a `Record`; its arrays are views where they can be."""
        rows = slice(int(self.ptr[index]), int(self.ptr[index + 1]))
        forces = None if self.forces is None else self.forces[rows]
        stress = None if self.stress is None else self.stress[index]
        value = None if self.value is None else self.value[index]
        atom_values = None if self.atom_values is None else self.atom_values[rows]
        charge, spin = int(self.charge[index]), int(self.spin[index])
        return Record(
            atomic_numbers=self.atomic_numbers[rows].astype(np.int64), positions=self.positions[rows],
            cell=self.cell[index], pbc=self.pbc[index], energy=float(self.energy[index]),
            forces=None if forces is None or math.isnan(forces[0, 0]) else forces,
            stress=None if stress is None or math.isnan(stress[0, 0]) else stress,
            value=None if value is None or math.isnan(value[0]) else value,
            atom_values=None if atom_values is None or np.isnan(atom_values).all() else atom_values,
            charge=None if charge == NO_CHARGE else charge, spin=None if spin == NO_SPIN else spin,
            group="" if self.group is None else self.group[index],
            source="" if self.source is None else self.source[index], frame=int(self.frame[index]),
        )  # fmt: skip

    def structure(self, index: int) -> Atoms:
        """Structure `index` without labels."""
        return self.record(index).structure()

    def records(self) -> Iterator[Record]:
        """All structures, in order."""
        return (self.record(index) for index in range(len(self)))

    def take(self, indices: Sequence[int] | np.ndarray) -> Block:
        """The structures `indices` of this block, in that order."""
        indices = np.asarray(indices, np.int64)
        starts, counts = self.ptr[indices], self.ptr[indices + 1] - self.ptr[indices]
        ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(ptr[-1]) + np.repeat(starts - ptr[:-1], counts)
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name != "ptr":
                value = _pick(value, rows if field.name in ATOM_COLUMNS else indices)
            values[field.name] = value
        return Block(**{**values, "ptr": ptr})


ATOM_COLUMNS = ("atomic_numbers", "positions", "forces", "atom_values")


def _or_nan(value: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan) if value is None else value


def _stacked(values: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray | None:
    """Properties of structures, or of their atoms, as rows; NaN where one has none, None where none has any.

    Args:
        counts: rows of each.
    """
    width = max((value.shape[-1] for value in values if value is not None), default=0)
    if not width:
        return None
    found = np.full((sum(counts), width), np.nan)
    for last, count, value in zip(np.cumsum(counts).tolist(), counts, values):
        if value is not None:
            found[last - count : last, : value.shape[-1]] = value
    return found


def _pick(value, rows: np.ndarray):
    return value[rows] if isinstance(value, np.ndarray) else [value[k] for k in rows.tolist()]


def _join(name: str, blocks: Sequence[Block]):
    parts = [getattr(block, name) for block in blocks]
    if name in ("group", "source"):
        return None if any(part is None for part in parts) else [word for part in parts for word in part]
    if name in ("value", "atom_values"):
        return _stacked(parts, [len(b) if name == "value" else len(b.positions) for b in blocks])
    if name in ("forces", "stress"):
        if all(part is None for part in parts):
            return None
        shapes = [block.positions.shape if name == "forces" else block.cell.shape for block in blocks]
        parts = [_or_nan(part, shape) for part, shape in zip(parts, shapes)]
    return np.concatenate(parts)
