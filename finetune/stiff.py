"""A first guess at a property of crystals: how stiff an old head says they are.

Few labels do not show what a head that was trained on stresses knows: how the energy bends under strain, and how the atoms
vibrate.  A linear function of one of these, or of both (see `gfm_calc.stiffness`), is fitted to the labels, a part of it taken
off them, and the head learns what is left; the saved head adds it again.  Training structures lose what the function says of them
when their group is left out of its fit (see `fits`), which is what held-out ones lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from ase.data import chemical_symbols as SYMBOLS

from gfm_calc.artifacts import MANIFEST, canonical_json, read_json, sha256, write_file
from gfm_calc.checkpoint import load_model, subset
from gfm_calc.data.build import build_flat
from gfm_calc.data.loader import Loader
from gfm_calc.data.schema import Record
from gfm_calc.data.splits import SIDES
from gfm_calc.data.store import Dataset, Selection, open_dataset
from gfm_calc.errors import CorruptFileError
from gfm_calc.finetune.combine import with_stiffness
from gfm_calc.finetune.described import layers_and_composition
from gfm_calc.finetune.fits import Fit, best, together
from gfm_calc.finetune.mixing import FREEDOMS
from gfm_calc.finetune.readout import FEWEST
from gfm_calc.heads import PropertyHead
from gfm_calc.model import GFMModel
from gfm_calc.stiffness import COLUMNS, MODES, STRAINS, Stiffness
from gfm_calc.train.properties import is_nonnegative
from gfm_calc.vibrations import repeats_of

_MOST = 1000  # labelled structures that it is of use for
_MOST_PAIRS = 300_000  # of training structures, see `_pairs`: vibrations of so many take some minutes of a core
_PAIRS_A_MINUTE = 30_000  # of all structures, where the user's minutes are bounded: half of them at most
# What a guess is made of, the parts of it that are taken off the labels, and of how many of the best ones the mean is taken, as
# long as they come close to the best: one of many is the best for few labels by chance.  Errors of the rest of 240 structures of
# the training side over those without a guess, geometric mean of eight draws of 40 labels, with the best of the first three
# kinds, with the best of all, and with the mean of three: bulk moduli 0.61, 0.57, 0.57; highest frequencies 0.54, 0.51, 0.50;
# logarithms of shear moduli 0.94, 0.91, 0.92; heat capacities 0.85, 0.79, 0.76; of 200 labels, the same within 0.02.
_PARTS = (STRAINS, MODES, slice(0, len(COLUMNS)), *(slice(k, k + 1) for k in range(len(COLUMNS))))
_SHARES, _MEAN_OF, _CLOSE = (0.5, 0.75, 1.0), 3, 1.2
# What it must gain: a part of the error without it, for it costs each prediction a second network and second derivatives, and
# so many standard errors of the gains, lest chance choose (three labels may: the square root of 3 is more). Sixteen draws of
# labels of each of eleven properties of crystals (structures of their training sides), the best of nine guesses, a
# fit's errors of the rest of 300 over those without a guess, geometric mean and worst property: 40 labels 0.87 and 1.01, 200
# labels 0.90 and 1.01, 14 labels 0.88 and 1.07. With 0.03 of the error no worse (0.87 and 1.01, 0.90 and 1.00, 0.88 and 1.07),
# but half of the draws of 200 gaps get a guess that is of no use. With 0.03 and 2.0 standard errors, of the gains of each
# structure by itself alone: 0.91 and 1.01, 0.92 and 1.00, 0.90 and 1.05.
# With all guesses that compete now, six draws: 40 labels of perovskites, which no guess helps, 1.03, 14 exfoliation energies
# 1.01, four others 0.99 at most.
_WORTH, _CLEAR = 0.05, 1.5
_FILE, _LABELS = "guess.json", "labels"


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The guess, and what it leaves.

    Attributes:
        head: the old one.  says: what of it the guess is made of, in words.  weights: [13], as `Stiffness.weights`.
        dataset: the structures, row by row, with what is left of their labels.
        error: what a fit to it leaves of structures that are left out, in the unit of the property (of a sum over atoms, for each
            atom); before: without the guess.
    """

    head: str
    says: str
    weights: tuple[float, ...]
    dataset: Dataset
    error: float
    before: float


