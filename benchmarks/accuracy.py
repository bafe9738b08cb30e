"""`gfm bench accuracy`: errors of every head on the test side of its training data, beside predictors that know nothing.

Baselines, each fitted on the training side of the same head:
    mean          the mean over structures of energy per atom, times the number of atoms; zero forces; zero stress
    references    the sum of the head card's reference energies; zero forces; zero stress
    composition   least squares of the energy on the numbers of atoms of each element; zero forces; zero stress
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from gfm_calc.benchmarks.kinds import groups_of, system_type
from gfm_calc.checkpoint import load_model, open_model, resolve, save_model
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec
from gfm_calc.data.schema import Record
from gfm_calc.errors import GFMError, HeadError, did_you_mean
from gfm_calc.predictor import Predictor
from gfm_calc.train.evaluation import error_sums, figures, rounded
from gfm_calc.train.preparation import Head

_BLOCK = 4096  # structures that are read at a time
BASELINES = ("mean", "references", "composition")
PARTS = ("by_source", "by_type", "by_elements")


def measure(
    predictor_of: Mapping[str, Predictor], heads: Sequence[Head], *, max_frames: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Errors a head.

    Args:
        predictor_of: {head: Predictor of that head alone}.
        heads: with their sides.
        max_frames: at most so many test structures a head, drawn with `seed`; None for all.

    Returns:
        {head: {"model": figures, "mean": figures, "references": ..., "composition": ..., "by_source": {file: figures},
        "by_type": {kind of system: figures}, "by_elements": {group of elements: figures, forces of its atoms, energies and
        stresses of structures with such an atom}, "test_frames": on the test side, "refused": {reason: structures},
        "compositions": different formulas among the structures measured}}; figures are those of `evaluation.figures`,
        rounded.
    """
    known = {head.spec.name: head for head in heads}
    for name in predictor_of:
        if name not in known:
            raise HeadError(f"the data hold no head {name!r}{did_you_mean(name, known)}")
    return {
        name: _measure(predictor, known[name], draw(known[name].sides["test"], max_frames, seed))
        for name, predictor in predictor_of.items()
    }


