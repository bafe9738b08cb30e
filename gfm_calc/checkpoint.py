"""Saved models: a directory of safetensors and JSON under one manifest (see `artifacts`).

    manifest.json   kind, format version, size and SHA-256 of each of:
    config          the shared part (`ModelConfig`)
    heads           the head cards (`HeadSpec`), in the order of the weights
    weights         safetensors
    uncertainty     safetensors and JSON: what the model expects its errors to be (see `uncertainty`), where it knows
    golden          structures with the numbers this model gave when it was saved, for `gfm doctor`
    provenance      how it came to be

Nothing is unpickled; nothing in a file is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from . import artifacts
from .config import HeadSpec, ModelConfig, from_mapping, to_mapping
from .errors import ConfigError, CorruptFileError, GFMError, did_you_mean, one_line
from .heads import WIDTHS
from .model import GFMModel
from .uncertainty import SHAPES, ErrorHeads

KIND = "model"
FORMAT_VERSION = 9
PACKAGED = Path(__file__).resolve().parent / "models"

# {version: function that turns the JSON parts of that version into those of the next}.  A format change adds an entry
# here, a golden directory under tests/golden and a line in the CHANGELOG.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda parts: parts,  # 2 may hold an uncertainty
    2: lambda parts: parts,  # 3 may have a norm
    3: lambda parts: parts,  # 4 may hold expected errors of properties
    4: lambda parts: (
        parts
    ),  # in 5 heads of properties see all layers and are wider, see `_widened`, and may have landmarks
    5: lambda parts: parts,  # 6 may have properties with a stiffness
    6: lambda parts: parts,  # 7 may have landmarks of a sum
    7: lambda parts: parts,  # 8 may have properties that are never negative
    8: lambda parts: parts,  # 9 may have wider networks within an atom
}
_UNCERTAINTY = "uncertainty.safetensors"
_SEES_LAYERS, _OF_PROPERTY = 5, re.compile(r"properties\.\d+\.net\.(.+)")


def save_model(model: GFMModel, directory: Path | str, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Save `model` atomically; a model that is there is replaced in one step.

    Golden predictions are computed and kept for `gfm doctor`.  `model.model_id` becomes the id of what was saved.

    Args:
        directory: new, empty, or holding an older model.
        provenance: JSON values: recipe, versions, data, command.

    Raises:
        GFMError: the directory holds other files, or the disk refused.
    """
    from .selfcheck import golden_record

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files: dict[str, bytes] = {
        "config.json": artifacts.canonical_json(to_mapping(model.config)),
        "heads.json": artifacts.canonical_json([to_mapping(spec) for spec in model.specs.values()]),
        "weights.safetensors": safetensors.torch.save(state),
        "golden.json": artifacts.canonical_json(golden_record(model)),
        "provenance.json": artifacts.canonical_json(dict(provenance or {})),
    }
    if model.uncertainty is not None:
        errors = {name: tensor.cpu().contiguous() for name, tensor in model.uncertainty.tensors.items()}
        files[_UNCERTAINTY] = safetensors.torch.save(errors)
        files["uncertainty.json"] = artifacts.canonical_json(_entries(model.uncertainty))
    artifacts.commit(Path(directory), files, kind=KIND, format_version=FORMAT_VERSION)
    model.model_id = open_model(directory).digest[:16]


def open_model(model: Path | str) -> artifacts.Artifact:
    """The verified artifact behind a packaged name or a directory; no tensor is touched."""
    return artifacts.open_artifact(resolve(model), kind=KIND, newest_version=FORMAT_VERSION)


