"""Chemistry that a file of small organic molecules lacks: S, P, Cl, Br, radicals, ions and triplets, made from its molecules.

    python -m gfm_calc.train.variants MOLECULES.extxyz -o VARIANTS.extxyz --count 6000 --processes 2

One in so many molecules is changed at one place (see `KINDS`), then relaxed for a few steps with GFN2-xTB; snapshots on the way
and rattled copies of the last one are kept with their labels, charge and spin.  A variant has the group of the molecule that it
was made from, so that it is held out, or trained on, together with it.  The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atom, Atoms
from ase.data import covalent_radii
from ase.optimize import BFGS

from gfm_calc.artifacts import write_file
from gfm_calc.commands.modules import write_new
from gfm_calc.commands.options import natural, positive_int
from gfm_calc.commands.progress import Progress
from gfm_calc.data.calculators import make_calculator
from gfm_calc.data.label import extxyz_text
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.workers import run_in_processes
from gfm_calc.errors import GFMError
from gfm_calc.structures import read_frames
from gfm_calc.train.near import require_groups

_METHOD = "tblite:GFN2-xTB"
_KEPT = (2, 5, 9, 14)  # steps of the relaxation whose structures are kept
_RATTLES = (0.03, 0.08)  # Å, copies of the last one
_LARGEST_FORCE = 30.0  # eV/Å
_TIMEOUT = 60.0  # s, one molecule
_H, _C, _N, _O, _F, _P, _S, _CL, _BR = 1, 6, 7, 8, 9, 15, 16, 17, 35

Random = np.random.Generator
Change = Callable[[Atoms, Random], Atoms | None]


def bonds(atoms: Atoms) -> np.ndarray:
    """[n, n] bool: nearer than 1.25 times the sum of covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii[None, :])
    return near & ~np.eye(len(atoms), dtype=bool)


def _exchanged(old: int, new: Sequence[int], only: Callable[[Atoms, int], bool] = lambda atoms, k: True) -> Change:
    """One atom of an element becomes one of another, at the bond length of that one if it has one neighbour."""

    def change(atoms: Atoms, random: Random) -> Atoms | None:
        sites = [k for k in np.flatnonzero(atoms.numbers == old) if only(atoms, int(k))]
        if not sites:
            return None
        site, number = int(random.choice(sites)), int(random.choice(new))
        near = np.flatnonzero(bonds(atoms)[site])
        found = atoms.copy()
        found.numbers[site] = number
        if len(near) == 1:
            grown = covalent_radii[number] - covalent_radii[old]
            away = atoms.positions[site] - atoms.positions[near[0]]
            found.positions[site] += away / np.linalg.norm(away) * grown
        return found

    return change


def _on_carbon(atoms: Atoms, site: int) -> bool:
    return bool((atoms.numbers[bonds(atoms)[site]] == _C).any())


def _without_hydrogen(charge: int, of: Sequence[int]) -> Change:
    """A hydrogen on one of some elements goes: with charge 0 as an atom, -1 as a proton, 1 as a hydride."""

    def change(atoms: Atoms, random: Random) -> Atoms | None:
        partners = bonds(atoms)[:, np.isin(atoms.numbers, of)].any(axis=1)
        sites = np.flatnonzero((atoms.numbers == _H) & partners)
        if not len(sites):
            return None
        found = atoms.copy()
        del found[int(random.choice(sites))]
        return _with_totals(found, charge)

    return change


def _protonated(atoms: Atoms, random: Random) -> Atoms | None:
    """A proton on a nitrogen or oxygen with at most three neighbours, on the side away from them."""
    near = bonds(atoms)
    sites = np.flatnonzero(np.isin(atoms.numbers, (_N, _O)) & (near.sum(axis=1) <= 3))
    if not len(sites):
        return None
    site = int(random.choice(sites))
    away = (atoms.positions[site] - atoms.positions[near[site]]).sum(axis=0) + 0.3 * random.normal(size=3)
    found = atoms.copy()
    found.append(Atom("H", atoms.positions[site] + 1.03 * away / np.linalg.norm(away)))
    others = np.delete(found.get_all_distances()[-1], [site, len(atoms)])
    return _with_totals(found, 1) if others.min() > 0.9 else None


def _as_it_is(charge: int, unpaired: int = 0) -> Change:
    """The same atoms with another charge, or with `unpaired` electrons more than needed."""
    return lambda atoms, random: _with_totals(atoms.copy(), charge, unpaired)


def _with_totals(atoms: Atoms, charge: int, unpaired: int = 0) -> Atoms:
    lowest = 1 + (int(atoms.numbers.sum()) - charge) % 2
    atoms.info |= {"charge": charge, "spin": lowest + unpaired}
    return atoms


