"""`gfm domain`: what a model's training data cover, kept for the flags of `gfm screen`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfm_calc.commands.options import DEFAULT_MODEL, apply_threads, new_parser, positive_int
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

    from gfm_calc.data.store import Dataset


def add_parser(subparsers: Any) -> None:
    """Register `gfm domain`."""
    parser = new_parser(
        subparsers, "domain", run, summary="what a model's training data cover, for the flags of gfm screen",
        example="gfm domain mine/data --model mine/model -o mine/domain\n"
        "  gfm screen new.extxyz -o run --model mine/model --domain mine/domain",
    )  # fmt: skip
    parser.add_argument("data", type=Path, metavar="DATASETS", help="a dataset of gfm data build, or a folder of them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the statistics")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--recipe", metavar="RECIPE", help="what the model was trained with, a file or a packaged one: its "
                        "training side alone is looked at (default: all structures)")  # fmt: skip
    parser.add_argument("--max-structures", type=positive_int, default=10_000, metavar="N",
                        help="of a head, evenly chosen (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads of this run (default: torch's)")


def run(args: argparse.Namespace) -> None:
    """Look at the data and write the statistics.

    Raises:
        GFMError: no data of any head of the model, or too few.
    """
    from gfm_calc.checkpoint import load_model, open_model
    from gfm_calc.screening.domain import FEWEST, HeadDomain, features_of, fit, save

    apply_threads(args)
    model = load_model(args.model)
    found: dict[str, HeadDomain] = {}
    few = []
    with Progress("domain", "heads") as progress:
        for name, dataset, chosen in _sides(args):
            if name not in model.energy_heads:
                continue
            if len(chosen) < FEWEST:
                few.append(f"{name} ({len(chosen)})")
                continue
            found[name] = fit(features_of(model, _structures(dataset, chosen, args.max_structures)))
            progress.advance(note=name)
    if not found:
        why = f"too few structures of {', '.join(few)}" if few else f"no head of {args.model} has data there"
        raise ConfigError(f"{args.data}: {why}; {FEWEST} or more are needed")
    save(args.output, open_model(args.model).files["weights.safetensors"]["sha256"], found)
    missing = [head for head in model.energy_heads if head not in found]
    print(f"{args.output}: {', '.join(found)}" + (f"; without data: {', '.join(missing)}" if missing else ""))


def _sides(args: argparse.Namespace) -> Iterator[tuple[str, Dataset, np.ndarray]]:
    """(head, dataset, indices of its training structures)."""
    import numpy as np

    from gfm_calc.train.cli import recipe_on
    from gfm_calc.train.preparation import find_datasets, prepare

    if args.recipe is None:
        for dataset in find_datasets(str(args.data)):
            yield dataset.head.name, dataset, np.arange(len(dataset))
        return
    recipe = recipe_on(args.data, args.recipe)
    for head in prepare(recipe, recipe.model.cutoff):
        yield head.spec.name, head.dataset, head.sides["train"]


def _structures(dataset: Dataset, chosen: np.ndarray, most: int) -> Iterator[Atoms]:
    from gfm_calc.data.sampling import spread_indices

    chosen = chosen[spread_indices(len(chosen), most)]
    for first in range(0, len(chosen), 512):
        for record in dataset.read(chosen[first : first + 512]).records():
            yield record.structure()
