"""A few structures of what each packaged head was trained on, and of what was held out: those that it repeats while the encoder
learns something else (see `replay`), and those on which `forgetting` tries it afterwards.

Geometries alone are packaged, with charges and spins: labels are what the model says.  A head of another model that has the same
name is told apart by its reference energies.  Made, from the datasets of a training, by

    python -m gfm_calc.finetune.exemplars DATASETS --model gfm-small -o finetune/exemplars/gfm-small.extxyz.xz

All files of that folder count; one made with `--beside` adds to the others.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from gfm_calc.artifacts import canonical_json, sha256, write_file
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.modules import write_new
from gfm_calc.config import HeadSpec
from gfm_calc.data.label import extxyz_text
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.schema import Record
from gfm_calc.errors import GFMError
from gfm_calc.structures import read_structures
from gfm_calc.train.cli import recipe_on
from gfm_calc.train.preparation import Head, load_heads

_FOLDER = Path(__file__).with_suffix("")
EXEMPLAR = "exemplar"  # `source` of what they are labelled as
COUNTS = {"train": 128, "test": 32}  # of a head, as long as they have
_NARROW, _OF_ELEMENT, _MOST = 3, 32, 1024  # of more elements than these, so many more are trained on, up to
_ATOMS = {"train": 4000, "test": 1000}  # in so many of them, and in more as many more: labelling them must be quick
_MOST_ATOMS = 8000  # of a head
_FEWEST = 8  # whatever they have
_LARGEST_FORCE = 20.0  # eV/Å; a head says little of what is farther from rest


def exemplars(spec: HeadSpec, side: str) -> list[Atoms]:
    """Structures of a packaged head, charge, spin and source in `info`; none of a head that is not packaged.

    Args:
        side: "train", or "test" for those that its training did not see.
    """
    return [atoms.copy() for atoms in _packaged().get((spec.name, _mark(spec), side), ())]


def digest() -> str:
    """Of all that is packaged."""
    return sha256(b"".join(path.read_bytes() for path in _paths()))


def _paths() -> list[Path]:
    return sorted(_FOLDER.glob("*.extxyz.xz"))


def _mark(spec: HeadSpec) -> str:
    """What tells heads of one name apart; a text that no reader takes for a number."""
    return f"r{sha256(canonical_json(dict(spec.reference_energies)))[:8]}"


@cache
def _packaged() -> dict[tuple[str, str, str], list[Atoms]]:
    found: dict[tuple[str, str, str], list[Atoms]] = {}
    for path in _paths():
        for atoms in read_structures(path):
            key = tuple(atoms.info.pop(name) for name in ("head", "mark", "side"))
            atoms.info["source"] = EXEMPLAR
            found.setdefault(key, []).append(atoms)
    return found


def wanted(spec: HeadSpec, side: str) -> int:
    """How many a head should have: more of many elements, of which a few structures say little."""
    if side != "train":
        return COUNTS[side]
    return min(_MOST, COUNTS[side] + _OF_ELEMENT * max(0, len(spec.elements) - _NARROW))


def choose(head: Head, spec: HeadSpec, beside: Sequence[Atoms] = ()) -> Iterator[Atoms]:
    """Some structures of both sides of a head, evenly taken, more of files with many formulas; whose they are in `info`.

    Args:
        spec: of the head in the model.
        beside: those that there are; they count, and none comes again.
    """
    there = {_signature(atoms) for atoms in beside}
    for side in COUNTS:
        of_files: dict[str, list[Record]] = {}
        for record in head.dataset.read(head.sides[side], names=True).records() if len(head.sides[side]) else ():
            is_calm = record.forces is None or not np.nanmax(np.abs(record.forces)) > _LARGEST_FORCE
            if is_calm and not record.is_free_atom and not (there and _signature(record.structure()) in there):
                of_files.setdefault(record.source, []).append(record)
        if not of_files:
            continue
        shares = np.sqrt([len({_formula(record) for record in records}) for records in of_files.values()])
        shares /= shares.sum()
        size = shares @ [np.mean([len(record) for record in records]) for records in of_files.values()]
        count = wanted(spec, side)
        most = min(count, max(_FEWEST, int(min(_MOST_ATOMS, _ATOMS[side] * count / COUNTS[side]) / size)))
        missing = max(0, most - sum(atoms.info["side"] == side for atoms in beside))
        for share, records in zip(shares, of_files.values()):
            for k in spread_indices(len(records), max(0 if beside else 1, int(share * missing))):
                yield _bare(records[k], spec, side)


def _formula(record: Record) -> bytes:
    return np.sort(record.atomic_numbers).tobytes()


def _signature(atoms: Atoms) -> tuple[Any, ...]:
    """What tells structures apart, with the digits that are packaged."""
    state = tuple(int(atoms.info.get(name) or 0) for name in ("charge", "spin"))
    places = (atoms.positions.round(3) + 0.0).tobytes(), (atoms.cell.array.round(4) + 0.0).tobytes()
    return atoms.numbers.tobytes(), *places, atoms.pbc.tobytes(), *state


def _of_head(spec: HeadSpec, some: Sequence[Atoms]) -> list[Atoms]:
    return [atoms for atoms in some if (atoms.info["head"], atoms.info["mark"]) == (spec.name, _mark(spec))]


def _bare(record: Record, spec: HeadSpec, side: str) -> Atoms:
    """The structure with no more digits than matter."""
    atoms = record.structure()
    atoms.positions = atoms.positions.round(3)
    atoms.set_cell(atoms.cell.array.round(4))
    atoms.info |= {"head": spec.name, "mark": _mark(spec), "side": side}
    return atoms


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m gfm_calc.finetune.exemplars", description="Structures of each head."
    )
    parser.add_argument("data", type=Path, help="folder of datasets, one a head")
    parser.add_argument("--model", default="gfm-small", help="that was trained on them; default: %(default)s")
    parser.add_argument("--recipe", default="gfm-small", help="says what was held out; default: %(default)s")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="of these, which count, none comes again")
    parser.add_argument("--cache", type=Path, help="keep here what was prepared, for the next time")
    parser.add_argument("-o", "--output", type=Path, required=True, help="new .extxyz.xz")
    args = parser.parse_args(words)

    def made() -> str:
        model = load_model(args.model)
        heads = load_heads(recipe_on(args.data.resolve(), args.recipe), args.cache)
        own = [head for head in heads if head.spec.name in model.energy_heads]
        there = [atoms for path in args.beside for atoms in read_structures(path)]
        specs = [model.specs[head.spec.name] for head in own]
        found = [atoms for head, spec in zip(own, specs) for atoms in choose(head, spec, _of_head(spec, there))]
        if not found:
            raise GFMError(f"{args.data}: nothing that is not there already")
        text = "".join(extxyz_text(atoms) for atoms in found)
        write_file(args.output, lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        return f"{len(found)} structures of {len({atoms.info['head'] for atoms in found})} heads"

    return write_new(args.output, made)


if __name__ == "__main__":
    sys.exit(main())
