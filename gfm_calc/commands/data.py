"""`gfm data`: look at labelled data, split it without leaks, build datasets, add labels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, GFMError, InputFileError
from .data_build import add_parsers as add_build_parsers
from .options import natural, new_parser, number
from .outputs import refuse_existing, written_aside
from .progress import Progress
from .read_options import add_read_options, read_options
from .tables import card, table

if TYPE_CHECKING:
    from ..data.schema import Record
    from ..data.splits import Split

# The names of `data.grouping.KEYS`, which is heavy to import.
BY = ("group", "composition", "molecule", "prototype", "file", "frame")


def add_parser(subparsers: Any) -> None:
    """Register the command and those below it."""
    parser = subparsers.add_parser(
        "data", help="look at labelled data; build and split datasets; add labels",
        description="Labelled structures: what is in files, datasets, splits, new labels.",
        epilog="example:\n  gfm data inspect labelled.extxyz", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    below = parser.add_subparsers(title="commands", dest="data_command", metavar="COMMAND", required=True)
    _add_inspect(below)
    _add_split(below)
    _add_sources(below)
    add_build_parsers(below)


def _add_inspect(subparsers: Any) -> None:
    parser = new_parser(
        subparsers, "inspect", run_inspect, summary="what is in files of labelled structures, and what is suspicious",
        example="gfm data inspect water.extxyz.xz\n  gfm data inspect rmd17_ethanol.npz --html ethanol.html",
    )  # fmt: skip
    parser.add_argument("input", nargs="+", type=Path, metavar="FILE", help="in any format that gfm data reads")
    parser.add_argument(
        "--source", metavar="NAME", help="a published source, see gfm data sources: how its files are read"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="everything that was found, as JSON")
    parser.add_argument("--html", type=Path, metavar="OUT", help="the report as a page with pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there (default: an error)")
    parser.add_argument(
        "--fail-on",
        choices=("error", "warning"),
        metavar="LEVEL",
        help="exit code 1 at findings of this level: error, warning",
    )
    add_read_options(parser)


def _add_split(subparsers: Any) -> None:
    parser = new_parser(
        subparsers, "split", run_split, summary="training, validation and test, by group, refused where they leak",
        example="gfm data split a.extxyz b.db -o split.json --test 0.1\n"
        "  gfm data split ethanol.npz -o split01.json --by frame --train-list train.txt --test-list test.txt",
    )  # fmt: skip
    parser.add_argument(
        "input", nargs="+", type=Path, metavar="FILE", help="files or datasets, all that are used together"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the split, .json")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there (default: an error)")
    parser.add_argument("--source", metavar="NAME", help="a published source: how its files are read")
    parser.add_argument("--skip-invalid", action="store_true", help="leave unusable frames out, and list them in OUT")
    draw = parser.add_argument_group("how to split")
    draw.add_argument("--by", choices=BY, default="group", metavar="KEY",
                      help="what stays together: group (default), composition, molecule, prototype, file, frame")  # fmt: skip
    draw.add_argument("--seed", type=natural, default=0, help="default: %(default)s")
    draw.add_argument(
        "--test", type=number, default=0.05, metavar="X", help="fraction of groups (default: %(default)s)"
    )
    draw.add_argument("--validation", type=number, default=0.02, metavar="X", help="default: %(default)s")
    draw.add_argument("--like", type=Path, metavar="SPLIT", help="an earlier split: what it holds out stays held out")
    draw.add_argument("--join", action="store_true", help="keep groups that share a structure together")
    for side in ("train", "validation", "test"):
        draw.add_argument(
            f"--{side}-list",
            type=Path,
            metavar="LIST",
            help=f"official {side} list: a group, file:frame or frame a line",
        )
    references = parser.add_argument_group("reference energies")
    references.add_argument(
        "--references", type=Path, metavar="OUT", help="fit them to the training side (one level of theory); .json"
    )
    references.add_argument(
        "--isolated-atoms",
        metavar="X",
        help="'data' takes single atoms among the training frames, or a .json {symbol: eV}",
    )
    references.add_argument("--ridge", type=number, default=1e-12, metavar="X", help="default: %(default)s")
    add_read_options(parser)


def _add_sources(subparsers: Any) -> None:
    parser = new_parser(
        subparsers, "sources", run_sources, summary="published datasets: level of theory, units, licence, traps",
        example="gfm data sources\n  gfm data sources mptrj",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="show everything about this one")
    parser.add_argument("--json", action="store_true", help="as JSON")


# ---- gfm data inspect ----


def run_inspect(args: argparse.Namespace) -> None:
    """Print the report.

    Raises:
        GFMError: nothing can be read, labels leave a question open, or --fail-on and there is such a finding.
    """
    from ..data.inspection import inspect
    from ..data.report import mapping
    from .inspection_report import page, text

    format, options, _ = _how(args)
    for path in (args.json, args.html):
        if path is not None:
            refuse_existing(path, args.overwrite)
    with Progress("inspect", "frames") as progress:
        found = inspect(args.input, format=format, options=options, on_frame=progress.advance)
    print(text(found))
    if args.json is not None:
        content = json.dumps(mapping(found), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        _write(args.json, content, args.overwrite)
    if args.html is not None:
        _write(args.html, page(found), args.overwrite)
    levels = {"error": ("error",), "warning": ("error", "warning"), None: ()}[args.fail_on]
    grave = [finding for finding in found.all_findings() if finding.level in levels]
    if grave:
        raise GFMError(f"{len(grave)} finding{'s' * (len(grave) != 1)}; first: {grave[0].text}")


# ---- gfm data split ----


def run_split(args: argparse.Namespace) -> None:
    """Write a split.

    Raises:
        GFMError: a leak, an unusable frame (without --skip-invalid), or a frame without a group.
    """
    from ..data.compositions import Compositions
    from ..data.frame_table import FrameTable
    from ..data.grouping import by_frame, keyer
    from ..data.split_files import load_split, save_split
    from ..data.splits import draw, join

    refuse_existing(args.output, args.overwrite)
    if args.references is not None:
        refuse_existing(args.references, args.overwrite)
    lists = {side: getattr(args, f"{side}_list") for side in ("train", "validation", "test")}
    lists = {side: path for side, path in lists.items() if path is not None}
    like = load_split(args.like) if args.like is not None else None
    by = args.by if like is None else like.by
    key = _or_frame(keyer(by), by_frame) if lists else keyer(by)
    frames, energies = FrameTable(), Compositions()
    free_atoms: dict[str, bool] = {}  # group -> it is nothing else: references, which no side can do without
    with Progress("split", "frames") as progress:

        def grouped() -> Iterator[tuple[Record, str]]:
            for record in _records(args, frames.refused):
                group = key(record)
                energies.add(record)
                free_atoms[group] = free_atoms.get(group, True) and record.is_free_atom
                progress.advance()
                yield record, group

        frames.add_all(grouped())
    if not len(frames):
        raise InputFileError("no usable frame to split")
    if lists:
        split = _official(lists, frames, by)
    else:
        seed = args.seed if like is None else like.seed
        drawn = {name: [g for g in groups if not free_atoms[g]] for name, groups in frames.groups_by_file().items()}
        split = draw(drawn, by=by, seed=seed, validation=args.validation, test=args.test, like=like)
    if args.join:
        split = join(split, frames.groups_that_share())
    sides = frames.sides(split)
    frames.refuse_leaks(sides)
    census = {**frames.census(sides), "near_twins_across": frames.num_close(sides)}
    if args.references is not None:
        _references(args, energies, sides == 0)
    with written_aside(args.output, args.overwrite) as aside:
        save_split(aside, split, census)
    print(_split_text(args.output, census))
    wanted = {"test": args.test, "validation": args.validation} if not lists and like is None else {}
    for side in (side for side, share in wanted.items() if share > 0 and side not in census["ids"]):
        groups = sum(entry["groups"] for entry in census["ids"].values())
        print(
            f"gfm: warning: nothing is left for {side}: there are {groups} groups by {by}; choose another --by, or give more "
            "data",
            file=sys.stderr,
        )


def _records(args: argparse.Namespace, refused: Callable[[str], None]) -> Iterator[Record]:
    from ..data.readers import read
    from ..data.store import open_dataset

    format, options, origin = _how(args)
    names = [path.name for path in args.input]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two inputs are called {name}: frames are named by their file, so rename one")
    for path in args.input:
        found = (
            open_dataset(path).records()
            if path.is_dir()
            else read(path, format=format, options=options, on_error="yield")
        )
        for record in found:
            if isinstance(record, GFMError):
                if not args.skip_invalid or isinstance(record, InputFileError):
                    raise record
                refused(str(record))
            elif origin is None or origin.keeps(record):
                yield record


def _official(lists: dict[str, Path], frames: Any, by: str) -> Split:
    from ..data.split_files import read_names
    from ..data.splits import fixed

    given = {side: read_names(path, frames.sources) for side, path in lists.items()}
    split = fixed(given, by=by, unlisted="unused" if "train" in given else "train")
    known = {*frames.groups, *frames.frame_names()}
    for side, names in given.items():
        missing = [name for name in names if name not in known]
        if missing:
            raise InputFileError(
                f"{lists[side]}: {len(missing)} of {len(names)} names are in no input file (first: {missing[0]})"
            )
    return split


def _or_frame(key: Callable[[Record], str], fallback: Callable[[Record], str]) -> Callable[[Record], str]:
    """`key`, or the frame's own name where a file names no groups: official lists name frames then."""

    def chosen(record: Record) -> str:
        return key(record) if record.group else fallback(record)

    return chosen


