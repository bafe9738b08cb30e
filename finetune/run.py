"""A fine-tuning from files to a verified calculator; `finetune` reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.artifacts import MANIFEST, canonical_json, write_file
from gfm_calc.checkpoint import load_model, resolve, save_model
from gfm_calc.commands.inspection_report import page as inspection_page
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.loader import Loader
from gfm_calc.data.store import Dataset, Selection, open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError, GFMError, one_line
from gfm_calc.finetune import forgetting, strategy
from gfm_calc.finetune.combine import combine
from gfm_calc.finetune.nearest import Nearness, rank_heads
from gfm_calc.finetune.plan import Job, begin, old_heads, read_decisions, write_decisions
from gfm_calc.finetune.preflight import Preflight, preflight
from gfm_calc.finetune.preparation import References, Sides, divide, find_references, new_head, old_head, sample
from gfm_calc.finetune.replay import build_replay
from gfm_calc.finetune.strategy import REPLAY_COUNT, Strategy, recipe_of
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import rounded
from gfm_calc.train.models import starting_model
from gfm_calc.train.outcome import provenance, trained_model
from gfm_calc.train.parallel import Ranks, discover, quiet
from gfm_calc.train.preparation import Head, with_shares
from gfm_calc.train.recipe import DataRecipe, Recipe
from gfm_calc.train.run_folder import open_run
from gfm_calc.train.trainer import Trainer

_TRAINING = 3.0  # times as long as a prediction with forces takes a step
_MARGIN = 0.8  # of the time that the user gives is for steps
_LEAST_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fine-tuning found, for the terminal and the report.

    Attributes:
        reason: why training ended.  side: whose figures `before` and `after` are ("test", ...).
        before, after: figures of the head as it began and as it is now, see `evaluation.figures`.
        ranking, references, strategy, sides: see there.
        drifts: of the old heads.  model, start: the new model, and that at the beginning of the run.  head: the new one.
    """

    reason: str
    side: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    ranking: Sequence[Nearness]
    references: References
    strategy: Strategy
    sides: Sides
    drifts: Sequence[forgetting.Drift]
    model: GFMModel
    start: GFMModel
    head: Head


def finetune(job: Job, *, resume: bool, say=print) -> Outcome | str:
    """Fine-tune.

    Args:
        resume: go on with the job in its folder.
        say: gets each line for the terminal.

    Returns:
        what was found; or the signal that ended the run, which can go on.

    Raises:
        GFMError: data that cannot be used, a folder that is taken, a disk that is full, or training that diverged.
    """
    quiet()
    place = discover()
    if place.world > 1:
        raise ConfigError("gfm finetune runs on one process; gfm train goes on from a saved model with [start] on many")
    start = load_model(job.model)
    kept = old_heads(job.keep, list(start.specs), job.card.name)
    begin(job, resume=resume)
    checks = _look(job, start, say)
    dataset = _dataset(job)
    data = DataRecipe(path=str(dataset.directory), by=job.by, validation=job.validation, test=job.test, seed=job.seed)
    sides = divide(dataset, data, test_files=[p.name for p in job.test_files], max_train=job.max_train)
    say(f"{len(sides.train)} structures to train on, {len(sides.validation)} to validate, {len(sides.test)} to test")
    ranking = rank_heads(start, sample(dataset, sides.train))
    nearest = ranking[0].head
    references = find_references(start, nearest, dataset, sides)
    _say_start(ranking, references, sides, say)
    plan = _strategy(job, start, dataset, sides, [h for h in kept if h in start.energy_heads])
    for reason in plan.reasons:
        say(f"  {reason}")
    replayed = [h for h in kept if h in start.energy_heads] if plan.replay else []
    replay = build_replay(job.output / "replay", start, job.model, replayed, count=REPLAY_COUNT, seed=job.seed)
    recipe = recipe_of(
        plan, model=(str(resolve(job.model)), start.model_id), data=data, config=start.config, head=job.card.name,
        nearest=nearest, old_heads=tuple(replay), dtype=job.dtype,
    )  # fmt: skip
    recipe = replace(recipe, run=replace(recipe.run, max_minutes=job.max_minutes, seed=job.seed,
                                         stop_after=8 if sides.validation.size else 0))  # fmt: skip

    def heads(recipe: Recipe, cutoff: float) -> list[Head]:
        new = new_head(dataset.head, dataset, sides, references, start, nearest)
        return with_shares([new, *(old_head(start, name, found) for name, found in replay.items())], recipe)

    ranks = Ranks(place, job.device, patience=recipe.parallel.patience)
    with open_run(
        job.output / "run", recipe, ranks, resume=(job.output / "run" / "recipe.toml").exists(), prepare=heads
    ) as own:
        trainer = Trainer(recipe, own, ranks, job.output / "run")
        side = next(side for side in ("test", "validation", "train") if own[0].sides[side].size)
        before = trainer.validator.errors(side, 10**9)[job.card.name]
        say(f"before: {_figures(before)} on {before['frames']} {side} structures")
        reason = trainer.run()
        ranks.close()
        if reason.startswith("SIG"):
            say(f"{job.output}: stopped at step {trainer.step} of {recipe.run.steps} ({reason}); --resume goes on")
            return reason
        after = trainer.validator.errors(side, 10**9)[job.card.name]
    say(f"after:  {_figures(after)} ({reason} at step {trainer.step})")
    model, drifts = _save(job, trainer, start, kept, after if side == "test" else {})
    outcome = Outcome(
        reason=reason, side=side, before=before, after=after, ranking=ranking, references=references, strategy=plan,
        sides=sides, drifts=drifts, model=model, start=starting_model(recipe, own).eval(), head=own[0],
    )  # fmt: skip
    _tell(job, outcome, checks, say)
    return outcome


