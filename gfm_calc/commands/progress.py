"""Progress: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_BAR = 24
_REFRESH = 0.1  # seconds between redraws of the bar
_PLAIN = 10.0  # seconds between plain lines


class Progress:
    """Counts steps on stderr; use it as a context manager.

    Args:
        label: what is being done ("predict").
        unit: what is counted ("structures").
        total: how many there will be, where that is known.
    """

    def __init__(self, label: str, unit: str, total: int | None = None):
        self.label, self.unit, self.total = label, unit, total
        self.done = 0
        self.note = ""
        self._started = self._shown = time.monotonic()
        self._bar = sys.stderr.isatty()
        self._width = 0

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count `by` more; `note` is shown at the end of the line."""
        self.done += by
        self.note = note
        now = time.monotonic()
        if now - self._shown >= (_REFRESH if self._bar else _PLAIN):
            self._shown = now
            self._show()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
        if kind is None:
            self._bar = False
            self._show()

    def _show(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        of = f"/{self.total}" if self.total is not None else ""
        rate = self.done / seconds
        text = f"{self.label}: {self.done}{of} {self.unit}, {seconds:.0f} s, {rate:.3g}/s"
        if self._bar and self.total:
            filled = min(_BAR, _BAR * self.done // self.total)
            text = f"{self.label} |{'#' * filled}{'.' * (_BAR - filled)}| {self.done}{of} {rate:.3g}/s"
        text += f"  {self.note}" if self.note else ""
        if self._bar:
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
