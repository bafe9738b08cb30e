"""Neighbour lists against brute force: any cell, any mix of periodic axes, atoms anywhere."""

from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from hypothesis import given, settings
from hypothesis import strategies as st

from gfm_calc import neighbors
from gfm_calc.errors import InvalidStructureError
from gfm_calc.graph import AtomicGraph
from gfm_calc.neighbors import cell_heights, edge_vectors, neighbor_list, reduced_cell

CUTOFF = 3.0


def brute_force(positions, cell, pbc, cutoff) -> set[tuple]:
    """{(source, target, S)} by looking at every pair in every cell that could matter."""
    box = cell.copy()
    if not pbc.all():
        box[~pbc] = np.linalg.svd(np.where(pbc[:, None], cell, 0))[2][pbc.sum() :]
    fractional = positions @ np.linalg.inv(box)
    spread = np.ceil(np.ptp(fractional, axis=0)) + np.ceil(cutoff / cell_heights(box))
    ranges = [range(-int(n), int(n) + 1) if p else range(1) for n, p in zip(spread, pbc)]
    found = set()
    for shift in product(*ranges):
        vectors = positions[None, :] - positions[:, None] + np.array(shift) @ cell
        for target, source in np.argwhere(np.linalg.norm(vectors, axis=2) < cutoff):
            if target != source or any(shift):
                found.add((int(source), int(target), shift))
    return found


def as_set(edges) -> set[tuple]:
    edge_index, shift = edges
    listed = [(int(j), int(i), tuple(map(int, s))) for j, i, s in zip(*edge_index, shift)]
    assert len(set(listed)) == len(listed), "an edge is listed twice"
    return set(listed)


