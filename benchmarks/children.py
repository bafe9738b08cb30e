"""Processes that a benchmark starts together: none outlives it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def children() -> Iterator[list[subprocess.Popen]]:
    """A list for processes as they are started; those that still run when the block ends, however it does, are killed."""
    started: list[subprocess.Popen] = []
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for process in started:
            process.wait()
