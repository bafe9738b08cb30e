"""Neighbours of structures that are one structure, blown up or shrunk: its edges, sorted once, cut at the right length.

Substitution makes thousands of candidates from one prototype; looking for the neighbours of each again takes longer than
predicting it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from gfm_calc.neighbors import Edges, edge_vectors, neighbor_list

_STEP = 1.25  # by which a list grows that was too short


class Template:
    """The edges of a prototype, as far as anybody has asked for."""

    def __init__(self, prototype: Atoms):
        self._positions, self._cell = np.array(prototype.positions), np.array(prototype.cell.array)
        self._pbc = np.array(prototype.pbc)
        self._reach = 0.0

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("_edges", "_lengths")}
        return {**state, "_reach": 0.0}

    def edges(self, scale: float, cutoff: float) -> tuple[Edges, np.ndarray]:
        """Edges within `cutoff` (Å) of the prototype with all lengths times `scale`, in an order that depends on nothing
        else (target, source, shift); and their lengths [E] in Å."""
        if cutoff / scale > self._reach:
            self._find(max(cutoff / scale, _STEP * self._reach))
        near = np.flatnonzero(self._lengths * scale < cutoff)
        edge_index, shift = self._edges
        return (edge_index[:, near], shift[near]), self._lengths[near] * scale

    def _find(self, reach: float) -> None:
        edge_index, shift = neighbor_list(self._positions, self._cell, self._pbc, reach)
        order = np.lexsort((*shift.T[::-1], edge_index[0], edge_index[1]))
        self._edges = np.ascontiguousarray(edge_index[:, order]), np.ascontiguousarray(shift[order])
        vectors = edge_vectors(self._positions, self._cell, *self._edges)
        self._lengths, self._reach = np.sqrt(np.einsum("ei,ei->e", vectors, vectors)), reach


class Scaled(Atoms):
    """Atoms whose positions and cell are those of a template times `scale`.  Copies are ordinary: they forget it."""

    template: Template | None = None
    scale = 1.0
