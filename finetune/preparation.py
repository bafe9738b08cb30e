"""The heads of a fine-tuning run: the new one on the user's labels, old ones on replayed structures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import chemical_symbols as SYMBOLS

from gfm_calc.config import HeadSpec
from gfm_calc.data.compositions import Compositions
from gfm_calc.data.frame_table import UNUSED
from gfm_calc.data.references import ReferenceFit
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.schema import Record
from gfm_calc.data.splits import SIDES
from gfm_calc.data.store import Dataset
from gfm_calc.data.units import ENERGY
from gfm_calc.errors import ConfigError
from gfm_calc.finetune.nearest import fit_references, predictions, spread
from gfm_calc.finetune.readout import FittedHead
from gfm_calc.model import GFMModel
from gfm_calc.train.keys import key_of_auto
from gfm_calc.train.preparation import Head, gather, without_unseen
from gfm_calc.train.properties import is_nonnegative, start_of
from gfm_calc.train.recipe import DataRecipe
from gfm_calc.train.statistics import statistics_of

MIN_TRAINING = 3
_FEW_COMPOSITIONS = 10  # fewer are not held out whole: that would be far more, or less, than the fraction asked for
_BINDING = 15.0  # eV/atom that nothing gains by being bound
_FITTED = 5000  # structures that reference energies are fitted to, at most, but for those of
_FITTED_RARE = 100  # each element that none of them has


@dataclass(frozen=True, kw_only=True)
class Sides:
    """How structures are divided.

    Attributes:
        train, validation, test: indices of a dataset, ascending int64.
        isolated: energies of free atoms, symbol -> eV.
        near_twins: structures that have a near twin on another side.
        compositions: of all structures.
        unseen: side -> (structures left out, symbols that no training structure has), of the sides that had such structures.
        key: what was kept on one side: of `grouping.KEYS`, or `keys.BLOCKS`.  groups: how many of them there are.
        train_groups: the number of that of each training structure.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    isolated: Mapping[str, float]
    near_twins: int
    compositions: Compositions
    unseen: Mapping[str, tuple[int, tuple[str, ...]]]
    key: str
    groups: int
    train_groups: np.ndarray

    def as_mapping(self) -> dict[str, np.ndarray]:
        """As `Head.sides`."""
        return {side: getattr(self, side) for side in SIDES}

    def of_elements(self, elements: Collection[str]) -> tuple[dict[str, np.ndarray], int]:
        """`as_mapping` without held-out structures of other elements, and how many were left out in all."""
        own, more = without_unseen(self.as_mapping(), self.compositions, 0, elements)
        return own, more + sum(count for count, _ in self.unseen.values())


def divide(
    dataset: Dataset, recipe: DataRecipe, *, test_rows: int, max_train: int | None, drop_shared: bool = False,
    curve: Sequence[int] = (),
) -> Sides:  # fmt: skip
    """Training, validation and test.

    Args:
        test_rows: so many structures at the end of the dataset are the test side, those of the user's test files; the others
            are divided between the other two.  0: some of all are drawn for it.
        max_train: training structures at most, drawn with the recipe's seed; free atoms do not count.
        drop_shared: structures of test files are left out of training, where they are in other files as well.
        curve: as `max_train`, of other jobs, 0 for all: the test side is what all of them can predict.

    Raises:
        ConfigError: too few structures, or none in test files that could be predicted.
        LeakError: a structure is in a test file and in another (without `drop_shared`).
    """
    recipe = replace(recipe, test=0.0) if test_rows else recipe
    frames = gather([dataset], recipe, few=_FEW_COMPOSITIONS)
    sides = frames.sides(recipe)
    if test_rows:
        sides[len(sides) - test_rows :] = SIDES.index("test")
        if drop_shared:
            labels = frames.table.duplicates()
            copies = np.isin(labels, labels[sides == SIDES.index("test")]) & (sides != SIDES.index("test"))
            sides[copies] = UNUSED
        frames.table.refuse_leaks(sides, "--drop-shared leaves them out of training")
    alone = np.isin(np.arange(len(sides)), frames.isolated)
    key = key_of_auto(dataset, few=_FEW_COMPOSITIONS) if recipe.by == "auto" else recipe.by
    groups = len(np.unique(frames.table.group_numbers()[~alone]))
    train = np.flatnonzero((sides == 0) & ~alone)
    all_train, train = train, _drawn(train, max_train, recipe.seed)
    sides[np.setdiff1d(all_train, train)] = UNUSED
    if len(train) < MIN_TRAINING:
        held = int(((sides > 0) & ~alone).sum())
        raise ConfigError(_too_few(len(train), held, max_train, key, groups))
    is_energy = dataset.head.kind == "energy"
    elements = frames.compositions.elements(train, labelled=is_energy)
    held_out = {side: np.flatnonzero((sides == k) & ~alone) for k, side in enumerate(SIDES) if k}
    known, unseen = _of_known_elements(held_out, frames.compositions, elements)
    if test_rows and len(held_out["test"]) and not len(known["test"]):
        raise ConfigError(
            f"--test-file: all {len(held_out['test'])} structures hold {', '.join(unseen['test'][1])}, which no training "
            "structure has: add structures with it to the training files, or give another test file"
        )
    for size in curve:
        drawn = frames.compositions.elements(_drawn(all_train, size or None, recipe.seed), labelled=is_energy)
        known["test"] = known["test"][frames.compositions.within(known["test"], drawn)]
    if curve and len(held_out["test"]) and not len(known["test"]):
        draws = ", ".join(str(size) if size else "all" for size in curve)
        raise ConfigError(
            f"no test structure could be predicted after training on each of {draws} structures: draw more"
        )
    return Sides(
        train=np.flatnonzero(sides == 0), validation=known["validation"], test=known["test"],
        isolated=frames.compositions.isolated(sides == 0), near_twins=frames.table.num_close(sides),
        compositions=frames.compositions, unseen=unseen, key=key, groups=groups,
        train_groups=frames.table.group_numbers()[sides == 0],
    )  # fmt: skip


