"""From the frame as the file has it to a `Record`: which key, which unit, which sign.

Nothing is guessed: where names or units leave a choice, the error shows the option that makes it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from ...errors import InputFileError, InvalidStructureError
from .. import units as unit_tables
from ..schema import Record, checked
from . import names
from .options import DEFAULTS, NONE, ReadOptions
from .raw import RawFrame, floats_from

_SAME = 1e-9  # relative: two labels under two names that agree are one label
_ATOMIC_UNITS = ("Ha", "mHa", "Ry")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How the labels of a frame were understood: the keys (candidates, where several agree) and the units."""

    energy_keys: tuple[str, ...] = ()
    forces_keys: tuple[str, ...] = ()
    stress_keys: tuple[str, ...] = ()
    charge_keys: tuple[str, ...] = ()
    spin_keys: tuple[str, ...] = ()
    group_key: str | None = None
    property_key: str | None = None
    energy_unit: str | None = None
    length_unit: str = "A"
    forces_unit: str | None = None
    gradients: bool = False
    stress_unit: str | None = None
    stress_sign: str = "tension"

    @property
    def keys(self) -> set[str]:
        """Every key that is used."""
        single = {key for key in (self.group_key, self.property_key) if key is not None}
        return {*self.energy_keys, *self.forces_keys, *self.stress_keys, *self.charge_keys, *self.spin_keys} | single


class Labeller:
    """Turns the raw frames of one file into records.

    Args:
        options: what the user says about the file.

    Attributes: `conventions`: how many frames were understood in which way.
    """

    def __init__(self, options: ReadOptions = DEFAULTS):
        self.options = options
        self.conventions: Counter[Convention] = Counter()
        self._known: dict[tuple, Convention] = {}

    def record(self, raw: RawFrame) -> Record:
        """The record of one frame.

        Raises:
            InputFileError: a key or a unit that the file leaves open; the message shows the option.
            InvalidStructureError: an unsound structure or label.
        """
        convention = self.convention(raw)
        record = _apply(convention, raw, self.options)
        self.conventions[convention] += 1
        return record

    def convention(self, raw: RawFrame) -> Convention:
        """How the labels of a frame are understood; raises InputFileError as `record`."""
        kinds = tuple((key, _kind(value)) for key, value in raw.scalars.items())
        signature = (kinds, tuple(raw.arrays), id(raw.layout))
        convention = self._known.get(signature)
        if convention is None:
            convention = _Chooser(raw, self.options).convention()
            self._known[signature] = convention
        return convention


def _kind(value: Any) -> str | int:
    """What a value may be a label of: a number that could not be written is none in one frame, and is in the next."""
    if names.is_number(value):
        return "number"
    return type(value).__name__ if isinstance(value, str | bytes) or value is None else int(np.size(value))


