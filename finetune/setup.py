"""Everything that is decided before training begins: what the data are, where the head starts, how it will learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from gfm_calc.artifacts import MANIFEST, canonical_json, read_json
from gfm_calc.checkpoint import resolve
from gfm_calc.commands.inspection_report import page
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.references import read_reference_energies
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError
from gfm_calc.finetune import strategy
from gfm_calc.finetune.forgetting import card_error
from gfm_calc.finetune.nearest import Nearness, rank_heads
from gfm_calc.finetune.plan import GUESS, PREFLIGHT, START, Job, read_decisions, take, write, write_decisions
from gfm_calc.finetune.preflight import Preflight, preflight
from gfm_calc.finetune.preparation import (
    References,
    Sides,
    divide,
    find_references,
    new_head,
    old_head,
    property_head,
    sample,
)
from gfm_calc.finetune.readout import FittedHead, begin_head
from gfm_calc.finetune.replay import build_replay, enough, within
from gfm_calc.finetune.stiff import Guess, begin_guess
from gfm_calc.finetune.strategy import REPLAY_COUNT, Strategy, recipe_of, shortened
from gfm_calc.model import GFMModel
from gfm_calc.train.keys import BLOCKS
from gfm_calc.train.pace import seconds_of_step
from gfm_calc.train.preparation import Head, with_shares
from gfm_calc.train.recipe import DataRecipe, Recipe
from gfm_calc.train.runlog import Say

_MARGIN = 0.85  # of the time that the user gives is for steps, the rest for validations
_LEAST_STEPS = 50
_LEAST_SHARE = 0.5  # of the minutes for training, however long a first guess and old heads take
_OLD_SHARE = 0.35  # of them, at most, for what old heads need besides steps: labels before, a fit and a trial after
_PATIENCE = 8  # validations without improvement that end the run
_FAR = 0.1  # from the fraction that was asked for
# Of the spread of the labels, at most, is left by fits that larger steps would only undo.  1,000 formation energies (Matbench,
# fold 1, which no table shows): 0.10 is left, and errors are 0.068 eV/atom at 1e-3 and 0.084 at 3e-3.
_NEAR = 0.15
_COUNTS = "counts.json"  # of structures that each old head repeats
_ENOUGH = 10  # structures that can tell whether there is an improvement, and labels that can tell the best weights


@dataclass(frozen=True, kw_only=True)
class Material:
    """The user's structures: what the inspection found, the dataset, how it is divided (`data`: by which recipe)."""

    checks: Preflight
    dataset: Dataset
    data: DataRecipe
    sides: Sides


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a run begins.

    Attributes:
        model: what it begins with.  where: name or directory.
        origin: what old heads shall go on to say: the user's model; another one than `model` where cheap labels came first.
        origin_where: name or directory of that.
        reason: what `model` has learnt since, in words; "": nothing.
    """

    model: GFMModel
    where: str
    origin: GFMModel
    origin_where: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run is made of.

    Attributes:
        start: the model it begins with.  origin: the user's (see `Beginning`).  kept: heads that the new model keeps.
        checks, sides, ranking, references, strategy: what was found and chosen, see there; no ranking and no references for a
            property.  fitted: the head of a property that was fitted, see `readout`.
        guess: what is taken off the labels of a property, see `stiff`.
        dataset: the user's structures.  replay: those of the old heads that learn on.
        recipe: of the run.
    """

    start: GFMModel
    origin: GFMModel
    kept: Sequence[str]
    checks: Preflight
    dataset: Dataset
    sides: Sides
    ranking: Sequence[Nearness]
    references: References | None
    guess: Guess | None
    fitted: FittedHead | None
    strategy: Strategy
    replay: Mapping[str, Dataset]
    recipe: Recipe

    def heads(self, recipe: Recipe, cutoff: float) -> list[Head]:
        """The heads of the run, as `preparation.prepare` gives them."""
        if self.references is None:
            labels = self.dataset if self.guess is None else self.guess.dataset
            new = property_head(labels, self.sides, self.start, self.fitted)
        else:
            nearest = self.ranking[0].head
            new = new_head(self.dataset.head, self.dataset, self.sides, self.references, self.start, nearest)
        return with_shares([new, *(old_head(self.start, name, d) for name, d in self.replay.items())], recipe)


