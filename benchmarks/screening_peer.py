"""HydraGNN's own fused inference beside ours: the same structures, neighbours and threads, turn by turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from torch.utils.flop_counter import FlopCounterMode

from gfm_calc.benchmarks.contenders import Process
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel

if TYPE_CHECKING:
    from gfm_calc.benchmarks.screening import ScreeningPlan

_SCRIPT = Path(__file__).resolve().parent / "peers" / "hydragnn_screen.py"
# (what is asked, the peer's mode, ours).  A mixture of all heads is what their fused inference gives: one energy, one gradient.
_MATCHES = (("one head", "single", "eager"), ("all heads, one gradient", "fused", "eager"))
_COMPILED = (
    ("one head, compiled", "single-compile", "compiled"),
    ("all heads, one gradient, compiled", "compile", "compiled"),
)


def beside_peer(
    model: GFMModel, structures: Sequence[Atoms], batches: Sequence[GraphBatch], plan: ScreeningPlan
) -> list[dict[str, Any]]:
    """Rows {what, scope, ours_per_s, peer_per_s, ratio, least, largest, ours_gflop, peer_gflop, peer}: structures a second;
    scope "model" begins with batches that have their neighbours, "end to end" with structures.  gflop: of the matrix products
    of a structure, which the two architectures do not have in common: our heads decode atoms, theirs sums over atoms.

    Raises:
        ConfigError: no checkout.  GFMError: the peer does not start, or cannot do what is asked.
    """
    if plan.checkout is None or not plan.checkout.is_dir():
        raise ConfigError("HydraGNN is run from a checkout: name its folder with --checkout, or in HYDRAGNN_CHECKOUT")
    from gfm_calc.benchmarks.screening import lead_model

    models = {"eager": model}
    matches = list(_MATCHES)
    if plan.compile:
        models["compiled"] = lead_model(plan.heads).compile()
        matches.extend(_COMPILED)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "batches.npz"
        write_batches(batches, path)
        command = [str(plan.peer), str(_SCRIPT), "--checkout", str(plan.checkout), "--batches", str(path)]
        peer = Process("HydraGNN", [*command, "--branches", str(plan.heads), "--threads", "1"], 1)
        try:
            rows = []
            with Progress("peer", "rows", 2 * len(matches)) as progress:
                work: dict[str, dict[str, float]] = {}  # of one head, and of all, whether compiled or not
                for what, theirs, ours in matches:
                    runs = _ours(models[ours], structures, batches, what.startswith("one head"))
                    amount = what.partition(",")[0]
                    if amount not in work:  # while nothing is compiled: what is compiled hides its operations
                        work[amount] = _work(runs["model"], _asked(peer, {"job": "count", "mode": theirs}), plan.count)
                    for scope, run in runs.items():
                        job = {"job": "predict", "mode": theirs, "scope": scope}
                        rows.append({"what": what, "scope": scope, **_match(run, peer, job, plan), **work[amount]})
                        progress.advance(note=what)
        finally:
            peer.close()
    about = peer.description
    return [{**row, "peer": {key: about[key] for key in ("name", "version", "torch", "parameters")}} for row in rows]


def _ours(
    model: GFMModel, structures: Sequence[Atoms], batches: Sequence[GraphBatch], one: bool
) -> dict[str, Callable[[], Any]]:
    heads = model.energy_heads
    sizes = [batch.num_graphs for batch in batches]

    def predict(batch: GraphBatch) -> Any:
        if one:
            return model.predict(batch, heads[:1])
        return model.predict_mixture(batch, dict.fromkeys(heads, 1.0 / len(heads)))

    def alone() -> None:
        for batch in batches:
            predict(batch)

    def from_structures() -> None:
        rest = iter(structures)  # in the order of the batches
        for size in sizes:
            graphs = [AtomicGraph.build(next(rest), model.config.cutoff) for _ in range(size)]
            predict(GraphBatch.from_graphs(graphs))

    return {"model": alone, "end to end": from_structures}


def _match(run: Callable[[], Any], peer: Process, job: dict[str, Any], plan: ScreeningPlan) -> dict[str, Any]:
    own, theirs = [], []
    for turn in range(plan.turns + 1):
        since = time.perf_counter()
        run()
        seconds = time.perf_counter() - since
        answer = _asked(peer, job)
        if turn:  # the first warms up
            own.append(seconds)
            theirs.append(float(answer["seconds"]))
    ratios = [b / a for a, b in zip(own, theirs)]
    return {
        "ours_per_s": rounded(plan.count / statistics.median(own)),
        "peer_per_s": rounded(plan.count / statistics.median(theirs)),
        "ratio": rounded(statistics.median(ratios), 3), "least": rounded(min(ratios), 3),
        "largest": rounded(max(ratios), 3),
    }  # fmt: skip


def _asked(peer: Process, job: dict[str, Any]) -> dict[str, Any]:
    answer = peer.ask(job)
    if "error" in answer:
        raise GFMError(f"HydraGNN: {answer['error']}")
    return answer


def _work(run: Callable[[], Any], theirs: dict[str, Any], count: int) -> dict[str, float]:
    with FlopCounterMode(display=False) as counted:
        run()
    return {
        "ours_gflop": rounded(1e-9 * counted.get_total_flops() / count, 3),
        "peer_gflop": rounded(1e-9 * theirs["flops"] / count, 3),
    }


def write_batches(batches: Sequence[GraphBatch], path: Path) -> None:
    """For `peers.steps.read_batches`; labels, which nobody looks at, are zero."""
    arrays: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        structure = batch.batch.numpy()
        cells = batch.cell.numpy()[structure[batch.edge_index[1].numpy()]]
        shifts = np.einsum("ei,eij->ej", batch.edge_cell_shift.numpy().astype(float), cells)
        own = {
            "numbers": batch.atomic_numbers.numpy(), "positions": batch.positions.numpy(), "structure": structure,
            "energy": np.zeros(batch.num_graphs), "forces": np.zeros((len(structure), 3)),
            "all.pairs": batch.edge_index.numpy(), "all.shifts": shifts,
        }  # fmt: skip
        arrays |= {f"{number}.{name}": array for name, array in own.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
