"""How to fine-tune, chosen by the number of structures and labels, with the reasons in words.

    heads      the encoder stays as it is; the new head alone learns
    adapters   low-rank terms on the encoder learn too (merged into its weights when the model is saved)
    full       everything learns, layers farther from the heads more slowly

With a guard, old heads keep learning what they said before (see `replay`), so that a moving encoder does not spoil them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gfm_calc.errors import ConfigError, did_you_mean
from gfm_calc.train.recipe import (
    DataRecipe,
    HeadRecipe,
    ObjectiveRecipe,
    OptimizerRecipe,
    Recipe,
    RunRecipe,
    StartRecipe,
)

NAMES = ("heads", "adapters", "full")
# How a head begins; fitted are numbers and classes of structures, of which means that a fit does not nearly tell learn faster.
AS_ANOTHER, RANDOM, FITTED, FITTED_MEAN = "as another", "random", "fitted", "fitted mean"
_AS_FITTED = (FITTED, FITTED_MEAN)
_FEW_LABELS = 300  # numbers: energies, force and stress components
_HANDFUL, _MANY = 40, 500  # structures: what they say is worth small and large steps
_FEW_FITTED = 60  # where the head begins fitted, and does not pull at the encoder
_TOUCHES = 300  # steps of a head that is fitted to fewer: it is hardly moved
# On 50 frames of ethanol, 21 old heads, replay of structures made by code: with AdamW, half of the draws, all heads alike and
# weight 3, what moved would add 4.3 % to the error of an old head on average and 22 % to that of one; with two thirds, draws
# and weights by force errors and 4.8, 2.2 and 9 %.  With Muon, 800 steps, 15 in place of 4.8 makes it 3.9 and 30 % of 3.3 and
# 13 %, and the new head is 15 % worse.  With at most 64 exemplars a head, errors of energies on 150 held-out frames of each
# grew by 3.8 % on average and 44 % at most; with up to 256 and `_stakes`, on 600, by 0.5 and 7.7 %, before last layers are
# settled.
REPLAY_SHARE = 2 / 3  # of the draws
REPLAY_COUNT = 192  # structures a head, or more, see `replay.enough`
_MOST_STAKE = 2.5  # of one old head, against the middle one
_MOST_DRAWN = 832  # structures to repeat for which a head draws more: others shall not draw too few
_REPLAY_WEIGHT = (
    4.8  # of replayed structures in the loss, on average: the old heads begin without error and shall stay so
)


class OldHead(NamedTuple):
    """One that is replayed: how many structures it repeats, and its errors by its card, eV/atom and eV/Å (NaN: not known)."""

    structures: int
    energy_error: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What will be done, and why.

    Attributes:
        name: one of `NAMES`.  reasons: a sentence each.
        replay: old heads learn on.
        structures: in a step, of the new head.  steps: of the run.
        method: see `OptimizerRecipe`.  learning_rate: at its highest.
        encoder_rate, layer_decay, adapter_rank: see `StartRecipe`.
    """

    name: str
    reasons: tuple[str, ...]
    replay: bool
    structures: int
    steps: int
    learning_rate: float
    method: str = "adamw"
    encoder_rate: float = 1.0
    layer_decay: float = 1.0
    adapter_rank: int = 0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Strategy:
        """What `asdict` made of one, and JSON of that."""
        return cls(**{**values, "reasons": tuple(values["reasons"])})


def require(wanted: str | None) -> None:
    """ConfigError for a name that no strategy has; None is left to `choose`."""
    if wanted is not None and wanted not in NAMES:
        raise ConfigError(f"--strategy {wanted}{did_you_mean(wanted, NAMES)}: one of {', '.join(NAMES)}")


