"""The loss, compiled, and compared with the loss as it is written before any weight is moved by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gfm_calc.compiling import compiled, gradients_inside
from gfm_calc.model import GFMModel
from gfm_calc.train.objective import Objective, Prepared
from gfm_calc.train.runlog import Say

# How far the two may be apart: what structures add to the loss together, and its gradient (where a small change turns signs of
# errors).  In bfloat16 sound code was found apart by 1 % and 14 %, unsound code by 40 % and more.
_APART = {"bf16": (0.15, 0.3)}
_APART_ELSE = (0.02, 0.1)
_SMALL = 0.05  # of the loss: terms that are less are nearly learnt, and rounding may be much of them


@contextmanager
def compiled_objective(
    objective: Objective,
    model: GFMModel,
    steps: Iterable[list[Prepared]],
    clear: Callable[[], None],
    tell: Callable[[Any], list[Any]],
    say: Say | None,
) -> Iterator[Any]:
    """The objective, compiled; as it is written where what was compiled computes something else on any process.

    The compiler chooses code by the sizes that it sees first, so it always sees the same batches first: a resumed run
    computes with the code of an uninterrupted one.

    Args:
        steps: the first of the run.
        clear: zeroes all gradients.
        tell: what all processes say, from what one says.
        say: gets a line for the terminal where the two differ; one process has it.
    """
    with gradients_inside():
        fast = compiled(objective)
        seen: set[tuple] = set()
        faults = []
        for step in steps:
            for prepared in step:
                _, inputs, _, mechanical = prepared
                kind = (mechanical, inputs.totals is None)
                if kind not in seen:
                    seen.add(kind)
                    written, found = (_computed(function, model, prepared, clear) for function in (objective, fast))
                    faults.append(disagreement(written, found, objective.precision))
        said = [fault for every in tell([fault for fault in faults if fault]) for fault in every]
        if said and say is not None:
            say(f"gfm: warning: the compiled step is wrong and is not used: {said[0]}")
        yield objective if said else fast


def _computed(function: Any, model: GFMModel, prepared: Prepared, clear: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """What the structures of a batch add to the loss, by term, and the gradient of the loss."""
    _, inputs, labels, mechanical = prepared
    clear()
    loss, parts = function(model, inputs.edge_vector.detach().requires_grad_(), inputs, labels, mechanical)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found = parts.sum(dim=0), torch.cat(gradients) if gradients else parts.new_zeros(0)
    clear()
    return found


def disagreement(written: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], precision: str) -> str:
    """In what the second of two computations differs from the first; "" where they agree, or the first is not finite.

    Args:
        written, found: the terms of a loss and its gradient.
        precision: of the arithmetic, see `Objective`.
    """
    of_parts, of_gradient = _APART.get(precision, _APART_ELSE)
    total = written[0].abs().sum()
    if not torch.isfinite(total) or not torch.isfinite(written[1]).all():
        return ""
    bound = of_parts * torch.maximum(written[0].abs(), _SMALL * total)
    if not ((found[0] - written[0]).abs() <= bound).all():
        return f"its losses are {_figures(found[0])} where they should be {_figures(written[0])}"
    apart, length = (found[1] - written[1]).norm(), written[1].norm()
    if not apart <= of_gradient * length:
        return f"the gradient of its loss is off by {float(apart / length):.0%}"
    return ""


def _figures(parts: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in parts.tolist())