KINDS: dict[str, tuple[float, Change]] = {  # how often, how
    "sulphur": (0.20, _exchanged(_O, (_S,))),
    "phosphorus": (0.07, _exchanged(_N, (_P,))),
    "halogen": (0.20, _exchanged(_H, (_CL, _BR, _F), _on_carbon)),
    "radical": (0.10, _without_hydrogen(0, (_C, _N, _O))),
    "anion": (0.13, _without_hydrogen(-1, (_N, _O))),
    "carbanion": (0.03, _without_hydrogen(-1, (_C,))),
    "protonated": (0.14, _protonated),
    "carbocation": (0.03, _without_hydrogen(1, (_C,))),
    "ionised": (0.05, _as_it_is(1)),
    "triplet": (0.05, _as_it_is(0, 2)),
}


def variant(atoms: Atoms, random: Random) -> tuple[str, Atoms] | None:
    """(kind, changed copy) with charge and spin in `info`; None where the molecule has no place for the kind drawn."""
    shares = np.array([share for share, _ in KINDS.values()])
    kind = str(random.choice(list(KINDS), p=shares / shares.sum()))
    bare = Atoms(atoms.numbers, atoms.positions)
    changed = KINDS[kind][1](bare, random)
    return None if changed is None else (kind, changed)


def labelled(atoms: Atoms, seed: int, number: int, group: str) -> list[str]:
    """Frames of extended XYZ around a variant of a molecule: none where it has no place for one.

    Raises:
        GFMError: its labels cannot be calculated.
    """
    random = np.random.default_rng([seed, number])
    made = variant(atoms, random)
    if made is None:
        return []
    kind, moving = made
    moving.info |= {"group": group, "source": f"gfn2-{kind}"}
    moving.calc = make_calculator(_METHOD)(moving)
    frames: list[str] = []
    try:
        with BFGS(moving, logfile=None, maxstep=0.15) as relaxation:
            for step, _ in enumerate(relaxation.irun(fmax=0.02, steps=max(_KEPT))):
                if step in _KEPT:
                    frames += _frame(moving)
        last = moving.positions.copy()
        for spread in _RATTLES:
            moving.positions = last + random.normal(scale=spread, size=last.shape)
            frames += _frame(moving)
    except Exception as error:  # self-consistency that fails, above all; a new calculator for the next molecule
        make_calculator.cache_clear()
        raise GFMError(f"{kind}: {type(error).__name__}") from error
    return frames


def _frame(atoms: Atoms) -> list[str]:
    forces = atoms.get_forces()
    if not np.isfinite(forces).all() or np.abs(forces).max() > _LARGEST_FORCE:
        return []
    copy = Atoms(atoms.numbers, atoms.positions, info={**atoms.info, "energy": float(atoms.get_potential_energy())})
    return [extxyz_text(copy, forces=forces)]


def make(molecules: Path, output: Path, *, count: int, processes: int, seed: int = 0) -> dict[str, int]:
    """Write the variants of `count` molecules, evenly taken from a file; {"frames": ..., "molecules": ..., "failed": ...}.

    Raises:
        GFMError: a molecule without a group, or a file that cannot be read.
    """
    frames = [frame for frame in read_frames(molecules) if isinstance(frame, Atoms)]
    require_groups(frames, molecules)
    chosen = spread_indices(len(frames), count)

    def calls() -> Iterator[tuple]:
        for k in chosen:
            yield frames[k], seed, int(k), str(frames[k].info["group"])

    texts: dict[int, list[str]] = {}
    failed = 0
    with Progress("variants", "molecules", len(chosen)) as progress:
        for number, found in run_in_processes(labelled, calls(), processes, timeout=_TIMEOUT):
            progress.advance()
            if isinstance(found, BaseException):
                failed += 1
            else:
                texts[number] = found
    written = [text for number in sorted(texts) for text in texts[number]]
    write_file(output, "".join(written).encode())
    return {"frames": len(written), "molecules": sum(bool(found) for found in texts.values()), "failed": failed}


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(prog="python -m gfm_calc.train.variants", description=__doc__.splitlines()[0])
    parser.add_argument("molecules", type=Path, metavar="MOLECULES", help="extended XYZ")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="extended XYZ")
    parser.add_argument("--count", type=positive_int, default=6000, help="molecules that are changed (default: 6000)")
    parser.add_argument("--processes", type=positive_int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--seed", type=natural, default=0)
    given = parser.parse_args(words)

    def made() -> str:
        found = make(given.molecules, given.output, count=given.count, processes=given.processes, seed=given.seed)
        return ", ".join(f"{value:,} {name}" for name, value in found.items())

    return write_new(given.output, made)


if __name__ == "__main__":
    sys.exit(main())
