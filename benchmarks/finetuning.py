"""`gfm bench finetune`: what pre-training is worth, task by task.

Arms: every model that is named, fine-tuned as `gfm finetune` does it where no old head is kept; the same after cheap labels,
and with old heads kept, where the plan says so; `scratch`: the architecture of the first one with random weights, on the same
structures for as many steps; and other codes on the same structures, in as many seconds as the first arm took.  What decides a
run (steps, batch) is that of `gfm finetune`.  What came out of a run is kept, where the plan names a folder.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gfm_calc import __version__
from gfm_calc.artifacts import canonical_json, read_json, sha256_of_file, write_file
from gfm_calc.benchmarks import finetune_peers
from gfm_calc.benchmarks.accuracy import compare
from gfm_calc.benchmarks.finetune_tasks import KINDS, Case, Task
from gfm_calc.benchmarks.provenance import weights_id
from gfm_calc.benchmarks.runs import folder_of_runs
from gfm_calc.benchmarks.task_files import Files, files_of, find, require
from gfm_calc.checkpoint import load_model, open_model
from gfm_calc.commands.progress import Progress
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.split_files import save_split
from gfm_calc.data.splits import fixed
from gfm_calc.errors import ConfigError, CorruptFileError
from gfm_calc.finetune.cheap import check
from gfm_calc.finetune.plan import HARMLESS, Cheap, Job
from gfm_calc.finetune.run import card, errors_of, finetune
from gfm_calc.finetune.setup import Setup
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor
from gfm_calc.train.evaluation import mae
from gfm_calc.train.parallel import Ranks, discover
from gfm_calc.train.preparation import Head, prepare
from gfm_calc.train.recipe import HeadRecipe, Recipe, StartRecipe
from gfm_calc.train.run_folder import open_run
from gfm_calc.train.trainer import Trainer

SCRATCH = "scratch"
_HEAD = "task"
_REPLAY, _NAIVE = "replay", "naive"
_OLD_FRAMES = 600  # a head, at most: of 150, a few violent ones decide
_HELD_OUT = 0.2  # of the structures, where a task has no official split
# Random weights want a higher learning rate than trained ones; Muon's is that of pre-training.
_SCRATCH_RATES = {"adamw": 1e-3, "muon": 3e-3}


@dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """What to compare.

    Attributes:
        task; data: folder of its files.  cases: of the task, () for all.  sizes: training structures, () for the task's.
        alike: the test structures are those of the official ones that the runs of all sizes can predict, and all runs draw
            from the same ones for training.
        models: names or directories.  scratch: beside them, the architecture of the first with random weights.
        seeds: of each run.  steps: instead of those that `gfm finetune` takes.  max_minutes: of each run.
        strategy: of `gfm finetune`, None for its choice.  cheap: labels that every model learns first, in a run of its own.
        peers: of `finetune_peers.PEERS`, and the python of an environment for each.
        keep_heads: the old heads are kept, too, in runs of their own: one with replay and one with no guard (--naive).
        old: gives what the models were trained on, as `preparation.load_heads`: kept heads are tried on what was held out.
        work: folder that keeps what came out, see `runs.folder_of_runs`.
    """

    task: Task
    data: Path
    models: Sequence[str]
    cases: Sequence[str] = ()
    sizes: Sequence[int] = ()
    alike: bool = False
    scratch: bool = True
    seeds: int = 1
    steps: int | None = None
    max_minutes: float | None = None
    strategy: str | None = None
    cheap: Cheap | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    keep_heads: bool = False
    old: Callable[[], Sequence[Head]] = tuple
    work: Path | None = None


def _sizes(plan: FinetunePlan) -> tuple[int, ...]:
    return tuple(plan.sizes or plan.task.sizes)


def run_finetune(plan: FinetunePlan) -> list[dict[str, Any]]:
    """Rows {case, metric, size (0: all), arm, model_id, strategy, steps, seconds (a run), errors (name -> one value a seed),
    published (model -> value), overlap (what the model has seen of the task, "" for nothing), forgetting (head -> what is added
    to its error, one fraction a seed, see `forgetting.Drift`; empty where none is kept), held_out (head -> {frames, energy,
    forces: by how much its mean absolute error on frames held out from its training grew, one fraction a seed}; empty without
    `FinetunePlan.old`)}; errors are those of `evaluation.figures` on the official test structures.

    Raises:
        GFMError: files that are missing, or a run that failed.
    """
    cases = [plan.task.case(name) for name in plan.cases or [case.name for case in plan.task.cases]]
    sizes = _sizes(plan)
    if not plan.models:
        raise ConfigError("give at least one --model to fine-tune")
    arms = [arm.name for arm in _arms(plan)]
    if len(set(arms)) < len(arms):
        raise ConfigError(f"--model: two directories of one name ({', '.join(plan.models)}): rename one, rows go by it")
    for case in cases:
        require(plan.data, plan.task, case)
        if plan.cheap is not None:
            check(plan.cheap, kind=KINDS[case.kind][0], strategy=plan.strategy)
    rows = []
    total = len(cases) * len(sizes) * plan.seeds * len(arms)
    with folder_of_runs(plan.work) as folder, Progress("finetune", "runs", total) as progress:
        for case in cases:
            for size in sizes:
                runs: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in arms}
                for seed in range(plan.seeds):
                    for arm, found in _finished(folder, plan, case, size, seed).items():
                        runs[arm].append(found)
                        progress.advance()
                rows += [_row(plan, case, size, arm, found) for arm, found in runs.items()]
    return rows


@dataclass(frozen=True)
class _Arm:
    """`model` is fine-tuned, after `cheap` labels or at once; or `scratch`, random weights of its architecture; or a `peer`
    learns as long as the model did.  guard: of old heads that are kept, "replay" or "naive"; "": none is kept."""

    model: str
    cheap: Cheap | None = None
    scratch: bool = False
    guard: str = ""
    peer: str = ""

    @property
    def name(self) -> str:
        """In the rows."""
        if self.scratch:
            return SCRATCH
        if self.peer:
            return finetune_peers.PEERS[self.peer]
        name = Path(self.model).name
        if self.guard:
            return f"{name}, old heads kept" + (" (--naive)" if self.guard == _NAIVE else "")
        return f"{name} after {self.cheap.structures:,} x {self.cheap.calculator}" if self.cheap else name

    def identity(self) -> list[Any]:
        """What it does with a model; without guard and peer as it was before there were any, so that kept results stay known."""
        own = asdict(replace(self, model=""))
        later = [own.pop(name) for name in ("guard", "peer")]
        return [own, *(value for value in later if value)]


def _arms(plan: FinetunePlan) -> list[_Arm]:
    """What is compared, in the order of the rows."""
    before = [None] if plan.cheap is None else [None, plan.cheap]
    guards = (_REPLAY, _NAIVE) if plan.keep_heads else ()
    tuned = [
        arm
        for model in plan.models
        for arm in (*(_Arm(model, cheap) for cheap in before), *(_Arm(model, guard=guard) for guard in guards))
    ]
    first = plan.models[0]
    beside = [_Arm(first, peer=peer) for peer in plan.peers]
    return [*tuned, *([_Arm(first, scratch=True)] if plan.scratch else []), *beside]


def _finished(folder: Path, plan: FinetunePlan, case: Case, size: int, seed: int) -> dict[str, Mapping[str, Any]]:
    """{name of an arm: what came out} of a case, size and seed; what `folder` keeps is not run again."""
    kept = {arm: folder / _kept_as(plan, arm, case, size, seed) for arm in _arms(plan)}
    missing = [arm for arm, path in kept.items() if not path.exists()]
    first = kept[_Arm(plan.models[0])]
    seconds = _read(first)["seconds"] if first.exists() else None
    for arm, found in _runs(plan, case, size, seed, missing, seconds):
        write_file(kept[arm], canonical_json(found))
    return {arm.name: _read(path) for arm, path in kept.items()}


def _kept_as(plan: FinetunePlan, arm: _Arm, case: Case, size: int, seed: int) -> str:
    """Another name for everything that another result may come from, but for changes of our code within a version."""
    names = (case.train, case.test, case.isolated, case.table, case.test_rows.get("file"))
    files = [sha256_of_file(find(plan.data, plan.task, name)) for name in names if name]
    task = replace(plan.task, cases=(case,), sizes=(size,), title="", published=(), note="")  # words change no run
    how = [
        seed,
        plan.steps,
        plan.max_minutes,
        plan.strategy,
        __version__,
        *([torch.get_num_threads()] if arm.peer else []),
        *([list(_sizes(plan))] if plan.alike else []),
        *([_held_out(plan)] if arm.guard and plan.old() else []),
    ]
    about = [asdict(task), *arm.identity(), weights_id(open_model(arm.model)), files, how]
    return f"run-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}.json"


def _held_out(plan: FinetunePlan) -> list[str]:
    """Stands for all frames that old heads are tried on."""
    return [f"{h.dataset.digest} {hashlib.sha256(h.sides['test'].tobytes()).hexdigest()}" for h in plan.old()]


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not {"errors", "steps", "seconds"} <= set(found):
        raise CorruptFileError(f"{path}: holds no result of a run: damaged, remove it")
    return found


def _runs(
    plan: FinetunePlan, case: Case, size: int, seed: int, wanted: Sequence[_Arm], seconds: float | None
) -> Iterator[tuple[_Arm, Mapping[str, Any]]]:
    """Arms of a case, size and seed, and what came out.  Random weights and peers need the first arm, which says what to do, and
    peers its `seconds`, where it was run before.
    """
    if not wanted:
        return
    first = _Arm(plan.models[0])
    followers = [arm for arm in wanted if arm.scratch or arm.peer]
    with tempfile.TemporaryDirectory(prefix="gfm-finetune-") as folder:
        curve = _sizes(plan) if plan.alike else ()
        most = 0 if 0 in (size, *curve) else max((size, *curve))  # in tables no more are read
        files = files_of(plan.data, plan.task, case, size=most, seed=seed, place=Path(folder))
        for number, arm in enumerate(_arms(plan)):
            if arm.scratch or arm.peer or (arm not in wanted and not (arm == first and followers)):
                continue
            where = {"model": arm.model, "cheap": arm.cheap, "output": Path(folder) / f"model{number}"}
            where |= {"keep": None if arm.guard else (), "naive": arm.guard == _NAIVE}
            job = replace(_job(plan, case, files, seed), max_train=size or None, curve=curve, **where)
            since = time.perf_counter()
            outcome = finetune(job, resume=False, say=lambda line: None)
            if isinstance(outcome, str):
                raise KeyboardInterrupt
            start = outcome.setup.origin
            seen = "; ".join(text for head, text in plan.task.overlaps.items() if head in start.specs)
            about = {"strategy": outcome.setup.strategy.name, "model_id": start.model_id, "overlap": seen}
            lost = {drift.head: drift.loss for drift in outcome.drifts if drift.loss == drift.loss}  # not NaN
            result = _result(outcome.after, outcome.steps, since) | about | {"forgetting": lost}
            if arm.guard:
                result["held_out"] = _growth(start, outcome.model, plan.old())
            if arm in wanted:
                yield arm, result
            for follower in followers if arm == first else ():
                since = time.perf_counter()
                found = _follow(plan, follower, outcome.setup, Path(folder), seed, seconds or result["seconds"])
                yield follower, _result(found.pop("errors"), found.pop("steps"), since) | _UNLIKE | found


_UNLIKE = {"strategy": SCRATCH, "model_id": "", "overlap": ""}  # what follows an arm is none of our models


def _follow(plan: FinetunePlan, arm: _Arm, setup: Setup, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Errors and steps of random weights or a peer, on the structures of a fine-tuning that took so long."""
    if arm.peer:
        python, place = plan.peers[arm.peer], folder / arm.peer
        place.mkdir()
        found = finetune_peers.learn(arm.peer, python, setup, seconds=seconds, seed=seed, folder=place)
        seen = finetune_peers.SEEN.get((arm.peer, plan.task.name), "")
        return found | {"strategy": "its own", "budget": seconds, "overlap": seen}
    errors, steps = _scratch(setup, folder / SCRATCH)
    return {"errors": errors, "steps": steps}


