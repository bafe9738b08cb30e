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
_OFTEN = 60.0  # s: a counter comes round after minutes at most powers
_PASSES = 9  # forward, its gradient, and the backward of both, in units of a forward: about 3 x 3


class Telemetry:
    """Counters of one process.  On a GPU the phases tell when work was handed over, not when it was done."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = {"steps": 0, "structures": 0, "atoms": 0, "edges": 0}
        self.operations = 0.0
        self._since = time.perf_counter()
        self._packages, self._asked = Packages(), self._since

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
        if time.perf_counter() - self._asked > _OFTEN:
            self._asked = time.perf_counter()
            self._packages.joules()

    def report(self, bytes_sent: int, communication: float) -> dict[str, Any]:
        """Everything, as JSON: totals of this process since it started."""
        wall = time.perf_counter() - self._since
        seconds = {**self.seconds, "communication": communication}
        seconds["other"] = max(0.0, wall - sum(seconds.values()))
        steps = max(1, self.counts["steps"])
        energy = self._packages.joules()
        found: dict[str, Any] = {
            "wall_s": wall, "seconds": seconds, **self.counts,
            "structures_per_s": self.counts["structures"] / wall, "atoms_per_s": self.counts["atoms"] / wall,
            "edges_per_s": self.counts["edges"] / wall, "bytes_sent": bytes_sent, "bytes_sent_per_step": bytes_sent / steps,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT,
            "estimated_flops": self.operations, "estimated_flops_per_s": self.operations / wall,
            "energy_j": energy, "energy_source": "not readable here" if energy is None else "RAPL, packages",
        }  # fmt: skip
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["peak_device_bytes"] = torch.cuda.max_memory_allocated()
        return found


def operations_of(config: ModelConfig, atoms: int, edges: int, *, mechanical: bool) -> float:
    """Floating-point operations of a training step on a batch, estimated from the matrix products and the edge arithmetic.

    A forward pass of PaiNN: per layer and atom 2 e F² (1 + 3) (source), 2 * 3 F * 2 F (mix), 2 e F² (2 + 3) (gate), e the
    expansion; per layer and edge 2 * 3 F R (filter) and some 20 F (products and sums).  With forces, nine times that; else three
    times.
    """
    width, radial = config.num_features, config.num_radial
    per_atom = 2 * width * width * (6 + 9 * config.expansion)
    per_edge = 6 * width * radial + 20 * width
    heads = 2 * width * config.head_width
    forward = config.num_layers * (atoms * per_atom + edges * per_edge) + atoms * heads
    return forward * (_PASSES if mechanical else 3)


def _is_package(zone: Path) -> bool:
    """Not the whole platform, of which packages are a part."""
    name = zone / "name"
    return not name.exists() or name.read_text().startswith("package")


class Packages:
    """Energy of the processor packages since it was made, J, from counters that begin again at zero, some within the hour."""

    def __init__(self, folder: Path = _RAPL):
        # intel-rapl:0:0 and the like are parts of intel-rapl:0.
        zones = [
            path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1 and _is_package(path)
        ]
        self._counters = [(zone / "energy_uj", zone / "max_energy_range_uj") for zone in zones]
        self._joules, self._last = 0.0, self._read()

    def joules(self) -> float | None:
        """None where they cannot be read.  To be asked before a counter has come round twice."""
        now = self._read()
        if self._last is None or now is None:
            return None
        self._joules += sum((after - before) % span for (before, span), (after, _) in zip(self._last, now)) / 1e6
        self._last = now
        return self._joules

    def _read(self) -> list[tuple[int, int]] | None:
        """(Counter, what it counts to) of each package, µJ."""
        try:
            found = [(int(counter.read_text()), int(span.read_text()) + 1) for counter, span in self._counters]
        except (OSError, ValueError):
            return None
        return found or None
