"""`gfm bench multitask`: what a head gains by training with others, against training alone.

One run trains all heads together, one run each head alone; in both a head sees the same number of its structures, the same
ones, with the same recipe, and is tested on the same held-out groups (the split is drawn over all datasets in either case).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.runs import folder_of_runs, train
from gfm_calc.commands.progress import Progress
from gfm_calc.data.store import open_dataset
from gfm_calc.errors import ConfigError
from gfm_calc.train.cli import recipe_on
from gfm_calc.train.preparation import prepare
from gfm_calc.train.recipe import Recipe

_ERRORS = ("energy_mae_mev_per_atom", "forces_mae_mev_per_a")


@dataclass(frozen=True, kw_only=True)
class MultitaskPlan:
    """What to compare.

    Attributes:
        data: folder of datasets.  heads: of them; () stands for all.
        draws: structures that each head sees in a run.  structures: in a step of the run of a head alone; the run of all
            heads has that many of each head in a step, and as many steps.
        seeds: of the runs.
        recipe: name or file.  settings: "table.key=value" each.
        work: folder that keeps the runs, see `runs.folder_of_runs`.
    """

    data: Path
    heads: Sequence[str] = ()
    draws: int = 4000
    structures: int = 4
    seeds: int = 3
    recipe: str = "tiny"
    settings: Sequence[str] = ()
    work: Path | None = None


def run_multitask(plan: MultitaskPlan) -> list[dict[str, Any]]:
    """Rows {head, train_structures, together, alone (error -> one value a seed), gain (error -> mean relative gain)}.

    Raises:
        GFMError: a run that fails.
    """
    heads = list(plan.heads) or sorted(p.parent.name for p in plan.data.glob("*/manifest.json"))
    heads = [open_dataset(plan.data / head).head.name for head in heads]
    if len(heads) < 2:
        raise ConfigError(f"{plan.data}: two heads at least are needed for a comparison")
    recipe = _recipe(plan, heads, 0)
    prepared = {head.spec.name: head for head in prepare(recipe, recipe.model.cutoff)}  # once for all runs
    found: dict[str, dict[str, list[Mapping[str, float]]]] = {head: {"together": [], "alone": []} for head in heads}
    sizes: dict[str, int] = {}
    with folder_of_runs(plan.work) as folder:
        with Progress("multitask", "runs", plan.seeds * (len(heads) + 1)) as progress:
            for seed in range(plan.seeds):
                for chosen in [heads, *([head] for head in heads)]:
                    alike = [replace(prepared[head], share=1 / len(chosen)) for head in chosen]
                    errors = train(folder, _recipe(plan, chosen, seed), alike)
                    kind = "together" if len(chosen) > 1 else "alone"
                    for head in chosen:
                        found[head][kind].append(errors["test"].get(head, {}))
                        sizes[head] = errors["structures"][head]["train"]
                    progress.advance()
    return [_row(head, sizes[head], found[head]) for head in heads]


def start_of(plan: MultitaskPlan) -> str:
    """Name of the model that all runs begin with, that of the run for RUN/model; "" for random weights."""
    model = Path(recipe_on(plan.data.resolve(), plan.recipe, plan.settings).start.model)
    return model.parent.name if model.name == "model" and model.parent.name else model.name


def _recipe(plan: MultitaskPlan, heads: Sequence[str], seed: int) -> Recipe:
    """Of a run of these heads."""
    settings = [
        f"data.heads={json.dumps(list(heads))}", "data.tau=0.0", f"run.seed={seed}",
        f"run.structures={plan.structures * len(heads)}", f"run.steps={plan.draws // plan.structures}",
        "run.validate_every=0", *plan.settings,
    ]  # fmt: skip
    return recipe_on(plan.data.resolve(), plan.recipe, settings)


def _row(head: str, size: int, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"head": head, "train_structures": size, "together": {}, "alone": {}, "gain": {}}
    for name in _ERRORS:
        values = {kind: [errors[name] for errors in runs[kind] if name in errors] for kind in ("together", "alone")}
        if values["together"] and len(values["together"]) == len(values["alone"]):
            row["together"][name], row["alone"][name] = values["together"], values["alone"]
            pairs = zip(values["together"], values["alone"])
            row["gain"][name] = statistics.fmean(1 - together / alone for together, alone in pairs)
    return row
