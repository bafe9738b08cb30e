"""The heads of a fine-tuning run: the new one on the user's labels, old ones on replayed structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase.data import atomic_numbers as NUMBER_OF

from gfm_calc.config import HeadSpec
from gfm_calc.data.frame_table import UNUSED
from gfm_calc.data.references import ReferenceFit
from gfm_calc.data.splits import SIDES
from gfm_calc.data.store import Dataset
from gfm_calc.data.units import ENERGY
from gfm_calc.errors import ConfigError
from gfm_calc.finetune.nearest import fit_references, predictions, spread
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import spread_indices
from gfm_calc.train.preparation import Head, gather, statistics_of
from gfm_calc.train.properties import start_of
from gfm_calc.train.recipe import DataRecipe

MIN_TRAINING = 3
_BINDING = 15.0  # eV/atom that nothing gains by being bound
_FITTED = 5000  # structures that reference energies are fitted to, at most


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Indices of a dataset: `train`, `validation`, `test`, ascending; `isolated` energies, symbol -> eV; `near_twins`,
    structures that have a near twin on another side."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    isolated: Mapping[str, float]
    near_twins: int

    def as_mapping(self) -> dict[str, np.ndarray]:
        """As `Head.sides`."""
        return {side: getattr(self, side) for side in SIDES}


def divide(
    dataset: Dataset, recipe: DataRecipe, *, test_files: Sequence[str], max_train: int | None, drop_shared: bool = False
) -> Sides:
    """Training, validation and test.

    Args:
        test_files: names of files whose structures are the test side; the others are divided between the other two.
        max_train: training structures at most, drawn with the recipe's seed; free atoms do not count.
        drop_shared: structures of test files are left out of training, where they are in other files as well.

    Raises:
        ConfigError: too few structures.
        LeakError: a structure is in a test file and in another (without `drop_shared`).
    """
    frames = gather([dataset], replace(recipe, test=0.0) if test_files else recipe)
    sides = frames.sides(replace(recipe, test=0.0) if test_files else recipe)
    if test_files:
        sources = [name.rpartition(":")[0] for name in frames.table.frame_names()]
        sides = np.where(np.isin(sources, list(test_files)), SIDES.index("test"), sides)
        if drop_shared:
            labels = frames.table.duplicates()
            copies = np.isin(labels, labels[sides == SIDES.index("test")]) & (sides != SIDES.index("test"))
            sides[copies] = UNUSED
        frames.table.refuse_leaks(sides)
    alone = np.isin(np.arange(len(sides)), frames.isolated)
    train = np.flatnonzero((sides == 0) & ~alone)
    if max_train is not None and len(train) > max_train:
        kept = np.sort(np.random.default_rng([recipe.seed, 1]).choice(train, max_train, replace=False))
        sides[np.setdiff1d(train, kept)] = UNUSED
        train = kept
    if len(train) < MIN_TRAINING:
        raise ConfigError(
            f"{len(train)} structure{'s' * (len(train) != 1)} to train on beside free atoms: give at least {MIN_TRAINING} and "
            "some to hold out"
        )
    return Sides(
        train=np.flatnonzero(sides == 0), validation=np.flatnonzero((sides == 1) & ~alone),
        test=np.flatnonzero((sides == 2) & ~alone), isolated=frames.compositions.isolated(sides == 0),
        near_twins=frames.table.num_close(sides),
    )  # fmt: skip


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
    records = list(dataset.read(_some(sides.train, dataset), names=True).records())
    pairs = [(r, row[nearest]) for r, row in predictions(model, [nearest], records, forces=False) if len(r) > 1]
    fit = fit_references(pairs, spec.reference_energies)
    if fit is None:
        raise ConfigError("no training structure has an energy: a head needs energies; label some of them")
    row = model.energy_stack.shift[model.energy_heads.index(nearest)]
    free = {s: e for s, e in sides.isolated.items() if s in fit.energies}
    energies = dict(fit.energies) | free
    shift = {s: float(row[NUMBER_OF[s]]) + fit.energies[s] - energies[s] for s in energies}
    if free:
        _refuse_absurd([r.atomic_numbers for r, _ in pairs if np.isfinite(r.energy)], shift, free)
    return References(energies=energies, shift=shift, fit=fit, isolated=tuple(free))


def _refuse_absurd(structures: Sequence[np.ndarray], shift: Mapping[str, float], free: Mapping[str, float]) -> None:
    """ConfigError where free atoms would bind as none do; it names the unit that mends it.

    Args:
        structures: atomic numbers [n] of each.
        shift: symbol -> eV, what an atom gains by being bound.
        free: symbol -> eV of the free atoms that are given.
    """
    gained = _bindings(structures, shift)
    worst = gained[np.abs(gained).argmax()]
    if abs(worst) <= _BINDING:
        return
    given = ", ".join(f"{symbol} {energy:g}" for symbol, energy in free.items())
    for unit in ("Ha", "Ry", "kcal/mol", "kJ/mol"):
        factor = ENERGY[unit]
        other = {s: shift[s] - (factor - 1.0) * free.get(s, 0.0) for s in shift}
        if np.abs(_bindings(structures, other)).max() <= _BINDING:
            mend = f"they look like {unit}: give eV, {factor:.6g} times as much"
            break
    else:
        lacking = [symbol for symbol in shift if symbol not in free]
        mend = "give energies of the same method, in eV"
        mend += f", and of {', '.join(lacking)} too" if lacking else ""
    verb = "gain" if worst < 0 else "lose"
    raise ConfigError(
        f"free atoms ({given} eV) would {verb} {abs(worst):.3g} eV/atom by being bound, which none does: {mend}"
    )


def _bindings(structures: Sequence[np.ndarray], shift: Mapping[str, float]) -> np.ndarray:
    """[structures] eV/atom that their atoms gain by being bound."""
    table = np.zeros(max(NUMBER_OF.values()) + 1)
    for symbol, energy in shift.items():
        table[NUMBER_OF[symbol]] = energy
    return np.array([table[numbers].mean() for numbers in structures])


def new_head(
    card: HeadSpec, dataset: Dataset, sides: Sides, references: References, model: GFMModel, nearest: str
) -> Head:
    """The head that is trained on the user's labels; it begins as the nearest head with other reference energies."""
    known: dict[str, Any] = statistics_of(dataset, sides.train, model.config.cutoff)
    elements = tuple(sorted(references.energies, key=NUMBER_OF.__getitem__))
    own, unseen = _without_unseen(dataset, sides.as_mapping(), elements)
    counts = {"frames": len(sides.train)}
    data = tuple(dict(entry) | counts for entry in card.training_data)
    spec = replace(
        card, elements=elements, reference_energies={s: references.energies[s] for s in elements},
        reference_kind="isolated-atom" if set(elements) <= set(references.isolated) else "fitted", training_data=data,
        charges=known["charges"], max_excess_spin=known["excess"], periodicity=known["periodicity"],
    )  # fmt: skip
    scale = float(model.energy_stack.scale[model.energy_heads.index(nearest)])
    return Head(
        spec=spec, dataset=dataset, sides=own, scale=scale, shift={s: references.shift[s] for s in elements},
        neighbors=known["neighbors"], atoms=known["atoms"], share=0.0, unseen=unseen,
    )  # fmt: skip


