"""DIR/report.html: the head before and after, its worst structures, learning, and what became of the old heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols as SYMBOLS

from gfm_calc.artifacts import write_file
from gfm_calc.commands.error_pictures import errors_by_element
from gfm_calc.commands.inspection_report import FINDINGS_STYLE, finding_list
from gfm_calc.commands.pages import drawn, encoded, figure, numbers, page, shown
from gfm_calc.commands.plots import BLUE, ORANGE, draw_structures
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.schema import Record
from gfm_calc.finetune import property_report as of_property
from gfm_calc.finetune import sureness
from gfm_calc.finetune.nearest import predictions
from gfm_calc.finetune.property_report import draw_sides
from gfm_calc.finetune.stiff import with_guess
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import SHOWN, mae
from gfm_calc.train.models import starting_model
from gfm_calc.train.objective import TERMS
from gfm_calc.train.report import curves
from gfm_calc.train.runlog import read_log

if TYPE_CHECKING:
    from gfm_calc.finetune.plan import Job
    from gfm_calc.finetune.run import Outcome

_SHOWN = 500  # structures in the pictures
_WORST, _IN_A_ROW = 10, 5


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One structure: labels and what the head says. energy [2] eV/atom above the references; forces [2, n, 3] or None."""

    record: Record
    energy: np.ndarray
    forces: np.ndarray | None

    @property
    def error(self) -> float:
        """What it is ranked by: mean length of the force errors, eV/Å; without forces that of the energy, eV/atom."""
        if self.forces is None:
            return float(abs(self.energy[1] - self.energy[0]))
        return float(np.linalg.norm(self.forces[1] - self.forces[0], axis=1).mean())


def write_report(job: Job, outcome: Outcome) -> None:
    """Write the page; its structures are those of the side that `outcome` measured."""
    rows = outcome.head.sides[outcome.side]
    some = rows[spread_indices(len(rows), _SHOWN)]
    records = list(outcome.head.dataset.read(some, names=True).records())
    name, setup = job.card.name, outcome.setup
    before_training = starting_model(setup.recipe, [outcome.head])
    if setup.guess is not None and setup.fitted is not None:
        before_training = with_guess(before_training, setup.fitted.where, name, setup.guess)
    if job.card.kind == "energy":
        before, after = (list(compare(model, name, records)) for model in (before_training, outcome.model))
        summary, pictures, worst = _summary(outcome), _parities(before, after), _elements(after) + _worst(after)
    else:
        sides = [list(of_property.compare_property(model, name, records)) for model in (before_training, outcome.model)]
        summary, pictures = of_property.summary(outcome), of_property.pictures(outcome, *sides)
        chosen = sorted(sides[1], key=lambda one: -one.error)[:_WORST]
        worst = _drawn_worst([one.record for one in chosen]) + of_property.worst_table(chosen)
    warning = f"<p><b>Warning:</b> {shown(outcome.warning)}.</p>" if outcome.warning else ""
    parts = [
        summary, warning, f"<p>{shown(sureness.in_words(outcome.sure))}</p>",
        "<h2>How it was done</h2>", _reasons(outcome), finding_list(setup.checks.findings),
        f'<h2>Before and after</h2><div class="pictures">{pictures}</div>',
        '<h2>Learning</h2><div class="pictures">', *curves(read_log(job.output / "run"), [name]), "</div>",
        worst, _forgetting(outcome),
    ]  # fmt: skip
    title = f"{name}, fine-tuned from {job.model.rstrip('/').rpartition('/')[2]}"
    write_file(job.output / "report.html", page(title, "\n".join(parts), style=FINDINGS_STYLE).encode())


def compare(model: GFMModel, head: str, records: Sequence[Record]) -> Iterator[Compared]:
    """Labels beside predictions."""
    spec = model.specs[head]
    for record, row in predictions(model, [head], records):
        one = row[head]
        reference = spec.reference_energy(record.atomic_numbers)
        energies = np.array([record.energy, one.energy.item()])  # type: ignore[union-attr]
        forces = None if record.forces is None else np.stack([record.forces, one.forces.numpy()])
        yield Compared(record=record, energy=(energies - reference) / len(record), forces=forces)


def _summary(outcome: Outcome) -> str:
    rows = []
    for when, found in (("before", outcome.before), ("after", outcome.after)):
        rows.append([when, *(f"{found[mae(t)]:.1f}" if mae(t) in found else "" for t in TERMS)])
    header = ("", *(f"{term} ({SHOWN[term]})" for term in TERMS))
    count = outcome.after["frames"]
    held = (
        "held-out structures"
        if outcome.side != "train"
        else "the structures that it was trained on: no proof of anything"
    )
    sizes = ", ".join(f"{len(rows)} {side}" for side, rows in outcome.setup.sides.as_mapping().items())
    text = f"Mean absolute errors on {count} {held} ({outcome.side}). Structures: {sizes}."
    return (
        numbers(header, rows)
        + f"<p>{shown(text)} Before: {shown(outcome.setup.ranking[0].head)} with new reference energies.</p>"
    )


