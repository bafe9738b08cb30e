"""Supercells of crystals near equilibrium: what relaxations end in and phonons begin with.

    python -m gfm_calc.train.near CRYSTALS.extxyz -o NEAR.extxyz --count 1500
    gfm data label NEAR.extxyz -o LABELLED.extxyz --calculator MODULE:CLASS

A file of strained and rattled cells of a few atoms says nothing of how one atom of a larger cell is held in its place.  Here the
cells of CRYSTALS on which hardly a force or a stress acts are repeated to eight atoms at least, strained by 1 % at most and
rattled, by 0.01 to 0.12 Å.  A supercell has the group of the crystal that it was made from, so that it is held out, or trained
on, together with it.  The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from gfm_calc.artifacts import write_file
from gfm_calc.commands.modules import write_new
from gfm_calc.commands.options import natural, positive_int
from gfm_calc.data.label import extxyz_text
from gfm_calc.data.sampling import spread_indices
from gfm_calc.errors import GFMError
from gfm_calc.structures import read_structures

_LARGEST_FORCE, _LARGEST_STRESS = 0.1, 0.0375  # eV/Å, eV/Å³: 6 GPa
_FEWEST, _MOST = 8, 32  # atoms of a supercell
_RATTLES = (0.01, 0.12)  # Å, standard deviations
_STRAIN = 0.01


def is_near(atoms: Atoms) -> bool:
    """Whether a labelled crystal is at rest, and small enough to be repeated."""
    if not atoms.pbc.all() or len(atoms) > _MOST or atoms.calc is None:
        return False
    found = atoms.calc.results
    if "forces" not in found or "stress" not in found:
        return False
    largest = float(np.linalg.norm(found["forces"], axis=1).max())
    return largest < _LARGEST_FORCE and float(np.abs(found["stress"]).max()) < _LARGEST_STRESS


def supercell(atoms: Atoms) -> Atoms:
    """`atoms` repeated along its shortest vectors until it has enough of them."""
    found = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    while len(found) < _FEWEST:
        times = [1, 1, 1]
        times[int(np.argmin(found.cell.lengths()))] = 2
        found = found * times
    return found


def near(atoms: Atoms, random: np.random.Generator) -> Atoms:
    """A supercell, strained and rattled a little."""
    found = supercell(atoms)
    strain = random.uniform(-_STRAIN, _STRAIN, (3, 3))
    found.set_cell(found.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    spread = np.exp(random.uniform(*np.log(_RATTLES)))
    found.positions += random.normal(scale=spread, size=found.positions.shape)
    return found


def make(crystals: Path, output: Path, *, count: int, seed: int = 0) -> int:
    """Write supercells of `count` crystals at rest, evenly taken from a file; how many there are.

    Raises:
        GFMError: no such crystal, one without a group, or a frame that cannot be read.
    """
    frames = [frame for frame in read_structures(crystals) if is_near(frame)]
    if not frames:
        raise GFMError(
            f"{crystals}: no labelled crystal of {_MOST} atoms at most is at rest: forces below {_LARGEST_FORCE} eV/Å "
            f"and stresses below {_LARGEST_STRESS} eV/Å³"
        )
    require_groups(frames, crystals)
    texts = []
    for k in spread_indices(len(frames), count):
        found = near(frames[k], np.random.default_rng([seed, int(k)]))
        found.info["group"] = str(frames[k].info["group"])
        texts.append(extxyz_text(found))
    write_file(output, "".join(texts).encode())
    return len(texts)


def require_groups(frames: Sequence[Atoms], path: Path) -> None:
    """GFMError where one of a file has none: what is made of it could lie on another side of a split."""
    lacking = sum(not str(frame.info.get("group", "")) for frame in frames)
    if lacking:
        raise GFMError(
            f"{path}: {lacking} of {len(frames)} structures have no group: write group=NAME into their comments"
        )


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(prog="python -m gfm_calc.train.near", description="Supercells near equilibrium.")
    parser.add_argument("crystals", type=Path, help="labelled crystals, .extxyz or .extxyz.xz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="new .extxyz, without labels")
    parser.add_argument("--count", type=positive_int, default=1500, help="of crystals; default: %(default)s")
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args(words)

    def made() -> str:
        return f"{make(args.crystals, args.output, count=args.count, seed=args.seed)} structures"

    return write_new(args.output, made)


if __name__ == "__main__":
    sys.exit(main())
