"""Our side of `gfm bench speed`: the Predictor and the GFMCalculator under the stopwatch that the peers run under."""

from __future__ import annotations

import argparse
from typing import Any

from ase import Atoms

from gfm_calc import __version__
from gfm_calc.benchmarks.peers.measure import batches, serve
from gfm_calc.calculator import GFMCalculator
from gfm_calc.checkpoint import load_model
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor, parse_device


class GFMContender:
    """See `peers.measure.Contender`.  Molecules and crystals go to a head each, in float32.

    Args:
        model: loaded, and compiled where that is wanted.
        molecule_head, crystal_head: which head predicts what is not, and what is, periodic.
        mode: "eager" or "compiled", for the report.
    """

    def __init__(self, model: GFMModel, molecule_head: str, crystal_head: str, mode: str):
        self.model, self.mode = model, mode
        self.heads = {False: molecule_head, True: crystal_head}
        self.predictors = {head: Predictor(model, [head], strict=False) for head in set(self.heads.values())}

    def describe(self) -> dict[str, Any]:
        """Name, version, model, number of parameters, mode and heads."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "name": "gfm-calc", "mode": self.mode, "version": __version__, "model": self.model.model_id,
            "parameters": count, "heads": [self.heads[False], self.heads[True]],
        }  # fmt: skip

    def predict(self, structures: list[Atoms], batch: int) -> list[float]:
        """Energy and forces, `batch` structures handed to the Predictor at a time (which may cut them by its budget)."""
        head = self.heads[bool(structures[0].pbc.any())]
        predictor = self.predictors[head]
        return [row[head].energy.item() for part in batches(structures, batch) for row in predictor.predict(part)]

    def calculator(self, atoms: Atoms) -> GFMCalculator:
        """With its default skin."""
        return GFMCalculator(self.model, head=self.heads[bool(atoms.pbc.any())], strict=False)


def make(options: argparse.Namespace) -> GFMContender:
    """The contender that the command line asks for."""
    model = load_model(options.model, device=parse_device(options.device)).compile(enabled=options.compile)
    return GFMContender(model, options.molecule_head, options.crystal_head, "compiled" if options.compile else "eager")


def main() -> None:
    """Entry point of `python -m gfm_calc.benchmarks.worker`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--molecule-head", required=True)
    parser.add_argument("--crystal-head", required=True)
    parser.add_argument("--compile", action="store_true")
    serve(make, parser)


if __name__ == "__main__":
    main()
