"""`gfm bench alone`: the heads of a model beside networks of the same size that learnt one head each.

A network alone sees as many structures of its head as the model did in all stages of its training, with the settings of the
first stage but in smaller steps where they would be too few, and is tested on the same held-out groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.accuracy import measure
from gfm_calc.benchmarks.runs import folder_of_runs, train_all
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import ConfigError
from gfm_calc.predictor import Predictor
from gfm_calc.train.cli import recipe_on
from gfm_calc.train.evaluation import mae
from gfm_calc.train.preparation import Head, load_heads
from gfm_calc.train.recipe import Recipe

_FEWEST_STEPS = 2000  # steps of fewer structures rather than fewer steps: what somebody with one dataset would do
_FEWEST_STRUCTURES = 4  # in a step
_ERRORS = (mae("energy"), mae("forces"))


@dataclass(frozen=True, kw_only=True)
class AlonePlan:
    """What to compare.

    Attributes:
        model: name or directory.
        data: folder of the datasets that it was trained on.
        stages: recipes of its training, in order (names or files); each says the shares of heads.
        heads: of energies, of the model; () stands for all of them.
        processes: trainings at a time, of one thread each.
        settings: "table.key=value" each, for the trainings.
        work: folder that keeps the runs, see `runs.folder_of_runs`.  cache: of `preparation.load_heads`.
    """

    model: str
    data: Path
    stages: Sequence[str]
    heads: Sequence[str] = ()
    processes: int = 1
    settings: Sequence[str] = ()
    work: Path | None = None
    cache: Path | None = None


def run_alone(plan: AlonePlan) -> list[dict[str, Any]]:
    """Rows {head, train_structures, draws, steps, together, alone (error -> [value]), gain (error -> relative gain)}.

    Raises:
        ConfigError: a head that the model has not, or one of a property; a recipe without shares.
        GFMError: a training that fails.
    """
    # What a later stage began with is not opened: its shares and steps are all that is read.
    begun = [[], *([['start.model="the stage before"']] * (len(plan.stages) - 1))]
    stages = [recipe_on(plan.data.resolve(), stage, more) for stage, more in zip(plan.stages, begun)]
    model = load_model(plan.model)
    chosen = [model.spec(name).name for name in plan.heads or model.energy_heads]
    for name in chosen:
        if name not in model.energy_heads:
            raise ConfigError(f"head {name} is no head of energies: what a property gains is not measured here")
    seen = {name: sum(_draws(stage, name) for stage in stages) for name in chosen}
    prepared = {head.spec.name: head for head in load_heads(stages[0], plan.cache)}
    for name in chosen:
        if name not in prepared:
            raise ConfigError(f"{plan.data}: has no data of head {name}")
    # A network alone is tested on all structures of its side, whatever the head's card says.
    ours = {name: Predictor(model, [name], strict=False) for name in chosen}
    together = measure(ours, [prepared[name] for name in chosen])
    # The longest first, so that none is left when the other processes are idle.
    order = sorted(chosen, key=lambda name: -seen[name] * prepared[name].atoms)
    recipes = {name: _recipe(plan, name, seen[name]) for name in order}
    runs = {name: (recipes[name], [replace(prepared[name], share=1.0)]) for name in order}
    with folder_of_runs(plan.work) as folder, Progress("alone", "runs", len(chosen)) as progress:
        found = train_all(folder, runs, progress, plan.processes)
    return [
        _row(prepared[name], recipes[name], together[name]["model"], found[name]["test"].get(name, {}))
        for name in chosen
    ]


def _draws(stage: Recipe, name: str) -> int:
    """Structures of a head that a training draws."""
    shares = {head.name: head.share for head in stage.heads if head.share is not None}
    if name not in shares:
        raise ConfigError(f"the recipe of a stage gives head {name} no share: how often it was seen is not known")
    return round(stage.run.steps * stage.run.structures * shares[name] / sum(shares.values()))


def _recipe(plan: AlonePlan, name: str, draws: int) -> Recipe:
    """Of a network that sees so many structures of one head."""
    first = recipe_on(plan.data.resolve(), plan.stages[0])
    structures = min(first.run.structures, max(_FEWEST_STRUCTURES, draws // _FEWEST_STEPS))
    steps = max(1, draws // structures)
    scale = steps / first.run.steps
    settings = [
        f'data.heads=["{name}"]', f"run.steps={steps}", f"run.structures={structures}",
        f"optimizer.warmup={round(first.optimizer.warmup * min(1.0, scale))}",
        f"optimizer.fall={round(first.optimizer.fall * scale)}", "run.validate_every=0", *plan.settings,
    ]  # fmt: skip
    return recipe_on(plan.data.resolve(), plan.stages[0], settings)


def _row(head: Head, recipe: Recipe, together: Mapping[str, Any], alone: Mapping[str, float]) -> dict[str, Any]:
    """The row of a head; without errors where the two were not tested on as many structures."""
    row: dict[str, Any] = {
        "head": head.spec.name, "train_structures": len(head.sides["train"]), "steps": recipe.run.steps,
        "draws": recipe.run.steps * recipe.run.structures, "together": {}, "alone": {}, "gain": {},
    }  # fmt: skip
    for name in _ERRORS if together.get("frames") == alone.get("frames") else ():
        if name in together and name in alone:
            row["together"][name], row["alone"][name] = [together[name]], [alone[name]]
            row["gain"][name] = 1 - together[name] / alone[name]
    return row
