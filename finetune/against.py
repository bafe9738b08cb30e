"""The labels of a file against the heads that the model has: units, signs and levels that no file can tell by itself.

Heads of other levels of theory give forces, and differences of energies within a composition, that are alike: the slope of the
labels on them is about 1.  Another slope with a high correlation is that of a unit or a sign.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gfm_calc.config import HeadSpec
from gfm_calc.data import units
from gfm_calc.data.findings import Finding
from gfm_calc.data.fingerprints import describe_all
from gfm_calc.data.inspection import FileInspection
from gfm_calc.data.mixtures import two_levels
from gfm_calc.data.schema import Record
from gfm_calc.finetune.nearest import predictions, spread
from gfm_calc.model import GFMModel, Prediction

_ATOMS, _STRUCTURES = 2000, 80  # of a file, at most
_FEW = 8  # structures, or differences of energies; fewer tell nothing
_ALIKE = {"forces": 0.9, "energies": 0.9, "stress": 0.85}  # least correlation that tells
# Slopes that another level of theory, or a head far from its data, may have.
_SOUND = {"forces": (0.25, 4.0), "energies": (0.1, 10.0), "stress": (0.15, 7.0)}
_ENOUGH, _SAME = 16, 0.9  # structures of a composition to tell levels by; share of them on which two heads agree
_NEAR = 0.35  # of the logarithm of a slope, to recognise a unit
_OR = 0.15  # more than the nearest, to be named as well
_LENGTHS = ("A", "bohr", "nm")
_ENERGIES = ("eV", "Ha", "Ry", "kcal/mol", "kJ/mol", "meV")
Pair = tuple[Record, Prediction]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Labels on a head's answers: `slope` through the origin, `correlation`, over `structures`."""

    slope: float
    correlation: float
    structures: int


def against_heads(model: GFMModel, file: FileInspection) -> list[Finding]:
    """What the old heads say of a file's labels; [] where none has seen its elements, or there are too few structures."""
    records = (
        spread([record for record in file.sample if not record.is_free_atom], _ATOMS, _STRUCTURES)
        if file.sample
        else []
    )
    numbers = np.flatnonzero(file.statistics.element_atoms)
    heads = [head for head in model.energy_heads if _can_judge(model.specs[head], numbers, records)]
    if len(records) < _FEW or not heads:
        return []
    rows = list(predictions(model, heads, records))
    found = []
    for what, code, pairs_of, table in _CHECKS:
        found += _judged(file, rows, heads, what, code, pairs_of, table(_taken(file)))
    if not {"mixed-levels", "mixed-energy-kinds"} & {finding.code for finding in file.findings}:
        found += _levels(file, rows, heads)
    return found


def _can_judge(spec: HeadSpec, numbers: np.ndarray, records: Sequence[Record]) -> bool:
    """Whether a head has seen such elements and boundary conditions."""
    kinds = {"bulk" if record.pbc.any() else "molecule" for record in records}
    return not spec.unseen(numbers) and not kinds.isdisjoint(spec.periodicity or kinds)


def _taken(file: FileInspection) -> set[str | None]:
    """Units that the labels were taken to be in."""
    return {
        unit
        for convention in file.conventions
        for unit in (convention.energy_unit, convention.forces_unit, convention.stress_unit)
    }


def _judged(
    file: FileInspection, rows: Sequence[tuple[Record, Mapping[str, Prediction]]], heads: Sequence[str], what: str, code: str,
    pairs_of: Callable[[Sequence[Pair]], list[tuple[np.ndarray, np.ndarray]]], table: Mapping[str, float],
) -> list[Finding]:  # fmt: skip
    """A finding where the labels are like those of a head, times something else than 1."""
    likeness = {head: _likeness(pairs_of([(record, row[head]) for record, row in rows])) for head in heads}
    telling = {
        head: one for head, one in likeness.items() if one.structures >= _FEW and abs(one.correlation) >= _ALIKE[what]
    }
    # One head alone may be wrong where there is little to be right about, as in a diatomic molecule.
    if len(telling) < min(2, len(heads)) or any(
        _SOUND[what][0] < one.slope < _SOUND[what][1] for one in telling.values()
    ):
        return []
    nearest = max(telling, key=lambda head: abs(telling[head].correlation))
    best = telling[nearest]
    text = (
        f"{file.path}: the {what} {'is' if what == 'stress' else 'are'} {best.slope:.3g} times what head {nearest} says "
        f"(correlation {best.correlation:.2f}, {best.structures} structures): {_named(best.slope, what, table)}"
    )
    return [Finding(level="error", code=code, text=text)]


def _named(slope: float, what: str, table: Mapping[str, float]) -> str:
    """The units and the sign that make such a slope, and the options that mend it."""
    if slope < 0 and _SOUND[what][0] < -slope < _SOUND[what][1]:
        return _SIGNS[what]
    far = {name: abs(np.log(abs(slope) / factor)) for name, factor in table.items()}
    near = [name for name in sorted(far, key=far.__getitem__) if far[name] < min(_NEAR, min(far.values()) + _OR)]
    sign = f"{_SIGNS[what]}, and " if slope < 0 else ""
    return sign + (f"as if {' or '.join(near[:3])}" if near else "in an unknown unit, or another quantity")


