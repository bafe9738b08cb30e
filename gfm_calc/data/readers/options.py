"""What a user says about a file that the file does not say itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import ConfigError, did_you_mean
from .. import units

NONE = "none"  # as a key: leave this label out


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to understand the labels of a file; None leaves it to what the file says.

    Attributes:
        energy_key, forces_key, stress_key, charge_key, spin_key, group_key: name of the label in the file; "none" leaves
            the label out.
        energy_unit, length_unit: "eV", "Ha", "kcal/mol", ...; "A", "bohr", "nm".
        forces_unit: "eV/A", "Ha/bohr", ...; by default energy unit over length unit.
        stress_unit: "eV/A^3", "GPa", "kBar", ..., or "virial:eV" for a stress times volume.
        stress_sign: "tension" or "compression": what a positive diagonal means.
        stress_order: of six components: "voigt" (xx yy zz yz xz xy) or "vasp" (xx yy zz xy yz zx).
        forces_are_gradients: the forces in the file are +dE/dr.
        energy_per_atom: the energy in the file is divided by the number of atoms.
        spin_convention: "multiplicity" (2S+1), "unpaired" (2S) or "S".
        property_key: name of a property of the structures or of their atoms, the one label that is read then; energies, forces
            and stress are left out unless their keys are given.
        charge, spin: for every frame of the file, where it holds none.
        group: for every frame of the file.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    charge_key: str | None = None
    spin_key: str | None = None
    group_key: str | None = None
    property_key: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    forces_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: str | None = None
    stress_order: str | None = None
    forces_are_gradients: bool | None = None
    energy_per_atom: bool = False
    spin_convention: str = "multiplicity"
    charge: int | None = None
    spin: int | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for name in ("energy_unit", "length_unit", "forces_unit", "stress_unit"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, getattr(units, name)(value))
        if self.property_key is not None:
            for name in ("energy_key", "forces_key", "stress_key"):
                object.__setattr__(self, name, getattr(self, name) or NONE)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} must be {' or '.join(allowed)}, not {value!r}{did_you_mean(value, allowed)}")


_CHOICES = {
    "stress_sign": ("tension", "compression"),
    "stress_order": ("voigt", "vasp"),
    "spin_convention": ("multiplicity", "unpaired", "S"),
}


@dataclass(frozen=True, kw_only=True)
class Units:
    """Units that a format or a file states; None where it states none.  `declared`: by the file itself."""

    energy: str | None = None
    length: str | None = None
    forces: str | None = None
    stress: str | None = None
    stress_sign: str = "tension"
    stress_order: str | None = None
    declared: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known of a published layout.

    Attributes:
        name: of the format.
        units: see `Units`.
        energy, forces, stress: the keys that may be the label; None: recognise by name.
        pairs: energy key -> the forces key of the same level of theory.
    """

    name: str
    units: Units = field(default_factory=Units)
    energy: tuple[str, ...] | None = None
    forces: tuple[str, ...] | None = None
    stress: tuple[str, ...] | None = None
    pairs: Mapping[str, str] = field(default_factory=dict)


ASE_UNITS = Units(energy="eV", length="A", stress="eV/A^3", stress_order="voigt")

DEFAULTS = ReadOptions()
