"""What a run costs: time by phase, rates, bytes, memory, energy, operations.  Nothing waits for the sake of a figure."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gfm_calc.config import ModelConfig

PHASES = ("data", "forward", "backward", "communication", "update", "validation")
_RSS_UNIT = 1 if platform.system() == "Darwin" else 1024  # bytes
_RAPL = Path("/sys/class/powercap")
_PASSES = 9  # forward, its gradient, and the backward of both, in units of a forward: about 3 x 3


class Telemetry:
    """Counters of one process.  On a GPU the phases tell when work was handed over, not when it was done."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = {"steps": 0, "structures": 0, "atoms": 0, "edges": 0}
        self.operations = 0.0
        self._since = time.perf_counter()
        self._energy = _joules()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - since

    def batch(self, structures: int, atoms: int, edges: int, operations: float) -> None:
        """Count a batch."""
        for name, value in (("structures", structures), ("atoms", atoms), ("edges", edges)):
            self.counts[name] += value
        self.operations += operations

    def report(self, bytes_sent: int, communication: float) -> dict[str, Any]:
        """Everything, as JSON: totals of this process since it started."""
        wall = time.perf_counter() - self._since
        seconds = {**self.seconds, "communication": communication}
        seconds["other"] = max(0.0, wall - sum(seconds.values()))
        steps = max(1, self.counts["steps"])
        before, now = self._energy, _joules()
        found: dict[str, Any] = {
            "wall_s": wall, "seconds": seconds, **self.counts,
            "structures_per_s": self.counts["structures"] / wall, "atoms_per_s": self.counts["atoms"] / wall,
            "edges_per_s": self.counts["edges"] / wall, "bytes_sent": bytes_sent, "bytes_sent_per_step": bytes_sent / steps,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT,
            "estimated_flops": self.operations, "estimated_flops_per_s": self.operations / wall,
            "energy_j": None if before is None or now is None else now - before,
            "energy_source": "RAPL, packages" if before is not None else "not readable here",
        }  # fmt: skip
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["peak_device_bytes"] = torch.cuda.max_memory_allocated()
        return found


def operations_of(config: ModelConfig, atoms: int, edges: int, *, mechanical: bool) -> float:
    """Floating-point operations of a training step on a batch, estimated from the matrix products and the edge arithmetic.

    A forward pass of PaiNN: per layer and atom 2 F² (1 + 3) (source), 2 * 3 F * 2 F (mix), 2 F² (2 + 3) (gate); per layer and
    edge 2 * 3 F R (filter) and some 20 F (products and sums).  With forces, nine times that; else three times.
    """
    width, radial = config.num_features, config.num_radial
    per_atom = 2 * width * width * (4 + 6 + 5)
    per_edge = 6 * width * radial + 20 * width
    heads = 2 * width * config.head_width
    forward = config.num_layers * (atoms * per_atom + edges * per_edge) + atoms * heads
    return forward * (_PASSES if mechanical else 3)


def _joules() -> float | None:
    """Energy that the processor packages have used, J; None where it cannot be read."""
    total, found = 0.0, False
    for path in sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj")) if _RAPL.is_dir() else ():
        try:
            total += int(path.read_text()) / 1e6
            found = True
        except (OSError, ValueError):
            return None
    return total if found else None