def look(job: Job, start: GFMModel, say: Say) -> Material:
    """Inspect the data, and divide them; the same again for a job that goes on.

    Raises:
        GFMError: data that cannot be used, or a disk that is full.
    """
    checks = _look(job, start, say)
    take(job)
    dataset, test_rows = _dataset(job)
    data = DataRecipe(path=str(dataset.directory), by=job.by, validation=job.validation, test=job.test, seed=job.seed)
    sides = divide(
        dataset, data, test_rows=test_rows, max_train=job.max_train, drop_shared=job.drop_shared, curve=job.curve
    )
    if job.isolated is not None:
        sides = replace(sides, isolated={**sides.isolated, **read_reference_energies(job.isolated)})
    if job.card.kind == "energy" and not start.energy_heads:
        raise ConfigError(f"--from {job.model}: has no head of energies that a new one could begin as")
    _say_sides(job, sides, say)
    return Material(checks=checks, dataset=dataset, data=data, sides=sides)


def set_up(
    job: Job, found: Material, beginning: Beginning, kept: Sequence[str], say: Say, *, since: float
) -> Setup:  # fmt: skip
    """Decide; the same again for a job that goes on.

    Args:
        since: of `time.monotonic`, when the user's minutes began.

    Raises:
        GFMError: a strategy that does not exist, or a disk that is full.
    """
    start, dataset, sides = beginning.model, found.dataset, found.sides
    is_property = job.card.kind != "energy"
    ranking = [] if is_property else rank_heads(start, sample(dataset, sides.train))
    references = None if is_property else find_references(start, ranking[0].head, dataset, sides)
    if references is not None:
        _say_start(ranking, references, say)
    known = read_decisions(job.output)
    guess, fitted = _begin(job, start, dataset, sides, say, goes_on=known is not None) if is_property else (None, None)
    old = [head for head in kept if head in start.energy_heads]
    if known is None:
        plan = _strategy(
            job, beginning, dataset, sides, old, _beginning_of(job.card, fitted, _spread(dataset, sides.train))
        )
    else:
        plan = Strategy.from_mapping(known["strategy"])
    replay, after, fewer = _replay(job, beginning, old if plan.replay else [], since, decided=known is not None)
    plan = replace(plan, reasons=(*plan.reasons, *fewer)) if known is None else plan
    job = job.shortened(since, least=_LEAST_SHARE, reserved=after)
    where, model_id = (
        (resolve(beginning.where), start.model_id) if fitted is None else (fitted.where.resolve(), fitted.model_id)
    )
    nearest = ranking[0].head if ranking else None if fitted is None else job.card.name
    recipe = recipe_of(
        plan, model=(str(where), model_id), data=found.data, config=start.config, head=job.card.name, nearest=nearest,
        old_heads=_old_heads(beginning.origin, replay), dtype=job.dtype,
    )  # fmt: skip
    patience = _PATIENCE if len(sides.validation) >= _ENOUGH else 0
    # One number that happens to fit would choose weights by chance; the forces of one structure are many.
    telling = _labels(dataset, sides.validation) >= _ENOUGH
    run = replace(recipe.run, max_minutes=job.max_minutes, seed=job.seed, stop_after=patience, keep_best=telling)
    setup = Setup(
        start=start, origin=beginning.origin, kept=kept, checks=found.checks, dataset=dataset, sides=sides, ranking=ranking,
        references=references, guess=guess, fitted=fitted, strategy=plan, replay=replay, recipe=replace(recipe, run=run),
    )  # fmt: skip
    if known is None:  # decided once: what a step takes differs from time to time
        setup = setup if job.max_minutes is None else _in_time(setup, job)
        write_decisions(job.output, {"strategy": asdict(setup.strategy)})
    for reason in setup.strategy.reasons:
        say(f"  {reason}")
    return setup


