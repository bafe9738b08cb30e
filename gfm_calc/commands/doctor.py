"""`gfm doctor`: does a model still give the numbers it shipped with, on this machine and in this precision?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import GFMError, HeadError
from .options import DEFAULT_MODEL, add_machine, load, new_parser
from .progress import Progress
from .tables import table

if TYPE_CHECKING:
    from ..model import GFMModel
    from ..selfcheck import Check


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "doctor", run, summary="check a model: golden predictions, derivatives, rotation",
        example="gfm doctor gfm-small --dtype float64",
    )  # fmt: skip
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)"
    )
    parser.add_argument(
        "--head", action="append", metavar="NAME", help="check only this head (may be given several times)"
    )
    parser.add_argument("--json", action="store_true", help="the checks as JSON")
    add_machine(parser)


def run(args: argparse.Namespace) -> None:
    """Print a table of checks.

    Raises:
        GFMError: one of them failed.
    """
    model = load(args)
    for name in args.head or ():
        if model.spec(name).kind != "energy":
            raise HeadError(f"head {name} predicts {model.spec(name).quantity}; only energy heads have checks")
    heads = list(dict.fromkeys(args.head or model.energy_heads))
    with Progress("doctor", "heads", 1 + len(heads)) as progress:
        found = list(_checks(args.model, model, heads, progress))
    if args.json:
        print(json.dumps([_record(what, check) for what, check in found], indent=2, ensure_ascii=False))
    else:
        rows = [
            (
                what,
                check.name,
                f"{check.found:.1e}",
                f"{check.allowed:.0e}",
                check.unit,
                "ok" if check.passed else "FAILED",
            )
            for what, check in found
        ]
        print(table(("head", "check", "found", "allowed", "unit", ""), rows, right=(2, 3)))
        path = f"{args.dtype} on {model.device}{', compiled' if args.compile else ''}"
        steps = "C++" if model.encoder.native else "torch (slower: no C++ compiler, or not on this device)"
        print(f"\nmodel {args.model}, id {model.model_id}, {path}, message step in {steps}")
    failed = [(what, check) for what, check in found if not check.passed]
    if failed:
        names = ", ".join(f"{check.name} ({what})" for what, check in failed[:5])
        raise GFMError(f"{args.model}: {len(failed)} of {len(found)} checks failed: {names}")


def _checks(source: str, model: GFMModel, heads: list[str], progress: Progress) -> Iterator[tuple[str, Check]]:
    from ..checkpoint import read_golden
    from ..selfcheck import check_derivatives, check_golden, check_rotation

    for check in check_golden(model, read_golden(source)):
        yield "all", check
    progress.advance()
    for head in heads:
        for check in (*check_derivatives(model, head), *check_rotation(model, head)):
            yield head, check
        progress.advance(note=head)


def _record(head: str, check: Check) -> dict[str, Any]:
    finite = check.found == check.found and abs(check.found) != float("inf")
    return {
        "head": head, "check": check.name, "found": check.found if finite else None, "allowed": check.allowed,
        "unit": check.unit, "passed": check.passed,
    }  # fmt: skip
