"""Energy conservation: constant-energy MD in float64, the drift of the total energy by a straight-line fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from gfm_calc.benchmarks import structures
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.peers.measure import thermalize
from gfm_calc.commands.progress import Progress


@dataclass(frozen=True, kw_only=True)
class NVESystem:
    """`atoms`, which kind of `head` they want, `timestep` in fs, the `temperature` in K of the first velocities (about half
    of it remains once the potential has taken its share), and the `share` of the picoseconds asked for that it runs."""

    name: str
    atoms: Atoms
    head: str
    timestep: float
    temperature: float
    share: float = 1.0


def nve_systems() -> list[NVESystem]:
    """Cu and NaCl of 64 atoms, and, for a quarter of the time because its light atoms need four times the steps, a water
    cluster of 63 atoms."""
    return [
        NVESystem(
            name="Cu, 64 atoms", atoms=bulk("Cu", "fcc", a=3.63).repeat(4), head=structures.CRYSTALS, timestep=2.0,
            temperature=600.0,
        ),
        NVESystem(
            name="NaCl, 64 atoms", atoms=bulk("NaCl", "rocksalt", a=5.69, cubic=True).repeat(2), head=structures.CRYSTALS,
            timestep=2.0, temperature=600.0,
        ),
        NVESystem(
            name="(H2O)21 cluster", atoms=structures.water_cluster(21), head="gfn2-xtb", timestep=0.5, temperature=400.0,
            share=0.25,
        ),
    ]  # fmt: skip


def run_nve(
    system: NVESystem, calculator: Calculator, head: str, *, picoseconds: float, sample_every: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Relax, set velocities, run `picoseconds` of velocity Verlet and fit the total energy.

    Args:
        head: of the calculator; of another model its name.

    Returns:
        see `drift`, and name, head, atoms, timestep_fs, picoseconds, temperature_k (mean), relaxed (whether the start
        was reached).
    """
    atoms = system.atoms.copy()
    atoms.calc = calculator
    relaxed = bool(FIRE(atoms, logfile=None).run(fmax=0.05, steps=500))
    thermalize(atoms, system.temperature, seed)
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    steps = max(2 * sample_every, round(1000 * picoseconds * system.share / system.timestep))
    times, totals, temperatures = [], [], []
    dynamics = VelocityVerlet(atoms, system.timestep * units.fs)
    with Progress(f"NVE {system.name}", "steps", steps) as progress:
        for done in range(0, steps, sample_every):
            dynamics.run(min(sample_every, steps - done))
            times.append((done + sample_every) * system.timestep / 1000)
            totals.append(atoms.get_potential_energy() + atoms.get_kinetic_energy())
            temperatures.append(atoms.get_temperature())
            progress.advance(min(sample_every, steps - done), note=f"{temperatures[-1]:.0f} K")
    return {
        "name": system.name, "head": head, "atoms": len(atoms), "timestep_fs": system.timestep,
        "picoseconds": steps * system.timestep / 1000, "temperature_k": float(f"{np.mean(temperatures):.4g}"),
        "relaxed": relaxed, **drift(np.array(times), np.array(totals) / len(atoms)),
    }  # fmt: skip


def drift(times: np.ndarray, energies: np.ndarray) -> dict[str, Any]:
    """A straight line through the total energy.

    Args:
        times: [m] ps.
        energies: [m] eV/atom.

    Returns:
        slope_mev_per_atom_per_ps; slope_first_half and slope_second_half likewise, which agree where a drift is real;
        rms_fluctuation_mev_per_atom about the line.
    """
    half = len(times) // 2
    slope, intercept = np.polyfit(times, energies, 1)
    residual = energies - (slope * times + intercept)
    return {
        "slope_mev_per_atom_per_ps": rounded(1e3 * slope, 3),
        "slope_first_half": rounded(1e3 * np.polyfit(times[:half], energies[:half], 1)[0], 3),
        "slope_second_half": rounded(1e3 * np.polyfit(times[half:], energies[half:], 1)[0], 3),
        "rms_fluctuation_mev_per_atom": rounded(1e3 * np.sqrt(np.square(residual).mean()), 3),
    }