def choose(
    structures: int, labels: int, *, wanted: str | None = None, naive: bool = False, keeps_heads: bool = True,
    steps: int | None = None, start: str = AS_ANOTHER, learnt: str = "",
) -> Strategy:  # fmt: skip
    """The strategy for so many training structures.

    Args:
        structures: to train on.  labels: energies, force and stress components that they carry.
        wanted: a name that the user chose.
        naive: all weights at one rate, nothing guards the old heads.
        keeps_heads: the old heads are wanted afterwards.
        steps: that the user chose.
        start: how the head begins: `AS_ANOTHER`, with `RANDOM` weights, which learn faster than the encoder, `FITTED`, or
            `FITTED_MEAN`: a number that is no sum over atoms and that no fit nearly tells.
        learnt: what the model has learnt of structures like these before, in words: large steps would only undo it.

    Raises:
        ConfigError: no such strategy.
    """
    require(wanted)
    few = _FEW_FITTED if start in _AS_FITTED else _FEW_LABELS
    reasons = [
        f"{structures} training structure{'s' * (structures != 1)} with {labels} labels",
        *([learnt] if learnt else []),
    ]
    if wanted is not None:
        name = wanted
        reasons.append(f"{name}: as asked for")
    elif naive:
        name = "full"
        reasons.append("full: --naive moves all weights at one rate")
    elif labels < few:
        name = "heads"
        reasons.append(f"heads: fewer than {few} labels would bend the encoder to their accidents")
    else:
        name = "full"
        reasons.append("full: enough labels to move the encoder, its first layers more slowly than its last")
    replay = name != "heads" and not naive and keeps_heads
    if replay:
        reasons.append(
            f"replay: every step holds {REPLAY_SHARE:.0%} structures on which the old heads repeat themselves"
        )
    elif name != "heads":
        reasons.append("no replay: the old heads are not guarded" + (" (--naive)" if naive else ""))
    batch = _batch(structures, start)
    as_fitted = name == "heads" and start in _AS_FITTED and labels < few
    planned = steps or (_TOUCHES if as_fitted else _steps(structures, batch, start))
    reasons.append(f"{planned} steps of {batch} structures: {planned * batch / structures:.0f} times through the data")
    return Strategy(
        name=name, reasons=tuple(reasons), replay=replay, structures=batch, steps=planned,
        **_rates(name, structures, naive=naive, start=start, replay=replay, learnt=bool(learnt), as_fitted=as_fitted),
    )  # fmt: skip


