"""A fine-tuning from files to a verified calculator; `finetune` reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.artifacts import canonical_json, read_json
from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.config import HeadSpec
from gfm_calc.errors import ConfigError, CorruptFileError, one_line
from gfm_calc.finetune import cheap, forgetting, sureness
from gfm_calc.finetune.classes import auc_of
from gfm_calc.finetune.combine import combine
from gfm_calc.finetune.plan import Cheap, Job, advice_on_full_disk, alone, begin, check, is_begun, old_heads, write
from gfm_calc.finetune.settling import settle
from gfm_calc.finetune.setup import Beginning, Material, Setup, look, set_up
from gfm_calc.finetune.stiff import with_guess
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import in_words, rounded, score
from gfm_calc.train.models import starting_model
from gfm_calc.train.outcome import provenance, trained_model
from gfm_calc.train.parallel import Place, Ranks, discover, quiet
from gfm_calc.train.preparation import Head
from gfm_calc.train.run_folder import open_run
from gfm_calc.train.runlog import Say, aloud
from gfm_calc.train.trainer import Trainer

_CHEAP_SHARE = 0.6  # of the user's minutes, for cheap labels and what is learnt of them
_LEAST_SHARE = 0.3  # of them for the user's own labels, however long that took


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fine-tuning found, for the terminal and the report.

    Attributes:
        setup: how it began.  head: the new one, with its sides.
        reason: why training ended, after so many `steps`.
        side: whose figures `before` and `after` are ("test", "validation" or "train").
        before, after: figures of the head as it began and as it is now, see `evaluation.figures`.
        sure: what the errors that it expects of itself are worth, or why it knows none; None of a class.
        drifts: of the old heads.  model: the new model.
        warning: a sentence where training made nothing better, or "".
    """

    setup: Setup
    head: Head
    reason: str
    steps: int
    side: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    model: GFMModel
    sure: sureness.Sureness | str | None
    drifts: Sequence[forgetting.Drift]
    warning: str


def finetune(job: Job, *, resume: bool, say: Say = aloud) -> Outcome | str:
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
    check(job)
    if job.cheap is not None:
        cheap.check(job.cheap, kind=job.card.kind, strategy=job.strategy)
    with alone(job), advice_on_full_disk():
        if resume and not is_begun(job):
            say(f"{job.output}: holds no job to go on with; a new one begins")
        outcome = _fit(job, place, say, resume=resume)
        if not isinstance(outcome, str):
            _tell(job, outcome, say)
        return outcome


def _tell(job: Job, outcome: Outcome, say: Say) -> None:
    """What was found, in words, and DIR/report.html."""
    for line in (sureness.in_words(outcome.sure), *_forgotten(outcome)):
        if line:
            say(line)
    if job.report:
        from gfm_calc.finetune.report import write_report

        write_report(job, outcome)
        say(f"{job.output / 'report.html'}")
    use = _USE if job.card.kind == "energy" else _USE_OF_PROPERTY
    say(f"\n{use.format(model=job.output / 'model', head=job.card.name)}")


_USE = """from gfm_calc import GFMCalculator
atoms.calc = GFMCalculator("{model}", head="{head}")
print(atoms.get_potential_energy(), atoms.get_forces())"""


_USE_OF_PROPERTY = """from gfm_calc import Predictor  # or GFMCalculator(...).predict_property(atoms, "{head}")
for row in Predictor("{model}", ["{head}"]).predict(structures):
    print(row["{head}"].value)"""


def _fit(job: Job, place: Place, say: Say, *, resume: bool, final: bool = True) -> Outcome | str:
    """DIR/model and DIR/errors.json; the signal that ended the run, where one did.

    Args:
        final: the head is one to be used: it learns what errors to expect.
    """
    since = time.monotonic()
    start = load_model(job.model)
    kept = old_heads(job.keep, list(start.specs), job.card.name)
    begin(job, resume=resume)
    found = look(job, start, say)
    beginning: Beginning | str = Beginning(model=start, where=job.model, origin=start, origin_where=job.model)
    if job.cheap is not None:
        beginning = _after_cheap(job, job.cheap, found, start, place, say)
        job, since = job.shortened(since, least=_LEAST_SHARE), time.monotonic()
    if isinstance(beginning, str):
        return beginning
    setup = set_up(job, found, beginning, kept, say, since=since)
    outcome = _train(job, setup, place, say, final=final)
    if not isinstance(outcome, str):
        write(job.output / "errors.json", canonical_json(_plain(_summary(outcome))))
    return outcome


