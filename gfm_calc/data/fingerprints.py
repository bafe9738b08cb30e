"""Fingerprints by which the same structure is found again, wherever it was shifted, turned, mirrored or renumbered.

A fingerprint is the composition and a few smooth numbers made of the distances between atoms, averaged over atoms, so
that a supercell has the fingerprint of its cell.  Close structures have close numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from ..errors import InvalidStructureError
from ..neighbors import edge_vectors, neighbor_list
from .schema import Record

WIDTH = 6
_CUTOFF = 5.0  # Å
_FAR_CUTOFF = 12.0  # Å, where atoms have few neighbours within the first
_FEW_NEIGHBOURS = 4
_SHELLS = np.linspace(0.18, 0.9, 8)  # of the cutoff
_SHARPNESS = 75.0
_SMALL = 64  # atoms of a molecule whose pairs are all looked at
_MOST_PAIRS = 40_000  # that are described together: they fit in a processor's cache
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
        InvalidStructureError: atoms that sit on each other by the thousand; it names file and frame.
    """
    return describe_all([record])[0]


def describe_all(records: Sequence[Record]) -> list[Description]:
    """The descriptions of records, in their order; many small ones cost far less together than one by one.

    Raises:
        InvalidStructureError: atoms that sit on each other by the thousand; it names file and frame.
    """
    found: dict[int, Description] = {}
    batch: list[int] = []
    pairs: list[_Pairs] = []
    molecules = [k for k, record in enumerate(records) if _is_small(record)]
    for part in _parts([len(records[k]) ** 2 for k in molecules]):
        chosen = [molecules[k] for k in part]
        own = [records[k] for k in chosen]
        found |= zip(chosen, _described(own, _molecular_pairs(own)))
    for k, record in enumerate(records):
        if k in found:
            continue
        try:
            pairs.append(_listed_pairs(record, sum(len(records[j]) for j in batch)))
        except InvalidStructureError as error:
            raise error.at(source=record.source or None, frame=record.frame) from error
        batch.append(k)
        if sum(len(p.target) for p in pairs) > _MOST_PAIRS:
            found |= zip(batch, _described([records[j] for j in batch], _joined(pairs)))
            batch, pairs = [], []
    if batch:
        found |= zip(batch, _described([records[j] for j in batch], _joined(pairs)))
    return [found[k] for k in range(len(records))]


class _Pairs(NamedTuple):
    """Neighbours in some structures, whose atoms are numbered through: target and source [E], ascending in the target;
    vectors [E, 3] in Å; the cutoff of each pair [E]."""

    target: np.ndarray
    source: np.ndarray
    vectors: np.ndarray
    cutoff: np.ndarray


def _is_small(record: Record) -> bool:
    return len(record) <= _SMALL and not record.pbc.any()


def _parts(sizes: Sequence[int]) -> Iterator[range]:
    """Ranges of items whose sizes add up to little more than `_MOST_PAIRS`."""
    first = total = 0
    for k, size in enumerate(sizes):
        total += size
        if total > _MOST_PAIRS or k == len(sizes) - 1:
            yield range(first, k + 1)
            first, total = k + 1, 0


def _molecular_pairs(records: Sequence[Record]) -> _Pairs:
    """Of molecules, from all pairs of their atoms."""
    counts = np.array([len(record) for record in records])
    firsts, owner = np.cumsum(counts) - counts, np.repeat(np.arange(len(counts)), counts)
    width = counts[owner]
    target = np.repeat(np.arange(len(owner)), width)
    source = np.arange(len(target)) - np.repeat(np.cumsum(width) - width - firsts[owner], width)
    target, source = target[target != source], source[target != source]
    positions = np.concatenate([record.positions for record in records])
    vectors = positions[source] - positions[target]
    distance = _lengths(vectors)
    structure = owner[target]
    few = np.bincount(structure[distance < _CUTOFF], minlength=len(counts)) < _FEW_NEIGHBOURS * counts
    cutoff = np.where(few, _FAR_CUTOFF, _CUTOFF)[structure]
    near = distance < cutoff
    return _Pairs(target[near], source[near], vectors[near], cutoff[near])


def _listed_pairs(record: Record, first: int) -> _Pairs:
    """Of any structure, whose atoms are numbered from `first` on."""
    cell = record.positions, record.cell, record.pbc
    for cutoff in (_CUTOFF, _FAR_CUTOFF):
        edge_index, shift = neighbor_list(*cell, cutoff)
        if edge_index.shape[1] >= _FEW_NEIGHBOURS * len(record):
            break
    vectors = edge_vectors(record.positions, record.cell, edge_index, shift)
    source, target = edge_index + first
    return _Pairs(target, source, vectors, np.full(len(target), cutoff))


