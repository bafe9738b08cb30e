"""Training of a multi-head model by any number of processes; `Trainer.run` reads top to bottom."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfm_calc.artifacts import canonical_json, open_artifact, write_file
from gfm_calc.checkpoint import subset
from gfm_calc.data.loader import LabelledBatch, Loader
from gfm_calc.data.prefetch import prefetched
from gfm_calc.data.sampling import SamplingPlan
from gfm_calc.data.store import Selection
from gfm_calc.errors import GFMError
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import SUMS, ErrorSums, score, spread_indices
from gfm_calc.train.exchange import SharedParameters, share
from gfm_calc.train.flat import AdamW, slots_of
from gfm_calc.train.models import build_model
from gfm_calc.train.objective import TERMS, Labels, Objective
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.placement import place
from gfm_calc.train.preparation import Head, loss_weights
from gfm_calc.train.recipe import Recipe
from gfm_calc.train.runlog import RunLog
from gfm_calc.train.schedule import Schedule
from gfm_calc.train.state import (
    FORMAT_VERSION,
    KIND,
    CheckpointWriter,
    SavedState,
    layout_of,
    newest_checkpoint,
    sweep,
    tensors_of,
)
from gfm_calc.train.telemetry import Telemetry, operations_of

_LOOK_AHEAD = 2  # steps whose batches are made ahead


class BadBatchError(GFMError):
    """A loss or gradient that is not finite."""


class Trainer:
    """One process of a run.

    Args:
        recipe: what to do.
        heads: what `preparation.prepare` found, the same on all processes.
        ranks: the processes.
        folder: of the run; checkpoints there are continued.

    Attributes: `step`, steps done; `model`, with the heads that live here; `errors`, of the last validation.
    """

    def __init__(self, recipe: Recipe, heads: Sequence[Head], ranks: Ranks, folder: Path):
        self.recipe, self.heads, self.ranks, self.folder = recipe, heads, ranks, folder
        self.placement = place([head.work for head in heads], ranks.world, recipe.parallel.mode)
        self.group = self.placement.group_of(ranks.rank)
        members = self.placement.groups[self.group]
        self.own = [heads[k] for k in self.placement.heads[self.group]]
        self.names = [head.spec.name for head in heads]
        self.rows = torch.full((len(heads),), -1, dtype=torch.int64)
        self.rows[list(self.placement.heads[self.group])] = torch.arange(len(self.own))
        self._build()
        weights = [loss_weights(heads, recipe)[k] for k in self.placement.heads[self.group]]
        self.objective = Objective(recipe.objective, weights, recipe.run.dtype).to(ranks.device, self.model.dtype)
        self._share()
        counts = tuple(len(head.sides["train"]) for head in heads)
        self.plan = SamplingPlan(
            counts=counts, seed=recipe.run.seed, structures=recipe.run.structures, tau=recipe.data.tau,
            shares=tuple(head.share for head in heads),
        )  # fmt: skip
        self.loader = self._loader(
            [head.select("train") for head in heads], rank=members.index(ranks.rank), world=len(members),
            heads=self.placement.heads[self.group], edges_per_atom=[head.neighbors for head in heads],
            workers=recipe.data.workers,
        )  # fmt: skip
        self.schedule = Schedule(recipe.optimizer, recipe.run.steps)
        self.constants = AdamW(
            beta1=recipe.optimizer.beta1, beta2=recipe.optimizer.beta2, weight_decay=recipe.optimizer.weight_decay
        )
        self.writer = CheckpointWriter(folder / "checkpoints", ranks.rank, ranks.world)
        self.step = 0
        self.errors: dict[str, dict[str, float]] = {}
        self._stop = ""  # why the run shall end before its last step
        self._began = time.monotonic()

    def _build(self) -> None:
        """The model: all processes draw the same weights, then keep their heads."""
        dtype = torch.float64 if self.recipe.run.dtype == "float64" else torch.float32
        whole = build_model(self.recipe.model, self.heads, self.recipe.run.seed)
        model = whole if len(self.own) == len(self.heads) else subset(whole, [head.spec.name for head in self.own])
        self.model = model.to(self.ranks.device, dtype).requires_grad_(True).train()
        self.model.encoder.recompute = self.recipe.run.activation_checkpointing

    def _share(self) -> None:
        """Encoder parameters are shared by all processes, those of heads within their group."""
        encoder: dict[str, nn.Parameter] = {}
        heads: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            (heads if name.startswith("energy_stack.") else encoder)[name] = parameter
        heads |= dict(self.objective.named_parameters())
        decayed = {name for name, p in encoder.items() if p.ndim >= 2 and "embedding" not in name}
        decayed |= {name for name in heads if name.endswith(("hidden", "output"))}
        shard = self.recipe.parallel.shard
        everybody = [tuple(range(self.ranks.world))]
        self.encoder = SharedParameters(self.ranks, share(self.ranks, everybody, shard), encoder, decayed)
        sharing = share(self.ranks, self.placement.groups, shard)
        self.shared = {
            "encoder": self.encoder,
            f"heads{self.group}": SharedParameters(self.ranks, sharing, heads, decayed),
        }
        self._norm_is_shared = any(s.sharing.parts > 1 for s in self.shared.values()) or len(self.placement.groups) > 1

    def _loader(self, sources: Sequence[Selection], **where: Any) -> Loader:
        run = self.recipe.run
        return Loader(
            sources,
            self.recipe.model.cutoff,
            max_atoms=run.max_atoms,
            max_edges=run.max_edges,
            names=self.names,
            **where,
        )

    # ---- the run ----

    def run(self) -> str:
        """Train to the last step; why it ended: "finished", or another reason, after which the run can be resumed.

        Raises:
            BadBatchError: see `RunRecipe.on_bad_batch`.
            LostProcessError: another process is gone.
        """
        run = self.recipe.run
        self.resume()
        self.telemetry, self._before = Telemetry(), (self.ranks.bytes_sent, self.ranks.seconds)
        reason = "finished" if self.step >= run.steps else ""
        log = RunLog(self.folder, self.names, self.step, active=self.ranks.rank == 0)
        with ExitStack() as stack:
            stack.callback(log.close)
            stack.enter_context(self._signals())
            objective = stack.enter_context(self._compiled())
            steps = self.loader.steps(self.plan, self.step, run.steps)
            batches = prefetched(map(self._prepared, steps), depth=_LOOK_AHEAD)
            stack.callback(batches.close)  # type: ignore[attr-defined]
            since = time.perf_counter()
            while not reason:
                with self.telemetry.phase("data"):
                    prepared = next(batches)
                line = self._train_step(objective, prepared)
                now = time.perf_counter()
                log.step({**line, "structures_per_s": round(run.structures / (now - since), 1)})
                since = now
                reason = self._after_step(line, log)
        self._describe(reason)
        return reason

    def _prepared(self, step: list[LabelledBatch]) -> list[tuple[LabelledBatch, Any, Labels, bool]]:
        """Batches with their inputs and targets on the device."""
        found = []
        for batch in step:
            labels = self.objective.labels(self.model, batch, self.rows, self.recipe.run.structures)
            mechanical = bool(labels.given[:, 1:].any())
            found.append((batch, self.model.inputs(batch.graph), labels, mechanical))
        return found

    def _train_step(self, objective: Any, prepared: Sequence[tuple]) -> dict[str, Any]:
        """One step of the optimiser; its line in the log."""
        sums = torch.zeros(len(self.heads) + 2, len(TERMS), dtype=torch.float64)  # by head; the last rows are flags
        suspects: list[str] = []
        for batch, inputs, labels, mechanical in prepared:
            with self.telemetry.phase("forward"):
                vectors = inputs.edge_vector.detach().requires_grad_()
                loss, parts = objective(self.model, vectors, inputs, labels, mechanical)
            with self.telemetry.phase("backward"):
                loss.backward()
            parts = parts.to("cpu", torch.float64)
            sums[:-2, : parts.shape[1]].index_add_(0, batch.head, parts)
            if not torch.isfinite(parts).all():
                suspects += self._names(batch, ~torch.isfinite(parts).all(dim=1))
            atoms, edges = labels.atom_head.shape[0], inputs.edge_index.shape[1]
            work = operations_of(self.recipe.model, atoms, edges, mechanical=mechanical)
            self.telemetry.batch(len(batch), atoms, edges, work)
        if not prepared:  # a step without draws for the heads that live here
            self.telemetry.batch(0, 0, 0, 0.0)
        self.telemetry.counts["steps"] += 1
        sums[-2, 0], sums[-2, 1] = bool(self._stop or self._out_of_time()), self.writer.is_written()
        self.ranks.add_up(sums)
        self._finite_here = all(bool(shared.flat.gradient.isfinite().all()) for shared in self.shared.values())
        for shared in self.shared.values():
            shared.add_up()
        norm = self._norm()
        rate = self.schedule.rate(self.step)
        if not math.isfinite(norm) or not torch.isfinite(sums).all():
            self._bad_batch(suspects, prepared)
        else:
            with self.telemetry.phase("update"):
                self._update(norm, rate)
        for shared in self.shared.values():
            shared.clear()
        self.step += 1
        self._all_written = int(sums[-2, 1]) == self.ranks.world
        self._asked_to_stop = bool(sums[-2, 0])
        totals = sums[:-2].sum(dim=1)
        return {
            "step": self.step, "loss": float(totals.sum()), "head_losses": dict(zip(self.names, totals.tolist())),
            "lr": rate, "grad_norm": norm,
        }  # fmt: skip

    def _norm(self) -> float:
        """Of the whole gradient: the same on all processes."""
        squares = [s.gradient.to("cpu", torch.float64).square().sum() for s in self.shared.values()]
        if self._norm_is_shared:  # each part counts once, on the first process that holds it
            squares = [q * s.sharing.is_first for q, s in zip(squares, self.shared.values())]
        total = torch.stack(squares).sum()
        if self._norm_is_shared:
            self.ranks.add_up(total)
        return float(total.sqrt())

    def _update(self, norm: float, rate: float) -> None:
        recipe = self.recipe.optimizer
        count = self.step + 1
        decay = min(recipe.ema, count / (count + 10))
        for shared in self.shared.values():
            if norm > recipe.clip:
                shared.gradient.mul_(recipe.clip / norm)
            shared.update(self.constants, rate=rate, count=count, decay=decay)

    def _after_step(self, line: Mapping[str, Any], log: RunLog) -> str:
        """Validate, save, and find out whether the run is over: why, or ""."""
        run = self.recipe.run
        last = self.step == run.steps
        reason = "finished" if last else ""
        if self._all_written and self.writer.step is not None:
            self.writer.commit()
        if last or (run.validate_every and self.step % run.validate_every == 0):
            with self.telemetry.phase("validation"):
                self.errors = self.validate("validation", run.max_validation)
            found = score(self.errors, self.recipe.objective)
            log.validation(self.step, self.errors, found)
            self.schedule.validated(self.step, found)
            if run.stop_after and self.schedule.failures >= run.stop_after and not last:
                reason = "no improvement"
        if self._asked_to_stop and not reason:
            reason = self._agreed_reason()
        if run.check_parameters_every and self.step % run.check_parameters_every == 0:
            self._check_parameters()
        if reason or self.step % run.save_every == 0:
            log.flush()
            self.save(wait=bool(reason))
        return reason

    def _agreed_reason(self) -> str:
        said = self.ranks.tell(self._stop or ("out of time" if self._out_of_time() else ""))
        return next((reason for reason in said if reason), "stopped")

    def _out_of_time(self) -> bool:
        limit = self.recipe.run.max_minutes
        return limit is not None and time.monotonic() - self._began > 60 * limit

    # ---- what can go wrong ----

    def _names(self, batch: LabelledBatch, chosen: Tensor | None = None) -> list[str]:
        """'head source:frame' of structures of a batch."""
        rows = range(len(batch)) if chosen is None else torch.nonzero(chosen).flatten().tolist()
        found = []
        for row in rows:
            head = self.heads[int(batch.head[row])]
            record = head.dataset.record(int(head.sides["train"][int(batch.index[row])]))
            found.append(f"{head.spec.name} {record.source}:{record.frame}")
        return found

    def _bad_batch(self, suspects: list[str], prepared: Sequence[tuple]) -> None:
        """Say which structures it was; all processes are here, since all have the same sums."""
        if not suspects and not self._finite_here:
            suspects = [name for batch, *_ in prepared for name in self._names(batch)]
        said = [name for names in self.ranks.tell(suspects[:20]) for name in names]
        where = f": {', '.join(said[:20])}" if said else ""
        message = f"step {self.step + 1}: the loss or its gradient is not finite{where}"
        if self.recipe.run.on_bad_batch == "stop":
            raise BadBatchError(f"{message}; look at them, or skip such steps with --set run.on_bad_batch=skip")
        if self.ranks.rank == 0:
            print(f"gfm: warning: {message}; the step is skipped", flush=True)

    def _check_parameters(self) -> None:
        """Compare the weights of the processes that should have the same ones."""
        sums = [float(shared.flat.weight.double().sum()) for shared in self.shared.values()]
        said = self.ranks.tell(sums)
        same = all(row[0] == said[0][0] for row in said) and all(
            said[k][1] == said[ranks[0]][1] for ranks in self.placement.groups for k in ranks
        )
        if not same:
            raise GFMError(
                f"step {self.step}: the processes no longer have the same weights: a fault of memory or network"
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the step, saved; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def asked(number: int, frame: Any) -> None:
            self._stop = signal.Signals(number).name
            signal.signal(number, kept[number])

        for number in kept:
            signal.signal(number, asked)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    @contextmanager
    def _compiled(self) -> Iterator[Any]:
        """The objective, compiled where the recipe says so.

        The compiler chooses code by the sizes that it sees first, so it always sees the batches of step 0 first: a resumed
        run computes with the code of an uninterrupted one.
        """
        if not self.recipe.run.compile:
            yield self.objective
            return
        from torch._dynamo import config as dynamo

        with dynamo.patch(trace_autograd_ops=True):
            compiled = torch.compile(self.objective, dynamic=True, fullgraph=True)
            seen: set[tuple] = set()
            for step in self.loader.steps(self.plan, 0, 8):
                for _, inputs, labels, mechanical in self._prepared(step):
                    kind = (mechanical, inputs.totals is None)
                    if kind not in seen:
                        seen.add(kind)
                        vectors = inputs.edge_vector.detach().requires_grad_()
                        compiled(self.model, vectors, inputs, labels, mechanical)[0].backward()
            for shared in self.shared.values():
                shared.clear()
            yield compiled

    # ---- validation ----

    def validate(self, side: str, most: int) -> dict[str, dict[str, float]]:
        """Errors of all heads with the averaged weights, on at most `most` structures each; to be called by all processes."""
        found = ErrorSums(self.names)
        members = self.placement.groups[self.group]
        with self.averaged():
            for head in self.own:
                rows = head.sides[side][spread_indices(len(head.sides[side]), most)]
                if rows.size:
                    loader = self._loader(
                        [Selection(head.dataset, rows)], rank=members.index(self.ranks.rank), world=len(members)
                    )
                    found.add(self.model, loader.once(), head.spec.name)
        assert found.sums.shape[1] == len(SUMS)
        self.ranks.add_up(found.sums)
        return found.table()

    @contextmanager
    def averaged(self) -> Iterator[GFMModel]:
        """The model with the running average of its weights, while the block lasts; to be entered by all processes."""
        kept = {name: shared.flat.weight.clone() for name, shared in self.shared.items()}
        if self.recipe.optimizer.ema:
            for shared in self.shared.values():
                shared.flat.weight.copy_(shared.whole_average())
        try:
            yield self.model
        finally:
            for name, shared in self.shared.items():
                shared.flat.weight.copy_(kept[name])

    # ---- checkpoints ----

    def save(self, *, wait: bool) -> None:
        """Begin a checkpoint; with `wait`, until it is there on all processes."""
        if self.writer.step is not None:  # the last one is not there yet: a slow disk
            self._finish_checkpoint()
        self.writer.wait()
        flats = {name: (s.flat, s.sharing.is_first) for name, s in self.shared.items()}
        layouts = {"encoder": layout_of(self.encoder.flat.slots)}
        for number, heads in enumerate(self.placement.heads):
            layouts[f"heads{number}"] = self._layout_of_heads([self.names[k] for k in heads])
        state = {
            "step": self.step, "world": self.ranks.world, "mode": self.recipe.parallel.mode, "layouts": layouts,
            "schedule": self.schedule.state(),
        }  # fmt: skip
        self.writer.begin(self.step, tensors_of(flats, self.ranks.rank), state)
        if wait:
            self._finish_checkpoint()

    def _layout_of_heads(self, names: Sequence[str]) -> dict[str, Any]:
        """The layout of a group's stack, which differs from that of this group in the number of rows alone."""
        own = self.shared[f"heads{self.group}"].flat
        shapes = {name: (len(names), *shape[1:]) for name, (_, shape) in own.slots.items()}
        return layout_of(slots_of(shapes, own.decayed), names)

    def _finish_checkpoint(self) -> None:
        self.writer.wait()
        self.ranks.wait()
        self.writer.commit()
        self.writer.wait()
        self.ranks.wait()

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, where there is one; to be called by all processes."""
        folder = self.folder / "checkpoints"
        found = None
        if self.ranks.rank == 0:
            sweep(folder)
            found, problems = newest_checkpoint(folder)
            for problem in problems:
                print(f"gfm: warning: {problem}; an older checkpoint is used", flush=True)
        name = self.ranks.tell(None if found is None else found.directory.name)[0]
        if name is None:
            return
        saved = SavedState(open_artifact(folder / name, kind=KIND, newest_version=FORMAT_VERSION))
        self.encoder.flat_from(saved, "encoder")
        own = [head.spec.name for head in self.own]
        self.shared[f"heads{self.group}"].flat_from(saved, "heads", own)
        self.step = saved.state["step"]
        self.schedule.restore(saved.state["schedule"])
        if saved.state["world"] == self.ranks.world and self.ranks.rank in saved.random:
            torch.set_rng_state(saved.random[self.ranks.rank])

    def _describe(self, reason: str) -> None:
        """RUN/telemetry.json: what the run is, and what each process did since it started."""
        own = self.telemetry.report(self.ranks.bytes_sent - self._before[0], self.ranks.seconds - self._before[1])
        own["parameters"] = sum(p.numel() for p in self.model.parameters())
        own["state_bytes"] = sum(shared.flat.memory() for shared in self.shared.values())
        about = {
            "reason": reason, "step": self.step, "processes": self.ranks.world, "mode": self.recipe.parallel.mode,
            "shard": self.recipe.parallel.shard, "placement": self.placement.describe(self.names),
            "device": str(self.ranks.device), "threads": torch.get_num_threads(), "ranks": self.ranks.tell(own),
        }  # fmt: skip
        if self.ranks.rank == 0:
            write_file(self.folder / "telemetry.json", canonical_json(about))
