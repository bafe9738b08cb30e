"""`gfm uncertainty`: learn what a trained model expects its errors to be (see `gfm_calc.uncertainty`).

Weights of a network are those that make the errors of its training structures most likely, were they distributed exponentially
about their expected value u, with a density of exp(-e/u) / u: its logarithm, summed over force errors of atoms and energy
errors of structures, is least where u is the mean of e.  Both are then scaled so that the means of e and u agree on the
validation side, which also says when to stop.  Each network draws the training structures anew, with replacement.  The model
itself does not move.  Errors of a property stand where those of forces do (of atoms) or of energies (of structures), over their
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gfm_calc.commands.progress import Progress
from gfm_calc.data.sampling import spread_indices
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.model import GFMModel
from gfm_calc.train.preparation import Head
from gfm_calc.train.residuals import Residuals, residuals
from gfm_calc.train.squeezed import bounds, vanishes
from gfm_calc.uncertainty import SHAPES, ErrorHeads, no_uncertainty

_LEAST = (1e-3, 1e-4)  # eV/Å, eV/atom: no error is taken for smaller
_CHECK_EVERY = 100  # steps
_ENOUGH = 3.0  # times a bound: no more is asked for
_SMALLEST = 1e-5  # scale of what is expected, where all of the validation side is right


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """Attributes: `structures` of each side of a head, and `atoms` in all, at most; `fewest`, training structures with forces (or
    with the property), whether they are looked at or not, without which a head gets none (learnt from 76, expected errors
    vanished where atoms came close, which is worse than none); `judges`, validation structures without which it gets none,
    for heads whose errors on training structures say little; `members` M, networks a head, and their `width` K; `steps` of
    AdamW, each on a `batch` of structures, and one squeezed structure for each `far` of them (0: none); `rate`, its highest;
    `seed` of first weights and of what is drawn."""

    structures: int = 1500
    fewest: int = 100
    judges: int = 0
    atoms: int = 20000
    members: int = 3
    width: int = 32
    batch: int = 64
    far: int = 8
    steps: int = 2000
    rate: float = 1e-2
    seed: int = 0


class Learnt(NamedTuple):
    """`errors`: what the model expects now, None where no head could be fitted; `without`: head -> why it gets none."""

    errors: ErrorHeads | None
    without: dict[str, str]

    @property
    def reasons(self) -> str:
        """Why heads get none, in words."""
        heads: dict[str, list[str]] = {}
        for head, reason in self.without.items():
            heads.setdefault(reason, []).append(head)
        return "; ".join(f"{reason}: {', '.join(names)}" for reason, names in heads.items())


def fit_uncertainty(model: GFMModel, heads: Sequence[Head], plan: FitPlan | None = None) -> Learnt:
    """Expected errors for those heads of `model` that `heads` has enough labelled forces for, or values of a property; heads that
    it has too few for, or whose expected errors would vanish where atoms come close, lose theirs, the others keep what they have.
    """
    plan = plan or FitPlan()
    mine = [head for head in heads if head.spec.name in model.specs and head.spec.kind != "class"]
    tensors: dict[str, list[Tensor]] = {name: [] for name in SHAPES}
    figures: dict[str, dict[str, Any]] = {}
    without: dict[str, str] = {}
    with Progress("uncertainty", "heads", len(mine)) as progress:
        for head in mine:
            found = _fit_head(model, head, plan)
            progress.advance(note=head.spec.name)
            if isinstance(found, str):
                without[head.spec.name] = found
                continue
            weights, figures[head.spec.name] = found
            for key, tensor in zip(SHAPES, weights):
                tensors[key].append(tensor)
    if not figures:
        return Learnt(None, without)
    fitted = ErrorHeads({name: torch.stack(rows) for name, rows in tensors.items()}, figures).to(
        model.device, model.dtype
    )
    return Learnt(_beside(model.uncertainty, fitted, list(without)), without)


def _fit_head(model: GFMModel, head: Head, plan: FitPlan) -> tuple[list[Tensor], dict[str, Any]] | str:
    """The weights of one head and what they were learnt from; or why there are none."""
    labels = "labelled forces" if head.spec.kind == "energy" else "values"
    too_few = f"fewer than {plan.fewest} training structures with {labels}"
    if len(head.sides["train"]) < plan.fewest:  # with forces or not: those are counted below
        return too_few
    if len(head.sides["validation"]) < plan.judges:
        return f"fewer than {plan.judges} validation structures"
    train, validation = (residuals(model, head, some_rows(head, side, plan)) for side in ("train", "validation"))
    if _labelled(train) * len(head.sides["train"]) < plan.fewest:
        return too_few
    unit = None if head.spec.kind == "energy" else mean_error(validation) or mean_error(train) or 1.0
    if unit is not None:
        train, validation = over(train, unit), over(validation, unit)
    far = bounds(model, head, train, plan.seed) if head.spec.kind == "energy" else None
    weights, scale = calibrated(fit(train, validation, plan, far), validation)
    if head.spec.kind == "energy" and vanishes(model, head, weights):
        return "what they expect would vanish where atoms come close"
    figures = {"structures": len(train.atoms), "validation": len(validation.atoms), "scale": scale}
    return weights, figures | ({} if unit is None else {"unit": unit})


def _beside(old: ErrorHeads | None, new: ErrorHeads, gone: Sequence[str]) -> ErrorHeads:
    """The new ones, and the old ones of other heads but those that are `gone`."""
    kept = None if old is None else old.only([head for head in old.figures if head not in {*new.figures, *gone}])
    if kept is None:
        return new
    tensors = {name: torch.cat([kept.tensors[name], tensor]) for name, tensor in new.tensors.items()}
    return ErrorHeads(tensors, kept.figures | new.figures)


def _labelled(part: Residuals) -> float:
    """The share of structures with a labelled force, or a value of a property."""
    if not len(part.atoms):
        return 0.0
    if part.of_structures:
        return float(torch.isfinite(part.energy).float().mean())
    known = torch.isfinite(part.forces).float()
    return float((scatter_sum(known, part.batch, len(part.atoms)) > 0).float().mean())


def mean_error(part: Residuals) -> float | None:
    """Of a property; None where nothing is labelled, or everything right."""
    errors = part.energy if part.of_structures else part.forces
    return float(errors[torch.isfinite(errors)].mean()) or None if torch.isfinite(errors).any() else None


def over(part: Residuals, unit: float) -> Residuals:
    """Errors in units of `unit`."""
    return part._replace(forces=part.forces / unit, energy=part.energy / unit)


def some_rows(head: Head, side: str, plan: FitPlan) -> np.ndarray:
    """Rows of the dataset: as many structures of a side as the plan takes, evenly spread over it."""
    count = min(plan.structures, int(plan.atoms / head.atoms) + 1)
    return head.sides[side][spread_indices(len(head.sides[side]), count)]


def fit(train: Residuals, validation: Residuals, plan: FitPlan, far: Residuals | None = None) -> list[Tensor]:
    """The weights of one head, in the order of `uncertainty.SHAPES`, float32; `far`: bounds, see `squeezed`."""
    mean, spread = train.x.mean(dim=0), train.x.std(dim=0) + 1e-3

    def whitened(part: Residuals) -> Residuals:
        return part._replace(x=(part.x - mean) / spread)

    train, validation, far = whitened(train), whitened(validation), None if far is None else whitened(far)
    generator = torch.Generator().manual_seed(plan.seed)
    weights = _first_weights(train, plan, generator)
    drawn = torch.poisson(torch.ones(plan.members, len(train.atoms)), generator=generator)  # how often, by each network
    optimizer = torch.optim.AdamW(weights, lr=plan.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps)
    best, least = [tensor.detach().clone() for tensor in weights], float("inf")
    judge = validation if len(validation.atoms) else train
    for step in range(1, plan.steps + 1):
        optimizer.zero_grad()
        chosen = torch.randint(len(train.atoms), (plan.batch,), generator=generator)
        part = train.take(chosen)
        loss = surprise(part, part.expected(weights), drawn[:, chosen])
        if far is not None and plan.far:
            some = far.take(torch.randint(len(far.atoms), (max(1, plan.batch // plan.far),), generator=generator))
            loss = loss + shortfall(some, some.expected(weights)) / plan.far
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _CHECK_EVERY == 0:
            with torch.no_grad():
                found = float(surprise(judge, averaged(judge, weights)))
            if found < least:
                best, least = [tensor.detach().clone() for tensor in weights], found
    hidden, hidden_bias, output, output_bias = best
    return [hidden / spread.unsqueeze(1), hidden_bias - (mean / spread) @ hidden, output, output_bias]


def averaged(part: Residuals, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the networks of a head expect together, [1, N] eV/Å and [1, B] eV an atom."""
    return tuple(found.mean(dim=0, keepdim=True) for found in part.expected(weights))


