"""From datasets to what a run trains on: sides, reference energies, head cards, expected work.

It is done once, by the first process, and kept in the run folder; a resumed run reads it back, so its data cannot change
under it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from ase.data import atomic_numbers as NUMBER_OF

from gfm_calc.artifacts import MANIFEST, canonical_json, commit, open_artifact, sha256
from gfm_calc.config import HeadSpec, from_mapping, to_mapping
from gfm_calc.data.compositions import Compositions
from gfm_calc.data.frame_table import UNUSED, FrameTable
from gfm_calc.data.loader import WORK_OF_ATOM
from gfm_calc.data.schema import Record
from gfm_calc.data.split_files import load_split
from gfm_calc.data.splits import SIDES, draw, join
from gfm_calc.data.store import Dataset, Selection, open_dataset
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError, InputFileError, one_line
from gfm_calc.train.datasets import find_datasets
from gfm_calc.train.keys import FEW_GROUPS, keyed
from gfm_calc.train.properties import gone_on, is_nonnegative, refuse_negative, start_of
from gfm_calc.train.recipe import DataRecipe, HeadRecipe, Recipe, to_toml
from gfm_calc.train.statistics import statistics_of

KIND = "training-data"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Head:
    """One head of a run.

    Attributes:
        spec: its card.
        dataset: where its structures are.
        sides: {"train": indices, "validation": ..., "test": ...}, each ascending int64.
        scale: eV (or the unit of a property), of what its network gives.  shift: symbol -> eV, what an atom gains by being
            bound, at the start.
        neighbors: mean neighbours of an atom.  atoms: mean atoms of a structure.
        share: of the draws.
        unseen: held-out structures with elements that no training structure has: they are in no side.
    """

    spec: HeadSpec
    dataset: Dataset
    sides: Mapping[str, np.ndarray]
    scale: float
    shift: Mapping[str, float]
    neighbors: float
    atoms: float
    share: float
    unseen: int = 0

    def select(self, side: str) -> Selection:
        """The structures of one side."""
        return Selection(self.dataset, self.sides[side])

    @property
    def work(self) -> float:
        """Expected edges in a step that draws one structure."""
        return self.share * self.atoms * (self.neighbors + WORK_OF_ATOM)


def prepare(recipe: Recipe, cutoff: float) -> list[Head]:
    """The heads of a run, by name.

    Raises:
        ConfigError: no data, or heads in the recipe that the data do not have.
        LeakError: a structure on two sides of a given split.
    """
    datasets = find_datasets(recipe.data.path)
    names = [dataset.head.name for dataset in datasets]
    unknown = [name for name in (*(head.name for head in recipe.heads), *recipe.data.heads) if name not in names]
    if unknown:
        raise ConfigError(f"heads: {unknown[0]} has no dataset in {recipe.data.path}; heads there: {', '.join(names)}")
    frames = gather(datasets, recipe.data)
    sides = frames.sides(recipe.data)
    found = []
    wanted = _wanted(recipe) or names
    for dataset, first, last in zip(datasets, frames.starts, frames.starts[1:]):
        if dataset.head.name not in wanted:
            continue
        found.append(_head(dataset, recipe, frames.compositions, sides, slice(first, last), cutoff))
    return with_shares(found, recipe)


@dataclass(kw_only=True)
class Frames:
    """Every structure of some datasets, in a few numbers each.

    Attributes: `table`; `compositions`; `isolated`, rows of free atoms; `names` of the heads; `starts`, the row at which each
    dataset begins, and the end.
    """

    table: FrameTable
    compositions: Compositions
    isolated: list[int]
    names: list[str]
    starts: list[int]

    def sides(self, recipe: DataRecipe) -> np.ndarray:
        """[rows] index into SIDES, or `UNUSED`.

        Raises:
            LeakError: a structure on two sides of a given split.
        """
        return _sides(recipe, self.table, self.isolated, self.names, self.starts)


def gather(datasets: Sequence[Dataset], recipe: DataRecipe, *, few: int = FEW_GROUPS) -> Frames:
    """Read every structure once; few: see `keys.keyed`."""
    table, compositions = FrameTable(), Compositions()
    isolated: list[int] = []
    by = recipe.by if recipe.split is None else load_split(recipe.split).by

    def noted() -> Iterator[tuple[Record, str]]:
        for record, key in chain.from_iterable(keyed(dataset, by, few=few) for dataset in datasets):
            if record.is_free_atom:
                isolated.append(len(compositions))
            compositions.add(record)
            yield record, key

    table.add_all(noted())
    return Frames(
        table=table, compositions=compositions, isolated=isolated, names=[dataset.head.name for dataset in datasets],
        starts=np.cumsum([0, *map(len, datasets)]).tolist(),
    )  # fmt: skip


def _wanted(recipe: Recipe) -> list[str]:
    """The heads to train, where the recipe chooses: those that it names, or those that it gives a share."""
    shared = [head.name for head in recipe.heads if head.share is not None]
    return [name for name in recipe.data.heads or shared if not shared or name in shared]


def _sides(
    recipe: DataRecipe, table: FrameTable, isolated: Sequence[int], names: Sequence[str], starts: Sequence[int]
) -> np.ndarray:
    if recipe.split is not None:
        sides = table.sides(load_split(recipe.split))
        table.refuse_leaks(sides)
        return sides
    group = table.group_numbers()
    group[isolated] = -1
    groups = {}
    for name, first, last in zip(names, starts, starts[1:]):
        groups[name] = [table.groups[k] for k in np.unique(group[first:last]) if k >= 0]
    split = draw(groups, seed=recipe.seed, by=recipe.by, validation=recipe.validation, test=recipe.test)
    if recipe.shared == "join":
        sides = table.sides(join(split, table.groups_that_share()))
    else:
        sides = _without_copies(table.sides(split), table.duplicates())
    sides[isolated] = 0
    return sides


def _without_copies(sides: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`sides` with structures that lie on several left on the one that comes first in SIDES: training keeps its copies."""
    first = np.full(len(labels), len(SIDES))
    np.minimum.at(first, labels, sides)
    return np.where(sides == first[labels], sides, UNUSED)


