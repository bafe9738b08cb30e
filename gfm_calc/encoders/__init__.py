"""Encoders: node features and edge geometry in, scalar and vector features of every atom out.

All encoders share one interface (`Encoder`) and are made by name with `make_encoder`.
"""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import ConfigError, did_you_mean
from .base import EdgeGeometry, Encoder
from .painn import PaiNN

ENCODERS: dict[str, type[Encoder]] = {"painn": PaiNN}

__all__ = ["ENCODERS", "EdgeGeometry", "Encoder", "PaiNN", "make_encoder"]


def make_encoder(config: ModelConfig) -> Encoder:
    """The encoder that `config.encoder` names; ConfigError with the nearest name where there is none."""
    if config.encoder not in ENCODERS:
        raise ConfigError(f"model.encoder: unknown encoder {config.encoder!r}{did_you_mean(config.encoder, ENCODERS)}")
    return ENCODERS[config.encoder](config)
