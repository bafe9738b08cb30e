"""The model: encode a batch once, decode the wanted heads, one gradient for forces and stress.

This is the one path from a batch to numbers; training, calculator and screening all call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .compiling import compiled
from .config import HeadSpec, ModelConfig
from .encoders import make_encoder
from .encoders.base import NodeEmbedding, edge_geometry, scatter_sum
from .errors import HeadError, did_you_mean
from .graph import GraphBatch
from .heads import EnergyHeads, PropertyHead, isolation_gate
from .mechanics import mechanics
from .repulsion import ZBLRepulsion
from .stiffness import Stiffness
from .uncertainty import ErrorHeads, no_uncertainty

# One backward pass for the gradients of many heads saves overhead in small batches; in large ones its temporaries no longer
# fit in the caches, and one pass a head is faster (`gfm bench heads`).
_BATCHED_GRADIENT_EDGES = 2000


class ModelInputs(NamedTuple):
    """A batch as the networks see it: edge_vector [E, 3] in the model's dtype (Å), atomic_numbers [N], edge_index [2, E],
    batch [N], totals [B, 2] (charge, excess unpaired electrons) or None where all are zero."""

    edge_vector: Tensor
    atomic_numbers: Tensor
    edge_index: Tensor
    batch: Tensor
    totals: Tensor | None


class Encoded(NamedTuple):
    """What the shared encoder knows: atomic_numbers [N], scalars [N, F] and vectors [N, 3, F] after its last layer, gate [N],
    repulsion [N] in eV or None, and layers, the scalars after each of its layers, the last among them."""

    atomic_numbers: Tensor
    scalars: Tensor
    vectors: Tensor
    gate: Tensor
    repulsion: Tensor | None
    layers: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one head says about a batch.  All tensors are float64 and detached; what was not asked for is None.

    Attributes:
        head: name of the head.
        model_id: digest of the weights, "" for a model that was never saved.
        energy: [B] eV, reference energies included.
        energies: [N] eV, per atom; they sum to `energy`.
        forces: [N, 3] eV/Å.
        virial: [B, 3, 3] eV, dE/d(strain).
        stress: [B, 3, 3] eV/Å³, virial / volume, tension positive; with fewer than three periodic axes only along them,
            and NaN where the cell defines none (see `periodic_strains`; use the virial).
        stresses: [N, 3, 3] eV/Å³, each atom's share of `stress`.
        value: a property head's value, in its unit: [B], [B, 3], [N] or [N, 3] by its kind; of a class, the probability of yes.
        value_uncertainty: the expected absolute error of `value`, of a vector the length of it: [B] or [N].
        energy_uncertainty: [B] eV, the expected absolute error of `energy` (see `uncertainty`).
        forces_uncertainty: [N] eV/Å, the expected length of the error of each atom's force.
    """

    head: str
    model_id: str = ""
    energy: Tensor | None = None
    energies: Tensor | None = None
    forces: Tensor | None = None
    virial: Tensor | None = None
    stress: Tensor | None = None
    stresses: Tensor | None = None
    value: Tensor | None = None
    value_uncertainty: Tensor | None = None
    energy_uncertainty: Tensor | None = None
    forces_uncertainty: Tensor | None = None

    def split(self, ptr: Sequence[int]) -> list[Prediction]:
        """One `Prediction` a structure (B = 1); `ptr` [B+1] holds the first atom of each."""
        per_graph = ("energy", "virial", "stress", "energy_uncertainty")
        per_atom = ("energies", "forces", "stresses", "forces_uncertainty")
        value_is_per_graph = self.value is not None and len(self.value) == len(ptr) - 1
        parts = []
        for index, (start, stop) in enumerate(pairwise(ptr)):
            cut: dict[str, Any] = {name: _rows(getattr(self, name), index, index + 1) for name in per_graph}
            cut |= {name: _rows(getattr(self, name), start, stop) for name in per_atom}
            rows = (index, index + 1) if value_is_per_graph else (start, stop)
            cut |= {name: _rows(getattr(self, name), *rows) for name in ("value", "value_uncertainty")}
            parts.append(replace(self, **cut))
        return parts