def _first_weights(train: Residuals, plan: FitPlan, generator: torch.Generator) -> list[Tensor]:
    """Random directions, and the mean errors as they are."""
    size, width, members = train.x.shape[1], plan.width, plan.members
    hidden = torch.randn(members, size, width, generator=generator) / size**0.5
    output = torch.randn(members, width, 2, generator=generator) * 0.1 / width**0.5
    means = [_known(train.forces, _LEAST[0])[0].mean(), _known(train.energy, _LEAST[1])[0].mean()]
    weights = [
        hidden,
        torch.zeros(members, width),
        output,
        torch.stack(means).log().nan_to_num().float().repeat(members, 1),
    ]
    return [tensor.requires_grad_() for tensor in weights]


def _known(errors: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """The errors that are known, and where."""
    known = torch.isfinite(errors)
    return errors[known].clamp(min=least), known


def surprise(part: Residuals, expected: Sequence[Tensor], drawn: Tensor | None = None) -> Tensor:
    """Minus the logarithm of the likelihood: the mean over atoms plus that over structures.

    Args:
        expected: [M, N] and [M, B].
        drawn: [M, B], how often each structure counts; None: once.
    """
    total = torch.zeros(())
    shares = (None, None) if drawn is None else (drawn.index_select(1, part.batch), drawn)
    for errors, u, share, least in zip((part.forces, part.energy), expected, shares, _LEAST):
        found, known = _known(errors, least)
        if len(found):
            u = u[:, known].clamp(min=1e-6)
            each = u.log() + found.float() / u
            total = total + (each if share is None else each * share[:, known]).mean()
    return total


def shortfall(part: Residuals, expected: Sequence[Tensor]) -> Tensor:
    """Minus the logarithm of the chance that errors are at least those of `part`: the mean over atoms plus that over structures;
    `expected` [M, N] and [M, B].  What is expected beyond `_ENOUGH` times a bound gains nothing."""
    total = torch.zeros(())
    for errors, u, least in zip((part.forces, part.energy), expected, _LEAST):
        found, known = _known(errors, least)
        if len(found):
            total = total + (found.float() / torch.minimum(u[:, known].clamp(min=1e-6), _ENOUGH * found.float())).mean()
    return total


def errors_beside(model: GFMModel, head: Head, side: str) -> tuple[Tensor, Tensor]:
    """Expected and actual errors on some structures of a side: of forces in eV/Å, one an atom, or of a property in its unit (of a
    sum for each atom).

    Raises:
        HeadError: the model knows no errors of the head.
    """
    part, known = residuals(model, head, some_rows(head, side, FitPlan())), model.uncertainty
    if known is None:
        raise no_uncertainty(head.spec.name)
    row = int(known.rows([head.spec.name])[0])
    forces, structures = averaged(part, [tensor[row].cpu().float() for tensor in known.tensors.values()])
    expected, actual = (structures[0], part.energy) if part.of_structures else (forces[0], part.forces)
    labelled = torch.isfinite(actual)
    return expected[labelled] * known.figures[head.spec.name].get("unit", 1.0), actual[labelled]


def calibrated(weights: Sequence[Tensor], validation: Residuals) -> tuple[list[Tensor], dict[str, float]]:
    """The weights with both outputs scaled to the validation side, and the factors."""
    *others, bias = weights
    scales = {"forces": 1.0, "energy": 1.0}
    for column, (name, errors) in enumerate((("forces", validation.forces), ("energy", validation.energy))):
        expected = averaged(validation, weights)[column][0]
        known = torch.isfinite(errors) & (expected > 0)
        if known.any():
            scales[name] = max(_SMALLEST, float(errors[known].mean() / expected[known].mean()))
    return [*others, bias + torch.tensor(list(scales.values())).log()], {k: round(v, 4) for k, v in scales.items()}
