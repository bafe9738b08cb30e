"""`gfm bench scaling`, `training`, `multitask`, `alone`, `ablation`, `finetune`, `labels`, `pretraining`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.cli_options import add_output, counts, finish, integers, peer, words
from gfm_calc.commands.options import DEFAULT_MODEL, natural, new_parser, positive, positive_int
from gfm_calc.errors import ConfigError, did_you_mean


def add_parsers(benches: Any) -> None:
    """Register them."""
    for add in (
        _add_scaling, _add_training, _add_multitask, _add_alone, _add_ablation, _add_finetune, _add_labels, _add_pretraining,
    ):  # fmt: skip
        add(benches)


def _add_scaling(benches: Any) -> None:
    parser = new_parser(
        benches, "scaling", run_scaling, summary="training on several processes: equality, speed, bytes, a model of it",
        example="gfm bench scaling --data datasets --processes 1,2,4 -o scaling.json",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of datasets, see gfm data build"
    )
    parser.add_argument("--processes", type=integers, default=(1, 2, 4), metavar="N,N", help="default: 1,2,4")
    parser.add_argument("--steps", type=positive_int, default=60, help="of each timed run; default: %(default)s")
    parser.add_argument("--structures", type=positive_int, default=16, help="a process and step; default: %(default)s")
    parser.add_argument("--repeats", type=positive_int, default=3, help="medians of so many; default: %(default)s")
    parser.add_argument("--parts", type=words, default=None, metavar="NAME,NAME",
                        help="of equality, weak, strong, volume, precision, model; default: all")  # fmt: skip
    add_output(parser)


def _add_training(benches: Any) -> None:
    parser = new_parser(
        benches, "training", run_training, summary="structures a second of training, beside other models",
        example="gfm bench training --compile --peer hydragnn=PYTHON --checkout HydraGNN --peer schnetpack=PYTHON",
    )  # fmt: skip
    parser.add_argument("--structures", type=Path, metavar="FILE", help="labelled: train on these, not on made ones")
    parser.add_argument("--count", type=positive_int, default=256, help="of structures; default: %(default)s")
    parser.add_argument("--batch", type=positive_int, default=32, help="structures in a step; default: %(default)s")
    parser.add_argument("--turns", type=positive_int, default=7, help="medians of so many; default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="ours compiled too, beside eager")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="hydragnn or schnetpack, and the python of an environment for it")  # fmt: skip
    parser.add_argument("--against", type=words, default=("hydragnn", "schnetpack-128", "schnetpack-64"),
                        metavar="NAME,NAME", help="default: hydragnn,schnetpack-128,schnetpack-64")  # fmt: skip
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="of HydraGNN (default: $HYDRAGNN_CHECKOUT)")
    add_output(parser)


def _add_multitask(benches: Any) -> None:
    parser = new_parser(
        benches, "multitask", run_multitask, summary="what heads gain by training together, against each alone",
        example="gfm bench multitask --data datasets --draws 20000 --seeds 3 -o multitask.json",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of datasets, see gfm data build"
    )
    parser.add_argument("--heads", type=words, default=(), metavar="NAME,NAME", help="folders in DIR (default: all)")
    parser.add_argument("--draws", type=positive_int, default=4000, help="structures a head sees; default: %(default)s")
    parser.add_argument("--structures", type=positive_int, default=4, help="of a head in a step; default: %(default)s")
    _add_runs(parser, seeds=3)
    add_output(parser)


def _add_alone(benches: Any) -> None:
    parser = new_parser(
        benches, "alone", run_alone, summary="the heads of a model beside networks that learnt one head each",
        example="gfm bench alone --data datasets --stages gfm-small,gfm-small-2 --processes 2 --work runs -o alone.json",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or directory (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the model's datasets")
    parser.add_argument("--stages", type=words, required=True, metavar="RECIPE,RECIPE",
                        help="of the model's training, in order: a network alone sees as many of its structures")  # fmt: skip
    parser.add_argument("--heads", type=words, default=(), metavar="NAME,NAME", help="of the model (default: all)")
    _add_processes(parser)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what was prepared, for the next time")
    _add_settings(parser)
    _add_work(parser)
    add_output(parser)


def _add_ablation(benches: Any) -> None:
    parser = new_parser(
        benches, "ablation", run_ablation, summary="what changes of a recipe do to validation errors",
        example="gfm bench ablation variants.toml --recipe gfm-small --set data.path=datasets --set run.steps=4000 --seeds 3",
    )  # fmt: skip
    parser.add_argument(
        "variants", type=Path, metavar="FILE", help="TOML: [[variants]], each with a name and what it sets"
    )
    parser.add_argument("--repeats", type=natural, default=0, metavar="N",
                        help="of the recipe itself with other seeds: what is noise; default: 0")  # fmt: skip
    _add_processes(parser)
    _add_runs(parser, seeds=1)
    add_output(parser)


def _add_runs(parser: argparse.ArgumentParser, seeds: int) -> None:
    """What the runs of a comparison have in common."""
    parser.add_argument("--recipe", default="tiny", help="packaged name or file (default: %(default)s)")
    parser.add_argument("--seeds", type=positive_int, default=seeds, help="runs of each kind; default: %(default)s")
    _add_settings(parser)
    _add_work(parser)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=positive_int, default=1, metavar="N",
                        help="trainings at a time, of one thread each; default: %(default)s")  # fmt: skip


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="instead of what the recipe says, for all runs")  # fmt: skip


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="keep the runs there: the same command goes on where it was (default: nothing is kept)")  # fmt: skip


def _add_finetune(benches: Any) -> None:
    from gfm_calc.finetune.cli import add_cheap

    parser = new_parser(
        benches, "finetune", run_finetune, summary="downstream tasks: fine-tuned models against random weights",
        example="gfm bench finetune rmd17 --data FOLDER --cases aspirin,ethanol --sizes 50 -o rmd17.json",
    )  # fmt: skip
    parser.add_argument(
        "task", metavar="TASK", help="rmd17, qm9, matbench_phonons, ... (finetune/README.md), or a TOML file"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the files of the task")
    parser.add_argument("--model", action="append", default=[], metavar="MODEL",
                        help=f"name or directory; may be given several times (default: {DEFAULT_MODEL})")  # fmt: skip
    parser.add_argument("--cases", type=words, default=(), metavar="NAME,NAME", help="of the task (default: all)")
    parser.add_argument(
        "--sizes", type=counts, default=(), metavar="N,N", help="training structures, 0 for all (default: the task's)"
    )
    parser.add_argument("--no-scratch", dest="scratch", action="store_false", help="leave random weights out")
    parser.add_argument("--seeds", type=positive_int, default=1, help="runs of each kind; default: %(default)s")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="of each run (default: as gfm finetune)")
    parser.add_argument("--max-minutes", type=positive, metavar="M", help="of each run (default: no limit)")
    parser.add_argument("--strategy", metavar="NAME", help="of gfm finetune (default: its choice)")
    add_cheap(parser)
    _add_peers(parser)
    parser.add_argument(
        "--forgetting",
        dest="keep_heads",
        action="store_true",
        help="also keep the old heads, with replay and with --naive: what they forget",
    )
    parser.add_argument(
        "--old-data",
        type=Path,
        metavar="DATASETS",
        help="with --forgetting: what the model was trained on; old heads are tried on what was held out from it",
    )
    parser.add_argument("--old-recipe", metavar="RECIPE",
                        help=f"says what was held out (default: {DEFAULT_MODEL})")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what was prepared from --old-data")
    _add_work(parser)
    add_output(parser)


def _add_labels(benches: Any) -> None:
    parser = new_parser(
        benches, "labels", run_labels, summary="how many labels pre-training saves, over many tasks",
        example="gfm bench labels --data FOLDER --work runs -o labels.json",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the files of the tasks")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or directory (default: %(default)s)")
    parser.add_argument("--tasks", type=words, default=(), metavar="NAME,NAME", help="these alone (default: all)")
    parser.add_argument("--seeds", type=positive_int, default=1, help="runs of each kind; default: %(default)s")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="of each run (default: as gfm finetune)")
    parser.add_argument("--max-minutes", type=positive, metavar="M", help="of each run (default: no limit)")
    _add_work(parser)
    add_output(parser)


def _add_pretraining(benches: Any) -> None:
    parser = new_parser(
        benches, "pretraining", run_pretraining, summary="models pre-trained in several ways, over many tasks",
        example="gfm bench pretraining --data FOLDER --model many_heads --model one_head --work runs -o pretraining.json",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the files of the tasks")
    parser.add_argument("--model", action="append", default=[], metavar="MODEL",
                        help=f"name or directory; may be given several times (default: {DEFAULT_MODEL})")  # fmt: skip
    parser.add_argument("--tasks", type=words, default=(), metavar="NAME,NAME", help="these alone (default: all)")
    parser.add_argument("--seeds", type=positive_int, default=3, help="runs of each kind; default: %(default)s")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="of each run (default: as gfm finetune)")
    _add_peers(parser)
    _add_work(parser)
    add_output(parser)


def _add_peers(parser: Any) -> None:
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="chgnet or schnetpack, and the python of an environment for it: they learn the same structures in "
                        "as many seconds")  # fmt: skip


def _peers(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What `--peer` says."""
    from gfm_calc.benchmarks.finetune_peers import PEERS

    for name, _ in given:
        if name not in PEERS:
            raise ConfigError(f"no peer {name!r}{did_you_mean(name, PEERS)}; peers: {', '.join(PEERS)}")
    return dict(given)