def draw(indices: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """`indices`, or `limit` of them at random, in order."""
    if limit is None or len(indices) <= limit:
        return indices
    return np.sort(np.random.default_rng(seed).choice(indices, size=limit, replace=False))


@dataclass(kw_only=True)
class _Tally:
    """Sums of errors (see `evaluation.SUMS`) of the model and the baselines, and of the model by what `PARTS` names."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {part: {} for part in PARTS})
    formulas: set[tuple[int, ...]] = field(default_factory=set)
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, record: Record, energy: float, forces: Tensor | None, stress: Tensor | None) -> None:
        """The errors of one prediction; forces or stress None stands for zero."""
        pairs = pairs_of(record, energy, forces, stress)
        row = error_sums(pairs)
        _add_to(self.sums, name, row)
        if name == "model":
            _add_to(self.parts["by_source"], record.source.partition(".")[0], row)
            _add_to(self.parts["by_type"], system_type(record), row)
            groups = groups_of(record.atomic_numbers)
            for group in np.unique(groups):
                mine = tuple(of_atoms[groups == group] for of_atoms in pairs[1])
                _add_to(self.parts["by_elements"], str(group), error_sums([pairs[0], mine, pairs[2]]))

    def refuse(self, error: GFMError) -> None:
        """Count a structure that cannot be predicted."""
        reason = str(getattr(error, "reason", error))
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def figures(self, *names: str) -> dict[str, Any]:
        """{name: its figures}."""
        nothing = error_sums([(torch.zeros(0), torch.zeros(0))])
        return {name: rounded(figures(self.sums.get(name, nothing))) for name in names}

    def by(self, part: str) -> dict[str, Any]:
        """{name: figures of the model}, in one of `PARTS`."""
        sums = self.parts[part]
        return {name: rounded(figures(sums[name])) for name in sorted(sums)}

    def entry(self, test_frames: int) -> dict[str, Any]:
        """What `measure` gives of a head."""
        found = self.figures("model", *BASELINES)
        parts = {part: self.by(part) for part in PARTS}
        return {
            "test_frames": test_frames, "refused": self.refused, "compositions": len(self.formulas), **found, **parts
        }  # fmt: skip


def _add_to(sums: dict[str, Tensor], name: str, row: Tensor) -> None:
    sums[name] = sums.get(name, 0.0) + row


def _measure(predictor: Predictor, head: Head, chosen: np.ndarray) -> dict[str, Any]:
    name = head.spec.name
    tally, guesses = _Tally(), baselines(head, predictor.model.spec(name))
    with Progress(name, "structures", len(chosen)) as progress:
        for record, found in _predictions(predictor, head, chosen):
            progress.advance()
            if isinstance(found, GFMError):
                tally.refuse(found)
                continue
            one = found[name]
            tally.formulas.add(tuple(sorted(record.atomic_numbers.tolist())))
            tally.add("model", record, one.energy.item(), one.forces, one.stress)
            for baseline, guess in guesses.items():
                tally.add(baseline, record, guess(record), None, None)
    return tally.entry(len(head.sides["test"]))


def compare(
    before: Mapping[str, Predictor],
    now: Mapping[str, Predictor],
    heads: Sequence[Head],
    *,
    max_frames: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Errors of two models a head, on the test structures that both can predict.

    Args:
        before, now, heads, max_frames, seed: see `measure`; heads that are not in `before` are left out.

    Returns:
        {head: {"before": figures, "now": figures, "before_by_source", "now_by_source": {file: figures}, "before_trained_on":
        files in the older head's training data, by their names without endings; left out where its card names none}}.
    """
    known = {head.spec.name: head for head in heads}
    found = {}
    for name, older in before.items():
        tallies, chosen = {"before": _Tally(), "now": _Tally()}, draw(known[name].sides["test"], max_frames, seed)
        both = zip(_predictions(older, known[name], chosen), _predictions(now[name], known[name], chosen))
        for (record, first), (_, second) in both:
            if isinstance(first, GFMError) or isinstance(second, GFMError):
                continue
            for label, one in (("before", first[name]), ("now", second[name])):
                tallies[label].add("model", record, one.energy.item(), one.forces, one.stress)
        found[name] = {label: tally.figures("model")["model"] for label, tally in tallies.items()}
        found[name] |= {f"{label}_by_source": tally.by("by_source") for label, tally in tallies.items()}
        if origins := older.model.spec(name).training_data:
            found[name]["before_trained_on"] = [
                origin["name"].partition(".")[0] for origin in origins if origin.get("frames", 1)
            ]
    return found


def _predictions(predictor: Predictor, head: Head, chosen: np.ndarray) -> Iterator[tuple[Record, Any]]:
    """(structure, {head: Prediction} or the error it was refused with)."""
    for first in range(0, len(chosen), _BLOCK):
        block = head.dataset.read(chosen[first : first + _BLOCK], names=True)
        stream = predictor.predict((record.structure() for record in block.records()), on_error="yield")
        yield from zip(block.records(), stream)


def pairs_of(
    record: Record, energy: float, forces: Tensor | None, stress: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Predictions and labels of one structure, for `error_sums`; stresses of crystals alone, as in training."""
    size = len(record)
    stress_label = record.stress if record.pbc.all() else None
    pairs = [
        (torch.tensor([energy / size], dtype=torch.float64), torch.tensor([record.energy / size], dtype=torch.float64))
    ]
    for found, label, shape in ((forces, record.forces, (size, 3)), (stress, stress_label, (1, 3, 3))):
        known = np.full(shape, np.nan) if label is None else label.reshape(shape)
        guess = torch.zeros(shape, dtype=torch.float64) if found is None else found.detach().reshape(shape)
        pairs.append((guess, torch.from_numpy(known)))
    return pairs


def baselines(head: Head, spec: HeadSpec) -> dict[str, Callable[[Record], float]]:
    """{baseline: function that gives a structure's energy in eV}; see the module.

    Args:
        spec: the card of the model's head.
    """
    train = head.select("train")
    total, count = 0.0, 0
    for first in range(0, len(train), _BLOCK):
        block = train.read(np.arange(first, min(first + _BLOCK, len(train))))
        known = (block.energy / block.num_atoms)[np.isfinite(block.energy)]
        total, count = total + float(known.sum()), count + known.size
    mean = total / count if count else 0.0
    # The trainer starts from this fit: reference energies, and what binding adds to them.
    fitted = {symbol: energy + head.shift[symbol] for symbol, energy in head.spec.reference_energies.items()}
    return {
        "mean": lambda record: mean * len(record),
        "references": lambda record: spec.reference_energy(record.atomic_numbers),
        "composition": lambda record: sum(fitted.get(chemical_symbols[z], 0.0) for z in record.atomic_numbers),
    }


def write_cards(model: str | Path, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the model's figures into `HeadSpec.test_errors` and save the model in its place; its weights stay."""
    loaded = load_model(model)
    for name, entry in table.items():
        loaded.specs[name] = replace(loaded.specs[name], test_errors=dict(entry["model"]))
    save_model(loaded, resolve(model), provenance=open_model(model).read_json("provenance.json"))
