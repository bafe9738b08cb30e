"""Errors on held-out structures, with the averaged weights, by all processes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gfm_calc.config import HeadSpec
from gfm_calc.data.loader import Loader
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.store import Selection
from gfm_calc.model import GFMModel
from gfm_calc.train.evaluation import ErrorSums
from gfm_calc.train.exchange import SharedParameters
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.preparation import Head
from gfm_calc.train.recipe import Recipe


class Validator:
    """Measures the heads that live here, on the share of their structures that falls to this process.

    Args:
        model: with the heads `own`.
        shared: the model's parameters, by set.
        specs: cards of all heads of the run.
        members: ranks that have the same heads as this one.
    """

    def __init__(
        self, recipe: Recipe, ranks: Ranks, model: GFMModel, shared: Mapping[str, SharedParameters], *,
        own: Sequence[Head], specs: Sequence[HeadSpec], members: Sequence[int],
    ):  # fmt: skip
        self.recipe, self.ranks, self.model, self.shared = recipe, ranks, model, shared
        self.own, self.members = own, members
        self.kinds = {spec.name: spec.kind for spec in specs}
        self.best = False  # whether the weights of the best validation take the place of the average

    def errors(self, side: str, most: int) -> dict[str, dict[str, Any]]:
        """{head: figures} of all heads, on at most `most` structures each; to be called by all processes."""
        found = ErrorSums(list(self.kinds), self.kinds)
        run = self.recipe.run
        with self.averaged():
            for head in self.own:
                rows = head.sides[side][spread_indices(len(head.sides[side]), most)]
                if rows.size:
                    loader = Loader(
                        [Selection(head.dataset, rows)], self.recipe.model.cutoff, max_atoms=run.max_atoms,
                        max_edges=run.max_edges, rank=self.members.index(self.ranks.rank), world=len(self.members),
                        names=[head.spec.name],
                    )  # fmt: skip
                    found.add(self.model, loader.once(), head.spec.name)
        self.ranks.add_up(found.sums)
        return found.table()

    def keep_best(self) -> None:
        """Keep what was just validated, where the recipe says so; the only validation of a run is that of its end."""
        if self.recipe.run.keep_best and self.recipe.run.validate_every:
            for shared in self.shared.values():
                shared.flat.keep_best(average=self.recipe.optimizer.ema > 0)

    @contextmanager
    def averaged(self) -> Iterator[GFMModel]:
        """The model with the running average of its weights (or the best ones, see `best`), while the block lasts; to be
        entered by all processes."""
        kept = {name: shared.flat.weight.clone() for name, shared in self.shared.items()}
        if self.best or self.recipe.optimizer.ema:
            for shared in self.shared.values():
                shared.flat.weight.copy_(shared.whole("best" if self.best else "average"))
        try:
            yield self.model
        finally:
            for name, shared in self.shared.items():
                shared.flat.weight.copy_(kept[name])
