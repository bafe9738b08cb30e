"""`gfm bench uncertainty --settings`: how expected errors are best learnt, judged on the validation side alone.

For each head the networks are fitted to the training side as `gfm uncertainty` does it, but one half of the validation side says
when to stop and sets the scale, and the other half judges.  Neither the test side nor any outside structure is looked at.
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
from gfm_calc.errors import ConfigError
from gfm_calc.model import GFMModel
from gfm_calc.train.preparation import Head
from gfm_calc.train.uncertainty import FitPlan, Residuals, averaged, calibrated, fit, residuals, surprise

BASE = "as it is"
_FEWEST = 20  # structures of the half that judges


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
    Setting(BASE), Setting("scalars alone", seen=_first_half), Setting("lengths of vectors alone", seen=_second_half),
    Setting("1 network", {"members": 1}), Setting("6 networks", {"members": 6}),
    Setting("width 8", {"width": 8}), Setting("width 128", {"width": 128}),
    Setting("500 steps", {"steps": 500}), Setting("6,000 steps", {"steps": 6000}),
    Setting("rate 0.003", {"rate": 3e-3}), Setting("rate 0.03", {"rate": 3e-2}),
    Setting("batches of 16", {"batch": 16}), Setting("400 structures", {"structures": 400}),
)  # fmt: skip


def run_settings(
    model: GFMModel, heads: Sequence[Head], *, settings: Sequence[Setting] = (), plan: FitPlan | None = None
) -> list[dict[str, Any]]:
    """Rows {"setting", "heads": {name: {"surprise", "forces", "energy"}}}.  Surprise: minus the logarithm of the likelihood, of
    forces an atom and of energies a structure together, less is better; the others: see `uncertainty.figures`.

    Args:
        settings: the first is what the others are compared with; () for all of `SETTINGS`.

    Raises:
        ConfigError: no head has validation structures enough.
    """
    plan, settings = plan or FitPlan(), settings or SETTINGS
    rows: list[dict[str, Any]] = [{"setting": setting.name, "heads": {}} for setting in settings]
    with Progress("settings", "heads", len(heads)) as progress:
        for head in heads:
            train, validation = (residuals(model, head, side, plan) for side in ("train", "validation"))
            count = len(validation.atoms)
            if len(head.sides["train"]) >= plan.fewest and count >= 2 * _FEWEST and train.forces.isfinite().any():
                stop, judge = (validation.take(torch.arange(first, count, 2)) for first in (0, 1))
                for row, setting in zip(rows, settings):
                    row["heads"][head.spec.name] = _judged(
                        train, stop, judge, replace(plan, **setting.changes), setting.seen
                    )
            progress.advance(note=head.spec.name)
    if not rows[0]["heads"]:
        raise ConfigError(f"no head has {plan.fewest} training and {2 * _FEWEST} validation structures with forces")
    return rows


def _judged(
    train: Residuals, stop: Residuals, judge: Residuals, plan: FitPlan, seen: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    if plan.structures < len(train.atoms):
        train = train.take(torch.linspace(0, len(train.atoms) - 1, plan.structures).long())
    train, stop, judge = (part._replace(x=seen(part.x)) for part in (train, stop, judge))
    weights, _ = calibrated(fit(train, stop, plan), stop)
    guesses = averaged(judge, weights)
    found: dict[str, Any] = {"surprise": round(float(surprise(judge, guesses)), 4)}
    for what, errors, guess in zip(("forces", "energy"), (judge.forces, judge.energy), guesses):
        known = torch.isfinite(errors)
        if known.any():
            actual, expected = errors[known].double().numpy(), guess[0][known].double().numpy()
            found[what] = figures(actual, expected, float(np.quantile(actual, 0.8)), calibrated=True)
    return found
