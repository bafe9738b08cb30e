"""Supercells of simple crystals near equilibrium: elements and binary compounds in the commonest structures.

    python -m gfm_calc.train.ideal -o IDEAL.extxyz --beside CRYSTALS.extxyz
    gfm data label IDEAL.extxyz -o LABELLED.extxyz --calculator MODULE:CLASS

People relax these and ask for their phonons before anything else, and files of many crystals hold each of them once, if at
all.  Every element but gases stands in its own structure, fcc, bcc, hcp, simple cubic and diamond; compounds in rocksalt,
zincblende, wurtzite, fluorite and caesium chloride, alloys of two metals in the last.  Volumes spread around what is guessed,
and `near.near` makes supercells, strains and rattles them.

A crystal that files of `--beside` have is of their group, by its name there (proto-STRUCTURE-ELEMENTS), so that a split holds
it out in both or in neither; where their groups of it would be on several sides of a split, it is left out.  The same seed and
files give the same file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states

from gfm_calc.artifacts import write_file
from gfm_calc.commands.modules import write_new
from gfm_calc.commands.options import natural, positive_int
from gfm_calc.data.label import extxyz_text
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.splits import Split, draw
from gfm_calc.screening.elements import element_crystal
from gfm_calc.screening.prototypes import ANIONS, GROUPS, STATES, prototype
from gfm_calc.screening.substitution import Substitutions
from gfm_calc.structures import read_structures
from gfm_calc.train.near import near

_NOT_TAUGHT = ("Po", "Ra")  # rare, and unknown to most published models
_GASES = ("H", "N", "O", "F", "Cl")  # atoms of these are never packed one by one
# Volume of an atom over that in a close packing, about; of other structures, and their elements, next.
_LOOSER = {"fcc": 1.0, "bcc": 1.0, "hcp": 1.0, "sc": 1.12, "diamond": 1.4}
_OPEN, _OPEN_ONES = 1.15, ("B", "P", "As", "Sb", "Bi", "Se", "Te", "Ga", "Br", "I", "Sn")
# The same crystal by the name of a compound of an element with itself.
_ALSO = {"fcc": ("L12-{0}-{0}",), "bcc": ("cesiumchloride-{0}-{0}", "heusler-{0}-{0}-{0}"), "sc": ("rocksalt-{0}-{0}",),
         "diamond": ("zincblende-{0}-{0}",)}  # fmt: skip
_COMPOUNDS = {
    "rocksalt": ("Na", "Cl"), "zincblende": ("Zn", "S"), "wurtzite": ("Zn", "O"), "fluorite": ("Ca", "F"),
    "cesiumchloride": ("Cs", "Cl"),
}  # fmt: skip
_SCALES = (0.97, 1.04)  # of lengths
_PACKED = 0.68  # of space filled by spheres of covalent radii, where nothing better is known

Crystal = tuple[tuple[str, ...], Atoms]  # names of groups that this is, or would be, of; the structure


def elements() -> Iterator[Crystal]:
    """Every element in its own structure and in the simple ones."""
    for symbol in STATES:
        if symbol in (*_NOT_TAUGHT, *_GASES):
            continue
        own, its = element_crystal(symbol), _own_structure(symbol)
        if own is not None:
            yield _names(its, symbol), own
        for structure, looser in _LOOSER.items():
            if own is not None and structure == its:
                continue
            made = bulk(symbol, structure, a=3.0, **({"covera": np.sqrt(8 / 3)} if structure == "hcp" else {}))
            yield _names(structure, symbol), _of_volume(made, _closest(symbol) * looser * len(made))


def _closest(symbol: str) -> float:
    """Å³ of an atom in a close packing of them, about."""
    own = element_crystal(symbol)
    if own is None:
        return 4 / 3 * np.pi * float(covalent_radii[atomic_numbers[symbol]]) ** 3 / _PACKED
    return own.get_volume() / len(own) / _LOOSER.get(_own_structure(symbol), _OPEN if symbol in _OPEN_ONES else 1.0)


def _of_volume(atoms: Atoms, volume: float) -> Atoms:
    found = atoms.copy()
    found.set_cell(atoms.cell.array * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return found


def _own_structure(symbol: str) -> str:
    """The simple structure that `element_crystal` is, or "own"."""
    crystal, state = element_crystal(symbol), reference_states[atomic_numbers[symbol]] or {}
    usual = {"fcc": 1, "bcc": 1, "hcp": 2, "sc": 1, "diamond": 2}
    name = "fcc" if symbol == "Mn" else str(state.get("symmetry"))
    return name if crystal is not None and usual.get(name) == len(crystal) else "own"


def _names(structure: str, symbol: str) -> tuple[str, ...]:
    return tuple(f"proto-{name.format(symbol)}" for name in (f"{structure}-{symbol}", *_ALSO.get(structure, ())))


def compounds(count: int) -> Iterator[Crystal]:
    """`count` compounds of each structure, evenly taken of those whose charges balance, and as many alloys."""
    metals = [symbol for symbol in GROUPS["cations"] if symbol not in (*ANIONS, *_NOT_TAUGHT)]
    parts = [
        (name, Substitutions(name, prototype(name), {cation: metals, anion: ANIONS}))
        for name, (cation, anion) in _COMPOUNDS.items()
    ]
    alloys = {"Cs": metals, "Cl": metals}
    parts.append(("cesiumchloride", Substitutions("alloy", prototype("cesiumchloride"), alloys, balance=False)))
    for structure, part in parts:
        for number in spread_indices(len(part), count).tolist():
            (_, made), = part.made(number, number + 1)  # fmt: skip
            atoms = Atoms(made.numbers, made.positions, cell=made.cell, pbc=True)
            if part.name == "alloy":  # radii of ions say nothing of these
                atoms = _of_volume(atoms, sum(map(_closest, atoms.get_chemical_symbols())))
            pairs = permutations(sorted(set(atoms.get_chemical_symbols())))  # sorted: AB and BA are one alloy
            yield tuple(f"proto-{structure}-{'-'.join(pair)}" for pair in pairs), atoms


class Beside:
    """The groups of files that hold crystals, and on which sides of a split they are.

    Args:
        files: of crystals, with groups; the default fractions and seed of a split decide.

    Raises:
        GFMError: a file that cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._groups: set[str] = set()
        self._named_otherwise: dict[str, set[str]] = {}  # by reduced formula
        for file in files:
            for atoms in read_structures(file):
                group = str(atoms.info.get("group", ""))
                if group and group not in self._groups:
                    self._groups.add(group)
                    if not group.startswith("proto-"):
                        self._named_otherwise.setdefault(_formula(atoms), set()).add(group)
        self._split: Split = draw({"beside": sorted(self._groups)})

    def group(self, names: Sequence[str], atoms: Atoms) -> str | None:
        """The group of a crystal that may have any of `names`; None if its structures would be on several sides.

        A compound may be what the files have of the same formula by a name that says nothing of the structure.
        """
        known = [name for name in names if name in self._groups] or [names[0]]
        if len(set(atoms.numbers.tolist())) > 1:
            known += sorted(self._named_otherwise.get(_formula(atoms), ()))
        hashed = draw({"new": known[:1]}, like=self._split)
        return known[0] if len({hashed.side_of_group(name) for name in known}) == 1 else None


