"""Energies of frontier orbitals as a packaged encoder sees them: a first guess at what depends on electrons.

Models of energies do not say how easily electrons come and go, on which gaps, ionisation and reactivity depend, and few labels
do not tell it either.  Labels of a cheap method are had by ten thousands: a layer on the features of the packaged encoder has
learnt from them what GFN2-xTB (Bannwarth et al., DOI 10.1021/acs.jctc.8b01176) says of the highest occupied and the lowest
unoccupied orbital of neutral molecules with closed shells, as means over atoms of its output.  A head that begins with it holds
it as units of its own network (see `readout`), so that a saved model needs nothing else.  Made by `orbital_training`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from ase.data import chemical_symbols as SYMBOLS

from gfm_calc.artifacts import canonical_json, sha256
from gfm_calc.data.block import NO_CHARGE, NO_SPIN, Block
from gfm_calc.errors import CorruptFileError, one_line
from gfm_calc.model import Encoded, GFMModel

NAMES = ("HOMO", "LUMO")
_FOLDER = Path(__file__).with_suffix("")
_SHARED = ("embedding.", "encoder.")  # of a model's weights, what features depend on


class Orbitals(NamedTuple):
    """A layer on the features of all layers of an encoder: hidden [K, L F], hidden_bias [K], output [2, K], constant [2] in eV,
    as `NAMES`; elements, the symbols that it was trained on."""

    hidden: torch.Tensor
    hidden_bias: torch.Tensor
    output: torch.Tensor
    constant: torch.Tensor
    elements: frozenset[str]

    def of_atoms(self, encoded: Encoded) -> torch.Tensor:
        """[N, 2] float64, eV, on the CPU, whose means over the atoms of a structure are what it says."""
        layers = torch.cat(encoded.layers, dim=1).to("cpu", torch.float64)
        return torch.nn.functional.silu(layers @ self.hidden.t() + self.hidden_bias) @ self.output.t() + self.constant

    def can_tell(self, block: Block) -> bool:
        """Whether all structures are what it was trained on: neutral molecules of its elements, with closed shells."""
        elements = {SYMBOLS[z] for z in np.unique(block.atomic_numbers).tolist()}
        electrons = np.add.reduceat(block.atomic_numbers.astype(int), block.ptr[:-1])
        is_plain = np.isin(block.charge, (0, NO_CHARGE)) & np.isin(block.spin, (1, NO_SPIN)) & (electrons % 2 == 0)
        return elements <= self.elements and not block.pbc.any() and bool(is_plain.all())


def orbitals_of(model: GFMModel) -> Orbitals | None:
    """What is packaged for the encoder of a model; None for one that nothing was trained on, or that has learnt since."""
    return _packaged().get(encoder_digest(model))


def encoder_digest(model: GFMModel) -> str:
    """A digest of the weights that features depend on."""
    state = model.state_dict()
    parts = [
        name.encode() + state[name].detach().cpu().float().numpy().tobytes()
        for name in sorted(state)
        if name.startswith(_SHARED)
    ]
    return sha256(b"".join(parts))


@cache
def _packaged() -> dict[str, Orbitals]:
    return dict(read_orbitals(path) for path in sorted(_FOLDER.glob("*.safetensors")))


def written(tensors: Mapping[str, torch.Tensor], encoder: str, elements: Collection[str], **about: str) -> bytes:
    """The content of a file.

    Args:
        tensors: fields of `Orbitals`.  encoder: its digest.  elements: symbols.  about: of the training, in words.
    """
    own = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    metadata = {**about, "encoder": encoder, "elements": " ".join(sorted(elements)), "sha256": ""}
    metadata["sha256"] = _digest(own, metadata)
    return safetensors.torch.save(own, metadata=metadata)


def read_orbitals(path: Path) -> tuple[str, Orbitals]:
    """The digest of the encoder that a file belongs to, and the layer.

    Raises:
        CorruptFileError: it is not what `written` gives.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about.get("sha256") != _digest(tensors, about):
            raise ValueError("it is not what was written")
        found = Orbitals(
            **{name: one.double() for name, one in tensors.items()}, elements=frozenset(about["elements"].split())
        )
        return about["encoder"], found
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path}: damaged, install the package anew ({one_line(error)})") from error


def _digest(tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    words = canonical_json({name: word for name, word in about.items() if name != "sha256"})
    return sha256(b"".join([words, *(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))]))
