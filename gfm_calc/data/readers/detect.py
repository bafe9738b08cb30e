"""Which format a file has: by its name, and where that leaves a choice by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import InputFileError
from .files import bare_suffix, open_bytes

_BY_SUFFIX = {
    ".xyz": "extxyz", ".extxyz": "extxyz", ".traj": "traj", ".db": "ase-db", ".aselmdb": "ase-lmdb", ".lmdb": "ase-lmdb",
    ".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".tfrecord": "tfrecord",
}  # fmt: skip
_PICKLED = (".pkl", ".pickle", ".p", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
_HEAD = 1 << 16


def format_of(path: Path) -> str:
    """The name of the format of a file.

    Raises:
        InputFileError: a file that could only be unpickled, or JSON of no layout that is known.
    """
    suffix = bare_suffix(path)
    if suffix in _PICKLED:
        raise InputFileError(
            f"{path}: a pickled file; unpickling runs code, so it is not read: convert it to extxyz, npz or HDF5"
        )
    if suffix == ".npy":
        raise InputFileError(f"{path}: one array without names: give an .npz with elements, positions and labels")
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if ".tfrecord" in path.name.lower():  # name.tfrecord-00000-of-01024
        return "tfrecord"
    if suffix == ".xml" and "vasprun" in path.name.lower():
        return "vasprun"
    if re.match(r"outcar", path.name, re.IGNORECASE):
        return "outcar"
    if suffix == ".json":
        return _json_layout(path)
    return "ase"


def _json_layout(path: Path) -> str:
    with open_bytes(path) as handle:
        head = handle.read(_HEAD).decode("utf-8", "replace").lstrip()
    if re.match(r'\{\s*"entries"\s*:', head) or re.match(r'\{\s*"[^"]*"\s*:\s*\[\s*\{', head):
        return "alexandria"
    if re.match(r'\{\s*"[^"]*"\s*:\s*\{\s*"[^"]*"\s*:\s*\{', head) and "uncorrected_total_energy" in head:
        return "mptrj"
    if '"unique_id"' in head and '"numbers"' in head:
        return "ase-json"
    if head.startswith("{") and re.match(r"\{[^\n]*\}\s*\n\s*\{", head):
        return "jsonl"
    raise InputFileError(
        f"{path}: JSON of no layout that is known: say which with --format (alexandria, mptrj, ase-json, jsonl)"
    )
