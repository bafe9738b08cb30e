"""Structures on which old heads keep what they knew.

Of a packaged head, some of those that it was trained on (see `exemplars`), as they are and displaced; of every head, molecules
and crystals made by code, from ASE's table of molecules and from prototypes at radii of its elements.  Labels come from the model
that fine-tuning starts from (self-distillation, as in DOI 10.1109/TPAMI.2017.2773081).  The same name and seed give the same
structures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import covalent_radii, reference_states

from gfm_calc.artifacts import MANIFEST, sha256
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.perturb import displaced
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.errors import GFMError, InvalidStructureError
from gfm_calc.finetune.exemplars import digest, exemplars
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

DISPLACED, MADE = "displaced exemplar", "made"  # what structures come from, beside `EXEMPLAR`
_RATTLE, _STRAIN = 0.12, 0.06  # Å; of periodic axes
_MADE, _MOST_MADE = 1 / 3, 64  # of the structures, and at most so many, are made by code where a head has exemplars
_OF_EXEMPLARS = 1.5  # structures for each of them
_ELEMENTAL = ("fcc", "bcc", "hcp", "diamond")
_BINARY = ("rocksalt", "cesiumchloride", "zincblende")
_NEIGHBORS = {"rocksalt": 2.0, "cesiumchloride": 2 / 3**0.5, "zincblende": 4 / 3**0.5}  # lattice constant over a bond
_TRIED = 16  # structures of a head, to see how long labels take
_FEWEST = 24  # that a head repeats where time is short
_FIT = 1.6  # to fit the heads to what they said takes so many times as long as the labels
_TRIAL = 64  # labels of a head: as long takes it to try it afterwards
_FAR = 30.0  # eV/Å: predicted forces beyond this are of structures that no head was made for


def enough(spec: HeadSpec, count: int) -> int:
    """How many structures a head should repeat: `count`, or more where it has many exemplars."""
    return max(count, _MOST_MADE + math.ceil(_OF_EXEMPLARS * len(exemplars(spec, "train"))))


def structures(spec: HeadSpec, count: int, seed: int) -> list[Atoms]:
    """Up to `count` structures that a head repeats: its own exemplars, where it has any, and those that `made` gives.

    Args:
        spec: of the head; its name and `seed` decide what is drawn.
    """
    all_own, most = exemplars(spec, "train"), count - min(int(_MADE * count), _MOST_MADE)
    own = [all_own[k] for k in spread_indices(len(all_own), most)]
    random = np.random.default_rng([seed, 1, _number(spec)])
    found = list(own)
    for k in spread_indices(len(own), most - len(own)):
        try:
            found.append(_displaced(own[k], random))
        except InvalidStructureError:
            continue
        found[-1].info["source"] = DISPLACED
    return [*found, *made(spec, count - len(found), seed)]


def made(spec: HeadSpec, count: int, seed: int) -> list[Atoms]:
    """Up to `count` structures of the elements and boundary conditions that a head was trained on, made by code."""
    random = np.random.default_rng([seed, _number(spec)])
    kinds = [kind for kind in ("molecule", "bulk") if kind in (spec.periodicity or ("molecule",))]
    found: list[Atoms] = []
    for turn in range(4 * count):
        if len(found) == count:
            break
        kind = kinds[turn % len(kinds)]
        atoms = _molecule(spec, random) if kind == "molecule" else _crystal(spec, random)
        if atoms is None:
            continue
        try:
            found.append(_displaced(atoms, random))
        except InvalidStructureError:
            continue
    return found


def _number(spec: HeadSpec) -> int:
    return int(sha256(spec.name.encode())[:8], 16)


def _displaced(atoms: Atoms, random: np.random.Generator) -> Atoms:
    return displaced(atoms, random, rattle=_RATTLE * random.uniform(0.3, 1.5), strain=_STRAIN)


@cache
def _molecules() -> dict[str, frozenset[str]]:
    """Neutral closed-shell molecules of ASE's G2 table by name, with their elements."""
    names = [name for name in g2.names if len(molecule(name)) > 1 and int(molecule(name).numbers.sum()) % 2 == 0]
    return {name: frozenset(molecule(name).get_chemical_symbols()) for name in names}


def _molecule(spec: HeadSpec, random: np.random.Generator) -> Atoms | None:
    elements = set(spec.elements)
    names = [name for name, own in _molecules().items() if own <= elements]
    if not names:
        return None
    atoms = molecule(names[random.integers(len(names))])
    return Atoms(atoms.numbers, positions=atoms.positions)


def _crystal(spec: HeadSpec, random: np.random.Generator) -> Atoms | None:
    elements = list(spec.elements)
    first, second = (elements[k] for k in random.integers(len(elements), size=2))
    if first == second or random.uniform() < 0.3:
        return _element(first)
    lattice = _BINARY[random.integers(len(_BINARY))]
    bond = float(covalent_radii[NUMBER_OF[first]] + covalent_radii[NUMBER_OF[second]])
    size = bond * _NEIGHBORS[lattice] * random.uniform(0.95, 1.1)
    atoms = bulk(f"{first}{second}", lattice, a=size)
    return atoms.repeat((2, 1, 1))


