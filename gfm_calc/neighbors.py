"""Neighbour lists: positions, cell, pbc and a cutoff in; directed edges and their cell shifts out.

No cap on the number of neighbours; any cell (smaller or larger than the cutoff, skewed, left-handed) and any mix of
periodic axes.  The work is done by vesin (https://github.com/Luthaf/vesin), which bins space; where the bins would be too
many (atoms thousands of ångströms apart), a k-d tree takes its place.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidStructureError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Edges = tuple[NDArray[np.int64], NDArray[np.int32]]
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]

_MAX_BINS = 1e5  # vesin's own bound; what it does beyond ends in a division by zero for elongated boxes
_SMALL = 40  # cutoffs; a molecule of this extent in every direction has few enough bins
_MAX_IMAGES = 1e3  # cells to look through around one; more are a sign of a badly chosen basis of the lattice
_CROWD = 2000  # atoms in a cube of 1 Å: more cannot be 0.1 Å apart
_MAX_REACH = 1e8  # Å, added up along the cell vectors; beyond, differences of float64 are worse than 1e-8 Å


def neighbor_list(positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float) -> Edges:
    """All ordered pairs closer than `cutoff`, periodic images included, an atom and its own images too.

    Args:
        positions: [N, 3] in Å, inside or outside the cell.
        cell: [3, 3] rows in Å; the rows of non-periodic axes are not used.
        pbc: [3] which axes repeat.
        cutoff: in Å.

    Returns:
        edge_index [2, E] (`[0]` source j, `[1]` target i, sorted by target) and edge_cell_shift [E, 3] (integers S), with
        r_ij = r_j - r_i + S @ cell and |r_ij| < cutoff.

    Raises:
        InvalidStructureError: an atom so many cells away that its distances have lost their digits; thousands of atoms
            at one place, whose pairs would fill the memory.
    """
    if len(positions) > _CROWD:
        _refuse_crowd(positions, cell, pbc)
    if not pbc.any() and (np.ptp(positions, axis=0) < _SMALL * cutoff).all():
        return _packed(*_binned_pairs(positions, np.zeros((3, 3)), cutoff, periodic=False))
    box, inside = _enclosing_box(positions, cell, pbc, cutoff)
    inverse = np.linalg.inv(box)
    _refuse_far(inside @ inverse, box)
    operation = None
    heights = 1.0 / np.sqrt(np.square(inverse).sum(axis=0))
    if np.prod(2 * np.ceil(cutoff / heights) + 1) > _MAX_IMAGES:
        box, operation = reduced_cell(box, pbc)
        heights = cell_heights(box)
    find = _binned_pairs if _fits_bins(np.maximum(np.trunc(heights / cutoff), 1.0)) else _tree_pairs
    target, source, shift = find(inside, box, cutoff)
    return _packed(target, source, shift if operation is None else shift @ operation)


def edge_vectors(
    positions: FloatArray, cell: FloatArray, edge_index: NDArray[np.int64], edge_cell_shift: NDArray[np.int32]
) -> FloatArray:
    """r_j - r_i + S @ cell for every edge, [E, 3] in Å."""
    vectors = positions[edge_index[0]] - positions[edge_index[1]]
    if edge_cell_shift.any():
        vectors += edge_cell_shift @ cell
    return vectors


def cell_heights(cell: FloatArray) -> FloatArray:
    """Distances [3] in Å between opposite faces of an invertible cell."""
    return 1.0 / np.sqrt(np.square(np.linalg.inv(cell)).sum(axis=0))


def reduced_cell(cell: FloatArray, pbc: BoolArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """The shortest basis of the lattice of the periodic axes (the other rows stay) and the integers H with H @ cell = it.

    Source of the algorithm: Nguyen, Stehlé, DOI 10.1145/1597036.1597050, as implemented in ASE.

    Raises:
        InvalidStructureError: vectors so skewed that rounding stops the reduction.
    """
    from ase.geometry.minkowski_reduction import minkowski_reduce

    try:
        reduced, operation = minkowski_reduce(cell, pbc)
    except RuntimeError as error:
        raise InvalidStructureError("cell is too skewed: give the shortest vectors of its lattice") from error
    return np.asarray(reduced), np.asarray(operation)


def _enclosing_box(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float
) -> tuple[FloatArray, FloatArray]:
    """A box that may repeat along all axes without new pairs, and the positions in it: non-periodic axes get a vector
    at right angles to the periodic ones, longer than the atoms' extent by more than the cutoff."""
    if pbc.all():
        return cell, positions
    # The last right-singular vectors span what the periodic rows do not.
    directions = np.linalg.svd(np.where(pbc[:, None], cell, 0.0))[2][int(pbc.sum()) :] if pbc.any() else np.eye(3)
    along = positions @ directions.T
    low = along.min(axis=0)
    box = cell.copy()
    box[~pbc] = directions * (1.001 * (along.max(axis=0) - low) + 2 * cutoff)[:, None]
    return box, positions - low @ directions


