"""The log of a run: a line a step, as JSON lines and as a table; and the lines on the terminal."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from gfm_calc.errors import MissingDependencyError

_FLUSH = 1.0  # seconds
_LINES = 10.0  # seconds between lines for people


Say = Callable[[str], None]


def aloud(line: str) -> None:
    """A line for the terminal, at once."""
    print(line, flush=True)


class RunLog:
    """RUN/log.jsonl and RUN/log.csv; what was logged after a checkpoint is dropped when the run goes on from there.

    A line has at least `step`, `loss`, `head_losses` {head: its part of the loss}, `lr`, `grad_norm`, `structures_per_s`;
    a line of a validation has `step` and `validation` {head: errors}.  RUN/events holds the same for TensorBoard, if wanted.

    Args:
        folder: of the run.
        heads: names, in the order of the table's columns.
        step: the step that the run goes on from.
        active: False makes a log that does nothing, for processes that do not write.
        tensorboard: write events, too.
        say: gets a line now and then, for the terminal.

    Raises:
        MissingDependencyError: `tensorboard` without the package of that name.
    """

    def __init__(
        self, folder: Path, heads: Sequence[str], step: int, *, active: bool = True, tensorboard: bool = False,
        say: Say = aloud,
    ):  # fmt: skip
        self._say = say
        self._files: list[TextIO] = []
        self._events: Any = None
        self._heads = list(heads)
        self._flushed = self._shown = time.monotonic()
        if not active:
            return
        if tensorboard:
            self._events = _event_writer(folder / "events", step)
        lines, table = folder / "log.jsonl", folder / "log.csv"
        _cut(lines, step, lambda line: json.loads(line)["step"])
        _cut(table, step, lambda line: -1 if line.startswith("step") else int(line.split(",")[0]))
        is_new = not table.exists() or table.stat().st_size == 0
        self._files = [open(lines, "a", encoding="utf-8"), open(table, "a", encoding="utf-8", newline="")]
        self._table = csv.writer(self._files[1], lineterminator="\n")
        if is_new:
            self._table.writerow(["step", "loss", "lr", "grad_norm", "structures_per_s", *self._heads])

    def step(self, line: Mapping[str, Any]) -> None:
        """Log a step."""
        if not self._files:
            return
        self._files[0].write(_line(line))
        row = [line[name] for name in ("step", "loss", "lr", "grad_norm", "structures_per_s")]
        self._table.writerow(row + [line["head_losses"].get(head, "") for head in self._heads])
        if self._events is not None:
            self._add_events(
                line["step"], {name: line[name] for name in ("loss", "lr", "grad_norm", "structures_per_s")}
            )
            self._add_events(line["step"], {f"loss/{head}": loss for head, loss in line["head_losses"].items()})
        now = time.monotonic()
        if now - self._flushed > _FLUSH:
            self.flush()
        if now - self._shown > _LINES:
            self._shown = now
            rate = f"{line['structures_per_s']:.0f} structures/s"
            self._say(f"step {line['step']}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  {rate}")

    def validation(self, step: int, errors: Mapping[str, Mapping[str, float]], score: float) -> None:
        """Log a validation."""
        if self._files:
            self._files[0].write(_line({"step": step, "validation": errors, "score": score}))
            if self._events is not None:
                self._add_events(step, {"score": score})
                for head, row in errors.items():
                    self._add_events(step, {f"{name}/{head}": value for name, value in row.items()})
            self.flush()
            self._say(f"step {step}  validation {score:.4f}")

    def _add_events(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand what was logged to the system."""
        for handle in self._files:
            handle.flush()
        if self._events is not None:
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        for handle in self._files:
            handle.close()
        if self._events is not None:
            self._events.close()
        self._files, self._events = [], None


def require_tensorboard() -> None:
    """MissingDependencyError where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise MissingDependencyError("run.tensorboard needs tensorboard: pip install tensorboard")


def _event_writer(folder: Path, step: int) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)  # later events are of a run that was cut off


def _line(values: Mapping[str, Any]) -> str:
    """A line of JSON, in which null stands for what is not finite (the loss of a step that was skipped)."""
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of RUN/log.jsonl; a last one that was cut off is left out."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle if line.endswith("\n")]


def _cut(path: Path, step: int, step_of) -> None:
    """Drop what comes after a step, and a last line that was cut off."""
    if not path.exists():
        return
    keep = 0
    with open(path, "rb") as handle:
        for line in handle:
            try:
                if not line.endswith(b"\n") or step_of(line.decode()) > step:
                    break
            except (ValueError, KeyError, TypeError):
                print(f"gfm: warning: {path}: damaged after {keep} bytes; what comes then is dropped", flush=True)
                break
            keep += len(line)
    with open(path, "rb+") as handle:
        handle.truncate(keep)
