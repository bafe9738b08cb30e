"""Training of a multi-head model by any number of processes; `Trainer.run` reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfm_calc.artifacts import canonical_json, write_file
from gfm_calc.checkpoint import subset
from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.loader import LabelledBatch, Loader
from gfm_calc.data.prefetch import worked_ahead
from gfm_calc.data.sampling import SamplingPlan
from gfm_calc.errors import GFMError
from gfm_calc.train.checkpoints import Checkpoints
from gfm_calc.train.compilation import compiled_objective
from gfm_calc.train.evaluation import score
from gfm_calc.train.exchange import SharedParameters, share
from gfm_calc.train.flat import AdamW
from gfm_calc.train.models import adapt, freeze, rates, starting_model
from gfm_calc.train.objective import COLUMNS, Objective, Prepared
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.placement import place, refuse_properties
from gfm_calc.train.preparation import Head, loss_weights
from gfm_calc.train.recipe import Recipe
from gfm_calc.train.runlog import RunLog, Say, aloud
from gfm_calc.train.schedule import Schedule
from gfm_calc.train.sources import training_sources
from gfm_calc.train.stopping import Stop
from gfm_calc.train.telemetry import Telemetry, operations_of
from gfm_calc.train.validation import Validator

_LOOK_AHEAD = 2  # steps whose batches are made ahead
_MOST_SKIPPED = 100  # bad batches in a row


class BadBatchError(GFMError):
    """A loss, gradient or validation error that is not finite."""


class Trainer:
    """One process of a run.

    Args:
        recipe: what to do.
        heads: what `preparation.prepare` found, the same on all processes.
        ranks: the processes.
        folder: of the run; checkpoints there are continued.  say: gets lines for the terminal.

    Attributes: `step`, steps done; `model`, with the heads that live here; `errors`, of the last validation; `telemetry`,
    what this process did since the trainer was made.
    """

    def __init__(self, recipe: Recipe, heads: Sequence[Head], ranks: Ranks, folder: Path, say: Say = aloud):
        self.recipe, self.heads, self.ranks, self.folder, self.say = recipe, heads, ranks, folder, say
        self.placement = place([head.work for head in heads], ranks.world, recipe.parallel.mode)
        refuse_properties([h.spec for h in heads], len(self.placement.groups), balanced=recipe.objective.uncertainty)
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
        self.loader = Loader(
            training_sources(heads, ranks, self.placement, memory=recipe.data.memory), recipe.model.cutoff,
            max_atoms=recipe.run.max_atoms, max_edges=recipe.run.max_edges, rank=members.index(ranks.rank),
            world=len(members), heads=self.placement.heads[self.group], names=self.names,
            edges_per_atom=[head.neighbors for head in heads], workers=recipe.data.workers,
        )  # fmt: skip
        self.schedule = Schedule(recipe.optimizer, recipe.run.steps)
        self.constants = AdamW(
            beta1=recipe.optimizer.beta1, beta2=recipe.optimizer.beta2, weight_decay=recipe.optimizer.weight_decay
        )
        self.checkpoints = Checkpoints(
            folder / "checkpoints", ranks, self.placement, self.shared, specs=[head.spec for head in heads],
            mode=recipe.parallel.mode,
        )  # fmt: skip
        self.validator = Validator(
            recipe, ranks, self.model, self.shared, own=self.own, specs=[head.spec for head in heads], members=members
        )
        self.stop = Stop(recipe.run.max_minutes)
        self.step = 0
        self.errors: dict[str, dict[str, float]] = {}
        self._skipped = 0  # bad batches, one after the other
        self.telemetry, self._before = Telemetry(), (ranks.bytes_sent, ranks.seconds)

    def _build(self) -> None:
        """The model: all processes draw the same weights, then keep their heads."""
        dtype = torch.float64 if self.recipe.run.dtype == "float64" else torch.float32
        whole = starting_model(self.recipe, self.heads, None if self.ranks.rank else self.say)
        model = whole if len(self.own) == len(self.heads) else subset(whole, [head.spec.name for head in self.own])
        adapt(model, self.recipe)
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
        factors = rates(self.model, self.recipe.start)
        freeze(self.model, factors)
        shard = self.recipe.parallel.shard
        muon = self.recipe.optimizer.method == "muon"
        turned = [n for n, p in encoder.items() if muon and p.ndim == 2 and n in decayed and "properties" not in n]
        everybody = share(self.ranks, [tuple(range(self.ranks.world))], shard)
        self.encoder = SharedParameters(self.ranks, everybody, encoder, decayed, factors, turned)
        own = SharedParameters(self.ranks, share(self.ranks, self.placement.groups, shard), heads, decayed)
        self.shared = {"encoder": self.encoder, f"heads{self.group}": own}
        self._norm_is_shared = any(s.sharing.parts > 1 for s in self.shared.values()) or len(self.placement.groups) > 1

    # ---- the run ----

    def run(self) -> str:
        """Train to the last step; why it ended: "finished", or another reason, after which the run can be resumed.

        Raises:
            BadBatchError: see `RunRecipe.on_bad_batch`.
            LostProcessError: another process is gone.
        """
        run = self.recipe.run
        self.step = self.checkpoints.resume(self.schedule)
        if reason := self._already_over():
            self._take_best()
            return reason
        how = {"active": self.ranks.rank == 0, "tensorboard": run.tensorboard, "say": self.say}
        log = RunLog(self.folder, self.names, self.step, **how)
        with ExitStack() as stack:
            stack.callback(log.close)
            stack.enter_context(self.stop.signals())
            objective = stack.enter_context(self.compiled())
            steps = map(self.prepared, self.loader.steps(self.plan, self.step, run.steps))
            batches = worked_ahead(steps, self.ranks.device, depth=_LOOK_AHEAD)
            stack.callback(batches.close)  # type: ignore[attr-defined]
            since = time.perf_counter()
            while not reason:
                with self.telemetry.phase("data"):
                    prepared = next(batches)
                line = self.train_step(objective, prepared)
                now = time.perf_counter()
                log.step({**line, "structures_per_s": round(run.structures / (now - since), 1)})
                since = now
                reason = self._after_step(line, log)
        if not reason.startswith("SIG"):
            self._take_best()
        self._describe(reason)
        return reason

    @property
    def model_step(self) -> int:
        """The step whose weights the model gets: that of the best validation where they are kept, or the last."""
        return self.schedule.best_step if self.encoder.flat.best is not None else self.step

    def _take_best(self) -> None:
        """From now on errors are those of the weights that the model gets."""
        self.validator.best = self.encoder.flat.best is not None
        if self.model_step != self.step or not self.errors:
            self.errors = self.validator.errors("validation", self.recipe.run.max_validation)

    def _already_over(self) -> str:
        """Why there is nothing left to train, or ""."""
        run = self.recipe.run
        reason = "finished" if self.step >= run.steps else ""
        if run.stop_after and self.schedule.failures >= run.stop_after:
            reason = "no improvement"
        if reason and self.ranks.rank == 0:
            more = "run.steps" if reason == "finished" else "run.stop_after, or set it to 0"
            done = f"has trained {self.step} of {run.steps} steps and is over ({reason})"
            self.say(f"{self.folder}: {done}; to train on, raise {more}")
        return reason

    def prepared(self, step: list[LabelledBatch]) -> list[Prepared]:
        """Batches of a step, with their inputs and targets on the device."""
        found = []
        for batch in step:
            labels = self.objective.labels(self.model, batch, self.rows, self.recipe.run.structures)
            mechanical = bool(labels.given[:, 1:].any())
            found.append((batch, self.model.inputs(batch.graph), labels, mechanical))
        return found

    def train_step(self, objective: Any, prepared: Sequence[Prepared]) -> dict[str, Any]:
        """One step of the optimiser, from what `prepared` gives; its line in the log.

        Args:
            objective: of `compiled`.

        Raises:
            BadBatchError: see `RunRecipe.on_bad_batch`.
            LostProcessError: another process is gone.
        """
        sums = torch.zeros(len(self.heads) + 2, len(COLUMNS), dtype=torch.float64)  # by head; the last rows are flags
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
        sums[-2, 0], sums[-2, 1] = bool(self.stop.reason), self.checkpoints.is_written()
        self.ranks.add_up(sums)
        self._finite_here = all(bool(shared.flat.gradient.isfinite().all()) for shared in self.shared.values())
        for shared in self.shared.values():
            shared.add_up()
        norm = self._norm()
        rate = self.schedule.rate(self.step)
        if not math.isfinite(norm) or not torch.isfinite(sums).all():
            self._bad_batch(suspects, prepared)
        else:
            self._skipped = 0
            with self.telemetry.phase("update"):
                self._update(norm, rate)
        self._clear()
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
        if self._all_written:
            self.checkpoints.commit()
        if last or (run.validate_every and self.step % run.validate_every == 0):
            self._validate(log)
            if run.stop_after and self.schedule.failures >= run.stop_after and not last:
                reason = "no improvement"
        if self._asked_to_stop and not reason:
            reason = self._agreed_reason()
        if run.check_parameters_every and self.step % run.check_parameters_every == 0:
            self._check_parameters()
        if reason or self.step % run.save_every == 0:
            log.flush()
            self.checkpoints.save(self.step, self.schedule, wait=bool(reason))
        return reason

    def _validate(self, log: RunLog) -> None:
        with self.telemetry.phase("validation"):
            self.errors = self.validator.errors("validation", self.recipe.run.max_validation)
        if not self.errors:
            return  # nothing is held out
        found = score(self.errors, self.recipe.objective)
        if not math.isfinite(found):
            raise BadBatchError(
                f"step {self.step}: validation errors are not finite: the training has diverged; lower "
                "optimizer.learning_rate, or look at the labels"
            )
        log.validation(self.step, self.errors, found)
        self.schedule.validated(self.step, found)
        if self.schedule.best_step == self.step:
            self.validator.keep_best()

    def _agreed_reason(self) -> str:
        said = self.ranks.tell(self.stop.reason)
        return next((reason for reason in said if reason), "stopped")

    def close(self) -> None:
        """Let go of data in memory; to be called by all processes."""
        for source in self.loader.sources:
            if isinstance(source, DistributedStore):
                source.close()

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

    def _bad_batch(self, suspects: list[str], prepared: Sequence[Prepared]) -> None:
        """Say which structures it was; all processes are here, since all have the same sums."""
        if not suspects and not self._finite_here:
            suspects = [name for batch, *_ in prepared for name in self._names(batch)]
        said = [name for names in self.ranks.tell(suspects[:20]) for name in names]
        where = f": {', '.join(said[:20])}" if said else ""
        message = f"step {self.step + 1}: the loss or its gradient is not finite{where}"
        if self.recipe.run.on_bad_batch == "stop":
            raise BadBatchError(
                f"{message}; look at them, lower optimizer.learning_rate, or skip such steps with --set run.on_bad_batch=skip"
            )
        self._skipped += 1
        if self._skipped >= _MOST_SKIPPED:
            raise BadBatchError(f"{message}; so were {_MOST_SKIPPED} in a row: lower optimizer.learning_rate")
        if self.ranks.rank == 0:
            self.say(f"gfm: warning: {message}; the step is skipped")

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
    def compiled(self) -> Iterator[Any]:
        """The objective, compiled where the recipe says so.

        Raises:
            WrongStepError: what was compiled computes something else.
        """
        if not self.recipe.run.compile:
            yield self.objective
            return
        steps = map(self.prepared, self.loader.steps(self.plan, 0, 8))
        how = {"compare": self.step == 0, "clear": self._clear, "tell": self.ranks.tell}
        with compiled_objective(self.objective, self.model, steps, **how) as objective:  # type: ignore[arg-type]
            yield objective

    def _clear(self) -> None:
        for shared in self.shared.values():
            shared.clear()

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
