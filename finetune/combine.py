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

    Returns:
        a model with `old` heads in that order, then the new ones; rows of its energy stack ([heads, ...]) in the order of
        `energy_heads`.  It takes no gradients; its dtype is that of `trained`.
    """
    new = [spec for name, spec in trained.specs.items() if name not in start.specs]
    kept = [cards[name] for name in old]
    if note:
        kept = [replace(s, test_errors={}, description=f"{s.description} {note}".strip()) for s in kept]
    model = _filled(trained, [*kept, *new], [trained, start])
    if not note and start.uncertainty is not None:  # of heads and an encoder that are what they were
        model.uncertainty = start.uncertainty.only([name for name in old if name not in trained.specs])
    return model.requires_grad_(False).eval()


def with_head(model: GFMModel, spec: HeadSpec) -> GFMModel:
    """The model with one more head, of a property, whose network is zero."""
    found = _filled(model, [*model.specs.values(), spec], [model])
    found.uncertainty = model.uncertainty
    return found.requires_grad_(False).eval()


def with_stiffness(model: GFMModel, head: str, name: str) -> GFMModel:
    """The model whose head of a property names one of energies as its `stiffness`, with the weights that it is built with."""
    spec = replace(model.specs[head], stiffness=name)
    with torch.random.fork_rng(devices=[]):
        found = GFMModel(model.config, [spec if own.name == head else own for own in model.specs.values()])
    found.to(model.dtype)
    found.load_state_dict({**found.state_dict(), **model.state_dict()})
    found.uncertainty = model.uncertainty
    return found.requires_grad_(False).eval()


def _filled(encoder: GFMModel, specs: Sequence[HeadSpec], sources: Sequence[GFMModel]) -> GFMModel:
    """A model of one's encoder, and of heads of the first of `sources` that has them; others, of properties, are zero."""
    with torch.random.fork_rng(devices=[]):
        model = GFMModel(encoder.config, specs)
    model.to(encoder.dtype)
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith(_HEADS)}
    stack = encoder.energy_stack.state_dict()
    for name in stack:
        rows = []
        for head in model.energy_heads:
            source = next(one for one in sources if head in one.specs)
            tensor = source.energy_stack.state_dict()[name]
            rows.append(tensor[source.energy_heads.index(head)].to(stack[name].dtype))
        state[f"energy_stack.{name}"] = torch.stack(rows) if rows else stack[name]
    for number, head in enumerate(model.property_heads):
        owner = next((one for one in sources if head in one.specs), None)
        here = f"properties.{number}."
        if owner is None:
            state |= {k: torch.zeros_like(v) for k, v in model.state_dict().items() if k.startswith(here)}
            continue
        before = f"properties.{owner.property_heads.index(head)}."
        state |= {k.replace(before, here, 1): v for k, v in owner.state_dict().items() if k.startswith(before)}
    model.load_state_dict(state)
    return model


_HEADS = ("energy_stack.", "properties.")
