"""Old heads after the encoder has moved: the last layer of each, and what an element adds, are fitted to what it said before.

Replay holds forces in place better than the level of energies, of which every structure has but one.  What is left differs
mostly by composition and by what the hidden units of the head see, in which energies and forces are linear: least squares take
it back.  Forces are kept by slopes of the energy along one random direction in each structure.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from gfm_calc.config import MAX_ATOMIC_NUMBER
from gfm_calc.data.loader import LabelledBatch, Loader
from gfm_calc.data.store import Dataset, Selection
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.finetune.exemplars import EXEMPLAR
from gfm_calc.finetune.forgetting import card_error
from gfm_calc.graph import GraphBatch
from gfm_calc.model import GFMModel

_ROUNDS = 10  # of least squares in which what is off by more than the middle one weighs less: violent structures are off by much
_RIDGE = 0.01  # structures' worth of zeros for each element: one that hardly occurs keeps its shift
# For each hidden unit, in structures as they are on average.  After 50 frames of ethanol with replay, on 150 training structures
# of each of 21 heads that are no exemplars, errors of energies grow by 1.97 % on average at 1e-3, 1.94 at 0.01 and 2.04 at 0.1,
# those of pbe-vasp by 2.3, 2.8 and 2.9 %.
_RIDGE_OF_UNITS = 1e-3
_ANGSTROMS = 0.01  # how far atoms move, on average, to tell a slope
_RATIO = 0.05  # Å: error of energies of an atom over that of forces, where the card of a head does not say


class Changes(NamedTuple):
    """What a head says of n structures, less what it shall say, by what is linear in its last layer.

    Attributes:
        columns: [n, K + Z], means over atoms of the hidden units and of the elements, each times the gate of its atom: what the
            energy of an atom changes by with an output weight and with a shift.
        energies: [n], eV/atom.
        slopes: [n, K + Z], of the same sums over atoms along a direction of length 1 in the space of all positions, 1/Å.
        forces: [n], of the energies, eV/Å.
    """

    columns: np.ndarray
    energies: np.ndarray
    slopes: np.ndarray
    forces: np.ndarray


def settle(model: GFMModel, replay: Mapping[str, Dataset]) -> None:
    """Change the output weights and shifts of heads of energies in place.

    Args:
        replay: head -> structures with the energies and forces that it gave before; a head without exemplars among them stays
            as it is: fitted to structures that code makes, energies of ten heads on their own were off by more than before.
    """
    stack = model.energy_stack
    for head, dataset in replay.items():
        changes = _changes(model, head, dataset)
        if changes is None:
            continue
        place = model.energy_heads.index(head)
        ratio = card_error(model, head, "energy") / card_error(model, head)
        found = least_squares(changes, min(1.0, ratio) if ratio > 0 else _RATIO)
        output, shift = np.split(found, [stack.output.shape[1]])
        with torch.no_grad():
            stack.output[place] -= torch.from_numpy(output).to(stack.output)
            stack.shift[place] -= torch.from_numpy(shift).to(stack.shift)


def _changes(model: GFMModel, head: str, dataset: Dataset) -> Changes | None:
    """On the exemplars; None where there is none."""
    records = dataset.read(np.arange(len(dataset)), names=True).records()
    rows = np.flatnonzero([record.source == EXEMPLAR for record in records])
    if not len(rows):
        return None
    random = torch.Generator().manual_seed(0)
    batches = Loader([Selection(dataset, rows)], model.config.cutoff).once()
    parts = [_changes_of_batch(model, head, batch, random) for batch in batches]
    return Changes(*(np.concatenate(part) for part in zip(*parts)))


def _changes_of_batch(model: GFMModel, head: str, batch: LabelledBatch, random: torch.Generator) -> Changes:
    graph, sizes = batch.graph, batch.graph.ptr.diff().double()
    now = model.predict(graph, [head])[head]
    assert now.energy is not None and now.forces is not None
    direction = torch.randn(graph.positions.shape, generator=random, dtype=torch.float64)
    length = scatter_sum(direction.square().sum(1), graph.batch, len(sizes)).sqrt()
    direction /= length.index_select(0, graph.batch).unsqueeze(1)
    step = _ANGSTROMS * sizes.sqrt()
    ends = (
        _columns(model, head, graph, direction * (sign * step).index_select(0, graph.batch).unsqueeze(1))
        for sign in (1, -1)
    )
    ahead, behind = ends
    along = ((now.forces.double().cpu() - batch.forces) * direction).sum(1)
    return Changes(
        columns=(_columns(model, head, graph) / sizes.unsqueeze(1)).numpy(),
        energies=((now.energy.double().cpu() - batch.energy) / sizes).numpy(),
        slopes=((ahead - behind) / (2 * step).unsqueeze(1)).numpy(),
        forces=-scatter_sum(along, graph.batch, len(sizes)).numpy(),
    )


@torch.no_grad()
def _columns(model: GFMModel, head: str, graph: GraphBatch, moved: torch.Tensor | None = None) -> torch.Tensor:
    """Sums over atoms [B, K + Z], see `Changes`; moved: [N, 3], Å, how far atoms are from where the graph has them."""
    if moved is not None:
        graph = copy.copy(graph)
        graph.positions = graph.positions + moved
    place, stack = model.energy_heads.index(head), model.energy_stack
    encoded = model.encode(model.inputs(graph))
    units = stack.units(encoded.scalars)[:, place].double() * stack.scale[place]
    elements = torch.nn.functional.one_hot(encoded.atomic_numbers, MAX_ATOMIC_NUMBER + 1)
    of_atoms = torch.cat([units, elements], dim=1) * encoded.gate.double().unsqueeze(1)
    return scatter_sum(of_atoms.cpu(), graph.batch, graph.num_graphs)


def least_squares(changes: Changes, ratio: float) -> np.ndarray:
    """What each column adds to the changes [K + Z], eV.

    The fit is Huber's (DOI 10.1214/aoms/1177703732), which a few wild ones do not bend.

    Args:
        ratio: Å, how much an error of a force of 1 eV/Å is worth, in eV/atom.
    """
    there = np.flatnonzero(np.abs(changes.columns).max(axis=0) > 0)
    parts = ((changes.columns[:, there], changes.energies), (ratio * changes.slopes[:, there], ratio * changes.forces))
    is_unit = there < changes.columns.shape[1] - (MAX_ATOMIC_NUMBER + 1)
    size = np.sqrt(np.mean([np.square(columns).mean(axis=0) for columns, _ in parts], axis=0))
    ridge = np.diag(np.where(is_unit, _RIDGE_OF_UNITS * np.square(size), _RIDGE))
    found = np.zeros(len(there))
    for _ in range(_ROUNDS):
        left, right = ridge.copy(), np.zeros(len(there))
        for columns, off in parts:
            rest = np.abs(off - columns @ found)
            middle = max(float(np.median(rest)), 1e-9)
            weighted = columns * (middle / np.maximum(rest, middle))[:, None]
            left += weighted.T @ columns
            right += weighted.T @ off
        found = np.linalg.solve(left, right)
    whole = np.zeros(changes.columns.shape[1])
    whole[there] = found
    return whole
