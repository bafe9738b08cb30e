"""`gfm`: the command line.

    gfm --help              what there is
    gfm COMMAND --help      its options and an example

Exit codes: 0 success, 1 an error of ours (one line on stderr), 2 wrong usage, 130 interrupted, 141 closed pipe.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from ._version import __version__
from .commands.options import in_shell_words
from .errors import GFMError

# Light modules: all of them are imported for `gfm --help`.
COMMANDS = ("models", "doctor", "predict", "relax", "md", "eos", "phonons", "data")
# Parts of the product with commands of their own: {command: (module, line for `gfm --help`)}, imported when called.
PARTS = {
    "train": ("gfm_calc.train.cli", "train a multi-head model on datasets, on one process or many"),
    "uncertainty": (
        "gfm_calc.train.cli_uncertainty",
        "give a trained model an estimate of its own errors, from its data",
    ),
    "finetune": ("gfm_calc.finetune.cli", "add a head for your own labelled structures to a model"),
    "screen": ("gfm_calc.screening.cli", "rank any number of candidates, resumable, on any number of processes"),
    "domain": ("gfm_calc.screening.domain_cli", "what a model's training data cover, for the flags of gfm screen"),
    "bench": ("gfm_calc.benchmarks.cli", "accuracy, physics, speed and reliability figures"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name or unit that the terminal cannot show is no error
    try:
        args = build_parser(argv).parse_args(argv)
        with _warnings_on_one_line():
            args.run(args)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: --help and usage errors
        return int(stop.code or 0)
    except GFMError as error:
        return _fail(in_shell_words(error))
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except BrokenPipeError:
        # Whoever read our output has gone (`gfm heads | head -1`); Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 0


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; a part's own parser is built only where `argv` calls it."""
    parser = _Parser(prog="gfm", description="A multi-head graph foundation model for atoms.")
    parser.add_argument("--version", action="version", version=f"gfm-calc {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f".commands.{name}", __package__).add_parser(subparsers)
    for name, (module, summary) in PARTS.items():
        if not _is_there(module):
            continue
        if name in argv[:1]:
            import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class _Parser(argparse.ArgumentParser):
    """argparse, with usage errors on one line."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("gfm").strip()
        where = f"{command}: " if command else ""
        self.exit(2, f"gfm: error: {where}{message}; see {self.prog} --help\n")


def _fail(message: str, *, code: int = 1) -> int:
    print(f"gfm: error: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Warnings of the libraries below us, each once and without their source lines."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"gfm: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
