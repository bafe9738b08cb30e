"""`gfm bench labels`: how many labels pre-training saves, over many tasks.

Each entry of `ENTRIES` is a case of a task, and few labels of it.  The model is fine-tuned to those and to `TIMES` as many, and
so is its architecture with random weights, all as `finetuning` does it.  Labels are saved where few of them, after pre-training,
do at least as well as all of them without.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.finetune_tasks import load_task
from gfm_calc.benchmarks.finetuning import SCRATCH, FinetunePlan, run_finetune
from gfm_calc.benchmarks.task_files import require
from gfm_calc.errors import ConfigError, did_you_mean

TIMES = 5
# (task, case, few)
ENTRIES = (
    ("rmd17", "ethanol", 50), ("3bpa", "high energies", 50), ("acac", "600 K", 50), ("mlearn", "Cu", 40), ("water", "water", 20),
    ("qm9", "U0", 200), ("qm9", "gap", 200), ("nomad2018", "formation energy", 100), ("jarvis_exfoliation", "exfoliation", 100),
    ("elastic", "bulk modulus", 200), ("heat_capacity", "", 200), ("matbench_phonons", "fold 0", 200),
    ("matbench_dielectric", "fold 0", 200), ("matbench_log_gvrh", "fold 0", 200), ("matbench_perovskites", "fold 0", 200),
    ("matbench_mp_gap", "fold 0", 200), ("matbench_mp_e_form", "fold 0", 200),
)  # fmt: skip
_MORE_IS_BETTER = ("accuracy", "roc_auc")


@dataclass(frozen=True, kw_only=True)
class LabelsPlan:
    """What to compare.

    Attributes:
        data: folder of the tasks' files.  model: name or directory.  tasks: () for all of `ENTRIES`.
        seeds, steps, max_minutes, work: see `FinetunePlan`.
    """

    data: Path
    model: str
    tasks: Sequence[str] = ()
    seeds: int = 1
    steps: int | None = None
    max_minutes: float | None = None
    work: Path | None = None


def run_labels(plan: LabelsPlan) -> list[dict[str, Any]]:
    """Rows {task, title, case, metric, few, many, errors (tuned and scratch, few and many: one value a seed), test_frames,
    overlap, strategy (of few), saved (labels are; None where the model has seen the task)}.

    Raises:
        ConfigError: a task that is none of `ENTRIES`.
        GFMError: files that are missing, before anything runs, or a run that failed.
    """
    names = list(dict.fromkeys(name for name, _, _ in ENTRIES))
    for name in plan.tasks:
        if name not in names:
            raise ConfigError(f"--tasks: no task {name!r}{did_you_mean(name, names)}: {', '.join(names)}")
    parts = [
        part for part in (_plan(plan, *entry) for entry in ENTRIES) if not plan.tasks or part.task.name in plan.tasks
    ]
    for part in parts:
        require(plan.data, part.task, part.task.case(part.cases[0]))
    return [_row(part, run_finetune(part)) for part in parts]


def _plan(plan: LabelsPlan, name: str, case: str, few: int) -> FinetunePlan:
    task = load_task(name)
    return FinetunePlan(
        task=task, data=plan.data, models=(plan.model,), cases=(case or task.cases[0].name,), sizes=(few, TIMES * few),
        seeds=plan.seeds, steps=plan.steps, max_minutes=plan.max_minutes, work=plan.work,
    )  # fmt: skip


def _row(plan: FinetunePlan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    task, (few, many) = plan.task, plan.sizes
    case = task.case(plan.cases[0])
    metric = task.metric_of(case)
    errors: dict[str, dict[str, list[float]]] = {"tuned": {}, "scratch": {}}
    for row in rows:
        way = "scratch" if row["arm"] == SCRATCH else "tuned"
        errors[way]["few" if row["size"] == few else "many"] = row["errors"][metric]
    first = next(row for row in rows if row["arm"] != SCRATCH and row["size"] == few)
    tuned, scratch = statistics.fmean(errors["tuned"]["few"]), statistics.fmean(errors["scratch"]["many"])
    better = tuned >= scratch if metric in _MORE_IS_BETTER else tuned <= scratch
    return {
        "task": task.name, "title": task.title, "case": case.name, "metric": metric, "unit": case.unit, "few": few, "many": many,
        "errors": errors, "test_frames": first["test_frames"], "overlap": first["overlap"], "strategy": first["strategy"],
        "saved": None if first["overlap"] else better,
    }  # fmt: skip