def _joined(pairs: Sequence[_Pairs]) -> _Pairs:
    return _Pairs(*map(np.concatenate, zip(*pairs)))


def _described(records: Sequence[Record], pairs: _Pairs) -> list[Description]:
    numbers = np.concatenate([record.atomic_numbers for record in records])
    counts = np.array([len(record) for record in records])
    target, source, vectors, cutoff = pairs
    distance = _lengths(vectors)
    fade = 0.5 * (1.0 + np.cos(np.pi * distance / cutoff))
    shells = np.exp(-_SHARPNESS * ((distance / cutoff)[:, None] - _SHELLS) ** 2) * fade[:, None]
    first, second = (shells * weights[numbers[source], None] for weights in _ELEMENT)
    # Where atoms sit by symmetry, distances change in second order only; the sum of the vectors changes in first order.
    pull = vectors[:, None, :] * (first[:, _WIDE] / np.maximum(distance, 1e-3)[:, None])[:, :, None]
    local = _sums(np.hstack([first, second, pull.reshape(len(pull), 3 * pull.shape[1])]), target, len(numbers))
    density, pull = local[:, : 2 * len(_SHELLS)], local[:, 2 * len(_SHELLS) :].reshape(len(numbers), -1, 3)
    own = _ELEMENT[:, numbers, None]
    atomic = np.hstack([own[0] * density, own[1] * np.square(density), own[0] * np.sqrt(np.square(pull).sum(axis=2))])
    features = np.add.reduceat(atomic, np.cumsum(counts) - counts, axis=0)
    values = (features[:, None, :] * _MIX).sum(axis=2) / counts[:, None]  # no matrix product: the same in any company
    keys = [composition_key(record.atomic_numbers, record.pbc) for record in records]
    return [Description(*found) for found in zip(keys, values, *_closest(numbers, counts, pairs, distance))]


def _closest(
    numbers: np.ndarray, counts: np.ndarray, pairs: _Pairs, distance: np.ndarray
) -> tuple[list[float], list[float], list[int]]:
    """closest, typical and closest_atom of each structure, see `Description`."""
    closest, typical, atom = np.full(len(counts), np.nan), np.full(len(counts), np.nan), np.zeros(len(counts), np.int64)
    if not len(distance):
        return closest.tolist(), typical.tolist(), atom.tolist()
    ratio = distance / (covalent_radii[numbers][pairs.source] + covalent_radii[numbers][pairs.target])
    firsts, owner = np.cumsum(counts) - counts, np.repeat(np.arange(len(counts)), counts)
    starts = np.flatnonzero(np.diff(pairs.target, prepend=-1))
    nearest, having = np.minimum.reduceat(ratio, starts), owner[pairs.target[starts]]  # of each atom with neighbours
    ordered = nearest[np.lexsort((nearest, having))]
    begin = np.flatnonzero(np.diff(having, prepend=-1))
    several = np.diff(begin, append=len(having))
    some = having[begin]
    closest[some] = ordered[begin]
    typical[some] = 0.5 * (ordered[begin + (several - 1) // 2] + ordered[begin + several // 2])
    lowest = np.flatnonzero(ratio == closest[owner[pairs.target]])
    structure, place = np.unique(owner[pairs.target[lowest]], return_index=True)
    atom[structure] = pairs.target[lowest[place]] - firsts[structure]
    return closest.tolist(), typical.tolist(), atom.tolist()


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ei,ei->e", vectors, vectors))


def _sums(values: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """[count, columns]: the rows of `values` summed by their target; targets are in order."""
    sums = np.zeros((count, values.shape[1]))
    if len(target):
        starts = np.flatnonzero(np.diff(target, prepend=-1))
        sums[target[starts]] = np.add.reduceat(values, starts, axis=0)
    return sums


def composition_key(atomic_numbers: np.ndarray, pbc: np.ndarray) -> int:
    """A 63-bit hash of the composition (reduced for crystals) and of which axes repeat."""
    return _key(np.bincount(atomic_numbers).tobytes(), tuple(pbc.tolist()))


@lru_cache(maxsize=4096)
def _key(counted: bytes, pbc: tuple[bool, ...]) -> int:
    counts = np.frombuffer(counted, np.int64)
    elements = np.flatnonzero(counts)
    shares = counts[elements]
    if all(pbc):
        shares = shares // np.gcd.reduce(shares)
    text = f"{elements.tolist()}{shares.tolist()}{list(pbc)}"
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
