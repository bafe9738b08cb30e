"""Units of labels: names in, factors to eV, Å, eV/Å and eV/Å³ out.  CODATA 2014, as ASE uses."""

from __future__ import annotations

from ase import units as _u

from ..errors import ConfigError, did_you_mean

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Ha": _u.Hartree,
    "mHa": 1e-3 * _u.Hartree,
    "Ry": _u.Rydberg,
    "kcal/mol": _u.kcal / _u.mol,
    "kJ/mol": _u.kJ / _u.mol,
    "J": _u.J,
}
LENGTH = {"A": 1.0, "bohr": _u.Bohr, "nm": 10.0, "pm": 0.01, "m": 1e10}
PRESSURE = {
    "eV/A^3": 1.0,
    "GPa": _u.GPa,
    "MPa": 1e-3 * _u.GPa,
    "kBar": 0.1 * _u.GPa,
    "bar": 1e-4 * _u.GPa,
    "Pa": _u.Pascal,
    "Ha/bohr^3": _u.Hartree / _u.Bohr**3,
    "Ry/bohr^3": _u.Rydberg / _u.Bohr**3,
}
# A stress given as its product with the volume, an energy: 'virial:eV', 'virial:Ha', ...
VIRIAL = "virial:"

_ALIASES = {
    "ev": "eV", "electronvolt": "eV", "mev": "meV", "ha": "Ha", "hartree": "Ha", "hartrees": "Ha", "eh": "Ha", "e_h": "Ha",
    "au": "Ha", "mha": "mHa", "ry": "Ry", "rydberg": "Ry", "kcal/mol": "kcal/mol", "kcal mol-1": "kcal/mol",
    "kcalmol": "kcal/mol", "kcal": "kcal/mol", "kj/mol": "kJ/mol", "kj": "kJ/mol", "j": "J",
    "a": "A", "å": "A", "ang": "A", "angstrom": "A", "angstroms": "A", "ångström": "A", "bohr": "bohr", "bohrs": "bohr",
    "a0": "bohr", "a_0": "bohr", "nm": "nm", "pm": "pm", "m": "m",
    "ev/a^3": "eV/A^3", "ev/å^3": "eV/A^3", "ev/å³": "eV/A^3", "ev/ang^3": "eV/A^3", "ev/angstrom^3": "eV/A^3", "ev/a3": "eV/A^3",
    "gpa": "GPa", "mpa": "MPa", "kbar": "kBar", "kb": "kBar", "bar": "bar", "pa": "Pa", "ha/bohr^3": "Ha/bohr^3",
    "hartree/bohr^3": "Ha/bohr^3", "ry/bohr^3": "Ry/bohr^3", "virial": "virial:eV",
}  # fmt: skip


def energy_unit(name: str) -> str:
    """The unit's usual name ('hartree' -> 'Ha').

    Raises:
        ConfigError: not an energy that is known.
    """
    return _known(name, ENERGY, "energy", "--energy-unit")


def length_unit(name: str) -> str:
    """The unit's usual name ('angstrom' -> 'A'); ConfigError where it is unknown."""
    return _known(name, LENGTH, "length", "--length-unit")


def forces_unit(name: str) -> str:
    """'ENERGY/LENGTH' in usual names ('hartree/bohr' -> 'Ha/bohr'); ConfigError where it is unknown."""
    energy, slash, length = str(name).rpartition("/")
    if not slash:
        raise ConfigError(f"unknown force unit {name!r}: give energy/length, such as --forces-unit Ha/bohr")
    return f"{_known(energy, ENERGY, 'energy', '--forces-unit')}/{_known(length, LENGTH, 'length', '--forces-unit')}"


def stress_unit(name: str) -> str:
    """The unit's usual name ('kbar' -> 'kBar', 'virial' -> 'virial:eV'); ConfigError where it is unknown."""
    energy = str(name)[len(VIRIAL) :] if str(name).lower().startswith(VIRIAL) else None
    if energy is not None:
        return VIRIAL + _known(energy, ENERGY, "energy", "--stress-unit")
    return _known(name, (*PRESSURE, VIRIAL + "eV"), "stress", "--stress-unit")


def force_factor(name: str) -> float:
    """eV/Å in one `name`, as `forces_unit` gives it."""
    energy, _, length = name.rpartition("/")
    return ENERGY[energy] / LENGTH[length]


def stress_factor(name: str, volume: float) -> float:
    """eV/Å³ in one `name`, as `stress_unit` gives it.

    Args:
        volume: of the cell, Å³, for the units of a virial.
    """
    return ENERGY[name[len(VIRIAL) :]] / volume if name.startswith(VIRIAL) else PRESSURE[name]


def _known(name: str, table, what: str, flag: str) -> str:
    text = str(name).strip()
    if text in table:
        return text
    plain = " ".join(text.lower().split()).replace("**", "^")
    found = _ALIASES.get(plain, plain)
    if found in table:
        return found
    raise ConfigError(f"unknown {what} unit {name!r:.40}{did_you_mean(text, table)}: {flag} takes {', '.join(table)}")
