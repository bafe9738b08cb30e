"""`gfm bench screening` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.cli_options import SPEED_PEERS, add_output, finish, peer, words
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
                        help="of ablation, end-to-end, peer, processes, others, roofline, precision, workload, million, "
                        "flags, discovery; default: all that have what they need")  # fmt: skip
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
    _add_more(parser)
    add_output(parser)


def _add_more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--other", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help=SPEED_PEERS)  # fmt: skip
    parser.add_argument("--max-edges", type=positive_int, default=8192, help="of a batch; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="of part workload: cpu, cuda, ...; default: %(default)s")
    parser.add_argument("--molecule-head", default="gfn2-xtb", help="of part precision, too; default: %(default)s")
    parser.add_argument("--candidates-file", type=Path, metavar="FILE", help="of part million: examples/million.toml")
    parser.add_argument(
        "--sampled", type=positive_int, default=20_000, help="of part million, evenly chosen; default: %(default)s"
    )
    parser.add_argument("--processes", type=positive_int, metavar="N",
                        help="of part million: screen all of it, by N processes of one thread, instead of a sample")  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="DATASETS", help="of parts flags and discovery, as of gfm bench accuracy"
    )
    parser.add_argument("--recipe", default="gfm-small", help="says what is held out; default: %(default)s")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what was prepared, for the next time")
    parser.add_argument("--known", type=words, default=(), metavar="HEAD,HEAD",
                        help="of parts flags and discovery; default: --head")  # fmt: skip
    parser.add_argument("--frames", type=positive_int, metavar="N", help="held-out structures of a head; default: all")


def run_screening(args: argparse.Namespace) -> None:
    """Measure screening."""
    import torch

    from gfm_calc.benchmarks.screening import PARTS, RANDOM_WEIGHTS, ScreeningPlan, run_screening

    given = {} if args.checkout is None else {"checkout": args.checkout}
    needs = {"peer": args.peer, "others": args.other, "million": args.candidates_file, "flags": args.data,
             "discovery": args.data}  # fmt: skip
    parts = args.parts or [part for part in PARTS if needs.get(part, True)]
    plan = ScreeningPlan(
        parts=parts, model=args.model, head=args.head, heads=args.heads, count=args.count,
        max_atoms=args.max_atoms, candidates=args.candidates, turns=args.turns, compile=args.compile,
        peer=dict(args.peer).get("hydragnn"), others=dict(args.other), molecule_head=args.molecule_head,
        max_edges=args.max_edges, device=args.device,
        candidates_file=args.candidates_file, sampled=args.sampled, processes=args.processes,
        data=args.data, recipe=args.recipe, cache=args.cache,
        known=args.known, frames=args.frames, **given,
    )  # fmt: skip
    measured = run_screening(plan)
    peers = {row["peer"]["name"]: row["peer"]["version"] for row in measured.get("peer", ())}
    peers |= {
        c["name"]: c["version"] for c in measured.get("others", {}).get("contenders", ()) if c["name"] != "gfm-calc"
    }
    settings = {
        "turns": plan.turns,
        "dtype": "float32",
        "max_edges": plan.max_edges,
        "heads": plan.heads,
        "head": plan.head,
    }
    finish(
        args, "screening", threads=torch.get_num_threads(), extra_versions=peers, settings=settings,
        of_model=not set(parts) <= RANDOM_WEIGHTS, **measured,
    )  # fmt: skip
