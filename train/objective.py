"""The loss: per-atom energy, forces and stress of a batch whose structures belong to different heads.

L = 1/G sum_s w_s [ a_E rho((E - E_s) / n) + a_F 1/n sum_i c_i rho(|F_i - F_si|) + a_S rho(|sigma - sigma_s|) ]

G is the number of structures of a step on all processes, so sums over batches and processes are the loss of the step.  What
a structure is not labelled with does not count.  A structure of a property head adds w_s a_P rho((y - y_s) / scale) instead,
the scale that of the head (times n for a sum over atoms), or the logarithmic loss of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from gfm_calc.data.loader import LabelledBatch
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.heads import PropertyHead
from gfm_calc.model import GFMModel, ModelInputs
from gfm_calc.train.recipe import ObjectiveRecipe

_SOFT = 1e-6  # under the root of a norm, so that a perfect prediction has a gradient
TERMS = ("energy", "forces", "stress")
COLUMNS = (*TERMS, "property")  # of what a structure adds to the loss


class Labels(NamedTuple):
    """Targets of a batch (N atoms, B structures, H heads of the model).

    energy [B] in eV, reference energies subtracted; forces [N, 3] eV/Å; stress [B, 3, 3] eV/Å³; atoms [B]; volume [B] Å³;
    the weight of every label, 0 where it is missing: energy_weight [B], force_weight [N], stress_weight [B]; given [B, 3],
    the weight of a structure for each term that it has labels for; structure_head [B], atom_head [N]; slots [H, M] and
    slot_of [N] (see `EnergyHeads.own`).  Of properties, float64: value [B, 3], value_weight [B]; atom_values [N, 3], their
    weights [N]; property_head [B], which of the model's property heads, -1 for structures of energy heads.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    atoms: Tensor
    volume: Tensor
    energy_weight: Tensor
    force_weight: Tensor
    stress_weight: Tensor
    given: Tensor
    structure_head: Tensor
    atom_head: Tensor
    slots: Tensor
    slot_of: Tensor
    value: Tensor
    value_weight: Tensor
    atom_values: Tensor
    atom_weight: Tensor
    property_head: Tensor


Prepared = tuple[LabelledBatch, ModelInputs, Labels, bool]  # the last: whether anything has forces or stress