def _head(
    dataset: Dataset, recipe: Recipe, compositions: Compositions, sides: np.ndarray, rows: slice, cutoff: float
) -> Head:
    name = dataset.head.name
    own = {side: np.flatnonzero(sides[rows] == number) for number, side in enumerate(SIDES)}
    if not own["train"].size:
        raise ConfigError(f"{dataset.directory}: head {name} has no structure on the training side")
    if dataset.head.kind != "energy":
        return _property_head(dataset, recipe, compositions, own, rows.start, cutoff)
    training = np.zeros(len(sides), bool)
    training[rows] = sides[rows] == 0
    wanted = recipe.head(name)
    known = compositions.isolated(training) | dict(wanted.reference_energies)
    try:
        fitted = compositions.fit(training)
        fit = compositions.fit(training, known=known) if known else fitted
    except GFMError as error:
        raise ConfigError(
            f"{dataset.directory}: head {name}: {error}; a head needs energies: label some of its structures, or leave it out"
        ) from error
    own, unseen = without_unseen(own, compositions, rows.start, fit.energies)
    statistics = statistics_of(dataset, own["train"], cutoff)
    spec = statistics.on_card(
        dataset.head, fit.energies, training_data=_origins(dataset, wanted, statistics.frames),
        reference_kind="isolated-atom" if set(fit.energies) <= set(known) else "fitted",
    )  # fmt: skip
    shift = {s: fitted.energies[s] - fit.energies[s] for s in fit.energies}
    return Head(
        spec=spec, dataset=dataset, sides=own, scale=statistics.scale, shift=shift, share=0.0, unseen=unseen,
        **statistics.of_work(),
    )  # fmt: skip


def _property_head(
    dataset: Dataset, recipe: Recipe, compositions: Compositions, own: dict[str, np.ndarray], first: int, cutoff: float
) -> Head:
    """`_head` for a property; first: the dataset's first row among all."""
    references, scale = start_of(dataset.head, dataset, own["train"])
    anew = {"landmarks": 0, "nonnegative": is_nonnegative(dataset.head, dataset, own["train"])}
    before, scale, fixed = gone_on(recipe, dataset.head.name) or ({}, scale, anew)
    references = {
        symbol: value for symbol, value in sorted((references | before).items(), key=lambda one: NUMBER_OF[one[0]])
    }
    own, unseen = without_unseen(own, compositions, first, references)
    statistics = statistics_of(dataset, own["train"], cutoff)
    origins = _origins(dataset, recipe.head(dataset.head.name), statistics.frames)
    spec = statistics.on_card(dataset.head, references, training_data=origins, **fixed)
    refuse_negative(spec, dataset, own["train"])
    return Head(
        spec=spec, dataset=dataset, sides=own, scale=scale, shift={}, share=0.0, unseen=unseen, **statistics.of_work()
    )


def without_unseen(
    own: Mapping[str, np.ndarray], compositions: Compositions, first: int, elements: Collection[str]
) -> tuple[dict[str, np.ndarray], int]:
    """The sides without held-out structures of elements that no training structure has, and how many these are.

    Args:
        own: side -> indices of a dataset.  compositions: of all rows.  first: the dataset's first row among them.
        elements: symbols that training structures have.
    """
    kept, unseen = dict(own), 0
    for side in ("validation", "test"):
        known = compositions.within(own[side] + first, elements)
        unseen += int((~known).sum())
        kept[side] = own[side][known]
    return kept, unseen


