"""Which process trains what: a mesh of head groups and replicas.

In mode "data" there is one group: every process has every head.  In mode "multitask" (the scheme of DOI
10.48550/arXiv.2506.21788) the heads are divided among groups of processes; a head's weights, their gradients and their
optimiser state exist in its group alone, and its structures are drawn there.  Encoder gradients are summed over all
processes, those of a head within its group: the sums, hence the training, are the same in both modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gfm_calc.config import HeadSpec
from gfm_calc.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Attributes: `groups`, the ranks of each head group; `heads`, the heads (by number) of each group, ascending."""

    groups: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]

    def group_of(self, rank: int) -> int:
        """The group that a rank belongs to."""
        return next(k for k, ranks in enumerate(self.groups) if rank in ranks)

    def describe(self, names: Sequence[str]) -> list[str]:
        """A line a group, for people."""
        return [
            f"ranks {_ranges(ranks)}: {', '.join(names[head] for head in heads)}"
            for ranks, heads in zip(self.groups, self.heads)
        ]


def place(loads: Sequence[float], world: int, mode: str) -> Placement:
    """The placement for any number of processes.

    Args:
        loads: of each head, the expected work of its structures in a step; any unit.
        mode: "data" or "multitask".

    With fewer processes than heads, each process is a group, and the heads are dealt out, the heaviest first, each to the
    group with the least work.  With more, every head is a group of its own, and each further process goes to the group with
    the most work a process.
    """
    if world < 1 or not loads or min(loads) <= 0:
        raise ConfigError("placement needs at least one process and one head, and positive loads")
    heads = range(len(loads))
    if mode == "data" or world == 1:
        return Placement(groups=(tuple(range(world)),), heads=(tuple(heads),))
    count = min(world, len(loads))
    members: list[list[int]] = [[] for _ in range(count)]
    work = np.zeros(count)
    for head in sorted(heads, key=lambda h: (-loads[h], h)):
        lightest = int(work.argmin())
        members[lightest].append(head)
        work[lightest] += loads[head]
    sizes = np.ones(count, int)
    for _ in range(world - count):
        sizes[int((work / sizes).argmax())] += 1
    order = sorted(range(count), key=lambda k: min(members[k]))
    starts = np.cumsum([0] + [int(sizes[k]) for k in order])
    return Placement(
        groups=tuple(tuple(range(starts[n], starts[n + 1])) for n in range(count)),
        heads=tuple(tuple(sorted(members[k])) for k in order),
    )


def refuse_properties(specs: Sequence[HeadSpec], groups: int, *, balanced: bool) -> None:
    """ConfigError for what heads of properties cannot be trained with: they are no rows of the stack of energy heads.

    Args:
        specs: of all heads.  groups: of the placement.  balanced: weights of terms are learnt.
    """
    names = [spec.name for spec in specs if spec.kind != "energy"]
    if names and groups > 1:
        raise ConfigError(f"head {names[0]} is of a property: train it with parallel.mode = data")
    if names and balanced:
        raise ConfigError(f"head {names[0]} is of a property: objective.uncertainty balances energy heads alone")


def _ranges(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
