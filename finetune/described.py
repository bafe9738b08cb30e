"""What a model says of labelled structures, as fits take it (see `mixing`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers as NUMBER_OF

from gfm_calc.data.loader import Loader
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.store import Dataset, Selection
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.finetune.fits import together
from gfm_calc.finetune.orbitals import Orbitals
from gfm_calc.graph import GraphBatch
from gfm_calc.landmarks import features_of_structures
from gfm_calc.model import GFMModel
from gfm_calc.train.properties import start_of

_LOG_ODDS = 2.0  # that a class is fitted to: yes with 88 %


class Described(NamedTuple):
    """Of n labelled structures:

    Attributes:
        hidden: [n, H, K], means over atoms of the units of the heads of energies.  output: [H, K], with which they add up to
            energies.
        features: [n, W], as `features_of_structures`.  layers: [n, L F], the first of them.
        composition: [n, Z], fractions of `symbols`.
        orbitals: [n, 2] in eV, see there; [n, 0] where nothing is known of them.
        labels: [n]; of a sum over atoms: for each atom; of a class: log-odds.  least: [n], what no value is smaller than.
        groups: indices of the structures that are left out together.
        judged: indices of those that others are compared with.  judged_groups: of these, as `groups`.
    """

    hidden: np.ndarray
    output: np.ndarray
    features: np.ndarray
    layers: np.ndarray
    composition: np.ndarray
    orbitals: np.ndarray
    symbols: list[str]
    labels: np.ndarray
    least: np.ndarray
    groups: list[np.ndarray]
    judged: np.ndarray
    judged_groups: list[np.ndarray]

    def less(self, taken: np.ndarray) -> Described:
        """The same with [n] taken off the labels."""
        return self._replace(labels=self.labels - taken, least=self.least - taken)

    def compared_with(self, most: int, groups: np.ndarray) -> Described:
        """The same, but at most so many are judged, evenly spaced in the order of their labels: the least and the largest, or the
        rarer class, are among them; groups: [n], as for `describe`."""
        order = np.argsort(self.labels, kind="stable")
        judged = np.sort(order[spread_indices(len(order), most)])
        return self._replace(judged=judged, judged_groups=together(groups[judged]))


def describe(
    model: GFMModel, dataset: Dataset, rows: np.ndarray, groups: np.ndarray, symbols: list[str],
    *, orbitals: Orbitals | None = None, nonnegative: bool = False,
) -> Described:  # fmt: skip
    """What the model says of rows of a dataset.

    Args:
        groups: of each of them; what is left out is left out with its group.  symbols: the elements.
        orbitals: what tells those, None for nothing.  nonnegative: of the labels, see `HeadSpec`.
    """
    spec = dataset.head
    place = torch.full((max(NUMBER_OF.values()) + 1,), 0)
    place[[NUMBER_OF[symbol] for symbol in symbols]] = torch.arange(len(symbols))
    parts: list[tuple[torch.Tensor, ...]] = []
    for graph, value in _labelled(model, dataset, rows):
        inputs, sizes = model.inputs(graph), graph.ptr.diff()
        with torch.no_grad():
            encoded = model.encode(inputs)
            units = model.energy_stack.units(encoded.scalars)
            described = features_of_structures(
                encoded.layers, encoded.vectors, inputs.batch, sizes.to(model.device), torch.float64
            )
            told = torch.zeros(graph.num_nodes, 0) if orbitals is None else orbitals.of_atoms(encoded)
        composition = means(torch.nn.functional.one_hot(place[graph.atomic_numbers], len(symbols)), graph)
        if spec.kind == "class":
            value = _LOG_ODDS * (2 * value - 1)
        elif spec.extensive:
            value = value / sizes
        parts.append((means(units, graph), described.cpu(), composition, means(told, graph), value))
    hidden, features, fractions, told_of_all, labels = (torch.cat(part).numpy() for part in zip(*parts))
    return Described(
        hidden=hidden, output=model.energy_stack.output.detach().double().cpu().numpy(), features=features,
        layers=features[:, : model.config.num_layers * model.config.num_features], composition=fractions,
        orbitals=told_of_all, symbols=symbols, labels=labels,
        least=np.full(len(labels), 0.0 if nonnegative else -np.inf), groups=together(groups),
        judged=np.arange(len(labels)), judged_groups=together(groups),
    )  # fmt: skip


def layers_and_composition(model: GFMModel, dataset: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """[n, L F] and [n, Z] of labelled structures, see `Described`."""
    seen = describe(model, dataset, rows, rows, list(start_of(dataset.head, dataset, rows)[0]))
    return [seen.layers, seen.composition]


def means(of_atoms: torch.Tensor, graph: GraphBatch) -> torch.Tensor:
    """[B, ...] float64: means of [N, ...] over the atoms of each structure."""
    sizes = graph.ptr.diff().double()
    total = scatter_sum(of_atoms.cpu().double(), graph.batch, len(sizes))
    return total / sizes.view(-1, *[1] * (total.ndim - 1))


def _labelled(model: GFMModel, dataset: Dataset, rows: np.ndarray) -> Iterator[tuple[GraphBatch, torch.Tensor]]:
    """Graphs, and the labels [B] of their structures."""
    for batch in Loader([Selection(dataset, rows)], model.config.cutoff).once():
        yield batch.graph, batch.value[:, 0]
