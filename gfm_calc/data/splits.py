"""Splits into training, validation and test: by group, reproducible, and refused where they leak.

The side of a group follows from a hash of its name and the seed, so it does not depend on which other groups there are, in
which order they come, or in which dataset a group occurs: data that is added later falls on the same sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError, GFMError
from .grouping import PAIR, keyer
from .schema import Record

SIDES = ("train", "validation", "test")  # in order: the larger is the more held out
_RANK = {"unused": 0, "train": 1, "validation": 2, "test": 3}
TRAIN, VALIDATION, TEST = range(3)


class LeakError(GFMError):
    """A structure that lies on two sides of a split."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which groups, or which frames, are held out.

    Attributes:
        seed, by: see `draw`.
        fractions: of groups that were drawn: {"validation": ..., "test": ...}.
        groups: group -> side, of the groups that are held out; all others are for training.
        frames: "file:frame" -> side, where official lists fix frames; they go before groups.
        unlisted: side of what is in neither: "train", or "unused" beside official lists that leave frames out.
    """

    seed: int
    by: str
    fractions: Mapping[str, float]
    groups: Mapping[str, str]
    frames: Mapping[str, str] = field(default_factory=dict)
    unlisted: str = "train"

    def side(self, record: Record) -> str:
        """'train', 'validation' or 'test' ('unused' for what an official list leaves out)."""
        fixed = self.side_of_frame(record.source, record.frame)
        return fixed if fixed is not None else self.side_of_group(keyer(self.by)(record))

    def side_of_frame(self, source: str, frame: int) -> str | None:
        """The side that an official list gives a frame, None where its group decides."""
        return self.frames.get(f"{source}:{frame}") if self.frames else None

    def side_of_group(self, group: str) -> str:
        """The side of a group; a pair 'a+b' goes to the most held-out side of its parts."""
        whole = self.groups.get(group)
        if whole is not None:
            return whole
        return max((self.groups.get(part, self.unlisted) for part in parts_of(group)), key=_RANK.__getitem__)


def parts_of(group: str) -> list[str]:
    """The groups in a pair 'a+b'; a plus at the end is the charge of an ion."""
    return [part for part in group.split(PAIR) if part] or [group]


def fraction(name: str, seed: int = 0) -> float:
    """A number in [0, 1) that belongs to a name; seed 0 hashes the name alone."""
    text = f"{seed}:{name}" if seed else name
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64


def draw(
    datasets: Mapping[str, Iterable[str]],
    *,
    by: str = "group",
    seed: int = 0,
    validation: float = 0.02,
    test: float = 0.05,
    like: Split | None = None,
) -> Split:
    """Draw the held-out groups.

    A dataset with more than two groups whose draw leaves a side empty gives it its training group of lowest hash.

    Args:
        datasets: name -> the groups in it.
        validation, test: fractions of groups.
        like: an earlier split; groups that it holds out stay where they are.

    Raises:
        ConfigError: fractions that are none.
    """
    for name, value in (("validation", validation), ("test", test)):
        if not 0.0 <= value < 1.0 or validation + test >= 1.0:
            raise ConfigError(f"--{name} must be a fraction, and the two below 1 together, not {value}")
    wanted = [side for side, share in ((TEST, test), (VALIDATION, validation)) if share > 0]
    held: dict[str, str] = dict(like.groups) if like is not None else {}
    for groups in datasets.values():
        for part in {part for group in groups for part in parts_of(group)}:
            x = fraction(part, seed)
            if part not in held and x < test + validation:
                held[part] = SIDES[TEST if x < test else VALIDATION]
    drawn = Split(seed=seed, by=by, fractions={"validation": validation, "test": test}, groups=held)
    for groups in datasets.values():
        own = sorted(set(groups), key=lambda name: fraction(name, seed))
        present = {drawn.side_of_group(group) for group in own}
        for side in wanted:
            if SIDES[side] not in present and len(own) > 2:
                moved = next((group for group in own if drawn.side_of_group(group) == "train"), None)
                if moved is not None:
                    held[moved] = SIDES[side]
    return drawn


def fixed(lists: Mapping[str, Sequence[str]], *, by: str = "group", unlisted: str = "unused") -> Split:
    """A split from official lists.

    Args:
        lists: side -> names, each a group or "file:frame".
        unlisted: side of what no list names.

    Raises:
        ConfigError: a name on two lists, or a side that is none.
    """
    seen: dict[str, str] = {}
    for side, names in lists.items():
        if side not in (*SIDES, "unused"):
            raise ConfigError(f"{side!r} is no side of a split: {', '.join(SIDES)}")
        for name in names:
            if seen.setdefault(name, side) != side:
                raise LeakError(f"{name} is on the lists of {seen[name]} and of {side}: take it off one of them")
    frames = {name: side for name, side in seen.items() if _is_frame(name)}
    groups = {name: side for name, side in seen.items() if name not in frames}
    return Split(seed=0, by=by, fractions={}, groups=groups, frames=frames, unlisted=unlisted)


def _is_frame(name: str) -> bool:
    head, colon, tail = name.rpartition(":")
    return bool(head and colon and tail.isdigit() and "." in head)


def join(split: Split, shared: Iterable[set[str]]) -> Split:
    """The split with every set of groups that share structures on the most held-out side of any of them."""
    owner: dict[str, set[str]] = {}
    for groups in shared:
        merged = set(groups).union(*(owner[name] for name in groups if name in owner))
        for name in merged:
            owner[name] = merged
    held = dict(split.groups)
    for name, groups in owner.items():
        side = max((split.side_of_group(other) for other in groups), key=_RANK.__getitem__)
        if side != "train":
            held[name] = side
    return Split(
        seed=split.seed,
        by=split.by,
        fractions=split.fractions,
        groups=held,
        frames=split.frames,
        unlisted=split.unlisted,
    )
