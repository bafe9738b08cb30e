"""What a model's errors are on structures of a dataset, beside the features that `gfm_calc.uncertainty` guesses them from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gfm_calc.config import HeadSpec
from gfm_calc.data.loader import LabelledBatch, Loader
from gfm_calc.data.store import Selection
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.graph import GraphBatch
from gfm_calc.model import GFMModel
from gfm_calc.train.preparation import Head
from gfm_calc.uncertainty import expected_errors, features


class Residuals(NamedTuple):
    """Errors of a head on N atoms of B structures: x [N, 2F], gate [N], batch [N], atoms [B]; the absolute errors of forces
    [N] in eV/Å and of energies [B] in eV an atom, NaN where there is no label; or those of a property of atoms [N] or of
    structures [B], of a sum for each atom, in its unit."""

    x: Tensor
    gate: Tensor
    batch: Tensor
    atoms: Tensor
    forces: Tensor
    energy: Tensor
    of_structures: bool = False  # errors of a property of structures alone

    def take(self, chosen: Tensor) -> Residuals:
        """Some structures, [B'] indices."""
        sizes = self.atoms[chosen]
        starts = (self.atoms.cumsum(0) - self.atoms)[chosen]
        owner = torch.repeat_interleave(torch.arange(len(chosen)), sizes)
        rows = torch.arange(len(owner)) + (starts - (sizes.cumsum(0) - sizes))[owner]
        return Residuals(
            self.x[rows], self.gate[rows], owner, sizes, self.forces[rows], self.energy[chosen], self.of_structures
        )  # fmt: skip

    def expected(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """([M, N] eV/Å, [M, B] eV an atom) that the networks of a head expect."""
        found = expected_errors(self.x, self.gate, weights)
        totals = scatter_sum(found[..., 1].t(), self.batch, len(self.atoms)).t()
        return found[..., 0], totals / self.atoms


def residuals(model: GFMModel, head: Head, rows: np.ndarray) -> Residuals:
    """The errors on structures of the head's dataset, [B] rows; NaN where one has no label."""
    name, found = head.spec.name, list[Residuals]()
    if rows.size:
        loader = Loader(
            [Selection(head.dataset, rows)], model.config.cutoff, max_atoms=2000, max_edges=60000, names=[name]
        )
        found = [_of_batch(model, batch, name) for batch in loader.once()]
    return joined(found, model)


def seen(model: GFMModel, graph: GraphBatch) -> tuple[Tensor, Tensor]:
    """What the networks are given: x [N, 2F] and gate [N], float32 on the CPU."""
    with torch.no_grad():
        encoded = model.encode(model.inputs(graph))
    return features(encoded.scalars, encoded.vectors).cpu().float(), encoded.gate.cpu().float()


def _of_batch(model: GFMModel, batch: LabelledBatch, head: str) -> Residuals:
    predicted = model.predict(batch.graph, [head])[head]
    x, gate = seen(model, batch.graph)
    sizes, owner = batch.graph.ptr.diff(), batch.graph.batch
    if predicted.value is not None:
        return _of_property(model.spec(head), predicted.value, batch, x)
    assert predicted.energy is not None and predicted.forces is not None
    forces, energy = (predicted.forces - batch.forces).norm(dim=1), (predicted.energy - batch.energy).abs() / sizes
    forces[gate == 0] = torch.nan  # an atom by itself has no errors to learn from
    energy[scatter_sum(gate, owner, len(sizes)) == 0] = torch.nan
    return Residuals(x, gate, owner, sizes, forces, energy)


def _of_property(spec: HeadSpec, value: Tensor, batch: LabelledBatch, x: Tensor) -> Residuals:
    """Errors of a property, on the side of the atoms or of the structures; no atom is by itself."""
    width = 3 if spec.kind.endswith("vector") else 1
    labels = (batch.atom_values if spec.is_of_atoms else batch.value)[:, :width]
    errors = (value.reshape(-1, width) - labels).norm(dim=1)
    sizes, owner = batch.graph.ptr.diff(), batch.graph.batch
    nothing = torch.full((len(x) if not spec.is_of_atoms else len(sizes),), torch.nan, dtype=torch.float64)
    forces, energy = (errors, nothing) if spec.is_of_atoms else (nothing, errors / sizes if spec.is_sum else errors)
    return Residuals(x, torch.ones(len(x)), owner, sizes, forces, energy, not spec.is_of_atoms)


def joined(parts: Sequence[Residuals], model: GFMModel) -> Residuals:
    """Several as one."""
    if not parts:
        empty = torch.zeros(0)
        none = torch.zeros(0, dtype=torch.int64)
        return Residuals(torch.zeros(0, 2 * model.config.num_features), empty, none, none, empty, empty)
    starts = torch.tensor([len(part.atoms) for part in parts]).cumsum(0) - torch.tensor([len(p.atoms) for p in parts])
    moved = [part._replace(batch=part.batch + start) for part, start in zip(parts, starts)]
    tensors = {name: torch.cat([getattr(part, name) for part in moved]) for name in Residuals._fields[:-1]}
    return Residuals(**tensors, of_structures=parts[0].of_structures)  # type: ignore[arg-type]  # it is no tensor