def _rows(tensor: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if tensor is None else tensor[start:stop]


class GFMModel(nn.Module):
    """Shared encoder, any number of heads.

    Args:
        config: the shared part.
        specs: the heads, in the order in which their weights are stacked; names are unique.

    Attributes:
        specs: {name: HeadSpec}.  energy_heads: names of kind "energy", in order of the stack.
        model_id: digest of the saved weights, "" before the first save.
        uncertainty: what it expects its errors to be; None for a model that does not know.
    """

    def __init__(self, config: ModelConfig, specs: Sequence[HeadSpec]):
        super().__init__()
        self.config = config
        self.specs = {spec.name: spec for spec in specs}
        if len(self.specs) != len(specs):
            raise HeadError("two heads have the same name")
        self.model_id = ""
        self.embedding = NodeEmbedding(config)
        self.encoder = make_encoder(config)
        self.repulsion = ZBLRepulsion(config) if config.repulsion == "zbl" else None
        energy = [spec for spec in specs if spec.kind == "energy"]
        properties = [spec for spec in specs if spec.kind != "energy"]
        self.energy_heads = tuple(spec.name for spec in energy)
        self.property_heads = tuple(spec.name for spec in properties)
        self.energy_stack = EnergyHeads(energy, config.num_features, config.head_width)
        self.properties = nn.ModuleList(PropertyHead(spec, config) for spec in properties)
        for module, spec in zip(self.properties, properties):
            if spec.stiffness:
                module.stiffness = Stiffness(GFMModel(config, [HeadSpec(name=spec.stiffness)]))
        self.uncertainty: ErrorHeads | None = None
        self._evaluate = self.evaluate

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the arithmetic of the networks; geometry and sums are float64 always."""
        return self.energy_stack.hidden.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.energy_stack.hidden.device

    def spec(self, head: object) -> HeadSpec:
        """The card of a head; HeadError with the closest name where there is none."""
        if isinstance(head, str) and head in self.specs:
            return self.specs[head]
        names = ", ".join(self.specs) or "none"
        what = f"no head {head!r}" if isinstance(head, str) else f"a head is named by a string, not {head!r}"
        raise HeadError(f"{what}{did_you_mean(head, self.specs) if isinstance(head, str) else ''}; heads: {names}")

    def compile(self, *, enabled: bool = True) -> GFMModel:  # type: ignore[override]
        """Use torch.compile for the networks from now on (dynamic sizes, one graph); the same numbers to rounding."""
        self._evaluate = compiled(self.evaluate) if enabled else self.evaluate
        return self

    # ---- the differentiable core: tensors in, tensors out ----

    def inputs(self, batch: GraphBatch) -> ModelInputs:
        """Geometry of a batch: differences in float64, then the model's dtype.  Everything on the model's device."""
        device = self.device
        source, target = batch.edge_index[0], batch.edge_index[1]
        vectors = batch.positions.index_select(0, source) - batch.positions.index_select(0, target)
        if batch.pbc.any():
            shift = batch.edge_cell_shift.to(torch.float64)
            if batch.num_graphs == 1:
                vectors = vectors + shift @ batch.cell[0]
            else:
                cells = batch.cell.index_select(0, batch.batch.index_select(0, target))
                vectors = vectors + torch.bmm(shift.unsqueeze(1), cells).squeeze(1)
        totals = charge_and_excess_spin(batch)
        return ModelInputs(
            vectors.to(device, self.dtype),
            batch.atomic_numbers.to(device),
            batch.edge_index.to(device),
            batch.batch.to(device),
            None if totals is None else totals.to(device, self.dtype),
        )

    def encode(self, inputs: ModelInputs) -> Encoded:
        """The shared encoder, once a batch however many heads follow."""
        edges = edge_geometry(inputs.edge_vector, inputs.edge_index, self.config)
        features = self.embedding(inputs.atomic_numbers, inputs.batch, inputs.totals)
        layers, vectors = self.encoder(features, edges)
        gate = isolation_gate(scatter_sum(edges.envelope, edges.target, inputs.atomic_numbers.shape[0]))
        repulsion = None if self.repulsion is None else self.repulsion(inputs.atomic_numbers, edges)
        return Encoded(inputs.atomic_numbers, layers[-1], vectors, gate, repulsion, layers)

    def decode(self, encoded: Encoded, index: Tensor | None = None) -> Tensor:
        """Interaction energies of the heads `index` (positions in `energy_heads`; None: all), [H', N] in eV."""
        energies = self.energy_stack(encoded.scalars, encoded.gate, encoded.atomic_numbers, index)
        return energies if encoded.repulsion is None else energies + encoded.repulsion

    def decode_own(self, encoded: Encoded, head: Tensor, slots: Tensor, slot_of: Tensor) -> Tensor:
        """Interaction energies [N] in eV, each atom with the head of its own structure; see `EnergyHeads.own`."""
        energies = self.energy_stack.own(encoded.scalars, encoded.gate, encoded.atomic_numbers, head, slots, slot_of)
        return energies if encoded.repulsion is None else energies + encoded.repulsion

    def atom_energies(self, inputs: ModelInputs, index: Tensor | None = None) -> Tensor:
        """`decode(encode(inputs), index)`: the function whose gradient with respect to edge_vector gives the forces."""
        return self.decode(self.encode(inputs), index)

    def evaluate(self, inputs: ModelInputs, index: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`atom_energies`, and what the errors are guessed from, detached: scalars, vectors and gate; nothing where the
        model does not know its errors."""
        encoded = self.encode(inputs)
        return self.decode(encoded, index), self._known(encoded)

    def _known(self, encoded: Encoded) -> tuple[Tensor, ...]:
        known = () if self.uncertainty is None else (encoded.scalars, encoded.vectors, encoded.gate)
        return tuple(tensor.detach() for tensor in known)

    # ---- predictions ----

    def predict(
        self, batch: GraphBatch, heads: Sequence[str], *, forces: bool = True, stresses: bool = False,
        uncertainty: bool = False,
    ) -> dict[str, Prediction]:  # fmt: skip
        """Predict a batch with the heads asked for: one encoder pass for all energies, one for all properties.

        Args:
            batch: any device; the numbers come back on the CPU.
            heads: names; energy and property heads may be mixed.
            forces: forces, virial and stress too (energy heads).
            stresses: each atom's share of the stress too.
            uncertainty: the expected errors too; the other numbers stay the same, bit for bit.

        Returns:
            {head: Prediction}, in the order of `heads`.

        Raises:
            HeadError: an unknown head, or none, or one without uncertainty where it is asked for.
        """
        specs = [self.spec(head) for head in heads]
        if not specs:
            raise HeadError(f"no head chosen; heads: {', '.join(self.specs)}")
        if uncertainty:
            self.require_uncertainty(heads)
        with torch.inference_mode(False):  # in which no gradient can be had
            return self._predict(batch, specs, forces, stresses, uncertainty)

    def require_uncertainty(self, heads: Sequence[str]) -> None:
        """HeadError where one of `heads` has no uncertainty."""
        for head in heads:
            if self.specs[head].kind == "class":
                raise HeadError(f"head {head} is a class: its probability says how sure it is")
            if self.uncertainty is None or head not in self.uncertainty.figures:
                raise no_uncertainty(head)

    def _predict(
        self, batch: GraphBatch, specs: Sequence[HeadSpec], forces: bool, stresses: bool, uncertainty: bool
    ) -> dict[str, Prediction]:
        inputs = self.inputs(batch)
        names = [spec.name for spec in specs if spec.kind == "energy"]
        found: dict[str, Prediction] = {}
        if len(names) < len(specs):
            properties = [spec for spec in specs if spec.kind != "energy"]
            found |= self._predict_properties(inputs, batch, properties, uncertainty)
        if names:
            found |= self._predict_energies(inputs, batch, names, forces, stresses, uncertainty)
        return {spec.name: found[spec.name] for spec in specs}

    def predict_mixture(self, batch: GraphBatch, weights: Mapping[str, float], *, forces: bool = True) -> Prediction:
        """A weighted sum of energy heads as if it were one head, with one gradient for all of them.

        Energies are those of binding, without reference energies: heads stand in different frames of reference, and only
        what is measured against each one's own atoms can be added up.

        Args:
            batch, forces: as for `predict`.
            weights: {head: weight}.

        Raises:
            HeadError: an unknown head, one that is not of energies, or none.
        """
        specs = [self.spec(head) for head in weights]
        if not specs or any(spec.kind != "energy" for spec in specs):
            raise HeadError(f"a mixture is one of energy heads: {', '.join(self.energy_heads)}")
        index = torch.tensor([self.energy_heads.index(spec.name) for spec in specs], device=self.device)
        with torch.inference_mode(False), torch.set_grad_enabled(forces):
            inputs = self.inputs(batch)
            vectors = inputs.edge_vector.detach().requires_grad_(forces)
            share = torch.tensor(list(weights.values()), dtype=self.dtype, device=self.device)
            mixed = share @ self._evaluate(inputs._replace(edge_vector=vectors), index)[0]
            gradient = self._edge_gradients(mixed.unsqueeze(0), vectors)[0] if forces else None
        energies = mixed.detach().to("cpu", torch.float64)
        total = energies.new_zeros(batch.num_graphs).index_add(0, batch.batch.cpu(), energies)
        mechanical = {} if gradient is None else mechanics(gradient, vectors.detach(), batch, per_atom=False)
        return Prediction(head="mixture", model_id=self.model_id, energy=total, energies=energies, **mechanical)

    def _predict_properties(
        self, inputs: ModelInputs, batch: GraphBatch, specs: Sequence[HeadSpec], uncertainty: bool
    ) -> dict[str, Prediction]:
        counts = batch.ptr.diff().to(self.device)
        found = {}
        with torch.no_grad():
            encoded = self.encode(inputs)
            known = encoded.scalars, encoded.vectors
            for spec in specs:
                head = self.properties[self.property_heads.index(spec.name)]
                value = head(encoded.layers, encoded.vectors, encoded.atomic_numbers, inputs.batch, counts)
                if head.stiffness is not None:
                    value = value + head.stiffness(inputs, batch) * (counts if head.is_per_atom_of_sum else 1)
                value = torch.sigmoid(value) if spec.kind == "class" else value
                value = value.clamp(min=0.0) if head.nonnegative else value
                error = self.uncertainty.expect_value(known, batch, spec) if uncertainty and self.uncertainty else None
                found[spec.name] = Prediction(
                    head=spec.name, model_id=self.model_id, value=value.cpu(), value_uncertainty=error
                )
        return found

    def _predict_energies(
        self, inputs: ModelInputs, batch: GraphBatch, names: list[str], forces: bool, stresses: bool,
        uncertainty: bool,
    ) -> dict[str, Prediction]:  # fmt: skip
        order = [self.energy_heads.index(name) for name in names]
        index = None if order == list(range(len(self.energy_heads))) else torch.tensor(order, device=self.device)
        several = forces and len(names) > 1
        # A compiled backward can neither be batched over heads nor run twice.
        networks = self.evaluate if several else self._evaluate
        gradients: Sequence[Tensor | None] = [None] * len(names)
        with torch.set_grad_enabled(forces):  # whatever the caller has set
            vectors = inputs.edge_vector.detach().requires_grad_(forces)
            inputs = inputs._replace(edge_vector=vectors)
            if several and vectors.shape[0] > _BATCHED_GRADIENT_EDGES:
                interaction, known, gradients = self._head_by_head(inputs, order)
            else:
                interaction, known = networks(inputs, index)
                gradients = self._edge_gradients(interaction, vectors) if forces else gradients
        reference = self.energy_stack.reference[order].index_select(1, inputs.atomic_numbers)
        energies = (interaction.detach().to(torch.float64) + reference).cpu()
        totals = energies.new_zeros(len(names), batch.num_graphs).index_add(1, batch.batch.cpu(), energies)
        errors = self.uncertainty.expect(known, batch, names) if uncertainty and self.uncertainty else [{}] * len(names)
        found = {}
        for row, (name, gradient) in enumerate(zip(names, gradients)):
            mechanical = {} if gradient is None else mechanics(gradient, vectors.detach(), batch, per_atom=stresses)
            found[name] = Prediction(
                head=name,
                model_id=self.model_id,
                energy=totals[row],
                energies=energies[row],
                **mechanical,
                **errors[row],
            )
        return found

    def _head_by_head(
        self, inputs: ModelInputs, order: Sequence[int]
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:  # fmt: skip
        """`evaluate` of the heads `order`, and dE_h/d(edge_vector) [E, 3] of each: back through its own head, then through the
        encoder.  In one graph, each gradient would go through all heads."""
        encoded = self.encode(inputs)
        roots = [tensor for tensor in (encoded.scalars, encoded.gate, encoded.repulsion) if tensor is not None]
        leaves = [root.detach().requires_grad_() for root in roots]
        cut = encoded._replace(scalars=leaves[0], gate=leaves[1], repulsion=leaves[2] if leaves[2:] else None)
        rows: list[Tensor] = []
        gradients: list[Tensor] = []
        for place, head in enumerate(order):
            row = self.decode(cut, torch.tensor([head], device=self.device))
            seeds = torch.autograd.grad(row.sum(), leaves)
            more = place + 1 < len(order)
            gradients += torch.autograd.grad(roots, inputs.edge_vector, grad_outputs=seeds, retain_graph=more)
            rows.append(row.detach())
        return torch.cat(rows), self._known(encoded), gradients

    def _edge_gradients(self, interaction: Tensor, vectors: Tensor) -> Sequence[Tensor]:
        """dE_h/d(edge_vector) [E, 3] for each of H heads [H, N]."""
        if vectors.shape[0] == 0:
            return [torch.zeros_like(vectors)] * interaction.shape[0]
        sums = interaction.sum(dim=1)
        if len(sums) == 1:
            return torch.autograd.grad(sums[0], vectors)
        seeds = torch.eye(len(sums), dtype=sums.dtype, device=sums.device)
        return torch.autograd.grad(sums, vectors, grad_outputs=seeds, is_grads_batched=True)[0].unbind(0)


def charge_and_excess_spin(batch: GraphBatch) -> Tensor | None:
    """Total charge and unpaired electrons beyond the fewest possible, [B, 2] float64; None where all are zero.

    Counting spin from the lowest multiplicity that the electron count allows makes the default the same for a cell and
    its supercells, and for a pair of far fragments and the fragments.
    """
    zero = torch.zeros((), dtype=torch.float64)
    protons = zero.new_zeros(batch.num_graphs).index_add(
        0, batch.batch.cpu(), batch.atomic_numbers.cpu().to(torch.float64)
    )
    charge = batch.charge.cpu()
    lowest = torch.remainder(protons - charge, 2) + 1
    totals = torch.stack([charge, batch.spin.cpu().to(torch.float64) - lowest], dim=1)
    return totals if totals.any() else None
