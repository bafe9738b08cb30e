"""Labels of a cheap calculator around the user's structures: a model that has learnt them needs far fewer of the user's own.

Fifty frames of a molecule say little about the shape of its energy surface between them.  A semi-empirical method, wrong by
tenths of an eV/Å, has nearly that shape, and a thousand of its labels cost less than one of a density functional.  So the model
first learns those (a fine-tuning like any other, in a folder of the job), and the new head begins from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from gfm_calc.artifacts import write_file
from gfm_calc.config import HeadSpec
from gfm_calc.data.calculators import make_calculator
from gfm_calc.data.label import LabelJob, extxyz_text, label
from gfm_calc.data.perturb import PerturbJob, perturb
from gfm_calc.data.readers.options import DEFAULTS
from gfm_calc.data.schema import Record
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.finetune.plan import HARMLESS, Cheap, Job

FOLDER, LABELS = "cheap", "cheap-labels"  # of the fine-tuning to cheap labels, of the labels themselves
_TIME_STEP, _EVERY, _FRICTION = 1.0, 15, 0.02  # fs, steps between structures, 1/fs
_LEAST = 20  # structures; fewer are not worth a training


def check(job: Job, cheap: Cheap) -> None:
    """Refuse here, not after an hour.

    Raises:
        ConfigError: a property, a strategy that keeps the encoder as it is, or no such calculator.
        MissingDependencyError: the calculator's package is not installed.
    """
    if job.card.kind != "energy":
        raise ConfigError("--cheap-labels is for energies and forces, not for properties")
    if job.strategy == "heads":
        raise ConfigError("--cheap-labels moves the encoder: not with --strategy heads")
    make_calculator(cheap.calculator, cheap.options)


def first_job(job: Job, cheap: Cheap) -> Job:
    """The fine-tuning to cheap labels that comes before the job.

    Units are ASE's, so that the work of forces along a walk, whose snapshots are far apart, has nothing to tell of them.
    """
    labels, output = job.output / LABELS / "labels.extxyz", job.output / FOLDER
    card = HeadSpec(
        name=f"{job.card.name}-cheap", code=cheap.calculator, labels="calculated",
        training_data=({"name": f"{cheap.calculator} around the structures of {job.card.name}"},),
    )  # fmt: skip
    return replace(
        job, inputs=(labels,), test_files=(), isolated=None, output=output, card=card, options=DEFAULTS, format=None,
        max_train=None, drop_shared=False, validation=0.1, test=0.0, by="auto", steps=cheap.steps,
        strategy=job.strategy or "full", accepted=(*HARMLESS, "forces-unit"), cheap=None, report=False,
    )  # fmt: skip


def make_labels(
    job: Job, cheap: Cheap, records: Sequence[Record], say: Callable[[str], None] = lambda line: None
) -> None:  # fmt: skip
    """Write the labels that `first_job` learns; what is there is kept, and an interrupted run goes on where it was.

    Structures are snapshots of short Langevin dynamics with the calculator from the training structures, whose own labels
    are not used.

    Args:
        records: training structures of the job.

    Raises:
        GFMError: the calculator could do too few of them.
    """
    output = job.output / LABELS
    start, walked, labels = output / "start.extxyz", output / "structures.extxyz", output / "labels.extxyz"
    if labels.exists():
        return
    output.mkdir(parents=True, exist_ok=True)
    processes = max(1, min(torch.get_num_threads(), os.cpu_count() or 1))
    if not walked.exists():
        chosen = list(records)[: cheap.structures]
        write_file(start, "".join(extxyz_text(_bare(record, k)) for k, record in enumerate(chosen)).encode())
        walks = PerturbJob(
            inputs=(start,), copies=-(-cheap.structures // len(chosen)), seed=job.seed, calculator=cheap.calculator,
            options=cheap.options, temperature=cheap.temperature, time_step=_TIME_STEP, every=_EVERY, friction=_FRICTION,
            processes=processes,
        )  # fmt: skip
        outcomes = list(perturb(walks))
        texts = [found for found in outcomes if isinstance(found, str)]
        if not texts:
            raise GFMError(f"--cheap-labels {cheap.calculator}: {outcomes[0]}")
        write_file(walked, "".join(texts).encode())
    made = label(
        LabelJob(
            inputs=(walked,), output=labels, calculator=cheap.calculator, options=cheap.options, processes=processes
        )
    )
    if made.labelled < _LEAST:
        labels.unlink()
        raise GFMError(
            f"--cheap-labels {cheap.calculator}: {made.labelled} structures could be labelled, too few: "
            f"{made.first_failure or 'ask for more'}"
        )
    say(f"{cheap.calculator}: {made.labelled} structures at {cheap.temperature:g} K around the training ones labelled")


def in_words(cheap: Cheap, after: dict[str, Any], side: str) -> str:
    """What the model had learnt, for the reasons of the strategy."""
    forces = after.get("forces_mae_mev_per_a")
    error = f": forces {forces:.1f} meV/Å off its labels ({side})" if forces is not None else ""
    return f"begins with what {cheap.calculator} says of structures around these{error}"


def _bare(record: Record, number: int) -> Any:
    atoms = record.structure()
    atoms.info["group"] = record.group or f"walk-{number}"
    return atoms
