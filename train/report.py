"""RUN/report.html: learning curves, parity on held-out structures, errors by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gfm_calc.artifacts import write_file
from gfm_calc.commands.error_pictures import draw_parity, errors_by_element
from gfm_calc.commands.pages import drawn, figure, numbers, page
from gfm_calc.commands.plots import BLUE, COLOURS, ORANGE
from gfm_calc.data.loader import Loader
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.store import Selection
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import SHOWN, mae
from gfm_calc.train.objective import TERMS
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import Recipe
from gfm_calc.train.runlog import read_log

_SHOWN = 300  # structures of a head in the pictures


@dataclass(kw_only=True)
class Parity:
    """Labels and predictions of one head: energy (eV/atom, references subtracted) and forces (eV/Å, components), and the
    length of the force error of each atom with its atomic number."""

    energy: list[np.ndarray] = field(default_factory=list)
    forces: list[np.ndarray] = field(default_factory=list)
    errors: list[np.ndarray] = field(default_factory=list)

    def add(self, model: GFMModel, batch: Any, head: str) -> None:
        """A batch of structures."""
        known = torch.isfinite(batch.forces).all(dim=1)
        found = model.predict(batch.graph, [head], forces=bool(known.any()))[head]
        numbers_, owner = batch.graph.atomic_numbers, batch.graph.batch
        row = model.energy_heads.index(head)
        reference = torch.zeros(len(batch), dtype=torch.float64).index_add(
            0, owner, model.energy_stack.reference[row].cpu()[numbers_]
        )
        sizes = batch.graph.ptr.diff()
        assert found.energy is not None
        self.energy.append(
            torch.stack([(batch.energy - reference) / sizes, (found.energy - reference) / sizes]).numpy()
        )
        if found.forces is not None:
            error = (found.forces - batch.forces)[known]
            self.forces.append(torch.stack([batch.forces[known].flatten(), found.forces[known].flatten()]).numpy())
            self.errors.append(torch.stack([numbers_[known].double(), error.norm(dim=1)]).numpy())


def write_report(folder: Path, model: GFMModel, heads: Sequence[Head], recipe: Recipe) -> None:
    """Write the page; held-out structures are those of the test side (validation where that is empty)."""
    parities = {head.spec.name: _parity(model, head, recipe) for head in heads}
    lines = read_log(folder)
    parts = [
        _summary(heads),
        "<h2>Learning</h2>",
        '<div class="pictures">',
        *curves(lines, [h.spec.name for h in heads]),
        "</div>",
    ]
    errors = [e for parity in parities.values() for e in parity.errors]
    if errors:
        caption = "Mean length of the force error on held-out structures of all heads"
        atomic_numbers, lengths = np.concatenate(errors, axis=1)
        parts.append(errors_by_element(atomic_numbers, lengths, caption))
    parts.append('<h2>Held-out structures</h2><div class="pictures">')
    for name, parity in parities.items():
        if parity.energy:
            caption = f"{name}: labels and predictions; energies with the reference energies subtracted."
            parts.append(figure(name, caption, drawn(_draw_parity, parity, name, columns=2, width=6.6, height=3.1)))
    parts.append("</div>")
    write_file(folder / "report.html", page(f"Training of {len(heads)} heads", "\n".join(parts)).encode())


def _parity(model: GFMModel, head: Head, recipe: Recipe) -> Parity:
    found = Parity()
    rows = head.sides["test"] if head.sides["test"].size else head.sides["validation"]
    if rows.size and head.spec.kind == "energy":
        chosen = Selection(head.dataset, rows[spread_indices(len(rows), _SHOWN)])
        for batch in Loader([chosen], recipe.model.cutoff, max_atoms=recipe.run.max_atoms).once():
            found.add(model, batch, head.spec.name)
    return found


def _summary(heads: Sequence[Head]) -> str:
    rows = []
    for head in heads:
        errors: Mapping[str, float] = head.spec.test_errors
        shown = [f"{errors[mae(term)]:.1f}" if mae(term) in errors else "" for term in TERMS]
        sizes = [f"{len(head.sides[side])}" for side in ("train", "validation", "test")]
        rows.append([head.spec.name, *sizes, f"{100 * head.share:.1f}", f"{head.scale:.2f}", *shown])
    header = ("head", "training", "validation", "test", "draws (%)", "scale (eV)", "energy (meV/atom)", "forces (meV/Å)",
              "stress (meV/Å³)")  # fmt: skip
    return numbers(header, rows) + "<p>Mean absolute errors on the test side.</p>"


def curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Pictures of a log: the loss, and the validation error of each term."""
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation" in line]
    shown = (
        [figure("Loss", "Training loss of each head, a running mean.", drawn(_draw_losses, steps, names, width=6.6))]
        if steps
        else []
    )
    for term in TERMS:
        if any(mae(term) in row for line in checks for row in line["validation"].values()):
            axis = f"mean absolute error ({SHOWN[term]})"
            image = drawn(_draw_checks, checks, names, (mae(term), axis, term.capitalize()), width=6.6)
            shown.append(figure(f"Error of {term}", f"Validation: mean absolute error of {term}.", image))
    if any("loss" in row for line in checks for row in line["validation"].values()):
        image = drawn(_draw_checks, checks, names, ("loss", "loss", "Validation"), width=6.6)
        shown.append(figure("Loss of properties", "Validation: the loss of properties.", image))
    return shown


def _draw_losses(axes: Any, lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    step = np.array([line["step"] for line in lines])
    width = max(1, len(lines) // 100)
    for k, name in enumerate(names):
        values = np.array([line["head_losses"].get(name, np.nan) for line in lines], float)
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(step[width - 1 :], np.where(mean > 0, mean, np.nan), color=COLOURS[k % len(COLOURS)], label=name, lw=1,
                  linestyle=("-", "--", ":")[k // len(COLOURS) % 3])  # fmt: skip
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Loss")
    axes.legend(fontsize=6, ncols=2)


def _draw_checks(
    axes: Any, lines: Sequence[Mapping[str, Any]], names: Sequence[str], words: tuple[str, str, str]
) -> None:
    """words: which of the figures, of the axis, of the title."""
    what, axis, title = words
    for k, name in enumerate(names):
        rows = [(line["step"], line["validation"].get(name, {})) for line in lines]
        points = [(step, row[what]) for step, row in rows if what in row]
        if points:
            axes.plot(*zip(*points), marker="o", color=COLOURS[k % len(COLOURS)], label=name, lw=1, markersize=3,
                      linestyle=("-", "--", ":")[k // len(COLOURS) % 3])  # fmt: skip
    axes.set(xlabel="step", ylabel=axis, yscale="log", title=title)
    axes.legend(fontsize=6, ncols=2)


def _draw_parity(panels: Any, parity: Parity, name: str) -> None:
    for axes, values, label, colour in (
        (panels[0], parity.energy, "energy (eV/atom)", BLUE), (panels[1], parity.forces, "force (eV/Å)", ORANGE)
    ):  # fmt: skip
        if not values:
            axes.axis("off")
            continue
        labels, found = np.concatenate(values, axis=1)
        draw_parity(axes, labels, found, label, colour)
    panels[0].set_title(name)
