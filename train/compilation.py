"""The loss, compiled, and compared with the loss as it is written before any weight is moved by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gfm_calc.compiling import compiled, gradients_inside
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.errors import GFMError
from gfm_calc.model import GFMModel
from gfm_calc.train.objective import Objective, Prepared

# How far the two may be apart: what heads add to the loss, and its gradient (where a small change turns signs of errors).
# In bfloat16 sound code was found apart by 1 % and 14 %, unsound code by 40 % and more.
_APART = {"bf16": (0.15, 0.3), "float64": (1e-4, 1e-2)}
_APART_ELSE = (0.02, 0.1)
_SMALL = 0.05  # of the loss: terms that are less are nearly learnt, and rounding may be much of them


class WrongStepError(GFMError):
    """What was compiled computes something else than what is written."""


@contextmanager
def compiled_objective(
    objective: Objective,
    model: GFMModel,
    steps: Iterable[list[Prepared]],
    *,
    compare: bool,
    clear: Callable[[], None],
    tell: Callable[[Any], list[Any]],
) -> Iterator[Any]:
    """The objective, compiled.

    The compiler chooses code by the sizes that it sees first, so it always sees the same batches first: a resumed run
    computes with the code of an uninterrupted one.

    Args:
        steps: the first of the run.
        compare: the first batches with the objective as it is written; for runs that begin, whose weights are always the same.
        clear: zeroes all gradients.
        tell: what all processes say, by rank, from what one says; called by all of them if they compare.

    Raises:
        WrongStepError: on all processes, where the two differ on one, by more than precision explains.
    """
    with gradients_inside():
        fast = compiled(objective)
        seen: set[tuple] = set()
        compared: set[tuple] = set()
        faults = []
        for step in steps:
            for prepared in step:
                _, inputs, _, mechanical = prepared
                kind = (mechanical, inputs.totals is None)
                if kind not in seen or (compare and kind not in compared):
                    seen.add(kind)
                    found = _computed(fast, objective, model, prepared, clear)
                    written = _computed(objective, objective, model, prepared, clear) if compare else found
                    if torch.isfinite(written[0]).all() and torch.isfinite(written[1]).all():
                        compared.add(kind)
                        faults.append(disagreement(written, found, objective.precision))
        if compare and (said := [fault for own in tell([f for f in faults if f]) for fault in own]):
            raise WrongStepError(
                f"the compiled training step is wrong, by a fault of the compiler: {said[0]}; "
                "use another version of torch, or train with --set run.compile=false"
            )
        yield fast


def _computed(
    function: Any, objective: Objective, model: GFMModel, prepared: Prepared, clear: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """What each head adds to the loss of a batch, by term, and the gradient of the loss."""
    _, inputs, labels, mechanical = prepared
    clear()
    loss, parts = function(model, inputs.edge_vector.detach().requires_grad_(), inputs, labels, mechanical)
    loss.backward()
    parameters = chain(model.parameters(), objective.parameters())
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    by_head = scatter_sum(parts, labels.structure_head, int(labels.structure_head.max()) + 1)
    found = by_head, torch.cat(gradients) if gradients else parts.new_zeros(0)
    clear()
    return found


def disagreement(written: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], precision: str) -> str:
    """In what the second of two computations differs from the first; "" where they agree.

    Args:
        written, found: what heads add to a loss by term, [H, k], and its gradient; those written are finite.
        precision: of the arithmetic, see `Objective`.
    """
    of_parts, of_gradient = _APART.get(precision, _APART_ELSE)
    bound = of_parts * torch.maximum(written[0].abs(), _SMALL * written[0].abs().sum())
    within = (found[0] - written[0]).abs() <= bound
    if not within.all():
        head, term = (int(k) for k in torch.nonzero(~within)[0])
        is_, should = (float(each[0][head, term]) for each in (found, written))
        return f"a part of the loss is {is_:.3g} where it should be {should:.3g}"
    apart, length = (found[1] - written[1]).norm(), written[1].norm()
    if not apart <= of_gradient * length:
        return f"the gradient of the loss is off by {float(apart / length):.0%}"
    return ""
