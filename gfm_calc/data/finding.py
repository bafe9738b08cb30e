"""One judgement of an inspection: `Finding`, and how it names its frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .inspection import FileInspection

_SHOWN = 20  # frame numbers that a finding lists


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One judgement.

    Attributes: `level`: "error" (do not train on it), "warning" (look at it) or "note"; `code`: a word for programs;
    `text`: one line; `frames`: the first of those that it is about; `num_frames`: how many there are.
    """

    level: str
    code: str
    text: str
    frames: tuple[int, ...] = ()
    num_frames: int = 0


def of_frames(file: FileInspection, level: str, code: str, mask: np.ndarray, text: str) -> Finding:
    """A finding about the frames of a mask [frames]; "{}" in the text becomes their number."""
    return listed(file, level, code, np.flatnonzero(mask), text)


def listed(file: FileInspection, level: str, code: str, indices: np.ndarray, text: str) -> Finding:
    """`of_frames` for indices, whose order is kept."""
    frames = tuple(int(frame) for frame in file.statistics["frame"][indices[:_SHOWN]])
    count = len(indices)
    share = count / len(file.statistics)
    shown = counted(count) + (f" ({share:.0%})" if share >= 0.01 and not math.isnan(share) else "")
    return Finding(level=level, code=code, text=text.format(shown), frames=frames, num_frames=count)


def counted(count: int) -> str:
    """'12 frames'."""
    return f"{count} frame{'s' * (count != 1)}"
