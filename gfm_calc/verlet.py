"""Verlet lists: neighbours kept between the steps of an MD run or a relaxation."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from .graph import MIN_DISTANCE, refuse_overlap
from .neighbors import edge_vectors, neighbor_list


class VerletList:
    """Edges within `cutoff` for a structure that moves a little at a time.

    Pairs within cutoff + skin are found once and kept until an atom has moved by half the skin, or cell, pbc or atoms
    have changed; each call returns those now within the cutoff, so the result is the same as without a skin.

    Args:
        cutoff: in Å.
        skin: in Å; 0 finds the neighbours anew at every call.
    """

    def __init__(self, cutoff: float, skin: float):
        self.cutoff, self.skin = cutoff, skin
        self.builds = 0
        self._kept: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    def edges(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """edge_index [2, E] and edge_cell_shift [E, 3] of validated `atoms`.

        Raises:
            InvalidStructureError: two atoms at one place.
        """
        positions, cell, pbc = atoms.positions, atoms.cell.array, atoms.pbc
        if not self._reusable(positions, cell, pbc):
            edge_index, shift = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
            self._kept = (positions.copy(), cell.copy(), pbc.copy(), edge_index, shift)
            self.builds += 1
        assert self._kept is not None
        edge_index, shift = self._kept[3:]
        vectors = edge_vectors(positions, cell, edge_index, shift)
        squared = np.einsum("ij,ij->i", vectors, vectors)
        if squared.size and squared.min() < MIN_DISTANCE**2:
            refuse_overlap(positions, cell, (edge_index, shift))
        near = np.flatnonzero(squared < self.cutoff**2)
        return (edge_index, shift) if len(near) == len(squared) else (edge_index[:, near], shift[near])

    def _reusable(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if self._kept is None or self.skin <= 0:
            return False
        old_positions, old_cell, old_pbc = self._kept[:3]
        if old_positions.shape != positions.shape or (old_cell != cell).any() or (old_pbc != pbc).any():
            return False
        moved = positions - old_positions
        return bool(np.einsum("ij,ij->i", moved, moved).max() < (0.5 * self.skin) ** 2)
