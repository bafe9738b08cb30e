"""What a finished run leaves: the model, its errors, its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy
import torch

from gfm_calc import __version__
from gfm_calc.artifacts import canonical_json, open_artifact, write_file
from gfm_calc.checkpoint import save_model
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import in_words, rounded
from gfm_calc.train.flat import BEST
from gfm_calc.train.models import assemble
from gfm_calc.train.preparation import Head
from gfm_calc.train.state import FORMAT_VERSION, KIND, SavedState, newest_checkpoint

if TYPE_CHECKING:
    from gfm_calc.train.trainer import Trainer


def save_outcome(trainer: Trainer, errors: Mapping[str, Mapping[str, float]], *, report: bool) -> list[str]:
    """RUN/model, RUN/errors.json and RUN/report.html; lines for the terminal.

    Args:
        errors: of the test side, {head: figures} as `evaluation.figures`.
    """
    recipe, folder = trainer.recipe, trainer.folder
    heads = [
        replace(head, spec=replace(head.spec, test_errors=rounded(errors.get(head.spec.name, {}))))
        for head in trainer.heads
    ]
    model = trained_model(trainer, heads)
    save_model(model, folder / "model", provenance=provenance(trainer))
    sides = {head.spec.name: {side: len(rows) for side, rows in head.sides.items()} for head in heads}
    write_file(folder / "errors.json", canonical_json({"step": trainer.step, "test": errors, "validation": trainer.errors,
                                                       "structures": sides}))  # fmt: skip
    lines = [f"{folder / 'model'}: {len(heads)} heads, {trainer.step} steps"]
    lines += [f"  {name}: test errors {in_words(row, model.specs[name])}" for name, row in errors.items()]
    if report:
        from gfm_calc.train.report import write_report

        write_report(folder, model, heads, recipe)
        lines.append(f"{folder / 'report.html'}")
    return lines


def trained_model(trainer: Trainer, heads: Sequence[Head]) -> GFMModel:
    """The model of the newest checkpoint: with the weights of the best validation, where the recipe keeps them, or else the
    running average, or else the last ones.

    Args:
        heads: those of the run, with the cards that the model shall have.
    """
    recipe = trainer.recipe
    found, _ = newest_checkpoint(trainer.folder / "checkpoints")
    assert found is not None  # it was written before the run ended
    saved = SavedState(open_artifact(found.directory, kind=KIND, newest_version=FORMAT_VERSION))
    return assemble(recipe, heads, saved, BEST if saved.has_best else "average" if recipe.optimizer.ema else "weight")


def provenance(trainer: Trainer) -> dict[str, Any]:
    """How the weights came to be, as JSON."""
    recipe = asdict(trainer.recipe)
    recipe["data"].pop("path")  # of this machine
    recipe["data"].pop("split")
    recipe["start"].pop("model")  # its id stays
    datasets = {head.spec.name: head.dataset.digest for head in trainer.heads}
    return {
        "step": trainer.model_step, "recipe": recipe, "datasets": datasets, "processes": trainer.ranks.world,
        "versions": {"gfm-calc": __version__, "torch": torch.__version__, "numpy": numpy.__version__},
    }  # fmt: skip
