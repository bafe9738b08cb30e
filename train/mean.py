"""The mean of the weights of models of one shape, to train on from.

    python -m gfm_calc.train.mean FIRST/model SECOND/model -o MEAN

Stages of one training end far apart in their weights, each with quirks of its own where no data are; half way between them the
energies are smoother (Wortsman et al., DOI 10.48550/arXiv.2203.05482), and a short training at a low rate brings the errors back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.model import GFMModel

_FITTED = ("landmarks.centres", "landmarks.inverse_lengths")  # of a head of a property, to structures of its own


def mean_of(models: Sequence[GFMModel]) -> GFMModel:
    """A model with the mean of the weights and the cards of the last one, which is changed; it expects no errors of itself.

    Raises:
        ConfigError: fewer than two models, or of different encoders or heads.
    """
    if len(models) < 2:
        raise ConfigError("a mean is one of two models at least")
    *others, last = models
    shape = {name: tensor.shape for name, tensor in last.state_dict().items()}
    for model in others:
        if model.config != last.config or list(model.specs) != list(last.specs):
            raise ConfigError("the models have different encoders or heads: there is no mean of their weights")
        if {name: tensor.shape for name, tensor in model.state_dict().items()} != shape:
            raise ConfigError("the weights of the models have different shapes: there is no mean of them")
    fixed = {name: tensor for name, tensor in last.state_dict().items() if ".stiffness." in name}
    if any(not torch.equal(model.state_dict()[name], tensor) for model in others for name, tensor in fixed.items()):
        raise ConfigError("the models have properties that begin at different first guesses: there is no mean of them")
    if any(_beginning(model) != _beginning(last) for model in others):
        raise ConfigError("the models have properties that begin at different fits: there is no mean of them")
    states = [_in_terms_of(last, model) for model in models]
    last.load_state_dict({
        name: torch.stack([state[name] for state in states]).mean(dim=0).to(tensor.dtype)
        for name, tensor in states[-1].items()
    })  # fmt: skip
    last.uncertainty = None
    return last


def _beginning(model: GFMModel) -> list[tuple[Mapping[str, float], bool, list[list[float]]]]:
    """Where each property head begins, which its weights are relative to: references, whether it is never negative; scale, shift
    and landmarks."""
    specs = [model.specs[head] for head in model.property_heads]
    fixed = [
        [*module.buffers(), *(part for name, part in module.named_parameters() if name in _FITTED)]
        for module in model.properties
    ]
    return [
        (spec.reference_energies, spec.nonnegative, [one.double().flatten().tolist() for one in own])
        for spec, own in zip(specs, fixed)
    ]


def _in_terms_of(last: GFMModel, model: GFMModel) -> dict[str, torch.Tensor]:
    """The weights of a model as they would be with the references and scales of `last`, in float64."""
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    old, new = model.energy_stack, last.energy_stack
    state["energy_stack.output"] = state["energy_stack.output"] * (old.scale / new.scale).unsqueeze(1)
    state["energy_stack.shift"] = state["energy_stack.shift"] + old.reference - new.reference
    state["energy_stack.scale"] = new.scale
    return state


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m gfm_calc.train.mean", description="The mean of the weights of models."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names or directories")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="new folder for the mean")
    args = parser.parse_args(words)
    try:
        models = [load_model(name) for name in args.models]
        ids = [model.model_id for model in models]
        save_model(mean_of(models), args.output, provenance={"mean_of": ids})
    except GFMError as error:
        print(f"gfm: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: the mean of {', '.join(ids)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
