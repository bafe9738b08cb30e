"""How far a structure lies from a head's training data, by what the encoder says about its atoms.

The scalar features of each atom are compared with those of the atoms of its element in training: the Mahalanobis distance
from their mean, with a covariance common to the elements that is shrunk as Ledoit and Wolf do
(DOI 10.1016/S0047-259X(03)00096-4).  A structure's distance is the mean over its atoms, in units of the distance that 99 %
of the training structures are within, so 1 is the edge of what is known.  (Features averaged over a structure before they
are compared tell less of its errors.)

The statistics are an artifact of their own (`gfm domain`), made for the weights of one model; those of packaged models come
with the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from ase import Atoms

from gfm_calc.artifacts import MANIFEST, commit, open_artifact
from gfm_calc.checkpoint import open_model
from gfm_calc.config import MAX_ATOMIC_NUMBER
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel

KIND, FORMAT_VERSION = "domain", 1
PACKAGED = Path(__file__).resolve().parent / "domains"
FEWEST = 20  # structures of a head, below which there is nothing to compare with
_EDGE = 99.0  # per cent of the training structures
_ATOMS = 2048  # of a batch
_SEEN = 1e-4  # of the size of the features; smaller differences are not looked at


class Features(NamedTuple):
    """Features of the atoms of some structures: `scalars` [N, F], `numbers` [N], `ptr` [B+1]."""

    scalars: np.ndarray
    numbers: np.ndarray
    ptr: np.ndarray


@dataclass(frozen=True, kw_only=True)
class HeadDomain:
    """Of one head: `numbers` [E] of its elements, the `means` [E, F] of their features, a common `whitening` [F, F], and
    `reach`, the distance that is called 1."""

    numbers: np.ndarray
    means: np.ndarray
    whitening: np.ndarray
    reach: float

    def distances(self, features: Features) -> np.ndarray:
        """[B]; 1 is the edge of the training data; NaN where it lacks an element."""
        place = np.full(MAX_ATOMIC_NUMBER + 1, -1)
        place[self.numbers] = np.arange(len(self.numbers))
        own = place[features.numbers]
        away = np.linalg.norm((features.scalars - self.means[own]) @ self.whitening, axis=1)
        away[own < 0] = np.nan
        return np.add.reduceat(away, features.ptr[:-1]) / np.diff(features.ptr) / self.reach


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Statistics for the model with `weights` (their SHA-256); `heads` without are not compared.  `digest`, of the whole."""

    weights: str
    heads: Mapping[str, HeadDomain]
    digest: str = ""

    def distances(self, heads: Sequence[str], features: Features) -> np.ndarray:
        """[H, B], NaN for heads without statistics."""
        found = np.full((len(heads), len(features.ptr) - 1), np.nan)
        for row, head in enumerate(heads):
            if head in self.heads:
                found[row] = self.heads[head].distances(features)
        return found


def fit(features: Features) -> HeadDomain:
    """From the features of training structures.

    Raises:
        ConfigError: too few.
    """
    count = len(features.ptr) - 1
    if count < FEWEST:
        raise ConfigError(f"{count} training structures are too few to know a domain by: give {FEWEST} or more")
    numbers, own = np.unique(features.numbers, return_inverse=True)
    sums = np.zeros((len(numbers), features.scalars.shape[1]))
    np.add.at(sums, own, features.scalars)
    means = sums / np.bincount(own)[:, None]
    covariance = _shrunk(features.scalars - means[own]) + _floor(features.scalars) * np.eye(features.scalars.shape[1])
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    one = HeadDomain(numbers=numbers, means=means, whitening=whitening, reach=1.0)
    reach = float(np.percentile(one.distances(features), _EDGE))
    return replace(one, reach=max(reach, np.finfo(float).tiny))


def _shrunk(centred: np.ndarray) -> np.ndarray:
    """The covariance [F, F] of [n, F], moved towards a multiple of the identity as far as its noise calls for."""
    count, size = centred.shape
    covariance = centred.T @ centred / count
    level = np.trace(covariance) / size
    away = np.square(covariance - level * np.eye(size)).sum()
    noise = (np.square(np.square(centred).sum(axis=1)).sum() / count - np.square(covariance).sum()) / count
    share = 1.0 if away <= 0 else float(np.clip(noise / away, 0.0, 1.0))
    return (1 - share) * covariance + share * level * np.eye(size)


