"""The structures that are measured: made by ase.build with seeded rattles, the same on every machine."""

from __future__ import annotations

import io

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule

CRYSTALS = "distilled-7net-l3i5"  # the head of `gfm-small` that runs and pairs of crystals want
_MOLECULES = (
    "H2O", "NH3", "CH4", "CH3OH", "C2H4", "C2H6", "CH3CN", "HCOOH",
    "CH3CH2OH", "CH3COOH", "C6H6", "C5H5N", "C4H4NH", "isobutane", "trans-butane", "CH3CONH2",
)  # fmt: skip
_CRYSTALS = (
    ("Cu", "fcc", 3.63), ("Al", "fcc", 4.04), ("Ni", "fcc", 3.52), ("Ag", "fcc", 4.15),
    ("W", "bcc", 3.18), ("Fe", "bcc", 2.83), ("Si", "diamond", 5.47), ("Ge", "diamond", 5.78),
    ("NaCl", "rocksalt", 5.69), ("MgO", "rocksalt", 4.25), ("LiF", "rocksalt", 4.08), ("CaO", "rocksalt", 4.84),
    ("GaAs", "zincblende", 5.75), ("ZnS", "zincblende", 5.45), ("CsCl", "cesiumchloride", 4.21), ("SiC", "zincblende", 4.38),
)  # fmt: skip
# Acetylsalicylic acid, relaxed with GFN2-xTB (tblite 0.8.0) to 0.01 eV/Å.
_ASPIRIN = """21
acetylsalicylic acid
C 1.8339 -1.5368 -0.1759
C 1.2359 1.1300 -0.6537
C 2.7404 -0.7335 -0.8399
C 2.4387 0.5971 -1.0819
C -2.9453 1.8769 0.4429
C 0.6108 -1.0238 0.2509
C 0.3215 0.3263 0.0111
O -1.5539 -1.6534 1.0636
O -1.5061 1.6882 -1.4843
O 0.1504 -3.0604 1.3290
C -0.3849 -1.9000 0.9114
C -1.7141 1.4850 -0.3212
O -0.8576 0.8425 0.5007
H -0.5386 -3.6055 1.7400
H 2.0548 -2.5757 0.0109
H 0.9962 2.1658 -0.8356
H 3.6810 -1.1450 -1.1726
H 3.1430 1.2269 -1.6039
H -2.6782 2.5849 1.2242
H -3.6704 2.3218 -0.2315
H -3.3577 0.9887 0.9158
"""


def aspirin() -> Atoms:
    """Acetylsalicylic acid, C9H8O4, 21 atoms."""
    return next(ase.io.iread(io.StringIO(_ASPIRIN), format="xyz"))


def molecules(count: int, seed: int = 0) -> list[Atoms]:
    """`count` rattled (0.05 Å) organic molecules of 3 to 14 atoms; any 16 in a row hold every kind once."""
    return [_rattled(molecule(_MOLECULES[k % len(_MOLECULES)]), 0.05, seed + k) for k in range(count)]


def crystals(count: int, seed: int = 0) -> list[Atoms]:
    """`count` rattled (0.05 Å) cubic crystals of 8 to 16 atoms; any 16 in a row hold every kind once."""
    found = []
    for k in range(count):
        name, prototype, a = _CRYSTALS[k % len(_CRYSTALS)]
        atoms = bulk(name, prototype, a=a, cubic=True)
        while len(atoms) < 8:
            atoms = atoms.repeat((2, 1, 1)) if len(atoms) * 2 >= 8 else atoms.repeat((2, 2, 1))
        found.append(_rattled(atoms, 0.05, seed + k))
    return found


def dynamics_systems() -> dict[str, Atoms]:
    """What MD steps are timed on: 9 (ethanol), 64 (NaCl), 256 (Cu) and 1,000 (Si) atoms."""
    return {
        "ethanol": molecule("CH3CH2OH"),
        "NaCl": bulk("NaCl", "rocksalt", a=5.69, cubic=True).repeat(2),
        "Cu": bulk("Cu", "fcc", a=3.63, cubic=True).repeat(4),
        "Si": bulk("Si", "diamond", a=5.47, cubic=True).repeat(5),
    }


def water_cluster(count: int, seed: int = 0) -> Atoms:
    """A ball of `count` water molecules, oxygens 2.9 Å apart on a grid, oriented at random."""
    random = np.random.default_rng(seed)
    edge = int(np.ceil(count ** (1 / 3))) + 1
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 2.9
    nearest = np.argsort(np.linalg.norm(grid - grid.mean(axis=0), axis=1), kind="stable")[:count]
    cluster = Atoms()
    for place in grid[nearest]:
        water = molecule("H2O")
        water.euler_rotate(*random.uniform(0, 360, 3), center=(0, 0, 0))
        water.translate(place)
        cluster.extend(water)
    return cluster


def slab() -> Atoms:
    """Cu(111), 2 x 2, four layers, 10 Å of vacuum on both sides, periodic in the plane."""
    return fcc111("Cu", (2, 2, 4), a=3.63, vacuum=10.0)


def _rattled(atoms: Atoms, stdev: float, seed: int) -> Atoms:
    atoms.rattle(stdev, seed=seed)
    atoms.info.clear()
    return atoms
