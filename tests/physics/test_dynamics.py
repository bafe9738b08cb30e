"""R6: energy is conserved along molecular dynamics, with a random model always and with the packaged one."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from support import random_model

from gfm_calc import GFMCalculator

LIMIT = 0.01  # meV/atom/ps


def drift(atoms: Atoms, *, temperature: float, steps: int, time_step: float, every: int = 10) -> tuple[float, float]:
    """Slope of the total energy in meV/atom/ps by least squares, and its standard error from the residuals; the
    structure has been heated."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    md = VelocityVerlet(atoms, timestep=time_step * units.fs)
    times, energies = [], []

    def note():
        times.append(md.get_time() / (1000 * units.fs))
        energies.append(atoms.get_total_energy())

    md.attach(note, interval=every)
    md.run(steps)
    energy = 1000 * (np.array(energies) - energies[0]) / len(atoms)
    (slope, _), covariance = np.polyfit(times, energy, 1, cov=True)
    assert np.isfinite(energy).all()
    return float(slope), float(covariance[0, 0] ** 0.5)


@pytest.mark.promise("R6")
@pytest.mark.parametrize("name", ["crystal", "molecule"])
def test_energy_is_conserved_by_any_weights(name):
    """A fifth of a picosecond of a random model: forces that were not the derivative would show at once."""
    atoms = bulk("Cu", cubic=True) if name == "crystal" else molecule("CH3OH")
    atoms.calc = GFMCalculator(random_model(num_layers=1), head="first")
    BFGS(atoms, logfile=None).run(fmax=0.1, steps=100)
    slope, error = drift(atoms, temperature=150, steps=800, time_step=0.25)
    assert abs(slope) <= LIMIT, f"{slope:.4f} +- {error:.4f} meV/atom/ps"


def packaged(name: str, model: str) -> Atoms:
    """64 atoms and the head that knows them."""
    if name == "copper":
        atoms, head = bulk("Cu") * (4, 4, 4), "distilled-7net-l3i5"
    elif name == "salt":
        atoms, head = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2), "distilled-7net-l3i5"
    else:
        atoms, head = molecule("CH3CH2OH"), "gfn2-xtb"
    atoms.calc = GFMCalculator(model, head=head, dtype="float64")
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=100)
    return atoms


@pytest.mark.promise("R6")
def test_packaged_model_conserves_energy(packaged_model):
    atoms = packaged("ethanol", packaged_model)
    slope, error = drift(atoms, temperature=300, steps=600, time_step=0.25, every=5)
    assert abs(slope) <= LIMIT + 3 * error, f"{slope:.4f} +- {error:.4f} meV/atom/ps"
    assert error < 0.05


@pytest.mark.slow
@pytest.mark.promise("R6")
@pytest.mark.parametrize(("name", "time_step"), [("copper", 2.0), ("salt", 2.0)])
def test_64_atoms_for_20_ps(packaged_model, name, time_step):
    atoms = packaged(name, packaged_model)
    assert len(atoms) == 64
    slope, error = drift(atoms, temperature=300, steps=round(20_000 / time_step), time_step=time_step)
    assert abs(slope) <= LIMIT, f"{slope:.4f} +- {error:.4f} meV/atom/ps"