def _drawn(train: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """So many of the rows, at most; None: all."""
    if count is None or len(train) <= count:
        return train
    return np.sort(np.random.default_rng([seed, 1]).choice(train, count, replace=False))


def _of_known_elements(
    held_out: Mapping[str, np.ndarray], compositions: Compositions, elements: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, tuple[str, ...]]]]:
    """The sides without structures of other elements, and `Sides.unseen`."""
    known, _ = without_unseen(held_out, compositions, 0, elements)
    unseen = {}
    for side, rows in held_out.items():
        lost = np.setdiff1d(rows, known[side])
        if lost.size:
            symbols = sorted(compositions.elements(lost) - set(elements), key=NUMBER_OF.__getitem__)
            unseen[side] = int(lost.size), tuple(symbols)
    return known, unseen


def _too_few(count: int, held: int, max_train: int | None, key: str, groups: int) -> str:
    """Why there is so little to train on, and how to mend it."""
    text = f"{count} structure{'s' * (count != 1)} to train on beside free atoms"
    if max_train is not None and max_train < MIN_TRAINING:
        return f"{text}, as --max-train {max_train} asks for: give at least {MIN_TRAINING}"
    if held:
        return (
            f"{text}, {held} are held out (divided by {key}: {groups} group{'s' * (groups != 1)}): give at least "
            f"{MIN_TRAINING}, with more structures, smaller --validation and --test, or another --by"
        )
    return f"{text}: give at least {MIN_TRAINING} and some to hold out"


@dataclass(frozen=True, kw_only=True)
class References:
    """Reference energies of the new head, and how they were found: `fit` to the residual of the nearest head (None
    without energies), `isolated` those of free atoms in the data."""

    energies: Mapping[str, float]
    shift: Mapping[str, float]
    fit: ReferenceFit | None
    isolated: tuple[str, ...]


def find_references(model: GFMModel, nearest: str, dataset: Dataset, sides: Sides) -> References:
    """Reference energies that bring the nearest head to the training energies; free atoms in the data go before.

    An atom's energy is split into reference energy and shift, what the atom gains by being bound (see
    `heads.EnergyHeads`): a free atom then keeps its calculated energy, and bound ones the fitted sum of the two.

    Raises:
        ConfigError: no energies, or free atoms that do not belong to them.
    """
    spec = model.specs[nearest]
    rows = sides.compositions.covering(sides.train, _some(sides.train), each=_FITTED_RARE)
    records = list(dataset.read(rows, names=True).records())
    pairs = [(r, row[nearest]) for r, row in predictions(model, [nearest], records, forces=False) if not r.is_free_atom]
    fit = fit_references(pairs, spec.reference_energies)
    if fit is None:
        raise ConfigError("no training structure has an energy: a head needs energies; label some of them")
    row = model.energy_stack.shift[model.energy_heads.index(nearest)]
    free = {s: e for s, e in sides.isolated.items() if s in fit.energies}
    energies = dict(fit.energies) | free
    shift = {s: float(row[NUMBER_OF[s]]) + fit.energies[s] - energies[s] for s in energies}
    if free:
        _refuse_absurd([record for record, _ in pairs if np.isfinite(record.energy)], free)
    return References(energies=energies, shift=shift, fit=fit, isolated=tuple(free))