def property_head(
    dataset: Dataset, sides: Sides, model: GFMModel, begun: tuple[Mapping[str, float], float] | None
) -> Head:
    """The head of a property, with its dataset's card.

    Args:
        begun: (references, scale) of a head that was fitted; None: it begins at what the elements add, its network with
            random weights.
    """
    own = sides.as_mapping()
    references, scale = begun or start_of(dataset.head, dataset, own["train"])
    known = statistics_of(dataset, own["train"], model.config.cutoff)
    own, unseen = _without_unseen(dataset, own, tuple(references))
    counts = {"frames": len(sides.train)}
    spec = replace(
        dataset.head, elements=tuple(references), reference_energies=references,
        training_data=tuple(dict(entry) | counts for entry in dataset.head.training_data),
        charges=known["charges"], max_excess_spin=known["excess"], periodicity=known["periodicity"],
    )  # fmt: skip
    return Head(
        spec=spec, dataset=dataset, sides=own, scale=scale, shift={}, neighbors=known["neighbors"], atoms=known["atoms"],
        share=0.0, unseen=unseen,
    )  # fmt: skip


def _without_unseen(
    dataset: Dataset, sides: Mapping[str, np.ndarray], elements: Sequence[str]
) -> tuple[dict[str, np.ndarray], int]:
    """The sides without held-out structures of other elements, and how many these are."""
    kept, unseen = dict(sides), 0
    for side in ("validation", "test"):
        inside = np.array([_within(dataset, k, elements) for k in kept[side].tolist()], bool)
        unseen += int((~inside).sum())
        kept[side] = kept[side][inside]
    return kept, unseen


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
        scale=float(model.energy_stack.scale[row]), shift=shift, neighbors=known["neighbors"], atoms=known["atoms"], share=0.0,
    )  # fmt: skip


def _some(indices: np.ndarray, dataset: Dataset) -> np.ndarray:
    """At most `_FITTED` of the indices, evenly spaced."""
    rows = spread_indices(len(indices), _FITTED)
    return indices[rows]


def _within(dataset: Dataset, index: int, elements: Sequence[str]) -> bool:
    numbers = {NUMBER_OF[symbol] for symbol in elements}
    return set(dataset.record(index).atomic_numbers.tolist()) <= numbers


def sample(dataset: Dataset, indices: np.ndarray, *, atoms: int = 4000, structures: int = 200) -> list:
    """Some of the structures, as records."""
    records = [record for record in dataset.read(_some(indices, dataset), names=True).records() if len(record) > 1]
    return spread(records, atoms, structures)
