"""Published models beside ours on the same held-out frames, where the level of theory is theirs.

Forces and stresses of crystals compare between codes and settings.  Energies compare only on heads of the Materials Project's
settings, with models that were trained on its uncorrected energies: those of CHGNet 0.3.0 hold corrections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from gfm_calc.benchmarks.accuracy import draw, pairs_of
from gfm_calc.benchmarks.contenders import ProcessEndedError
from gfm_calc.benchmarks.remote import RemoteCalculator
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec
from gfm_calc.data.schema import Record
from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor
from gfm_calc.train.evaluation import error_sums, figures, rounded
from gfm_calc.train.preparation import Head

_LEVELS = {
    "pbe": "PBE(+U)",
    "pbe(+u)": "PBE(+U)",
    "r2scan": "r2SCAN",
}  # functional of a head -> of the models beside it
# (Functional, basis) that heads of the Materials Project's settings begin with -> models whose zero of energy is theirs.
_SAME_ENERGIES = {
    ("PBE(+U)", ""): ("sevennet", "teacher"), ("r2SCAN", "as MP-r2SCAN"): ("chgnet-r2scan", "teacher-r2scan")
}  # fmt: skip


def level_of(spec: HeadSpec) -> str:
    """The level (of `remote.MODELS`) whose models, of the Materials Project, predict what the head predicts; "": none."""
    return _LEVELS.get(spec.functional.lower(), "") if "bulk" in spec.periodicity else ""


def _of_one_zero(spec: HeadSpec) -> tuple[str, ...]:
    """The models whose energies compare with those of the head."""
    for (functional, basis), models in _SAME_ENERGIES.items():
        if spec.functional == functional and spec.basis.startswith(basis):
            return models
    return ()


def measure_peers(
    predictors: Mapping[str, Predictor], heads: Sequence[Head], calculators: Mapping[str, RemoteCalculator], *,
    level: str, frames: int, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Errors of ours and of published models of one level of theory, all on the same frames.

    Args:
        predictors: {head: Predictor of that head alone}.
        heads: with their sides.
        calculators: {model: calculator}, see `remote.remote_calculators`.
        frames: test structures a head, drawn with `seed`.

    Returns:
        For each comparable head with a test side {"head", "level", "frames": compared, "failed": structures that some model could
        not do, "models": {name: figures}}.
    """
    known = {head.spec.name: head for head in heads}
    found = []
    for name, predictor in predictors.items():
        if level_of(predictor.model.spec(name)) == level and len(known[name].sides["test"]):
            found.append({"level": level, **_head(predictor, known[name], calculators, frames, seed)})
    return found


def _head(
    predictor: Predictor, head: Head, calculators: Mapping[str, RemoteCalculator], frames: int, seed: int
) -> dict[str, Any]:  # fmt: skip
    name = head.spec.name
    energies = _of_one_zero(predictor.model.spec(name))
    chosen = draw(head.sides["test"], frames, seed)
    records = list(head.dataset.read(chosen, names=True).records())
    outcomes = predictor.predict((record.structure() for record in records), on_error="yield")
    sums: dict[str, Tensor] = {}
    failed = 0
    with Progress(f"{name}, {len(calculators)} models beside", "structures", len(chosen)) as progress:
        for record, ours in zip(records, outcomes):
            progress.advance()
            try:
                if isinstance(ours, GFMError):
                    raise ours
                rows = {"gfm-calc": pairs_of(record, ours[name].energy.item(), ours[name].forces, ours[name].stress)}
                for model, calculator in calculators.items():
                    pairs = _pairs(record, calculator)
                    if model not in energies:
                        pairs[0] = (pairs[0][0], torch.full_like(pairs[0][1], math.nan))  # no label: does not count
                    rows[calculator.title] = pairs
            except ProcessEndedError:
                raise
            except GFMError:
                failed += 1
                continue
            for model, pairs in rows.items():
                sums[model] = sums.get(model, 0.0) + error_sums(pairs)
    models = {model: rounded(figures(row)) for model, row in sums.items()}
    return {"head": name, "frames": len(chosen) - failed, "failed": failed, "models": models}


def _pairs(record: Record, calculator: RemoteCalculator) -> list[tuple[Tensor, Tensor]]:
    """Predictions of a published model and labels, for `error_sums`."""
    atoms = record.structure()
    atoms.calc = calculator
    forces = torch.from_numpy(atoms.get_forces())
    stress = torch.from_numpy(voigt_6_to_full_3x3_stress(atoms.get_stress()))
    return pairs_of(record, atoms.get_potential_energy(), forces, stress)