def _element(symbol: str) -> Atoms | None:
    state: Any = reference_states[NUMBER_OF[symbol]]
    if state is None or state["symmetry"] not in _ELEMENTAL or not state.get("a"):
        return None
    more = {"covera": state["c/a"]} if state["symmetry"] == "hcp" else {}
    return bulk(symbol, state["symmetry"], a=state["a"], **more).repeat((2, 1, 1))


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """A task of `data.build`: a head's own predictions as labels."""

    model: str
    model_id: str
    head: str
    count: int
    seed: int

    def identity(self) -> list[Any]:
        """Everything that decides the records."""
        return [self.model_id, self.head, self.count, self.seed, digest()]

    def records(self) -> Iterator[Record | InvalidStructureError]:
        """Structures with the predictions of the model as it is now."""
        from gfm_calc.checkpoint import load_model

        yield from labelled(load_model(self.model), self.head, self.count, self.seed)

    def inputs(self) -> list[dict[str, Any]]:
        """One entry that stands for the predictions."""
        name = f"predictions of {self.model_id} ({self.head})"
        return [{"name": name, "size": 0, "sha256": sha256(repr(self.identity()).encode())}]


def labelled(model: GFMModel, head: str, count: int, seed: int) -> list[Record]:
    """Structures of a head (see `structures`) with its own predictions."""
    return label(model, head, structures(model.specs[head], count, seed))


def label(model: GFMModel, head: str, unlabelled: Sequence[Atoms]) -> list[Record]:
    """The structures with the predictions of a head; those that it refuses, and violent ones, are left out."""
    stream = Predictor(model, [head], strict=False).predict(unlabelled, on_error="yield")
    found = []
    for number, (atoms, row) in enumerate(zip(unlabelled, stream)):
        if isinstance(row, GFMError) or row[head].forces is None or float(row[head].forces.abs().max()) > _FAR:
            continue
        one = row[head]
        assert one.energy is not None and one.stress is not None
        found.append(
            Record(
                atomic_numbers=np.asarray(atoms.numbers, np.int64), positions=atoms.positions.copy(),
                cell=atoms.cell.array.copy(), pbc=atoms.pbc.copy(), energy=one.energy.item(), forces=one.forces.numpy(),
                stress=one.stress[0].numpy() if atoms.pbc.all() else None, charge=atoms.info.get("charge"),
                spin=atoms.info.get("spin"), source=atoms.info.get("source", MADE), frame=number,
            )
        )  # fmt: skip
    return found


def within(
    model: GFMModel, counts: Mapping[str, int], seconds: float, *, seed: int, fixed: bool = False
) -> tuple[Mapping[str, int], float]:  # fmt: skip
    """Fewer structures, where to label these would take too long; and the seconds that they cost after training.

    Args:
        counts: head -> structures.  seconds: for labels and what comes after training, together.  fixed: the structures are there
            already, and stay.
    """
    label_of_each = {head: _seconds_of_label(model, head, seed) for head in counts}
    needed = sum(label_of_each[head] * count for head, count in counts.items())
    trials = sum(_TRIAL * each for each in label_of_each.values())
    part = 1.0 if fixed or not needed else min(1.0, max(0.0, seconds - trials) / ((1 + _FIT) * needed))
    fewer = {head: max(min(count, _FEWEST), round(part * count)) for head, count in counts.items()}
    return fewer, _FIT * sum(label_of_each[head] * count for head, count in fewer.items()) + trials


def _seconds_of_label(model: GFMModel, head: str, seed: int) -> float:
    own = exemplars(model.specs[head], "train")
    tried = [own[k] for k in spread_indices(len(own), _TRIED)] or made(model.specs[head], _TRIED, seed)
    label(model, head, tried[:1])  # loads what is needed
    since = time.perf_counter()
    label(model, head, tried)
    return (time.perf_counter() - since) / max(1, len(tried))


def build_replay(
    folder: Path, model: GFMModel, where: str, counts: Mapping[str, int], *, seed: int
) -> Mapping[str, Dataset]:
    """A dataset of pseudo-labels for each head that structures can be made for; what is there is kept.

    Args:
        where: the model's name or directory.
        counts: head -> structures.
    """
    found = {}
    for head, count in counts.items():
        place = folder / head
        if not (place / MANIFEST).exists():
            if not structures(model.specs[head], 1, seed):
                continue
            task = PseudoLabels(model=where, model_id=model.model_id, head=head, count=count, seed=seed)
            build_flat(place, [task], replace(model.specs[head], test_errors={}))
        found[head] = open_dataset(place)
    return found
