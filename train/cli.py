"""`gfm train`, also under torchrun, mpirun and srun (`python -m gfm_calc.train`)."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfm_calc.commands.options import new_parser, positive_int
from gfm_calc.errors import ConfigError, GFMError

if TYPE_CHECKING:
    from gfm_calc.train.parallel import Ranks
    from gfm_calc.train.recipe import Recipe
    from gfm_calc.train.trainer import Trainer

_RECIPES = Path(__file__).resolve().parent / "recipes"
_EXAMPLE = """gfm train tiny --set data.path=datasets -o run
  torchrun --nproc-per-node 4 -m gfm_calc.train tiny --set data.path=datasets --set parallel.mode=multitask -o run
  mpirun -n 4 python -m mpi4py -m gfm_calc.train tiny --set data.path=datasets -o run"""
_LET_THE_FIRST_SAY_IT = 3.0  # seconds in which a launcher ends the processes that have the same wrong recipe


def add_parser(subparsers: Any) -> None:
    """Register `gfm train`."""
    parser = new_parser(
        subparsers,
        "train",
        run,
        summary="train a multi-head model on datasets, on one process or many",
        example=_EXAMPLE,
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gfm train`."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a TOML file, or a packaged one: " + ", ".join(packaged_recipes())
    )
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", dest="settings",
                        help="instead of what the recipe says; may be given several times")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where the run in RUN was")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="CPU threads of each process (default: torch's)"
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave RUN/report.html out")


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml") if not path.stem.endswith(".cards"))


def run(args: argparse.Namespace) -> None:
    """Train; every process of a job calls this.

    Raises:
        GFMError: a wrong recipe, data that cannot be used, or a fault of the run (of one process alone).
    """
    from gfm_calc.train.parallel import Ranks, discover, quiet

    quiet()
    place = discover()
    try:
        recipe = find_recipe(args.recipe, args.settings)
    except GFMError:
        if place.rank:
            time.sleep(_LET_THE_FIRST_SAY_IT)
        raise
    ranks = Ranks(place, args.device, patience=recipe.parallel.patience)
    try:
        reason = _run(args, recipe, ranks)
        ranks.close()
    except (Exception, KeyboardInterrupt) as error:
        if ranks.world == 1:
            raise
        ranks.fail(error)
    if reason.startswith("SIG"):
        sys.exit(128 + signal.Signals[reason])  # saved, and can be resumed


def find_recipe(name: str, settings: list[str]) -> Recipe:
    """A packaged recipe, or one from a file."""
    from gfm_calc.train.recipe import read_recipe

    path = Path(name)
    if not path.exists() and name in packaged_recipes():
        path = _RECIPES / f"{name}.toml"
    return read_recipe(path, settings)


def recipe_on(data: Path, name: str, settings: Sequence[str] = ()) -> Recipe:
    """`find_recipe`, for datasets in a folder."""
    return find_recipe(name, [f"data.path={json.dumps(str(data), ensure_ascii=False)}", *settings])


def _run(args: argparse.Namespace, recipe: Recipe, ranks: Ranks) -> str:
    import torch

    from gfm_calc.train.run_folder import open_run
    from gfm_calc.train.runlog import require_tensorboard
    from gfm_calc.train.trainer import Trainer

    if args.threads:
        torch.set_num_threads(args.threads)
    if recipe.run.dtype == "tf32":
        if ranks.device.type != "cuda":
            raise ConfigError("run.dtype tf32 is for GPUs; use float32 here")
        torch.backends.cuda.matmul.allow_tf32 = True
    if recipe.run.tensorboard:
        require_tensorboard()
    with open_run(args.output, recipe, ranks, resume=args.resume) as heads:
        trainer = Trainer(recipe, heads, ranks, args.output)
        reason = _train(args, trainer)
        trainer.close()
        return reason


def _train(args: argparse.Namespace, trainer: Trainer) -> str:
    recipe, ranks, heads = trainer.recipe, trainer.ranks, trainer.heads
    if ranks.rank == 0:
        for line in trainer.placement.describe(trainer.names):
            print(line, flush=True)
        for head in heads:
            if head.unseen:
                print(f"gfm: note: head {head.spec.name}: {head.unseen} held-out structures have elements that no training "
                      "structure has; they are left out of its errors", flush=True)  # fmt: skip
    reason = trainer.run()
    if reason in ("finished", "no improvement"):
        _finish(args, trainer)
    elif ranks.rank == 0:
        print(f"{args.output}: stopped at step {trainer.step} of {recipe.run.steps} ({reason}); --resume goes on")
    return reason


def _finish(args: argparse.Namespace, trainer: Trainer) -> None:
    """The model, made from the last checkpoint; the report."""
    from gfm_calc.train.outcome import save_outcome

    errors = trainer.validator.errors("test", 10**9)
    if trainer.ranks.rank == 0:
        for line in save_outcome(trainer, errors, report=args.report):
            print(line, flush=True)