def _refuse_far(fractional: FloatArray, box: FloatArray) -> None:
    reach = np.abs(fractional) * np.sqrt(np.square(box).sum(axis=1))
    if reach.max() > _MAX_REACH:
        atom = int(reach.max(axis=1).argmax())
        raise InvalidStructureError("lies too many cells away from the origin: wrap it into the cell", atom=atom)


def _refuse_crowd(positions: FloatArray, cell: FloatArray, pbc: BoolArray) -> None:
    box, inside = _enclosing_box(positions, cell, pbc, 1.0)
    fractional = inside @ np.linalg.inv(box)
    cubes = np.floor((fractional - np.floor(fractional)) @ box).astype(np.int64) @ np.array([1, 1 << 21, 1 << 42])
    _, first, counts = np.unique(cubes, return_index=True, return_counts=True)
    if counts.max() > _CROWD:
        fullest = int(counts.argmax())
        reason = f"{counts[fullest]} atoms are within one ångström of it: were the positions set?"
        raise InvalidStructureError(reason, atom=int(first[fullest]))


def _fits_bins(bins: FloatArray) -> bool:
    """Whether vesin's bins [3] keep to its bound, or can be coarsened to it without one of them becoming zero."""
    if bins.prod() <= _MAX_BINS:
        return True
    first, second = bins[0] / bins[1], bins[1] / bins[2]
    z = np.trunc(np.cbrt(_MAX_BINS / (first * second * second)))
    y = np.trunc(second * z)
    return bool(min(z, y, np.trunc(first * y)) >= 1)


def _packed(target: np.ndarray, source: np.ndarray, shift: np.ndarray) -> Edges:
    edge_index = np.empty((2, len(target)), dtype=np.int64)
    edge_index[0], edge_index[1] = source, target
    return edge_index, shift.astype(np.int32, copy=False)


def _binned_pairs(positions: FloatArray, box: FloatArray, cutoff: float, *, periodic: bool = True) -> Pairs:
    """target [E], source [E], shift [E, 3] by vesin."""
    from vesin import NeighborList

    # n_threads=1: results do not depend on the machine, and one thread a process is how we run.
    finder = NeighborList(cutoff=float(cutoff), full_list=True, sorted=True, n_threads=1)
    target, source, shift = finder.compute(positions, box, periodic, quantities="ijS")
    return target, source, shift


def _tree_pairs(positions: FloatArray, box: FloatArray, cutoff: float) -> Pairs:
    """The same by a k-d tree of the atoms and of those images that are near them."""
    from scipy.spatial import cKDTree

    wraps = np.floor(positions @ np.linalg.inv(box))
    wrapped = positions - wraps @ box
    low, high = wrapped.min(axis=0) - cutoff, wrapped.max(axis=0) + cutoff
    reach = [range(-n, n + 1) for n in np.floor(cutoff / cell_heights(box)).astype(int) + 1]
    owners, shifts, points = [], [], []
    for shift in product(*reach):
        moved = wrapped + np.array(shift) @ box
        near = np.flatnonzero(((moved >= low) & (moved <= high)).all(axis=1))
        owners.append(near)
        points.append(moved[near])
        shifts.append(np.broadcast_to(np.array(shift), (len(near), 3)))
    owner, images, point = np.concatenate(owners), np.concatenate(shifts), np.concatenate(points)
    found = cKDTree(wrapped).sparse_distance_matrix(cKDTree(point), cutoff, output_type="ndarray")
    target, source, image = found["i"], owner[found["j"]], images[found["j"]]
    kept = (found["v"] < cutoff) & ((target != source) | image.any(axis=1))
    target, source, image = target[kept], source[kept], image[kept]
    shift = image + (wraps[target] - wraps[source]).astype(np.int64)
    order = np.lexsort((*shift.T[::-1], source, target))
    return target[order], source[order], shift[order]