_SIGNS = {
    "forces": "they look like gradients (wrong sign): --forces-are-gradients",
    "energies": "they have the wrong sign: are they binding energies, or negated? write energies that fall as atoms bind",
    "stress": "it is positive in compression: --stress-unit eV/A^3 --stress-sign compression",
}


def _likeness(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Likeness:
    """Of (label, answer) pairs, one a structure."""
    if not pairs:
        return Likeness(slope=1.0, correlation=0.0, structures=0)
    label, answer = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    both, squares = float(label @ answer), float(answer @ answer)
    size = float(np.sqrt(squares * float(label @ label)))
    if not size > 0:
        return Likeness(slope=1.0, correlation=0.0, structures=len(pairs))
    return Likeness(slope=both / squares, correlation=both / size, structures=len(pairs))


def _forces(rows: Sequence[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(r.forces, one.forces.numpy()) for r, one in rows if r.forces is not None and one.forces is not None]


def _stresses(rows: Sequence[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (record.stress, one.stress[0].numpy())
        for record, one in rows
        if record.stress is not None and record.pbc.all() and one.stress is not None
    ]


def _energies(rows: Sequence[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Differences to the mean of the composition; one less than there are structures of it counts."""
    found = []
    for own in _by_composition(rows).values():
        label, answer = np.array([[rows[k][0].energy, _energy(rows[k][1])] for k in own]).T
        differences = list(zip(label - label.mean(), answer - answer.mean()))
        found += [(np.array([one]), np.array([two])) for one, two in differences] if len(own) > 2 else []
    return found


def _energy(answer: Prediction) -> float:
    assert answer.energy is not None
    return float(answer.energy.item())


def _by_composition(rows: Sequence[Pair]) -> dict[tuple[object, ...], list[int]]:
    """Rows with energies, by composition, periodicity, charge and spin."""
    found: dict[tuple[object, ...], list[int]] = {}
    for k, (record, _) in enumerate(rows):
        if np.isfinite(record.energy):
            kind = (np.bincount(record.atomic_numbers).tobytes(), record.pbc.tobytes(), record.charge, record.spin)
            found.setdefault(kind, []).append(k)
    return found


def _levels(
    file: FileInspection, rows: Sequence[tuple[Record, Mapping[str, Prediction]]], heads: Sequence[str]
) -> list[Finding]:  # fmt: skip
    """Two levels of energies within a composition, when what heads know of the geometry is taken off, by several of them."""
    for own in _by_composition([(record, row[heads[0]]) for record, row in rows]).values():
        if len(own) < _ENOUGH:
            continue
        records = [rows[k][0] for k in own]
        features = np.array([one.values for one in describe_all(records)])
        label = np.array([record.energy for record in records])
        rests = [label - [_energy(rows[k][1][head]) for k in own] for head in heads]
        found = [(rest, upper) for rest in rests if (upper := two_levels(rest, features)) is not None]
        rest, upper = max(found, key=lambda one: _agreeing(one[1], found), default=(label, None))
        if upper is not None and _agreeing(upper, found) >= min(len(heads), max(2, len(heads) // 4)):
            apart = float(np.median(rest[upper]) - np.median(rest[~upper]))
            frames = tuple(sorted(record.frame for record, high in zip(records, upper) if high))
            text = (
                f"{file.path}: energies of {records[0].structure().get_chemical_formula()} lie on two levels {apart:.3g} eV "
                "apart, which the geometries do not explain: two levels of theory or kinds of energy; give each a file and a "
                "head"
            )
            return [Finding(level="error", code="mixed-levels", text=text, frames=frames, num_frames=len(frames))]
    return []


def _agreeing(upper: np.ndarray, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """How many heads see the same two levels."""
    return sum((upper == other).mean() > _SAME for _, other in found)


def _table(factors: Mapping[str, float], flag: str, taken: Collection[str | None]) -> dict[str, float]:
    """What numbers in a unit look like where they are taken for eV and Å: text -> factor; and the other way round."""
    found = {f"in {name}: {flag} {name}": 1.0 / factor for name, factor in factors.items() if factor != 1.0}
    wrong = {
        f"in eV and Å, but read as {name}": factor
        for name, factor in factors.items()
        if factor != 1.0 and name in taken
    }
    return found | wrong


def _force_units(taken: Collection[str | None]) -> dict[str, float]:
    names = [f"{energy}/{length}" for energy in _ENERGIES for length in _LENGTHS]
    return _table({name: units.force_factor(name) for name in names}, "--forces-unit", taken)


def _energy_units(taken: Collection[str | None]) -> dict[str, float]:
    return _table({name: units.ENERGY[name] for name in _ENERGIES}, "--energy-unit", taken)


def _stress_units(taken: Collection[str | None]) -> dict[str, float]:
    return _table(
        {name: units.PRESSURE[name] for name in ("GPa", "kBar")}, "--stress-sign tension --stress-unit", taken
    )


_CHECKS = (
    ("forces", "forces-unit", _forces, _force_units),
    ("energies", "energy-unit", _energies, _energy_units),
    ("stress", "stress-unit", _stresses, _stress_units),
)
