"""`gfm bench screening` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.cli_options import add_output, finish, peer, words
from gfm_calc.commands.options import DEFAULT_MODEL, new_parser, positive_int


def add_screening(benches: Any) -> None:
    """Register it."""
    parser = new_parser(
        benches, "screening", run_screening, summary="what makes screening fast, file to file, beside HydraGNN",
        example="gfm bench screening --peer hydragnn=PYTHON --checkout HYDRAGNN -o screening.json",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="of whole screenings (default: %(default)s)")
    parser.add_argument("--head", default="distilled-7net-l3i5", help="of whole screenings (default: %(default)s)")
    parser.add_argument("--parts", type=words, metavar="NAME,NAME", default=(),
                        help="of ablation, end-to-end, peer, processes; default: all")  # fmt: skip
    parser.add_argument("--heads", type=positive_int, default=16, help="of the lead model; default: %(default)s")
    parser.add_argument("--count", type=positive_int, default=24, help="random structures; default: %(default)s")
    parser.add_argument(
        "--max-atoms", type=positive_int, default=60, help="of a random structure; default: %(default)s"
    )
    parser.add_argument(
        "--candidates", type=positive_int, default=2000, help="of whole screenings; default: %(default)s"
    )
    parser.add_argument("--turns", type=positive_int, default=5, help="measurements; default: %(default)s")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave compiled contenders out")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="hydragnn=PYTHON",
                        help="python of an environment with HydraGNN's dependencies")  # fmt: skip
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="of HydraGNN (default: $HYDRAGNN_CHECKOUT)")
    add_output(parser)


def run_screening(args: argparse.Namespace) -> None:
    """Measure screening."""
    import torch

    from gfm_calc.benchmarks.screening import PARTS, ScreeningPlan, run_screening

    given = {} if args.checkout is None else {"checkout": args.checkout}
    plan = ScreeningPlan(
        parts=args.parts or PARTS, model=args.model, head=args.head, heads=args.heads, count=args.count,
        max_atoms=args.max_atoms, candidates=args.candidates, turns=args.turns, compile=args.compile,
        peer=dict(args.peer).get("hydragnn"), **given,
    )  # fmt: skip
    measured = run_screening(plan)
    peers = {row["peer"]["name"]: row["peer"]["version"] for row in measured.get("peer", ())}
    settings = {"turns": plan.turns, "dtype": "float32", "max_edges": plan.max_edges, "heads": plan.heads}
    finish(args, "screening", threads=torch.get_num_threads(), extra_versions=peers, settings=settings, **measured)
