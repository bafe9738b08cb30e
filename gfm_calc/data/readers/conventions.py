"""How the labels of a frame are understood: which key, which unit, which sign.

Nothing is guessed: where names or units leave a choice, the error shows the option that makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from ...errors import InputFileError
from .. import units as unit_tables
from . import names
from .options import NONE, ReadOptions
from .raw import RawFrame

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


def kind_of(value: Any) -> str | int:
    """What a value may be a label of: a number that could not be written is none in one frame, and is in the next."""
    if names.is_number(value):
        return "number"
    return type(value).__name__ if isinstance(value, str | bytes) or value is None else names.size_of(value)


class Chooser:
    """Decides on a `Convention` from the names in one frame, and what kinds of values stand under them."""

    def __init__(self, raw: RawFrame, options: ReadOptions):
        self.raw, self.options, self.layout = raw, options, raw.layout

    def convention(self) -> Convention:
        """What was decided.

        Raises:
            InputFileError: a key or a unit that the frame leaves open; the message shows the option.
        """
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
                f"no total energy, but {listed(other)}: --energy-key {other[0]} takes that as the energy, --energy-key "
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
                f"no {key!r} (--{what}-key); there is {listed(list(where)) or 'nothing'}: label the frame, leave it out, or "
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
            self._refuse(f"{listed(keys)} are forces and gradients: choose with --forces-key {keys[0]}")
        return bool(signs and signs.pop())

    def _stress_unit(self, keys: tuple[str, ...], energy: str | None) -> str:
        if self.options.stress_unit:
            return self.options.stress_unit
        virials = {names.is_virial(key) for key in keys}
        if len(virials) > 1:
            self._refuse(f"{listed(keys)} may all be the stress: choose with --stress-key {keys[0]}")
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


def listed(keys: Iterable[Any]) -> str:
    """The keys in words, of many the first ones."""
    shown = [str(key)[:40] for key in keys]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
