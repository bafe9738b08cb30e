"""`gfm data build`, `gfm data label`, `gfm data perturb`: datasets, labels and geometries are made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError, GFMError, MissingDependencyError
from .options import natural, new_parser, number, positive, positive_int
from .outputs import EXTXYZ, add_output, refuse_existing, written_aside
from .progress import Progress
from .read_options import FIELDS, add_property_kind, add_read_options, property_values, read_options

_LEVEL = ("code", "functional", "basis", "dispersion", "labels", "description")
# Options for one head alone.
_FOR_ONE = ("input", "head", "source", "format", "mpi", "licence", "citation", "kind", "unit", *_LEVEL)


def add_parsers(subparsers: Any) -> None:
    """Register the three commands below `gfm data`."""
    _add_build(subparsers)
    _add_label(subparsers)
    _add_perturb(subparsers)


def _add_build(subparsers: Any) -> None:
    parser = new_parser(
        subparsers, "build", run_build, summary="write a dataset from files of labelled structures",
        example="gfm data build water.extxyz.xz ice.db -o water-pbe0 --head pbe0 --code FHI-aims --functional PBE0\n"
        "  gfm data build --cards heads.toml --data files -o datasets --processes 4",
    )  # fmt: skip
    parser.add_argument("input", nargs="*", type=Path, metavar="FILE", help="in any format that gfm data reads")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="new; or see --append")
    parser.add_argument("--head", metavar="NAME", help="the level of theory of the labels")
    parser.add_argument("--cards", type=Path, metavar="TOML",
                        help="[[heads]] with their cards and files: one dataset each, DIR/HEAD; those that are there with "
                        "the same card and files are left as they are")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the files of --cards are")
    parser.add_argument("--append", action="store_true", help="add to the dataset that is there")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is there")
    parser.add_argument("--skip-invalid", action="store_true", help="leave unsound structures out, and say which")
    parser.add_argument("--processes", type=positive_int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--mpi", action="store_true", help="under mpirun -n N python -m mpi4py -m gfm_calc.cli data build ..."
    )
    card = parser.add_argument_group("the head's card")
    card.add_argument(
        "--source", metavar="NAME", help="a published source: fills in the card and how its files are read"
    )
    for name in _LEVEL:
        card.add_argument(f"--{name}", metavar="TEXT", help=_CARD_HELP.get(name))
    card.add_argument("--licence", metavar="TEXT", help="of the data")
    card.add_argument("--citation", metavar="TEXT", help="of the data")
    add_property_kind(parser)
    add_read_options(parser)


_CARD_HELP = {
    "code": "program that made the labels", "functional": "or method", "dispersion": "none, included or unknown",
    "labels": "calculated, semi-empirical or distilled", "description": "a sentence for users",
}  # fmt: skip


def _add_label(subparsers: Any) -> None:
    parser = new_parser(
        subparsers, "label", run_label, summary="label structures with a calculator, in parallel; goes on where it was",
        example="gfm data label conformers.xyz -o gfn2.extxyz --calculator tblite:GFN2-xTB --processes 4",
    )  # fmt: skip
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="files of structures, or datasets")
    add_output(parser, "OUT", ".extxyz; OUT.failures.jsonl beside it names what could not be labelled, and why")
    parser.add_argument("--calculator", required=True, metavar="NAME",
                        help="tblite:GFN2-xTB, emt, dftd3:PBE, gfm:MODEL:HEAD, or any MODULE:CLASS with --options")  # fmt: skip
    parser.add_argument("--options", default="{}", metavar="JSON", help="arguments for the calculator")
    parser.add_argument("--processes", type=positive_int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--timeout", type=positive, metavar="S", help="seconds for one structure (default: no limit)")


def _add_perturb(subparsers: Any) -> None:
    parser = new_parser(
        subparsers, "perturb", run_perturb, summary="new geometries: rattle, strain, or snapshots of dynamics",
        example="gfm data perturb crystals.cif -o strained.extxyz --rattle 0.05 --strain 0.03 --copies 20",
    )  # fmt: skip
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="files of structures, or datasets")
    add_output(parser, "OUT", ".extxyz")
    parser.add_argument("--copies", type=positive_int, default=1, help="of each structure (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0, help="default: %(default)s")
    parser.add_argument("--rattle", type=number, default=0.0, metavar="A", help="standard deviation of coordinates, Å")
    parser.add_argument("--strain", type=number, default=0.0, metavar="X", help="largest strain of periodic axes")
    parser.add_argument("--closest", type=number, default=0.6, metavar="X",
                        help="of the sum of covalent radii: nearer atoms are drawn again (default: %(default)s)")  # fmt: skip
    parser.add_argument("--processes", type=positive_int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--timeout", type=positive, metavar="S",
                        help="seconds for the copies of one structure (default: no limit)")  # fmt: skip
    parser.add_argument("--skip-invalid", action="store_true", help="leave out what cannot be perturbed, and say which")
    dynamics = parser.add_argument_group("dynamics")
    dynamics.add_argument(
        "--md", dest="calculator", metavar="NAME", help="with this calculator, see gfm data label --help"
    )
    dynamics.add_argument("--options", default="{}", metavar="JSON", help="arguments for the calculator")
    dynamics.add_argument("--temperature", type=positive, default=300.0, metavar="K", help="default: %(default)s")
    dynamics.add_argument("--time-step", type=positive, default=0.5, metavar="FS", help="default: %(default)s")
    dynamics.add_argument("--every", type=positive_int, default=100, metavar="N",
                          help="steps between snapshots (default: %(default)s)")  # fmt: skip
    dynamics.add_argument("--friction", type=positive, default=0.01, metavar="1/FS", help="default: %(default)s")


# ---- what the commands do; heavy modules are imported from here on ----


def run_build(args: argparse.Namespace) -> None:
    """Write a dataset.

    Raises:
        GFMError: what cannot be read or written; what was there before is intact.
    """
    from ..data.build import build, build_mpi
    from ..data.registry import source
    from ..data.tasks import file_tasks

    if args.cards is not None:
        _build_all(args)
        return
    if not args.input or args.head is None or args.data is not None:
        raise ConfigError("give files and --head NAME, or --cards TOML and --data FOLDER for many heads")
    origin = source(args.source) if args.source else None
    tasks = file_tasks(
        args.input, format=args.format or (origin.format if origin else None), skip_invalid=args.skip_invalid,
        options=read_options(args, origin.options if origin else None), source=args.source,
    )  # fmt: skip
    how: dict[str, Any] = {"append": args.append, "overwrite": args.overwrite}
    if args.mpi:
        comm = _communicator()
        dataset = build_mpi(args.output, tasks, _card(args, origin), comm, **how)
        if comm.rank:
            return
    else:
        with Progress("build", "structures") as progress:
            dataset = build(
                args.output, tasks, _card(args, origin), processes=args.processes, on_progress=progress.advance, **how
            )
    _say(dataset)


def _build_all(args: argparse.Namespace) -> None:
    """Datasets of many heads."""
    from ..data.collection import build_all, read_cards

    names = [name for name in (*_FOR_ONE, *(f"read_{field}" for field in FIELDS)) if getattr(args, name)]
    if names:
        shown = "files" if names[0] == "input" else "--" + names[0].removeprefix("read_").replace("_", "-")
        raise ConfigError(f"--cards does not go with {shown}: use gfm data build FILE... --head NAME for such a head")
    if args.data is None:
        raise ConfigError("--cards needs --data FOLDER, where the files are")
    if args.append and args.overwrite:
        raise ConfigError("--append and --overwrite: choose one")
    heads = read_cards(args.cards, args.data)
    with Progress("build", "structures") as progress:
        found = build_all(
            heads, args.output, processes=args.processes, append=args.append, overwrite=args.overwrite,
            skip_invalid=args.skip_invalid, on_progress=progress.advance,
        )  # fmt: skip
        for built in found:
            _say(built.dataset, "; left as it was" if built.was_there else "")


def _say(dataset: Any, more: str = "") -> None:
    """What a dataset holds, and what was left out of it."""
    left_out = 0
    for entry in dataset.inputs:
        left_out += entry["left_out"]
        for reason in entry["reasons"]:
            print(f"gfm: left out: {entry['name']}, {reason}", file=sys.stderr)
    found = dataset.summary
    print(
        f"{dataset.directory}: head {dataset.head.name}, {found['structures']} structures, {found['atoms']} atoms, "
        f"{len(found['elements'])} elements, {len(dataset.shards)} shards"
        + (f"; {left_out} left out" if left_out else "") + more, flush=True,
    )  # fmt: skip


def _communicator() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingDependencyError("--mpi needs MPI: pip install 'gfm-calc[mpi]'") from error
    return MPI.COMM_WORLD


def _card(args: argparse.Namespace, origin: Any) -> Any:
    from ..config import HeadSpec

    values: dict[str, Any] = {}
    data = {"name": ", ".join(path.name for path in args.input[:3]) + (", ..." if len(args.input) > 3 else "")}
    if origin is not None:
        values = {name: getattr(origin, name) for name in ("code", "functional", "basis", "dispersion")}
        data = {"name": origin.title, "licence": origin.licence, "citation": origin.reference}
    values |= {name: getattr(args, name) for name in _LEVEL if getattr(args, name) is not None}
    values |= property_values(args) or {"kind": "energy"}
    data |= {name: getattr(args, name) for name in ("licence", "citation") if getattr(args, name) is not None}
    if args.append:
        return _card_that_is_there(args, values, origin)
    return HeadSpec(name=args.head, training_data=(data,), **values)


def _card_that_is_there(args: argparse.Namespace, values: dict[str, Any], origin: Any) -> Any:
    """The card of the dataset that is added to; what the command line says must not contradict it or count it twice."""
    from ..data.registry import refuse_double_counting
    from ..data.store import open_dataset

    dataset = open_dataset(args.output)
    head = dataset.head
    if origin is not None:
        there = {entry["published_as"] for entry in dataset.inputs if "published_as" in entry}
        refuse_double_counting([origin.name, *sorted(there)])
    for name, value in {"name": args.head, **values}.items():
        if getattr(head, name) != value:
            raise ConfigError(
                f"{args.output}: holds {name} {getattr(head, name)!r}, not {value!r}: use a dataset for each"
            )
    return head


def run_label(args: argparse.Namespace) -> None:
    """Label structures.

    Raises:
        GFMError: none could be labelled, or the output cannot be written.
    """
    from ..data.label import LabelJob, label

    _check_suffix(args.output)
    job = LabelJob(
        inputs=tuple(args.input), output=args.output, calculator=args.calculator, options=args.options,
        processes=args.processes, timeout=args.timeout, overwrite=args.overwrite,
    )  # fmt: skip
    with Progress("label", "structures") as progress:
        outcome = label(job, on_progress=progress.advance)
    more = f"; {outcome.taken_over} were done before" if outcome.taken_over else ""
    if outcome.failed:
        more += f"; {outcome.failed} failed, see {job.failures.name} ({outcome.first_failure})"
    print(f"{args.output}: {outcome.labelled} structures, {args.calculator}{more}")


def run_perturb(args: argparse.Namespace) -> None:
    """Make new geometries.

    Raises:
        GFMError: a structure that cannot be perturbed (without --skip-invalid), or none that can.
    """
    from ..data.perturb import PerturbJob, perturb

    _check_suffix(args.output)
    refuse_existing(args.output, args.overwrite)
    names: tuple[str, ...] = ("copies", "seed", "rattle", "strain", "closest", "calculator", "options", "temperature")
    names += ("time_step", "every", "friction", "processes", "timeout")
    job = PerturbJob(inputs=tuple(args.input), **{name: getattr(args, name) for name in names})
    made = bad = 0
    with written_aside(args.output, args.overwrite) as aside, Progress("perturb", "structures") as progress:
        with open(aside, "w", encoding="utf-8") as handle:
            for found in perturb(job):
                if isinstance(found, str):
                    handle.write(found)
                    made += job.copies
                elif args.skip_invalid:
                    print(f"gfm: left out: {found}", file=sys.stderr)
                    bad += 1
                else:
                    raise found
                progress.advance()
        if not made:
            raise GFMError(f"none of the {bad} structures could be perturbed; nothing was written")
    print(f"{args.output}: {made} structures, seed {args.seed}" + (f"; {bad} left out" if bad else ""))


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in EXTXYZ:
        raise ConfigError(f"{path}: give it one of the suffixes {', '.join(EXTXYZ)}")
