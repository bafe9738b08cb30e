"""`gfm bench ablation`: a recipe and changes of it, each trained from the same seeds on the same structures.

Errors are those of the validation side: choices are made by them, and the test side is left for what was chosen.

title = "Width"

[[variants]]
name = "wider"
set = ["model.num_features=96"]
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.runs import folder_of_runs, train_all
from gfm_calc.commands.progress import Progress
from gfm_calc.config import read_toml
from gfm_calc.errors import ConfigError
from gfm_calc.train.cli import find_recipe
from gfm_calc.train.evaluation import mae
from gfm_calc.train.preparation import prepare, with_shares
from gfm_calc.train.recipe import DataRecipe, Recipe

BASE = "as the recipe"
TERMS = ("energy", "forces", "stress")
_DRAWN = ("tau", "loss_tau", "workers", "memory")  # of `DataRecipe`


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A change of the recipe: `settings` are "table.key=value" each."""

    name: str
    settings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """What to compare.

    Attributes:
        recipe: name or file.  settings: "table.key=value" each, of all runs.
        variants: changes.  seeds: runs of each.  repeats: of the recipe itself, with other seeds: what is noise.
        processes: trainings at a time, of one thread each.
        work: folder that keeps the runs, see `runs.folder_of_runs`.
    """

    recipe: str
    variants: Sequence[Variant]
    settings: Sequence[str] = ()
    seeds: int = 1
    repeats: int = 0
    processes: int = 1
    work: Path | None = None


def read_variants(path: Path) -> tuple[str, list[Variant]]:
    """The title of a TOML file, "" without one, and its changes.

    Raises:
        ConfigError: a file of another shape, or a name that occurs twice.
    """
    table = read_toml(path)
    entries, title = table.get("variants"), table.get("title", "")
    if (
        set(table) - {"title"} != {"variants"}
        or not isinstance(entries, list)
        or not entries
        or not isinstance(title, str)
    ):
        raise ConfigError(f"{path}: write [[variants]] with name and set, perhaps a title, and nothing else")
    found = []
    for number, entry in enumerate(entries):
        name, settings = (entry.get(key) for key in ("name", "set")) if isinstance(entry, dict) else (None, None)
        listed = isinstance(settings, list) and all(isinstance(setting, str) for setting in settings)
        if not (isinstance(name, str) and isinstance(settings, list) and listed and set(entry) == {"name", "set"}):
            raise ConfigError(f'{path}: variant {number}: write name = "..." and set = ["table.key=value", ...]')
        found.append(Variant(name=name, settings=tuple(settings)))
    names = [BASE, *(variant.name for variant in found)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: two variants are called {name!r}")
    return title, found


def run_ablation(plan: AblationPlan) -> list[dict[str, Any]]:
    """Rows {variant, settings, parameters, seconds, errors {head: {figure: one value a seed}}, ratios {term: geometric mean over
    heads and seeds of the error over the recipe's own}}, the recipe itself first.

    Raises:
        ConfigError: a recipe, a setting or data that cannot be used, or nothing to validate on.
        GFMError: a run that fails.
    """
    variants = [Variant(name=BASE, settings=()), *plan.variants]
    recipes = {v.name: [_recipe(plan, v, seed) for seed in range(plan.seeds)] for v in variants}
    for repeat in range(1, plan.repeats + 1):
        again = Variant(name=f"{BASE}, other seeds {repeat}", settings=())
        recipes[again.name] = [_recipe(plan, again, repeat * plan.seeds + seed) for seed in range(plan.seeds)]
        variants.insert(repeat, again)
    first = recipes[BASE][0]
    for variant in variants:
        _check(variant, recipes[variant.name][0].data, first.data)
    heads = prepare(first, first.model.cutoff)
    if not all(head.sides["validation"].size for head in heads):
        raise ConfigError("some heads have nothing to validate on: raise data.validation")
    runs = {
        f"{variant.name}, seed {seed}": (recipe, with_shares(heads, recipe))
        for variant in variants
        for seed, recipe in enumerate(recipes[variant.name])
    }
    with folder_of_runs(plan.work) as folder, Progress("ablation", "runs", len(runs)) as progress:
        found = train_all(folder, runs, progress, plan.processes)
    rows = [_row(v, [found[f"{v.name}, seed {seed}"] for seed in range(plan.seeds)]) for v in variants]
    return [{**row, "ratios": _ratios(row["errors"], rows[0]["errors"])} for row in rows]


def _check(variant: Variant, data: DataRecipe, first: DataRecipe) -> None:
    """Only how structures are drawn and weighted may differ: they are prepared once, and errors are of the same ones."""
    for key in (field.name for field in fields(DataRecipe)):
        if key not in _DRAWN and getattr(data, key) != getattr(first, key):
            raise ConfigError(f"variant {variant.name!r}: data.{key} has to be the same for all: give it with --set")


def _recipe(plan: AblationPlan, variant: Variant, seed: int) -> Recipe:
    return find_recipe(plan.recipe, [*plan.settings, *variant.settings, f"run.seed={seed}"])


def _row(variant: Variant, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [mae(term) for term in TERMS]
    errors = {
        head: {name: [run["validation"][head][name] for run in runs] for name in names if name in figures}
        for head, figures in runs[0]["validation"].items()
    }
    about = [run["telemetry"] for run in runs]
    return {
        "variant": variant.name, "settings": list(variant.settings), "parameters": about[0]["parameters"],
        "seconds": statistics.median(run["wall_s"] for run in about), "errors": errors,
    }  # fmt: skip


def _ratios(errors: Mapping[str, Mapping[str, Sequence[float]]], base: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for term in TERMS:
        name = mae(term)
        ratios = [
            own / other
            for head in errors
            if name in errors[head]
            for own, other in zip(errors[head][name], base[head][name])
        ]
        if ratios:
            found[term] = statistics.geometric_mean(ratios)
    return found
