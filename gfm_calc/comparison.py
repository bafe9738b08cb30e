"""Several heads on one structure, in one encoder pass.

Energies of heads stand in different frames of reference and are never averaged or subtracted; atomisation energies are,
where both heads' references are isolated atoms; forces always are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import GFMError, HeadError
from .graph import AtomicGraph
from .model import GFMModel
from .predictor import check_domain, predict_one


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """What several heads say about one structure.

    Attributes (a mapping has one entry a head; n atoms):
        energies: eV, each in its own frame of reference: never compare these.
        atomisation_energies: eV, sum of the head's reference energies minus its energy (positive: bound).
        forces: [n, 3] eV/Å; empty where forces were not asked for.
        comparable: heads whose reference energies are isolated atoms, so that their atomisation energies mean the same.
        atomisation_spread: eV/atom, standard deviation over the comparable heads; NaN with fewer than two.
        forces_spread: [n] eV/Å, root mean square over the heads of the distance to their mean force; NaN without forces.
        refused: {head: reason} for those outside their domain.
    """

    energies: Mapping[str, float]
    atomisation_energies: Mapping[str, float]
    forces: Mapping[str, np.ndarray]
    comparable: tuple[str, ...]
    atomisation_spread: float
    forces_spread: np.ndarray
    refused: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HeadDelta:
    """What changes from head `first` to head `second` for one structure (second minus first).

    Attributes:
        atomisation_energy: eV; NaN unless both heads' references are isolated atoms.
        interaction_energy: eV, of energy minus reference energies.
        forces: [n, 3] eV/Å.
    """

    first: str
    second: str
    atomisation_energy: float
    interaction_energy: float
    forces: np.ndarray


def compare_heads(
    model: GFMModel, graph: AtomicGraph, heads: Sequence[str], *, forces: bool = True, strict: bool = True
) -> HeadComparison:
    """Predict `graph` with each of `heads`; those that do not know it are named in `refused` (unless not `strict`).

    Raises:
        GFMError: an unknown head, or no head left; the message is the last refusal.
    """
    refused: dict[str, str] = {}
    kept = []
    for spec in [model.spec(head) for head in heads]:
        try:
            if spec.kind != "energy":
                raise HeadError(f"head {spec.name} predicts {spec.quantity}, not energies")
            if strict:
                check_domain(spec, graph)
            kept.append(spec)
        except GFMError as error:
            refused[spec.name] = str(error)
    if not kept:
        raise HeadError(next(reversed(refused.values()), "no head chosen"))
    found = predict_one(model, graph, [spec.name for spec in kept], forces=forces)
    numbers = graph.atomic_numbers.tolist()
    energies = {name: prediction.energy.item() for name, prediction in found.items()}
    atomisation = {spec.name: spec.reference_energy(numbers) - energies[spec.name] for spec in kept}
    comparable = tuple(spec.name for spec in kept if spec.reference_kind == "isolated-atom")
    spread = np.std([atomisation[h] for h in comparable]) / len(numbers) if len(comparable) > 1 else np.nan
    deviation = np.full(len(numbers), np.nan)
    vectors: dict[str, np.ndarray] = {}
    if forces:
        vectors = {name: prediction.forces.numpy() for name, prediction in found.items()}
        stack = np.stack(list(vectors.values()))
        deviation = np.sqrt(np.square(stack - stack.mean(axis=0)).sum(axis=2).mean(axis=0))
    return HeadComparison(
        energies=energies, atomisation_energies=atomisation, forces=vectors, comparable=comparable,
        atomisation_spread=float(spread), forces_spread=deviation, refused=refused,
    )  # fmt: skip


def head_delta(model: GFMModel, graph: AtomicGraph, first: str, second: str, *, strict: bool = True) -> HeadDelta:
    """What changes from energy head `first` to energy head `second`.

    Raises:
        HeadError: unknown, or not an energy head.
        OutsideDomainError: one of the heads does not know this structure (where `strict`).
    """
    specs = [model.spec(first), model.spec(second)]
    for spec in specs:
        if spec.kind != "energy":
            raise HeadError(f"head {spec.name} predicts {spec.quantity}, not energies")
        if strict:
            check_domain(spec, graph)
    found = predict_one(model, graph, list(dict.fromkeys([first, second])))
    numbers = graph.atomic_numbers.tolist()
    interaction = [found[spec.name].energy.item() - spec.reference_energy(numbers) for spec in specs]
    difference = interaction[1] - interaction[0]
    isolated = all(spec.reference_kind == "isolated-atom" for spec in specs)
    return HeadDelta(
        first=first, second=second, interaction_energy=difference,
        atomisation_energy=-difference if isolated else float("nan"),
        forces=(found[second].forces - found[first].forces).numpy(),
    )  # fmt: skip
