"""Faults for training runs and screenings, set up inside the process that shall have them."""

from __future__ import annotations

import os
import signal
import sys
import time


def at_step(step: int, what: str) -> None:
    """Before a step: "kill" or "stop" the process, "raise" an exception, "exit" with code 0, or make the loss "nan"."""
    from gfm_calc.train.trainer import Trainer

    real = Trainer.train_step

    def faulty(self, objective, prepared):
        if self.step != step:
            return real(self, objective, prepared)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "raise":
            raise ValueError("something\nwent wrong")
        elif what == "exit":
            sys.stdout.flush()
            os._exit(0)
        elif what == "nan":
            return real(self, lambda *given: _times(objective(*given), float("nan")), prepared)
        elif what == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, objective, prepared)

    Trainer.train_step = faulty


def _times(found, factor):
    loss, parts = found
    return loss * factor, parts * factor


def at_write(number: int, what: str) -> None:
    """At the N-th write, flush or rename under "checkpoints": "kill" the process, or let the disk refuse ("refuse")."""
    count = 0

    def counted(real):
        def call(*given, **options):
            nonlocal count
            count += 1
            if count == number:
                if what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(28, "No space left on device")
            return real(*given, **options)

        return call

    import gfm_calc.artifacts as artifacts

    class Patched:
        """The module os, three of whose functions count."""

        def __getattr__(self, name):
            return getattr(os, name)

    patched = Patched()
    for name in ("write", "fsync", "replace"):
        setattr(patched, name, counted(getattr(os, name)))
    import gfm_calc.train.state as state

    real_write, real_commit = state.write_file, state.commit

    def inside(real):
        def call(*given, **options):
            artifacts.os = patched
            try:
                return real(*given, **options)
            finally:
                artifacts.os = os

        return call

    state.write_file, state.commit = inside(real_write), inside(real_commit)


def slow(seconds: float) -> None:
    """Every step takes longer."""
    from gfm_calc.train.trainer import Trainer

    real = Trainer.train_step

    def slowly(self, objective, prepared):
        time.sleep(seconds)
        return real(self, objective, prepared)

    Trainer.train_step = slowly


def slow_screening(seconds: float) -> None:
    """Every batch takes longer."""
    from gfm_calc.predictor import Predictor

    real = Predictor.predict_batch

    def slowly(self, graphs):
        time.sleep(seconds)
        return real(self, graphs)

    Predictor.predict_batch = slowly


def full_disk_of_chunks(number: int) -> None:
    """The disk refuses the N-th chunk."""
    import gfm_calc.screening.engine as engine

    real, count = engine.write_once, 0

    def counted(*given):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(28, "No space left on device")
        return real(*given)

    engine.write_once = counted


def full_disk(where: str) -> None:
    """The disk refuses every file below a folder, or of a name, that is called so."""
    import gfm_calc.artifacts as artifacts

    real = artifacts._write_and_sync

    def refusing(path, data):
        if any(where in part for part in path.parts[-3:]):
            raise OSError(28, "No space left on device")
        return real(path, data)

    artifacts._write_and_sync = refusing
