"""Why a run shall end before its last step: a signal, or its time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """What asks this process to stop.

    Args:
        max_minutes: from now on; None: no limit.
    """

    def __init__(self, max_minutes: float | None):
        self._ends = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal = ""

    @property
    def reason(self) -> str:
        """The signal, or "out of time", or ""."""
        out_of_time = self._ends is not None and time.monotonic() > self._ends
        return self._signal or ("out of time" if out_of_time else "")

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are heard while the block lasts; a second one does what it did before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def asked(number: int, frame: Any) -> None:
            self._signal = signal.Signals(number).name
            signal.signal(number, kept[number])

        for number in kept:
            signal.signal(number, asked)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
