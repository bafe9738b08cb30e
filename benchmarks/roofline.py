"""How near the model comes to what the machine can do: bytes and operations counted, beside measured ceilings.

Every operation that torch runs is counted: the bytes of the tensors that it reads and writes, as if nothing stayed in a
cache, and its floating-point operations.  The ceilings are measured on this machine: a large matrix product, and sums of
arrays, of 256 MB (memory) and of a size like the model's own tensors (caches).  The least time is that of the
slower of the two, bytes at the speed of the caches or operations at that of matrix products; "share" is that over the time taken.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel

_LARGE = 1 << 26  # float32, 256 MB
_SMALL = 1 << 18  # float32, 1 MB
_MATRIX = 1024
_FREE = frozenset(
    "view detach alias t transpose expand slice select unsqueeze squeeze permute split split_with_sizes unbind as_strided "
    "_unsafe_view _reshape_alias empty empty_like new_empty empty_strided".split()
)  # views, and memory that nobody has written to


class Counted(TorchDispatchMode):
    """Counts `bytes` and `flops` of what runs in its block, and both by `operation`."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.flops = 0, 0
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.")
        if name.partition(".")[0] not in _FREE:
            tensors = list(_tensors((args, kwargs, found)))
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.bytes += moved
            self.flops += flops_of(name, args, found)
            self.operations[name.partition(".")[0]] += moved
        return found


def flops_of(name: str, args: Sequence[Any], found: Any) -> int:
    """Of one operation: 2 m n k of a matrix product, what the message step does an edge (see `encoders.painn_message`), and
    one a number of the result of all else."""
    if name.startswith("addmm"):
        return 2 * math.prod(args[1].shape) * args[2].shape[1]
    if name.startswith(("mm", "bmm")):
        return 2 * math.prod(args[0].shape) * args[1].shape[-1]
    if "painn_message" in name:
        backward = "backward" in name
        features, vectors, basis = args[2:5] if backward else args[:3]
        return (2 if backward else 1) * _message_flops(features, vectors, basis)
    return sum(tensor.numel() for tensor in _tensors(found))


def _message_flops(features: torch.Tensor, vectors: torch.Tensor | None, basis: torch.Tensor) -> int:
    parts = 2 if vectors is None else 3
    width = features.shape[1] // parts
    edges, radial = basis.shape
    return edges * width * (2 * parts * radial + parts + 1 + 6 + (0 if vectors is None else 6))


def _tensors(value: Any):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def ceilings(turns: int = 7) -> dict[str, float]:
    """{memory_gb_per_s, cache_gb_per_s, gemm_gflop_per_s} of this process's threads."""
    found = {}
    for name, size, repeats in (("memory_gb_per_s", _LARGE, 1), ("cache_gb_per_s", _SMALL, 256)):
        a, b, c = torch.ones(size), torch.ones(size), torch.empty(size)
        seconds = _median(lambda a=a, b=b, c=c: torch.add(a, b, out=c), turns, repeats)
        found[name] = 12e-9 * size / seconds
    a, b = torch.ones(_MATRIX, _MATRIX), torch.ones(_MATRIX, _MATRIX)
    found["gemm_gflop_per_s"] = 2e-9 * _MATRIX**3 / _median(lambda: a @ b, turns, 4)
    return {name: rounded(value) for name, value in found.items()}


def roofline(model: GFMModel, head: str, graphs: Sequence[AtomicGraph], turns: int) -> dict[str, Any]:
    """{"ceilings": see `ceilings`, "rows": of energies, and of energies and forces, {what, atoms, edges, ms, gb, gflop,
    gb_per_s, gflop_per_s, bound, share, largest}}; "largest": the operations with most bytes, and their part of all."""
    batch = GraphBatch.from_graphs(graphs)
    top = ceilings()
    rows = []
    for what, forces in (("energies", False), ("energies and forces", True)):

        def run(forces: bool = forces) -> None:
            model.predict(batch, [head], forces=forces)

        run()
        with Counted() as count:
            run()
        seconds = _median(run, turns, 1)
        gigabytes, gigaflop = 1e-9 * count.bytes, 1e-9 * count.flops
        least = {"caches": gigabytes / top["cache_gb_per_s"], "matrix products": gigaflop / top["gemm_gflop_per_s"]}
        bound = max(least, key=lambda name: least[name])
        rows.append({
            "what": what, "structures": len(graphs), "atoms": int(batch.num_nodes), "edges": int(batch.edge_index.shape[1]),
            "ms": rounded(1e3 * seconds), "gb": rounded(gigabytes), "gflop": rounded(gigaflop),
            "gb_per_s": rounded(gigabytes / seconds), "gflop_per_s": rounded(gigaflop / seconds), "bound": bound,
            "share": rounded(least[bound] / seconds, 3),
            "largest": {name: rounded(moved / count.bytes, 3) for name, moved in count.operations.most_common(4)},
        })  # fmt: skip
    return {"ceilings": top, "rows": rows}


def _median(call: Callable[[], Any], turns: int, repeats: int) -> float:
    call()
    seconds = []
    for _ in range(turns):
        since = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds.append((time.perf_counter() - since) / repeats)
    return statistics.median(seconds)
