"""Do forces and stresses belong to the energies?  Energy differences of close frames against the work of the forces.

For two frames of one system, E2 - E1 = -F·dr + V s:e with the means of forces F and stresses s of the two, up to third
order in the step.  The slope between the two sides is 1 where units, signs and keys are right; otherwise it tells which is
wrong.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from ase.units import Bohr, GPa, Hartree, kcal, kJ, mol

from .schema import Record

_MAX_STEP = 0.3  # Å, of any atom
_FAR_STEP = 0.45  # Å, between frames that are not neighbours in the file
_MAX_STRAIN = 0.06
_WINDOW = 4  # earlier frames that a frame is compared with
_RESERVOIR = 300
_ENOUGH = 4000  # pairs
_FEW = 20
_LEAST_WORK = 2e-3  # energy units; below, rounding decides
_LEAST_SHARE = 0.5  # of the work of the forces, for the stress: below, the error of the former decides
_TOLERANCE = 0.12  # relative, to recognise a factor
_CLEAR = 0.5  # spread of the slopes, relative: beyond, there is no verdict


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The median of (energy difference) / (work), and its spread (half the central 50 %), over `pairs` pairs.

    `close`: the pairs are neighbours in the file, so that a bad slope is not due to long steps; `recognised`: it is that
    of a known mistake.
    """

    pairs: int
    median: float = math.nan
    spread: float = math.nan
    verdict: str = ""
    per_atom: float = math.nan  # the same with the energy difference times the number of atoms
    per_atom_spread: float = math.nan
    close: bool = True
    recognised: bool = False

    @property
    def is_clear(self) -> bool:
        """Whether the slopes agree well enough to say something."""
        return self.pairs >= 5 and min(self.scatter, self.scatter_per_atom) < _CLEAR

    @property
    def is_right(self) -> bool:
        """Whether the slope is 1, within what the spread allows."""
        return self.is_clear and abs(self.median - 1.0) < max(_TOLERANCE, 1.5 * self.spread)

    @property
    def scatter(self) -> float:
        """The spread, relative."""
        return abs(self.spread / self.median) if self.median else math.inf

    @property
    def scatter_per_atom(self) -> float:
        """That of the slopes of energies per atom."""
        return abs(self.per_atom_spread / self.per_atom) if self.per_atom else math.inf


class ConsistencyCheck:
    """Collects the pairs of one file."""

    def __init__(self, seed: int = 0):
        self._recent: deque[Record] = deque(maxlen=_WINDOW)
        self._kept: list[Record] = []
        self._seen = 0
        self._random = np.random.default_rng(seed)
        self._forces: list[tuple[float, float, int]] = []
        self._stress: list[tuple[float, float, int]] = []
        self._curvature: list[float] = []
        self._close = True

    def add(self, record: Record) -> None:
        """One more frame; frames without energy and forces are passed over."""
        if math.isnan(record.energy) or record.forces is None or len(record) < 2:
            return
        if len(self._forces) < _ENOUGH:
            for other in self._recent:
                self._compare(other, record, _MAX_STEP)
        self._recent.append(record)
        self._seen += 1
        if len(self._kept) < _RESERVOIR:
            self._kept.append(record)
        elif (slot := int(self._random.integers(self._seen))) < _RESERVOIR:
            self._kept[slot] = record

    def forces(self, energies_are_ev: bool = False) -> Slope:
        """Of the forces; where the energies are known to be in eV, by their size, only the forces can be wrong."""
        self._pair_up_the_rest()
        known = tuple(
            (factor, text)
            for factor, text in _FORCE_FACTORS
            if not (energies_are_ev and text.startswith("the energies"))
        )
        return _judged(replace(_slope(self._forces), close=self._close), known, "forces")

    def stress(self) -> Slope:
        """Of the stress, the forces taken as they are."""
        return _judged(_slope(self._stress), _STRESS_FACTORS, "stress")

    def curvature(self) -> float:
        """Median change of force with displacement, in the units as read per Å² (bonds and crystals: 1 to 50 eV/Å²)."""
        return float(np.median(self._curvature)) if len(self._curvature) >= _FEW else math.nan

    def _pair_up_the_rest(self) -> None:
        """Where neighbours in the file are far apart (shuffled data), compare each kept frame with its nearest."""
        kept, self._kept = self._kept, []
        if len(self._forces) >= _FEW:
            return
        self._close = False
        groups: dict[bytes, list[Record]] = {}
        for record in kept:
            groups.setdefault(record.atomic_numbers.tobytes() + record.pbc.tobytes(), []).append(record)
        for records in groups.values():
            flat = np.stack([record.positions.ravel() for record in records])
            for k, record in enumerate(records):
                distance = np.abs(flat - flat[k]).max(axis=1)
                distance[k] = np.inf
                nearest = int(distance.argmin())
                if np.isfinite(distance[nearest]):
                    self._compare(records[nearest], record, _FAR_STEP)

    def _compare(self, one: Record, two: Record, limit: float) -> None:
        same = len(one) == len(two) and np.array_equal(one.atomic_numbers, two.atomic_numbers)
        if not same or not np.array_equal(one.pbc, two.pbc) or (one.charge, one.spin) != (two.charge, two.spin):
            return
        step = two.positions - one.positions
        strain = None
        if one.pbc.any():
            if not one.pbc.all():
                if not np.array_equal(one.cell, two.cell):
                    return
            strain = np.linalg.solve(one.cell, two.cell) - np.eye(3) if one.pbc.all() else np.zeros((3, 3))
            if np.abs(strain).max() > _MAX_STRAIN:
                return
            if one.pbc.all():
                fractional = (
                    np.linalg.solve(two.cell.T, two.positions.T).T - np.linalg.solve(one.cell.T, one.positions.T).T
                )
                step = (fractional - np.round(fractional)) @ (0.5 * (one.cell + two.cell))
            strain = 0.5 * (strain + strain.T)
        largest = float(np.abs(step).max())
        if largest > limit or one.forces is None or two.forces is None:
            return
        work = -float((0.5 * (one.forces + two.forces) * step).sum())
        change = two.energy - one.energy
        if strain is None or np.abs(strain).max() < 1e-7:
            self._note(self._forces, work, change, len(one))
            if largest > 1e-3:
                rise = np.linalg.norm(two.forces - one.forces) / np.linalg.norm(step)
                self._curvature.append(float(rise))
        elif one.stress is not None and two.stress is not None:
            volume = 0.5 * (abs(np.linalg.det(one.cell)) + abs(np.linalg.det(two.cell)))
            pressed = volume * float((0.5 * (one.stress + two.stress) * strain).sum())
            if abs(pressed) > _LEAST_SHARE * abs(work):
                self._note(self._stress, pressed, change - work, len(one))

    @staticmethod
    def _note(where: list[tuple[float, float, int]], work: float, change: float, count: int) -> None:
        if abs(work) > _LEAST_WORK:
            where.append((work, change, count))