def begin_guess(
    folder: Path, model: GFMModel, dataset: Dataset, sides: Mapping[str, np.ndarray], groups: np.ndarray,
    say: Callable[[str], None], *, minutes: float | None = None, goes_on: bool = False,
) -> Guess | None:  # fmt: skip
    """The guess in `folder`; one that an earlier run of the job has made is there already.

    Args:
        dataset: with the head's card.  sides: side -> rows.  groups: of the training structures, see `fits.together`.
        minutes: the user's, for all of the job; vibrations that would take half of them are left out.
        goes_on: the job has begun, with a guess or without.

    Returns:
        None where no head knows the elements and, by its card, stresses; where there are more than 1,000 training structures, or
        some are no crystals; of what is never negative and often zero; or where it is of no use.

    Raises:
        CorruptFileError: what an earlier run has left is damaged.
    """
    place = folder / _FILE
    if dataset.head.kind != "scalar" or (goes_on and not place.exists()):
        return None
    if not place.exists():
        found = _fitted(model, dataset, sides, groups, say, minutes)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(place, canonical_json(found))
    found = read_json(place)
    if found is None:
        return None
    if not isinstance(found, dict) or not {"head", "says", "weights", "taken", "before", "error"} <= set(found):
        raise CorruptFileError(f"{place}: is not what this version writes: damaged, begin anew in another folder")
    if not (folder / _LABELS / MANIFEST).exists():
        build_flat(folder / _LABELS, [_Left(dataset, found["taken"])], dataset.head)
    unit = f"{dataset.head.unit}{' an atom' if dataset.head.extensive else ''}"
    say(
        f"first guess: {found['says']}; a fit to what is left is {found['error']:.3g} {unit} off structures that are left out, "
        f"without the guess {found['before']:.3g}"
    )
    return Guess(
        head=found["head"], says=found["says"], weights=tuple(found["weights"]), dataset=open_dataset(folder / _LABELS),
        error=found["error"], before=found["before"],
    )  # fmt: skip


def with_guess(model: GFMModel, begun: Path, head: str, guess: Guess) -> GFMModel:
    """The model whose head of that name adds the guess; begun: where the model is that the run began with, and the guess was
    made with."""
    found = with_stiffness(model, head, guess.head)
    module = cast(PropertyHead, found.properties[found.property_heads.index(head)])
    assert module.stiffness is not None
    module.stiffness.network.load_state_dict(subset(load_model(begun), [guess.head]).to(found.dtype).state_dict())
    module.stiffness.weights.copy_(torch.tensor(guess.weights, dtype=torch.float64))
    return found