# ---- its parts ----


def _look(job: Job, start: GFMModel, say) -> Preflight:
    found = preflight(
        [*job.inputs, *job.test_files], start, options=job.options, format=job.format, accepted=job.accepted
    )
    frames = sum(len(file.statistics) for file in found.inspection.files)
    for finding in found.findings:
        if finding.level != "note":
            say(f"  {finding.level}: {finding.text}")
    if job.report:
        _write(job.output / "preflight.html", inspection_page(found.inspection).encode())
    found.require()
    say(f"{frames} frames looked at: nothing stands in the way")
    return found


def _dataset(job: Job) -> Dataset:
    """The user's files as a dataset; one that an earlier run of the job has written is there already."""
    place = job.output / "datasets" / job.card.name
    if not (place / MANIFEST).exists():
        tasks = file_tasks([*job.inputs, *job.test_files], format=job.format, options=job.options)
        build(place, tasks, job.card, processes=0)
    return open_dataset(place)


def _strategy(job: Job, start: GFMModel, dataset: Dataset, sides: Sides, old: Sequence[str]) -> Strategy:
    """The strategy of the job: decided once, since it depends on the time that a step takes."""
    known = read_decisions(job.output)
    if known is not None:
        return Strategy(**(known["strategy"] | {"reasons": tuple(known["strategy"]["reasons"])}))
    block = dataset.read(sides.train)
    labels = sum(int(np.isfinite(x).sum()) for x in (block.energy, block.forces, block.stress) if x is not None)
    found = strategy.choose(
        len(sides.train), labels, wanted=job.strategy, naive=job.naive, keeps_heads=bool(old), steps=job.steps
    )
    if job.max_minutes is not None:
        step = _seconds_of_step(start, dataset, sides, found.structures)
        most = max(_LEAST_STEPS, int(60 * job.max_minutes * _MARGIN / step))
        if most < found.steps:
            text = f"{most} steps instead: as many as {job.max_minutes:g} minutes allow at {1000 * step:.0f} ms each"
            found = replace(found, steps=most, reasons=(*found.reasons, text))
    write_decisions(job.output, {"strategy": asdict(found)})
    return found


def _seconds_of_step(model: GFMModel, dataset: Dataset, sides: Sides, structures: int) -> float:
    source = Selection(dataset, sides.train[:structures])
    head = model.energy_heads[0]
    seconds = []
    for _ in range(3):
        since = time.perf_counter()
        for batch in Loader([source], model.config.cutoff).once():
            model.predict(batch.graph, [head])
        seconds.append(time.perf_counter() - since)
    return _TRAINING * min(seconds)