def _slope(pairs: list[tuple[float, float, int]]) -> Slope:
    if not pairs:
        return Slope(pairs=0)
    work, change, count = np.array(pairs).T
    strong = np.abs(work) >= np.median(np.abs(work))  # the weaker half is noise first
    ratio, per_atom = change[strong] / work[strong], (change * count)[strong] / work[strong]
    low, middle, high = np.percentile(ratio, [25, 50, 75])
    low_per_atom, high_per_atom = np.percentile(per_atom, [25, 75])
    return Slope(
        pairs=len(pairs),
        median=float(middle),
        spread=float(high - low) / 2,
        per_atom=float(np.median(per_atom)),
        per_atom_spread=float(high_per_atom - low_per_atom) / 2,
    )


def _judged(found: Slope, factors: tuple[tuple[float, str], ...], what: str) -> Slope:
    """The slope with a sentence where it is clear: the nearest known mistake, and others that are as likely."""
    if not found.is_clear:
        return found
    verb = "belongs" if what == "stress" else "belong"
    if found.is_right:
        return replace(found, verdict=f"the {what} {verb} to the energies")
    likely: list[tuple[float, str]] = []
    if found.scatter < _CLEAR:
        likely = [(_distance(found.median / factor), meaning) for factor, meaning in factors]
        likely = [(far, meaning) for far, meaning in likely if far < max(_TOLERANCE, 1.2 * found.scatter)]
    far = _distance(found.per_atom)
    if far < max(_TOLERANCE, found.scatter_per_atom) and found.scatter_per_atom < 1.2 * found.scatter:
        likely.append((far, "the energies look like energies per atom: --energy-per-atom"))
    if likely:
        limit = 2.0 * min(likely)[0] + 0.5 * found.scatter
        meanings = [meaning for far, meaning in sorted(likely) if far < limit]
        return replace(found, verdict="; or ".join(meanings[:3]), recognised=True)
    return replace(found, verdict=f"the {what} do{'es' * (what == 'stress')} not belong to the energies")


def _distance(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf


_KCAL, _KJ = kcal / mol, kJ / mol
_FORCE_FACTORS = (
    (-1.0, "the forces look like gradients (wrong sign): --forces-are-gradients"),
    (Hartree / Bohr, "the forces look like Ha/bohr beside energies in eV: --forces-unit Ha/bohr"),
    (Hartree, "the forces look like Ha/Å beside energies in eV: --forces-unit Ha/A"),
    (1.0 / Hartree, "the energies look like Ha beside forces in eV/Å: --energy-unit Ha --forces-unit eV/A"),
    (1.0 / Bohr, "the forces look like energies per bohr: --forces-unit .../bohr"),
    (Bohr, "the positions look like bohr, or the forces were divided by Å twice: --length-unit bohr"),
    (1.0 / _KCAL, "the energies look like kcal/mol beside forces in eV/Å: --energy-unit kcal/mol --forces-unit eV/A"),
    (_KCAL, "the forces look like kcal/mol/Å beside energies in eV: --forces-unit kcal/mol/A"),
    (_KJ, "the forces look like kJ/mol/Å beside energies in eV: --forces-unit kJ/mol/A"),
    (0.5 * Hartree / Bohr, "the forces look like Ry/bohr beside energies in eV: --forces-unit Ry/bohr"),
    (0.5 * Hartree, "the forces look like Ry/Å beside energies in eV: --forces-unit Ry/A"),
    (2.0 / Hartree, "the energies look like Ry beside forces in eV/Å: --energy-unit Ry --forces-unit eV/A"),
    (1.0 / _KJ, "the energies look like kJ/mol beside forces in eV/Å: --energy-unit kJ/mol --forces-unit eV/A"),
    (0.1, "the forces look like energies per nm: --forces-unit .../nm"),
    (0.5, "the forces look doubled, or the energies like Ry beside forces in Ha"),
    (2.0, "the energies look doubled, or the forces like Ry beside energies in Ha"),
)
_STRESS_FACTORS = (
    (-1.0, "the stress is positive in compression: --stress-sign compression"),
    (GPa, "the stress looks like GPa: --stress-unit GPa --stress-sign tension"),
    (-GPa, "the stress looks like GPa, positive in compression: --stress-unit GPa --stress-sign compression"),
    (0.1 * GPa, "the stress looks like kBar: --stress-unit kBar --stress-sign tension"),
    (-0.1 * GPa, "the stress looks like kBar, positive in compression: --stress-unit kBar --stress-sign compression"),
)
