"""Homonuclear pair curves: is there one minimum, and a wall before it?"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

_POINTS = 120
_DEPTH = 0.02  # eV; shallower dips are not counted


def run_pairs(model: GFMModel, head: str) -> dict[str, Any]:
    """E(r) of X2 for every element of the head, from 0.3 of the bonding distance (the sum of covalent radii) to the cutoff.

    Returns:
        elements: how many; extra_minima: {symbol: distances in Å of the minima beyond the deepest one}; soft: symbols whose
        energy at the shortest distance is below that of the separated atoms (no wall); `head`.
    """
    symbols = model.spec(head).elements
    extra, soft = {}, []
    predictor = Predictor(model, [head], forces=False, strict=False)
    for symbol in symbols:
        distances = np.linspace(0.6 * covalent_radii[atomic_numbers[symbol]], model.config.cutoff, _POINTS)
        frames = [Atoms([symbol] * 2, positions=[[0, 0, 0], [0, 0, r]]) for r in distances]
        energies = np.array([found[head].energy.item() for found in predictor.predict(frames)])
        energies -= 2 * model.spec(head).reference_energies[symbol]
        found = minima(distances, energies)
        if len(found) > 1:
            extra[symbol] = [round(float(r), 2) for r in found[1:]]
        if energies[0] < 0:
            soft.append(symbol)
    return {"head": head, "elements": len(symbols), "extra_minima": extra, "soft": soft}


def minima(distances: np.ndarray, energies: np.ndarray) -> list[float]:
    """Distances of the local minima that lie `_DEPTH` below the highest point on either side before a deeper one, the
    deepest first.

    Args:
        distances: [m] Å.  energies: [m] eV.
    """
    inner = np.flatnonzero((energies[1:-1] < energies[:-2]) & (energies[1:-1] <= energies[2:])) + 1
    kept = []
    for k in inner:
        lower = np.flatnonzero(energies < energies[k])
        left, right = lower[lower < k], lower[lower > k]
        barriers = [energies[left[-1] : k].max()] if left.size else []
        barriers += [energies[k : right[0] + 1].max()] if right.size else []
        if min(barriers, default=np.inf) - energies[k] > _DEPTH:
            kept.append(k)
    return [float(distances[k]) for k in sorted(kept, key=lambda k: energies[k])]
