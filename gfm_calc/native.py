"""C++ beside the Python: compiled once, by the compiler of the machine, into the user's own cache.

A wheel cannot hold it, since the best code depends on the processor.  Where there is no compiler, the caller does without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
_COMPILERS = ("g++", "clang++")


@functools.cache
def library(source: Path, **macros: str) -> ctypes.CDLL | None:
    """The shared library of a C++ source, compiled where it is not in the cache yet; None where that cannot be done.

    Args:
        macros: for the preprocessor.
    """
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    folder = _cache()
    if compiler is None or folder is None:
        return None
    try:
        command = [compiler, *_FLAGS, *(f"-D{name}={value}" for name, value in macros.items()), str(source)]
        path = folder / f"{source.stem}-{_key(source, command)}.so"
        if not path.exists():
            _compile(command, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(command: list[str], path: Path) -> None:
    """Write aside, rename: processes that start together do not see half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    try:
        subprocess.run([*command, "-o", name], check=True, capture_output=True, timeout=300)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _key(source: Path, command: list[str]) -> str:
    """Of everything that decides what comes out."""
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, timeout=60).stdout
    digest = hashlib.sha256(source.read_bytes() + version + " ".join(command[1:-1]).encode() + _processor())
    return digest.hexdigest()[:24]


def _processor() -> bytes:
    """What instructions the processor has: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n", 1)[0].splitlines()
        return b"\n".join(line for line in lines if line.split(b"\t")[0] in (b"model name", b"model", b"flags"))
    except OSError:
        return platform.processor().encode()


def _cache() -> Path | None:
    """A folder that nobody else can write to: what lies there is run."""
    try:
        folder = Path.home() / ".cache" / "gfm-calc"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):
        return None
    own = about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if own and os.access(folder, os.W_OK) else None
