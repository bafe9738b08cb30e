"""`gfm finetune`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfm_calc.commands.data import BY
from gfm_calc.commands.options import DEFAULT_MODEL, apply_threads, natural, new_parser, positive, positive_int
from gfm_calc.commands.read_options import add_property_kind, add_read_options, property_values, read_options
from gfm_calc.errors import ConfigError

if TYPE_CHECKING:
    from gfm_calc.finetune.plan import Cheap

_EXAMPLE = """gfm finetune frames.extxyz --from gfm-small --head my-dft -o my-model
  gfm finetune train.extxyz --test-file test.extxyz --head my-dft --max-minutes 20 -o my-model
  gfm finetune train.extxyz --test-file test.extxyz --head my-dft --max-minutes 20 -o my-model --resume
  gfm finetune few.extxyz --head my-dft --cheap-labels tblite:GFN2-xTB -o my-model
  gfm finetune oxides.extxyz --head gap --property band_gap --kind intensive --unit eV -o gaps"""
_CARD = ("code", "functional", "basis", "dispersion", "labels", "description", "licence", "citation")


def add_parser(subparsers: Any) -> None:
    """Register `gfm finetune`."""
    parser = new_parser(
        subparsers, "finetune", run, example=_EXAMPLE,
        summary="add a head for your own energies and forces, or with --property for a property, to a model",
    )  # fmt: skip
    parser.add_argument("input", nargs="+", type=Path, metavar="DATA", help="files of labelled structures")
    parser.add_argument("--from", dest="model", default=DEFAULT_MODEL, metavar="MODEL",
                        help="packaged name or directory (default: %(default)s)")  # fmt: skip
    parser.add_argument("--head", required=True, metavar="NAME", help="of the new head: the level of theory")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="of the model and its report")
    parser.add_argument("--resume", action="store_true", help="go on where the job in DIR was")
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave the HTML pages out")
    _add_data(parser.add_argument_group("data"))
    _add_training(parser.add_argument_group("training"))
    add_cheap(parser.add_argument_group("cheap labels first"))
    card = parser.add_argument_group("the head's card")
    add_property_kind(card)
    for name in _CARD:
        card.add_argument(f"--{name}", metavar="TEXT")
    add_read_options(parser)


def _add_data(group: Any) -> None:
    group.add_argument("--test-file", action="append", default=[], type=Path, metavar="FILE",
                       help="held out whole; may be given several times (default: drawn from DATA)")  # fmt: skip
    group.add_argument("--drop-shared", action="store_true",
                       help="structures of test files that are in DATA too are not trained on (default: refuse)")  # fmt: skip
    group.add_argument("--isolated-atoms", type=Path, metavar="JSON",
                       help="energies of free atoms, {symbol: eV} (default: those among DATA, or a fit)")  # fmt: skip
    group.add_argument(
        "--max-train", type=positive_int, metavar="N", help="at most so many training structures, seeded"
    )
    group.add_argument("--validation", type=float, default=0.1, metavar="X", help="fraction (default: %(default)s)")
    group.add_argument("--test", type=float, default=0.1, metavar="X", help="fraction (default: %(default)s)")
    group.add_argument("--by", choices=("auto", *BY), default="auto", metavar="KEY",
                       help="what stays on one side: auto, group, composition, molecule, prototype, file, frame")  # fmt: skip
    group.add_argument("--accept", action="append", default=[], metavar="CODE",
                       help="go on in spite of a finding of the inspection; may be given several times")  # fmt: skip


def _add_training(group: Any) -> None:
    group.add_argument("--strategy", metavar="NAME", help="heads, adapters or full (default: by the size of the data)")
    group.add_argument("--naive", action="store_true", help="all weights at one rate, old heads unguarded")
    group.add_argument("--keep-heads", default="all", metavar="NAMES",
                       help="old heads in the new model: all (default), none, or names with commas")  # fmt: skip
    group.add_argument("--steps", type=positive_int, metavar="N", help="of training (default: by the size of the data)")
    group.add_argument(
        "--max-minutes",
        type=positive,
        metavar="M",
        help="for everything but expected errors and the report: training is shorter (at least half of M), and old heads "
        "repeat fewer structures; with --resume, so long from then on",
    )
    group.add_argument("--seed", type=natural, default=0, help="default: %(default)s")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    group.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: %(default)s")
    group.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: torch's)")


def add_cheap(group: Any) -> None:
    """The options of `cheap_of`."""
    group.add_argument("--cheap-labels", metavar="CALCULATOR",
                       help="label structures around the training ones with it and learn those first: tblite:GFN2-xTB, or "
                       "another name of gfm data label; a label is left out after 5 minutes, dynamics after 60")  # fmt: skip
    group.add_argument("--cheap-options", metavar="JSON", default="{}", help="arguments for the calculator")
    group.add_argument("--cheap-structures", type=positive_int, default=1000, metavar="N", help="default: %(default)s")
    group.add_argument("--cheap-temperature", type=positive, default=500.0, metavar="K",
                       help="of the dynamics that makes them (default: %(default)s)")  # fmt: skip
    group.add_argument(
        "--cheap-steps", type=positive_int, metavar="N", help="of learning them (default: by their number)"
    )


def run(args: argparse.Namespace) -> None:
    """Fine-tune; exit code 0 where there is a model, 128 + signal where one ended the run.

    Raises:
        GFMError: see `run.finetune`.
    """
    from gfm_calc.finetune.plan import Job
    from gfm_calc.finetune.run import card, finetune

    for name in ("validation", "test"):
        if not 0 <= getattr(args, name) < 0.9:
            raise ConfigError(f"--{name} must be a fraction below 0.9, not {getattr(args, name):g}")
    apply_threads(args)
    keep = {"all": None, "none": ()}.get(args.keep_heads, tuple(args.keep_heads.split(",")))
    described = {name: getattr(args, name) for name in _CARD} | property_values(args)
    job = Job(
        inputs=tuple(args.input), test_files=tuple(args.test_file), isolated=args.isolated_atoms, model=args.model,
        output=args.output, card=card(args.head, args.input, described), options=read_options(args),
        format=args.format, max_train=args.max_train, drop_shared=args.drop_shared,
        validation=args.validation, test=args.test, by=args.by,
        seed=args.seed, strategy=args.strategy, steps=args.steps, max_minutes=args.max_minutes, naive=args.naive,
        keep=keep, cheap=cheap_of(args), accepted=tuple(args.accept), device=args.device, dtype=args.dtype,
        report=args.report,
    )  # fmt: skip
    found = finetune(job, resume=args.resume)
    if isinstance(found, str):
        sys.exit(128 + signal.Signals[found])


def cheap_of(args: argparse.Namespace) -> Cheap | None:
    """What the options ask for; ConfigError for details of what is not asked for."""
    from gfm_calc.finetune.plan import Cheap

    found = Cheap(
        calculator=args.cheap_labels or "", options=args.cheap_options, structures=args.cheap_structures,
        temperature=args.cheap_temperature, steps=args.cheap_steps,
    )  # fmt: skip
    if args.cheap_labels is None and found != Cheap(calculator=""):
        raise ConfigError("--cheap-options, -structures, -temperature and -steps are for --cheap-labels CALCULATOR")
    return None if args.cheap_labels is None else found
