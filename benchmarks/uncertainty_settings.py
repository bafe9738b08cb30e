"""`gfm bench uncertainty --settings`: how expected errors are best learnt, judged on the validation side alone.

For each head the networks are fitted to the training side as `gfm uncertainty` does it, but one half of the validation side says
when to stop and sets the scale, and the other half judges.  A group lies in one of the halves, so heads whose validation side is
one group cannot be judged.  Neither the test side nor any outside structure is looked at.  How the networks are learnt today is
repeated with other seeds: differences that these show, too, are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gfm_calc.benchmarks.uncertainty import figures
from gfm_calc.commands.progress import Progress
from gfm_calc.data.frame_table import FrameTable
from gfm_calc.data.grouping import by_composition
from gfm_calc.data.splits import TRAIN, VALIDATION, draw, join
from gfm_calc.errors import ConfigError
from gfm_calc.model import GFMModel
from gfm_calc.train.preparation import Head
from gfm_calc.train.residuals import Residuals, residuals
from gfm_calc.train.squeezed import bounds
from gfm_calc.train.uncertainty import FitPlan, averaged, calibrated, fit, some_rows, surprise

BASE = "as it is"
_FEWEST = 20  # structures of each half
_HALVES = 20261130  # seed of the hash that divides groups; not that of a recipe, which has put all of these on one side
_SEEDS = (1, 2, 3)  # beside 0, that of the plan


class Setting(NamedTuple):
    """A change of `FitPlan`, and what the networks see of their input x [N, 2F]: of scalars and lengths of vectors."""

    name: str
    changes: Mapping[str, Any] = {}
    seen: Callable[[Tensor], Tensor] = lambda x: x


def _first_half(x: Tensor) -> Tensor:
    return torch.cat([x[:, : x.shape[1] // 2], torch.zeros_like(x[:, x.shape[1] // 2 :])], dim=1)


def _second_half(x: Tensor) -> Tensor:
    return x - _first_half(x)


SETTINGS = (
    Setting(BASE), *(Setting(f"{BASE}, seed {seed}", {"seed": seed}) for seed in _SEEDS),
    Setting("scalars alone", seen=_first_half), Setting("lengths of vectors alone", seen=_second_half),
    Setting("1 network", {"members": 1}), Setting("6 networks", {"members": 6}),
    Setting("width 8", {"width": 8}), Setting("width 128", {"width": 128}),
    Setting("500 steps", {"steps": 500}), Setting("6,000 steps", {"steps": 6000}),
    Setting("rate 0.003", {"rate": 3e-3}), Setting("rate 0.03", {"rate": 3e-2}),
    Setting("batches of 16", {"batch": 16}), Setting("400 structures", {"structures": 400}),
    Setting("without squeezed structures", {"far": 0}), Setting("twice as many squeezed", {"far": 4}),
)  # fmt: skip


def run_settings(
    model: GFMModel, heads: Sequence[Head], *, settings: Sequence[Setting] = (), plan: FitPlan | None = None
) -> list[dict[str, Any]]:
    """Rows {"setting", "seed", "heads": {name: {"surprise", "forces", "energy"}}}, of heads with validation structures enough.
    Surprise: minus the logarithm of the likelihood, of forces an atom and of energies a structure together, less is better; the
    others: see `uncertainty.figures`.

    Args:
        settings: the first is what the others are compared with, and those with another seed than it are its repeats; () for
            all of `SETTINGS`.

    Raises:
        ConfigError: no head has validation structures enough.
    """
    plan, settings = plan or FitPlan(), settings or SETTINGS
    rows: list[dict[str, Any]] = [
        {"setting": setting.name, "seed": setting.changes.get("seed", plan.seed), "heads": {}} for setting in settings
    ]
    with Progress("settings", "heads", len(heads)) as progress:
        for head in heads:
            if parts := _parts(model, head, plan):
                for row, setting in zip(rows, settings):
                    row["heads"][head.spec.name] = _judged(*parts, replace(plan, **setting.changes), setting.seen)
            progress.advance(note=head.spec.name)
    if not rows[0]["heads"]:
        raise ConfigError(
            f"no head has {plan.fewest} training structures with forces and {_FEWEST} validation structures in each of two "
            "halves by group"
        )
    return rows


def _parts(model: GFMModel, head: Head, plan: FitPlan) -> tuple[Residuals, Residuals, Residuals, Residuals] | None:
    """Errors of the training side, of the half that says when to stop and of that which judges, and bounds (see `squeezed`); None
    where there are too few."""
    stop, judge = halves_of(head, some_rows(head, "validation", plan))
    if len(head.sides["train"]) < plan.fewest or min(len(stop), len(judge)) < _FEWEST:
        return None
    train, validation = (residuals(model, head, some_rows(head, side, plan)) for side in ("train", "validation"))
    if not train.forces.isfinite().any():
        return None
    return train, validation.take(stop), validation.take(judge), bounds(model, head, train, plan.seed)


def halves_of(head: Head, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Indices into `rows` of two halves: by a hash of the group's name (of the composition, where there is no group), and groups
    that share a structure together."""
    table = FrameTable()
    if rows.size:
        records = head.dataset.read(rows, names=True).records()
        table.add_all((record, record.group or by_composition(record)) for record in records)
    split = draw({head.spec.name: table.groups}, seed=_HALVES, validation=0.5, test=0.0)
    sides = table.sides(join(split, table.groups_that_share()))
    stop, judge = (torch.from_numpy(np.flatnonzero(sides == side)) for side in (TRAIN, VALIDATION))
    return stop, judge


def _judged(
    train: Residuals, stop: Residuals, judge: Residuals, far: Residuals, plan: FitPlan, seen: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    if plan.structures < len(train.atoms):
        train = train.take(torch.linspace(0, len(train.atoms) - 1, plan.structures).long())
    train, stop, judge, far = (part._replace(x=seen(part.x)) for part in (train, stop, judge, far))
    weights, _ = calibrated(fit(train, stop, plan, far), stop)
    guesses = averaged(judge, weights)
    found: dict[str, Any] = {"surprise": round(float(surprise(judge, guesses)), 4)}
    for what, errors, guess in zip(("forces", "energy"), (judge.forces, judge.energy), guesses):
        known = torch.isfinite(errors)
        if known.any():
            actual, expected = errors[known].double().numpy(), guess[0][known].double().numpy()
            found[what] = figures(actual, expected, float(np.quantile(actual, 0.8)), calibrated=True)
    return found
