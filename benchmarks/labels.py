"""`gfm bench labels`: how many labels pre-training saves, over many tasks.

Each entry of `ENTRIES` is a case of a task, and few labels of it.  The model is fine-tuned to those, to `TIMES` as many, and to
`TIMES` as many again, and its architecture with random weights learns the same, all as `finetuning` does it: learning curves.
Labels are saved where some of them, after pre-training, do at least as well as `TIMES` as many without, on the same test
structures.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.finetune_tasks import load_task
from gfm_calc.benchmarks.finetuning import SCRATCH, FinetunePlan, run_finetune
from gfm_calc.benchmarks.task_files import require
from gfm_calc.errors import ConfigError, did_you_mean

TIMES, POINTS = 5, 3  # from one size to the next; sizes of a curve
# (task, case, fewest labelled structures)
ENTRIES = (
    ("rmd17", "ethanol", 10), ("3bpa", "high energies", 10), ("acac", "600 K", 10), ("mlearn", "Cu", 8), ("water", "water", 4),
    ("qm9", "U0", 40), ("qm9", "gap", 40), ("nomad2018", "formation energy", 20), ("jarvis_exfoliation", "exfoliation", 20),
    ("elastic", "bulk modulus", 40), ("heat_capacity", "", 40), ("matbench_phonons", "fold 0", 40),
    ("matbench_dielectric", "fold 0", 40), ("matbench_log_gvrh", "fold 0", 40), ("matbench_log_kvrh", "fold 0", 40),
    ("matbench_perovskites", "fold 0", 40), ("matbench_mp_gap", "fold 0", 40), ("matbench_mp_e_form", "fold 0", 40),
    ("matbench_mp_is_metal", "fold 0", 40), ("matbench_jdft2d", "fold 0", 14),
)  # fmt: skip
MORE_IS_BETTER = ("accuracy", "roc_auc")


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
    """Rows {task, title, case, metric, unit, sizes, errors (tuned and scratch: of each size one value a seed), test_frames (of
    each size: those with elements that the training structures of one size lack are left out), overlap, strategies (of each
    size), saved (labels are, by each size but the last; None where the model has seen the task)}.

    Raises:
        ConfigError: a task that is none of `ENTRIES`.
        GFMError: files that are missing, before anything runs, or a run that failed.
    """
    parts = [_plan(plan, *entry) for entry in chosen(ENTRIES, plan.tasks)]
    for part in parts:
        require(plan.data, part.task, part.task.case(part.cases[0]))
    return [_row(part, run_finetune(part)) for part in parts]


def chosen(entries: Sequence[tuple[str, str, int]], tasks: Sequence[str]) -> list[tuple[str, str, int]]:
    """The entries of these tasks, or all where none is named; ConfigError for one that none has."""
    names = list(dict.fromkeys(name for name, _, _ in entries))
    for name in tasks:
        if name not in names:
            raise ConfigError(f"--tasks: no task {name!r}{did_you_mean(name, names)}: {', '.join(names)}")
    return [entry for entry in entries if not tasks or entry[0] in tasks]


def _plan(plan: LabelsPlan, name: str, case: str, fewest: int) -> FinetunePlan:
    task = load_task(name)
    sizes = tuple(fewest * TIMES**k for k in range(POINTS))
    return FinetunePlan(
        task=task, data=plan.data, models=(plan.model,), cases=(case or task.cases[0].name,), sizes=sizes, alike=True,
        seeds=plan.seeds, steps=plan.steps, max_minutes=plan.max_minutes, work=plan.work,
    )  # fmt: skip


def _row(plan: FinetunePlan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    task = plan.task
    case = task.case(plan.cases[0])
    metric = task.metric_of(case)
    tuned = [row for row in rows if row["arm"] != SCRATCH]
    scratch = [row for row in rows if row["arm"] == SCRATCH]
    errors = {way: [row["errors"][metric] for row in curve] for way, curve in (("tuned", tuned), ("scratch", scratch))}
    ours, theirs = ([statistics.fmean(values) for values in curve] for curve in errors.values())
    pairs = zip(ours, theirs[1:])
    saved = [few >= many if metric in MORE_IS_BETTER else few <= many for few, many in pairs]
    first = tuned[0]
    return {
        "task": task.name, "title": task.title, "case": case.name, "metric": metric, "unit": case.unit,
        "sizes": list(plan.sizes), "errors": errors, "test_frames": [row["test_frames"] for row in tuned],
        "strategies": [row["strategy"] for row in tuned], "overlap": first["overlap"],
        "saved": None if first["overlap"] else saved,
    }  # fmt: skip


def needed(row: Mapping[str, Any], number: int) -> float:
    """Labels that random weights need to do as well as the tuned model with those of size `number` of a row of `run_labels`.

    Between the sizes of their curve (means over seeds) both axes are taken as logarithmic.  The fewest labels count where the
    curve does not fall throughout; 0 where it begins lower, infinity where it does not come as low.
    """
    turn = (lambda value: 1 - value) if row["metric"] in MORE_IS_BETTER else float
    wanted = turn(statistics.fmean(row["errors"]["tuned"][number]))
    curve = [(size, turn(statistics.fmean(values))) for size, values in zip(row["sizes"], row["errors"]["scratch"])]
    if curve[0][1] <= wanted:
        return 0.0 if curve[0][1] < wanted else float(curve[0][0])
    for (few, large), (many, small) in itertools.pairwise(curve):
        if small <= wanted < large:
            part = math.log(large / wanted) / math.log(large / small) if small > 0 else 1.0
            return few * (many / few) ** part
    return math.inf
