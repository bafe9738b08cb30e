"""The files that `gfm bench uncertainty --outside` was measured on: structures that no head was trained on.

    GFM_DATA=FOLDER python -m gfm_calc.benchmarks.outside_sets OUTPUT

FOLDER is that of the downstream data (rMD17, 3BPA, mlearn as *.extxyz.xz).  Molecules get labels of GFN1- and GFN2-xTB, those of
the heads, by tblite; the elements of mlearn keep theirs, of PBE.
"""

from __future__ import annotations

import io
import lzma
import os
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

_MOLECULES = ("aspirin", "uracil", "naphthalene", "salicylic", "malonaldehyde")
_ELEMENTS = {"mlearn-seen": ("Li", "Mo", "Ni"), "mlearn-unseen": ("Cu", "Ge", "Si")}  # of the head pbe-vasp
_METHODS = {"gfn2-molecules": "GFN2-xTB", "gfn1-molecules": "GFN1-xTB"}


def drawn(path: Path, count: int) -> list[Atoms]:
    """Some frames of a file, in its order."""
    frames = ase.io.read(io.StringIO(lzma.open(path, "rt").read()), ":", format="extxyz")
    chosen = np.random.default_rng(0).choice(len(frames), min(count, len(frames)), replace=False)
    return [frames[k] for k in np.sort(chosen)]


def labelled(frame: Atoms, method: str) -> Atoms:
    """A copy with energy and forces of a tight-binding method."""
    from tblite.ase import TBLite

    found = Atoms(frame.numbers, frame.positions, calculator=TBLite(method=method, verbosity=0))
    energy, forces = found.get_potential_energy(), found.get_forces()
    found.calc = SinglePointCalculator(found, energy=energy, forces=forces)
    return found


def make(data: Path, output: Path) -> None:
    """Write the four files."""
    output.mkdir(parents=True, exist_ok=True)
    molecules = [f for name in _MOLECULES for f in drawn(data / "rmd17" / f"{name}_test.extxyz.xz", 20)]
    molecules += drawn(data / "3bpa" / "train_mixedT.extxyz.xz", 50)
    for name, method in _METHODS.items():
        ase.io.write(output / f"{name}.extxyz", [labelled(frame, method) for frame in molecules])
    for name, elements in _ELEMENTS.items():
        frames = [f for element in elements for f in drawn(data / "mlearn" / f"{element}_test.extxyz.xz", 12)]
        ase.io.write(output / f"{name}.extxyz", frames)


if __name__ == "__main__":
    make(Path(os.environ["GFM_DATA"]), Path(sys.argv[1]))
