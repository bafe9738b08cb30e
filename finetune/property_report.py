"""What the report says of a property: labels beside predictions before and after, the ROC of a class, the worst structures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gfm_calc.commands.error_pictures import draw_parity
from gfm_calc.commands.pages import drawn, figure, numbers, shown
from gfm_calc.commands.plots import BLUE, GREY, ORANGE
from gfm_calc.data.schema import Record
from gfm_calc.errors import GFMError
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor
from gfm_calc.ranks import roc_auc, roc_curve
from gfm_calc.train.evaluation import in_words
from gfm_calc.train.properties import label_of

if TYPE_CHECKING:
    from gfm_calc.finetune.run import Outcome


@dataclass(frozen=True, kw_only=True)
class ComparedProperty:
    """One structure: its label and what the head says, both [k] or [n, k]."""

    record: Record
    label: np.ndarray
    found: np.ndarray

    @property
    def error(self) -> float:
        """Mean absolute error of the numbers."""
        return float(np.nanmean(np.abs(self.found - self.label)))


def compare_property(model: GFMModel, head: str, records: Sequence[Record]) -> Iterator[ComparedProperty]:
    """Labels beside predictions, of the records that have a label."""
    spec = model.specs[head]
    labelled = [record for record in records if label_of(spec, record).size]
    stream = Predictor(model, [head], strict=False).predict((r.structure() for r in labelled), on_error="yield")
    for record, row in zip(labelled, stream):
        if isinstance(row, GFMError):
            continue
        value = row[head].value
        assert value is not None
        label = label_of(spec, record)
        yield ComparedProperty(record=record, label=label, found=value.numpy().reshape(label.shape))


def summary(outcome: Outcome) -> str:
    """The figures before and after."""
    spec = outcome.head.spec
    rows = [[when, in_words(found, spec)] for when, found in (("before", outcome.before), ("after", outcome.after))]
    sizes = ", ".join(f"{len(rows)} {side}" for side, rows in outcome.setup.sides.as_mapping().items())
    held = (
        "held-out structures"
        if outcome.side != "train"
        else "the structures that it was trained on: no proof of anything"
    )
    if outcome.setup.fitted is not None:
        where = "fits to what the model knows"
        guess = outcome.setup.guess
        where += "" if guess is None else f", beside a first guess: {guess.says}"
    else:
        where = "what each element adds on average" if spec.kind in ("scalar", "atom_scalar") else "nothing"
        where += ", and random weights"
    text = f"Mean absolute errors on {outcome.after['frames']} {held} ({outcome.side}). Structures: {sizes}. Before: {where}."
    return numbers(("", f"{spec.quantity} ({spec.kind})"), rows) + f"<p>{shown(text)}</p>"


def pictures(outcome: Outcome, before: Sequence[ComparedProperty], after: Sequence[ComparedProperty]) -> str:
    """Parity, or the ROC of a class."""
    spec = outcome.head.spec
    if spec.kind == "class":
        truth, scores = _joined(after)
        if np.isnan(roc_auc(truth, scores)):
            return "<p>All these structures have the same answer: there is no ROC.</p>"
        image = drawn(_draw_roc, truth, scores, width=4.0, height=3.6)
        return figure("ROC", f"Area under the curve {roc_auc(truth, scores):.3f}; 0.5 for guesses.", image)
    what = f"{spec.quantity} ({spec.unit})"
    image = drawn(draw_sides, (_joined(before), _joined(after)), what, ORANGE, columns=2, width=7.0)
    return figure(what, f"{what}: label and prediction.", image)


def worst_table(worst: Sequence[ComparedProperty]) -> str:
    """Labels and predictions of the worst structures."""
    rows = []
    for one in worst:
        few = one.label.size <= 3
        label, found = ((" ".join(f"{x:.4g}" for x in v.ravel()) if few else "") for v in (one.label, one.found))
        rows.append([f"{one.record.source} frame {one.record.frame}", label, found, f"{one.error:.4g}"])
    return numbers(("structure", "label", "prediction", "mean error"), rows)


def _joined(side: Sequence[ComparedProperty]) -> tuple[np.ndarray, np.ndarray]:
    label = np.concatenate([one.label.ravel() for one in side])
    found = np.concatenate([one.found.ravel() for one in side])
    return label[np.isfinite(label)], found[np.isfinite(label)]


def _draw_roc(axes: Any, truth: np.ndarray, scores: np.ndarray) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    axes.plot(*roc_curve(truth, scores), color=BLUE, linewidth=1.2)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="after")


def draw_sides(panels: Any, sides: Sequence[tuple[np.ndarray, np.ndarray]], what: str, colour: str) -> None:
    """Labels and predictions before and after, on two axes; sides: (labels [n], predictions [n]) of either; see `draw_parity`."""
    for axes, (label, found), title in zip(panels, sides, ("before", "after")):
        draw_parity(axes, label, found, what, colour, title)