def _rates(
    name: str, structures: int, *, naive: bool, start: str, replay: bool, learnt: bool, as_fitted: bool
) -> dict[str, Any]:
    """How fast what learns: fields of `Strategy`."""
    if name == "heads":
        # 40 labels, a fit as it is, trained on alone (5e-4, 500 steps), and with the encoder (Muon, 5e-4, 300 steps): gap of QM9
        # 674, 733 and 679 meV, U0 202, 203 and 222; Matbench: shear modulus 0.237 and 0.246, formation energy 0.342, 0.336 and
        # 0.333.
        rate = 1e-4 if as_fitted else 5e-4 if start in _AS_FITTED else 2e-3
        return {"learning_rate": rate, "encoder_rate": 0.0}
    if name == "adapters":
        return {"learning_rate": 1e-3, "adapter_rank": 8}
    # Validation errors with 200 labels of formation energy (eV/atom) and log10 of the shear modulus (GPa), Matbench: random
    # weights 0.447 and 0.218; from a random head, the encoder fixed 0.235 and 0.191, at a quarter of 2e-3 0.276 and 0.189; a
    # fitted head as it is 0.130 and 0.167, trained alone 0.117 and 0.162, with the encoder at a quarter of 5e-4 0.110 and
    # 0.156, at as much 0.115 and 0.149; QM9's gap, meV: fitted 551, at a quarter 512, at as much 477.  All that with AdamW and a
    # fit to the last layer and the units of one head.  Muon (1e-3) makes 451 of 551 for the gap, 0.134 of 0.159 for the shear
    # modulus; and with 1,000 labels, U0 of QM9, 60 meV of 96, at 2e-3 69, where AdamW made 79 (5e-4) and 81 (1.5e-3).
    # With the mean of four fits and a Gaussian process, 200 labels, 500 steps of Muon at 1e-3, 5e-4 and 3e-4: gap of QM9, fitted
    # 424, 409, 425 and 433; formation energy, fitted 0.131, 0.134, 0.123 and 0.125; at 1e-3 and 3e-4: shear modulus, fitted
    # 0.139, 0.133 and 0.137; gap of Matbench, fitted 0.694, 0.673 and 0.664 eV.
    # 1,000 labels at 1e-3 and 3e-3, on other structures of the training side: dipole moments of QM9 0.297 and 0.206 D (without
    # landmarks 0.421 and 0.252), its gap 216 and (2e-3) 212 meV, perovskites 0.083 and 0.084 eV; but a sum over atoms, U0, 73 and
    # 83 meV.  200 labels: the gap 332 and 316 meV, perovskites 0.159 and 0.183 eV, shear moduli 0.124 and 0.127.
    if start in _AS_FITTED:
        unguarded = 3e-3 if start == FITTED_MEAN and structures >= _MANY and not naive else 1e-3
        # At 1e-3 the old heads forget.
        return {"learning_rate": 5e-4 if replay else unguarded, "method": "muon", "layer_decay": 1.0 if naive else 0.9}
    if start == RANDOM:
        return {"learning_rate": 5e-4} if naive else {"learning_rate": 2e-3, "encoder_rate": 0.25, "layer_decay": 0.9}
    # On 50 frames, batches of 10, one seed, force MAE on validation: uracil 48 meV/Å after 500 steps with Muon, 67 with AdamW
    # (5e-4); ethanol 53 after 600 of 1,200 steps against 66 (AdamW, 2e-3), and 52 at their end with 3 on the training frames:
    # what is left is no matter of optimisation.
    # With replay of structures made by code, 100 frames of uracil, validation loss and what is added to the errors of old
    # heads (mean, worst): Muon 0.060, 1.6 and 5.3 % at 5e-4; 0.053, 5.6 and 25 % at 1e-3; AdamW 0.077, 2.0 and 7.8 % at 5e-4.
    # 50 frames of ethanol, 800 steps at 5e-4, force MAE on validation, meV/Å: 51.5, 3.3 and 13 % with each layer at 0.9 of
    # the rate of the next; 51.5, 2.2 and 15 % at 0.6; 52.3, 1.2 and 6 % at 0.35; 55.2, 0.9 and 4 % at 0.9 and half the rate.
    # With exemplars, at 0.6, on held-out ones: 50.7, 0.5 and 2.1 % (energies 2.3 and 13 %) at 5e-4; 47.9, 2.0 and 8.6 %
    # (energies 16 and 192 %) at 1e-3.
    if replay:
        return {"learning_rate": 5e-4, "method": "muon", "layer_decay": 0.6}
    # After 1,000 labels of GFN2-xTB around the same 50 frames of ethanol: 23 meV/Å at 5e-4, 24 at 1.5e-4, 29 at 2e-3.  With more
    # to learn, 2,500 steps of 10 of 900 frames of uracil: 11.1 meV/Å at 2e-3, 9.6 at 4e-3, however slow the first layers.
    # A handful of frames of the lower half of the energies, force RMSE on the highest: 10 of acetylacetone, 400 steps, 163 meV/Å
    # at 2e-3 (800 steps 226), 133 at 1e-3, 113 at 5e-4 (800 steps 118), 109 at 2e-4; 10 of 3BPA 163, 115 and 120 at 2e-3, 5e-4
    # and 2e-4; of acetylacetone, 800 steps, 20 frames 113 and 80 at 2e-3 and 5e-4, 50 frames 62 and 60.
    small = learnt or structures < _HANDFUL
    rate = (5e-4 if small else 2e-3) if structures < _MANY else (2e-3 if learnt else 4e-3)
    return {"learning_rate": rate, "method": "muon", "layer_decay": 1.0 if naive else 0.9}


