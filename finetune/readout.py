"""Where the head of a property begins: at what the model knows already, by regularised least squares.

A network that begins with random weights learns from a few hundred labels worse than a linear fit does.  So the hidden units of
an old head, the encoder's own features and the composition are fitted to the labels first; the hidden units of which head, and
how strongly the fit is held back, is what predicts a structure best that the fit has not seen (leave-one-out, in closed form:
Allen, DOI 10.1080/00401706.1974.10489157).  The outcome is written as weights of the head, from which training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from ase.data import atomic_numbers as NUMBER_OF

from gfm_calc.artifacts import MANIFEST
from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.config import HeadSpec
from gfm_calc.data.loader import Loader
from gfm_calc.data.store import Dataset, Selection
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.finetune.combine import with_head
from gfm_calc.graph import GraphBatch
from gfm_calc.heads import PropertyHead
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import spread_indices
from gfm_calc.train.properties import start_of

FEWEST = 10  # labels; fewer say nothing of what predicts
_MOST = 2000  # structures of the fit
_RIDGES = (
    1e-5,
    1e-4,
    1e-3,
    3e-3,
    1e-2,
    3e-2,
    0.1,
    0.3,
    1.0,
    3.0,
)  # over the number of structures; of features of spread 1
_FREEDOM = 1e3  # of what elements add to a sum: nothing holds it back
_LOG_ODDS = 2.0  # that a class is fitted to: yes with 88 %
_PAIR = 2  # hidden units that make a linear function: silu(u) - silu(-u) = u


@dataclass(frozen=True, kw_only=True)
class Readout:
    """The head of a property that is fitted, not trained.

    Attributes:
        head: of energies, whose hidden units it has.  linear: the encoder's features are used as well.
        ridge: how strongly it is held back.
        error: mean absolute error of structures that are left out, in the unit of the property (of a sum over atoms: for each
            atom; of a class: of the log-odds it is fitted to).  before: of the composition alone, likewise.
        hidden: [K, F], hidden_bias: [K], output: [K], of `PropertyHead.net`, to be multiplied by `scale`.
        references: symbol -> value.
    """

    head: str
    linear: bool
    ridge: float
    error: float
    before: float
    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    references: Mapping[str, float]
    scale: float


class Begun(NamedTuple):
    """A saved model with the head in it: `where` it is, its id, the head's references (symbol -> value) and scale."""

    where: Path
    model_id: str
    references: Mapping[str, float]
    scale: float


def begin_head(
    folder: Path, model: GFMModel, dataset: Dataset, rows: np.ndarray, say: Callable[[str], None]
) -> Begun | None:
    """The model in `folder` whose property head is fitted; one that an earlier run of the job has written is there already.

    Args:
        dataset: with the head's card.  rows: of the training structures.

    Returns:
        None for properties that begin with random weights: vectors, those of atoms, and those with fewer than `FEWEST` labels.

    Raises:
        CorruptFileError: what an earlier run has written is damaged.
    """
    name = dataset.head.name
    if not (folder / MANIFEST).exists():
        found = fit_readout(model, dataset, rows)
        if found is None:
            return None
        say(_in_words(found, dataset.head))
        save_model(_with_readout(model, dataset.head, found), folder)
    start = load_model(folder)
    module = cast(PropertyHead, start.properties[start.property_heads.index(name)])
    return Begun(folder, start.model_id, start.specs[name].reference_energies, float(module.scale))


def _in_words(found: Readout, card: HeadSpec) -> str:
    unit = " of log-odds" if card.kind == "class" else f" {card.unit}{' an atom' if card.extensive else ''}"
    linear = " and what is linear in the features" if found.linear else ""
    return (
        f"begins at a fit to hidden units of {found.head}{linear}: {found.error:.3g}{unit} off what is left out of it, "
        f"a fit to compositions alone {found.before:.3g}"
    )


def fit_readout(model: GFMModel, dataset: Dataset, rows: np.ndarray) -> Readout | None:
    """The best of all heads of energies, with and without what is linear in the features; None: see `begin_head`."""
    spec = dataset.head
    if spec.kind not in ("scalar", "class") or not model.energy_heads:
        return None
    references, scale = start_of(spec, dataset, rows)
    seen = _seen(model, dataset, rows[spread_indices(len(rows), _MOST)], list(references))
    if len(seen.labels) < FEWEST:
        return None
    freedom = _FREEDOM if spec.kind == "scalar" and spec.extensive else 1.0
    composition = _Fit(seen.composition, seen.labels, np.full(seen.composition.shape[1], freedom))
    before = min(composition.left_out(ridge) for ridge in _RIDGES)
    best: tuple[float, float, str, bool, np.ndarray, np.ndarray] | None = None
    for number, head in enumerate(model.energy_heads):
        units = seen.hidden[:, number]
        for linear in (False, True):
            kept = _widest(units, units.shape[1] - _PAIR) if linear else np.arange(units.shape[1])
            columns = [units[:, kept], *([seen.features] if linear else []), seen.composition]
            free = [np.full(part.shape[1], freedom if part is seen.composition else 1.0) for part in columns]
            fit = _Fit(np.concatenate(columns, axis=1), seen.labels, np.concatenate(free))
            error, ridge = min((fit.left_out(ridge), ridge) for ridge in _RIDGES)
            if best is None or error < best[0]:
                best = error, ridge, head, linear, kept, fit.weights(ridge)
    assert best is not None
    error, ridge, head, linear, kept, weights = best
    return Readout(
        head=head, linear=linear, ridge=ridge, error=error, before=before,
        **_as_network(model, model.energy_heads.index(head), kept, weights, seen, scale, linear=linear),
    )  # fmt: skip


