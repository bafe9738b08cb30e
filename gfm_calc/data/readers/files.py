"""Opening the user's files: compressed or not, text or bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def bare_suffix(path: Path) -> str:
    """The suffix that tells the format, compression left aside ('.json' for x.json.bz2), in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in _OPENERS), "")


def open_text(path: Path) -> TextIO:
    """The text of a file, decompressed as it is read."""
    return _OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8")


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed as they are read."""
    return _OPENERS.get(path.suffix.lower(), open)(path, "rb")
