"""What must stay on one side of a split: the key of every structure of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gfm_calc.data.grouping import by_composition, keyer
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Dataset

FEW_GROUPS = 3  # fewer cannot be divided by group
_BLOCKS = 40  # of frames, where nothing else tells them apart
BLOCKS = "blocks"


def keyed(dataset: Dataset, by: str, *, few: int = FEW_GROUPS) -> Iterator[tuple[Record, str]]:
    """(record, what it must stay on one side with) of all structures.

    Args:
        by: a name of `grouping.KEYS`, or "auto": the group that the file names, or the composition, or where there are too few
            of them, blocks of frames within them.
        few: fewer compositions are too few; of groups that files name, fewer than `FEW_GROUPS`.
    """
    if by != "auto":
        key_of = keyer(by)
        yield from ((record, key_of(record)) for record in dataset.records())
        return
    keys, kind = _auto(dataset, few)
    size = math.ceil(len(keys) / _BLOCKS) if kind == BLOCKS else 0
    for index, (record, key) in enumerate(zip(dataset.records(), keys)):
        yield record, f"{key} {dataset.head.name} block {index // size}" if size else key


def key_of_auto(dataset: Dataset, *, few: int = FEW_GROUPS) -> str:
    """What `keyed` takes for "auto": "group", "composition" or `BLOCKS`."""
    return _auto(dataset, few)[1]


def _auto(dataset: Dataset, few: int) -> tuple[list[str], str]:
    """The key of every structure, blocks left aside; and what they are, as `key_of_auto`."""
    keys, grouped, some = [], False, set()
    for record in dataset.records():
        keys.append(record.group or by_composition(record))
        grouped = grouped or bool(record.group)
        if not record.is_free_atom:
            some.add(keys[-1])
    kind = "group" if grouped else "composition"
    return keys, BLOCKS if len(some) < (FEW_GROUPS if grouped else few) else kind
