"""What the benchmarks share on the command line: options, the types of their values, the end of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfm_calc.commands.options import DEFAULT_MODEL, natural, positive_int
from gfm_calc.commands.outputs import refuse_existing
from gfm_calc.commands.tables import table

SPEED_PEERS = "chgnet, sevennet, mace or torchsim, and the python of an environment that has it"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--head", metavar="NAME", help="for everything (default: what each structure wants)")


def add_device(parser: argparse.ArgumentParser, default: str | None) -> None:
    shown = default or "the GPU where there is one"
    parser.add_argument("--device", default=default, help=f"cpu, cuda or cuda:N (default: {shown})")


def add_output(parser: argparse.ArgumentParser, text: str = "the result as JSON") -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there (default: an error)")
    run = parser.get_default("run")

    def guarded(args: argparse.Namespace) -> None:
        if args.output is not None:
            refuse_existing(args.output, args.overwrite)  # before hours of measuring, not after
        run(args)

    parser.set_defaults(run=guarded, parser=parser)


def finish(
    args: argparse.Namespace, benchmark: str, *, threads: int | Sequence[int] | None = None,
    extra_versions: dict[str, str] | None = None, of_model: bool = True, model: str | None = None, **content: Any,
) -> None:  # fmt: skip
    """Print the tables and, with -o, write the result.

    Args:
        of_model: whether the result is one of the weights that `--model` names; or `model`, where that may be several.
    """
    import torch

    from gfm_calc.benchmarks.provenance import provenance, result, write_result
    from gfm_calc.benchmarks.report import numeric_columns, tables

    about = provenance(
        [benchmark, *_words_of(args)], model=(model or getattr(args, "model", None)) if of_model else None,
        threads=threads or torch.get_num_threads(),
        extra_versions=extra_versions,
    )  # fmt: skip
    measured = result(benchmark, about, **content)
    if args.output is not None:
        write_result(args.output, measured)
    for found in tables(measured):
        right = numeric_columns(found.header, found.rows)
        print(f"{found.title}\n\n{table(found.header, found.rows, right=right)}\n")
    if args.output is not None:
        print(f"written: {args.output}")


def _words_of(args: argparse.Namespace) -> list[str]:
    """The options that differ from their defaults, as they would be typed; a python of a peer is called PYTHON."""
    words: list[str] = []
    for action in args.parser._actions:
        value = getattr(args, action.dest, None)
        if value == action.default or action.dest in ("output", "overwrite", "help"):
            continue
        for item in value if isinstance(action, argparse._AppendAction) else [value]:
            shown = f"{item[0]}=PYTHON" if action.dest in ("peer", "other") else _typed(item)
            shown = f"{item[0]}={item[1].name}" if action.dest == "outside" else shown
            words += [*action.option_strings[-1:], *([] if isinstance(item, bool) else [shown])]
    return words


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def optional(package: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}


def integers(text: str) -> tuple[int, ...]:
    return tuple(positive_int(part) for part in text.split(","))


def counts(text: str) -> tuple[int, ...]:
    return tuple(natural(part) for part in text.split(","))


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def peer(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not equals or not name or not python:
        raise argparse.ArgumentTypeError(f"give NAME=PYTHON, not {text!r}")
    return name, python


def head_file(text: str) -> tuple[str, Path]:
    head, equals, path = text.partition("=")
    if not equals or not head or not path:
        raise argparse.ArgumentTypeError(f"give HEAD=FILE, not {text!r}")
    return head, Path(path)