def _batch(structures: int, start: str) -> int:
    """Structures in a step: of energies and forces few, for each gives many labels."""
    # 900 frames of ethanol, 40,000 structures drawn, one seed, force MAE on validation: 10.7 meV/Å in steps of 32, 7.7 in steps
    # of 10 (8.4 at half the rate), which take 1.9 times as long.
    return min(32, max(10, structures // 100) if start == AS_ANOTHER else max(8, structures // 5))


def _steps(structures: int, batch: int, start: str) -> int:
    """More for more data, ever fewer times through it: 300 times for 50 structures, 12 for 100,000."""
    per_root = 240 if start == AS_ANOTHER else 160
    return int(min(60_000, max(1500, per_root * structures**0.5 * (8 / batch) ** 0.5)))


def recipe_of(
    strategy: Strategy, *, model: tuple[str, str], data: DataRecipe, config, head: str, nearest: str | None,
    old_heads: Mapping[str, OldHead], dtype: str,
) -> Recipe:  # fmt: skip
    """The recipe of the run.

    Args:
        model: name or directory, and id, of the model to start from.
        config: its `ModelConfig`.
        head: the new one, which begins as `nearest`, or with random weights.
        old_heads: those that are replayed.
    """
    share = REPLAY_SHARE if old_heads else 0.0
    heads = [HeadRecipe(name=head, start=nearest, share=1 - share if old_heads else None)]
    stakes = _stakes(old_heads)
    heads += [
        HeadRecipe(name=name, start=name, share=share * draws, weight=_REPLAY_WEIGHT * weight)
        for name, (draws, weight) in stakes.items()
    ]
    structures = round(strategy.structures / (1 - share))
    recipe = Recipe(
        data=data, model=config, heads=tuple(heads),
        start=StartRecipe(
            model=model[0], model_id=model[1], encoder_rate=strategy.encoder_rate, layer_decay=strategy.layer_decay,
            adapter_rank=strategy.adapter_rank,
        ),
        objective=ObjectiveRecipe(energy=2.0, forces=1.0, stress=5.0, soften=None),
        optimizer=OptimizerRecipe(
            method=strategy.method, beta1=0.95 if strategy.method == "muon" else 0.9,
            learning_rate=strategy.learning_rate, final_learning_rate=strategy.learning_rate / 100,
            ema=0.99, clip=5.0,
        ),
        run=RunRecipe(
            structures=structures, dtype=dtype, max_validation=200,
        ),
    )  # fmt: skip
    return shortened(recipe, strategy.steps)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """With so many steps, and what goes by their number."""
    checks = max(1, steps // 20)
    run = replace(recipe.run, steps=steps, validate_every=checks, save_every=max(50, checks))
    return replace(recipe, optimizer=replace(recipe.optimizer, warmup=min(100, steps // 10)), run=run)


def _stakes(heads: Mapping[str, OldHead]) -> dict[str, tuple[float, float]]:
    """(Share of the replayed draws, weight of its structures) of each head: more draws for one that is good, since the same
    change harms it more, and for one with much to repeat (`_MOST_DRAWN`); the weight makes the product go by the first alone,
    squared.  Shares add up to 1; weights are 1 on average over the draws."""
    terms = [
        _inverse([head.energy_error for head in heads.values()]),
        _inverse([head.error for head in heads.values()]),
    ]
    stakes = [math.sqrt(energy * forces) for energy, forces in zip(*terms)]
    draws = [stake * min(head.structures, _MOST_DRAWN) for stake, head in zip(stakes, heads.values())]
    whole, squares = sum(draws), sum(stake**2 for stake in stakes)
    return {
        name: (drawn / whole, stake**2 * whole / (drawn * squares)) for name, drawn, stake in zip(heads, draws, stakes)
    }


def _inverse(errors: Sequence[float]) -> list[float]:
    """The middle error over each, within bounds; 1 where it is not known."""
    known = [error for error in errors if error > 0]
    middle = statistics.median(known) if known else 1.0
    return [min(_MOST_STAKE, max(1 / _MOST_STAKE, middle / error)) if error > 0 else 1.0 for error in errors]
