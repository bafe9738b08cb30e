"""Where the head of a property starts: what each element adds on average, and the size of what is left to learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from ase.data import chemical_symbols as SYMBOLS

from gfm_calc.checkpoint import load_model
from gfm_calc.config import HeadSpec
from gfm_calc.data.references import ReferenceFitter
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Dataset
from gfm_calc.errors import ConfigError
from gfm_calc.heads import PropertyHead
from gfm_calc.train.recipe import Recipe

_RIDGE = 1e-3  # of fits to means over atoms, which compositions alone explain badly
_LEAST_SCALE = 1e-6  # of the spread of the labels
_OFTEN, _FEWEST_ZEROS = 0.1, 5  # of the labels, and at least, are zeros of a property that is often zero


def start_of(spec: HeadSpec, dataset: Dataset, indices: np.ndarray) -> tuple[dict[str, float], float]:
    """(references, scale) in the unit of the head, from training structures.

    References, symbol -> value by atomic number, begin a scalar at the best sum (or mean) over the elements of a structure,
    a class at how often the answer is yes; vectors begin at zero.  The scale is the root mean square of what is left: of a
    sum over atoms, for each of them.

    Args:
        indices: of the training structures.

    Raises:
        ConfigError: labels of another kind than the head, all of them missing, or of a class neither 0 nor 1.
    """
    records = list(_labelled(spec, dataset, indices))
    if not records:
        raise ConfigError(f"{dataset.directory}: head {spec.name}: no training structure has a label of the property")
    numbers = np.unique(np.concatenate([record.atomic_numbers for record in records]))
    symbols = [SYMBOLS[z] for z in numbers.tolist()]
    labels = np.concatenate([label_of(spec, record).reshape(-1) for record in records])
    width = 3 if spec.kind.endswith("vector") else 1
    if any(label_of(spec, record).shape[-1] != width for record in records):
        raise ConfigError(
            f"{dataset.directory}: head {spec.name} is a {spec.kind}: its labels need {width} numbers each"
        )
    if spec.kind == "class":
        return dict.fromkeys(symbols, _odds(spec, labels)), 1.0
    if width == 3:
        return dict.fromkeys(symbols, 0.0), _positive(float(np.sqrt(np.square(labels).mean())), labels)
    if spec.is_of_atoms:
        return _of_atoms(records, symbols)
    fitter = ReferenceFitter()
    for record in records:
        assert record.value is not None
        fitter.add(record.atomic_numbers, float(record.value[0]) * (1 if spec.extensive else len(record)))
    fit = fitter.fit() if spec.extensive else fitter.fit(ridge=_RIDGE)
    return dict(fit.energies), _positive(fit.residual_rms, labels)


def is_nonnegative(spec: HeadSpec, dataset: Dataset, indices: np.ndarray) -> bool:
    """Whether a property is never negative and often zero, as band gaps are: a mean over atoms of whose labels none is negative,
    and one of ten or more, five at least, is zero.

    Args:
        indices: of the training structures.
    """
    if spec.kind != "scalar" or spec.is_sum:
        return False
    known = _values(dataset, indices)
    zeros = int((known == 0).sum())
    return zeros >= max(_FEWEST_ZEROS, _OFTEN * len(known)) and not bool((known < 0).any())


def _values(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """The labels [n] of a scalar that are there."""
    parts = [dataset.read(indices[first : first + 4096]).value for first in range(0, len(indices), 4096)]
    found = np.concatenate([np.zeros(0), *(part[:, 0] for part in parts if part is not None)])
    return found[np.isfinite(found)]


def refuse_negative(spec: HeadSpec, dataset: Dataset, indices: np.ndarray) -> None:
    """ConfigError where a head that is never negative is to learn that it is."""
    if not spec.nonnegative:
        return
    least = _values(dataset, indices).min(initial=0.0)
    if least < 0:
        raise ConfigError(
            f"head {spec.name}: start: is never negative there, by its card, but a training label is {least:.4g}: begin anew"
        )


def gone_on(recipe: Recipe, name: str) -> tuple[dict[str, float], float, dict[str, Any]] | None:
    """References, scale and other fields of the card of a head that goes on as it was in the model that the run begins with: what
    its weights belong to.  None for one that begins anew."""
    if not recipe.start.model or recipe.head(name).start != name:
        return None
    source = load_model(recipe.start.model)
    if name not in source.property_heads:
        return None  # refused where the weights are taken
    module = cast(PropertyHead, source.properties[source.property_heads.index(name)])
    card = source.specs[name]
    if card.stiffness:
        raise ConfigError(
            f"head {name}: start: it learnt what a first guess leaves of the labels, and cannot go on with whole ones; "
            "begin anew with gfm finetune"
        )
    more = {"landmarks": card.landmarks, "nonnegative": card.nonnegative}
    return dict(card.reference_energies), float(module.scale), more


def label_of(spec: HeadSpec, record: Record) -> np.ndarray:
    """The label of a record for such a head, [1, k] or [n, k]; empty where there is none."""
    label = record.atom_values if spec.is_of_atoms else record.value
    return np.zeros((0, 1)) if label is None else np.atleast_2d(label)


def _labelled(spec: HeadSpec, dataset: Dataset, indices: np.ndarray) -> Iterator[Record]:
    for first in range(0, len(indices), 4096):
        for record in dataset.read(indices[first : first + 4096]).records():
            if label_of(spec, record).size:
                yield record


def _odds(spec: HeadSpec, labels: np.ndarray) -> float:
    """The logarithm of the odds of yes, with one structure of either answer added."""
    if not np.isin(labels, (0.0, 1.0)).all():
        strange = labels[~np.isin(labels, (0.0, 1.0))][0]
        raise ConfigError(
            f"head {spec.name} is a class: its labels must be 0 or 1 (or false and true), not {strange:g}"
        )
    return math.log((labels.sum() + 1) / (len(labels) - labels.sum() + 1))


def _of_atoms(records: list[Record], symbols: list[str]) -> tuple[dict[str, float], float]:
    numbers = np.concatenate([record.atomic_numbers for record in records])
    labels = np.concatenate([np.asarray(record.atom_values)[:, 0] for record in records])
    known = np.isfinite(labels)
    means = {}
    for symbol in symbols:
        own = labels[known & (numbers == SYMBOLS.index(symbol))]
        means[symbol] = float(own.mean()) if own.size else 0.0
    left = labels[known] - np.array([means[SYMBOLS[z]] for z in numbers[known]])
    return means, _positive(float(np.sqrt(np.square(left).mean())), labels[known])


def _positive(scale: float, labels: np.ndarray) -> float:
    """A scale that can be divided by, also where references explain everything."""
    return max(scale, _LEAST_SCALE * float(np.abs(labels).max()), 1e-12)
