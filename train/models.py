"""Models for training: built from a recipe, put together from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import atomic_numbers as NUMBER_OF

from gfm_calc.config import ModelConfig
from gfm_calc.model import GFMModel
from gfm_calc.train.preparation import Head
from gfm_calc.train.state import SavedState


def build_model(config: ModelConfig, heads: Sequence[Head], seed: int) -> GFMModel:
    """A model with random weights, the same for the same seed; scales and shifts of heads from their training data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GFMModel(config, [head.spec for head in heads])
    stack = model.energy_stack
    with torch.no_grad():
        for row, head in enumerate(heads):
            stack.scale[row] = head.scale
            for symbol, energy in head.shift.items():
                stack.shift[row, NUMBER_OF[symbol]] = energy
    return model


def assemble(config: ModelConfig, heads: Sequence[Head], saved: SavedState, kind: str = "average") -> GFMModel:
    """The whole model of a checkpoint, wherever its heads were trained.

    Args:
        kind: "average" or "weight".

    Raises:
        CorruptFileError: the checkpoint is not of these heads.
    """
    model = build_model(config, heads, 0)
    stack = {name: parameter for name, parameter in model.named_parameters() if name.startswith("energy_stack.")}
    example = saved.parameter(kind, next(n for n, _ in model.named_parameters() if n not in stack))
    model.to(example.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in stack:
                parameter.copy_(saved.parameter(kind, name))
        for row, head in enumerate(heads):
            found = saved.head(kind, head.spec.name)
            for name in stack:
                model.get_parameter(name)[row] = found[name]
    return model.requires_grad_(False).eval()
