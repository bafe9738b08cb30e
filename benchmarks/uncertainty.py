"""`gfm bench uncertainty`: do expected errors tell where the errors are, and are they as large?

On held-out structures of every head, and on labelled files from outside its training data; beside other ways to guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.benchmarks.accuracy import draw
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.uncertainty_methods import METHODS, Alternatives
from gfm_calc.commands.progress import Progress
from gfm_calc.data.block import Block
from gfm_calc.data.loader import LabelledBatch, Loader, labelled_batches
from gfm_calc.data.sampling import Batch
from gfm_calc.data.store import Selection
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError, GFMError, OutsideDomainError
from gfm_calc.graph import AtomicGraph
from gfm_calc.model import GFMModel
from gfm_calc.predictor import check_domain
from gfm_calc.ranks import rank_correlation, roc_auc
from gfm_calc.train.preparation import Head

_LARGE = 0.8  # an error is large where it is above this quantile of the held-out errors
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class UncertaintyPlan:
    """What is measured.

    Attributes:
        heads: names.
        outside: (head, labelled file) each.
        max_frames: structures a head and set, drawn with `seed`.
        max_atoms: of them together, about.
        train_atoms: of the training structures that the other methods are fitted on.
        strict: leave structures out that a head refuses.
    """

    heads: Sequence[str]
    outside: Sequence[tuple[str, Path]] = ()
    max_frames: int = 200
    max_atoms: int = 4000
    train_atoms: int = 2000
    strict: bool = True
    seed: int = 0


@dataclass(kw_only=True)
class _Guesses:
    """Absolute errors (forces by atom in eV/Å, energies in eV an atom) and what each method guessed for them."""

    errors: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"forces": [], "energy": []})
    guesses: dict[str, dict[str, list[np.ndarray]]] = field(
        default_factory=lambda: {name: {"forces": [], "energy": []} for name in METHODS}
    )

    def add(self, model: GFMModel, alternatives: Alternatives, batch: LabelledBatch) -> None:
        """One batch of a set."""
        head = alternatives.head
        found = model.predict(batch.graph, [head], uncertainty=True)[head]
        sizes = batch.graph.ptr.diff()
        self.errors["forces"].append((found.forces - batch.forces).norm(dim=1).numpy())
        self.errors["energy"].append(((found.energy - batch.energy).abs() / sizes).numpy())
        guessed = alternatives.guess(batch)
        guessed["expected"] = (found.forces_uncertainty, found.energy_uncertainty / sizes)
        for name, pair in guessed.items():
            for what, tensor in zip(("forces", "energy"), pair):
                self.guesses[name][what].append(tensor.double().numpy())

    def of(self, what: str, method: str) -> tuple[np.ndarray, np.ndarray]:
        """(errors, guesses) where there is a label."""
        errors, guesses = np.concatenate(self.errors[what]), np.concatenate(self.guesses[method][what])
        known = np.isfinite(errors)
        return errors[known], guesses[known]


def run_uncertainty(model: GFMModel, heads: Sequence[Head], plan: UncertaintyPlan) -> list[dict[str, Any]]:
    """Rows {"head", "set": "held out" or the file's name, "structures", "refused", "forces", "energy"}; the last two are
    {"error": mean, in meV/Å or meV/atom, "large": what counts as large, method: `figures`}.

    Raises:
        ConfigError: a head without data.
        HeadError: one that does not know its errors.
    """
    known = {head.spec.name: head for head in heads}
    outside = [(name, path) for name, path in plan.outside if model.spec(name).name in plan.heads]
    for name in plan.heads:
        if name not in known:
            raise ConfigError(f"the data hold no head {name!r}")
    model.require_uncertainty(plan.heads)
    rows = []
    with Progress("uncertainty", "sets", len(plan.heads) + len(outside)) as progress:
        for name in plan.heads:
            alternatives = Alternatives(model, name, list(_side(model, known[name], "train", plan)))
            sets = {"held out": _side(model, known[name], "test", plan)}
            sets |= {path.name.split(".")[0]: _file(model, name, path, plan) for head, path in outside if head == name}
            large: dict[str, float] = {}
            for label, batches in sets.items():
                rows.append({"head": name, "set": label, **_row(model, alternatives, batches, large)})
                progress.advance(note=f"{name}, {label}")
    return rows


def _row(
    model: GFMModel, alternatives: Alternatives, batches: Iterator[LabelledBatch | GFMError], large: dict[str, float]
) -> dict[str, Any]:
    """Args: large: what counts as large for each quantity, filled by the held-out set."""
    found, structures, refused = _Guesses(), 0, 0
    for batch in batches:
        if isinstance(batch, GFMError):
            refused += 1
            continue
        structures += len(batch)
        found.add(model, alternatives, batch)
    row: dict[str, Any] = {"structures": structures, "refused": refused}
    for what in ("forces", "energy") if structures else ():
        errors, _ = found.of(what, "expected")
        if not len(errors):
            continue
        limit = large.setdefault(what, float(np.quantile(errors, _LARGE)))
        row[what] = {"error": rounded(1e3 * errors.mean()), "large": rounded(1e3 * limit)} | {
            name: figures(*found.of(what, name), limit, calibrated=name == "expected") for name in METHODS
        }
    return row


def figures(errors: np.ndarray, guesses: np.ndarray, large: float, *, calibrated: bool) -> dict[str, float | None]:
    """How well guesses tell errors.

    Args:
        large: the error above which one is to be found.
        calibrated: the guesses are mean absolute errors, and may be judged as such.

    Returns:
        spearman, their rank correlation; auroc, the chance that of a large and another error the guess for the large one is
        larger; of calibrated ones `ratio`, mean error over mean guess; `miscalibration`, the mean over ten bins of equal size
        by guess of |mean error / mean guess - 1|; `within_two`, the share of errors below twice the guess (0.86 where errors
        are exponential).  None where it is not defined.
    """
    found = {"spearman": rank_correlation(errors, guesses), "auroc": roc_auc(errors > large, guesses)}
    if calibrated:
        order = np.argsort(guesses, kind="stable")
        bins = [chosen for chosen in np.array_split(order, _BINS) if len(chosen)]
        off = [abs(errors[chosen].mean() / max(guesses[chosen].mean(), 1e-12) - 1) for chosen in bins]
        found["ratio"] = float(errors.mean() / max(guesses.mean(), 1e-12))
        found["miscalibration"] = float(np.mean(off))
        found["within_two"] = float(np.mean(errors < 2 * guesses))
    return {name: None if np.isnan(value) else rounded(value) for name, value in found.items()}


def _side(model: GFMModel, head: Head, side: str, plan: UncertaintyPlan) -> Iterator[LabelledBatch]:
    atoms = plan.train_atoms if side == "train" else plan.max_atoms
    rows = draw(head.sides[side], min(plan.max_frames, int(atoms / head.atoms) + 1), plan.seed)
    if rows.size:
        loader = Loader([Selection(head.dataset, rows)], model.config.cutoff, max_atoms=1000, max_edges=30000)
        yield from loader.once()


def _file(model: GFMModel, head: str, path: Path, plan: UncertaintyPlan) -> Iterator[LabelledBatch | GFMError]:
    """Structures of a labelled file; an error for each that the head refuses."""
    (task,) = file_tasks([path])
    records = list(task.records())
    for index in draw(np.arange(len(records)), plan.max_frames, plan.seed).tolist():
        record = records[index]
        if isinstance(record, GFMError):
            raise record
        try:
            if plan.strict:
                check_domain(model.spec(head), AtomicGraph.build(record.structure(), model.config.cutoff))
        except OutsideDomainError as error:
            yield error
            continue
        drawn = Batch(head=np.zeros(1, int), index=np.array([index]))
        yield from labelled_batches(Block.from_records([record]), drawn, model.config.cutoff, names=[path.name])


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the mean of each method over heads: {"set": "held out" or "outside", "what", "method", "rows", "spearman",
    "auroc"}."""
    found = []
    for label in ("held out", "outside"):
        chosen = [row for row in rows if (row["set"] == "held out") == (label == "held out")]
        for what in ("forces", "energy"):
            for method in METHODS:
                cells = [row[what][method] for row in chosen if what in row]
                entry: dict[str, Any] = {"set": label, "what": what, "method": method, "rows": len(cells)}
                for figure in ("spearman", "auroc"):
                    values = [cell[figure] for cell in cells if cell[figure] is not None]
                    entry[figure] = rounded(float(np.mean(values))) if values else None
                found += [entry] if cells else []
    return found
