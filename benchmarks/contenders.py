"""A contender of a benchmark as a child process that answers JSON lines (see `peers.measure`)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gfm_calc
from gfm_calc.errors import GFMError


class ProcessEndedError(GFMError):
    """The process of a contender is gone, or does not say what it should: nothing that it was asked tells of its model."""


class Process:
    """A contender under way: JSON lines in and out."""

    def __init__(self, name: str, command: Sequence[str], threads: int):
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)  # a peer finds what its own environment has
        if any(word.startswith("gfm_calc.") for word in command):
            # A checkout need not be installed for its child processes to find it.
            environment["PYTHONPATH"] = str(Path(gfm_calc.__file__).resolve().parent.parent)
        self.stderr = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True, env=environment
            )
        except OSError as error:
            raise GFMError(f"{name}: {command[0]} cannot be run ({error.strerror})") from error
        try:
            self.description = {**self._read(), "key": name}
        except GFMError:
            self.close()
            raise

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one job."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise ProcessEndedError(f"{self.name}: its process ended: {self._last_words()}") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ProcessEndedError(f"{self.name}: its process ended: {self._last_words()}")
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            self.process.kill()  # the answer that is still to come would be taken for that to the next job
            self.process.wait()
            raise ProcessEndedError(f"{self.name}: its process printed {line.strip()[:100]!r} where an answer was due")
        return found

    def _last_words(self) -> str:
        self.process.wait()
        self.stderr.seek(0)
        lines = [line.strip() for line in self.stderr.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {self.process.returncode}"

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.stderr.close()