def _references(args: argparse.Namespace, energies: Any, training: Any) -> None:
    from dataclasses import asdict

    from ..data.references import read_reference_energies
    from ..data.report import plain

    known: dict[str, float] = {}
    if args.isolated_atoms == "data":
        known = energies.isolated(training)
        if not known:
            raise InputFileError("--isolated-atoms data: no single atoms without a cell among the training frames")
    elif args.isolated_atoms is not None:
        known = read_reference_energies(Path(args.isolated_atoms))
    fit = energies.fit(training, known=known, ridge=args.ridge)
    content = json.dumps(plain(asdict(fit)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    _write(args.references, content, args.overwrite)
    for symbol, reason in fit.flagged.items():
        print(f"gfm: note: reference energy of {symbol}: {reason}", file=sys.stderr)


def _split_text(path: Path, census: dict[str, Any]) -> str:
    order = [side for side in ("train", "validation", "test", "unused") if side in census["ids"]]
    rows = [(side, census["ids"][side]["frames"], census["ids"][side]["groups"]) for side in order]
    lines = [str(path), table(("side", "frames", "groups"), rows, right=(1, 2))]
    lines.append("no structure is on two sides")
    if census["near_twins_across"]:
        lines.append(f"{census['near_twins_across']} frames have a near twin on another side: see --by")
    if census["num_unusable"]:
        lines.append(f"{census['num_unusable']} unusable frames were left out; they are listed in the file")
    return "\n".join(lines)


# ---- gfm data sources ----


def run_sources(args: argparse.Namespace) -> None:
    """Print the registry, or all about one source."""
    from dataclasses import asdict

    from ..data.registry import SOURCES, source

    chosen = [source(args.name)] if args.name else list(SOURCES.values())
    if args.json:
        print(json.dumps([asdict(entry) for entry in chosen], indent=2, ensure_ascii=False))
        return
    if args.name:
        print(_source_text(chosen[0]))
        return
    rows = [(s.name, s.size, s.level_of_theory, s.format, s.licence, s.reference) for s in chosen]
    print(table(("source", "size", "level of theory", "format", "licence", "reference"), rows))
    print("\nmore of one, with its traps: gfm data sources NAME")


def _source_text(entry: Any) -> str:
    options = {name: value for name, value in vars(entry.options).items() if value not in (None, False, "multiplicity")}
    fields = [
        ("files", f"{entry.files} ({entry.format})"), ("size", entry.size), ("level of theory", entry.level_of_theory),
        ("dispersion", entry.dispersion), ("energies", entry.energy), ("units", entry.units), ("charge", entry.charge),
        ("spin", entry.spin), ("kind", entry.periodic), ("split by", entry.group), ("official splits", entry.splits),
        ("read with", " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())),
        ("part of", ", ".join(entry.part_of)), ("same structures in", ", ".join(entry.shares_structures)),
        ("reference", entry.reference), ("licence", entry.licence), *(("trap", trap) for trap in entry.traps),
        ("to verify", ", ".join(name.replace("_", " ") for name in entry.to_verify)),
    ]  # fmt: skip
    return f"{entry.name}: {entry.title}\n{card(fields)}"


# ---- shared ----


def _how(args: argparse.Namespace) -> tuple[str | None, Any, Any]:
    """(format, options, source) that the arguments say."""
    from ..data.registry import source

    origin = source(args.source) if args.source else None
    options = read_options(args, origin.options if origin else None)
    return args.format or (origin.format if origin else None), options, origin


def _write(path: Path, content: str, overwrite: bool) -> None:
    with ExitStack() as stack:
        aside = stack.enter_context(written_aside(path, overwrite))
        aside.write_text(content, encoding="utf-8")