@torch.inference_mode(False)  # weights made in it could never be differentiated through
def load_model(model: Path | str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> GFMModel:
    """Load a packaged model by name or a saved one by directory.

    Args:
        dtype: torch.float32 or torch.float64; None keeps that of the file.
        device: where the weights go.

    Raises:
        GFMError: no such model.
        CorruptFileError: any part is missing, damaged or does not fit the others.
        UnsupportedVersionError: of a newer format.
    """
    artifact = open_model(model)
    artifact.verify()  # also what is not used below: damage in one file is a reason to trust none
    parts = _json_parts(artifact)
    try:
        config = from_mapping(ModelConfig, parts["config"], f"{artifact.directory}: config")
        if not isinstance(parts["heads"], list):
            raise ConfigError(f"{artifact.directory}: heads: expected a list")
        specs = [
            from_mapping(HeadSpec, head, f"{artifact.directory}: head {k}") for k, head in enumerate(parts["heads"])
        ]
        with torch.random.fork_rng(devices=[]):  # building the modules must not move the user's random numbers
            built = GFMModel(config, specs)
    except GFMError as error:
        where = "" if str(artifact.directory) in str(error) else f"{artifact.directory}: "
        raise CorruptFileError(f"{where}{error}") from error
    state = _read_weights(artifact)
    if artifact.format_version < _SEES_LAYERS:
        state = _widened(state, config)
    _check_weights(state, built.state_dict(), artifact)
    built.to(state["energy_stack.hidden"].dtype)
    built.load_state_dict(state)
    built.uncertainty = _read_uncertainty(artifact, built)
    built.model_id = artifact.digest[:16]
    built.requires_grad_(False)
    return built.eval().to(device=device, dtype=dtype)


def read_golden(model: Path | str) -> Any:
    """The golden record of a saved model (see `selfcheck`)."""
    return open_model(model).read_json("golden.json")


def describe(model: Path | str) -> dict[str, Any]:
    """Config, head cards, provenance, format and id of a saved model, and what the fit of its expected errors said (a list, of
    heads that know theirs), as plain JSON values; no tensor is loaded."""
    artifact = open_model(model)
    parts = _json_parts(artifact)
    size = sum(entry["size"] for entry in artifact.files.values())
    return {
        "directory": str(artifact.directory), "model_id": artifact.digest[:16], "bytes": size,
        "format_version": artifact.format_version, **parts, "provenance": artifact.read_json("provenance.json"),
        "uncertainty": artifact.read_json("uncertainty.json") if _UNCERTAINTY in artifact.files else [],
    }  # fmt: skip


def list_models() -> list[str]:
    """Names of the packaged models."""
    return sorted(p.name for p in PACKAGED.iterdir() if (p / artifacts.MANIFEST).is_file()) if PACKAGED.is_dir() else []


def resolve(model: Path | str) -> Path:
    """The directory of a packaged name or of a path; GFMError with the nearest name where there is neither."""
    if not isinstance(model, (str, Path)):
        raise GFMError(f"a model is a packaged name or a directory, not {type(model).__name__}")
    packaged = list_models()
    if str(model) in packaged:
        return PACKAGED / str(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    raise GFMError(
        f"no model {str(model)!r}: neither packaged nor a directory{did_you_mean(model, packaged)}; "
        f"packaged: {', '.join(packaged) or 'none'}"
    )


def subset(model: GFMModel, heads: list[str]) -> GFMModel:
    """A new model that keeps only `heads` (in that order) and the shared encoder."""
    specs = [model.spec(head) for head in heads]
    with torch.random.fork_rng(devices=[]):
        smaller = GFMModel(model.config, [replace(spec) for spec in specs]).to(model.dtype)
    rows = torch.tensor([model.energy_heads.index(h) for h in smaller.energy_heads], dtype=torch.int64)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("energy_stack."):
            state[name] = tensor.index_select(0, rows)
        elif not name.startswith("properties."):
            state[name] = tensor
    for new, head in enumerate(smaller.property_heads):
        old = f"properties.{model.property_heads.index(head)}."
        state |= {n.replace(old, f"properties.{new}."): t for n, t in model.state_dict().items() if n.startswith(old)}
    smaller.load_state_dict(state)
    smaller.uncertainty = None if model.uncertainty is None else model.uncertainty.only(heads)
    return smaller.requires_grad_(False).eval()


def _json_parts(artifact: artifacts.Artifact) -> dict[str, Any]:
    parts = {"config": artifact.read_json("config.json"), "heads": artifact.read_json("heads.json")}
    for version in range(artifact.format_version, FORMAT_VERSION):
        if version not in MIGRATIONS:
            raise CorruptFileError(f"{artifact.directory}: claims format {version}, which never existed")
        parts = MIGRATIONS[version](parts)
    return parts


def _read_weights(artifact: artifacts.Artifact, name: str = "weights.safetensors") -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(artifact.read(name))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(
            f"{artifact.directory}: {name.split('.')[0]}: not valid safetensors ({one_line(error)})"
        ) from error


def _widened(state: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights of heads of properties that saw the last layer alone, with fewer hidden units, as those of now: the same numbers.

    Units that are new see what the old ones see and say nothing: with weights of zero throughout they could not learn.  Shapes
    that are wrong stay so.
    """
    layers, units = (config.num_layers - 1) * config.num_features, (WIDTHS - 1) * config.head_width
    found = dict(state)
    for name, tensor in state.items():
        part = _OF_PROPERTY.fullmatch(name)
        if part and part[1] == "0.weight" and tensor.ndim == 2:
            found[name] = torch.nn.functional.pad(tensor, (layers, 0)).repeat(WIDTHS, 1)
        elif part and part[1] == "0.bias" and tensor.ndim == 1:
            found[name] = tensor.repeat(WIDTHS)
        elif part and part[1] == "2.weight" and tensor.ndim == 2:
            found[name] = torch.nn.functional.pad(tensor, (0, units))
    return found


def _entries(uncertainty: ErrorHeads) -> list[dict[str, Any]]:
    """The figures, as a list: JSON objects are sorted, and the order of the stack counts."""
    return [{"head": head, **entry} for head, entry in uncertainty.figures.items()]


def _read_uncertainty(artifact: artifacts.Artifact, built: GFMModel) -> ErrorHeads | None:
    if _UNCERTAINTY not in artifact.files:
        return None
    state = _read_weights(artifact, _UNCERTAINTY)
    entries = artifact.read_json("uncertainty.json")
    sound = isinstance(entries, list) and all(isinstance(e, dict) and _may_have_uncertainty(built, e) for e in entries)
    figures = {e["head"]: {k: v for k, v in e.items() if k != "head"} for e in entries} if sound else {}
    if not figures or len(figures) != len(entries):
        raise CorruptFileError(f"{artifact.directory}: uncertainty: not of heads of this model")
    heads, inputs = len(figures), 2 * built.config.num_features
    # The only sizes that config and heads do not tell: networks a head, and their width.
    bias = state.get("hidden_bias")
    members, width = (max(1, size) for size in (bias.shape[1:] if bias is not None and bias.ndim == 3 else (1, 1)))
    shapes = [(heads, members, inputs, width), (heads, members, width), (heads, members, width, 2), (heads, members, 2)]
    empty = {name: torch.empty(shape, device="meta") for name, shape in zip(SHAPES, shapes)}
    _check_weights(state, empty, artifact)
    return ErrorHeads(state, figures).to(built.dtype)


def _may_have_uncertainty(built: GFMModel, entry: Mapping[str, Any]) -> bool:
    """Whether an entry of uncertainty.json is one of a head of energies, or of a property with a unit that its errors are in."""
    if entry.get("head") in built.energy_heads:
        return True
    unit = entry.get("unit")
    number = isinstance(unit, int | float) and not isinstance(unit, bool) and 0 < unit < math.inf
    return number and entry.get("head") in built.property_heads and built.specs[entry["head"]].kind != "class"


def _check_weights(
    state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], artifact: artifacts.Artifact
) -> None:
    """Names, shapes and values must be those that config and heads call for."""

    def corrupt(reason: str):
        raise CorruptFileError(f"{artifact.directory}: {reason}; config, heads and weights do not belong together")

    for name in wanted.keys() - state.keys():
        corrupt(f"weight {name} is missing")
    for name in state.keys() - wanted.keys():
        corrupt(f"weight {name} is unknown")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            corrupt(f"weight {name} has shape {list(tensor.shape)}, expected {list(wanted[name].shape)}")
        if tensor.dtype not in (torch.float32, torch.float64):
            corrupt(f"weight {name} is {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            corrupt(f"weight {name} holds NaN or inf")