class _Chooser:
    """Decides on a `Convention` from the names in one frame, and what kinds of values stand under them."""

    def __init__(self, raw: RawFrame, options: ReadOptions):
        self.raw, self.options, self.layout = raw, options, raw.layout

    def convention(self) -> Convention:
        energy = self._energy_keys()
        forces = self._forces_keys(energy)
        stress = self._stress_keys(energy)
        energy_unit = self._energy_unit() if energy else None
        length_unit = self._length_unit()
        return Convention(
            energy_keys=energy,
            forces_keys=forces,
            stress_keys=stress,
            charge_keys=self._numbers("charge", self.options.charge_key, names.charges(self.raw.scalars)),
            spin_keys=self._numbers("spin", self.options.spin_key, names.spins(self.raw.scalars)),
            group_key=self._group_key(),
            property_key=self._property_key(),
            energy_unit=energy_unit,
            length_unit=length_unit,
            forces_unit=self._forces_unit(energy_unit, length_unit) if forces else None,
            gradients=self._gradients(forces),
            stress_unit=self._stress_unit(stress, energy_unit) if stress else None,
            stress_sign=self._stress_sign(stress) if stress else "tension",
        )

    # ---- keys ----

    def _energy_keys(self) -> tuple[str, ...]:
        scalars = self.raw.scalars
        if self.options.energy_key is not None:
            return self._named("energy", self.options.energy_key, scalars)
        if self.layout.energy is not None:
            return tuple(key for key in self.layout.energy if scalars.get(key) is not None)
        total, other = names.energies(scalars)
        if other and not total:
            self._refuse(
                f"no total energy, but {_listed(other)}: --energy-key {other[0]} takes that as the energy, --energy-key "
                "none leaves energies out"
            )
        return tuple(total)

    def _forces_keys(self, energy: tuple[str, ...]) -> tuple[str, ...]:
        arrays = self.raw.arrays
        if self.options.forces_key is not None:
            return self._named("forces", self.options.forces_key, arrays)
        if len(energy) == 1 and self.layout.pairs.get(energy[0]) in arrays:
            return (self.layout.pairs[energy[0]],)
        if self.layout.forces is not None:
            return tuple(key for key in self.layout.forces if key in arrays)
        return self._narrowed(energy, names.forces(arrays))

    def _stress_keys(self, energy: tuple[str, ...]) -> tuple[str, ...]:
        scalars = self.raw.scalars
        if self.options.stress_key is not None:
            return self._named("stress", self.options.stress_key, scalars)
        if self.layout.stress is not None:
            return tuple(key for key in self.layout.stress if scalars.get(key) is not None)
        return self._narrowed(energy, names.stresses(scalars))

    @staticmethod
    def _narrowed(energy: tuple[str, ...], found: list[str]) -> tuple[str, ...]:
        paired = names.of_same_level(energy[0], found) if len(energy) == 1 and len(found) > 1 else []
        return tuple(paired or found)

    def _group_key(self) -> str | None:
        if self.options.group is not None:
            return None
        if self.options.group_key is not None:
            named = self._named("group", self.options.group_key, self.raw.scalars)
            return named[0] if named else None
        return "group" if "group" in self.raw.scalars else None

    def _property_key(self) -> str | None:
        key = self.options.property_key
        if key is not None:
            self._named("property", key, {**self.raw.scalars, **self.raw.arrays})
        return key

    def _numbers(self, what: str, given: str | None, found: list[str]) -> tuple[str, ...]:
        if given is not None:
            return self._named(what, given, self.raw.scalars)
        for key in found:
            if not names.is_number(self.raw.scalars[key]):
                self._refuse(
                    f"{key} is {self.raw.scalars[key]!r:.40}, no number: mend it, or leave it out (--{what}-key none)"
                )
        return tuple(found)

    def _named(self, what: str, key: str, where: Any) -> tuple[str, ...]:
        if key == NONE:
            return ()
        if key not in where:
            self._refuse(
                f"no {key!r} (--{what}-key); there is {_listed(list(where)) or 'nothing'}: label the frame, leave it out, or "
                "choose another name"
            )
        return (key,)

    # ---- units ----

    def _energy_unit(self) -> str:
        given, known = self.options.energy_unit, self.layout.units
        if given and known.declared and known.energy and given != known.energy:
            self._refuse(f"the file says that its energies are in {known.energy}, --energy-unit says {given}")
        unit = given or known.energy
        if unit is None:
            lengths = (
                "" if self.options.length_unit or known.length else "; and --length-unit (A, bohr, nm) of the positions"
            )
            self._refuse(
                f"nothing says what unit the energies have: give --energy-unit (eV, Ha, kcal/mol, kJ/mol, ...){lengths}"
            )
        return unit

    def _length_unit(self) -> str:
        unit = self.options.length_unit or self.layout.units.length
        if unit is None:
            self._refuse("nothing says what unit the positions have: give --length-unit (A, bohr, nm)")
        return unit

    def _forces_unit(self, energy: str | None, length: str) -> str:
        given, known = self.options.forces_unit, self.layout.units
        if given:
            return given
        if known.forces and not (self.options.energy_unit and not known.declared):
            return known.forces
        energy = energy or self.options.energy_unit or known.energy
        if energy is None:
            self._refuse("nothing says what unit the forces have: give --forces-unit (eV/A, Ha/bohr, ...)")
        if energy in _ATOMIC_UNITS and length == "A" and self.options.energy_unit:
            self._refuse(
                f"energies in {energy} and positions in Å leave two units for the forces: give --forces-unit {energy}/bohr "
                f"or {energy}/A, or --forces-key none"
            )
        return f"{energy}/{length}"

    def _gradients(self, keys: tuple[str, ...]) -> bool:
        if self.options.forces_are_gradients is not None:
            return self.options.forces_are_gradients
        signs = {names.is_gradient(key) for key in keys}
        if len(signs) > 1:
            self._refuse(f"{_listed(keys)} are forces and gradients: choose with --forces-key {keys[0]}")
        return bool(signs and signs.pop())

    def _stress_unit(self, keys: tuple[str, ...], energy: str | None) -> str:
        if self.options.stress_unit:
            return self.options.stress_unit
        virials = {names.is_virial(key) for key in keys}
        if len(virials) > 1:
            self._refuse(f"{_listed(keys)} may all be the stress: choose with --stress-key {keys[0]}")
        if virials.pop():
            return f"{unit_tables.VIRIAL}{energy or 'eV'}"
        if self.layout.units.stress is None or self.options.energy_unit not in (None, self.layout.units.energy):
            self._refuse(
                "nothing says what unit the stress has: give --stress-unit (eV/A^3, GPa, kBar, virial:eV), or "
                "--stress-key none to leave it out"
            )
        return self.layout.units.stress

    def _stress_sign(self, keys: tuple[str, ...]) -> str:
        if self.options.stress_sign:
            return self.options.stress_sign
        if self.options.stress_unit is None and names.is_virial(keys[0]):
            return "compression"  # W = -V sigma, as in QUIP and VASP
        if self.options.stress_unit not in (None, self.layout.units.stress):
            self._refuse("--stress-unit needs --stress-sign tension (ASE, QE's sigma) or compression (VASP, pressure)")
        return self.layout.units.stress_sign

    def _refuse(self, reason: str) -> NoReturn:
        raise InputFileError(f"{self.raw.path}, frame {self.raw.frame}: {reason}")


