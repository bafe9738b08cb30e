"""What the size of numbers says about their unit and kind: total, atomisation, relative or formation energies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase.units import GPa, Hartree, kcal, kJ, mol

_PER_EV = {"Ha": 1 / Hartree, "Ry": 2 / Hartree, "kcal/mol": mol / kcal, "kJ/mol": mol / kJ, "meV": 1000.0}
_DENSE = 100.0  # Å³ per atom; beyond, there is vacuum in the cell
_LEAST_VOLUME_CHANGE = 5e-3  # relative, root mean square
_STRENGTH = -0.35  # eV/Å³
_BAND = (0.85, 1.15)  # of the ratio to the all-electron energy


def all_electron_energy(atomic_numbers: np.ndarray) -> np.ndarray:
    """Energy of neutral atoms in eV, good to some per cent.

    Source: Schwinger, Phys. Rev. A 24, 2353 (1981), DOI 10.1103/PhysRevA.24.2353; hydrogen and helium exact.
    """
    z = np.asarray(atomic_numbers, dtype=np.float64)
    energy = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)
    return np.where(z == 1, -0.5, np.where(z == 2, -2.9037, energy)) * Hartree


@dataclass(frozen=True, kw_only=True)
class EnergyKind:
    """What the energies seem to be.

    Attributes: `kind`: "all-electron total", "valence total", "cohesive", "relative", "formation" or "unclear";
    `reason`: why; `unit`: the unit that is suspected where it is not eV, or None; `ratio`: to the all-electron energy;
    `is_sure`: of the unit, because nothing else gives such numbers.
    """

    kind: str
    reason: str
    unit: str | None = None
    ratio: float = math.nan
    is_sure: bool = True


def energy_kind(
    energies: np.ndarray, sizes: np.ndarray, ratios: np.ndarray, periodic: bool, lowest_is_zero: bool, *,
    several: bool = True, stiff: bool = False, hydrogen: float = math.nan,
) -> EnergyKind:  # fmt: skip
    """Judge energies that were read as eV.

    Args:
        energies: [frames] eV.
        sizes: [frames] numbers of atoms.
        ratios: [frames] the energies over the sum of `all_electron_energy`.
        periodic: most frames are crystals (a cell without much vacuum).
        lowest_is_zero: of every composition with several frames, the lowest energy is zero.
        several: the frames have several formulas.
        stiff: the forces belong to the energies and change over a step as forces in eV/Å do.
        hydrogen: its fitted reference energy, NaN where it is not known.
    """
    per_atom = energies / sizes
    ratio, mean = float(np.median(ratios)), float(np.median(per_atom))
    spread = float(np.percentile(np.abs(ratios / ratio - 1.0), 90)) if ratio else math.inf
    if _BAND[0] < ratio < _BAND[1]:
        return EnergyKind(kind="all-electron total", reason=f"{ratio:.2f} of the all-electron energy", ratio=ratio)
    if ratio > 0 and spread < 0.1:
        for unit, size in _PER_EV.items():
            near = _BAND[0] < ratio / size < _BAND[1]
            # Valence energies come to any fraction below one, so a small ratio means little in a crystal, in a single
            # formula, or where the forces speak against it.
            if near and (size > 1 or not (periodic or stiff)):
                reason = f"{ratio / size:.2f} of the all-electron energy if the unit is {unit}"
                sure = size > 1 or (several and spread < 0.05)
                reason += "" if sure else "; or valence energies in eV"
                return EnergyKind(kind="all-electron total", reason=reason, unit=unit, ratio=ratio, is_sure=sure)
    found = _by_hydrogen(hydrogen, ratio) if not stiff and not periodic else None
    if found is not None:
        return found
    if lowest_is_zero:
        return EnergyKind(kind="relative", reason="the lowest energy of each composition is zero", ratio=ratio)
    if mean < -15.0:
        return EnergyKind(
            kind="valence total", reason=f"{mean:.1f} eV/atom: pseudopotentials, or a frozen core", ratio=ratio
        )
    if -15.0 <= mean < -1.0 and float(np.percentile(per_atom, 95)) < 0.5:
        reason = f"{mean:.2f} eV/atom, the size of a bond: relative to free atoms of some kind, as VASP's totals are"
        return EnergyKind(kind="cohesive", reason=reason, ratio=ratio)
    if abs(mean) <= 1.0 and periodic:
        reason = f"{mean:.2f} eV/atom, too small for a total in eV; or it is one in Ha or Ry"
        return EnergyKind(kind="formation", reason=reason, ratio=ratio)
    if float(np.percentile(energies, 2)) >= 0.0:
        return EnergyKind(
            kind="relative", reason="positive, which no total energy of a bound structure is", ratio=ratio
        )
    if float(np.percentile(np.abs(per_atom), 98)) < 1.0:
        reason = "less than 1 eV/atom: relative, formation or interaction energies"
        return EnergyKind(kind="relative", reason=reason, ratio=ratio)
    varied = float(np.percentile(sizes, 90)) > 2.0 * float(np.percentile(sizes, 10))
    if varied and float(np.percentile(np.abs(energies), 90)) < 5.0 and not periodic:
        reason = "a few eV whatever the size: interaction or relative energies"
        return EnergyKind(kind="relative", reason=reason, ratio=ratio)
    return EnergyKind(kind="unclear", reason=f"median {mean:.3g} eV/atom", ratio=ratio)


def _by_hydrogen(energy: float, ratio: float) -> EnergyKind | None:
    """Hydrogen has no core: in any total energy of molecules it counts 9 to 20 eV, binding included."""
    if math.isnan(energy):
        return None
    for unit in ("Ha", "kcal/mol", "kJ/mol"):
        if 9.0 < -energy / _PER_EV[unit] < 20.0:
            reason = f"hydrogen counts {energy:.3g}, as it does in {unit}"
            return EnergyKind(kind="valence total", reason=reason, unit=unit, ratio=ratio, is_sure=False)
    return None


def length_suspicion(typical: np.ndarray) -> str | None:
    """The option to try where nearest distances are not those of bonds.

    Args:
        typical: [frames] median of each atom's nearest distance over the sum of covalent radii, NaN without neighbours.
    """
    known = typical[~np.isnan(typical)]
    if len(known) == 0:
        return None
    ratio = float(np.median(known))
    if 1.45 < ratio < 2.3:
        return f"nearest distances are {ratio:.2f} of a bond: positions in bohr? --length-unit bohr"
    if 0.42 < ratio < 0.62:
        return f"nearest distances are {ratio:.2f} of a bond: positions in Å taken for bohr?"
    if ratio < 0.2:
        return f"nearest distances are {ratio:.2f} of a bond: positions in nm, or fractional? --length-unit nm"
    return None


def force_suspicion(curvature: float) -> str | None:
    """The unit that the stiffness of bonds suggests, where it is not eV/Å.

    Args:
        curvature: median change of force with displacement, as read.
    """
    if math.isnan(curvature) or 0.4 <= curvature <= 200.0:
        return None
    if curvature < 0.4:
        return f"bonds of {curvature:.2g} eV/Å² are too soft: forces in Ha/Å or Ha/bohr?"
    return f"bonds of {curvature:.3g} eV/Å² are too stiff: forces in kcal/mol/Å?"


def bulk_modulus(volumes: np.ndarray, pressures: np.ndarray, composition: np.ndarray) -> float:
    """-dp/d(ln V) in eV/Å³ from frames of one composition each, of all of them; NaN where volume does not decide pressure.

    Args:
        volumes: [frames] Å³ per atom, NaN where there is none.
        pressures: [frames] eV/Å³ as read, NaN where there is none.
        composition: [frames] index.
    """
    known = np.isfinite(volumes) & np.isfinite(pressures) & (volumes < _DENSE)
    if known.sum() < 20:
        return math.nan
    label = composition[known].astype(np.int64)
    count = np.maximum(np.bincount(label), 1)
    x, y = np.log(volumes[known]), pressures[known]
    x, y = (values - (np.bincount(label, values) / count)[label] for values in (x, y))
    squares, both = float(x @ x), float(x @ y)
    if squares < len(x) * _LEAST_VOLUME_CHANGE**2 or both**2 < 0.16 * squares * float(y @ y):
        return math.nan
    return -both / squares


def stress_suspicion(pressures: np.ndarray, modulus: float = math.nan) -> str | None:
    """The unit or sign that the pressures suggest, where it is not eV/Å³, positive in tension.

    Args:
        pressures: [frames] -trace/3 in eV/Å³ as read.
        modulus: `bulk_modulus` as read (solids: 1 to 450 GPa, above under pressure).
    """
    if len(pressures) == 0:
        return None
    high, stiff = float(np.percentile(np.abs(pressures), 75)), abs(modulus) / GPa
    for beyond, softest, unit in (
        (20.0, 60_000.0, "kBar or GPa, or a virial (stress times volume)"),
        (3.0, 2500.0, "GPa, or a virial"),
    ):
        if high > beyond or stiff > softest:
            seen = f"pressures of {high / GPa:.3g} GPa" if high > beyond else f"a bulk modulus of {stiff:.3g} GPa"
            return f"{seen}: stress in {unit}? --stress-unit {unit.split(',')[0]} or virial:eV, with --stress-sign"
    if modulus < 0:
        return "pressure grows with volume: is the stress positive in compression? --stress-unit eV/A^3 --stress-sign compression"
    if float(np.percentile(pressures, 25)) < _STRENGTH:
        return (
            f"a quarter of the frames under tension of {-float(np.percentile(pressures, 25)) / GPa:.3g} GPa, which no solid "
            "bears: is the stress positive in compression? --stress-unit eV/A^3 --stress-sign compression"
        )
    return None
