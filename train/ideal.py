"""Supercells of simple crystals near equilibrium, which need no file: elements and binary compounds in the commonest structures.

    python -m gfm_calc.train.ideal -o IDEAL.extxyz
    gfm data label IDEAL.extxyz -o LABELLED.extxyz --calculator MODULE:CLASS

People relax these and ask for their phonons before anything else, and files of many crystals hold each of them once, if at
all.  Every element but gases stands in its own structure, fcc, bcc, hcp, simple cubic and diamond, all at about the volume of an
atom in its own; compounds in rocksalt, zincblende, wurtzite, fluorite and caesium chloride, alloys of two metals in the last.
Volumes spread around what is guessed, and `near.near` makes supercells, strains and rattles them.  All frames of one crystal are
of one group.  The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii

from gfm_calc.data.label import extxyz_text
from gfm_calc.errors import GFMError
from gfm_calc.screening.elements import element_crystal
from gfm_calc.screening.prototypes import ANIONS, GROUPS, STATES, prototype
from gfm_calc.screening.substitution import Substitutions
from gfm_calc.train.near import near

_NOT_TAUGHT = ("Po", "Ra")  # rare, and unknown to most published models
_GASES = ("H", "N", "O", "F", "Cl")  # atoms of these are never packed one by one
_STRUCTURES = ("fcc", "bcc", "hcp", "sc", "diamond")
_LOOSER = {"sc": 1.12, "diamond": 1.4}  # volumes of an atom over that in a close packing, about
_COMPOUNDS = {
    "rocksalt": ("Na", "Cl"), "zincblende": ("Zn", "S"), "wurtzite": ("Zn", "O"), "fluorite": ("Ca", "F"),
    "cesiumchloride": ("Cs", "Cl"),
}  # fmt: skip
_SCALES = (0.95, 1.06)  # of lengths
_PACKED = 0.68  # of space filled by spheres of covalent radii, where nothing better is known


def elements() -> Iterator[tuple[str, Atoms]]:
    """(group, crystal) of every element, in its own structure and in the simple ones."""
    for symbol in STATES:
        if symbol in (*_NOT_TAUGHT, *_GASES):
            continue
        own = element_crystal(symbol)
        if own is not None:
            yield f"ideal:own:{symbol}", own
            volume = own.get_volume() / len(own)
        else:
            volume = 4 / 3 * np.pi * covalent_radii[atomic_numbers[symbol]] ** 3 / _PACKED
        for structure in _STRUCTURES:
            made = bulk(symbol, structure, a=3.0, **({"covera": np.sqrt(8 / 3)} if structure == "hcp" else {}))
            wanted = volume * len(made) * (_LOOSER.get(structure, 1.0) if own is None or len(own) < 3 else 1.0)
            made.set_cell(made.cell.array * (wanted / made.get_volume()) ** (1 / 3), scale_atoms=True)
            yield f"ideal:{structure}:{symbol}", made


def compounds(count: int) -> Iterator[tuple[str, Atoms]]:
    """(group, crystal): `count` compounds of each structure, evenly taken of those whose charges balance, and as many alloys."""
    metals = [symbol for symbol in GROUPS["cations"] if symbol not in (*ANIONS, *_NOT_TAUGHT)]
    parts = [
        Substitutions(name, prototype(name), {cation: metals, anion: ANIONS})
        for name, (cation, anion) in _COMPOUNDS.items()
    ]
    parts.append(Substitutions("alloy", prototype("cesiumchloride"), {"Cs": metals, "Cl": metals}, balance=False))
    for part in parts:
        for number in np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).round().astype(int)).tolist():
            (_, made), = part.made(number, number + 1)  # fmt: skip
            atoms = Atoms(made.numbers, made.positions, cell=made.cell, pbc=True)
            yield f"ideal:{part.name}:{atoms.get_chemical_formula('metal')}", atoms


def make(output: Path, *, copies: int, count: int, seed: int = 0) -> int:
    """Write `copies` supercells of every element in every structure and one of each compound; how many there are."""
    texts = []
    crystals = [crystal for crystal in elements() for _ in range(copies)] + list(compounds(count))
    for k, (group, atoms) in enumerate(crystals):
        random = np.random.default_rng([seed, k])
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * random.uniform(*_SCALES), scale_atoms=True)
        found = near(scaled, random)
        found.info["group"] = group
        texts.append(extxyz_text(found))
    output.write_text("".join(texts))
    return len(texts)


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m gfm_calc.train.ideal", description="Supercells of simple crystals."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="new .extxyz, without labels")
    parser.add_argument("--copies", type=int, default=3, help="of an element in a structure; default: %(default)s")
    parser.add_argument("--count", type=int, default=300, help="compounds of a structure; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    try:
        if args.output.exists():
            raise GFMError(f"{args.output}: is there already")
        number = make(args.output, copies=args.copies, count=args.count, seed=args.seed)
    except GFMError as error:
        print(f"gfm: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {number} structures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
