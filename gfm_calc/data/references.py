"""Reference energies: what an isolated atom of each element counts, fitted to total energies or given.

The fit is a weighted least squares in float64 on the training split alone: every structure is one equation, divided by its
number of atoms.  Equations are folded into a triangle as they come (QR), so memory does not grow and the condition number
is not squared as it is by normal equations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import chemical_symbols as SYMBOLS

from ..config import MAX_ATOMIC_NUMBER
from ..errors import ConfigError, InputFileError, one_line
from .schema import Record

_BLOCK = 2048  # equations folded in at a time
_LARGEST = 1e7  # eV; all electrons of the heaviest atoms have some 1.5e6
_NULL = 1e-9  # relative to the largest singular value: directions that the compositions leave open
MIN_STRUCTURES = 10
RIDGE = 1e-12


@dataclass(frozen=True, kw_only=True)
class ReferenceFit:
    """Reference energies and how well the data determine them.

    Attributes:
        energies: symbol -> eV, by atomic number.
        kind: "fitted" or "isolated-atom" (all of them given).
        structures: equations in the fit.
        rank: directions that the compositions determine; the fit is unique where it equals the number of fitted elements.
        condition_number: of the equations, the open directions left aside.
        regularised_condition_number: with the ridge; this is the one that the solution was computed with.
        ridge: relative to the largest singular value, squared.
        residual_rms: eV/atom, what the references leave.
        counts: symbol -> structures that hold the element.
        flagged: symbol -> why its value is weak.
    """

    energies: Mapping[str, float]
    kind: str
    structures: int
    rank: int
    condition_number: float
    regularised_condition_number: float
    ridge: float
    residual_rms: float
    counts: Mapping[str, int]
    flagged: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_unique(self) -> bool:
        """Whether the compositions determine every fitted value without the ridge."""
        return self.rank == len(self.energies)


class ReferenceFitter:
    """Collects equations, then solves.

    Args:
        known: symbol -> eV of elements that are not fitted (isolated-atom calculations at the same level of theory).
        base: symbol -> eV, reference energies of an existing head that the fit starts from ("foundation" mode): `add` then
            takes the energy that this head predicts, and what is fitted is the difference, which is pulled towards zero.
    """

    def __init__(self, *, known: Mapping[str, float] | None = None, base: Mapping[str, float] | None = None):
        self.known, self.base = _checked(known or {}, "known"), None if base is None else _checked(base, "base")
        self._rows = np.zeros((_BLOCK, MAX_ATOMIC_NUMBER + 2))
        self._filled = 0
        self._triangle = np.zeros((0, MAX_ATOMIC_NUMBER + 2))
        self._counts = np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.int64)
        self._structures = 0

    def add(self, atomic_numbers: np.ndarray, energy: float, predicted: float | None = None) -> None:
        """One more structure.

        Args:
            atomic_numbers: [n].
            energy: total energy, eV.
            predicted: in foundation mode, the energy that the existing head gives, eV.
        """
        self.add_counts(np.bincount(atomic_numbers, minlength=MAX_ATOMIC_NUMBER + 1), energy, predicted)

    def add_counts(self, count: np.ndarray, energy: float, predicted: float | None = None) -> None:
        """`add`, for a composition: count [119], atoms of each atomic number."""
        if (predicted is None) != (self.base is None):
            raise ConfigError("foundation mode needs the predicted energy of every structure, other modes need none")
        size = count.sum()
        row = self._rows[self._filled]
        row[:-1] = count / size
        row[-1] = (energy - (predicted or 0.0)) / size
        self._counts += count > 0
        self._filled += 1
        self._structures += 1
        if self._filled == _BLOCK:
            self._fold()

    def fit(self, *, ridge: float = RIDGE, min_structures: int = MIN_STRUCTURES) -> ReferenceFit:
        """Solve min |A x - e|² + ridge s² |x - c|², s the largest singular value of A.

        c is the mean energy per atom; in foundation mode, where x is the difference to the existing head, zero.

        Args:
            ridge: settles what the compositions leave open; `RIDGE` changes what they determine by less than it matters.
            min_structures: elements in fewer are flagged.

        Raises:
            InputFileError: no structure with an energy.
            ConfigError: in foundation mode, an element that the existing head does not have.
        """
        if not self._structures:
            raise InputFileError("no structure with an energy: reference energies cannot be fitted")
        self._fold()
        present = np.flatnonzero(self._counts)
        symbols = [SYMBOLS[z] for z in present]
        if self.base is not None:
            missing = [symbol for symbol in symbols if symbol not in self.base]
            if missing:
                raise ConfigError(f"the existing head has no reference energy for {', '.join(missing)}")
        fitted = [z for z in present if SYMBOLS[z] not in self.known]
        matrix = self._triangle[:, fitted]
        target = self._triangle[:, -1].copy()
        for symbol, energy in self.known.items():
            target -= self._triangle[:, NUMBER_OF[symbol]] * energy
        solution, system = _solve(matrix, target, ridge, centred=self.base is None)
        residual = target - matrix @ solution
        values = dict(zip((SYMBOLS[z] for z in fitted), solution.tolist())) | {
            s: e for s, e in self.known.items() if s in symbols
        }
        if self.base is not None:
            values = {symbol: self.base[symbol] + values[symbol] for symbol in values}
        return ReferenceFit(
            energies={symbol: values[symbol] for symbol in symbols},
            kind="fitted" if fitted else "isolated-atom",
            structures=self._structures,
            rank=system.rank + len(symbols) - len(fitted),
            condition_number=system.condition,
            regularised_condition_number=system.regularised,
            ridge=ridge,
            residual_rms=float(np.linalg.norm(residual)) / math.sqrt(self._structures),
            counts={symbol: int(self._counts[z]) for symbol, z in zip(symbols, present)},
            flagged=self._flags([SYMBOLS[z] for z in fitted], system, min_structures),
        )

    def _fold(self) -> None:
        """Reduce what came in to a triangle that has the same sums of squares."""
        stacked = np.vstack([self._triangle, self._rows[: self._filled]])
        self._triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
        self._filled = 0

    def _flags(self, fitted: list[str], system: _System, min_structures: int) -> dict[str, str]:
        flags = {}
        for symbol, openness in zip(fitted, system.openness):
            count = int(self._counts[NUMBER_OF[symbol]])
            if openness > 1e-6:
                others = [s for s in system.partners(fitted, symbol) if s != symbol]
                flags[symbol] = (
                    f"not determined singly: it only occurs in fixed proportion with {', '.join(others[:6])}"
                )
                if not others:
                    flags[symbol] = "not determined by the compositions"
            elif count < min_structures:
                flags[symbol] = f"in {count} structure{'s' * (count != 1)} only (fewer than {min_structures})"
        return flags


def fit_reference_energies(
    records: Iterable[Record],
    *,
    known: Mapping[str, float] | None = None,
    ridge: float = RIDGE,
    min_structures: int = MIN_STRUCTURES,
) -> ReferenceFit:
    """Fit to records (of the training split only); those without an energy are passed over.

    Args and raises: see `ReferenceFitter`.
    """
    fitter = ReferenceFitter(known=known)
    for record in records:
        if not math.isnan(record.energy):
            fitter.add(record.atomic_numbers, record.energy)
    return fitter.fit(ridge=ridge, min_structures=min_structures)


def read_reference_energies(path: Path) -> dict[str, float]:
    """symbol -> eV from a JSON file, either that table alone or a file that holds it as "energies".

    Raises:
        InputFileError: missing, or no such table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputFileError(f"{path}: cannot be read as JSON ({one_line(error)})") from error
    table = content.get("energies", content) if isinstance(content, dict) else content
    if not isinstance(table, dict) or not table:
        raise InputFileError(f"{path}: should hold {{symbol: eV}}")
    try:
        return _checked(table, "isolated-atom")
    except ConfigError as error:
        raise InputFileError(f"{path}: {error}") from error


