"""`gfm uncertainty`: give a trained model an estimate of its own errors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gfm_calc.commands.options import new_parser, positive_int
from gfm_calc.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "uncertainty", run, summary="give a trained model an estimate of its own errors, from its data",
        example="gfm uncertainty run/model --run run\n"
        "  gfm uncertainty gfm-small --data datasets --recipe gfm-small -o with-uncertainty",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="packaged name or directory")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DATASETS", help="folder of datasets, one a head")
    source.add_argument("--run", dest="folder", type=Path, metavar="RUN", help="folder of the training run: its data, as "
                        "they were split then")  # fmt: skip
    parser.add_argument("--recipe", default="gfm-small", metavar="RECIPE",
                        help="with --data: what the model was trained with, a file or a packaged one: it says what "
                        "is held out (default: %(default)s)")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep here what was prepared, for the next time")
    parser.add_argument("--structures", type=positive_int, default=1500, metavar="N",
                        help="training structures a head (default: %(default)s)")  # fmt: skip
    parser.add_argument("--fewest", type=positive_int, default=100, metavar="N",
                        help="training structures with forces without which a head gets none (default: %(default)s)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where to save it (default: in its place)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads of this run (default: torch's)")


def run(args: argparse.Namespace) -> None:
    """Fit, and save the model with what was found."""
    from gfm_calc.checkpoint import load_model, open_model, resolve, save_model
    from gfm_calc.commands.options import apply_threads
    from gfm_calc.train.cli import recipe_on
    from gfm_calc.train.preparation import load_heads, load_preparation
    from gfm_calc.train.uncertainty import FitPlan, fit_uncertainty

    apply_threads(args)
    model = load_model(args.model)
    if args.folder is not None:
        heads = load_preparation(args.folder / "data")
        lessened = [h.spec.name for h in heads if h.spec.name in model.specs and model.specs[h.spec.name].stiffness]
        if lessened:
            raise ConfigError(
                f"{args.folder}: holds what a first guess leaves of the labels of {', '.join(lessened)}, not the labels; gfm "
                "finetune teaches such a head its errors from 100 training structures on"
            )
    else:
        recipe = recipe_on(args.data, args.recipe)
        heads = load_heads(recipe, args.cache)
    provenance = open_model(args.model).read_json("provenance.json")
    learnt = fit_uncertainty(model, heads, FitPlan(structures=args.structures, fewest=args.fewest))
    if learnt.errors is None:
        raise ConfigError(
            f"no head of this model gets expected errors: {learnt.reasons or 'the data are of other heads'}"
        )
    model.uncertainty = learnt.errors
    directory = args.output or resolve(args.model)
    save_model(model, directory, provenance=provenance)
    print(f"{directory}: expected errors of {', '.join(model.uncertainty.figures)}")
    if learnt.without:
        print(f"gfm: note: no uncertainty, {learnt.reasons}")
    may = [name for name, spec in model.specs.items() if spec.kind != "class"]
    if unknown := [head for head in may if head not in model.uncertainty.figures and head not in learnt.without]:
        print(f"gfm: note: no uncertainty, no data of these here: {', '.join(unknown)}")
