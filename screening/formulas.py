"""Reduced formulas, made and read: what rows are counted, grouped and compared by."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from math import gcd

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import non_metals

_ALPHABET = sorted(chemical_symbols, key=lambda symbol: (symbol in non_metals, symbol))
_ORDER = [_ALPHABET.index(symbol) for symbol in chemical_symbols]  # of elements in formulas
_PART = re.compile(r"([A-Z][a-z]?)(\d*)")


def reduced_formula(numbers: np.ndarray) -> str:
    """Of atomic numbers [n]; such as SrTiO3: metals first, each part by alphabet, as ASE's format "metal"."""
    counts = Counter(numbers.tolist())  # of a few atoms, faster than numpy's sorting
    divisor = gcd(*counts.values())
    parts = ((chemical_symbols[z], counts[z] // divisor) for z in sorted(counts, key=_ORDER.__getitem__))
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in parts)


@lru_cache(1 << 16)
def composition_of(formula: str) -> dict[int, int]:
    """{atomic number: atoms} of what `reduced_formula` made."""
    return {atomic_numbers[symbol]: int(count or 1) for symbol, count in _PART.findall(formula)}
