"""`gfm bench accuracy`: errors of every head on the test split of its training data, beside predictors that know nothing.

Baselines, each fitted on the training split of the same head:
    mean          the mean over frames of energy per atom, times the number of atoms; zero forces; zero stress
    references    the sum of the head card's reference energies; zero forces; zero stress
    composition   least squares of the energy on the numbers of atoms of each element; zero forces; zero stress
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from gfm_calc.checkpoint import load_model, open_model, resolve, save_model
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec, read_toml
from gfm_calc.errors import ConfigError, GFMError, HeadError, did_you_mean
from gfm_calc.predictor import Predictor
from gfm_calc.train.frames import TEST, TRAIN, Frames, fit_reference_energies, load_frames

_COMPONENTS = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # the six independent ones of a symmetric tensor


def recipe_files(recipe: Path, data: Path) -> dict[str, list[Path]]:
    """{head: data files} of a training recipe; ConfigError where it has no such table."""
    try:
        return {h["name"]: [data / f"{f['name']}.extxyz.xz" for f in h["files"]] for h in read_toml(recipe)["heads"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{recipe}: no recipe: needs [[heads]] with a name and [[heads.files]]") from error


def load_test_frames(recipe: Path, data: Path, cache: Path | None) -> Frames:
    """The recipe's frames, split as in training.

    Raises:
        InputFileError: a file is missing or damaged, or the cache holds other heads than the recipe.
    """
    return load_frames(recipe_files(recipe, data), cache=cache)


def measure(
    predictor_of: Mapping[str, Predictor], frames: Frames, *, max_frames: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Errors a head.

    Args:
        predictor_of: {head: Predictor of that head alone}.
        max_frames: at most so many test frames a head, drawn with `seed`; None for all.

    Returns:
        {head: {"model": figures, "mean": figures, "references": ..., "composition": ..., "by_source": {file: figures},
        "test_frames": in the split, "refused": {reason: frames}, "compositions": different formulas among the frames
        measured}}; figures are those of `figures`.
    """
    table = {}
    for head, predictor in predictor_of.items():
        if head not in frames.heads:
            raise HeadError(f"the data hold no head {head!r}{did_you_mean(head, frames.heads)}")
        everything = frames.select(head, TEST)
        chosen = draw(everything, max_frames, seed)
        predicted, refused = predict(predictor, frames, chosen, head)
        kept = np.array([k for k in chosen if int(k) in predicted], dtype=np.int64)
        rows = [errors(frames, int(k), *predicted[int(k)]) for k in kept]
        table[head] = {
            "test_frames": len(everything), "refused": refused, "compositions": compositions(frames, kept),
            "model": figures(rows),
        }  # fmt: skip
        for name, energies in baselines(frames, head, predictor.model.spec(head), kept).items():
            silent = [errors(frames, int(k), energy, None, None) for k, energy in zip(kept, energies)]
            table[head][name] = figures(silent)
        sources = {str(s): frames.source[kept] == s for s in np.unique(frames.source[kept])}
        table[head]["by_source"] = {
            source: figures([row for row, own in zip(rows, mask) if own]) for source, mask in sources.items()
        }
    return table


def compositions(frames: Frames, indices: np.ndarray) -> int:
    """How many different formulas `indices` hold: one means that the test is one material or molecule."""
    numbers = (frames.numbers[frames.ptr[k] : frames.ptr[k + 1]] for k in indices)
    return len({tuple(sorted(own.tolist())) for own in numbers})


def draw(indices: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """`indices`, or `limit` of them at random, in order."""
    if limit is None or len(indices) <= limit:
        return indices
    return np.sort(np.random.default_rng(seed).choice(indices, size=limit, replace=False))


def predict(predictor: Predictor, frames: Frames, indices: np.ndarray, head: str) -> tuple[dict, dict[str, int]]:
    """{frame: (energy eV, forces [n, 3] eV/Å, stress [3, 3] eV/Å³)} and {reason: frames} for those refused."""
    predicted: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}
    refused: dict[str, int] = {}
    stream = predictor.predict((frames.atoms(k) for k in indices), on_error="yield")
    with Progress(head, "frames", len(indices)) as progress:
        for index, found in zip(indices, stream):
            progress.advance()
            if isinstance(found, GFMError):
                reason = getattr(found, "reason", str(found))
                refused[reason] = refused.get(reason, 0) + 1
                continue
            one = found[head]
            predicted[int(index)] = (one.energy.item(), one.forces.numpy(), one.stress[0].numpy())
    return predicted, refused


def errors(
    frames: Frames, index: int, energy: float, forces: np.ndarray | None, stress: np.ndarray | None
) -> tuple[float, np.ndarray, np.ndarray]:
    """(energy error eV/atom, force errors [m] eV/Å, stress errors [6 or 0] eV/Å³) of one frame, labelled parts only.

    `forces` or `stress` None stands for zero.
    """
    rows = slice(int(frames.ptr[index]), int(frames.ptr[index + 1]))
    labels = frames.forces[rows]
    force = ((0.0 if forces is None else forces) - labels)[np.isfinite(labels).all(axis=1)].ravel()
    label = frames.stress[index]
    difference = ((0.0 if stress is None else stress) - label)[_COMPONENTS]
    return (
        (energy - float(frames.energy[index])) / len(labels), force,
        difference if np.isfinite(label).all() else np.empty(0),
    )  # fmt: skip


def figures(rows: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Mean absolute and root mean square errors, in the words of `HeadSpec.test_errors`.

    energy_* over frames in meV/atom, forces_* over components in meV/Å, stress_* over the six components in meV/Å³; what
    has no labels is left out.
    """
    found: dict[str, Any] = {"frames": len(rows)}
    columns = {
        "energy_{}_mev_per_atom": np.array([row[0] for row in rows]),
        "forces_{}_mev_per_a": np.concatenate([row[1] for row in rows]) if rows else np.empty(0),
        "stress_{}_mev_per_a3": np.concatenate([row[2] for row in rows]) if rows else np.empty(0),
    }
    for name, values in columns.items():
        if values.size:
            found[name.format("mae")] = _rounded(1e3 * np.abs(values).mean())
            found[name.format("rmse")] = _rounded(1e3 * np.sqrt(np.square(values).mean()))
    return found


def baselines(frames: Frames, head: str, spec: HeadSpec, indices: np.ndarray) -> dict[str, np.ndarray]:
    """{baseline: energies [m] in eV} of frames `indices`; see the module."""
    train = frames.select(head, TRAIN)
    sizes = np.diff(frames.ptr)
    mean = (frames.energy[train] / sizes[train]).mean()
    fitted = fit_reference_energies(frames, train)
    numbers = [frames.numbers[frames.ptr[k] : frames.ptr[k + 1]] for k in indices]
    return {
        "mean": mean * sizes[indices],
        "references": np.array([spec.reference_energy(own) for own in numbers]),
        "composition": np.array([sum(fitted.get(chemical_symbols[z], 0.0) for z in own) for own in numbers]),
    }


def write_cards(model: str | Path, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the model's figures into `HeadSpec.test_errors` and save the model in its place; its weights stay."""
    loaded = load_model(model)
    for name, entry in table.items():
        loaded.specs[name] = replace(loaded.specs[name], test_errors=dict(entry["model"]))
    save_model(loaded, resolve(model), provenance=open_model(model).read_json("provenance.json"))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
