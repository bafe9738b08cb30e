"""Every frame of some files, in a few numbers each: its group, its fingerprint, and what a split makes of it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from .fingerprints import NEAR, SAME, WIDTH, Description, close_pairs, clusters, describe, describe_all
from .schema import Record
from .splits import SIDES, LeakError, Split

UNUSED = -1
_TOGETHER = 512  # frames that are described at a time
_SHOWN = 1000  # messages of unusable frames that are kept


class FrameTable:
    """Collects frames, then tells sides, leaks and duplicates.  Memory: some 90 bytes a frame."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.groups: list[str] = []
        self.unusable: list[str] = []
        self.num_unusable = 0
        self._source_of: dict[str, int] = {}
        self._group_of: dict[str, int] = {}
        self._source, self._group, self._frame = array("l"), array("l"), array("q")
        self._key, self._values = array("q"), array("d")

    def __len__(self) -> int:
        return len(self._frame)

    def add(self, record: Record, group: str, description: Description | None = None) -> None:
        """One more frame.

        Args:
            description: of the record, where it is known already.

        Raises:
            InvalidStructureError: atoms that sit on each other by the thousand.
        """
        description = describe(record) if description is None else description
        self._source.append(_number(record.source, self._source_of, self.sources))
        self._group.append(_number(group, self._group_of, self.groups))
        self._frame.append(record.frame)
        self._key.append(description.key)
        self._values.extend(description.values)

    def add_all(self, frames: Iterable[tuple[Record, str]]) -> None:
        """Frames and their groups, described many at a time; see `add`."""
        iterator = iter(frames)
        while batch := list(islice(iterator, _TOGETHER)):
            for (record, group), description in zip(batch, describe_all([record for record, _ in batch])):
                self.add(record, group, description)

    def refused(self, message: str) -> None:
        """Note a frame that cannot be used."""
        self.num_unusable += 1
        if len(self.unusable) < _SHOWN:
            self.unusable.append(message)

    def groups_by_file(self) -> dict[str, list[str]]:
        """File -> the groups in it, for `splits.draw`."""
        pairs = np.unique(np.stack([np.asarray(self._source), np.asarray(self._group)]), axis=1)
        found: dict[str, list[str]] = {source: [] for source in self.sources}
        for source, group in pairs.T.tolist():
            found[self.sources[source]].append(self.groups[group])
        return found

    def group_numbers(self) -> np.ndarray:
        """[frames] index into `groups` of every frame."""
        return np.array(self._group, np.int64)

    def sides(self, split: Split) -> np.ndarray:
        """[frames] index into SIDES of every frame, `UNUSED` for those that an official list leaves out."""
        of_group = np.array([_index(split.side_of_group(group)) for group in self.groups], np.int8)
        sides = of_group[np.asarray(self._group)] if len(self) else np.zeros(0, np.int8)
        if split.frames:
            for k in range(len(self)):
                side = split.side_of_frame(self.sources[self._source[k]], self._frame[k])
                sides[k] = sides[k] if side is None else _index(side)
        return sides

    def duplicates(self, tolerance: float = SAME) -> np.ndarray:
        """[frames] label of the cluster of equal structures that a frame is in: the lowest index."""
        return clusters(len(self), self._pairs(tolerance))

    def duplicates_between(self, first: int, count: int, tolerance: float = SAME) -> np.ndarray:
        """`duplicates` of `count` frames from `first` on, among themselves."""
        part = slice(first, first + count)
        values = np.asarray(self._values).reshape(-1, WIDTH)[part]
        return clusters(count, close_pairs(np.asarray(self._key)[part], values, tolerance))

    def leaks(self, sides: np.ndarray) -> list[tuple[int, int]]:
        """Pairs of frames that are one structure on two sides: one pair for each such structure."""
        labels = self.duplicates()
        used = np.flatnonzero(sides != UNUSED)
        order = used[np.argsort(labels[used], kind="stable")]
        found = []
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        for members in np.split(order, starts[1:]) if len(order) else ():
            other = members[sides[members] != sides[members[0]]]
            if other.size:
                found.append((int(members[0]), int(other[0])))
        return found

    def fingerprints(self, first: int, count: int) -> np.ndarray:
        """[count, WIDTH] of the frames from the row `first` on."""
        return np.asarray(self._values).reshape(-1, WIDTH)[first : first + count]

    def num_close(self, sides: np.ndarray) -> int:
        """Frames that have a near twin (atoms moved by some hundredths of an Å at most) on another side."""
        near = np.zeros(len(self), bool)
        for first, second in self._pairs(NEAR):
            across = (sides[first] != sides[second]) & (sides[first] != UNUSED) & (sides[second] != UNUSED)
            near[first[across]] = near[second[across]] = True
        return int(near.sum())

    def refuse_leaks(
        self, sides: np.ndarray, advice: str = "--join keeps groups that share a structure together"
    ) -> None:
        """LeakError where a structure is on two sides, naming the first few; advice: how to mend it."""
        found = self.leaks(sides)
        if found:
            shown = "; ".join(f"{self.name(a)} = {self.name(b)}" for a, b in found[:3])
            raise LeakError(
                f"{len(found)} structure{'s are' if len(found) > 1 else ' is'} on two sides of the split ({shown}"
                f"{', ...' if len(found) > 3 else ''}): {advice}"
            )

    def groups_that_share(self) -> list[set[str]]:
        """Sets of groups that have a structure in common."""
        labels = self.duplicates()
        repeated = np.flatnonzero(np.bincount(labels, minlength=len(self)) > 1) if len(self) else ()
        members: dict[int, set[str]] = {int(label): set() for label in repeated}
        for k in np.flatnonzero(np.isin(labels, repeated)):
            members[int(labels[k])].add(self.groups[self._group[k]])
        return [groups for groups in members.values() if len(groups) > 1]

    def frame_names(self) -> Iterator[str]:
        """'file:frame' of every frame."""
        return (f"{self.sources[source]}:{frame}" for source, frame in zip(self._source, self._frame))

    def name(self, index: int) -> str:
        """'file frame 12'."""
        return f"{self.sources[self._source[index]]} frame {self._frame[index]}"

    def census(self, sides: np.ndarray) -> dict[str, Any]:
        """{"ids": side -> {"frames", "groups", "sha256_sum"}, "files": file -> {side: frames}, "unusable": [...]}.

        sha256_sum is the sum modulo 2^256 of the SHA-256 of every id 'file:frame', which no order changes.
        """
        source, group = np.asarray(self._source), np.asarray(self._group)
        ids: dict[str, Any] = {}
        files: dict[str, dict[str, int]] = {name: {} for name in self.sources}
        for side in np.unique(sides):
            name = SIDES[side] if side != UNUSED else "unused"
            members = np.flatnonzero(sides == side)
            total = 0
            for k in members:
                text = f"{self.sources[source[k]]}:{self._frame[k]}"
                total += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
            ids[name] = {
                "frames": len(members),
                "groups": len(np.unique(group[members])),
                "sha256_sum": f"{total % (1 << 256):064x}",
            }
            for number, count in zip(*np.unique(source[members], return_counts=True)):
                files[self.sources[number]][name] = int(count)
        return {"ids": ids, "files": files, "unusable": self.unusable, "num_unusable": self.num_unusable}

    def _pairs(self, tolerance: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return close_pairs(np.asarray(self._key), np.asarray(self._values).reshape(-1, WIDTH), tolerance)


def _number(name: str, known: dict[str, int], names: list[str]) -> int:
    if name not in known:
        known[name] = len(names)
        names.append(name)
    return known[name]


def _index(side: str) -> int:
    return UNUSED if side == "unused" else SIDES.index(side)
