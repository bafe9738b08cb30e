"""`gfm bench pretraining`: fine-tuning that begins with models pre-trained in several ways, over many tasks.

The cases are those of `labels`, each with `TIMES` as many labels as the fewest there; every model, the architecture of the first
one with random weights, and other codes learn the same structures, as `finetuning` does it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from gfm_calc.benchmarks.finetune_peers import PEERS
from gfm_calc.benchmarks.finetune_tasks import load_task
from gfm_calc.benchmarks.finetuning import SCRATCH, FinetunePlan, run_finetune
from gfm_calc.benchmarks.labels import ENTRIES, MORE_IS_BETTER, TIMES, chosen
from gfm_calc.benchmarks.task_files import files_of, require
from gfm_calc.checkpoint import load_model
from gfm_calc.data.readers import ReadOptions, read
from gfm_calc.errors import ConfigError
from gfm_calc.finetune.preflight import seen_elements


@dataclass(frozen=True, kw_only=True)
class PretrainingPlan:
    """What to compare.

    Attributes:
        data: folder of the tasks' files.  models: names or directories.
        tasks: () for all of `labels.ENTRIES`.  seeds, steps, peers, work: see `FinetunePlan`.
    """

    data: Path
    models: Sequence[str]
    tasks: Sequence[str] = ()
    seeds: int = 3
    steps: int | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    work: Path | None = None


def run_pretraining(plan: PretrainingPlan) -> list[dict[str, Any]]:
    """Rows {task, title, case, metric, unit, more_is_better, size (labelled structures), test_frames (of the first seed), errors
    (name of a model, of a peer, or `SCRATCH` -> one value a seed), overlaps (name of a model or peer -> what it has seen of the
    task, if it has)}.

    Raises:
        ConfigError: a task that is none of `labels.ENTRIES`, no model, or one that has not seen an element of a task.
        GFMError: files that are missing, before anything runs, or a run that failed.
    """
    parts = [_plan(plan, *entry) for entry in chosen(ENTRIES, plan.tasks)]
    for part in parts:
        require(plan.data, part.task, part.task.case(part.cases[0]))
    _require_elements(plan, parts)
    return [_row(part, run_finetune(part)) for part in parts]


def origins(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {model_id, heads, structures (of the training sides, by its cards)}}"""
    found = {}
    for name, model in ((Path(name).name, load_model(name)) for name in models):
        frames = sum(int(entry.get("frames", 0)) for spec in model.specs.values() for entry in spec.training_data)
        found[name] = {"model_id": model.model_id, "heads": list(model.specs), "structures": frames}
    return found


def peers_of(plan: PretrainingPlan) -> list[str]:
    """Their names in the rows."""
    return [PEERS[name] for name in plan.peers]


def _require_elements(plan: PretrainingPlan, parts: Sequence[FinetunePlan]) -> None:
    """A model that cannot predict a structure of a task would end the suite there."""
    known = {Path(name).name: seen_elements(load_model(name)) for name in plan.models}
    for part in parts:
        there = _elements(part)
        for name, own in known.items():
            if strange := sorted(there - own):
                raise ConfigError(
                    f"{name} has not seen {', '.join(strange)} of {part.task.name}: take it away, or name other --tasks"
                )


def _elements(part: FinetunePlan) -> set[str]:
    """Of all structures of its case that a run looks at."""
    task = part.task
    case = task.case(part.cases[0])
    options = ReadOptions(**task.read, property_key=case.label)
    numbers: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="gfm-elements-") as folder:
        files = files_of(part.data, task, case, size=part.sizes[0], seed=0, place=Path(folder))
        for path in (files.train, files.test):
            for record in read(path, options=options) if path else ():
                numbers.update(record.atomic_numbers.tolist())
    return {chemical_symbols[number] for number in numbers}


def _plan(plan: PretrainingPlan, name: str, case: str, fewest: int) -> FinetunePlan:
    task = load_task(name)
    return FinetunePlan(
        task=task, data=plan.data, models=plan.models, cases=(case or task.cases[0].name,), sizes=(TIMES * fewest,),
        seeds=plan.seeds, steps=plan.steps, peers=plan.peers, work=plan.work,
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
