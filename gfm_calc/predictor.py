"""A stream of structures in, a stream of predictions out, in batches that fit a budget.

Calculator, validation, `gfm predict` and screening all go through `predict_graphs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from ase import Atoms

from .checkpoint import load_model
from .config import HeadSpec
from .errors import ConfigError, GFMError, InvalidStructureError, OutsideDomainError, did_you_mean
from .graph import AtomicGraph, GraphArrays, GraphBatch
from .model import GFMModel, Prediction

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MIXED = "bfloat16"  # matrix products in bfloat16; weights, geometry and sums stay float32 or better


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """torch.float32 or torch.float64 from a name or a dtype; ConfigError for anything else."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ConfigError(f"dtype must be 'float32' or 'float64', not {dtype!r}{did_you_mean(dtype, DTYPES)}")


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device named, or the GPU where there is one; ConfigError where it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device {device!r} is unknown: use cpu, cuda or cuda:N") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: this torch sees no GPU; use device='cpu'")
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not supported: use cpu, cuda or cuda:N")
    return found


def refuse_options_of_loaded(device: object, compile: bool) -> None:
    """A loaded model is used as it is; ConfigError where it was to be moved or compiled on the way."""
    if device is not None or compile:
        raise ConfigError(
            "device and compile are for models by name: use model.to(device) and model.compile() on a loaded one"
        )


def check_domain(
    spec: HeadSpec, graph: AtomicGraph | GraphArrays, *, source: str | None = None, frame: int | None = None
) -> None:
    """Refuse a structure that a head was not trained for.

    Raises:
        OutsideDomainError: elements, total charge or excess spin that the head has not seen; the message names them.  Or no
            crystal, and the head has no value for anything else: no stiffness, or a sum that is none, see `landmarks`.
    """
    is_of_crystals = spec.stiffness or (spec.is_sum and spec.landmarks)
    if is_of_crystals and not bool(graph.pbc.all()):
        raise OutsideDomainError(
            f"head {spec.name} is one of crystals, periodic along three axes", source=source, frame=frame
        )
    unseen = spec.unseen(graph.atomic_numbers.tolist())
    reasons = [f"has not seen {', '.join(unseen)}"] if unseen else []
    charge, spin = int(graph.charge), int(graph.spin)
    low, high = spec.charges
    if not low <= charge <= high:
        seen = f"{low:+d}" if low == high else f"{low:+d} to {high:+d}"
        reasons.append(f"was trained on charge {seen if (low or high) else '0'} only, not {charge:+d}")
    excess = spin - 1 - (int(graph.atomic_numbers.sum()) - charge) % 2
    if excess > spec.max_excess_spin:
        reasons.append(f"was not trained on multiplicity {spin} here ({excess} unpaired electrons beyond the fewest)")
    if reasons:
        reason = f"head {spec.name} {' and '.join(reasons)}; strict=False predicts all the same"
        raise OutsideDomainError(reason, source=source, frame=frame)


def predict_graphs(
    model: GFMModel, graphs: Sequence[AtomicGraph], heads: Sequence[str], **wanted: bool
) -> list[dict[str, Prediction] | InvalidStructureError]:
    """Predict graphs as one batch.

    Args:
        wanted: forces, stresses, uncertainty: see `GFMModel.predict`.

    Returns:
        for each graph {head: Prediction}, or an InvalidStructureError where the numbers are not finite.
    """
    batch = GraphBatch.from_graphs(graphs)
    return split_rows(model.predict(batch, heads, **wanted), batch, model.dtype)


def split_rows(
    found: Mapping[str, Prediction], batch: GraphBatch, dtype: torch.dtype
) -> list[dict[str, Prediction] | InvalidStructureError]:
    """The predictions of a batch graph by graph, see `predict_graphs`."""
    ptr = batch.ptr.tolist()
    split = {head: prediction.split(ptr) for head, prediction in found.items()}
    finite = torch.stack([finite_graphs(prediction, batch) for prediction in found.values()]).all(dim=0).tolist()
    rows: list[dict[str, Prediction] | InvalidStructureError] = []
    for index, is_finite in enumerate(finite):
        rows.append({head: parts[index] for head, parts in split.items()} if is_finite else not_finite(dtype))
    return rows


def predict_one(model: GFMModel, graph: AtomicGraph, heads: Sequence[str], **wanted: bool) -> dict[str, Prediction]:
    """{head: Prediction} of a single graph; raises InvalidStructureError where the numbers are not finite."""
    outcome = predict_graphs(model, [graph], heads, **wanted)[0]
    if isinstance(outcome, GFMError):
        raise outcome
    return outcome


def finite_graphs(prediction: Prediction, batch: GraphBatch) -> torch.Tensor:
    """Which graphs [B] of a batch have finite numbers throughout."""
    finite = torch.ones(batch.num_graphs, dtype=torch.bool)
    owner = batch.batch.cpu()
    for tensor in (prediction.energy, prediction.forces, prediction.virial, prediction.value):
        if tensor is None or bool(torch.isfinite(tensor).all()):
            continue
        rows = torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
        if len(rows) == len(finite):
            finite &= rows
        else:
            finite[owner[~rows]] = False
    return finite


def not_finite(dtype: torch.dtype) -> InvalidStructureError:
    """The error that stands for a prediction that is not finite."""
    return InvalidStructureError(
        f"the prediction overflows {str(dtype).split('.')[1]}: atoms far too close or too many at a place"
        "; or it is of no crystal, by a head of crystals"
    )


