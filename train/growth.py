"""A larger model that gives the same numbers as a smaller one: training goes on with more room (Chen, Goodfellow, Shlens,
DOI 10.48550/arXiv.1511.05641).

What is new is random where it reads and zero where it writes, so it changes nothing before it has learnt.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gfm_calc.config import ModelConfig
from gfm_calc.errors import ConfigError
from gfm_calc.model import GFMModel

GROWS = ("num_layers", "num_radial", "expansion", "head_width")
_OF_PROPERTIES = ("num_layers", "head_width")  # what their heads' shapes follow, too
# Ends of names of what a layer adds to its atoms, and of what reads a wider network or basis.
_WRITES = ("source.2.weight", "source.2.bias", "gate.2.weight", "gate.2.bias")
_READS_NEW = ("source.2.weight", "gate.2.weight", "filter.weight", "energy_stack.output")


def grown(source: GFMModel, config: ModelConfig, seed: int) -> GFMModel:
    """A model of shape `config` with the heads and the energies of `source`.

    Args:
        source: not changed.
        seed: of what is new.

    Raises:
        ConfigError: `config` differs in more than `GROWS` or is smaller there, or a head of a property would have to grow.
    """
    old = source.config
    differs = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(old, f.name)]
    if fixed := [name for name in differs if name not in GROWS]:
        raise ConfigError(f"model.{fixed[0]} is {getattr(old, fixed[0])!r} there; only {', '.join(GROWS)} may differ")
    if smaller := [name for name in differs if getattr(config, name) < getattr(old, name)]:
        raise ConfigError(f"model.{smaller[0]} is {getattr(old, smaller[0])} there, which can become more, not less")
    if source.property_heads and (layers := [name for name in differs if name in _OF_PROPERTIES]):
        raise ConfigError(f"model.{layers[0]} cannot grow with a head of a property ({source.property_heads[0]})")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GFMModel(config, list(source.specs.values()))
    model.to(source.dtype)
    known = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in known:
                _fill(name, parameter, known[name])
            elif name.endswith(_WRITES):
                parameter.zero_()
        for name, buffer in model.named_buffers():
            buffer.copy_(source.get_buffer(name))
    model.uncertainty = source.uncertainty
    return model


def _fill(name: str, new: Tensor, old: Tensor) -> None:
    """Put `old` in the corner of `new`; what reads hidden units or radial functions that were not there begins at zero."""
    if new.shape != old.shape:
        if name.endswith(_READS_NEW) or new.ndim == 1 or name.endswith("hidden_bias"):
            new.zero_()
    new[tuple(slice(0, size) for size in old.shape)].copy_(old)