def _floor(scalars: np.ndarray) -> float:
    """A variance below which nothing is known: predictions in float32 must not look far for their rounding."""
    return float(_SEEN**2 * np.square(scalars).mean()) + np.finfo(float).tiny


@contextmanager
def features_seen(model: GFMModel) -> Iterator[list[torch.Tensor]]:
    """A list to which every batch that the (uncompiled) model predicts in the block adds the features [N, F] of its atoms."""
    seen: list[torch.Tensor] = []
    handle = model.encoder.register_forward_hook(lambda module, given, found: seen.append(found[0][-1].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def arranged(scalars: torch.Tensor, batch: GraphBatch) -> Features:
    """Features [N, F] of a batch's atoms with what says whose they are."""
    return Features(scalars.to("cpu", torch.float64).numpy(), batch.atomic_numbers.numpy(), batch.ptr.numpy())


def encoded(model: GFMModel, batch: GraphBatch) -> Features:
    """Of a batch, by a pass of their own."""
    with torch.no_grad():
        return arranged(model.encode(model.inputs(batch)).scalars, batch)


def features_of(model: GFMModel, structures: Iterable[Atoms]) -> Features:
    """Of structures; those that are unsound are left out."""
    parts: list[Features] = []
    held: list[AtomicGraph] = []

    def flush() -> None:
        if held:
            parts.append(encoded(model, GraphBatch.from_graphs(held)))
            held.clear()

    for atoms in structures:
        try:
            held.append(AtomicGraph.build(atoms, model.config.cutoff))
        except GFMError:
            continue
        if sum(int(graph.num_nodes or 0) for graph in held) > _ATOMS:
            flush()
    flush()
    sizes = np.concatenate([[0], *(np.diff(part.ptr) for part in parts)])
    scalars = np.concatenate([np.zeros((0, model.config.num_features)), *(part.scalars for part in parts)])
    return Features(scalars, np.concatenate([np.zeros(0, int), *(part.numbers for part in parts)]), np.cumsum(sizes))


def save(folder: Path, weights: str, heads: Mapping[str, HeadDomain]) -> None:
    """Write the artifact `folder`; float32, which is more than the statistics are good for."""
    arrays: dict[str, np.ndarray] = {}
    for name, head in heads.items():
        arrays |= {
            f"{name}/numbers": head.numbers.astype(np.int32), f"{name}/means": head.means.astype(np.float32),
            f"{name}/whitening": head.whitening.astype(np.float32), f"{name}/reach": np.array([head.reach], np.float32),
        }  # fmt: skip
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # bytes are written as they lie
    meta = {"weights": weights, "heads": list(heads)}
    commit(
        folder,
        {"domain.safetensors": safetensors.numpy.save(arrays)},
        kind=KIND,
        format_version=FORMAT_VERSION,
        meta=meta,
    )


def load(folder: Path) -> Domain:
    """What `save` wrote.

    Raises:
        CorruptFileError: missing, damaged, or something else.
    """
    artifact = open_artifact(folder, kind=KIND, newest_version=FORMAT_VERSION)
    try:
        arrays = safetensors.numpy.load(artifact.read("domain.safetensors"))
        heads = {}
        for name in artifact.meta["heads"]:
            means, whitening, reach = (
                arrays[f"{name}/{part}"].astype(float) for part in ("means", "whitening", "reach")
            )
            heads[name] = HeadDomain(
                numbers=arrays[f"{name}/numbers"], means=means, whitening=whitening, reach=float(reach[0])
            )
        return Domain(weights=artifact.meta["weights"], heads=heads, digest=artifact.digest)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{folder}: is not what this version writes: damaged") from error


def find(choice: str, model: str) -> Domain | None:
    """The statistics for a model: a folder, "auto" (those that came with the package, if any), or "none".

    Raises:
        ConfigError: of another model.  CorruptFileError: damaged.
    """
    if choice == "none":
        return None
    weights = open_model(model).files["weights.safetensors"]["sha256"]
    if choice != "auto":
        found = load(Path(choice))
        if found.weights != weights:
            raise ConfigError(f"{choice}: is of other weights ({found.weights[:12]}) than {model}'s ({weights[:12]})")
        return found
    for folder in sorted(path.parent for path in PACKAGED.glob(f"*/{MANIFEST}")):
        if (found := load(folder)).weights == weights:
            return found
    return None
