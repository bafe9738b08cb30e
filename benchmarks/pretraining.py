"""`gfm bench pretraining`: fine-tuning that begins with models pre-trained in several ways, over many tasks.

The cases are those of `labels`, each with `TIMES` as many labels as the fewest there; every model and the architecture of the
first one with random weights learn the same structures, as `finetuning` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.finetune_tasks import load_task
from gfm_calc.benchmarks.finetuning import SCRATCH, FinetunePlan, run_finetune
from gfm_calc.benchmarks.labels import ENTRIES, MORE_IS_BETTER, TIMES, chosen
from gfm_calc.benchmarks.task_files import require
from gfm_calc.checkpoint import load_model


@dataclass(frozen=True, kw_only=True)
class PretrainingPlan:
    """What to compare.

    Attributes:
        data: folder of the tasks' files.  models: names or directories.
        tasks: () for all of `labels.ENTRIES`.  seeds, steps, work: see `FinetunePlan`.
    """

    data: Path
    models: Sequence[str]
    tasks: Sequence[str] = ()
    seeds: int = 3
    steps: int | None = None
    work: Path | None = None


def run_pretraining(plan: PretrainingPlan) -> list[dict[str, Any]]:
    """Rows {task, title, case, metric, unit, more_is_better, size (labelled structures), test_frames (of the first seed), errors
    (name of a model, or `SCRATCH` -> one value a seed), overlaps (name of a model -> what it has seen of the task, if it has)}.

    Raises:
        ConfigError: a task that is none of `labels.ENTRIES`, or no model.
        GFMError: files that are missing, before anything runs, or a run that failed.
    """
    parts = [_plan(plan, *entry) for entry in chosen(ENTRIES, plan.tasks)]
    for part in parts:
        require(plan.data, part.task, part.task.case(part.cases[0]))
    return [_row(part, run_finetune(part)) for part in parts]


def origins(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {model_id, heads, structures (of the training sides, by its cards)}}"""
    found = {}
    for name, model in ((Path(name).name, load_model(name)) for name in models):
        frames = sum(int(entry.get("frames", 0)) for spec in model.specs.values() for entry in spec.training_data)
        found[name] = {"model_id": model.model_id, "heads": list(model.specs), "structures": frames}
    return found


def _plan(plan: PretrainingPlan, name: str, case: str, fewest: int) -> FinetunePlan:
    task = load_task(name)
    return FinetunePlan(
        task=task, data=plan.data, models=plan.models, cases=(case or task.cases[0].name,), sizes=(TIMES * fewest,),
        seeds=plan.seeds, steps=plan.steps, work=plan.work,
    )  # fmt: skip


def _row(plan: FinetunePlan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    task, (size,) = plan.task, plan.sizes
    case = task.case(plan.cases[0])
    metric = task.metric_of(case)
    return {
        "task": task.name, "title": task.title, "case": case.name, "metric": metric, "unit": case.unit,
        "more_is_better": metric in MORE_IS_BETTER, "size": size, "test_frames": rows[0]["test_frames"],
        "errors": {row["arm"]: row["errors"][metric] for row in rows},
        "overlaps": {row["arm"]: row["overlap"] for row in rows if row["overlap"] and row["arm"] != SCRATCH},
    }  # fmt: skip