@st.composite
def systems(draw):
    """Positions inside and far outside of cells from smaller to larger than the cutoff, skewed, of either hand."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    cell = random.normal(size=(3, 3)) * draw(st.sampled_from([1.5, 4.0, 12.0])) * random.uniform(0.5, 1.5, size=(3, 1))
    pbc = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    count = draw(st.integers(1, 6))
    positions = random.uniform(-1, 2, size=(count, 3)) @ cell
    positions += random.integers(-2, 3, size=(count, 3)) @ (cell * pbc[:, None])
    if draw(st.booleans()):
        cell[~pbc] = 0
    return positions, cell, pbc


def reasonable(cell, pbc) -> bool:
    box = cell.copy()
    if not pbc.all():
        box[~pbc] = np.linalg.svd(np.where(pbc[:, None], cell, 0))[2][pbc.sum() :]
    return bool(cell_heights(box)[pbc].min(initial=9) > 0.4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(systems())
def test_same_edges_as_brute_force(system):
    positions, cell, pbc = system
    if not reasonable(cell, pbc):
        return
    edges = neighbor_list(positions, cell, pbc, CUTOFF)
    assert as_set(edges) == brute_force(positions, cell, pbc, CUTOFF)
    vectors = edge_vectors(positions, cell, *edges)
    assert (np.linalg.norm(vectors, axis=1) < CUTOFF + 1e-9).all()
    assert (np.diff(edges[0][1]) >= 0).all(), "sorted by target"
    assert edges[0].dtype == np.int64 and edges[1].dtype == np.int32


@settings(max_examples=200, deadline=None, derandomize=True)
@given(systems())
def test_bins_tree_and_reduced_basis_agree(system):
    positions, cell, pbc = system
    if not reasonable(cell, pbc):
        return
    box, inside = neighbors._enclosing_box(positions, cell, pbc, CUTOFF)
    binned = neighbors._packed(*neighbors._binned_pairs(inside, box, CUTOFF))
    assert as_set(neighbors._packed(*neighbors._tree_pairs(inside, box, CUTOFF))) == as_set(binned)
    small, operation = reduced_cell(box, pbc)
    np.testing.assert_allclose(operation @ box, small, atol=1e-9)
    target, source, shift = neighbors._binned_pairs(inside, small, CUTOFF)
    assert as_set(neighbors._packed(target, source, shift @ operation)) == as_set(binned)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_any_basis_of_a_lattice_gives_the_same_neighbours(seed, pbc):
    """Also bases so skewed that a cell has a thousandth of an ångström between its faces."""
    random = np.random.default_rng(seed)
    pbc = np.array(pbc)
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    operation = np.eye(3, dtype=int)
    for _ in range(6):
        axes = np.flatnonzero(pbc)
        if len(axes) < 2:
            break
        a, b = random.choice(axes, size=2, replace=False)
        operation[a] += random.integers(-9, 10) * operation[b]
    cell = operation @ crystal.cell.array
    if np.abs(cell).max() > 1e5:
        return
    vectors = [
        edge_vectors(crystal.positions, c, *neighbor_list(crystal.positions, c, pbc, 5.0))
        for c in (crystal.cell.array, cell)
    ]
    lengths = [np.sort(np.linalg.norm(v, axis=1)) for v in vectors]
    np.testing.assert_allclose(lengths[1], lengths[0], atol=1e-7)


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)))
@pytest.mark.parametrize("distance", [50.0, 1e3, 1e5, 1e7])
def test_atoms_far_apart_cost_nothing(pbc, distance):
    """Bins over the empty space between them would fill the memory, or divide by zero."""
    positions = np.array([[0.0, 0, 0], [0, 0, 1.0], [distance, 0, 0], [distance, distance, -distance]])
    cell, pbc = np.diag([30.0, 40.0, 50.0]), np.array(pbc)
    found = as_set(neighbor_list(positions, cell, pbc, CUTOFF))
    assert {(1, 0, (0, 0, 0)), (0, 1, (0, 0, 0))} <= found
    if not pbc.any():
        assert len(found) == 2


@pytest.mark.parametrize("lengths", [(3, 1e4, 1e4), (3, 3, 1e5), (1e5, 1e5, 1e5), (0.7, 1e5, 1e5), (1e5, 1e4, 3)])
def test_elongated_cells(lengths):
    positions = np.array([[0.1, 0.2, 0.3], [0.5, 1.0, 0.9]]) * np.minimum(lengths, 5)
    cell, pbc = np.diag(np.array(lengths, dtype=float)), np.array([True, True, True])
    short = np.diag(np.minimum(np.array(lengths, dtype=float), 40.0))
    assert as_set(neighbor_list(positions, cell, pbc, CUTOFF)) == as_set(neighbor_list(positions, short, pbc, CUTOFF))


def test_the_vectors_of_open_axes_do_not_matter():
    slab = fcc111("Pt", (2, 2, 3), vacuum=8.0)
    wanted = as_set(neighbor_list(slab.positions, slab.cell.array, slab.pbc, 5.0))
    for third in ([0, 0, 0], [0, 0, 1e-300], [0, 0, 1e-3], [0, 0, 1e7], slab.cell[0], [5, 1, -30]):
        cell = slab.cell.array.copy()
        cell[2] = third
        assert as_set(neighbor_list(slab.positions, cell, slab.pbc, 5.0)) == wanted


def test_known_coordination():
    copper = bulk("Cu", cubic=True)
    edges = neighbor_list(copper.positions, copper.cell.array, copper.pbc, 2.7)
    assert np.bincount(edges[0][1]).tolist() == [12] * 4
    # A cell smaller than the cutoff: an atom and its own images.
    primitive = bulk("Cu")
    edges = neighbor_list(primitive.positions, primitive.cell.array, primitive.pbc, 5.2)
    assert edges[0].shape == (2, 12 + 6 + 24 + 12)
    assert (edges[0] == 0).all() and edges[1].any(axis=1).all()


def test_no_cap_on_the_number_of_neighbours():
    edges = neighbor_list(np.zeros((1, 3)), np.eye(3) * 0.7, np.array([True] * 3), 6.0)
    assert abs(edges[0].shape[1] / (4 / 3 * np.pi * (6.0 / 0.7) ** 3) - 1) < 0.05


def test_an_atom_too_many_cells_away():
    cell = np.array([[1.0, 0, 0], [4e4, 1, 0], [0, 0, 5]])
    with pytest.raises(InvalidStructureError, match="too many cells away"):
        neighbor_list(np.array([[0.0, 9e6, 0]]), cell, np.array([True] * 3), CUTOFF)


@pytest.mark.parametrize("pbc", [False, True, (True, False, True)])
def test_forgotten_positions_do_not_fill_the_memory(pbc):
    atoms = Atoms("H30000", cell=[9, 9, 9], pbc=pbc)
    with pytest.raises(InvalidStructureError, match="were the positions set"):
        AtomicGraph.build(atoms, 5.0)
