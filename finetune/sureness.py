"""Errors that the new head expects of itself, and how far they are right on structures that they were not learnt from."""

from __future__ import annotations

from dataclasses import dataclass

from gfm_calc.model import GFMModel
from gfm_calc.ranks import rank_correlation
from gfm_calc.train.preparation import Head
from gfm_calc.train.uncertainty import FitPlan, errors_beside, fit_uncertainty

_PLAN = FitPlan(judges=10)  # a fine-tuned head is far better on its few training structures than elsewhere


@dataclass(frozen=True, kw_only=True)
class Sureness:
    """Attributes: `what` the errors are of ("forces", "atoms" or "structures"), `count` of them on the `side`;
    `rank_correlation` of expected and actual errors (Spearman); `ratio`, the mean of the actual ones over that of the
    expected."""

    what: str
    count: int
    side: str
    rank_correlation: float
    ratio: float

    def __str__(self) -> str:
        if self.side != "test":
            return "expected errors: learnt; nothing is held out to say what they are worth"
        if self.count < 3:
            return "expected errors: learnt; no labels are held out to say what they are worth"
        return (
            f"expected errors: rank correlation {self.rank_correlation:.2f} with those of {self.count} {self.what} of the "
            f"{self.side} side, which are {self.ratio:.2f} times as large"
        )


def in_words(sure: Sureness | str | None) -> str:
    """A line on the expected errors of a head, or on why there are none; "" where there is nothing to say."""
    return f"expected errors: none; {sure}" if isinstance(sure, str) else "" if sure is None else str(sure)


def learn(model: GFMModel, head: Head, side: str) -> Sureness | str | None:
    """Put expected errors of the head into the model, and say what they are worth on a side; or why it gets none.  None for a
    class, whose probability says how sure it is."""
    if head.spec.kind == "class":
        return None
    learnt = fit_uncertainty(model, [head], _PLAN)
    if learnt.errors is None:
        return learnt.without[head.spec.name]
    model.uncertainty = learnt.errors
    expected, actual = errors_beside(model, head, side)
    what = "forces" if head.spec.kind == "energy" else "atoms" if head.spec.is_of_atoms else "structures"
    correlation = rank_correlation(expected, actual)
    ratio = float(actual.mean() / expected.mean()) if len(actual) else float("nan")
    return Sureness(what=what, count=len(actual), side=side, rank_correlation=correlation, ratio=ratio)
