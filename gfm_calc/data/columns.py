"""Columns in the fewest bytes that give every value back.

Most published labels were printed with a few decimals: such a column is kept as integers and their power of ten, half
or a quarter of float64, and decodes to the very doubles that a reader of the text had.  The only thing not kept is the
sign of a zero.  A column whose rows are all the same is kept as one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DECIMALS = 9
NAN = np.iinfo(np.int32).min  # stands for NaN among decimals
_LARGEST = np.iinfo(np.int32).max
_INTEGERS = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<i8")
DTYPES = (*_INTEGERS, "<f4", "<f8")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a column of `rows` rows is kept: as an array of `dtype` and `shape` (one row where `constant`); as integers
    over ten to the `decimals` where that is given; with a number that stands for NaN where `holes`."""

    dtype: str
    shape: tuple[int, ...]
    rows: int
    constant: bool = False
    decimals: int | None = None
    holes: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole column."""
        return self.shape[0] * self.row_bytes

    def is_sound(self) -> bool:
        """Whether the numbers fit together; for encodings that were read from a file."""
        whole = all(type(n) is int and n >= 0 for n in (*self.shape, self.rows)) and 1 <= len(self.shape) <= 3
        return (
            self.dtype in DTYPES and whole and type(self.constant) is bool and type(self.holes) is bool
            and self.shape[0] == (1 if self.constant else self.rows)
            and (self.decimals is None or (self.dtype == "<i4" and self.decimals in range(MAX_DECIMALS + 1)))
        )  # fmt: skip

    def to_mapping(self) -> Mapping[str, Any]:
        """Plain JSON values, without the defaults."""
        found: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "rows": self.rows}
        extra = (("constant", self.constant, False), ("decimals", self.decimals, None), ("holes", self.holes, False))
        return found | {name: value for name, value, default in extra if value != default}


def encode(column: np.ndarray, *, plain: bool = False) -> tuple[np.ndarray, Encoding]:
    """(array to write, how to read it) of a column [rows, ...] of floats, integers or booleans.

    Args:
        plain: keep floats as float64.
    """
    rows = len(column)
    constant = rows > 1 and bool((column == column[0]).all())  # NaN is never equal: such columns stay as they are
    kept = np.ascontiguousarray(column[:1] if constant else column)
    decimals, holes = None, False
    if kept.dtype.kind == "f":
        kept, decimals, holes = (kept.astype(np.float64), None, False) if plain else _encode_floats(kept)
    else:
        kept = kept.astype(_smallest_integer(kept))
    dtype = np.dtype(kept.dtype.newbyteorder("<")).str
    return kept, Encoding(dtype=dtype, shape=kept.shape, rows=rows, constant=constant, decimals=decimals, holes=holes)


def decode(raw: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The values of rows of a column: floats as float64, integers as they are kept; always a new array."""
    if encoding.decimals is None:
        return raw.astype(np.float64 if raw.dtype.kind == "f" else raw.dtype)
    values = raw / 10.0**encoding.decimals
    if encoding.holes:
        values[raw == NAN] = np.nan
    return values


def _encode_floats(values: np.ndarray) -> tuple[np.ndarray, int | None, bool]:
    """(array, decimals, holes): decimals in int32 where they are exact, else float32 where that is, else float64."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return values, None, False
    gaps = np.isnan(values)
    holes = bool(gaps.any())
    finite = values[~gaps] if holes else values.reshape(-1)
    for decimals in range(MAX_DECIMALS + 1):
        if _are_decimals(finite[:4096], decimals) and _are_decimals(finite, decimals):
            kept = np.full(values.shape, NAN, np.int32)
            kept[~gaps] = np.rint(finite * 10.0**decimals).astype(np.int32)
            return kept, decimals, holes
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    exact = np.array_equal(single[~gaps].astype(np.float64), finite) if holes else bool((single == values).all())
    return (single if exact else values), None, False


def _are_decimals(values: np.ndarray, decimals: int) -> bool:
    """Whether every value is the double nearest to some integer / 10^decimals, within int32."""
    scale = 10.0**decimals
    with np.errstate(over="ignore"):
        scaled = np.rint(values * scale)
    return bool((np.abs(scaled) <= _LARGEST).all() and (scaled / scale == values).all())


def _smallest_integer(values: np.ndarray) -> str:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for name in _INTEGERS:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return name
    raise OverflowError("integers beyond 64 bits")
