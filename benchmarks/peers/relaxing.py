"""One way to relax for all models compared; needs ASE only."""

from __future__ import annotations

from typing import Any

from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

FMAX = 0.01  # eV/Å
MAX_STEPS = 500


def relax(atoms: Atoms, *, cell: bool) -> tuple[bool, int]:
    """Relax `atoms` in place, `cell` too where asked for; (converged, steps)."""
    target: Any = FrechetCellFilter(atoms) if cell else atoms
    optimizer = BFGS(target, logfile=None)
    return bool(optimizer.run(fmax=FMAX, steps=MAX_STEPS)), int(optimizer.nsteps)