def _fitted(
    model: GFMModel, dataset: Dataset, sides: Mapping[str, np.ndarray], groups: np.ndarray,
    say: Callable[[str], None], minutes: float | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """What `_FILE` holds: fields of `Guess`, and `taken` off the label of each row of the dataset (null of rows of no side)."""
    train, rows = sides["train"], np.concatenate([sides[side] for side in SIDES])
    block = dataset.read(train)
    assert block.value is not None
    known = np.flatnonzero(np.isfinite(block.value[:, 0]))
    head = _knows(model, block.atomic_numbers)
    if head is None or not FEWEST <= len(known) <= _MOST or not block.pbc.all():
        return None
    if is_nonnegative(dataset.head, dataset, train):  # what is left of its zeros would not tell that they are zeros
        say("first guess: none, for a property that is never negative and often 0")
        return None
    sizes = dataset.atom_counts(rows) if dataset.head.extensive else np.ones(len(rows))
    modes = _pairs(dataset, train[known]) <= _MOST_PAIRS and (
        minutes is None or _pairs(dataset, rows) <= minutes * _PAIRS_A_MINUTE
    )
    say(f"first guess: asking {head} how stiff {len(known)} crystals are" + (" and how they vibrate" if modes else ""))
    labels, columns = block.value[known, 0] / sizes[known], _columns(model, head, dataset, train[known], modes=modes)
    parts = [part for part in _PARTS if (modes or part.stop <= STRAINS.stop) and np.isfinite(columns[:, part]).all()]
    beside, left_out = layers_and_composition(model, dataset, train[known]), together(groups[known])
    found = _linear(columns, parts, labels, beside, left_out) if parts else None
    if found is None:
        say("first guess: none, it does not clearly help with labels that are left out")
        return None
    used = found.weights[:-1] != 0
    strains, modes = bool(used[STRAINS].any()), bool(used[MODES].any())
    said = np.zeros(len(rows))
    others = np.setdiff1d(np.arange(len(rows)), known)
    if others.size:
        told = _columns(model, head, dataset, rows[others], strains=strains, modes=modes)
        told = told[:, used] @ found.weights[:-1][used] + found.weights[-1]
        said[others] = np.where(np.isfinite(told), told, found.weights[-1])
    said[known] = found.taken
    taken: list[float | None] = [None] * len(dataset)
    for row, value in zip(rows.tolist(), (said * sizes).tolist()):
        taken[row] = value
    says = f"how stiff {head} says the crystals are" if strains else f"how {head} says the crystals vibrate"
    return {
        "head": head, "says": says + (" and how they vibrate" if strains and modes else ""), "weights": found.weights.tolist(),
        "taken": taken, "error": float(found.error.mean()), "before": float(found.before.mean()),
    }  # fmt: skip


class _Linear(NamedTuple):
    """A linear function of the columns: weights [13], what it takes off the labels [n] when their groups are left out, and errors
    [n] of a fit to what is left, and of one without it."""

    weights: np.ndarray
    taken: np.ndarray
    error: np.ndarray
    before: np.ndarray


def _linear(
    columns: np.ndarray, parts: Sequence[slice], labels: np.ndarray, beside: Sequence[np.ndarray],
    left_out: Sequence[np.ndarray],
) -> _Linear | None:  # fmt: skip
    """The mean of the guesses that are best with labels [n] that are left out; None where that is of no clear use.

    Args:
        columns: [n, 12].  parts: of them, that a guess may be made of; numbers all of them.
        beside: what labels are fitted to besides, [n, ...] each.  left_out: see `fits.together`.
    """
    fits = [Fit(beside, labels, [1.0, freedom]) for freedom in FREEDOMS]

    def errors(taken: np.ndarray) -> np.ndarray:
        return min((np.abs(best(fit.of(labels - taken), left_out).residual) for fit in fits), key=np.mean)

    tried = []
    for part in parts:
        held = best(Fit([columns[:, part]], labels, [1.0]), left_out)
        for share in _SHARES:
            weights = np.zeros(len(COLUMNS) + 1)
            weights[:-1][part], weights[-1] = share * held.weights[:-1], share * held.weights[-1]
            taken = share * (labels - held.residual)
            tried.append((errors(taken).mean(), weights, taken))
    tried.sort(key=lambda one: one[0])
    chosen = [one for one in tried[:_MEAN_OF] if one[0] <= _CLOSE * tried[0][0]]
    weights, taken = (np.mean(parts, axis=0) for parts in list(zip(*chosen))[1:])
    found = _Linear(weights, taken, errors(taken), errors(np.zeros(len(labels))))
    return found if weights[:-1].any() and _helps(found.before, found.error) else None


def _helps(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether errors [n] of structures that are left out are clearly smaller than before."""
    gain = before - after
    # Also of each structure by itself, between -1 and 1: one label that nothing predicts must not hide what all others gain.
    clear = any(
        one.mean() > _CLEAR * one.std() / math.sqrt(len(one))
        for one in (gain, gain / np.maximum(before + after, 1e-300))
    )
    return clear and bool(after.mean() < (1 - _WORTH) * before.mean())


def _knows(model: GFMModel, numbers: np.ndarray) -> str | None:
    """The head of energies that has seen these elements, in crystals with stresses, and most frames."""
    symbols = {SYMBOLS[z] for z in np.unique(numbers).tolist()}
    able = {
        name: sum(int(entry.get("frames", 0)) for entry in spec.training_data)
        for name, spec in ((name, model.specs[name]) for name in model.energy_heads)
        if symbols <= set(spec.elements) and any(key.startswith("stress_") for key in spec.test_errors)
    }
    return max(able, key=able.__getitem__) if able else None


def _pairs(dataset: Dataset, rows: np.ndarray) -> int:
    """Of an atom of a cell and one of its supercell, over all rows that are crystals: the work of their vibrations."""
    block, counts = dataset.read(rows), dataset.atom_counts(rows)
    crystals = zip(counts[block.pbc.all(axis=1)], block.cell[block.pbc.all(axis=1)])
    return sum(int(count) ** 2 * math.prod(repeats_of(cell)[0]) for count, cell in crystals)


def _columns(model: GFMModel, head: str, dataset: Dataset, rows: np.ndarray, **wanted: bool) -> np.ndarray:
    """[n, 12] of the rows, see `Stiffness.columns`."""
    module = Stiffness(subset(model, [head]))
    loader = Loader([Selection(dataset, rows)], model.config.cutoff).once()
    found = [module.columns(model.inputs(batch.graph), batch.graph, **wanted).cpu().numpy() for batch in loader]
    return np.concatenate(found).reshape(-1, len(COLUMNS))


class _Left:
    """A task of `data.build`: the records of a dataset, with what is left of their labels."""

    def __init__(self, dataset: Dataset, taken: list[float | None]):
        self._dataset, self._taken = dataset, taken

    def identity(self) -> list[Any]:
        """Everything that decides the records."""
        return [self._dataset.digest, sha256(canonical_json(self._taken))]

    def records(self) -> Iterator[Record]:
        """As they are but for the label."""
        for record, taken in zip(self._dataset.records(), self._taken):
            value = record.value
            yield record if taken is None or value is None else replace(record, value=value - taken)

    def inputs(self) -> list[dict[str, Any]]:
        """One entry that stands for the labels."""
        return [{"name": "labels less a first guess", "size": 0, "sha256": sha256(repr(self.identity()).encode())}]