class Predictor:
    """Predict many structures with some heads of a model.

    Args:
        model: packaged name, directory, or a loaded model (which is used as it is: dtype, device and compile then must
            be left alone).
        heads: names of the heads wanted.
        dtype: "float32", "float64", or "bfloat16": matrix products in it, geometry and sums in float32 or better.
        device: "cpu", "cuda", "cuda:N"; None takes the GPU where there is one.
        compile: compile the networks (slow first call, faster after).
        forces: forces and stress too.
        max_atoms, max_edges: budget of a batch; a larger structure is a batch of its own.
        strict: refuse elements, charges and spins that a head has not seen.
        uncertainty: the expected errors of energies and forces too; None: where all heads know theirs.

    Raises:
        GFMError: no such model or head, a head without uncertainty where it is asked for, or a dtype or device that
            cannot be used.
    """

    def __init__(
        self, model: str | Path | GFMModel, heads: Sequence[str], *, dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None, compile: bool = False, forces: bool = True, max_atoms: int = 4096,
        max_edges: int = 65536, strict: bool = True, uncertainty: bool | None = False,
    ):  # fmt: skip
        if isinstance(model, GFMModel):
            refuse_options_of_loaded(device, compile)
            self.model = model
        else:
            weights = torch.float32 if dtype == MIXED else parse_dtype(dtype)
            self.model = load_model(model, dtype=weights, device=parse_device(device)).compile(enabled=compile)
        self.forces, self.strict, self._asked = forces, strict, uncertainty
        self.choose([heads] if isinstance(heads, str) else heads)
        self.mixed = dtype == MIXED
        self.max_atoms, self.max_edges = max_atoms, max_edges

    def choose(self, heads: Sequence[str]) -> None:
        """Predict with these heads from now on; HeadError for an unknown one, or one without uncertainty where that is asked
        for."""
        self.specs = [self.model.spec(head) for head in heads]
        self.heads = [spec.name for spec in self.specs]
        known = () if self.model.uncertainty is None else self.model.uncertainty.figures
        self.uncertainty = set(self.heads) <= set(known) if self._asked is None else self._asked
        if self.uncertainty:
            self.model.require_uncertainty(self.heads)

    def predict(
        self, structures: Iterable[Atoms], *, source: str | None = None, on_error: str = "raise"
    ) -> Iterator[dict[str, Prediction] | GFMError]:
        """Yield {head: Prediction} for every structure, in order.

        Args:
            structures: any iterable; it is read as it is needed.
            source: file name for messages.
            on_error: "raise" stops at the first structure that cannot be predicted; "yield" yields the error in its
                place and goes on.

        Raises:
            InvalidStructureError: with the structure's position as `frame`.
        """
        for outcome in self._outcomes(structures, source):
            if isinstance(outcome, GFMError) and on_error == "raise":
                raise outcome
            yield outcome

    def predict_batch(
        self, graphs: Sequence[AtomicGraph] | Sequence[GraphArrays]
    ) -> tuple[GraphBatch, dict[str, Prediction]]:
        """Graphs as one batch, and what each head says about it; numbers may be infinite (see `finite_graphs`)."""
        batch = GraphBatch.from_graphs(graphs)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.mixed):
            return batch, self.model.predict(batch, self.heads, forces=self.forces, uncertainty=self.uncertainty)

    def _outcomes(self, structures: Iterable[Atoms], source: str | None) -> Iterator[dict[str, Prediction] | GFMError]:
        pending: list[tuple[int, AtomicGraph | GFMError]] = []
        atoms_held = edges_held = 0
        for frame, atoms in enumerate(structures):
            item = self._graph(atoms, source, frame)
            size, edges = (0, 0) if isinstance(item, GFMError) else (item.num_nodes, item.edge_index.shape[1])
            full = atoms_held + size > self.max_atoms or edges_held + edges > self.max_edges
            if pending and (full or len(pending) >= self.max_atoms):
                yield from self._flush(pending, source)
                pending, atoms_held, edges_held = [], 0, 0
            pending.append((frame, item))
            atoms_held, edges_held = atoms_held + size, edges_held + edges
        yield from self._flush(pending, source)

    def _graph(self, atoms: Atoms, source: str | None, frame: int) -> AtomicGraph | GFMError:
        try:
            graph = AtomicGraph.build(atoms, self.model.config.cutoff, source=source, frame=frame)
            if self.strict:
                for spec in self.specs:
                    check_domain(spec, graph, source=source, frame=frame)
        except GFMError as error:
            return error
        return graph

    def _flush(
        self, pending: Sequence[tuple[int, AtomicGraph | GFMError]], source: str | None
    ) -> Iterator[dict[str, Prediction] | GFMError]:
        graphs = [item for _, item in pending if not isinstance(item, GFMError)]
        rows: Iterator[dict[str, Prediction] | InvalidStructureError] = iter(())
        if graphs:
            batch, found = self.predict_batch(graphs)
            rows = iter(split_rows(found, batch, self.model.dtype))
        for frame, item in pending:
            outcome = item if isinstance(item, GFMError) else next(rows)
            yield outcome.at(source=source, frame=frame) if isinstance(outcome, InvalidStructureError) else outcome
