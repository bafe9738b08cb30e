"""Where the head of a property begins: at what the model knows already, by regularised least squares.

A network that begins with random weights learns from a few hundred labels worse than a linear fit does.  So the hidden units of
old heads, the encoder's own features after each layer and the composition are fitted to the labels first, and the energy of the
head beside its units, for few labels do not tell which sum of them it is.  Of these fits the mean of the best is taken (see
`mixing`), where it helps on top of a linear function of frontier orbitals (see `orbitals`).  A property that is no sum over
atoms, or one of crystals (for each atom), is the mean of that and of two Gaussian processes, on the layers alone and on how far
atoms differ as well (see `landmarks`), which err elsewhere; or one of the three alone, where that is clearly better.  Crystals
are what is periodic along three axes.  Other sums are not: two molecules that are far apart must give twice as much.  The outcome
is written as weights of the head, from which training goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from gfm_calc.artifacts import MANIFEST
from gfm_calc.checkpoint import load_model, open_model, save_model
from gfm_calc.config import HeadSpec
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.store import Dataset
from gfm_calc.errors import CorruptFileError
from gfm_calc.finetune.combine import with_head
from gfm_calc.finetune.described import Described, describe
from gfm_calc.finetune.fits import Fit, best
from gfm_calc.finetune.mixing import Mixed, mix
from gfm_calc.finetune.orbitals import Orbitals, orbitals_of
from gfm_calc.heads import PropertyHead
from gfm_calc.landmarks import PROCESSES
from gfm_calc.model import GFMModel
from gfm_calc.train.properties import is_nonnegative, start_of

FEWEST = 10  # labels; fewer say nothing of what predicts
_MOST = 2000  # structures of the fit
_PAIR = 2  # hidden units that make a linear function: silu(u) - silu(-u) = u
# Landmarks: structures, over which the time grows with the third power, and the weights with the first; of more labels, some.
_MOST_COMPARED = 1000


@dataclass(frozen=True, kw_only=True)
class Readout:
    """The head of a property that is fitted, not trained.

    Attributes:
        heads: of energies, whose hidden units have a part in it.
        error: mean absolute error of structures that are left out, in the unit of the property (of a sum over atoms: for each
            atom; of a class: of the log-odds it is fitted to).  before: of the composition alone, likewise.
        hidden: [K, L F] (of L layers), hidden_bias: [K], output: [K], of `PropertyHead.net`, to be multiplied by `scale`.
        references: symbol -> value.
        landmarks: what is compared, where it is, see `Compared`.
        orbitals: whether it begins at them.  nonnegative: see `HeadSpec`.
    """

    heads: tuple[str, ...]
    error: float
    before: float
    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    references: Mapping[str, float]
    scale: float
    landmarks: Compared | None
    orbitals: bool
    nonnegative: bool


class Compared(NamedTuple):
    """Fields of `Landmarks`: centres [M, W], inverse_lengths [P, W], output [P, M], to be multiplied by the scale of the head."""

    centres: np.ndarray
    inverse_lengths: np.ndarray
    output: np.ndarray


class FittedHead(NamedTuple):
    """A saved model with the head in it, of labels less a first guess where there is one: `where` it is, its id, the head's
    references (symbol -> value), scale, number of landmarks and whether it is never negative; `left_out`, how far off structures
    are that the fit has not seen, on average, in the unit of its card (NaN in folders of older versions)."""

    where: Path
    model_id: str
    references: Mapping[str, float]
    scale: float
    landmarks: int
    left_out: float = math.nan
    nonnegative: bool = False


def begin_head(
    folder: Path, model: GFMModel, dataset: Dataset, rows: np.ndarray, groups: np.ndarray, say: Callable[[str], None]
) -> FittedHead | None:
    """The model in `folder` whose property head is fitted; one that an earlier run of the job has written is there already.

    Args:
        dataset: with the head's card.  rows: of the training structures.  groups: see `fit_readout`.

    Returns:
        None for properties that begin with random weights: vectors, those of atoms, and those with fewer than `FEWEST` labels.

    Raises:
        CorruptFileError: what an earlier run has written is damaged, or was fitted to other labels.
    """
    name = dataset.head.name
    if not (folder / MANIFEST).exists():
        found = fit_readout(model, dataset, rows, groups)
        if found is None:
            return None
        say(_in_words(found, dataset.head))
        about = {"labels": dataset.digest, "left_out": found.error}
        save_model(_with_readout(model, dataset.head, found), folder, provenance=about)
    about = open_model(folder).read_json("provenance.json")
    if about.get("labels", dataset.digest) != dataset.digest:
        raise CorruptFileError(
            f"{folder}: was fitted to other labels, with a guess that is gone: begin anew in another folder"
        )
    start = load_model(folder)
    module = cast(PropertyHead, start.properties[start.property_heads.index(name)])
    card = start.specs[name]
    left_out = float(about.get("left_out", math.nan))
    return FittedHead(
        folder, start.model_id, card.reference_energies, float(module.scale), card.landmarks, left_out, card.nonnegative
    )


def _in_words(found: Readout, card: HeadSpec) -> str:
    unit = " of log-odds" if card.kind == "class" else f" {card.unit}{' an atom' if card.extensive else ''}"
    fits = f"fits to all layers and hidden units of {', '.join(found.heads)}"
    used = np.zeros(PROCESSES, bool) if found.landmarks is None else found.landmarks.output.any(axis=1)
    process = "" if not used.any() else "two Gaussian processes on" if used.all() else "a Gaussian process on"
    says = " what all layers say" + (" and how far atoms differ" if used[-1] else "")
    where = " and ".join([*([fits] if found.heads else []), *([process + says] if process else [])])
    if found.orbitals:
        where += ", on top of a linear function of what GFN2-xTB would say of HOMO and LUMO"
    often = "; it is never negative and often 0, so what would be negative is 0" if found.nonnegative else ""
    said = f"{found.error:.3g}{unit} off what is left out, a fit to compositions alone {found.before:.3g}"
    return f"begins at {where}: {said}{often}"


def fit_readout(model: GFMModel, dataset: Dataset, rows: np.ndarray, groups: np.ndarray) -> Readout | None:
    """The mean of the best fits, see above; None: see `begin_head`.

    Args:
        rows: of the training structures.  groups: of each of them; what is left out is left out with its group.
    """
    spec = dataset.head
    if spec.kind not in ("scalar", "class") or not model.energy_heads:
        return None
    references, scale = start_of(spec, dataset, rows)
    block = dataset.read(rows)
    labelled = np.flatnonzero(np.isfinite(block.value[:, 0]))
    if len(labelled) < FEWEST:
        return None
    compares = not spec.is_sum or bool(block.pbc[labelled].all())
    chosen = labelled[spread_indices(len(labelled), _MOST)]
    nonnegative = is_nonnegative(spec, dataset, rows)
    orbitals = None if spec.is_sum else orbitals_of(model)
    if orbitals is not None and not orbitals.can_tell(block):
        orbitals = None
    seen = describe(
        model, dataset, rows[chosen], groups[chosen], list(references), orbitals=orbitals, nonnegative=nonnegative
    )
    if compares:
        seen = seen.compared_with(_MOST_COMPARED, groups[chosen])
    before = best(Fit([seen.composition], seen.labels, [1.0]), seen.groups).residual
    found = mix(seen, is_sum=spec.is_sum, compares=compares, tames=spec.kind == "scalar" and not spec.is_sum)
    if not found.calm.all():
        rest = best(Fit([seen.composition], found.labels, [1.0]), seen.groups).residual
        scale *= min(1.0, float(np.sqrt(np.square(rest).sum() / np.square(before).sum())))
    before = seen.labels - np.maximum(seen.labels - before, seen.least)
    return Readout(
        heads=tuple(model.energy_heads[one.head] for one in found.fits if found.shares[0]), scale=scale,
        before=found._replace(residual=before).error(seen.judged), error=found.error(seen.judged),
        orbitals=found.guess is not None, nonnegative=nonnegative, **_as_network(model, found, seen, scale, orbitals),
    )  # fmt: skip


def _as_network(
    model: GFMModel, found: Mixed, seen: Described, scale: float, orbitals: Orbitals | None
) -> dict[str, Any]:
    """Weights of `PropertyHead` that give the mean of the fits and the processes in their shares, on top of the guess: fields of
    `Readout`."""
    fits, shares, centres = found.fits, found.shares, seen.features[seen.judged]
    stack, width, share = model.energy_stack, seen.layers.shape[1], shares[0]
    hidden, bias, output = [], [], []
    direction, shifts = np.zeros(width), np.zeros(len(seen.symbols))
    for one in fits:
        at, part = len(one.kept), 1 / len(fits)
        own = stack.hidden[one.head].detach().double().numpy().T[one.kept]
        hidden.append(
            np.concatenate([np.zeros((at, width - own.shape[1])), own], axis=1)
        )  # they see the last layer alone
        bias.append(stack.hidden_bias[one.head].detach().double().numpy()[one.kept])
        output.append(share * part * one.weights[:at])
        direction += part * one.weights[at : at + width]
        shifts += share * part * (one.weights[at + width : -1] + one.weights[-1])
    size = max(float((seen.layers @ direction).std()), 1e-12 * scale)  # the two units are as wide awake as others
    hidden.append(np.stack([direction, -direction]) / size)
    bias.append(np.zeros(_PAIR))
    output.append(share * np.array([size, -size]))
    if found.guess is not None and orbitals is not None:
        hidden.append(orbitals.hidden.numpy())
        bias.append(orbitals.hidden_bias.numpy())
        output.append(found.guess[:-1] @ orbitals.output.numpy())
        shifts += found.guess[:-1] @ orbitals.constant.numpy() + found.guess[-1]
    compared = None
    if shares[0] < 1.0:
        lengths, between = np.zeros((PROCESSES, centres.shape[1])), np.zeros((PROCESSES, len(centres)))
        for number, (one, part) in enumerate(zip(found.processes, shares[1:])):
            lengths[number, : len(one.inverse_lengths)] = one.inverse_lengths
            between[number] = part * one.weights / scale
            shifts += part * one.constant
        compared = Compared(centres, lengths, between)
    return {
        "hidden": np.concatenate(hidden), "hidden_bias": np.concatenate(bias), "output": np.concatenate(output) / scale,
        "references": dict(zip(seen.symbols, map(float, shifts))), "landmarks": compared,
    }  # fmt: skip


def _with_readout(model: GFMModel, card: HeadSpec, found: Readout) -> GFMModel:
    """The model with the head beside its own."""
    compared = found.landmarks
    spec = replace(
        card, elements=tuple(found.references), reference_energies=dict(found.references),
        landmarks=0 if compared is None else len(compared.centres), nonnegative=found.nonnegative,
    )  # fmt: skip
    new = with_head(model, spec)
    module = cast(PropertyHead, new.properties[new.property_heads.index(spec.name)])
    first, last = module.net[0], module.net[2]
    with torch.no_grad():
        # The units that are left see what others see, and say nothing: with weights of zero throughout they could not learn.
        first.weight.copy_(torch.from_numpy(np.resize(found.hidden, first.weight.shape)))
        first.bias.copy_(torch.from_numpy(np.resize(found.hidden_bias, first.bias.shape)))
        last.weight[0, : len(found.output)] = torch.from_numpy(found.output)
        module.scale.fill_(found.scale)
        if compared is not None and module.landmarks is not None:
            for name, source in compared._asdict().items():
                getattr(module.landmarks, name).copy_(torch.from_numpy(source))
    return new