def _say_start(ranking: Sequence[Nearness], references: References, sides: Sides, say) -> None:
    say("nearest heads (what is left after fitting reference energies):")
    for one in ranking[:3]:
        unseen = f"; has not seen {', '.join(one.unseen)}" if one.unseen else ""
        say(f"  {one.head}: energy {1000 * one.energy:.1f} meV/atom, forces {1000 * one.forces:.0f} meV/Å{unseen}")
    if references.fit is not None and not references.fit.is_unique:
        say(
            "  note: the compositions do not determine the reference energies of single elements: energies of other "
            "compositions mean nothing; add free atoms, or more compositions"
        )
    if references.isolated:
        say(f"  reference energies of {', '.join(references.isolated)} from free atoms in the data")
    if sides.near_twins:
        say(
            f"  note: {sides.near_twins} structures have a near twin on another side of the split: errors there look too good"
        )


def _save(
    job: Job, trainer: Trainer, start: GFMModel, kept: Sequence[str], errors: Mapping[str, Any]
) -> tuple[GFMModel, list[forgetting.Drift]]:
    """DIR/model, and what happened to the old heads."""
    name = job.card.name
    own = [
        replace(head, spec=replace(head.spec, test_errors=rounded(errors))) if head.spec.name == name else head
        for head in trainer.heads
    ]
    moved = trainer.recipe.start.encoder_rate > 0
    note = f"Its encoder was fine-tuned for {name} afterwards." if moved else ""
    model = combine(trained_model(trainer, own), start, kept, note=note)
    about = provenance(trainer) | {"started_from": {"model": Path(job.model).name, "model_id": start.model_id}}
    try:
        save_model(model, job.output / "model", provenance=about)
    except OSError as error:
        raise GFMError(f"{job.output / 'model'}: could not be written ({one_line(error)})") from error
    drifts = forgetting.measure(start, model, [h for h in kept if h in start.energy_heads]) if moved else []
    return model, drifts


def _tell(job: Job, outcome: Outcome, checks: Preflight, say) -> None:
    """Forgetting, the files, and how to use the model."""
    for drift in outcome.drifts:
        loss = "" if np.isnan(drift.loss) else f", {100 * drift.loss:.1f} % of the head's error"
        say(f"  old head {drift.head}: forces moved by {1000 * drift.forces:.0f} meV/Å{loss}")
    if not outcome.drifts:
        say("  old heads: as they were")
    figures = {
        "side": outcome.side, "before": outcome.before, "after": outcome.after, "reason": outcome.reason,
        "ranking": [asdict(one) for one in outcome.ranking], "forgetting": [asdict(one) for one in outcome.drifts],
        "strategy": asdict(outcome.strategy),
        "structures": {side: len(rows) for side, rows in outcome.sides.as_mapping().items()},
    }  # fmt: skip
    _write(job.output / "errors.json", canonical_json(_plain(figures)))
    if job.report:
        from gfm_calc.finetune.report import write_report

        write_report(job, outcome, checks)
        say(f"{job.output / 'report.html'}")
    say(f"\n{USE.format(model=job.output / 'model', head=job.card.name)}")


USE = """from gfm_calc import GFMCalculator
atoms.calc = GFMCalculator("{model}", head="{head}")
print(atoms.get_potential_energy(), atoms.get_forces())"""


def _figures(row: Mapping[str, Any]) -> str:
    from gfm_calc.train.evaluation import SHOWN, mae

    return ", ".join(f"{term} {row[mae(term)]:.1f} {unit}" for term, unit in SHOWN.items() if mae(term) in row)


def _plain(value: Any) -> Any:
    """NaN as null, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write(path: Path, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise GFMError(f"{path}: could not be written ({one_line(error)})") from error


def card(name: str, inputs: Sequence[Path], values: Mapping[str, Any]) -> HeadSpec:
    """The card of a new head: what the user says of its labels, and the files they come from."""
    names = ", ".join(path.name for path in inputs[:3]) + (", ..." if len(inputs) > 3 else "")
    data = {"name": names} | {key: values[key] for key in ("licence", "citation") if values.get(key)}
    known = {key: value for key, value in values.items() if value and key not in ("licence", "citation")}
    return HeadSpec(name=name, training_data=(data,), **known)
