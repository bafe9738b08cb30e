"""Which structures a step of training sees: pure functions of (seed, step, rank, world).

The stream of draws never ends.  A head gets a share p ~ n^tau of it (n: its structures), evenly spaced, and goes through its
structures in seeded order, all of them before any comes again.  A step takes the next `structures` draws of the stream,
deals them to the ranks so that all have about the same work, and cuts each rank's hand into batches that keep to a budget
of atoms and edges.  The state of all this is the number of the step; memory does not grow with the number of structures,
since orders are computed by a cipher (a permutation) and not kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import ConfigError

PERIOD = 1 << 16  # draws after which every head has had its exact share
_ROUNDS = 6
_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What is drawn from.

    Attributes:
        counts: structures of each head.
        seed: of all orders.
        structures: draws a step, of all ranks together.
        tau: temperature of the shares, p ~ n^tau: 1 draws every structure equally often, 0 every head.
        shares: of the heads, instead of tau; any positive scale.
    """

    counts: tuple[int, ...]
    seed: int
    structures: int
    tau: float = 1.0
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", tuple(int(n) for n in self.counts))
        if not self.counts or min(self.counts) < 1 or len(self.counts) > PERIOD // 2:
            raise ConfigError("sampling needs at least one head, and at least one structure of each")
        if self.structures < 1 or self.seed < 0 or not 0 <= self.tau <= 4:
            raise ConfigError("sampling needs structures >= 1, seed >= 0 and tau between 0 and 4")
        if self.shares is not None and (
            len(self.shares) != len(self.counts) or not all(0 < share < np.inf for share in self.shares)
        ):
            raise ConfigError("sampling needs one positive share for each head")

    def weights(self) -> np.ndarray:
        """The heads' shares p of the draws, [heads], adding up to one."""
        raw = np.array(self.counts, float) ** self.tau if self.shares is None else np.array(self.shares, float)
        return raw / raw.sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Structures that are computed together: head [b] (which of the plan's heads) and index [b] (which of its)."""

    head: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


def draws(plan: SamplingPlan, step: int) -> Batch:
    """The draws of one step, of all ranks together."""
    if step < 0:
        raise ConfigError(f"step must not be negative, not {step}")
    first = step * plan.structures
    numbers = np.arange(first, first + plan.structures)
    heads = np.empty(len(numbers), np.int64)
    turns = np.empty(len(numbers), np.int64)  # how often the head was drawn before
    for period in range(int(numbers[0]) // PERIOD, int(numbers[-1]) // PERIOD + 1):
        inside = numbers // PERIOD == period
        sequence, counted, quota = _period(plan, period)
        place = numbers[inside] % PERIOD
        heads[inside] = sequence[place]
        turns[inside] = period * quota[sequence[place]] + counted[place]
    indices = np.empty(len(numbers), np.int64)
    for head in np.unique(heads).tolist():
        chosen = heads == head
        indices[chosen] = _in_order(plan, head, turns[chosen])
    return Batch(head=heads, index=indices)


def batches(
    plan: SamplingPlan, step: int, rank: int = 0, world: int = 1, *, sizes: Callable[[Batch], np.ndarray],
    budget: Sequence[float], heads: Sequence[int] | None = None,
) -> list[Batch]:  # fmt: skip
    """The batches of one rank in one step.

    Args:
        sizes: gives what each draw costs, [b, k]: its atoms first, then for example its edges.
        budget: the most that a batch may cost, [k]; a structure that costs more is a batch of its own.
        heads: whose draws these ranks compute (default: all heads).

    Returns:
        as many batches on every rank, unless there are fewer structures than that (a rank may then have none).
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank must lie within 0 and {world - 1}, not {rank}")
    drawn = draws(plan, step)
    if heads is not None:
        chosen = np.isin(drawn.head, heads)
        drawn = Batch(head=drawn.head[chosen], index=drawn.index[chosen])
        if not len(drawn):
            return []
    bins = deal(sizes(drawn), budget, world)
    return [Batch(head=drawn.head[part], index=drawn.index[part]) for part in bins[rank::world] if len(part)]


def deal(sizes: np.ndarray, budget: Sequence[float], world: int = 1) -> list[np.ndarray]:
    """Divide items among bins, a multiple of `world` in number, as few and as equal in their first size as can be found.

    Items go, the largest first, to the bin with the smallest first size that has room; bins are added until all fit.

    Args:
        sizes: [n, k], not negative.
        budget: [k] of a bin; an item beyond it has a bin of its own.

    Returns:
        for each bin the items in it, ascending; every item is in one bin, and only single items break the budget.
    """
    sizes = np.asarray(sizes, float).reshape(len(sizes), -1)
    limit = np.asarray(budget, float)
    if len(limit) != sizes.shape[1] or not (limit > 0).all():
        raise ConfigError("a budget needs one positive number for each size")
    over = (sizes > limit).any(axis=1)
    order = [int(k) for k in np.argsort(-sizes[:, 0], kind="stable") if not over[k]]
    alone = [np.array([k]) for k in np.flatnonzero(over)]
    needed = int(np.ceil((sizes[~over].sum(axis=0) / limit).max())) if order else 0
    total = max(1, -(-(needed + len(alone)) // world)) * world
    while (bins := _fill(sizes, order, limit, total - len(alone))) is None:
        total += world
    return alone + bins


def _fill(sizes: np.ndarray, order: Sequence[int], limit: np.ndarray, count: int) -> list[np.ndarray] | None:
    held: list[list[int]] = [[] for _ in range(count)]
    loads = np.zeros((count, sizes.shape[1]))
    heap = [(0.0, number) for number in range(count)]
    for item in order:
        passed = []
        while heap:
            load, number = heapq.heappop(heap)
            if (loads[number] + sizes[item] <= limit).all():
                break
            passed.append((load, number))
        else:
            return None
        held[number].append(item)
        loads[number] += sizes[item]
        for entry in (*passed, (float(loads[number, 0]), number)):
            heapq.heappush(heap, entry)
    return [np.array(sorted(items), np.int64) for items in held]


def permuted(seed: int, stream: int, count: int, numbers: np.ndarray) -> np.ndarray:
    """Where a seeded permutation of 0 ... count - 1 takes `numbers`, without the permutation being made.

    A Feistel network (Luby and Rackoff, DOI 10.1137/0217022) permutes the next power of four; what falls outside is sent
    through it again until it falls inside.

    Args:
        seed, stream: choose the permutation.
        numbers: [m], within 0 and count - 1.
    """
    bits = max(1, (max(int(count) - 1, 1).bit_length() + 1) // 2)
    half = np.uint64((1 << bits) - 1)
    keys = [
        _mixed(np.uint64((seed * 0x9E3779B97F4A7C15 + stream * _ROUNDS + r + 1) & int(_MASK))) for r in range(_ROUNDS)
    ]
    found = np.asarray(numbers, np.uint64).copy()
    outside = np.arange(len(found))
    while outside.size:
        left, right = found[outside] >> np.uint64(bits), found[outside] & half
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & half)
        found[outside] = (left << np.uint64(bits)) | right
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def _mixed(value):
    """The finaliser of SplitMix64 (Steele, Lea, Flood, DOI 10.1145/2660193.2660195), on 64-bit integers that wrap."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _in_order(plan: SamplingPlan, head: int, turns: np.ndarray) -> np.ndarray:
    """The structures of a head at its draws number `turns`: one seeded order after the other."""
    count = plan.counts[head]
    rounds, places = np.divmod(turns, count)
    found = np.empty(len(turns), np.int64)
    for number in np.unique(rounds).tolist():
        chosen = rounds == number
        stream = (number + 1) * (len(plan.counts) + 1) + head + 1
        found[chosen] = permuted(plan.seed, stream, count, places[chosen])
    return found


@lru_cache(maxsize=4)
def _period(plan: SamplingPlan, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(head of each draw of a period, how often it was drawn before in it, draws of each head in any period)."""
    quota = _quota(plan.weights())
    heads = np.repeat(np.arange(len(quota)), quota)
    turns = np.arange(PERIOD) - np.repeat(np.cumsum(quota) - quota, quota)
    # Each head's draws are evenly spaced, from a seeded beginning: every step has each head's share, give or take one.
    starts = _mixed(
        np.arange(len(quota), dtype=np.uint64) + _mixed(np.uint64((plan.seed * PERIOD + period) & int(_MASK)))
    )
    keys = (turns + np.repeat(starts / 2.0**64, quota)) / np.repeat(quota, quota)
    order = np.argsort(keys, kind="stable")
    return heads[order], turns[order], quota


def _quota(weights: np.ndarray) -> np.ndarray:
    """Whole numbers in these proportions that add up to `PERIOD`, at least one for each (largest remainders)."""
    exact = 1 + weights * (PERIOD - len(weights))
    quota = np.floor(exact).astype(np.int64)
    missing = PERIOD - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    return quota


def spread_indices(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, evenly spaced: the same ones every time."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.zeros(0, int)
    )
