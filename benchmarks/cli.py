"""`gfm bench`: figures on accuracy, physics, speed and reliability, each a JSON file with its provenance."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.cli_options import (
    SPEED_PEERS,
    add_device,
    add_model,
    add_output,
    finish,
    head_file,
    integers,
    optional,
    peer,
    words,
)
from gfm_calc.benchmarks.cli_physics import add_physics
from gfm_calc.benchmarks.cli_screening import add_screening
from gfm_calc.benchmarks.cli_training import add_parsers
from gfm_calc.commands.options import DEFAULT_MODEL, new_parser, positive, positive_int
from gfm_calc.errors import ConfigError, GFMError


def add_parser(subparsers: Any) -> None:
    """Register `gfm bench` and its sub-commands."""
    summary = "accuracy, physics, speed and reliability figures"
    parser = subparsers.add_parser("bench", help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    benches = parser.add_subparsers(title="benchmarks", dest="benchmark", metavar="BENCHMARK", required=True)
    adders = (
        _add_speed,
        _add_heads,
        _add_accuracy,
        _add_uncertainty,
        add_physics,
        _add_data,
        add_parsers,
        add_screening,
        _add_reliability,
        _add_report,
        _add_card,
    )
    for add in adders:
        add(benches)


def _add_speed(benches: Any) -> None:
    parser = new_parser(
        benches, "speed", run_speed, summary="structures a second and ms an MD step, beside other models",
        example="gfm bench speed --threads 1,2 --compile --peer chgnet=PYTHON --peer sevennet=PYTHON -o speed.json",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument("--structures", type=Path, metavar="FILE", help="measure these instead of the built-in ones")
    parser.add_argument("--threads", type=integers, default=(1, 2), metavar="N,N", help="default: 1,2")
    parser.add_argument("--batch", type=integers, default=(1, 32, 256), metavar="N,N", help="default: 1,32,256")
    parser.add_argument("--md", type=words, default=("ethanol", "NaCl", "Cu", "Si"), metavar="NAME,NAME",
                        help="MD on these: ethanol (9 atoms), NaCl (64), Cu (256), Si (1000); '' for none")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="ours compiled too, beside eager")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help=SPEED_PEERS)  # fmt: skip
    parser.add_argument("--repeats", type=positive_int, default=5, help="medians of so many; default: %(default)s")
    parser.add_argument("--seconds", type=positive, default=1.0, help="for each measurement; default: %(default)s")
    add_device(parser, "cpu")
    add_output(parser)


def _add_heads(benches: Any) -> None:
    parser = new_parser(
        benches, "heads", run_heads, summary="what many heads cost compared with one",
        example="gfm bench heads --model gfm-small -o heads.json",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--batch", type=integers, default=(1, 32, 256), metavar="N,N", help="default: 1,32,256")
    parser.add_argument("--repeats", type=positive_int, default=9, help="medians of so many; default: %(default)s")
    add_device(parser, None)
    add_output(parser)


def _add_accuracy(benches: Any) -> None:
    parser = new_parser(
        benches, "accuracy", run_accuracy, summary="errors of every head on held-out groups of its data",
        example="gfm bench accuracy --data datasets --recipe gfm-small -o accuracy.json",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="DATASETS", help="folder of datasets, one a head")
    parser.add_argument("--recipe", default="gfm-small", metavar="RECIPE",
                        help="what the model was trained with, a file or a packaged one: it says what is held out "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what was prepared, for the next time")
    parser.add_argument("--max-frames", type=positive_int, metavar="N", help="test frames a head (default: all)")
    parser.add_argument("--before", metavar="MODEL", help="an older model: its errors on the same frames, beside")
    parser.add_argument("--before-name", metavar="WORDS",
                        help='what a table calls them, such as "the first packaged weights" (default: their id)')  # fmt: skip
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="a published model beside, on heads of its level of theory: chgnet or sevennet, and the python "
                        "of its environment; may be repeated")  # fmt: skip
    parser.add_argument("--peer-frames", type=positive_int, default=100, metavar="N",
                        help="test frames a head for --peer (default: %(default)s)")  # fmt: skip
    parser.add_argument("--write-cards", action="store_true", help="put the errors into the head cards of the model")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: %(default)s")
    add_device(parser, None)
    add_output(parser)


def _add_uncertainty(benches: Any) -> None:
    parser = new_parser(
        benches, "uncertainty", run_uncertainty, summary="whether expected errors tell where the errors are",
        example="gfm bench uncertainty --data datasets --outside gfn2-xtb=aspirin.extxyz -o uncertainty.json",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument(
        "--no-strict", dest="strict", action="store_false", help="count outside structures that the head refuses, too"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DATASETS", help="folder of datasets, one a head")
    parser.add_argument("--outside", type=head_file, action="append", default=[], metavar="HEAD=FILE",
                        help="labelled structures from outside a head's training data; may be given several times")  # fmt: skip
    parser.add_argument("--recipe", default="gfm-small", metavar="RECIPE",
                        help="what the model was trained with, a file or a packaged one: it says what is held out "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what was prepared, for the next time")
    parser.add_argument("--max-frames", type=positive_int, default=200, metavar="N",
                        help="of a head and set; default: %(default)s")  # fmt: skip
    parser.add_argument("--settings", action="store_true",
                        help="instead: ways to learn expected errors, judged on the validation side alone")  # fmt: skip
    add_output(parser)


def _add_data(benches: Any) -> None:
    parser = new_parser(
        benches, "data", run_data, summary="building, reading and loading datasets, beside other formats",
        example="gfm bench data --data pool -o data.json\n  gfm bench data --parts million --structures 1000000",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=".extxyz.xz files whose frames name head and group")
    parser.add_argument("--parts", type=words, default=("pool", "reads", "loader", "ranks", "million"),
                        metavar="NAME,NAME", help="of pool, reads, loader, ranks, million; default: all")  # fmt: skip
    parser.add_argument("--scratch", type=Path, metavar="DIR",
                        help="where the datasets are made, and removed in the end (default: the system's)")  # fmt: skip
    parser.add_argument("--structures", type=positive_int, default=10_000_000, metavar="N",
                        help="of the part million; default: %(default)s")  # fmt: skip
    parser.add_argument("--frames", type=integers, default=(20_000, 5_000), metavar="N,N",
                        help="molecules and crystals for reads, loader and ranks; default: 20000,5000")  # fmt: skip
    parser.add_argument("--rounds", type=positive_int, default=5, help="of turns; default: %(default)s")
    add_output(parser)


def _add_reliability(benches: Any) -> None:
    parser = new_parser(
        benches, "reliability", run_reliability, summary="the promises, tried: runs the tests that are marked so",
        example="gfm bench reliability --tests tests -o reliability.json",
    )  # fmt: skip
    parser.add_argument("--tests", type=Path, default=Path("tests"), help="of a checkout (default: %(default)s)")
    parser.add_argument("--long", action="store_true", help="the long counts, hours, instead of those of CI")
    add_output(parser)


def _add_report(benches: Any) -> None:
    parser = new_parser(
        benches, "report", run_report, summary="result files as Markdown tables",
        example="gfm bench report benchmarks/results/*.json > tables.md",
    )  # fmt: skip
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="JSON files of gfm bench")
    parser.add_argument("--into", type=Path, action="append", default=[], metavar="FILE",
                        help="put summaries between the result marks of this file; may be given several times")  # fmt: skip


def _add_card(benches: Any) -> None:
    parser = new_parser(
        benches, "card", run_card, summary="the model card: head cards and result files as Markdown",
        example="gfm bench card --results benchmarks/results -o gfm_calc/models/gfm-small/MODEL_CARD.md",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder of result files to quote")
    add_output(parser, "Markdown (default: the terminal)")


# ---- what the commands do; torch is imported from here on ----


def run_speed(args: argparse.Namespace) -> None:
    """Measure speed."""
    from gfm_calc.benchmarks.speed import SpeedPlan, read_sets, run_speed

    plan = SpeedPlan(
        model=args.model, head=args.head, device=args.device, threads=args.threads, compile=args.compile,
        peers=dict(args.peer), batches=args.batch, systems=args.md, repeats=args.repeats, seconds=args.seconds,
        sets=read_sets(args.structures) if args.structures else None,
    )  # fmt: skip
    measured = run_speed(plan)
    peers = {c["name"]: c["version"] for c in measured["contenders"] if c["name"] != "gfm-calc"}
    settings = {"repeats": plan.repeats, "seconds": plan.seconds, "timestep_fs": plan.timestep, "device": plan.device}
    finish(args, "speed", threads=plan.threads, extra_versions=peers, settings=settings, **measured)


def run_heads(args: argparse.Namespace) -> None:
    """Measure what heads cost."""
    from gfm_calc.benchmarks.heads import run_heads
    from gfm_calc.checkpoint import load_model
    from gfm_calc.predictor import parse_device

    model = load_model(args.model, device=parse_device(args.device))
    measured = run_heads(model, batches=args.batch, repeats=args.repeats)
    finish(args, "heads", settings={"repeats": args.repeats, "device": str(model.device)}, **measured)


def run_accuracy(args: argparse.Namespace) -> None:
    """Measure errors on the test split."""
    import torch

    from gfm_calc.benchmarks.accuracy import compare, measure, write_cards
    from gfm_calc.benchmarks.accuracy_peers import level_of, measure_peers
    from gfm_calc.benchmarks.provenance import ids_of
    from gfm_calc.benchmarks.remote import releases, remote_calculators
    from gfm_calc.checkpoint import load_model
    from gfm_calc.predictor import Predictor, parse_device, parse_dtype
    from gfm_calc.train.cli import recipe_on
    from gfm_calc.train.preparation import load_heads

    if args.before_name and (not args.before or "/" in args.before_name or "\\" in args.before_name):
        raise ConfigError(
            "--before-name: give words for a table, not a path, and the model that they name with --before"
        )
    about = {"before": {"name": args.before_name or "", **ids_of(args.before)}} if args.before else {}
    recipe = recipe_on(args.data, args.recipe)
    model = load_model(args.model, dtype=parse_dtype(args.dtype), device=parse_device(args.device))
    names = [model.spec(args.head).name] if args.head else list(model.energy_heads)
    found = load_heads(recipe, args.cache)
    ours = {name: Predictor(model, [name]) for name in names}
    peers: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    tested = [head.spec.name for head in found if head.spec.name in names and len(head.sides["test"])]
    levels = sorted({level_of(model.spec(name)) for name in tested} - {""}) if args.peer else []
    with ExitStack() as stack:  # all are started before anything is measured: what cannot start costs nothing
        beside = {
            level: stack.enter_context(
                remote_calculators(dict(args.peer), threads=torch.get_num_threads(), level=level)
            )
            for level in levels
        }
        heads = measure(ours, found, max_frames=args.max_frames)
        for level, calculators in beside.items():
            peers += measure_peers(ours, found, calculators, level=level, frames=args.peer_frames)
            versions |= releases(calculators)
    if args.before:
        older = load_model(args.before, dtype=parse_dtype(args.dtype), device=parse_device(args.device))
        both = {name: Predictor(older, [name]) for name in names if name in older.energy_heads}
        for name, entry in compare(both, ours, found, max_frames=args.max_frames).items():
            heads[name] |= entry
    if args.write_cards:
        write_cards(args.model, heads)
    settings = {"recipe": Path(args.recipe).name, "max_frames": args.max_frames or 0, "dtype": args.dtype}
    entries = [{"head": name, **entry} for name, entry in heads.items()]
    finish(args, "accuracy", extra_versions=versions, settings=settings, heads=entries, peers=peers, **about)


def run_uncertainty(args: argparse.Namespace) -> None:
    """Measure how well expected errors do."""
    from gfm_calc.benchmarks.uncertainty import UncertaintyPlan, means, run_uncertainty
    from gfm_calc.benchmarks.uncertainty_settings import run_settings
    from gfm_calc.checkpoint import load_model
    from gfm_calc.train.cli import recipe_on
    from gfm_calc.train.preparation import load_heads

    recipe = recipe_on(args.data, args.recipe)
    model = load_model(args.model)
    known = () if model.uncertainty is None else model.uncertainty.figures
    if args.head and model.spec(args.head).kind != "energy":
        raise ConfigError(
            f"head {args.head} is no head of energies: gfm finetune says what its expected errors are worth"
        )
    names = [args.head] if args.head else [name for name in known or model.energy_heads if name in model.energy_heads]
    if args.settings:
        if args.outside:
            raise ConfigError("--settings: outside structures are not looked at; leave --outside away")
        chosen = [head for head in load_heads(recipe, args.cache) if head.spec.name in names]
        rows = run_settings(model, chosen)
        left_out = [name for name in names if name not in rows[0]["heads"]]
        finish(args, "uncertainty_settings", settings={"recipe": Path(args.recipe).name}, rows=rows, left_out=left_out)
        return
    plan = UncertaintyPlan(heads=names, outside=args.outside, max_frames=args.max_frames, strict=args.strict)
    rows = run_uncertainty(model, load_heads(recipe, args.cache), plan)
    settings = {"recipe": Path(args.recipe).name, "max_frames": args.max_frames}
    finish(args, "uncertainty", settings=settings, means=means(rows), rows=rows)


def run_data(args: argparse.Namespace) -> None:
    """Measure the data platform."""
    from gfm_calc.benchmarks.data import DataPlan, run_data

    if len(args.frames) != 2:
        raise ConfigError("--frames: give two numbers, of molecules and of crystals")
    plan = DataPlan(
        folder=args.data, parts=args.parts, scratch=args.scratch, structures=args.structures, molecules=args.frames[0],
        crystals=args.frames[1], rounds=args.rounds,
    )  # fmt: skip
    measured = run_data(plan)
    others: dict[str, str] = {}
    for package in ("adios2", "h5py", "lmdb", "mpi4py"):
        others |= optional(package)
    finish(args, "data", extra_versions=others, settings={"rounds": plan.rounds}, **measured)


def run_reliability(args: argparse.Namespace) -> None:
    """Try the promises."""
    from gfm_calc.benchmarks.reliability import run_reliability

    promises = run_reliability(args.tests, long=args.long)
    finish(args, "reliability", settings={"counts": "long" if args.long else "CI"}, promises=promises)
    broken = [row["promise"] for row in promises if row["failed"]]
    if broken:
        raise GFMError(f"promises broken: {', '.join(broken)}")


def run_report(args: argparse.Namespace) -> None:
    """Print result files as Markdown, or put them into a README and the like."""
    from gfm_calc.artifacts import write_file
    from gfm_calc.benchmarks.provenance import read_result, weights_id
    from gfm_calc.benchmarks.report import markdown, with_results, without_results
    from gfm_calc.checkpoint import open_model
    from gfm_calc.commands.options import DEFAULT_MODEL

    results, weights = [read_result(path) for path in args.results], weights_id(open_model(DEFAULT_MODEL))
    if not args.into:
        print("\n\n".join(markdown(found, weights=weights) for found in results))
    changed = [with_results(path.read_text(encoding="utf-8"), results, weights=weights) for path in args.into]
    for path, text in zip(args.into, changed):
        write_file(path, text.encode())
        if missing := without_results(text, results):
            note = f"gfm: note: {path}: its result mark asks for {', '.join(missing)}, of which no result was given"
            print(note, file=sys.stderr)


def run_card(args: argparse.Namespace) -> None:
    """Print or write the model card."""
    from gfm_calc.artifacts import write_file
    from gfm_calc.benchmarks.card import model_card
    from gfm_calc.benchmarks.provenance import read_results, weights_id
    from gfm_calc.checkpoint import describe, open_model

    results = read_results(args.results) if args.results else []
    weights = weights_id(open_model(args.model))
    text = model_card(describe(args.model), results, name=Path(args.model).name, weights=weights)
    if args.output is None:
        print(text, end="")
    else:
        write_file(args.output, text.encode())


# ---- types of arguments ----
