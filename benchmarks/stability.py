"""`gfm bench stability`: Langevin dynamics of many kinds of systems, and whether each stays what it is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from gfm_calc import __version__
from gfm_calc.artifacts import canonical_json, read_json, write_file
from gfm_calc.benchmarks import structures
from gfm_calc.benchmarks.contenders import ProcessEndedError
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.remote import RemoteCalculator
from gfm_calc.benchmarks.runs import folder_of_runs
from gfm_calc.calculator import GFMCalculator
from gfm_calc.commands.md import Dynamics, prepare
from gfm_calc.commands.progress import Progress
from gfm_calc.commands.relax import Relaxation, relax
from gfm_calc.errors import CorruptFileError, GFMError, one_line
from gfm_calc.model import GFMModel

MOLECULES = "gfn2-xtb"
_CLOSE = 0.55  # of the sum of the covalent radii: closer is a collapse
_TORN = 2.0  # times its length at the start: a bond of a molecule that is gone
_HOT = 3.0  # times the temperature of the bath
_RELAXATION = Relaxation(fmax=0.05, steps=300)


@dataclass(frozen=True, kw_only=True)
class System:
    """`atoms` with a `head`, at a `temperature` in K, in steps of `timestep` fs."""

    name: str
    atoms: Atoms
    head: str
    temperature: float
    timestep: float


def systems() -> list[System]:
    """Molecules, clusters of water, liquid water in a box, metals, oxides, salts, semiconductors, a slab with an adsorbate."""
    found = []
    for name, atoms, kelvin in (
        ("water", molecule("H2O"), 300), ("methane", molecule("CH4"), 500), ("ethanol", molecule("CH3CH2OH"), 500),
        ("benzene", molecule("C6H6"), 500), ("acetic acid", molecule("CH3COOH"), 500),
        ("aspirin", structures.aspirin(), 500), ("acetamide", molecule("CH3CONH2"), 500),
        ("(H2O)21", structures.water_cluster(21), 300),
    ):  # fmt: skip
        found.append(System(name=name, atoms=atoms, head=MOLECULES, temperature=kelvin, timestep=1.0))
    found.append(
        System(name="liquid water, 32 molecules", atoms=water_box(32), head="gfn1-xtb", temperature=300, timestep=1.0)
    )
    for name, prototype, a, kelvin in (
        ("Cu", "fcc", 3.63, 1000), ("Al", "fcc", 4.04, 600), ("W", "bcc", 3.18, 1000), ("Fe", "bcc", 2.83, 600),
        ("Si", "diamond", 5.47, 1000), ("GaAs", "zincblende", 5.75, 600), ("NaCl", "rocksalt", 5.69, 600),
        ("LiF", "rocksalt", 4.08, 600), ("MgO", "rocksalt", 4.25, 1000), ("CaO", "rocksalt", 4.84, 1000),
    ):  # fmt: skip
        atoms = bulk(name, prototype, a=a, cubic=True)
        found.append(System(name=name, atoms=_grown(atoms), head=structures.CRYSTALS, temperature=kelvin, timestep=2.0))
    slab = fcc111("Cu", (2, 2, 3), a=3.63, vacuum=8.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    found.append(System(name="Cu(111) with O", atoms=slab, head=structures.CRYSTALS, temperature=500, timestep=2.0))
    return found


def water_box(count: int, seed: int = 0) -> Atoms:
    """`count` water molecules at 1 g/cm³ in a cubic box, oxygens on a grid, oriented at random."""
    side = (count * 29.915) ** (1 / 3)  # Å³ a molecule
    edge = int(np.ceil(count ** (1 / 3) - 1e-9))
    random = np.random.default_rng(seed)
    places = random.permutation(np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1).reshape(-1, 3))
    box = Atoms(cell=[side] * 3, pbc=True)
    for place in places[:count]:
        water = molecule("H2O")
        water.euler_rotate(*random.uniform(0, 360, 3), center=(0, 0, 0))
        water.translate((place + 0.5) * side / edge)
        box.extend(water)
    return box


def run_system(
    system: System, calculator: Calculator, head: str, *, picoseconds: float, seed: int = 0, every: int = 50
) -> dict[str, Any]:
    """Relax, heat, run; a row with name, head, atoms, kelvin, timestep_fs, picoseconds (how far it came), stable, why (empty
    where it is), mean_kelvin of the second half, closest (smallest distance over the sum of covalent radii), ms_a_step.

    Args:
        head: of the calculator; of another model its name.

    Raises:
        ProcessEndedError: that of another model, which tells nothing of the system.
    """
    atoms = system.atoms.copy()
    atoms.calc = calculator
    row = {"name": system.name, "head": head, "atoms": len(atoms), "kelvin": system.temperature,
           "timestep_fs": system.timestep}  # fmt: skip
    steps, done, why, seconds = max(every, round(1000 * picoseconds / system.timestep)), 0, "", 0.0
    kelvins, closest = [], np.inf
    try:
        relax(atoms, _RELAXATION)
        bonds = _bonds(atoms)
        how = Dynamics(ensemble="nvt", temperature=system.temperature, time_step=system.timestep, seed=seed)
        dynamics = prepare(atoms, how)
        with Progress(system.name, "steps", steps) as progress:
            while done < steps and not why:
                started = time.perf_counter()
                dynamics.run(min(every, steps - done))
                seconds += time.perf_counter() - started
                done += min(every, steps - done)
                kelvins.append(atoms.get_temperature())
                closest = min(closest, nearest(atoms))
                why = _fault(atoms, bonds, closest, kelvins[-1] / system.temperature)
                progress.advance(every, note=f"{kelvins[-1]:.0f} K")
    except ProcessEndedError:
        raise
    except GFMError as error:
        why = one_line(error)
    return {
        **row, "picoseconds": rounded(done * system.timestep / 1000), "stable": not why, "why": why,
        "mean_kelvin": rounded(np.mean(kelvins[len(kelvins) // 2 :])) if kelvins and np.isfinite(kelvins).all() else None,
        "closest": rounded(closest) if np.isfinite(closest) else None,
        "ms_a_step": rounded(1e3 * seconds / done) if done else None,
    }  # fmt: skip


def run_systems(
    chosen: Sequence[System], model: GFMModel, *, picoseconds: float, weights: str, compiled: bool = False,
    peers: Mapping[str, RemoteCalculator] | None = None, work: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """`run_system` of each; `work` keeps the rows of those that are done with these `weights` (their id), `compiled` or not, so
    that what was interrupted goes on there.

    Args:
        peers: published models of crystals, which run the systems that want our head of crystals.

    Raises:
        CorruptFileError: a row that is none.
        ProcessEndedError: that of a peer; what is done is kept.
    """
    rows = []
    how = (picoseconds, torch.get_num_threads(), __version__)
    with folder_of_runs(work) as folder:
        for system in chosen:
            for head, calculator, release in _contenders(system, model, (weights, compiled), peers or {}):
                about = repr((system.name, head, release, system.temperature, system.timestep, *how))
                kept = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
                if not kept.exists():
                    write_file(kept, canonical_json(run_system(system, calculator, head, picoseconds=picoseconds)))
                row = read_json(kept)
                if not isinstance(row, dict) or (row.get("name"), row.get("head")) != (system.name, head):
                    raise CorruptFileError(f"{kept}: holds no row of {system.name}: damaged, remove it")
                rows.append(row)
    return rows


def _contenders(
    system: System, model: GFMModel, ours: tuple[Any, ...], peers: Mapping[str, RemoteCalculator]
) -> Iterator[tuple[str, Calculator, tuple[Any, ...]]]:
    """(Head or name of a model, calculator, what tells its releases apart: `ours` of ours), ours first."""
    head = system.head if system.head in model.specs else model.energy_heads[0]
    yield head, GFMCalculator(model, head=head), ours
    if system.head == structures.CRYSTALS:
        for other in peers.values():
            yield other.title, other, (other.release,)


def nearest(atoms: Atoms) -> float:
    """The smallest distance of two atoms over the sum of their covalent radii; infinite where all are far apart."""
    i, j, lengths = neighbor_list("ijd", atoms, 3.0)
    radii = covalent_radii[atoms.numbers]
    return float((lengths / (radii[i] + radii[j])).min()) if len(lengths) else float("inf")


def _bonds(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [m, 2] that are bound in a molecule, and their lengths [m]; none in crystals, where atoms may diffuse."""
    if atoms.pbc.any():
        return np.zeros((0, 2), dtype=int), np.zeros(0)
    i, j, lengths = neighbor_list("ijd", atoms, 2.5)
    radii = covalent_radii[atoms.numbers]
    bound = (lengths < 1.2 * (radii[i] + radii[j])) & (i < j)
    return np.stack([i[bound], j[bound]], axis=1), lengths[bound]


def _fault(atoms: Atoms, bonds: tuple[np.ndarray, np.ndarray], closest: float, heat: float) -> str:
    if not np.isfinite(atoms.positions).all():
        return "positions that are no numbers"
    if closest < _CLOSE:
        return f"two atoms at {closest:.2f} of their covalent distance"
    if heat > _HOT and len(atoms) > 10:  # the temperature of a few atoms fluctuates
        return f"{heat:.1f} times the temperature of the bath"
    pairs, lengths = bonds
    now = np.linalg.norm(atoms.positions[pairs[:, 0]] - atoms.positions[pairs[:, 1]], axis=1)
    torn = now > _TORN * lengths
    if torn.any():
        i, j = pairs[int(np.argmax(now / lengths))]
        return f"the bond of atoms {i} and {j} ({atoms[i].symbol}-{atoms[j].symbol}) is {now.max():.1f} Å long"
    return ""


def _grown(atoms: Atoms) -> Atoms:
    """Repeated to about 30 to 70 atoms, and at least 8 Å a side where that allows."""
    repeats = 3 if len(atoms) <= 2 else 2
    return atoms.repeat(repeats)