def isolated_atoms(records: Iterable[Record]) -> dict[str, float]:
    """symbol -> eV of the neutral free atoms (`Record.is_free_atom`) among the records; of several spin states, the lowest."""
    found: dict[str, float] = {}
    for record in records:
        alone = record.is_free_atom and record.charge in (None, 0)
        if alone and not math.isnan(record.energy):
            symbol = SYMBOLS[int(record.atomic_numbers[0])]
            found[symbol] = min(record.energy, found.get(symbol, math.inf))
    return {symbol: found[symbol] for symbol in sorted(found, key=NUMBER_OF.__getitem__)}


@dataclass(frozen=True)
class _System:
    rank: int
    condition: float
    regularised: float
    openness: np.ndarray  # [elements], share of each in the directions that are left open
    null: np.ndarray  # [open directions, elements]

    def partners(self, symbols: list[str], symbol: str) -> list[str]:
        """Elements that share an open direction with `symbol`."""
        own = self.null[:, symbols.index(symbol)]
        shared = np.abs(self.null[np.abs(own) > 1e-3]).max(axis=0, initial=0.0)
        return [other for other, share in zip(symbols, shared) if share > 1e-3]


def _solve(matrix: np.ndarray, target: np.ndarray, ridge: float, *, centred: bool) -> tuple[np.ndarray, _System]:
    count = matrix.shape[1]
    if count == 0:
        return np.zeros(0), _System(0, 1.0, 1.0, np.zeros(0), np.zeros((0, 0)))
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    if len(singular) < count:  # fewer equations than elements
        missing = np.linalg.svd(matrix)[2][len(singular) :]
        left = np.hstack([left, np.zeros((len(left), count - len(singular)))])
        singular, right = np.append(singular, np.zeros(count - len(singular))), np.vstack([right, missing])
    rank = int((singular > _NULL * singular[0]).sum())
    # Every row sums to one over the elements, so a constant per atom lies in the row space: the mean is what is left.
    centre = np.zeros(count)
    if centred:
        ones = matrix.sum(axis=1)
        centre[:] = (ones @ target) / (ones @ ones) if (ones @ ones) > 0 else 0.0
    damping = ridge * singular[0] ** 2
    rest = left.T @ (target - matrix @ centre)
    solution = centre + right.T @ (singular / (singular**2 + damping) * rest)
    null = right[rank:]
    smallest = singular[rank - 1] if rank else singular[0]
    regularised = math.sqrt((singular[0] ** 2 + damping) / (singular[-1] ** 2 + damping))
    return solution, _System(rank, float(singular[0] / smallest), regularised, (null**2).sum(axis=0), null)


def _checked(energies: Mapping[str, float], what: str) -> dict[str, float]:
    for symbol, energy in energies.items():
        if NUMBER_OF.get(symbol, 0) < 1 or isinstance(energy, bool) or not isinstance(energy, int | float):
            raise ConfigError(f"{what} reference energy of {symbol!r} is {energy!r}: give symbol and eV")
        if not math.isfinite(energy):
            raise ConfigError(f"{what} reference energy of {symbol} is not finite")
        if abs(energy) > _LARGEST:
            raise ConfigError(f"{what} reference energy of {symbol} is {energy:.3g} eV: no atom has that")
    return {symbol: float(energy) for symbol, energy in energies.items()}
