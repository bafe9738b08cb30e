"""Errors of heads on held-out structures: what is summed, and the figures that the sums give.

Energies count per atom; forces per component; stress per component, six of them a structure; properties per number, of a
class the wrong decisions and the squares of (probability - truth).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gfm_calc.config import HeadSpec
from gfm_calc.data.loader import LabelledBatch
from gfm_calc.heads import PropertyHead
from gfm_calc.model import GFMModel
from gfm_calc.train.objective import COLUMNS, TERMS
from gfm_calc.train.recipe import ObjectiveRecipe

UNITS = {"energy": "mev_per_atom", "forces": "mev_per_a", "stress": "mev_per_a3"}
SHOWN = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}
# Of the structures of one head: how many, and of each term the absolute and squared errors and how many of them; of a
# property also what it adds to the loss.
SUMS = ("frames", *(f"{term}_{what}" for term in COLUMNS for what in ("abs", "square", "count")), "property_loss")
_COMPONENTS = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # the six independent ones of a symmetric tensor


def mae(term: str) -> str:
    """The name of a term's mean absolute error among the figures."""
    return f"{term}_mae_{UNITS[term]}"


def error_sums(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The sums of B structures, float64 as `SUMS`; what has no label (NaN) does not count.

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


def property_sums(found: Tensor, label: Tensor, module: PropertyHead, atoms: Tensor) -> Tensor:
    """The sums of B structures of a property head, as `SUMS`.

    Args:
        found: its values, as in `Prediction.value`.  label: [B or N, 3], NaN where there is none.
        module: the head.  atoms: [B].
    """
    label = label.reshape(len(label), 3)[:, : found[0].numel()]
    found = found.reshape(label.shape)
    known = torch.isfinite(label).all(dim=1)
    error = (found - label)[known]
    size = atoms[known].unsqueeze(1) if module.is_per_atom_of_sum else 1.0
    loss = (error / (module.scale.cpu() * size)).abs()
    if module.kind == "class":
        likely = torch.where(label[known] > 0.5, found[known], 1 - found[known])
        loss, error = -likely.clamp(min=1e-12).log(), error.abs().where(error.abs() > 0.5, 0.0)
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    sums[0] = len(atoms)
    first = SUMS.index("property_abs")
    wrong = (error > 0).to(torch.float64) if module.kind == "class" else error.abs()
    squares = (found - label)[known].square()
    sums[first:] = torch.stack([wrong.sum(), squares.sum(), wrong.new_tensor(float(wrong.numel())), loss.sum()])
    return sums


def figures(sums: Tensor, kind: str = "energy") -> dict[str, Any]:
    """Mean absolute and root mean square errors, in the words of `HeadSpec.test_errors`.

    Args:
        sums: as `SUMS`.  kind: of the head.

    Returns:
        frames; {energy_mae, energy_rmse}_mev_per_atom, forces_*_mev_per_a, stress_*_mev_per_a3, of what has labels.  Of a
        property value_mae, value_rmse in its unit, of a class accuracy and brier (mean square of probability - truth); and
        loss, as in training.
    """
    frames, *rest = sums.tolist()
    found: dict[str, Any] = {"frames": int(frames)}
    for k, (term, unit) in enumerate(UNITS.items()):
        absolute, square, count = rest[3 * k : 3 * k + 3]
        if count:
            found[f"{term}_mae_{unit}"] = 1e3 * absolute / count
            found[f"{term}_rmse_{unit}"] = 1e3 * (square / count) ** 0.5
    absolute, square, count, loss = rest[3 * len(UNITS) :]
    if count and kind == "class":
        found |= {"accuracy": 1 - absolute / count, "brier": square / count, "loss": loss / count}
    elif count:
        found |= {"value_mae": absolute / count, "value_rmse": (square / count) ** 0.5, "loss": loss / count}
    return found


def in_words(found: Mapping[str, Any], spec: HeadSpec) -> str:
    """Figures as a line for people."""
    parts = [f"{term} {found[mae(term)]:.1f} {unit}" for term, unit in SHOWN.items() if mae(term) in found]
    if "value_mae" in found:
        parts.append(f"{spec.quantity} {found['value_mae']:.4g} {spec.unit}")
    if "accuracy" in found:
        parts.append(f"accuracy {100 * found['accuracy']:.1f} %")
    if "roc_auc" in found:
        parts.append(f"ROC-AUC {found['roc_auc']:.3f}")
    return ", ".join(parts)


def rounded(found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for people and cards: five digits."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in found.items()}


class ErrorSums:
    """Sums of errors of H heads, [H, len(SUMS)] float64, which may be added up over processes.

    Args:
        kinds: of the heads that are not of energies.
    """

    def __init__(self, heads: Sequence[str], kinds: Mapping[str, str] = MappingProxyType({})):
        self.heads, self.kinds = list(heads), kinds
        self.sums = torch.zeros(len(heads), len(SUMS), dtype=torch.float64)

    def add(self, model: GFMModel, batches: Iterable[LabelledBatch], head: str) -> None:
        """The errors of one head on its batches."""
        row = self.heads.index(head)
        for batch in batches:
            self.sums[row] += _errors(model, batch, head)

    def table(self) -> dict[str, dict[str, Any]]:
        """{head: `figures`} of the heads that have structures."""
        rows = {head: figures(row, self.kinds.get(head, "energy")) for head, row in zip(self.heads, self.sums)}
        return {head: row for head, row in rows.items() if row["frames"]}


def score(errors: Mapping[str, Mapping[str, float]], recipe: ObjectiveRecipe) -> float:
    """One number for a validation, smaller is better: the mean over heads of the weighted absolute errors, in eV and Å, or
    of the weighted loss of a property."""
    weights = {mae(term): 1e-3 * getattr(recipe, term) for term in TERMS} | {"loss": recipe.property}
    totals = [sum(weights[name] * row[name] for name in weights if name in row) for row in errors.values()]
    return float(np.mean(totals)) if totals else float("inf")


def _errors(model: GFMModel, batch: LabelledBatch, head: str) -> Tensor:
    spec = model.specs[head]
    if spec.kind != "energy":
        value = model.predict(batch.graph, [head])[head].value
        assert value is not None
        module: Any = model.properties[model.property_heads.index(head)]
        label = batch.atom_values if spec.is_of_atoms else batch.value
        return property_sums(value, label, module, batch.graph.ptr.diff().to(torch.float64))
    has_forces = bool(torch.isfinite(batch.forces).any()) or bool(torch.isfinite(batch.stress).any())
    found = model.predict(batch.graph, [head], forces=has_forces)[head]
    sizes = batch.graph.ptr.diff().to(torch.float64)
    assert found.energy is not None
    pairs = [(found.energy / sizes, batch.energy / sizes)]
    if has_forces:
        pairs += [(found.forces, batch.forces), (found.stress, batch.stress)]
    return error_sums(pairs)
