"""Which names in a file mean an energy, forces, a stress, a charge, a spin: by the words in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_ENERGY_WORDS = {"energy", "energies", "etot", "toten", "u0"}
_ENERGY_NAMES = {"e", "e_tot", "e_total", "tot_e", "total_e", "e_dft", "dft_e", "ref_e", "e_ref"}
# An energy, but not the total energy that forces are the gradient of; or no energy at all.
_OTHER_ENERGIES = {
    "formation", "form", "adsorption", "ads", "binding", "bind", "interaction", "atomization", "atomisation", "cohesive",
    "cohesion", "relative", "rel", "delta", "hull", "excess", "mixing", "solvation", "strain", "dispersion", "disp",
    "correction", "kinetic", "nuclear", "repulsion", "zpve", "zpe", "zero", "gap", "homo", "lumo", "fermi", "band",
    "bandgap", "exfoliation", "surface", "reaction", "barrier", "activation", "separation", "per", "shift", "offset",
    "coulomb", "vdw", "xc", "exchange", "correlation", "core", "electronic_gap", "orbital", "charged", "ecoul", "d3", "d4",
}  # fmt: skip
_NOT_A_LABEL = {
    "unit", "units", "weight", "weights", "error", "err", "std", "sigma", "variance", "var", "uncertainty", "mae", "rmse",
    "key", "type", "name", "method", "converged", "mask", "source", "id", "index", "scale", "mean", "threshold", "tol",
    "cutoff", "drift", "max", "rms", "norm", "fmax", "density", "source_id", "spread",
}  # fmt: skip
_FORCES_WORDS = {"force", "forces", "frc", "gradient", "gradients", "grad", "f"}
_GRADIENT_WORDS = {"gradient", "gradients", "grad", "grads"}
_STRESS_WORDS = {"stress", "virial", "virials", "virialstress"}
_VIRIAL_WORDS = {"virial", "virials"}
_CHARGE_NAMES = ("charge", "total_charge", "tot_charge", "net_charge", "molecular_charge", "charge_total", "q_total")
_SPIN_NAMES = ("spin", "multiplicity", "spin_multiplicity", "mult", "spinmult")


def words(name: str) -> set[str]:
    """{'ref', 'forces'} for 'REF_forces', 'refForces' or 'ref.forces'."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name)
    return {word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word}


def plain(name: str) -> str:
    """'total_charge' for 'Total Charge'."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def energies(scalars: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(names that mean a total energy, names that mean another energy), in the order of the file."""
    total: list[str] = []
    other: list[str] = []
    for name, value in scalars.items():
        found = words(name)
        if found & _NOT_A_LABEL or not is_number(value):
            continue
        if found & _ENERGY_WORDS or plain(name) in _ENERGY_NAMES:
            (other if found & _OTHER_ENERGIES else total).append(name)
    return total, other


def forces(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names that mean forces or gradients."""
    return [
        name
        for name, value in arrays.items()
        if value.ndim == 2 and value.shape[1] == 3 and words(name) & _FORCES_WORDS and not words(name) & _NOT_A_LABEL
    ]


def stresses(scalars: Mapping[str, Any]) -> list[str]:
    """Names that mean a stress or a virial, of 6 or 9 numbers."""
    return [name for name, value in scalars.items() if is_stress(name) and size_of(value) in (6, 9)]


def is_stress(name: str) -> bool:
    """Whether the name means a stress or a virial."""
    return bool(words(name) & _STRESS_WORDS) and not words(name) & _NOT_A_LABEL


def charges(scalars: Mapping[str, Any]) -> list[str]:
    """Names that mean the total charge, with a number or with words."""
    return [name for name, value in scalars.items() if plain(name) in _CHARGE_NAMES and _is_said(value)]


def spins(scalars: Mapping[str, Any]) -> list[str]:
    """Names that mean the spin, with a number or with words."""
    return [name for name, value in scalars.items() if plain(name) in _SPIN_NAMES and _is_said(value)]


def _is_said(value: Any) -> bool:
    return is_number(value) or isinstance(value, str | bytes)


def is_gradient(name: str) -> bool:
    """Whether the name says +dE/dr."""
    return bool(words(name) & _GRADIENT_WORDS)


def is_virial(name: str) -> bool:
    """Whether the name says stress times volume."""
    return bool(words(name) & _VIRIAL_WORDS)


def of_same_level(energy: str, candidates: Iterable[str]) -> list[str]:
    """The candidates that share the words of `energy` that name its level of theory ('REF_energy' -> 'REF_forces')."""
    level = words(energy) - _ENERGY_WORDS - {"total", "free"}
    return [name for name in candidates if words(name) - _FORCES_WORDS - _GRADIENT_WORDS - _STRESS_WORDS == level]


def size_of(value: Any) -> int:
    """How many numbers a value holds; -1 of lists of several lengths."""
    try:
        return int(np.size(value))
    except ValueError:
        return -1


def is_number(value: Any) -> bool:
    """A real number, also as an array of one."""
    if isinstance(value, bool | np.bool_ | str | bytes) or value is None:
        return False
    if isinstance(value, int | float | np.integer | np.floating):
        return True
    return (
        isinstance(value, np.ndarray | list | tuple) and size_of(value) == 1 and np.asarray(value).dtype.kind in "fiu"
    )