def _formula(atoms: Atoms) -> str:
    return atoms.symbols.formula.reduce()[0].format("metal")


def make(output: Path, *, copies: int, count: int, beside: Sequence[Path] = (), seed: int = 0) -> Mapping[str, int]:
    """Write `copies` supercells of every element in every structure and one of each compound.

    Returns:
        {"structures": written, "left out": crystals that would be on several sides of a split}.

    Raises:
        GFMError: a file of `beside` that cannot be read.
    """
    groups = Beside(beside)
    written: list[str] = []
    left_out = 0
    crystals = [(crystal, copies) for crystal in elements()] + [(crystal, 1) for crystal in compounds(count)]
    for number, ((names, atoms), many) in enumerate(crystals):
        group = groups.group(names, atoms)
        if group is None:
            left_out += 1
            continue
        for copy in range(many):
            random = np.random.default_rng([seed, number, copy])  # of what is left out before, nothing depends on it
            found = near(_of_volume(atoms, atoms.get_volume() * random.uniform(*_SCALES) ** 3), random)
            found.info["group"] = group
            written.append(extxyz_text(found))
    write_file(output, "".join(written).encode())
    return {"structures": len(written), "left out": left_out}


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m gfm_calc.train.ideal", description="Supercells of simple crystals."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="new .extxyz, without labels")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="FILE", help="crystals that are trained on too"
    )
    parser.add_argument(
        "--copies", type=positive_int, default=3, help="of an element in a structure; default: %(default)s"
    )
    parser.add_argument(
        "--count", type=positive_int, default=400, help="compounds of a structure; default: %(default)s"
    )
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args(words)

    def made() -> str:
        found = make(args.output, copies=args.copies, count=args.count, beside=args.beside, seed=args.seed)
        left = f"; {found['left out']} crystals left out, their groups lie on several sides of a split"
        return f"{found['structures']} structures{left if found['left out'] else ''}"

    return write_new(args.output, made)


if __name__ == "__main__":
    sys.exit(main())
