"""Options that all commands share, and what is made of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HeadError

if TYPE_CHECKING:
    from ase import Atoms

    from ..calculator import GFMCalculator
    from ..model import GFMModel

DEFAULT_MODEL = "gfm-small"
# Messages are written for Python; these are the same words for the shell.
_FOR_SHELL = {"strict=False": "--no-strict", "with head=...": "with --head", "device='cpu'": "--device cpu"}


def in_shell_words(error: BaseException) -> str:
    """An error's text on one line, with options where it speaks of arguments."""
    message = " ".join(str(error).split())
    for words, option in _FOR_SHELL.items():
        message = message.replace(words, option)
    return message


def new_parser(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], None], *, summary: str, example: str
) -> argparse.ArgumentParser:
    """A command's parser: one line for `gfm --help`, an example under its own help."""
    parser = subparsers.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """--model, --head, --no-strict."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    action, more = ("append", "; may be given several times") if several else ("store", "")
    group.add_argument("--head", action=action, metavar="NAME", help=f"level of theory, see `gfm heads`{more}")
    group.add_argument(
        "--no-strict", dest="strict", action="store_false",
        help="predict elements, charges and spins that the head has not seen, too",
    )  # fmt: skip


def add_machine(parser: argparse.ArgumentParser, *, dtype: str = "float32", mixed: bool = False) -> None:
    """--device, --dtype (`mixed`: bfloat16 too), --compile, --threads."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    choices = ("float32", "float64", "bfloat16") if mixed else ("float32", "float64")
    group.add_argument("--dtype", choices=choices, default=dtype, help="default: %(default)s")
    group.add_argument("--compile", action="store_true", help="compile the model: a slow start, then faster")
    group.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads of this run (default: torch's)")


def add_input(parser: argparse.ArgumentParser) -> None:
    """IN and --frame."""
    parser.add_argument("input", type=Path, metavar="IN", help="a structure, in any file that ASE reads")
    parser.add_argument(
        "--frame", type=int, metavar="N", help="which frame of IN, from 0; -1 is the last (default: the only one)"
    )


def read_input(args: argparse.Namespace) -> tuple[Atoms, int]:
    """The structure that `add_input` describes, with the calculator of `make_calculator`, and its frame number."""
    from ..structures import read_structure

    atoms, frame = read_structure(args.input, args.frame)
    atoms.calc = make_calculator(args)
    return atoms, frame


def apply_threads(args: argparse.Namespace) -> None:
    """Set torch's threads for this process where --threads was given."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)


def make_calculator(args: argparse.Namespace) -> GFMCalculator:
    """The calculator that `add_model` and `add_machine` describe."""
    from ..calculator import GFMCalculator

    apply_threads(args)
    return GFMCalculator(
        args.model, args.head, device=args.device, dtype=args.dtype, compile=args.compile, strict=args.strict
    )


def load(args: argparse.Namespace) -> GFMModel:
    """The model that --model and the machine options describe."""
    from ..checkpoint import load_model
    from ..predictor import parse_device, parse_dtype

    apply_threads(args)
    model = load_model(args.model, dtype=parse_dtype(args.dtype), device=parse_device(args.device))
    return model.compile() if args.compile else model


def choose_heads(model: GFMModel, names: list[str] | None) -> list[str]:
    """The heads asked for, each once; the only one where none was named.

    Raises:
        HeadError: unknown, or none named where there are several.
    """
    if names:
        return [model.spec(name).name for name in dict.fromkeys(names)]
    if len(model.specs) == 1:
        return list(model.specs)
    raise HeadError(f"this model has {len(model.specs)} heads; choose with --head: {', '.join(model.specs)}")


# ---- types of arguments: argparse turns their errors into one line and exit code 2 ----


def positive_int(text: str) -> int:
    """A whole number above zero."""
    value = int(text) if text.lstrip("+").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above zero, not {text!r}")
    return value


def natural(text: str) -> int:
    """A whole number, zero included."""
    return 0 if text.strip("+0") == "" and text else positive_int(text)


def positive(text: str) -> float:
    """A finite number above zero."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above zero, not {text!r}")
    return value


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return value
