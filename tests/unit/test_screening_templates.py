"""Candidates of one prototype share its edges: the same as a search of their own finds, in an order of their own."""

import pickle

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from support import structures

from gfm_calc.errors import InvalidStructureError
from gfm_calc.graph import MIN_CELL_LENGTH, AtomicGraph, GraphArrays, GraphBatch, validate_atoms
from gfm_calc.neighbors import edge_vectors, neighbor_list
from gfm_calc.screening.prepare import prepare
from gfm_calc.screening.prototypes import PROTOTYPES, prototype
from gfm_calc.screening.substitution import Substitutions
from gfm_calc.screening.templates import Template


def as_set(edges):
    edge_index, shift = edges
    return set(map(tuple, np.vstack([edge_index, shift.T]).T.tolist()))


@pytest.mark.parametrize("name", PROTOTYPES)
def test_the_edges_of_a_scaled_prototype(name):
    atoms = prototype(name)
    template = Template(atoms)
    for scale in (1.0, 0.83, 1.31, 0.6, 0.9, 2.0):
        edges, lengths = template.edges(scale, 5.0)
        own = neighbor_list(atoms.positions * scale, atoms.cell.array * scale, atoms.pbc, 5.0)
        assert as_set(edges) == as_set(own)
        vectors = edge_vectors(atoms.positions * scale, atoms.cell.array * scale, *edges)
        assert np.abs(np.linalg.norm(vectors, axis=1) - lengths).max(initial=0.0) < 1e-12
        fresh = pickle.loads(pickle.dumps(template)).edges(scale, 5.0)[0]  # whatever was asked before
        assert np.array_equal(edges[0], fresh[0]) and np.array_equal(edges[1], fresh[1])


def test_candidates_of_a_stream_have_the_edges_of_their_atoms():
    stream = Substitutions(
        "perovskite", prototype("perovskite"), {"Sr": ["Ca", "Ba"], "Ti": ["Ti", "Zr", "Hf"], "O": ["O", "S"]}
    )
    for candidate in prepare(stream, 5.0, 0, len(stream)):
        atoms = candidate.atoms
        assert as_set(candidate.edges) == as_set(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 5.0))
        assert atoms.template is None and type(atoms.copy().positions) is np.ndarray
        vectors = edge_vectors(atoms.positions, atoms.cell.array, *candidate.edges)
        assert np.linalg.norm(vectors, axis=1).min() > 1.5 and 0.5 < candidate.closest < 1.3


def test_a_prototype_with_two_atoms_at_one_place_makes_errors():
    broken = Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 0.05]], cell=[5, 5, 5], pbc=True)
    stream = Substitutions("broken", broken, {"Na": ["Na", "K"]}, volume="prototype")
    found = prepare(stream, 5.0, 0, len(stream))
    assert len(found) == 2 and all("two atoms at one place" in str(candidate.error) for candidate in found)


def test_a_batch_of_arrays_is_the_batch_of_graphs():
    several = list(structures().values())
    graphs = [AtomicGraph.build(atoms, 5.0) for atoms in several]
    arrays = [
        GraphArrays(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, int(graph.charge), int(graph.spin),
                    graph.edge_index.numpy(), graph.edge_cell_shift.numpy())
        for atoms, graph in zip(several, graphs)
    ]  # fmt: skip
    ours, wanted = GraphBatch.from_graphs(arrays), GraphBatch.from_graphs(graphs)
    assert set(ours.keys()) == set(wanted.keys()) and ours.num_graphs == wanted.num_graphs
    for name in wanted.keys():
        if name != "num_nodes":
            assert ours[name].dtype == wanted[name].dtype and ours[name].equal(wanted[name]), name
    assert ours.num_nodes == wanted.num_nodes


def test_the_quick_look_at_a_cell_passes_none_that_the_long_one_refuses():
    """Random cells, from sound to flat, around the limit of what is refused."""
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        cell = random.normal(size=(3, 3)) * random.uniform(0.3, 4)
        cell[2] = cell[2] * random.choice([1.0, 1e-2, 1e-6]) + cell[0] * random.choice([0.0, 1.0])
        lengths = np.linalg.norm(cell, axis=1)
        flatness = np.linalg.svd(cell / lengths[:, None], compute_uv=False)[-1]
        sound = lengths.min() >= MIN_CELL_LENGTH and flatness >= 1e-6
        sound = sound and flatness * lengths.min() >= MIN_CELL_LENGTH  # enough, not needed
        atoms = Atoms("Cu", cell=cell, pbc=True)
        try:
            validate_atoms(atoms)
        except InvalidStructureError:
            refused += 1
            assert not sound
        else:
            assert flatness >= 1e-6 and lengths.min() >= MIN_CELL_LENGTH
    assert 100 < refused < 1900
    validate_atoms(bulk("Cu"))
