"""A performance model of a training step: time to compute, to wait for the slowest process, and to add gradients up.

    t(step) = work / rate * (1 + imbalance(p)) + sums over processes
    sum of n bytes over p processes = min(ring, tree):
        ring 2 (p - 1) latency + 2 (p - 1) / p n / bandwidth          tree 2 log2(p) (latency + n / bandwidth)

As a program (`python -m`), one process of a job that times sums of vectors over its processes.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SIZES = (256, 16384, 262144, 4194304)  # float32 numbers
_ROUNDS = 15
# Of machines that we do not have; written down so that anybody can put in his own.
ASSUMED = {
    "processes_a_machine": 8, "latency_s": 5e-6, "bandwidth_bytes_per_s": 2.0e10, "structures_a_process": 32,
    "rate_factor": 50.0, "encoder_parameters": 1.5e6, "head_parameters": 0.66e6, "heads": 16, "work_spread": 0.5,
}  # fmt: skip


def collective_seconds(output: Path) -> None:
    """Time sums of vectors, and write {bytes: median seconds} (the first process does)."""
    import torch

    from gfm_calc.train.parallel import Ranks, discover

    torch.set_num_threads(1)
    ranks = Ranks(discover(), "cpu")
    found = {}
    for size in _SIZES:
        vector, times = torch.ones(size), []
        for _ in range(_ROUNDS):
            ranks.wait()
            since = time.perf_counter()
            ranks.add_up(vector)
            times.append(time.perf_counter() - since)
            vector.fill_(1.0)
        found[4 * size] = statistics.median(times)
    if ranks.rank == 0:
        output.write_text(json.dumps(found))
    ranks.close()


def calibrate(weak: Sequence[Mapping[str, Any]], sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Rate of one process, and latency and bandwidth of sums over two, from measurements.

    Args:
        weak: rows of the weak scaling, that of one process among them.
        sums: {"processes", "sums": {bytes: seconds}} of each number of processes.
    """
    alone = next(row for row in weak if row["processes"] == 1)
    pairs = next(row["sums"] for row in sums if row["processes"] == 2)
    points = sorted((float(size), float(seconds)) for size, seconds in pairs.items())
    latency = points[0][1] / 2
    bandwidth = points[-1][0] / max(points[-1][1] - points[0][1], 1e-9)
    return {"structures_per_s": alone["structures_per_s"], "latency_s": latency, "bandwidth_bytes_per_s": bandwidth}


def sum_seconds(size: float, processes: float, latency: float, bandwidth: float) -> float:
    """Seconds to add up vectors of `size` bytes over `processes`."""
    if processes <= 1:
        return 0.0
    ring = 2 * (processes - 1) * latency + 2 * (processes - 1) / processes * size / bandwidth
    tree = 2 * math.log2(processes) * (latency + size / bandwidth)
    return min(ring, tree)


def predict_step(machine: Mapping[str, float], row: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step of the weak scaling, predicted and measured; the spread of work between processes is left out."""
    world = row["processes"]
    compute = row["structures_a_step"] / world / machine["structures_per_s"]
    size = 4 * row.get("encoder_parameters", 150_000)
    talk = sum_seconds(size, world, machine["latency_s"], machine["bandwidth_bytes_per_s"])
    if row["mode"] == "separate":
        talk = 0.0
    return {
        "processes": world, "mode": row["mode"], "predicted_s": compute + talk, "measured_s": row["seconds_a_step"],
        "more_processes_than_cores": row["more_processes_than_cores"],
    }  # fmt: skip


def project(machine: Mapping[str, float]) -> dict[str, Any]:
    """Structures a second and efficiency of both modes on up to 2,048 machines, under `ASSUMED`."""
    a = ASSUMED
    rate = machine["structures_per_s"] * a["rate_factor"]
    own = a["structures_a_process"] / rate
    rows = []
    for machines in (1, 8, 64, 512, 2048):
        world = int(machines * a["processes_a_machine"])
        # The largest of p sums of n works with a relative spread s is about s sqrt(2 ln p / n) above their mean.
        wait = own * a["work_spread"] * math.sqrt(2 * math.log(world) / a["structures_a_process"])
        encoder, heads = 4 * a["encoder_parameters"], 4 * a["head_parameters"] * a["heads"]
        talk = (a["latency_s"], a["bandwidth_bytes_per_s"])
        groups = min(world, int(a["heads"]))
        times = {
            "data": own + wait + sum_seconds(encoder + heads, world, *talk),
            "multitask": own + wait + sum_seconds(encoder, world, *talk)
            + sum_seconds(heads / groups, world / groups, *talk),
        }  # fmt: skip
        memory = {"data": 5 * (encoder + heads), "multitask": 5 * (encoder + heads / groups)}
        for mode, seconds in times.items():
            rows.append({
                "machines": machines, "processes": world, "mode": mode, "seconds_a_step": seconds,
                "structures_per_s": world * a["structures_a_process"] / seconds, "efficiency": own / seconds,
                "state_bytes": memory[mode],
            })  # fmt: skip
    return {"assumed": dict(a), "rows": rows}


if __name__ == "__main__":
    collective_seconds(Path(sys.argv[1]))