# ---- numbers ----


def _apply(convention: Convention, raw: RawFrame, options: ReadOptions) -> Record:
    count = len(raw.atomic_numbers)
    scale = unit_tables.LENGTH[convention.length_unit]
    energy = _energy(convention, raw, options)
    forces = _forces(convention, raw, count)
    # Multiplying by 1.0 is exact, but copies.
    positions = raw.positions if scale == 1.0 else raw.positions * scale
    cell = raw.cell if scale == 1.0 else raw.cell * scale
    charge, spin = _charge(convention, raw, options), _spin(convention, raw, options)
    record = Record(
        atomic_numbers=raw.atomic_numbers,
        positions=positions,
        cell=cell,
        pbc=raw.pbc,
        energy=math.nan if energy is None else energy,
        forces=forces,
        stress=_stress(convention, raw, options, cell),
        **_property(convention, raw, count),
        charge=charge,
        spin=spin,
        group=_group(convention, raw, options),
        source=raw.source,
        frame=raw.frame,
    )
    return checked(record, energy_given=energy is not None, source=raw.path)


def _energy(convention: Convention, raw: RawFrame, options: ReadOptions) -> float | None:
    if not convention.energy_keys:
        return None
    value = _agreed("energy", convention.energy_keys, raw.scalars, (), raw)
    factor = unit_tables.ENERGY[convention.energy_unit]
    energy = float(value) if factor == 1.0 else float(value) * factor
    return energy * len(raw.atomic_numbers) if options.energy_per_atom else energy


def _forces(convention: Convention, raw: RawFrame, count: int) -> np.ndarray | None:
    if not convention.forces_keys:
        return None
    value = _agreed("forces", convention.forces_keys, raw.arrays, (count, 3), raw)
    factor = unit_tables.force_factor(str(convention.forces_unit)) * (-1.0 if convention.gradients else 1.0)
    return value if factor == 1.0 else value * factor


def _stress(convention: Convention, raw: RawFrame, options: ReadOptions, cell: np.ndarray) -> np.ndarray | None:
    if not convention.stress_keys:
        return None
    key = convention.stress_keys[0]
    size = np.size(raw.scalars[key])
    shape = (6,) if size == 6 else (3, 3)
    value = _agreed("stress", convention.stress_keys, raw.scalars, shape, raw)
    if shape == (6,):
        value = _from_six(value, options.stress_order or raw.layout.units.stress_order, raw)
    if not raw.pbc.any() and not np.any(value):
        return None  # writers fill in zeros for molecules
    unit, volume = str(convention.stress_unit), abs(float(np.linalg.det(cell)))
    if unit.startswith(unit_tables.VIRIAL) and volume == 0:
        raise InvalidStructureError(
            f"{key} is a virial, but the cell has no volume: set the cell, or --stress-key none",
            source=raw.path,
            frame=raw.frame,
        )
    factor = unit_tables.stress_factor(unit, volume)
    factor *= -1.0 if convention.stress_sign == "compression" else 1.0
    return value if factor == 1.0 else value * factor