def _origins(dataset: Dataset, wanted: HeadRecipe, frames: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
    """Where the labels come from, for the card; `frames`: of the training side, by file without its endings."""
    data = [dict(entry) for entry in dataset.head.training_data] or [
        {"name": entry["name"]} for entry in dataset.inputs
    ]
    files = {entry["name"].partition(".")[0] for entry in dataset.inputs}
    for entry in data:
        name = entry["name"].partition(".")[0]
        if name in files:
            entry["frames"] = frames.get(name, 0)
        elif len(data) == 1:
            entry["frames"] = sum(frames.values())
        for key in ("licence", "citation"):
            if getattr(wanted, key) is not None:
                entry[key] = getattr(wanted, key)
    return tuple(data)


def with_shares(heads: Sequence[Head], recipe: Recipe) -> list[Head]:
    """The heads with their shares of the draws."""
    raw = [recipe.head(h.spec.name).share or len(h.sides["train"]) ** recipe.data.tau for h in heads]
    return [replace(head, share=share / sum(raw)) for head, share in zip(heads, raw)]


def loss_weights(heads: Sequence[Head], recipe: Recipe) -> list[float]:
    """Of the structures of each head: the recipe's weight, and what makes the draws stand for those of `loss_tau`."""
    weights = [recipe.head(head.spec.name).weight for head in heads]
    if recipe.data.loss_tau is None:
        return weights
    raw = [len(head.sides["train"]) ** recipe.data.loss_tau for head in heads]
    return [w * (r / sum(raw)) / head.share for w, r, head in zip(weights, raw, heads)]


# ---- in the run folder ----


def save_preparation(folder: Path, heads: Sequence[Head]) -> None:
    """Keep what `prepare` found."""
    cards = [
        {
            "spec": to_mapping(h.spec), "dataset": str(h.dataset.directory.resolve()), "digest": h.dataset.digest,
            "scale": h.scale, "shift": dict(h.shift), "neighbors": h.neighbors, "atoms": h.atoms, "share": h.share,
            "unseen": h.unseen,
        }
        for h in heads
    ]  # fmt: skip
    indices = {f"{n}/{side}": rows for n, head in enumerate(heads) for side, rows in head.sides.items()}
    files: dict[str, bytes | Path] = {
        "heads.json": canonical_json(cards), "sides.safetensors": safetensors.numpy.save(indices)
    }  # fmt: skip
    commit(folder, files, kind=KIND, format_version=FORMAT_VERSION)


def load_preparation(folder: Path) -> list[Head]:
    """What `save_preparation` kept.

    Raises:
        CorruptFileError: damaged, or of another shape.
        InputFileError: a dataset is gone, or not what it was.
    """
    artifact = open_artifact(folder, kind=KIND, newest_version=FORMAT_VERSION)
    indices = safetensors.numpy.load(artifact.read("sides.safetensors"))
    cards = artifact.read_json("heads.json")
    try:
        return [_loaded(folder, number, card, indices) for number, card in enumerate(cards)]
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{folder}: is not what this version writes: {one_line(error)}") from error


def _loaded(folder: Path, number: int, card: Mapping[str, Any], indices: Mapping[str, np.ndarray]) -> Head:
    if not Path(card["dataset"]).is_dir():
        raise InputFileError(f"{card['dataset']}: the run's data are gone; put them back, or start a new run")
    dataset = open_dataset(card["dataset"])
    if dataset.digest != card["digest"]:
        raise InputFileError(f"{card['dataset']}: is not what the run began with; start a new run for new data")
    spec = from_mapping(HeadSpec, card["spec"], f"{folder}: head {number}")
    sides = {side: indices[f"{number}/{side}"] for side in SIDES}
    values = {name: card[name] for name in ("scale", "shift", "neighbors", "atoms", "share", "unseen")}
    return Head(spec=spec, dataset=dataset, sides=sides, **values)


def load_heads(recipe: Recipe, cache: Path | None) -> list[Head]:
    """The recipe's heads with their sides, as in training.

    Args:
        cache: a folder that keeps what was prepared from these datasets with this recipe, or None.

    Raises:
        GFMError: no such data, heads without data, or a damaged cache.
    """
    if cache is None:
        return prepare(recipe, recipe.model.cutoff)
    contents = [to_toml(recipe), *(dataset.digest for dataset in find_datasets(recipe.data.path))]
    folder = cache / sha256(canonical_json(contents))[:16]
    if not (folder / MANIFEST).exists():
        save_preparation(folder, prepare(recipe, recipe.model.cutoff))
    return load_preparation(folder)