class _Seen(NamedTuple):
    """Of n structures, means over atoms: hidden [n, H, K], units of the heads of energies; features [n, F]; composition [n, Z],
    fractions of `symbols`; labels [n] (of a sum over atoms: for each atom; of a class: log-odds)."""

    hidden: np.ndarray
    features: np.ndarray
    composition: np.ndarray
    symbols: list[str]
    labels: np.ndarray


def _seen(model: GFMModel, dataset: Dataset, rows: np.ndarray, symbols: list[str]) -> _Seen:
    spec = dataset.head
    place = torch.full((max(NUMBER_OF.values()) + 1,), 0)
    place[[NUMBER_OF[symbol] for symbol in symbols]] = torch.arange(len(symbols))
    parts: list[tuple[torch.Tensor, ...]] = []
    for graph, value in _labelled(model, dataset, rows):
        with torch.no_grad():
            encoded = model.encode(model.inputs(graph))
            units = model.energy_stack.units(encoded.scalars)
        composition = _means(torch.nn.functional.one_hot(place[graph.atomic_numbers], len(symbols)), graph)
        if spec.kind == "class":
            value = _LOG_ODDS * (2 * value - 1)
        elif spec.extensive:
            value = value / graph.ptr.diff()
        here = torch.isfinite(value)
        parts.append(tuple(x[here] for x in (_means(units, graph), _means(encoded.scalars, graph), composition, value)))
    hidden, features, fractions, labels = (torch.cat(part).numpy() for part in zip(*parts))
    return _Seen(hidden, features, fractions, symbols, labels)


def _means(of_atoms: torch.Tensor, graph: GraphBatch) -> torch.Tensor:
    """[B, ...] float64: means of [N, ...] over the atoms of each structure."""
    sizes = graph.ptr.diff().double()
    total = scatter_sum(of_atoms.cpu().double(), graph.batch, len(sizes))
    return total / sizes.view(-1, *[1] * (total.ndim - 1))


def _labelled(model: GFMModel, dataset: Dataset, rows: np.ndarray) -> Iterator[tuple[GraphBatch, torch.Tensor]]:
    """Graphs, and the labels [B] of their structures."""
    for batch in Loader([Selection(dataset, rows)], model.config.cutoff).once():
        yield batch.graph, batch.value[:, 0]


class _Fit:
    """Least squares of labels [n] on columns [n, p], each of mean 0 and a spread of `freedom` [p] (a ridge holds those with a
    larger one back less); the mean is free."""

    def __init__(self, columns: np.ndarray, labels: np.ndarray, freedom: np.ndarray):
        self._mean, spread = columns.mean(axis=0), columns.std(axis=0)
        self._spread = np.where(spread > 1e-9 * max(1e-300, spread.max()), spread, np.inf) / freedom
        self._offset = labels.mean()
        self._left, self._values, self._right = np.linalg.svd(
            (columns - self._mean) / self._spread, full_matrices=False
        )
        self._centred = labels - self._offset
        self._inside = self._left.T @ self._centred

    def _kept(self, ridge: float) -> np.ndarray:
        return self._values**2 / (self._values**2 + ridge * len(self._centred))

    def left_out(self, ridge: float) -> float:
        """Mean absolute error of each structure by the fit to all others."""
        kept = self._kept(ridge)
        leverage = 1 / len(self._centred) + np.square(self._left) @ kept
        residual = self._centred - self._left @ (kept * self._inside)
        return float(np.abs(residual / np.maximum(1 - leverage, 1e-6)).mean())

    def weights(self, ridge: float) -> np.ndarray:
        """[p + 1]: of the columns as they were given, and a constant."""
        turned = self._kept(ridge) / np.maximum(self._values, 1e-300) * self._inside
        found = (self._right.T @ turned) / self._spread
        return np.append(found, self._offset - self._mean @ found)


def _widest(units: np.ndarray, count: int) -> np.ndarray:
    """The columns [n, K] with the largest spreads, ascending."""
    return np.sort(np.argsort(-units.std(axis=0), kind="stable")[:count])


def _as_network(
    model: GFMModel, row: int, kept: np.ndarray, weights: np.ndarray, seen: _Seen, scale: float, *, linear: bool
) -> dict[str, Any]:
    """Weights of `PropertyHead` that give what was fitted: fields of `Readout`."""
    stack = model.energy_stack
    hidden = stack.hidden[row].detach().double().numpy().T[kept]
    bias, output = stack.hidden_bias[row].detach().double().numpy()[kept], weights[: len(kept)] / scale
    at = len(kept)
    if linear:
        direction = weights[at : at + seen.features.shape[1]]
        at += seen.features.shape[1]
        size = max(float((seen.features @ direction).std()), 1e-12 * scale)  # the two units are as wide awake as others
        hidden = np.concatenate([hidden, [direction / size, -direction / size]])
        bias, output = np.append(bias, [0.0, 0.0]), np.append(output, [size / scale, -size / scale])
    shifts = weights[at:-1] + weights[-1]
    return {
        "hidden": hidden, "hidden_bias": bias, "output": output, "scale": scale,
        "references": dict(zip(seen.symbols, map(float, shifts))),
    }  # fmt: skip


def _with_readout(model: GFMModel, card: HeadSpec, found: Readout) -> GFMModel:
    """The model with the head beside its own."""
    spec = replace(card, elements=tuple(found.references), reference_energies=dict(found.references))
    new = with_head(model, spec)
    module = cast(PropertyHead, new.properties[new.property_heads.index(spec.name)])
    with torch.no_grad():
        for target, source in zip((module.net[0].weight, module.net[0].bias), (found.hidden, found.hidden_bias)):
            target.copy_(torch.from_numpy(source))
        module.net[2].weight.copy_(torch.from_numpy(found.output)[None])
        module.net[2].bias.zero_()
        module.scale.fill_(found.scale)
    return new