def _replay(
    job: Job, beginning: Beginning, old: Sequence[str], since: float, *, decided: bool
) -> tuple[Mapping[str, Dataset], float, Sequence[str]]:  # fmt: skip
    """What old heads repeat; the seconds that they take after training, where the user counts minutes; and, in words, that they
    repeat fewer structures for it.

    Args:
        decided: an earlier run has come as far as steps; what it chose stays.
    """
    folder = job.output / "replay"
    wanted = {name: enough(beginning.origin.specs[name], REPLAY_COUNT) for name in old}
    kept = read_json(folder / _COUNTS) if (folder / _COUNTS).exists() else wanted if decided else None
    left = job.shortened(since, least=_LEAST_SHARE).max_minutes
    counts, after = kept or wanted, 0.0
    if left is not None:
        seconds, fixed = 60 * _OLD_SHARE * left, kept is not None
        counts, after = within(beginning.origin, counts, seconds, seed=job.seed, fixed=fixed)
    if old and kept is None:
        write(folder / _COUNTS, canonical_json(dict(counts)))
    few, many = sum(counts.values()), sum(wanted.values())
    words = [f"old heads repeat {few} structures instead of {many}: for --max-minutes"] if few < many else []
    return build_replay(folder, beginning.origin, beginning.origin_where, counts, seed=job.seed), after, words


def _old_heads(origin: GFMModel, replay: Mapping[str, Dataset]) -> dict[str, strategy.OldHead]:
    return {
        name: strategy.OldHead(len(dataset), card_error(origin, name, "energy"), card_error(origin, name))
        for name, dataset in replay.items()
    }


def _begin(
    job: Job, start: GFMModel, dataset: Dataset, sides: Sides, say: Say, *, goes_on: bool
) -> tuple[Guess | None, FittedHead | None]:  # fmt: skip
    """A first guess at a property, and the head that begins at a fit to what that leaves."""
    groups = sides.train_groups
    goes_on = goes_on or (job.output / START / MANIFEST).exists()
    guess = begin_guess(
        job.output / GUESS, start, dataset, sides.as_mapping(), groups, say, minutes=job.max_minutes, goes_on=goes_on
    )
    labels = dataset if guess is None else guess.dataset
    return guess, begin_head(job.output / START, start, labels, sides.train, groups, say)


def _beginning_of(card: HeadSpec, fitted: FittedHead | None, spread: float) -> str:
    """How a head begins, as `strategy.choose` takes it.

    Args:
        fitted: the head of a property, where it was fitted.  spread: of its labels.
    """
    if card.kind == "energy":
        return strategy.AS_ANOTHER
    if fitted is None:
        return strategy.RANDOM
    is_far = not fitted.left_out < _NEAR * spread
    return strategy.FITTED_MEAN if card.kind == "scalar" and not card.is_sum and is_far else strategy.FITTED


def _spread(dataset: Dataset, rows: np.ndarray) -> float:
    """Mean absolute difference of the labels from the middle one; NaN of those that are no numbers."""
    labels = dataset.read(rows).value
    if labels is None or not np.isfinite(labels[:, 0]).any():
        return math.nan
    return float(np.nanmean(np.abs(labels[:, 0] - np.nanmedian(labels[:, 0]))))


def _in_time(setup: Setup, job: Job) -> Setup:
    """With as many steps as the user's minutes allow, where those are fewer."""
    assert job.max_minutes is not None
    plan, recipe = setup.strategy, setup.recipe
    step = seconds_of_step(recipe, setup.heads(recipe, recipe.model.cutoff), job.device)
    most = max(_LEAST_STEPS, int(60 * job.max_minutes * _MARGIN / step))
    if most >= plan.steps:
        return setup
    minutes = f"{job.max_minutes:.2g} minute{'s' * (job.max_minutes != 1)}"
    why = f"as many as fit in {minutes} at {1000 * step:.0f} ms each"
    text = f"{most} steps instead: {why if most > _LEAST_STEPS else 'the fewest; minutes may end before'}"
    plan = replace(plan, steps=most, reasons=(*plan.reasons, text))
    return replace(setup, strategy=plan, recipe=shortened(recipe, most))


def _look(job: Job, start: GFMModel, say: Say) -> Preflight:
    found = preflight(
        [*job.inputs, *job.test_files], start, job.card, options=job.options, format=job.format, accepted=job.accepted
    )
    frames = sum(len(file.statistics) for file in found.inspection.files)
    for finding in found.findings:
        if finding.level != "note" and not (job.own_labels and finding.code in job.accepted):
            say(f"  {finding.level}: {finding.text}")
    if job.report:
        write(job.output / PREFLIGHT, page(found.inspection).encode())
    found.require()
    say(f"{frames} frames looked at: nothing stands in the way")
    return found


