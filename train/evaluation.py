"""Errors of heads on held-out structures: what is summed, and the figures that the sums give.

Energies count per atom; forces per component; stress per component, six of them a structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gfm_calc.data.loader import LabelledBatch
from gfm_calc.model import GFMModel
from gfm_calc.train.objective import TERMS
from gfm_calc.train.recipe import ObjectiveRecipe

UNITS = {"energy": "mev_per_atom", "forces": "mev_per_a", "stress": "mev_per_a3"}
SHOWN = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}
# Of the structures of one head: how many, and of each term the absolute and squared errors and how many of them.
SUMS = ("frames", *(f"{term}_{what}" for term in TERMS for what in ("abs", "square", "count")))
_COMPONENTS = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # the six independent ones of a symmetric tensor


def mae(term: str) -> str:
    """The name of a term's mean absolute error among the figures."""
    return f"{term}_mae_{UNITS[term]}"


def error_sums(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The sums of B structures, [10] float64 as `SUMS`; what has no label (NaN) does not count.

    Args:
        pairs: predictions and labels of energy an atom [B] in eV, then forces [N, 3] in eV/Å, then stress [B, 3, 3] in eV/Å³;
            the last may be left out.
    """
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    sums[0] = len(pairs[0][0])
    for k, (found, label) in enumerate(pairs):
        if TERMS[k] == "stress":
            found, label = (tensor[:, _COMPONENTS[0], _COMPONENTS[1]] for tensor in (found, label))
        known = (found - label)[torch.isfinite(label)].to(torch.float64)
        sums[3 * k + 1 : 3 * k + 4] = torch.stack(
            [known.abs().sum(), known.square().sum(), torch.tensor(float(known.numel()), dtype=torch.float64)]
        )
    return sums


def figures(sums: Tensor) -> dict[str, Any]:
    """Mean absolute and root mean square errors, in the words of `HeadSpec.test_errors`.

    Args:
        sums: [10] as `SUMS`.

    Returns:
        frames; {energy_mae, energy_rmse}_mev_per_atom, forces_*_mev_per_a, stress_*_mev_per_a3, of what has labels.
    """
    frames, *rest = sums.tolist()
    found: dict[str, Any] = {"frames": int(frames)}
    for k, (term, unit) in enumerate(UNITS.items()):
        absolute, square, count = rest[3 * k : 3 * k + 3]
        if count:
            found[f"{term}_mae_{unit}"] = 1e3 * absolute / count
            found[f"{term}_rmse_{unit}"] = 1e3 * (square / count) ** 0.5
    return found


def rounded(found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for people and cards: five digits."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in found.items()}


class ErrorSums:
    """Sums of errors of H heads, [H, 10] float64, which may be added up over processes."""

    def __init__(self, heads: Sequence[str]):
        self.heads = list(heads)
        self.sums = torch.zeros(len(heads), len(SUMS), dtype=torch.float64)

    def add(self, model: GFMModel, batches: Iterable[LabelledBatch], head: str) -> None:
        """The errors of one head on its batches."""
        row = self.heads.index(head)
        for batch in batches:
            self.sums[row] += _errors(model, batch, head)

    def table(self) -> dict[str, dict[str, Any]]:
        """{head: `figures`} of the heads that have structures."""
        rows = {head: figures(row) for head, row in zip(self.heads, self.sums)}
        return {head: row for head, row in rows.items() if row["frames"]}


def score(errors: Mapping[str, Mapping[str, float]], recipe: ObjectiveRecipe) -> float:
    """One number for a validation, smaller is better: the mean over heads of the weighted absolute errors, in eV and Å."""
    weights = {mae(term): 1e-3 * getattr(recipe, term) for term in TERMS}
    totals = [sum(weights[name] * row[name] for name in weights if name in row) for row in errors.values()]
    return float(np.mean(totals)) if totals else float("inf")


def spread_indices(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, evenly spaced: the same ones at every validation."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.zeros(0, int)
    )


def _errors(model: GFMModel, batch: LabelledBatch, head: str) -> Tensor:
    has_forces = bool(torch.isfinite(batch.forces).any()) or bool(torch.isfinite(batch.stress).any())
    found = model.predict(batch.graph, [head], forces=has_forces)[head]
    sizes = batch.graph.ptr.diff().to(torch.float64)
    assert found.energy is not None
    pairs = [(found.energy / sizes, batch.energy / sizes)]
    if has_forces:
        pairs += [(found.forces, batch.forces), (found.stress, batch.stress)]
    return error_sums(pairs)
