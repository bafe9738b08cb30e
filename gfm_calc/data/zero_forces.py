"""Forces that are exactly zero: by symmetry, taken away by a constraint, or never written?

At a site where symmetry forbids a force, every sum of vectors to the neighbours that takes equal neighbours alike vanishes, too.
One such sum is the pull of the site; where it does not vanish, nothing makes a force exactly zero.
"""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii

from ..neighbors import edge_vectors, neighbor_list
from .schema import Record

_REACH = 1.7  # of the sum of the covalent radii, of the neighbours that count
_FALL = 6.0  # of their weights with the distance over that sum
_PULLED = 0.05  # an atom of a close-packed crystal has that at some 0.005 Å from its site
_LEAST, _SHARE = 2e-3, 0.05  # eV/Å: what a sum of forces that balance may come to, and in parts of their size


def pulled(record: Record) -> np.ndarray:
    """[n] whether the neighbours of an atom leave it a force: it is no site where symmetry forbids one.

    Raises:
        InvalidStructureError: see `neighbors.neighbor_list`.
    """
    numbers = record.atomic_numbers
    radii = covalent_radii[numbers]
    edges, shift = neighbor_list(record.positions, record.cell, record.pbc, 2 * _REACH * float(radii.max()))
    vectors = edge_vectors(record.positions, record.cell, edges, shift)
    source, target = edges
    distance = np.linalg.norm(vectors, axis=1)
    near = distance / (radii[source] + radii[target])
    weight = np.exp(-_FALL * (near - 1.0)) - np.exp(-_FALL * (_REACH - 1.0))
    weight = np.where((near < _REACH) & (distance > 0), np.minimum(weight, 10.0), 0.0)
    weight *= 1.0 + 0.3 * np.sin(numbers[source])  # elements differ
    sums = np.zeros((len(numbers), 3))
    np.add.at(sums, target, vectors * (weight / np.maximum(distance, 1e-9))[:, None])
    return np.linalg.norm(sums, axis=1) > _PULLED


def balance(forces: np.ndarray) -> bool:
    """Whether forces [n, 3] in eV/Å add up to no more than rounding makes of them."""
    size = float(np.sqrt(np.mean(np.square(forces))))
    return float(np.linalg.norm(forces.sum(axis=0))) <= max(_LEAST, _SHARE * size * np.sqrt(len(forces)))


def count_zeros(record: Record, fixed: np.ndarray | None) -> dict[str, float]:
    """What the forces of a record that are exactly zero say.

    Args:
        fixed: indices of atoms that a constraint holds, or None.

    Returns:
        zero_forces: atoms without a force where others have one; taken_forces: 1 where those lie where a force is due, at one
        end along an axis or under the constraint, and what is left does not balance; no_force: 1 where no atom has a force
        and some should.
    """
    assert record.forces is not None
    zero = np.asarray(~record.forces.any(axis=1))
    if not zero.any():
        return {"zero_forces": 0.0, "taken_forces": 0.0, "no_force": 0.0}
    if zero.all():
        return {"zero_forces": 0.0, "taken_forces": 0.0, "no_force": float(pulled(record).any())}
    taken = not balance(record.forces) and (
        _lowest_layers(record, zero) or _is(fixed, zero) or bool(pulled(record)[zero].any())
    )
    return {"zero_forces": float(zero.sum()), "taken_forces": float(taken), "no_force": 0.0}


def _is(fixed: np.ndarray | None, zero: np.ndarray) -> bool:
    return fixed is not None and len(fixed) > 0 and bool(zero[fixed].all())


def _lowest_layers(record: Record, zero: np.ndarray) -> bool:
    """Whether the atoms without force are those at one end along some axis, as the frozen layers of a slab are."""
    for axis in range(3):
        height = record.positions[:, axis]
        if height[zero].max() < height[~zero].min() - 0.3 or height[zero].min() > height[~zero].max() + 0.3:
            return True
    return False