def _dataset(job: Job) -> tuple[Dataset, int]:
    """The user's files as a dataset, and how many structures at its end are of test files; one that an earlier run of the job
    has written is there already.

    Names do not tell the files apart: run1/OUTCAR and run2/OUTCAR may be on two sides.
    """
    place = job.output / "datasets" / job.card.name
    test_tasks = file_tasks(job.test_files, format=job.format, options=job.options)
    if not (place / MANIFEST).exists():
        for path in job.test_files:
            if path in job.inputs:
                raise ConfigError(f"{path}: named twice, as data and as --test-file; take one away")
        tasks = [*file_tasks(job.inputs, format=job.format, options=job.options), *test_tasks]
        build_flat(place, tasks, job.card)
    dataset = open_dataset(place)
    entries = sum(len({path.name for path in task.paths}) for task in test_tasks)  # equal names in a task are one entry
    last = dataset.inputs[len(dataset.inputs) - entries :]
    return dataset, sum(int(entry["structures"]) for entry in last)


def _strategy(
    job: Job, beginning: Beginning, dataset: Dataset, sides: Sides, old: Sequence[str], how: str
) -> Strategy:  # fmt: skip
    """What the number of structures and labels suggests; how: the head begins, see `strategy.choose`."""
    return strategy.choose(
        len(sides.train), _labels(dataset, sides.train), wanted=job.strategy, naive=job.naive, keeps_heads=bool(old),
        steps=job.steps, start=how, learnt=beginning.reason,
    )  # fmt: skip


def _labels(dataset: Dataset, rows: np.ndarray) -> int:
    """Numbers that the structures are labelled with: energies, components of forces and stress, properties."""
    if not len(rows):
        return 0
    block = dataset.read(rows)
    known = (block.energy, block.forces, block.stress, block.value, block.atom_values)
    return sum(int(np.isfinite(x).sum()) for x in known if x is not None)


def _say_sides(job: Job, sides: Sides, say: Say) -> None:
    counts = ", ".join(f"{len(rows)} {side}" for side, rows in sides.as_mapping().items())
    say(f"structures: {counts}")
    for side, (count, symbols) in sides.unseen.items():
        say(
            f"  warning: {count} {side} structure{'s' * (count != 1)} left out: no training structure has "
            f"{', '.join(symbols)}"
        )
    if sides.near_twins:
        say(
            f"  note: {sides.near_twins} structures have a near twin on another side of the split: errors there look too good"
        )
    if sides.key == BLOCKS:
        say(
            "  note: held out are blocks of frames that follow each other: there are too few groups to hold out whole ones"
        )
    if job.max_train is not None:
        return  # whatever was asked for is a fraction of more
    asked = {"validation": job.validation} | ({} if job.test_files else {"test": job.test})
    total = len(sides.train) + sum(len(getattr(sides, side)) for side in asked)
    reached = {side: len(getattr(sides, side)) / total for side in asked}
    if any(abs(reached[side] - asked[side]) > max(_FAR, asked[side]) for side in asked):
        told = ", ".join(f"{side} {reached[side]:.2f} (asked: {asked[side]:g})" for side in asked)
        say(
            f"  warning: held out: {told}; divided by {sides.key}, of which there are {sides.groups}: another --by may come "
            "nearer"
        )


def _say_start(ranking: Sequence[Nearness], references: References, say: Say) -> None:
    say("nearest heads (what is left after fitting reference energies):")
    for one in ranking[:3]:
        unseen = f"; has not seen {', '.join(one.unseen)}" if one.unseen else ""
        known = [
            (f"energy {1000 * one.energy:.1f} meV/atom", one.energy),
            (f"forces {1000 * one.forces:.0f} meV/Å", one.forces),
        ]
        say(f"  {one.head}: {', '.join(text for text, value in known if np.isfinite(value))}{unseen}")
    if references.fit is not None and not references.fit.is_unique:
        say(
            "  note: the compositions do not determine the reference energies of single elements: energies of other "
            "compositions mean nothing; add free atoms, or more compositions"
        )
    if references.isolated:
        fitted = [symbol for symbol in references.energies if symbol not in references.isolated]
        others = f"; of {', '.join(fitted)}, without a free atom, fitted" if fitted else ""
        say(f"  reference energies of {', '.join(references.isolated)} from free atoms{others}")
