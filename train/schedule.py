"""The learning rate as a function of the step, and of what validations have found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gfm_calc.train.recipe import OptimizerRecipe


class Schedule:
    """Linear warm-up, then what the recipe says; also remembers the best validation.

    Attributes: `best` score and its `best_step`; `failures`, validations since.
    """

    def __init__(self, recipe: OptimizerRecipe, steps: int):
        self.recipe, self.steps = recipe, steps
        self.best, self.best_step, self.failures = math.inf, 0, 0
        self._factor, self._waited = 1.0, 0

    def rate(self, step: int) -> float:
        """The learning rate of the step that follows `step` steps."""
        c = self.recipe
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        if c.schedule == "constant":
            return c.learning_rate
        if c.schedule == "plateau":
            return max(c.learning_rate * self._factor, c.final_learning_rate)
        progress = min(1.0, (step - c.warmup) / max(1, self.steps - c.warmup))
        drop = c.learning_rate - c.final_learning_rate
        if c.schedule == "trapezoid":
            return c.final_learning_rate + drop * min(1.0, max(0, self.steps - step) / max(1, c.fall))
        return c.final_learning_rate + 0.5 * drop * (1 + math.cos(math.pi * progress))

    def validated(self, step: int, score: float) -> None:
        """Take a validation's score into account."""
        if score < self.best:
            self.best, self.best_step, self.failures, self._waited = score, step, 0, 0
            return
        self.failures += 1
        self._waited += 1
        if self._waited >= self.recipe.patience:
            self._factor, self._waited = 0.5 * self._factor, 0

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "best_step": self.best_step, "failures": self.failures, "factor": self._factor,
                "waited": self._waited}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.best = math.inf if state["best"] is None else state["best"]
        self.best_step, self.failures = state["best_step"], state["failures"]
        self._factor, self._waited = state["factor"], state["waited"]