def _after_cheap(
    job: Job, asked: Cheap, found: Material, origin: GFMModel, place: Place, say: Say
) -> Beginning | str:  # fmt: skip
    """Where the job begins when the model has learnt cheap labels; what an earlier run has learnt stays."""
    first = cheap.first_job(job, asked, list(origin.specs))
    since = time.monotonic()
    done = first.output / "errors.json"
    if not done.exists():
        records = list(found.dataset.read(found.sides.train, names=True).records())
        cheap.make_labels(job, asked, records, say)
        if job.max_minutes is not None:
            first = replace(first, max_minutes=_CHEAP_SHARE * job.max_minutes).shortened(since, least=0.5)
        goes_on = (first.output / "run").exists()
        outcome = _fit(first, place, lambda line: say(f"  {asked.calculator}: {line}"), resume=goes_on, final=False)
        if isinstance(outcome, str):
            return outcome
    learnt, model = read_json(done), first.output / "model"
    try:
        tuned = load_model(model)
    except CorruptFileError as error:
        raise CorruptFileError(f"{one_line(error)}; remove {first.output}, and --resume learns it again") from error
    return Beginning(
        model=tuned, where=str(model), origin=origin, origin_where=job.model,
        reason=cheap.in_words(asked, learnt["after"], learnt["side"]),
    )  # fmt: skip


def _train(job: Job, setup: Setup, place: Place, say: Say, *, final: bool) -> Outcome | str:
    """Train, measure before and after, and save DIR/model; the signal that ended the run, where one did."""
    folder, name, recipe = job.output / "run", job.card.name, setup.recipe
    ranks = Ranks(place, job.device, patience=recipe.parallel.patience)
    goes_on = (folder / "recipe.toml").exists()
    try:
        with open_run(folder, recipe, ranks, resume=goes_on, prepare=setup.heads) as heads:
            head = next(head for head in heads if head.spec.name == name)
            side = next(side for side in ("test", "validation", "train") if head.sides[side].size)
            trainer = Trainer(recipe, heads, ranks, folder, say)
            before = errors_of(trainer, head, side)
            frames = before["frames"]
            say(f"before: {in_words(before, head.spec)} on {frames} {side} structure{'s' * (frames != 1)}")
            began = trainer.validator.errors("validation", recipe.run.max_validation)
            reason = trainer.run()
            if reason.startswith("SIG"):
                say(f"{job.output}: stopped at step {trainer.step} of {recipe.run.steps} ({reason}); --resume goes on")
                return reason
            back = recipe.run.keep_best and score(began, recipe.objective) < score(trainer.errors, recipe.objective)
            step = 0 if back else trainer.model_step
            after = before if back else errors_of(trainer, head, side)
            chosen = "" if step == trainer.step else f"; the weights are those of step {step}"
            say(f"after:  {in_words(after, head.spec)} ({reason} at step {trainer.step}{chosen})")
            worse = score({name: after}, recipe.objective) > score({name: before}, recipe.objective)
            warning = (
                _NOTHING_BETTER if back else _WORSE.format(side=side, loss=_losses(before, after)) if worse else ""
            )
            if warning:
                say(f"  warning: {warning}")
            model, sure, drifts = _save(job, setup, trainer, side, after, step=step, final=final)
    finally:
        ranks.close()
    return Outcome(
        setup=setup, head=replace(head, dataset=setup.dataset) if setup.guess else head,
        reason=reason, steps=trainer.step, side=side, before=before, after=after, model=model,
        sure=sure, drifts=drifts, warning=warning,
    )  # fmt: skip


_NOTHING_BETTER = (
    "no step had smaller errors on the validation structures than the start: the weights are those that it began with; take "
    "more --steps or --max-minutes, or more structures"
)
_WORSE = (
    "worse on the {side} structures than where it began{loss}: take more --steps or --max-minutes, or more structures"
)