def _reasons(outcome: Outcome) -> str:
    items = "".join(f"<li>{shown(reason)}</li>" for reason in outcome.setup.strategy.reasons)
    rows = [
        [one.head, f"{1000 * one.energy:.1f}", f"{1000 * one.forces:.0f}" if np.isfinite(one.forces) else "",
         " ".join(one.unseen)]
        for one in outcome.setup.ranking
    ]  # fmt: skip
    if not rows:
        return f"<ul>{items}</ul>"
    header = ("head", "energy (meV/atom)", "forces (meV/Å)", "unseen elements")
    text = "The old heads on training structures, new reference energies fitted to each: the first is where the new one began."
    return f"<ul>{items}</ul>{numbers(header, rows)}<p>{text}</p>"


def _parities(before: Sequence[Compared], after: Sequence[Compared]) -> str:
    found = []
    for what, pick, colour in (("energy (eV/atom)", _energies, BLUE), ("force (eV/Å)", _components, ORANGE)):
        if pick(before).size:
            image = drawn(draw_sides, (pick(before), pick(after)), what, colour, columns=2, width=7.0)
            caption = f"{what}: label and prediction; reference energies are subtracted."
            found.append(figure(what, caption, image))
    return "".join(found)


def _energies(side: Sequence[Compared]) -> np.ndarray:
    return np.stack([one.energy for one in side], axis=1)


def _components(side: Sequence[Compared]) -> np.ndarray:
    known = [one.forces.reshape(2, -1) for one in side if one.forces is not None]
    return np.concatenate(known, axis=1) if known else np.zeros((2, 0))


def _elements(after: Sequence[Compared]) -> str:
    known = [(one.record.atomic_numbers, one.forces) for one in after if one.forces is not None]
    if not known:
        return ""
    errors = [np.linalg.norm(forces[1] - forces[0], axis=1) for _, forces in known]
    caption = "Mean length of the force error after fine-tuning"
    return errors_by_element(np.concatenate([z for z, _ in known]), np.concatenate(errors), caption)


def _worst(after: Sequence[Compared]) -> str:
    worst = sorted(after, key=lambda one: -one.error)[:_WORST]
    rows = []
    for one in worst:
        force = "" if one.forces is None else f"{1000 * one.error:.0f}"
        atom = "" if one.forces is None else _worst_atom(one)
        energy = 1000 * (one.energy[1] - one.energy[0])
        rows.append([f"{one.record.source} frame {one.record.frame}", f"{energy:+.1f}", force, atom])
    header = ("structure", "energy error (meV/atom)", "force error (meV/Å)", "worst atom")
    return _drawn_worst([one.record for one in worst]) + numbers(header, rows)


def _drawn_worst(records: Sequence[Record]) -> str:
    pictures = []
    for first in range(0, len(records), _IN_A_ROW):
        part = records[first : first + _IN_A_ROW]
        views = {f"{first + k + 1}: frame {record.frame}": _turned(record) for k, record in enumerate(part)}
        image = BytesIO()
        draw_structures(image, views)  # type: ignore[arg-type]
        pictures.append(figure("Worst structures", "", encoded(image)))
    return f"<h2>The worst structures</h2>{''.join(pictures)}"


def _worst_atom(one: Compared) -> str:
    assert one.forces is not None
    lengths = np.linalg.norm(one.forces[1] - one.forces[0], axis=1)
    k = int(lengths.argmax())
    return f"{SYMBOLS[one.record.atomic_numbers[k]]} {k}: {1000 * lengths[k]:.0f}"


def _turned(record: Record) -> Any:
    """The structure with its thinnest direction along z."""
    atoms = record.structure()
    centred = atoms.positions - atoms.positions.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=True)[2] if len(atoms) > 2 else np.eye(3)
    atoms.positions = centred @ axes.T
    return atoms


def _forgetting(outcome: Outcome) -> str:
    if not outcome.drifts:
        return "<h2>The old heads</h2><p>They are as they were: the encoder did not move, or none was kept.</p>"
    rows = [
        [d.head, f"{d.structures} {'held out' if d.held_out else 'made'}", *(
            f"{value:.{digits}f}" if np.isfinite(value) else ""
            for value, digits in (
                (1000 * d.energy, 1), (1000 * d.energy_error, 1), (100 * d.energy_loss, 1),
                (1000 * d.forces, 0), (1000 * d.error, 0), (100 * d.loss, 1),
            )
        )]
        for d in outcome.drifts
        if np.isnan(d.value)
    ]  # fmt: skip
    values = [
        f"values of {d.head} moved by {d.value:.3g} {outcome.model.specs[d.head].unit}"
        for d in outcome.drifts
        if not np.isnan(d.value)
    ]
    more = f"<p>{shown('; '.join(values))}: nothing guards heads of properties.</p>" if values else ""
    header = (
        "head",
        "structures",
        "energies moved (meV/atom)",
        "energy error before (meV/atom)",
        "energy loss (%)",
        "forces moved (meV/Å)",
        "force error before (meV/Å)",
        "force loss (%)",
    )
    text = (
        "How far the predictions of the old heads moved, on structures like those they were trained on that were held out, or on "
        "some that were made for the purpose. Loss: what such a change adds to the error that the head had, if the two have "
        "nothing to do with each other."
    )
    return f"<h2>The old heads</h2>{numbers(header, rows)}<p>{text}</p>{more}"