def _property(convention: Convention, raw: RawFrame, count: int) -> dict[str, np.ndarray]:
    """The label of a property head: {"value": [k]} of the structure, or {"atom_values": [n, k]}; k is 1 or 3."""
    key = convention.property_key
    if key is None:
        return {}
    of_atoms = key in raw.arrays
    value = np.asarray(raw.arrays[key] if of_atoms else raw.scalars[key])
    value = value.astype(np.float64) if value.dtype.kind == "b" else value
    shape = (count,) if of_atoms else ()
    if (value.size == 3 * count and of_atoms) or (value.size == 3 and not of_atoms):
        return {"atom_values" if of_atoms else "value": floats_from(value, (*shape, 3), key, raw.path, raw.frame)}
    return {"atom_values" if of_atoms else "value": floats_from(value, (*shape, 1), key, raw.path, raw.frame)}


def _from_six(value: np.ndarray, order: str | None, raw: RawFrame) -> np.ndarray:
    if order is None and np.any(value[3:]):
        raise InputFileError(
            f"{raw.path}, frame {raw.frame}: the stress has six components and nothing says in which order: give "
            "--stress-order voigt (xx yy zz yz xz xy) or vasp (xx yy zz xy yz zx)"
        )
    if order == "vasp":
        value = value[[0, 1, 2, 4, 5, 3]]
    return voigt_6_to_full_3x3_stress(value)


def _agreed(what: str, keys: tuple[str, ...], where: Any, shape: tuple[int, ...], raw: RawFrame) -> np.ndarray:
    """The value under the first key, if those under the others are the same."""
    first = floats_from(where[keys[0]], shape, keys[0], raw.path, raw.frame)
    for key in keys[1:]:
        other = floats_from(where[key], shape, key, raw.path, raw.frame)
        if not np.allclose(first, other, rtol=_SAME, atol=0.0, equal_nan=True):
            shown = ", ".join(f"{k} {float(np.asarray(where[k]).reshape(-1)[0]):.8g}" for k in keys)
            hint = "; forces belong to free_energy" if "free_energy" in keys else ""
            raise InputFileError(
                f"{raw.path}, frame {raw.frame}: several keys may be the {what} and differ ({shown}{hint}): choose with "
                f"--{what}-key {keys[0]} or {key}"
            )
    return first


def _charge(convention: Convention, raw: RawFrame, options: ReadOptions) -> Any:
    return _said("charge", convention.charge_keys, raw) if convention.charge_keys else options.charge


def _spin(convention: Convention, raw: RawFrame, options: ReadOptions) -> Any:
    if not convention.spin_keys:
        return options.spin
    value = _said("spin", convention.spin_keys, raw)
    if options.spin_convention == "multiplicity" or not names.is_number(value):
        return value
    unpaired = float(np.asarray(value).reshape(())) * (2 if options.spin_convention == "S" else 1)
    return unpaired + 1


def _said(what: str, keys: tuple[str, ...], raw: RawFrame) -> Any:
    """The value under the first key; InputFileError where those under the others are not the same number."""
    if len(keys) > 1 and len({float(np.asarray(raw.scalars[key]).reshape(())) for key in keys}) > 1:
        reason = f"{_listed(keys)} may all be the {what} and differ: choose with --{what}-key {keys[0]}"
        raise InputFileError(f"{raw.path}, frame {raw.frame}: {reason}")
    return raw.scalars[keys[0]]


def _group(convention: Convention, raw: RawFrame, options: ReadOptions) -> str:
    if options.group is not None:
        return options.group
    return str(raw.scalars[convention.group_key]) if convention.group_key is not None else raw.group


def _listed(keys) -> str:
    shown = [str(key)[:40] for key in keys]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