def _job(plan: FinetunePlan, case: Case, files: Files, seed: int) -> Job:
    """The fine-tuning of a case; number of structures, model, cheap labels, old heads and folder are still to be set."""
    task, (kind, extensive) = plan.task, KINDS[case.kind]
    about = {**task.card, "licence": task.licence, "citation": task.citation, "kind": kind, "extensive": extensive}
    about |= {"quantity": case.label, "unit": case.unit} if case.label else {}
    return Job(
        inputs=(files.train,), test_files=(files.test,) if files.test else (), model="", output=Path(),
        card=card(_HEAD, [files.train], about), options=ReadOptions(**task.read, property_key=case.label),
        drop_shared=files.test is not None,
        validation=0.0, test=0.0 if files.test else _HELD_OUT, seed=seed, steps=plan.steps, max_minutes=plan.max_minutes,
        strategy=plan.strategy, isolated=files.isolated, device="cpu", report=False,
        accepted=HARMLESS,  # published data are what they are
    )  # fmt: skip


def _scratch(setup: Setup, folder: Path) -> tuple[Mapping[str, Any], int]:
    """Errors of random weights after the same steps on the same structures, and how many steps."""
    began = setup.recipe
    lists = {
        side: [f"{record.source}:{record.frame}" for record in setup.dataset.read(rows, names=True).records()]
        for side, rows in setup.sides.as_mapping().items()
        if rows.size
    }
    save_split(folder.with_suffix(".json"), fixed(lists, by="frame"), {})
    data = replace(began.data, split=str(folder.with_suffix(".json")))
    highest = _SCRATCH_RATES[began.optimizer.method]
    rate = replace(began.optimizer, learning_rate=highest, final_learning_rate=highest / 100)
    head = HeadRecipe(name=setup.dataset.head.name, reference_energies=dict(setup.sides.isolated))
    batch = replace(began.run, structures=setup.strategy.structures)
    recipe: Recipe = replace(began, data=data, start=StartRecipe(), heads=(head,), optimizer=rate, run=batch)
    ranks = Ranks(discover(), "cpu", patience=recipe.parallel.patience)
    try:
        with open_run(folder, recipe, ranks, resume=False, prepare=prepare) as heads:
            trainer = Trainer(recipe, heads, ranks, folder, lambda line: None)
            trainer.run()
            return errors_of(trainer, heads[0], "test"), trainer.step
    finally:
        ranks.close()


