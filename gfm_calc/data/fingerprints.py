"""Fingerprints by which the same structure is found again, wherever it was shifted, turned, mirrored or renumbered.

A fingerprint is the composition and a few smooth numbers made of the distances between atoms, averaged over atoms, so
that a supercell has the fingerprint of its cell.  Close structures have close numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from ..neighbors import edge_vectors, neighbor_list
from .schema import Record

WIDTH = 6
_CUTOFF = 5.0  # Å
_FAR_CUTOFF = 12.0  # Å, where atoms have few neighbours within the first
_FEW_NEIGHBOURS = 4
_SHELLS = np.linspace(0.18, 0.9, 8)  # of the cutoff
_SHARPNESS = 75.0
_MAX_WINDOW = 256  # neighbours in the sorted order that one structure is compared with
# Moving atoms by d (Å, root mean square) moves the numbers by 1 d to 5 d.
SAME = 6e-5  # above what rounding positions to five decimals does
NEAR = 2e-2
_NUMBERS = np.arange(120.0)
# Any fixed, irrational mixing of elements and shells will do; these are no fit.
_ELEMENT = np.stack([np.sin(1.0 + _NUMBERS * 0.7548776662), np.cos(2.0 + _NUMBERS * 0.5698402910)])
_WIDE = slice(0, None, 3)  # shells of the vectors
_FEATURES = 4 * len(_SHELLS) + len(_SHELLS[_WIDE])
_MIX = np.sin(np.outer(np.arange(1, WIDTH + 1), np.arange(1, _FEATURES + 1)) ** 1.1 * 0.6180339887)


@dataclass(frozen=True)
class Description:
    """What the neighbourhoods of a structure say.

    Attributes: `key`: hash of the reduced composition and periodicity; `values`: [WIDTH] the fingerprint; `closest`: the
    smallest distance over the sum of the covalent radii, and `typical`: the median over atoms of their own smallest (NaN
    where no atom has a neighbour); `closest_atom`.
    """

    key: int
    values: np.ndarray
    closest: float
    typical: float
    closest_atom: int


def describe(record: Record) -> Description:
    """The description of a record.

    Raises:
        InvalidStructureError: atoms that sit on each other by the thousand.
    """
    numbers = record.atomic_numbers
    cutoff = _CUTOFF
    edge_index, shift = neighbor_list(record.positions, record.cell, record.pbc, cutoff)
    if len(edge_index[1]) < _FEW_NEIGHBOURS * len(numbers):
        cutoff = _FAR_CUTOFF
        edge_index, shift = neighbor_list(record.positions, record.cell, record.pbc, cutoff)
    vectors = edge_vectors(record.positions, record.cell, edge_index, shift)
    distance = np.linalg.norm(vectors, axis=1)
    fade = 0.5 * (1.0 + np.cos(np.pi * distance / cutoff))
    shells = np.exp(-_SHARPNESS * (distance[:, None] / cutoff - _SHELLS) ** 2) * fade[:, None]
    first, second = (shells * weights[numbers[edge_index[0]], None] for weights in _ELEMENT)
    # Where atoms sit by symmetry, distances change in second order only; the sum of the vectors changes in first order.
    pull = vectors[:, None, :] * (first[:, _WIDE] / np.maximum(distance, 1e-3)[:, None])[:, :, None]
    local = _sums(np.hstack([first, second, pull.reshape(len(pull), 3 * pull.shape[1])]), edge_index[1], len(numbers))
    density, pull = local[:, : 2 * len(_SHELLS)], local[:, 2 * len(_SHELLS) :].reshape(len(numbers), -1, 3)
    own = _ELEMENT[:, numbers]
    features = np.concatenate([own[0] @ density, own[1] @ np.square(density), own[0] @ np.linalg.norm(pull, axis=2)])
    values = _MIX @ features / len(numbers)
    key = composition_key(numbers, record.pbc)
    if not len(distance):
        return Description(key, values, math.nan, math.nan, 0)
    radii = covalent_radii[numbers]
    ratio = distance / (radii[edge_index[0]] + radii[edge_index[1]])
    nearest = np.minimum.reduceat(ratio, np.flatnonzero(np.diff(edge_index[1], prepend=-1)))
    lowest = int(ratio.argmin())
    return Description(key, values, float(ratio[lowest]), float(np.median(nearest)), int(edge_index[1][lowest]))


def _sums(values: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """[count, columns]: the rows of `values` summed by their target; targets are in order."""
    sums = np.zeros((count, values.shape[1]))
    if len(target):
        starts = np.flatnonzero(np.diff(target, prepend=-1))
        sums[target[starts]] = np.add.reduceat(values, starts, axis=0)
    return sums


def composition_key(atomic_numbers: np.ndarray, pbc: np.ndarray) -> int:
    """A 63-bit hash of the composition (reduced for crystals) and of which axes repeat."""
    counts = np.bincount(atomic_numbers)
    elements = np.flatnonzero(counts)
    shares = counts[elements]
    if pbc.all():
        shares = shares // np.gcd.reduce(shares)
    text = f"{elements.tolist()}{shares.tolist()}{pbc.tolist()}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def close_pairs(keys: np.ndarray, values: np.ndarray, tolerance: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of structures whose fingerprints agree, as (indices, indices).

    Every structure that is close to another is in a pair; of a crowd of close ones not all pairs are given, but enough to
    connect them.

    Args:
        keys: [N] hashes of compositions.
        values: [N, WIDTH] numbers.
        tolerance: on each number, `SAME` or `NEAR`.
    """
    order = np.lexsort((values[:, 0], keys))
    keys, values = keys[order], values[order]
    for step in range(1, min(_MAX_WINDOW, len(order))):
        same = keys[step:] == keys[:-step]
        near = same & (values[step:, 0] - values[:-step, 0] <= tolerance)
        if not near.any():
            return
        hits = np.flatnonzero(near)
        hits = hits[(np.abs(values[hits + step] - values[hits]) <= tolerance).all(axis=1)]
        if hits.size:
            yield order[hits], order[hits + step]


def clusters(count: int, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """[N] label of the cluster of each structure: the lowest index in it."""
    parent = np.arange(count)
    for first, second in pairs:
        for a, b in zip(first.tolist(), second.tolist()):
            a, b = _root(parent, a), _root(parent, b)
            if a != b:
                parent[max(a, b)] = min(a, b)
    for index in range(count):  # parents lie before their children
        parent[index] = parent[parent[index]]
    return parent


def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index
