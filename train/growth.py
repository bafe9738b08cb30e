"""A larger model that gives the same numbers as a smaller one: training goes on with more room (Chen, Goodfellow, Shlens,
DOI 10.48550/arXiv.1511.05641).

What is new is random where it reads and zero where it writes, so it changes nothing before it has learnt.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from gfm_calc.config import ModelConfig
from gfm_calc.errors import ConfigError
from gfm_calc.model import GFMModel

ENCODER_GROWS = ("num_layers", "num_radial", "expansion")
GROWS = (*ENCODER_GROWS, "head_width")
_OF_PROPERTIES = ("num_layers", "head_width")  # what their heads' shapes follow, too
_OUTPUT_OF_HEADS = "energy_stack.output"


def growth(old: ModelConfig, new: ModelConfig) -> dict[str, tuple[int, int]]:
    """{what is larger in `new`: (old, new value)}.

    Raises:
        ConfigError: they differ in more than `GROWS`, or `new` is smaller there.
    """
    names = [f.name for f in dataclasses.fields(new) if getattr(new, f.name) != getattr(old, f.name)]
    if fixed := [name for name in names if name not in GROWS]:
        raise ConfigError(f"model.{fixed[0]} is {getattr(old, fixed[0])!r} there; only {', '.join(GROWS)} may differ")
    if smaller := [name for name in names if getattr(new, name) < getattr(old, name)]:
        raise ConfigError(f"model.{smaller[0]} is {getattr(old, smaller[0])} there, which can become more, not less")
    return {name: (getattr(old, name), getattr(new, name)) for name in names}


def grown(source: GFMModel, config: ModelConfig, seed: int) -> GFMModel:
    """A model of shape `config` with the heads and the energies of `source`.

    Args:
        source: not changed.
        seed: of what is new.

    Raises:
        ConfigError: see `growth`; or a head of a property would have to grow, or the encoder cannot.
    """
    larger = growth(source.config, config)
    if source.property_heads and (layers := [name for name in larger if name in _OF_PROPERTIES]):
        raise ConfigError(f"model.{layers[0]} cannot grow with a head of a property ({source.property_heads[0]})")
    if not source.encoder.writes:
        raise ConfigError(f"the encoder {config.encoder} cannot grow")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GFMModel(config, list(source.specs.values()))
    model.to(source.dtype)
    known, names = dict(source.named_parameters()), {name for name, _ in model.named_parameters()}
    if strange := sorted(known.keys() - names):
        raise ConfigError(f"{strange[0]} is no part of a plain model; merge its adapters first")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in known:
                _fill(parameter, known[name], reads=name.endswith((*source.encoder.reads, _OUTPUT_OF_HEADS)))
            elif name.endswith(source.encoder.writes):
                parameter.zero_()
        for name, buffer in model.named_buffers():
            buffer.copy_(source.get_buffer(name))
    model.uncertainty = copy.deepcopy(source.uncertainty)
    return model.to(source.device)


def _fill(new: Tensor, old: Tensor, *, reads: bool) -> None:
    """Put `old` in the corner of `new`; what `reads` hidden units or radial functions that were not there begins at zero, as do
    biases."""
    if new.shape != old.shape and (reads or new.ndim == 1):
        new.zero_()
    new[tuple(slice(0, size) for size in old.shape)].copy_(old)