def _growth(before: GFMModel, after: GFMModel, heads: Sequence[Head]) -> dict[str, dict[str, float]]:
    """{head: {frames, energy, forces}}, see `run_finetune`, of those that have labels."""
    names = [h.spec.name for h in heads if h.spec.name in before.energy_heads and h.spec.name in after.specs]
    ways = [{name: Predictor(model, [name], strict=False) for name in names} for model in (before, after)]
    grown = {}
    for name, found in compare(ways[0], ways[1], heads, max_frames=_OLD_FRAMES).items():
        terms = {term: mae(term) for term in ("energy", "forces") if mae(term) in found["before"]}
        if terms:
            lost = {term: found["now"][key] / found["before"][key] - 1 for term, key in terms.items()}
            grown[name] = {"frames": found["before"]["frames"], **lost}
    return grown


def _result(errors: Mapping[str, Any], steps: int, since: float) -> dict[str, Any]:
    return {"errors": dict(errors), "steps": steps, "seconds": round(time.perf_counter() - since, 1)}


def _row(plan: FinetunePlan, case: Case, size: int, arm: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    task = plan.task
    names = [name for name in runs[0]["errors"] if name != "frames"]
    return {
        "case": case.name, "unit": case.unit, "metric": task.metric_of(case), "size": size, "arm": arm,
        "overlap": runs[0]["overlap"], "model_id": runs[0]["model_id"],
        "strategy": runs[0]["strategy"], "steps": runs[0]["steps"], "test_frames": runs[0]["errors"]["frames"],
        "seconds": round(statistics.fmean(run["seconds"] for run in runs), 1),
        "errors": {name: [float(f"{run['errors'][name]:.5g}") for run in runs] for name in names},
        "forgetting": {
            head: [float(f"{run['forgetting'][head]:.3g}") for run in runs] for head in runs[0].get("forgetting", {})
        },
        "held_out": {
            head: {
                term: value if term == "frames" else [float(f"{run['held_out'][head][term]:.3g}") for run in runs]
                for term, value in found.items()
            }
            for head, found in runs[0].get("held_out", {}).items()
        },
        **({name: runs[0][name] for name in ("version", "budget") if name in runs[0]}),
        "published": _published(task, case, size),
    }  # fmt: skip


def _published(task: Task, case: Case, size: int) -> dict[str, float]:
    """{model: value} for so many training structures; where nobody reports any, for others, whose number is said."""
    known = [p for p in task.published if case.name in p.values]
    same = {p.model: p.values[case.name] for p in known if p.size == size}
    return same or {f"{p.model} ({f'{p.size:,}' if p.size else 'all'} structures)": p.values[case.name] for p in known}


def about(task: Task) -> dict[str, Any]:
    """What a result says of its task."""
    sources = {entry.model: entry.source for entry in task.published}
    return json.loads(
        json.dumps(
            {"name": task.name, "title": task.title, "metric": task.metric, "sources": sources, "note": task.note}
        )
    )


def parameters(model: str) -> int:
    """Of the architecture that the arms share."""
    return sum(p.numel() for p in load_model(model).parameters())
