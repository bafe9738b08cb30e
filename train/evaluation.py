"""Errors of heads on held-out structures, through the path that every user of the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from gfm_calc.data.loader import LabelledBatch
from gfm_calc.model import GFMModel
from gfm_calc.train.recipe import ObjectiveRecipe

# Sums over structures of one head: absolute and squared errors and how many of each.
SUMS = tuple(f"{term}_{what}" for term in ("energy", "forces", "stress") for what in ("abs", "square", "count"))


class ErrorSums:
    """Sums of errors of H heads, [H, 9] float64, which may be added up over processes.

    Energies count per atom (eV/atom), forces and stress per component (eV/Å, eV/Å³).
    """

    def __init__(self, heads: Sequence[str]):
        self.heads = list(heads)
        self.sums = torch.zeros(len(heads), len(SUMS), dtype=torch.float64)

    def add(self, model: GFMModel, batches: Iterable[LabelledBatch], head: str) -> None:
        """The errors of one head on its batches."""
        row = self.heads.index(head)
        for batch in batches:
            self.sums[row] += _errors(model, batch, head)

    def table(self) -> dict[str, dict[str, float]]:
        """{head: {"energy_mae", "energy_rmse", "forces_mae", ...}} of heads and labels that there are."""
        found: dict[str, dict[str, float]] = {}
        for head, row in zip(self.heads, self.sums.tolist()):
            entry: dict[str, float] = {}
            for k, term in enumerate(("energy", "forces", "stress")):
                absolute, square, count = row[3 * k : 3 * k + 3]
                if count:
                    entry |= {f"{term}_mae": absolute / count, f"{term}_rmse": (square / count) ** 0.5}
            if entry:
                found[head] = entry
        return found


def score(errors: Mapping[str, Mapping[str, float]], recipe: ObjectiveRecipe) -> float:
    """One number for a validation, smaller is better: the mean over heads of the weighted absolute errors."""
    weights = {"energy_mae": recipe.energy, "forces_mae": recipe.forces, "stress_mae": recipe.stress}
    totals = [sum(weights[name] * row[name] for name in weights if name in row) for row in errors.values()]
    return float(np.mean(totals)) if totals else float("inf")


def spread_indices(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, evenly spaced: the same ones at every validation."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.zeros(0, int)
    )


def _errors(model: GFMModel, batch: LabelledBatch, head: str) -> torch.Tensor:
    has_forces = bool(torch.isfinite(batch.forces).any()) or bool(torch.isfinite(batch.stress).any())
    found = model.predict(batch.graph, [head], forces=has_forces)[head]
    sizes = batch.graph.ptr.diff().to(torch.float64)
    assert found.energy is not None
    pairs = [((found.energy - batch.energy) / sizes, batch.energy)]
    if has_forces:
        pairs += [(found.forces - batch.forces, batch.forces), (found.stress - batch.stress, batch.stress)]
    sums = []
    for error, label in pairs:
        known = error[torch.isfinite(label)]
        sums += [known.abs().sum(), known.square().sum(), torch.tensor(float(known.numel()), dtype=torch.float64)]
    return torch.stack(sums + [torch.zeros((), dtype=torch.float64)] * (len(SUMS) - len(sums)))
