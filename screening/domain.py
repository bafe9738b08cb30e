"""How far a structure lies from a head's training data, by what the encoder says about it.

The scalar features of the atoms, averaged over the structure, are compared with those of the training structures: the
Mahalanobis distance, with a covariance that is shrunk as Ledoit and Wolf do (DOI 10.1016/S0047-259X(03)00096-4).  It is
given in units of the distance that 99 % of the training structures are within, so 1 is the edge of what is known.

The statistics are an artifact of their own (`gfm domain`), made for the weights of one model; those of packaged models come
with the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from ase import Atoms

from gfm_calc.artifacts import MANIFEST, commit, open_artifact
from gfm_calc.checkpoint import open_model
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel

KIND, FORMAT_VERSION = "domain", 1
PACKAGED = Path(__file__).resolve().parent / "domains"
FEWEST = 20  # structures of a head, below which there is nothing to compare with
_EDGE = 99.0  # per cent of the training structures
_ATOMS = 2048  # of a batch


@dataclass(frozen=True, kw_only=True)
class HeadDomain:
    """Of one head: `mean` [F] and `whitening` [F, F] of the averaged features, `reach`, the distance that is called 1."""

    mean: np.ndarray
    whitening: np.ndarray
    reach: float

    def distances(self, features: np.ndarray) -> np.ndarray:
        """[B] of averaged features [B, F]; 1 is the edge of the training data."""
        return np.linalg.norm((features - self.mean) @ self.whitening, axis=1) / self.reach


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Statistics for the model with `weights` (their SHA-256); `heads` without are not compared.  `digest`, of the whole."""

    weights: str
    heads: Mapping[str, HeadDomain]
    digest: str = ""

    def distances(self, heads: Sequence[str], features: np.ndarray) -> np.ndarray:
        """[H, B], NaN for heads without statistics."""
        found = np.full((len(heads), len(features)), np.nan)
        for row, head in enumerate(heads):
            if head in self.heads:
                found[row] = self.heads[head].distances(features)
        return found


def fit(features: np.ndarray) -> HeadDomain:
    """From averaged features [n, F] of training structures.

    Raises:
        ConfigError: too few.
    """
    if len(features) < FEWEST:
        raise ConfigError(f"{len(features)} training structures are too few to know a domain by: give {FEWEST} or more")
    mean = features.mean(axis=0)
    covariance = _shrunk(features - mean)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    one = HeadDomain(mean=mean, whitening=whitening, reach=1.0)
    reach = float(np.percentile(one.distances(features), _EDGE))
    return HeadDomain(mean=mean, whitening=whitening, reach=max(reach, np.finfo(float).tiny))


def _shrunk(centred: np.ndarray) -> np.ndarray:
    """The covariance [F, F] of [n, F], moved towards a multiple of the identity as far as its noise calls for."""
    count, size = centred.shape
    covariance = centred.T @ centred / count
    level = np.trace(covariance) / size
    away = np.square(covariance - level * np.eye(size)).sum()
    noise = (np.square(np.square(centred).sum(axis=1)).sum() / count - np.square(covariance).sum()) / count
    share = 1.0 if away <= 0 else float(np.clip(noise / away, 0.0, 1.0))
    tiny = 1e-10 * level + np.finfo(float).tiny
    return (1 - share) * covariance + (share * level + tiny) * np.eye(size)


@contextmanager
def features_seen(model: GFMModel):
    """A list to which every batch that the (uncompiled) model predicts in the block adds the features [N, F] of its atoms."""
    seen: list[torch.Tensor] = []
    handle = model.encoder.register_forward_hook(lambda module, given, found: seen.append(found[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def averaged(features: torch.Tensor, batch: GraphBatch) -> np.ndarray:
    """[B, F] float64 from the features [N, F] of a batch's atoms."""
    ptr = batch.ptr.numpy()
    return np.add.reduceat(features.to("cpu", torch.float64).numpy(), ptr[:-1]) / np.diff(ptr)[:, None]


def encoded(model: GFMModel, batch: GraphBatch) -> torch.Tensor:
    """Features [N, F] of a batch's atoms, by a pass of their own."""
    with torch.no_grad():
        return model.encode(model.inputs(batch)).scalars


def features_of(model: GFMModel, structures: Iterable[Atoms]) -> np.ndarray:
    """Averaged features [n, F] of structures; those that are unsound are left out."""
    found: list[np.ndarray] = [np.zeros((0, model.config.num_features))]
    held: list[AtomicGraph] = []

    def flush() -> None:
        if held:
            batch = GraphBatch.from_graphs(held)
            found.append(averaged(encoded(model, batch), batch))
            held.clear()

    for atoms in structures:
        try:
            held.append(AtomicGraph.build(atoms, model.config.cutoff))
        except GFMError:
            continue
        if sum(int(graph.num_nodes or 0) for graph in held) > _ATOMS:
            flush()
    flush()
    return np.concatenate(found)


def save(folder: Path, weights: str, heads: Mapping[str, HeadDomain]) -> None:
    """Write the artifact `folder`; float32, which is more than the statistics are good for."""
    arrays = {}
    for name, head in heads.items():
        arrays |= {f"{name}/mean": head.mean.astype(np.float32), f"{name}/whitening": head.whitening.astype(np.float32),
                   f"{name}/reach": np.array([head.reach], np.float32)}  # fmt: skip
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
            mean, whitening, reach = (arrays[f"{name}/{part}"].astype(float) for part in ("mean", "whitening", "reach"))
            heads[name] = HeadDomain(mean=mean, whitening=whitening, reach=float(reach[0]))
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