def run_scaling(args: argparse.Namespace) -> None:
    """Train on one process and several."""
    from gfm_calc.benchmarks.scaling import PARTS, ScalingPlan, run_scaling

    unknown = [part for part in args.parts or () if part not in PARTS]
    if unknown:
        raise ConfigError(f"--parts: no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    if args.processes[0] != 1 or 2 not in args.processes:
        raise ConfigError("--processes: begin with 1, and 2 must be among them")
    plan = ScalingPlan(
        data=args.data, processes=args.processes, steps=args.steps, structures=args.structures, repeats=args.repeats,
        parts=args.parts or PARTS,
    )  # fmt: skip
    finish(args, "scaling", threads=1, **run_scaling(plan))


def run_training(args: argparse.Namespace) -> None:
    """Measure steps of training."""
    from gfm_calc.benchmarks.training import TrainingPlan, matches_of, peer_versions, run_training

    plan = TrainingPlan(
        peers=dict(args.peer), checkout=args.checkout, frames=args.structures, count=args.count, batch=args.batch,
        turns=args.turns, compile=args.compile, matches=matches_of(args.against),
    )  # fmt: skip
    measured = run_training(plan)
    settings = {"batch": plan.batch, "turns": plan.turns, "dtype": "float32"}
    versions = peer_versions(measured["matches"])
    finish(args, "training", threads=1, extra_versions=versions, settings=settings, **measured)


def run_multitask(args: argparse.Namespace) -> None:
    """Train heads together and alone."""
    from gfm_calc.benchmarks.multitask import MultitaskPlan, run_multitask, start_of

    plan = MultitaskPlan(
        data=args.data, heads=args.heads, draws=args.draws, structures=args.structures, seeds=args.seeds,
        recipe=args.recipe, settings=args.settings, work=args.work,
    )  # fmt: skip
    about = {"draws": plan.draws, "structures": plan.structures, "seeds": plan.seeds, "start": start_of(plan)}
    finish(args, "multitask", threads=1, about=about, heads=run_multitask(plan))


def run_alone(args: argparse.Namespace) -> None:
    """Train heads alone."""
    from gfm_calc.benchmarks.alone import AlonePlan, run_alone

    plan = AlonePlan(
        model=args.model, data=args.data, stages=args.stages, heads=args.heads, processes=args.processes,
        settings=args.settings, work=args.work, cache=args.cache,
    )  # fmt: skip
    finish(args, "alone", threads=1, heads=run_alone(plan))


def run_ablation(args: argparse.Namespace) -> None:
    """Train a recipe and its variants."""
    from gfm_calc.benchmarks.ablation import AblationPlan, read_variants, run_ablation

    title, variants = read_variants(args.variants)
    plan = AblationPlan(
        recipe=args.recipe, variants=variants, settings=args.settings, seeds=args.seeds, repeats=args.repeats,
        processes=args.processes, work=args.work,
    )  # fmt: skip
    finish(args, "ablation", threads=1, title=title, seeds=args.seeds, variants=run_ablation(plan))


def run_finetune(args: argparse.Namespace) -> None:
    """Fine-tune on a downstream task."""
    from gfm_calc.benchmarks.finetune_tasks import load_task
    from gfm_calc.benchmarks.finetuning import FinetunePlan, about, run_finetune
    from gfm_calc.finetune.cli import cheap_of
    from gfm_calc.train.cli import recipe_on
    from gfm_calc.train.preparation import load_heads

    peers = _peers(args.peer)
    if args.old_data and not args.keep_heads:
        raise ConfigError("--old-data is for --forgetting: no other run keeps old heads")
    if (args.old_recipe or args.cache) and not args.old_data:
        raise ConfigError("--old-recipe and --cache are for --old-data")
    task = load_task(args.task)

    @cache
    def old() -> list[Any]:
        recipe = recipe_on(args.old_data.resolve(), args.old_recipe or DEFAULT_MODEL)
        return load_heads(recipe, args.cache)

    plan = FinetunePlan(
        task=task, data=args.data, models=args.model or [DEFAULT_MODEL], cases=args.cases, sizes=args.sizes,
        scratch=args.scratch, seeds=args.seeds, steps=args.steps, max_minutes=args.max_minutes, strategy=args.strategy,
        cheap=cheap_of(args), peers=peers, keep_heads=args.keep_heads, old=old if args.old_data else tuple,
        work=args.work,
    )  # fmt: skip
    finish(args, "finetune", model=plan.models[0], task=about(task), rows=run_finetune(plan))


def run_pretraining(args: argparse.Namespace) -> None:
    """Fine-tune several models, and random weights, to many tasks."""
    from gfm_calc.benchmarks.pretraining import PretrainingPlan, origins, peers_of, run_pretraining

    plan = PretrainingPlan(
        data=args.data, models=args.model or (DEFAULT_MODEL,), tasks=args.tasks, seeds=args.seeds, steps=args.steps,
        peers=_peers(args.peer), work=args.work,
    )  # fmt: skip
    about = {"seeds": plan.seeds, "steps": plan.steps, "models": origins(plan.models), "peers": peers_of(plan)}
    finish(args, "pretraining", of_model=False, **about, rows=run_pretraining(plan))


def run_labels(args: argparse.Namespace) -> None:
    """Fine-tune to few labels of many tasks, and train random weights on more."""
    from gfm_calc.benchmarks.labels import LabelsPlan, run_labels

    plan = LabelsPlan(
        data=args.data, model=args.model, tasks=args.tasks, seeds=args.seeds, steps=args.steps, max_minutes=args.max_minutes,
        work=args.work,
    )  # fmt: skip
    how = {"seeds": plan.seeds, "steps": plan.steps, "max_minutes": plan.max_minutes}
    finish(args, "labels", model=plan.model, **how, rows=run_labels(plan))