class Objective(nn.Module):
    """The loss as a function of (model, batch); its parameters, if any, are learnt weights of heads and terms.

    Args:
        recipe: what counts how much.
        weights: of the structures of each head of the model, in the order of its cards (loss weights over sampling
            shares), [H].
        precision: "float64", "float32", "tf32" or "bf16".
    """

    def __init__(self, recipe: ObjectiveRecipe, weights: Sequence[float], precision: str):
        super().__init__()
        self.recipe, self.weights, self.precision = recipe, np.asarray(weights, float), precision
        # s of Kendall et al., DOI 10.1109/CVPR.2018.00781: L -> exp(-s) L + s
        self.log_variance = nn.Parameter(torch.zeros(len(self.weights), len(TERMS))) if recipe.uncertainty else None

    def labels(self, model: GFMModel, batch: LabelledBatch, rows: Tensor, structures: int) -> Labels:
        """The targets of a batch, on the model's device.

        Args:
            rows: [number of the run's heads], which of the model's heads each is; -1 for those it does not have.
            structures: G.
        """
        graph, recipe = batch.graph, self.recipe
        card = rows.index_select(0, batch.head)
        head = _places(model.energy_heads, model).index_select(0, card).clamp(min=0)
        owner = graph.batch
        atom_head = head.index_select(0, owner)
        sizes = graph.ptr.diff().to(torch.float64)
        stack = model.energy_stack.reference.cpu()
        reference = (
            stack[atom_head, graph.atomic_numbers] if len(stack) else torch.zeros(len(owner), dtype=torch.float64)
        )
        energy = batch.energy - scatter_sum(reference, owner, len(batch))
        length = batch.forces.norm(dim=1)
        has_force, has_stress = torch.isfinite(length), torch.isfinite(batch.stress).all(dim=2).all(dim=1)
        weight = torch.as_tensor(self.weights).index_select(0, card) / structures
        soft = 1 / (1 + length / recipe.soften) if recipe.soften else torch.ones_like(length)
        force_weight = torch.where(has_force, soft * (weight / sizes).index_select(0, owner), 0.0)
        volume = torch.where(has_stress, torch.linalg.det(graph.cell).abs(), 1.0)
        slots, slot_of = head_slots(atom_head, max(1, len(model.energy_heads)))
        first = has_force.index_select(0, graph.ptr[:-1])
        given = torch.stack([torch.isfinite(energy), first, has_stress], dim=1) * weight.unsqueeze(1)

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(model.device, model.dtype)

        return Labels(
            energy=cast(energy.nan_to_num()), forces=cast(batch.forces.nan_to_num()),
            stress=cast(batch.stress.nan_to_num()), atoms=cast(sizes), volume=cast(volume),
            energy_weight=cast(torch.where(torch.isfinite(energy), recipe.energy * weight, 0.0)),
            force_weight=cast(recipe.forces * force_weight),
            stress_weight=cast(torch.where(has_stress, recipe.stress * weight, 0.0)), given=cast(given),
            structure_head=head.to(model.device), atom_head=atom_head.to(model.device), slots=slots.to(model.device),
            slot_of=slot_of.to(model.device), **self._property_labels(model, batch, card, weight),
        )  # fmt: skip

    def _property_labels(
        self, model: GFMModel, batch: LabelledBatch, card: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        weight = self.recipe.property * weight
        owner = batch.graph.batch
        known, atom_known = torch.isfinite(batch.value[:, 0]), torch.isfinite(batch.atom_values[:, 0])
        labelled = scatter_sum(atom_known.to(torch.float64), owner, len(batch)).clamp(min=1.0)
        found = {
            "value": batch.value.nan_to_num(), "value_weight": torch.where(known, weight, 0.0),
            "atom_values": batch.atom_values.nan_to_num(),
            "atom_weight": torch.where(atom_known, (weight / labelled).index_select(0, owner), 0.0),
            "property_head": _places(model.property_heads, model).index_select(0, card),
        }  # fmt: skip
        return {name: tensor.to(model.device) for name, tensor in found.items()}

    def forward(
        self, model: GFMModel, vectors: Tensor, inputs: ModelInputs, labels: Labels, mechanical: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss and what each structure adds to it.

        Args:
            vectors: [E, 3], a leaf that requires its gradient; takes the place of `inputs.edge_vector`.
            mechanical: whether any structure has forces or stress.

        Returns:
            loss [], parts [B, k], without gradient: the first k of `COLUMNS`, or all of them.
        """
        with torch.autocast(vectors.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            encoded = model.encode(inputs._replace(edge_vector=vectors))
            own = (
                model.decode_own(encoded, labels.atom_head, labels.slots, labels.slot_of)
                if model.energy_heads
                else None
            )
            features = encoded.layers, encoded.vectors, encoded.atomic_numbers
            values = [module(*features, inputs.batch, labels.atoms) for module in model.properties]
        if own is None:
            found = torch.zeros_like(labels.given)
        else:
            found = self._energy_parts(own, vectors, inputs, labels, mechanical)
        if values:
            missing = found.new_zeros(found.shape[0], len(TERMS) - found.shape[1])
            last = self._property_part(values, model, inputs, labels).to(found.dtype)
            found = torch.cat([found, missing, last.unsqueeze(1)], dim=1)
        return found.sum(), found.detach()

    def _energy_parts(
        self, own: Tensor, vectors: Tensor, inputs: ModelInputs, labels: Labels, mechanical: bool
    ) -> Tensor:
        """[B, 1 or 3]: what the energies of the atoms, own [N] in eV, add to the loss."""
        atoms, structures = labels.atom_head.shape[0], labels.energy.shape[0]
        totals = scatter_sum(own, inputs.batch, structures)
        parts = [self._rho((totals - labels.energy) / labels.atoms) * labels.energy_weight]
        if mechanical:
            (gradient,) = torch.autograd.grad(own.sum(), vectors, create_graph=True)
            source, target = inputs.edge_index[0], inputs.edge_index[1]
            forces = scatter_sum(gradient, target, atoms) - scatter_sum(gradient, source, atoms)
            error = self._rho_of_norm((forces - labels.forces).square().sum(-1)) * labels.force_weight
            outer = (vectors.unsqueeze(2) * gradient.unsqueeze(1)).reshape(-1, 9)
            virial = scatter_sum(outer, inputs.batch.index_select(0, target), structures).view(-1, 3, 3)
            stress = virial / labels.volume.view(-1, 1, 1) - labels.stress
            parts.append(scatter_sum(error, inputs.batch, structures))
            parts.append(self._rho_of_norm(stress.square().sum((1, 2))) * labels.stress_weight)
        found = torch.stack(parts, dim=1)
        return found if self.log_variance is None else self._balanced(found, labels)

    def _property_part(self, values: Sequence[Tensor], model: GFMModel, inputs: ModelInputs, labels: Labels) -> Tensor:
        """[B] float64: what property heads add to the loss; values: what each says of all structures, or atoms."""
        total = torch.zeros_like(labels.value_weight)
        modules = (cast(PropertyHead, module) for module in model.properties)
        for number, (value, module) in enumerate(zip(values, modules)):
            own = labels.property_head == number
            if module.kind.startswith("atom_"):
                error = self._rho_of_property(value, labels.atom_values, module.kind, module.scale)
                weight = torch.where(own.index_select(0, inputs.batch), labels.atom_weight, 0.0)
                total = total + scatter_sum(error * weight, inputs.batch, own.shape[0])
            else:
                scale = module.scale * labels.atoms.to(torch.float64) if module.is_per_atom_of_sum else module.scale
                if module.nonnegative:  # of zeros that are said to be less nothing is wrong
                    value = torch.where(labels.value[:, 0] == 0, value.clamp(min=0.0), value)
                error = self._rho_of_property(value, labels.value, module.kind, scale)
                total = total + error * torch.where(own, labels.value_weight, 0.0)
        return total

    def _rho_of_property(self, value: Tensor, label: Tensor, kind: str, scale: Tensor) -> Tensor:
        if kind == "class":
            return nn.functional.binary_cross_entropy_with_logits(value, label[:, 0], reduction="none")
        if kind.endswith("vector"):
            return self._rho_of_norm(((value - label) / scale).square().sum(-1))
        return self._rho((value - label[:, 0]) / scale)

    def _balanced(self, parts: Tensor, labels: Labels) -> Tensor:
        assert self.log_variance is not None
        chosen = self.log_variance.index_select(0, labels.structure_head)[:, : parts.shape[1]]
        return torch.exp(-chosen) * parts + chosen * labels.given[:, : parts.shape[1]]

    def _rho(self, error: Tensor) -> Tensor:
        if self.recipe.loss == "l1":
            return error.abs()
        if self.recipe.loss == "l2":
            return error.square()
        return nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.recipe.delta)

    def _rho_of_norm(self, squared: Tensor) -> Tensor:
        if self.recipe.loss == "l2":
            return squared
        return self._rho((squared + _SOFT).sqrt())


def _places(names: Sequence[str], model: GFMModel) -> Tensor:
    """For each card of the model, where its head is among `names`; -1 for those that are not."""
    return torch.tensor([names.index(name) if name in names else -1 for name in model.specs])


def head_slots(atom_head: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(slots [H, M], slot_of [N]): the atoms of each head in a row of their own, filled up with atom 0.

    Args:
        atom_head: [N], the head of each atom.
        heads: H.
    """
    counts = torch.bincount(atom_head, minlength=heads)
    width = max(1, int(counts.max()))
    order = torch.argsort(atom_head, stable=True)
    place = torch.arange(len(order)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    slot = atom_head[order] * width + place
    slots = torch.zeros(heads * width, dtype=torch.int64)
    slots[slot] = order
    slot_of = torch.empty_like(order)
    slot_of[order] = slot
    return slots.view(heads, width), slot_of
