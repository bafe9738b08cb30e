"""How many digits a result keeps."""

from __future__ import annotations

from typing import Any


def rounded(value: Any, digits: int = 4) -> float:
    """`value` to so many significant digits."""
    return float(f"{float(value):.{digits}g}")
