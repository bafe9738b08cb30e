"""One model out of two: the encoder and heads that were trained, and the old heads that were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from gfm_calc.config import HeadSpec
from gfm_calc.model import GFMModel


def combine(
    trained: GFMModel, start: GFMModel, old: Sequence[str], *, cards: Mapping[str, HeadSpec], note: str
) -> GFMModel:
    """The trained encoder with the old heads, then the new ones.

    Args:
        trained: with the new head, and old ones where they were replayed.
        start: the model that training began with.
        old: names of its heads that are kept; those that were not trained keep their weights.
        cards: of the old heads.
        note: put into the cards of old heads, whose test errors were measured with another encoder; "": the encoder is the
            same, and the cards stay as they are.
    """
    new = [spec for name, spec in trained.specs.items() if name not in start.specs]
    kept = [cards[name] for name in old]
    if note:
        kept = [replace(s, test_errors={}, description=f"{s.description} {note}".strip()) for s in kept]
    with torch.random.fork_rng(devices=[]):
        model = GFMModel(trained.config, [*kept, *new])
    model.to(trained.dtype)
    state = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith(_HEADS)}
    stack = trained.energy_stack.state_dict()
    for name in stack:
        rows = []
        for head in model.energy_heads:
            source = trained if head in trained.specs else start
            tensor = source.energy_stack.state_dict()[name]
            rows.append(tensor[source.energy_heads.index(head)].to(stack[name].dtype))
        state[f"energy_stack.{name}"] = torch.stack(rows) if rows else stack[name]
    for number, head in enumerate(model.property_heads):
        source = trained if head in trained.specs else start
        before = f"properties.{source.property_heads.index(head)}."
        state |= {
            key.replace(before, f"properties.{number}.", 1): tensor
            for key, tensor in source.state_dict().items()
            if key.startswith(before)
        }
    model.load_state_dict(state)
    if not note and start.uncertainty is not None:  # of heads and an encoder that are what they were
        model.uncertainty = start.uncertainty.only([name for name in old if name not in trained.specs])
    return model.requires_grad_(False).eval()


_HEADS = ("energy_stack.", "properties.")
