"""Models for training: with random weights, from a saved model, or put together from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import torch
from ase.data import atomic_numbers as NUMBER_OF
from torch import nn

from gfm_calc.checkpoint import load_model, subset
from gfm_calc.config import ModelConfig
from gfm_calc.errors import ConfigError
from gfm_calc.heads import PropertyHead
from gfm_calc.model import GFMModel
from gfm_calc.train.adapters import add_adapters, merge_adapters
from gfm_calc.train.growth import ENCODER_GROWS, grown, growth
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import Recipe, StartRecipe
from gfm_calc.train.runlog import Say
from gfm_calc.train.state import SavedState

_LAYER = re.compile(r"encoder\.\w+\.(\d+)\.")
_OF_HEADS = ("energy_stack.", "properties.")
_FIXED = ".landmarks."  # fitted, not trained
_ROWS = ("hidden", "hidden_bias", "output")  # of a head, beside its shifts


def build_model(config: ModelConfig, heads: Sequence[Head], seed: int) -> GFMModel:
    """A model with random weights, the same for the same seed; scales and shifts of heads from their training data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GFMModel(config, [head.spec for head in heads])
    _set_scales(model, heads)
    return model


def starting_model(recipe: Recipe, heads: Sequence[Head], say: Say | None = None) -> GFMModel:
    """The model that a run begins with: `build_model`, and what it takes from a saved one (see `StartRecipe`).

    Args:
        say: gets a line where the saved model is made larger.

    Raises:
        ConfigError: the saved model is of another shape or another id, or has no such head.
    """
    model = build_model(recipe.model, heads, recipe.run.seed)
    if not recipe.start.model:
        return model
    source = load_model(recipe.start.model)
    if recipe.start.model_id not in ("", source.model_id):
        raise ConfigError(
            f"start.model {recipe.start.model}: is {source.model_id}, not {recipe.start.model_id}, which this run began "
            "with: put that one back, or start a new run"
        )
    if source.config != recipe.model:
        source = _grown(source, recipe, heads, say)
    model.to(source.dtype)
    for name, parameter in model.named_parameters():
        if not name.startswith(_OF_HEADS):
            parameter.data.copy_(source.get_parameter(name))
    for head in heads:
        wanted = recipe.head(head.spec.name).start
        if wanted and head.spec.kind != "energy":
            _take_property(model, head, source, wanted)
        elif wanted:
            if wanted not in source.energy_heads:
                raise ConfigError(f"head {head.spec.name}: start: {wanted} is no head of energies of the saved model")
            row = model.energy_heads.index(head.spec.name)
            other = source.energy_heads.index(wanted)
            for name in _ROWS:
                getattr(model.energy_stack, name).data[row] = getattr(source.energy_stack, name)[other]
            if wanted == head.spec.name:
                _go_on(model, row, source, other)
    return model