def _refuse_absurd(records: Sequence[Record], free: Mapping[str, float]) -> None:
    """ConfigError where free atoms would bind as none do; it names the unit that mends it.

    Args:
        records: with energies.
        free: symbol -> eV of the free atoms that are given.
    """
    worst = _binding(records, free)
    if worst == 0.0:
        return
    given = ", ".join(f"{symbol} {energy:g}" for symbol, energy in free.items())
    numbers = np.unique(np.concatenate([record.atomic_numbers for record in records])).tolist()
    lacking = [symbol for symbol in (SYMBOLS[z] for z in numbers) if symbol not in free]
    mend = "give energies of the same method, in eV" + (f", and of {', '.join(lacking)} too" if lacking else "")
    for unit in () if lacking else ("Ha", "Ry", "kcal/mol", "kJ/mol"):
        factor = ENERGY[unit]
        if _binding(records, {symbol: factor * energy for symbol, energy in free.items()}) == 0.0:
            mend = f"they look like {unit}: give eV, {factor:.6g} times as much"
            break
    verb = "gain" if worst < 0 else "lose"
    raise ConfigError(
        f"free atoms ({given} eV) would {verb} {abs(worst):.3g} eV/atom by being bound, which none does: {mend}"
    )


def _binding(records: Sequence[Record], free: Mapping[str, float]) -> float:
    """eV/atom that the atoms of the middle structure gain by being bound, where that is absurd, else 0.

    Where some elements have no free atom, what is left of the energy is theirs: it may be far below zero, not above.
    """
    whole, partly = list[float](), list[float]()
    for record in records:
        symbols = [SYMBOLS[z] for z in record.atomic_numbers.tolist()]
        known = [free[symbol] for symbol in symbols if symbol in free]
        if known:
            kind = whole if len(known) == len(symbols) else partly
            kind.append((record.energy - sum(known)) / len(symbols))
    middle = float(np.median(whole)) if whole else 0.0
    if abs(middle) > _BINDING:
        return middle
    left = float(np.median(partly)) if partly else 0.0
    return left if left > _BINDING else 0.0


def new_head(
    card: HeadSpec, dataset: Dataset, sides: Sides, references: References, model: GFMModel, nearest: str
) -> Head:
    """The head that is trained on the user's labels; it begins as the nearest head with other reference energies."""
    known = statistics_of(dataset, sides.train, model.config.cutoff)
    elements = tuple(sorted(references.energies, key=NUMBER_OF.__getitem__))
    own, unseen = sides.of_elements(elements)
    counts = {"frames": len(sides.train)}
    data = tuple(dict(entry) | counts for entry in card.training_data)
    spec = known.on_card(
        card, {s: references.energies[s] for s in elements}, training_data=data,
        reference_kind="isolated-atom" if set(elements) <= set(references.isolated) else "fitted",
    )  # fmt: skip
    scale = float(model.energy_stack.scale[model.energy_heads.index(nearest)])
    return Head(
        spec=spec, dataset=dataset, sides=own, scale=scale, shift={s: references.shift[s] for s in elements},
        share=0.0, unseen=unseen, **known.of_work(),
    )  # fmt: skip


def property_head(dataset: Dataset, sides: Sides, model: GFMModel, fitted: FittedHead | None) -> Head:
    """The head of a property, with its dataset's card.

    Args:
        fitted: where a head is that was fitted; None: it begins at what the elements add, its network with random weights.
    """
    references, scale = (
        start_of(dataset.head, dataset, sides.train) if fitted is None else (fitted.references, fitted.scale)
    )
    known = statistics_of(dataset, sides.train, model.config.cutoff)
    own, unseen = sides.of_elements(references)
    counts = {"frames": len(sides.train)}
    data = tuple(dict(entry) | counts for entry in dataset.head.training_data)
    landmarks = 0 if fitted is None else fitted.landmarks
    nonnegative = is_nonnegative(dataset.head, dataset, sides.train) if fitted is None else fitted.nonnegative
    spec = known.on_card(dataset.head, references, training_data=data, landmarks=landmarks, nonnegative=nonnegative)
    return Head(
        spec=spec, dataset=dataset, sides=own, scale=scale, shift={}, share=0.0, unseen=unseen, **known.of_work()
    )


def old_head(model: GFMModel, name: str, dataset: Dataset) -> Head:
    """An old head on its replayed structures; its card stays as it is."""
    everything = np.arange(len(dataset))
    known = statistics_of(dataset, everything, model.config.cutoff)
    row = model.energy_heads.index(name)
    spec = model.specs[name]
    shift = {symbol: float(model.energy_stack.shift[row, NUMBER_OF[symbol]]) for symbol in spec.elements}
    nothing = np.zeros(0, np.int64)
    return Head(
        spec=spec, dataset=dataset, sides={"train": everything, "validation": nothing, "test": nothing},
        scale=float(model.energy_stack.scale[row]), shift=shift, share=0.0, **known.of_work(),
    )  # fmt: skip


def _some(indices: np.ndarray) -> np.ndarray:
    """At most `_FITTED` of the indices, evenly spaced."""
    return indices[spread_indices(len(indices), _FITTED)]


def sample(dataset: Dataset, indices: np.ndarray, *, atoms: int = 4000, structures: int = 200) -> list:
    """Some of the structures, as records."""
    records = [record for record in dataset.read(_some(indices), names=True).records() if not record.is_free_atom]
    return spread(records, atoms, structures)
