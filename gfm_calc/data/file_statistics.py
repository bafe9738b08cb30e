"""A few numbers of every frame of a file, and what follows from all of them."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping

import numpy as np
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import chemical_symbols as SYMBOLS
from ase.formula import Formula

from ..config import MAX_ATOMIC_NUMBER
from .fingerprints import Description
from .schema import Record
from .suspicion import all_electron_energy
from .zero_forces import count_zeros

_COLUMNS = (
    "num_atoms", "energy", "ratio", "max_force", "net_force", "rms_force", "pressure", "max_stress", "volume", "closest",
    "typical", "composition", "zero_forces", "frame", "charge", "spin", "axes", "free_atom", "taken_forces", "no_force",
    "force_key", "value", "of_atoms", "width", "varies",
)  # fmt: skip
_OF_FORCES = ("max_force", "net_force", "rms_force", "zero_forces", "taken_forces", "no_force", "force_key")
# Components of forces, for the histogram: decades from 1e-5 to 1e4 eV/Å, ten bins each.
FORCE_BINS = np.logspace(-5, 4, 91)


class FileStatistics:
    """Collects; after `finish` the columns are arrays [frames], NaN where a frame has no such number.

    num_atoms; energy (eV); ratio (to the energy of free atoms, all electrons); max_force, rms_force (eV/Å); net_force
    (|sum|, eV/Å); pressure (-trace/3, eV/Å³), max_stress (eV/Å³); volume (Å³ per atom, of crystals); closest, typical
    (distances over those of bonds); composition (index); zero_forces, taken_forces, no_force (see
    `zero_forces.count_zeros`); frame; charge; spin; axes (periodic ones); free_atom (1 where it is one); force_key (a hash
    of the lengths of all forces, in no order); value (a property of the structure, or its mean over atoms; of vectors the
    length), of_atoms (1 where it is one of atoms),
    width (of its numbers), varies (1 where they differ within the frame); residual (eV/atom, after the reference energies).
    """

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in _COLUMNS}
        self._compositions: dict[bytes, int] = {}
        self._counts: list[np.ndarray] = []
        self.element_atoms = np.zeros(MAX_ATOMIC_NUMBER + 1, np.int64)
        self.element_frames = np.zeros(MAX_ATOMIC_NUMBER + 1, np.int64)
        self.force_histogram = np.zeros(len(FORCE_BINS) + 1, np.int64)
        self.num_fixed = 0
        self.columns: dict[str, np.ndarray] = {}
        self.first = 0

    def __len__(self) -> int:
        return len(self._columns["num_atoms"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def add(self, record: Record, description: Description, fixed: np.ndarray | None) -> None:
        """One more frame."""
        numbers = record.atomic_numbers
        count = np.bincount(numbers, minlength=MAX_ATOMIC_NUMBER + 1)
        self.element_atoms += count
        self.element_frames += count > 0
        self.num_fixed += fixed is not None
        volume = abs(float(np.linalg.det(record.cell))) / len(numbers) if record.pbc.all() else math.nan
        free = float(all_electron_energy(numbers).sum())
        row = {
            "num_atoms": len(numbers), "energy": record.energy, "ratio": record.energy / free, "volume": volume,
            "closest": description.closest, "typical": description.typical, "composition": self._composition(count),
            "frame": record.frame, "charge": math.nan if record.charge is None else record.charge,
            "spin": math.nan if record.spin is None else record.spin, "axes": int(record.pbc.sum()),
            "free_atom": record.is_free_atom,
            **self._forces(record, fixed), **_stress(record), **_property(record),
        }  # fmt: skip
        for name in _COLUMNS:
            self._columns[name].append(row[name])

    def finish(self, first: int) -> None:
        """Turn the columns into arrays.

        Args:
            first: index of the first frame in the table of all frames.
        """
        self.columns = {name: np.asarray(values) for name, values in self._columns.items()}
        self.columns["energy_per_atom"] = self.columns["energy"] / self.columns["num_atoms"]
        self.first = first

    @property
    def has_energies(self) -> bool:
        """Whether any frame has one."""
        return bool(np.isfinite(self.columns["energy"]).any())

    @property
    def elements(self) -> list[str]:
        """Symbols, by atomic number."""
        return [SYMBOLS[z] for z in np.flatnonzero(self.element_frames)]

    @property
    def num_compositions(self) -> int:
        """How many different formulas."""
        return len(self._counts)

    def heaviest(self) -> np.ndarray:
        """[frames] the largest atomic number in each."""
        largest = np.array([np.flatnonzero(count)[-1] for count in self._counts])
        return largest[self.columns["composition"].astype(np.int64)]

    def formula(self, composition: int) -> str:
        """'CH4O' of the composition of that index."""
        count = self._counts[composition]
        return Formula.from_dict({SYMBOLS[z]: int(count[z]) for z in np.flatnonzero(count)}).format("hill")

    def subtract(self, references: Mapping[str, float]) -> None:
        """Make the column "residual": energy less reference energies, eV/atom."""
        values = np.zeros(MAX_ATOMIC_NUMBER + 1)
        for symbol, energy in references.items():
            values[NUMBER_OF[symbol]] = energy
        of_composition = np.array([count @ values for count in self._counts])
        rest = self.columns["energy"] - of_composition[self.columns["composition"].astype(np.int64)]
        self.columns["residual"] = rest / self.columns["num_atoms"]

    def lowest_is_zero(self) -> bool:
        """Whether of every composition with several frames the lowest energy is zero, within 1e-3 eV."""
        composition = self.columns["composition"].astype(np.int64)
        several = np.bincount(composition) > 2
        lowest = np.full(len(several), np.inf)
        np.fmin.at(lowest, composition, self.columns["energy"])
        return bool(several.any() and (np.abs(lowest[several]) < 1e-3).all())

    def _composition(self, count: np.ndarray) -> int:
        key = count.tobytes()
        if key not in self._compositions:
            self._compositions[key] = len(self._counts)
            self._counts.append(count)
        return self._compositions[key]

    def _forces(self, record: Record, fixed: np.ndarray | None) -> dict[str, float]:
        forces = record.forces
        if forces is None:
            return dict.fromkeys(_OF_FORCES, math.nan)
        sizes = np.linalg.norm(forces, axis=1)
        self.force_histogram += np.bincount(
            np.searchsorted(FORCE_BINS, np.abs(forces).ravel(), side="right"), minlength=len(FORCE_BINS) + 1
        )
        return {
            "max_force": float(sizes.max()),
            "net_force": float(np.linalg.norm(forces.sum(axis=0))),
            "rms_force": float(np.sqrt(np.mean(np.square(forces)))),
            "force_key": _key(sizes),
            **count_zeros(record, fixed),
        }


def _key(sizes: np.ndarray) -> float:
    """A hash of forces' lengths [n], to four digits of the largest, whatever the order of the atoms."""
    largest = float(sizes.max())
    digits = 4 - math.floor(math.log10(largest)) if largest > 0 else 0
    counts = np.sort(np.rint(sizes * 10.0**digits)).astype(np.int64)
    return float(int.from_bytes(hashlib.sha256(f"{digits}".encode() + counts.tobytes()).digest()[:6], "little"))


def _property(record: Record) -> dict[str, float]:
    values = record.value if record.atom_values is None else record.atom_values
    if values is None:
        return {"value": math.nan, "of_atoms": 0, "width": 0, "varies": 0}
    sizes = values if values.shape[-1] == 1 else np.linalg.norm(np.atleast_2d(values), axis=1)
    return {
        "value": float(sizes.mean()),
        "of_atoms": record.atom_values is not None,
        "width": values.shape[-1],
        "varies": bool(np.ptp(values) > 0),
    }


def _stress(record: Record) -> dict[str, float]:
    if record.stress is None:
        return {"pressure": math.nan, "max_stress": math.nan}
    return {"pressure": -float(np.trace(record.stress)) / 3.0, "max_stress": float(np.abs(record.stress).max())}