def _grown(source: GFMModel, recipe: Recipe, heads: Sequence[Head], say: Say | None) -> GFMModel:
    """What the run takes of a saved model, as large as the recipe wants it."""
    where = f"start.model {recipe.start.model}"
    try:
        larger = growth(source.config, recipe.model)
        learnt = recipe.start.encoder_rate > 0 and not recipe.start.adapter_rank
        if not learnt and (fixed := [name for name in larger if name in ENCODER_GROWS]):
            raise ConfigError(
                f"model.{fixed[0]} can only grow where all of the encoder learns (encoder_rate, adapter_rank)"
            )
        begun = [recipe.head(head.spec.name).start for head in heads]
        taken = [name for name in source.specs if name in begun]
        found = grown(subset(source, taken or list(source.specs)[:1]), recipe.model, recipe.run.seed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if say is not None:
        say(f"{where} is made larger: " + ", ".join(f"{name} {old} to {new}" for name, (old, new) in larger.items()))
    return found


def _take_property(model: GFMModel, head: Head, source: GFMModel, wanted: str) -> None:
    """The weights of the head of the same property, whose scale and references `preparation.prepare` has taken already."""
    name = head.spec.name
    if wanted != name or name not in source.property_heads or source.specs[name].kind != head.spec.kind:
        raise ConfigError(
            f"head {name}: start: a head of a property begins as itself, of a saved model that has it, alone"
        )
    for field in ("landmarks", "nonnegative"):
        if getattr(source.specs[name], field) != getattr(head.spec, field):
            raise ConfigError(f"head {name}: start: has other {field} there than its card says here: start a new run")
    new, old = (m.properties[m.property_heads.index(name)] for m in (model, source))
    for parameter, value in zip(new.parameters(), old.parameters(), strict=True):
        parameter.data.copy_(value)


def _go_on(model: GFMModel, row: int, source: GFMModel, other: int) -> None:
    """Let a head begin with the energies that it had, whatever is fitted to the data of now: its scale, and sums of references
    and shifts.  (Scales and shifts of a head that begins as another one are those of its data.)"""
    new, old = model.energy_stack, source.energy_stack
    with torch.no_grad():
        new.scale[row] = old.scale[other]
        for symbol in source.specs[source.energy_heads[other]].elements:
            z = NUMBER_OF[symbol]
            new.shift[row, z] = old.shift[other, z] + old.reference[other, z] - new.reference[row, z]


def _set_scales(model: GFMModel, heads: Sequence[Head]) -> None:
    stack = model.energy_stack
    with torch.no_grad():
        for head in heads:
            if head.spec.kind != "energy":
                cast(PropertyHead, model.properties[model.property_heads.index(head.spec.name)]).scale.fill_(head.scale)
                continue
            row = model.energy_heads.index(head.spec.name)
            stack.scale[row] = head.scale
            for symbol, energy in head.shift.items():
                stack.shift[row, NUMBER_OF[symbol]] = energy


def adapt(model: GFMModel, recipe: Recipe) -> None:
    """Give the encoder the adapters that the recipe asks for."""
    if recipe.start.adapter_rank:
        add_adapters(model.encoder, recipe.start.adapter_rank, recipe.run.seed)


def rates(model: GFMModel, start: StartRecipe) -> dict[str, float]:
    """name -> factor of the learning rate, of the parameters where it is not 1."""
    if not start.model:
        return {}
    found = {}
    for name, _ in model.named_parameters():
        if _FIXED in name:
            found[name] = 0.0
        if name.startswith(_OF_HEADS):
            continue
        layer = _LAYER.match(name)
        depth = model.config.num_layers - (int(layer[1]) + 1 if layer else 0)
        fixed = start.adapter_rank and name.startswith("encoder.") and not name.endswith((".up", ".down"))
        factor = 0.0 if fixed else start.encoder_rate * start.layer_decay**depth
        if factor != 1.0:
            found[name] = factor
    return found


def freeze(model: nn.Module, factors: dict[str, float]) -> None:
    """Ask for no gradients where the learning rate is zero."""
    for name, factor in factors.items():
        model.get_parameter(name).requires_grad_(factor > 0)


def assemble(recipe: Recipe, heads: Sequence[Head], saved: SavedState, kind: str = "average") -> GFMModel:
    """The whole model of a checkpoint, wherever its heads were trained, adapters merged.

    Args:
        kind: "best", "average" or "weight".

    Raises:
        CorruptFileError: the checkpoint is not of these heads.
    """
    model = build_model(recipe.model, heads, 0)
    adapt(model, recipe)
    stack = {name: parameter for name, parameter in model.named_parameters() if name.startswith("energy_stack.")}
    example = saved.parameter(kind, next(n for n, _ in model.named_parameters() if n not in stack))
    model.to(example.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in stack:
                parameter.copy_(saved.parameter(kind, name))
        for row, head in enumerate(model.energy_heads):
            found = saved.head(kind, head)
            for name in stack:
                model.get_parameter(name)[row] = found[name]
    merge_adapters(model.encoder)
    return model.requires_grad_(False).eval()
