"""Splits on the disk: a JSON file that names what is held out and carries hashes of all ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..artifacts import canonical_json, sha256, write_file
from ..errors import CorruptFileError, GFMError, InputFileError, UnsupportedVersionError, one_line
from .splits import SIDES, Split

KIND = "gfm-split"
FORMAT_VERSION = 1
_MAX_BYTES = 1 << 28


def save_split(path: Path, split: Split, census: Mapping[str, Any]) -> None:
    """Write a split in one step.

    Args:
        census: what went where, see `FrameTable.census`; kept beside the split.

    Raises:
        GFMError: the disk refuses.
    """
    body = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "seed": split.seed,
        "by": split.by,
        "fractions": dict(split.fractions),
        "groups": {side: sorted(g for g, s in split.groups.items() if s == side) for side in (*SIDES, "unused")},
        "frames": {side: sorted(f for f, s in split.frames.items() if s == side) for side in (*SIDES, "unused")},
        "unlisted": split.unlisted,
        **census,
    }
    try:
        write_file(Path(path), canonical_json({**body, "self_sha256": sha256(canonical_json(body))}))
    except OSError as error:
        raise GFMError(f"{path}: could not be written ({one_line(error)})") from error


def load_split(path: Path | str) -> Split:
    """Read a split.

    Raises:
        InputFileError: missing, or no split.
        CorruptFileError: changed since it was written.
        UnsupportedVersionError: of a newer format.
    """
    return split_of(read_split_file(path), path)


def read_split_file(path: Path | str) -> dict[str, Any]:
    """The checked content of a split file; raises as `load_split`."""
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputFileError(f"{path}: too large for a split")
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not valid JSON ({one_line(error)}): no split, or damaged") from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise InputFileError(f"{path}: no split of gfm-calc")
    version = body.get("format_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"{path}: split format {version} is newer than {FORMAT_VERSION}: upgrade gfm-calc"
        )
    stated = body.pop("self_sha256", None)
    try:
        sound = stated == sha256(canonical_json(body))
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise CorruptFileError(f"{path}: its checksum does not match: damaged, or edited by hand")
    return body


def split_of(body: Mapping[str, Any], path: Path | str) -> Split:
    """The split in a checked file."""
    try:
        return Split(
            seed=int(body["seed"]),
            by=str(body["by"]),
            fractions={str(k): float(v) for k, v in body["fractions"].items()},
            groups={str(name): side for side, names in body["groups"].items() for name in names},
            frames={str(name): side for side, names in body["frames"].items() for name in names},
            unlisted=str(body["unlisted"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(f"{path}: lacks a part of a split ({one_line(error)})") from error


def read_names(path: Path, sources: Iterable[str]) -> list[str]:
    """An official list: a name a line (group, 'file:frame', or a frame number where there is one input file).

    Raises:
        InputFileError: missing, empty, or bare frame numbers with several input files.
    """
    sources = list(sources)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: cannot be read ({one_line(error)})") from error
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputFileError(f"{path}: not valid JSON ({one_line(error)})") from error
        if not isinstance(values, list):
            raise InputFileError(f"{path}: should hold one list of names or frame numbers")
        names = [str(value) for value in values]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not names:
        raise InputFileError(f"{path}: holds no names")
    if any(name.isdigit() for name in names):
        if len(sources) != 1:
            raise InputFileError(f"{path}: bare frame numbers need a single input file; write file:frame")
        names = [f"{sources[0]}:{name}" if name.isdigit() else name for name in names]
    return names
