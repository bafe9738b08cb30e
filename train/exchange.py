"""Gradients added up over the processes that share parameters; optimiser state cut among them where the recipe says so.

With sharding, each process keeps optimiser state and running average of its part alone (ZeRO, stage 1, DOI
10.1109/SC41405.2020.00024): the sum of the gradients is scattered, each part is updated, the new weights are collected.
Weights themselves stay whole: gathering them layer by layer (FSDP) would cost three more passes of communication in a step
that differentiates twice, to save less memory than a batch's activations take.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gfm_calc.train.flat import AdamW, FlatParameters
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.state import SavedState


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Who shares some parameters with this process.

    Attributes:
        ranks: all who have them.  part, parts: which part of their state this process holds.
        part_group: those among whom the state is cut (None: it is not).
        copy_group: those who hold the same part, with `copies` members (None: nobody else).
        is_first: whether this process is the first who holds its part, and writes it to the disk.
    """

    ranks: tuple[int, ...]
    part: int
    parts: int
    part_group: Any
    copy_group: Any
    copies: int
    is_first: bool


def share(ranks: Ranks, members: Sequence[Sequence[int]], shard: str) -> Sharing:
    """How this process shares parameters, of which each set in `members` has a copy; to be called by all processes.

    Args:
        members: sets of ranks that make up all ranks; a set shares one copy of the parameters.
        shard: "none", "replica" (cut among the processes of a machine, or as many of them as make up the set) or "all".
    """
    found = None
    for own in members:
        # Six processes on machines of four are cut in pairs, each of which lies on one machine.
        local = len(own) if len(own) <= ranks.local_world else math.gcd(len(own), ranks.local_world)
        width = {"all": len(own), "replica": local}.get(shard, 1)
        rows = [list(own[k : k + width]) for k in range(0, len(own), width)]
        part_groups = [ranks.group(row) for row in rows]
        copy_groups = [ranks.group([row[k] for row in rows]) for k in range(width)]
        if ranks.rank in own:
            row, part = divmod(list(own).index(ranks.rank), width)
            found = Sharing(
                ranks=tuple(own), part=part, parts=width, part_group=part_groups[row], copy_group=copy_groups[part],
                copies=len(rows), is_first=row == 0,
            )  # fmt: skip
    assert found is not None
    return found


class SharedParameters:
    """Flat parameters and those who share them.

    Args:
        parameters: name -> parameter; may be empty.
        decayed: names to which weight decay applies.
        rates: name -> factor of the learning rate, where it is not 1.
        turned: names of matrices whose updates are orthogonal, see `FlatParameters`.
    """

    def __init__(
        self, ranks: Ranks, sharing: Sharing, parameters: Mapping[str, nn.Parameter], decayed: set[str],
        rates: Mapping[str, float] | None = None, turned: Collection[str] = (),
    ):  # fmt: skip
        self.ranks, self.sharing = ranks, sharing
        self.flat = FlatParameters(
            parameters, decayed, parts=sharing.parts, part=sharing.part, rates=rates, turned=turned
        )
        self._own = self.flat.gradient if sharing.parts == 1 else torch.zeros_like(self.flat.average)

    def add_up(self) -> Tensor:
        """This process's part of the sum of the gradients; further calls of the step may scale it in place."""
        sharing = self.sharing
        if sharing.parts > 1:
            self.ranks.scatter_sum(self.flat.gradient, self._own, sharing.part_group, sharing.parts)
        if sharing.copies > 1:
            self.ranks.add_up(self._own, sharing.copy_group, size=sharing.copies)
        return self._own

    @property
    def gradient(self) -> Tensor:
        """What `add_up` returned."""
        return self._own

    def flat_from(self, saved: SavedState, group: str, heads: Sequence[str] = ()) -> None:
        """Take the values of a checkpoint; `heads` are the rows of a stack."""
        saved.fill(self.flat, group, heads)

    def update(self, constants: AdamW, *, rate: float, count: int, decay: float) -> None:
        """One step of the optimiser; the weights are the same on all who share them afterwards."""
        flat, orthogonal = self.flat, None
        if flat.turned:
            orthogonal = self._orthogonal(self._whole(flat.ahead(self._own, constants)))
        flat.update(self._own, constants, rate=rate, count=count, decay=decay, orthogonal=orthogonal)
        self._collect(self.flat.weight)

    def _orthogonal(self, ahead: Tensor) -> Tensor:
        """This process's part of the orthogonal updates; where their state is not cut, those who share them share the work."""
        sharing, flat = self.sharing, self.flat
        if sharing.parts > 1:
            return flat.orthogonal(ahead)[flat.own]
        found = flat.orthogonal(ahead, sharing.ranks.index(self.ranks.rank), sharing.copies)
        if sharing.copies > 1:
            self.ranks.add_up(found[flat.turned_span], sharing.copy_group, size=sharing.copies)
        return found

    def clear(self) -> None:
        """Set the gradients to zero."""
        self.flat.gradient.zero_()

    def whole(self, state: str) -> Tensor:
        """The vector "average" or "best" of `flat`, whole."""
        return self._whole(getattr(self.flat, state))

    def _whole(self, part: Tensor) -> Tensor:
        """A vector of which each process has a part."""
        if self.sharing.parts == 1:
            return part
        whole = torch.zeros_like(self.flat.weight)
        whole[self.flat.own] = part
        self._collect(whole)
        return whole

    def _collect(self, whole: Tensor) -> None:
        if self.sharing.parts > 1:
            own = whole[self.flat.own].clone()
            self.ranks.collect(own, whole, self.sharing.part_group, self.sharing.parts)
