"""What a dataset holds, in numbers that can be added up shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from .block import NO_CHARGE, NO_SPIN, Block


def summarise(block: Block) -> dict[str, Any]:
    """Counts of a block, as plain JSON.

    structures, atoms; largest (atoms of the largest structure); elements {symbol: atoms}; with_energy, with_forces,
    with_stress, with_property (structures that have the label); charges [lowest, highest] and spins [lowest, highest] of
    those that say, or None; periodic_axes [4] (structures with 0, 1, 2, 3 of them).
    """
    numbers, counts = np.unique(block.atomic_numbers, return_counts=True)
    axes = np.bincount(block.pbc.sum(axis=1), minlength=4)
    first = block.ptr[:-1]
    return {
        "structures": len(block), "atoms": len(block.atomic_numbers), "largest": int(block.num_atoms.max()),
        "elements": {chemical_symbols[z]: int(n) for z, n in zip(numbers, counts)},
        "with_energy": int(np.isfinite(block.energy).sum()),
        "with_forces": 0 if block.forces is None else int(np.isfinite(block.forces[first, 0]).sum()),
        "with_stress": 0 if block.stress is None else int(np.isfinite(block.stress[:, 0, 0]).sum()),
        "with_property": _with_property(block), "charges": _range(block.charge[block.charge != NO_CHARGE]),
        "spins": _range(block.spin[block.spin != NO_SPIN]), "periodic_axes": axes.tolist(),
    }  # fmt: skip


def merge(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of everything that `summaries` are of."""
    total: dict[str, Any] = {
        name: sum(s.get(name, 0) for s in summaries)  # the first datasets knew no properties
        for name in ("structures", "atoms", "with_energy", "with_forces", "with_stress", "with_property")
    }
    total["largest"] = max(s["largest"] for s in summaries)
    total["elements"] = {
        symbol: sum(s["elements"].get(symbol, 0) for s in summaries)
        for symbol in chemical_symbols
        if any(symbol in s["elements"] for s in summaries)
    }
    for name in ("charges", "spins"):
        given = [value for s in summaries if s[name] for value in s[name]]
        total[name] = [min(given), max(given)] if given else None
    total["periodic_axes"] = np.sum([s["periodic_axes"] for s in summaries], axis=0).tolist()
    return total


def _with_property(block: Block) -> int:
    if block.value is not None:
        return int(np.isfinite(block.value[:, 0]).sum())
    if block.atom_values is None:
        return 0
    return int(np.logical_or.reduceat(np.isfinite(block.atom_values[:, 0]), block.ptr[:-1]).sum())


def _range(values: np.ndarray) -> list[int] | None:
    return [int(values.min()), int(values.max())] if values.size else None