def _losses(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What got worse, where the figures above do not show it: of a class, the probabilities."""
    return f" (loss {before['loss']:.3g}, now {after['loss']:.3g})" if "accuracy" in after else ""


def errors_of(trainer: Trainer, head: Head, side: str) -> dict[str, Any]:
    """Figures of the head on one side, as `evaluation.figures`; of a class also roc_auc (NaN where all answers are one)."""
    found = trainer.validator.errors(side, 10**9)[head.spec.name]
    if head.spec.kind == "class":
        with trainer.validator.averaged() as model:
            found["roc_auc"] = auc_of(model, head.spec.name, head.select(side))
    return found


def _save(
    job: Job, setup: Setup, trainer: Trainer, side: str, after: Mapping[str, Any], *, step: int, final: bool
) -> tuple[GFMModel, sureness.Sureness | str | None, list[forgetting.Drift]]:
    """DIR/model, what its expected errors are worth, and what happened to the old heads; step: of the weights, 0 for those that
    the run began with."""
    name, errors = job.card.name, after if side == "test" else {}
    own = [
        replace(head, spec=replace(head.spec, test_errors=rounded(errors))) if head.spec.name == name else head
        for head in trainer.heads
    ]
    moved = (trainer.recipe.start.encoder_rate > 0 and step > 0) or setup.origin is not setup.start
    note = f"Its encoder was fine-tuned for {name} afterwards." if moved else ""
    trained = trained_model(trainer, own) if step else starting_model(trainer.recipe, own).to(trainer.model.dtype)
    model = combine(trained, setup.start, setup.kept, cards=setup.origin.specs, note=note)
    if moved:
        settle(model, setup.replay, setup.origin)
    sure = sureness.learn(model, next(head for head in own if head.spec.name == name), side) if final else None
    if setup.guess is not None and setup.fitted is not None:
        model = with_guess(model, setup.fitted.where, name, setup.guess)
    about = provenance(trainer) | {
        "step": step,
        "started_from": {"model": Path(job.model).name, "model_id": setup.origin.model_id},
    }
    save_model(model, job.output / "model", provenance=about)
    drifts = forgetting.measure(setup.origin, model, setup.kept) if moved else []
    return model, sure, drifts


def _forgotten(outcome: Outcome) -> list[str]:
    """Lines on the old heads."""
    if not outcome.drifts:
        return ["old heads: as they were" if outcome.setup.kept else "old heads: none is kept"]
    lines = ["old heads, on structures of theirs that were held out, or (*) on some that were made for the purpose:"]
    for drift in outcome.drifts:
        star = "" if drift.held_out else "*"
        if not np.isnan(drift.value):
            unit = outcome.model.specs[drift.head].unit
            lines.append(
                f"  {drift.head}{star}: values moved by {drift.value:.3g} {unit}; nothing guards heads of properties"
            )
            continue
        terms = (("force", drift.loss), ("energy", drift.energy_loss))
        known = [f"{100 * loss:.1f} % to its {term} error" for term, loss in terms if not np.isnan(loss)]
        loss = f"; adds {' and '.join(known)}" if known else ""
        lines.append(
            f"  {drift.head}{star}: forces moved by {1000 * drift.forces:.0f} meV/Å, energies by "
            f"{1000 * drift.energy:.1f} meV/atom{loss}"
        )
    return lines


def _summary(outcome: Outcome) -> dict[str, Any]:
    setup = outcome.setup
    return {
        "side": outcome.side, "before": outcome.before, "after": outcome.after, "reason": outcome.reason,
        "steps": outcome.steps, "ranking": [asdict(one) for one in setup.ranking],
        "expected_errors": asdict(outcome.sure) if isinstance(outcome.sure, sureness.Sureness) else None,
        "forgetting": [asdict(one) for one in outcome.drifts], "strategy": asdict(setup.strategy),
        "structures": {side: len(rows) for side, rows in setup.sides.as_mapping().items()},
        "unseen": {side: {"structures": n, "elements": list(s)} for side, (n, s) in setup.sides.unseen.items()},
        "first_guess": setup.guess and {"head": setup.guess.head, "error": setup.guess.error, "before": setup.guess.before},
        "warning": outcome.warning, "model_id": outcome.model.model_id, "started_from": setup.origin.model_id,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """NaN as null, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def card(name: str, inputs: Sequence[Path], values: Mapping[str, Any]) -> HeadSpec:
    """The card of a new head: what the user says of its labels, and the files they come from."""
    names = ", ".join(path.name for path in inputs[:3]) + (", ..." if len(inputs) > 3 else "")
    data = {"name": names} | {key: values[key] for key in ("licence", "citation") if values.get(key)}
    known = {key: v for key, v in values.items() if v not in (None, "") and key not in ("licence", "citation")}
    return HeadSpec(name=name, training_data=(data,), **known)
