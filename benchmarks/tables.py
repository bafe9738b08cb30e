"""What the result tables are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """`detail` tables are left out of summaries."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    detail: bool = False


def figure(value: float | None) -> str:
    """Three significant digits, without exponents where they can be avoided."""
    if value is None:
        return "-"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.3g}" if abs(rounded) < 1000 else f"{rounded:.0f}"
