"""Structures to graphs: what is refused and how it is said, and batches as torch_geometric makes them."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from support import structures
from torch_geometric.data import Batch

from gfm_calc.errors import InvalidStructureError
from gfm_calc.fields import INPUT_FIELDS
from gfm_calc.graph import AtomicGraph, GraphBatch, charge_and_spin, validate_atoms

CUTOFF = 5.0


def changed(atoms: Atoms, **values) -> Atoms:
    for name, value in values.items():
        if name == "info":
            atoms.info.update(value)
        elif name == "cell":
            atoms.set_cell(value)
        else:
            setattr(atoms, name, value)
    return atoms


def put(atoms: Atoms, array: str, index, value) -> Atoms:
    atoms.arrays[array][index] = value
    return atoms


REFUSED = {
    "no atoms": (Atoms(), "no atoms"),
    "not atoms": ([1, 2], "expected ase.Atoms, found list"),
    "NaN": (put(molecule("H2O"), "positions", (1, 2), np.nan), "atom 1: position is NaN or infinite"),
    "inf": (put(molecule("H2O"), "positions", (2, 0), -np.inf), "atom 2: position is NaN or infinite"),
    "far": (put(molecule("H2O"), "positions", (0, 0), 1e9), "atom 0: position beyond 1e[+]07 Å: check the unit"),
    "dummy": (Atoms("HX"), "atom 1: atomic number 0 is no element"),
    "negative": (put(Atoms("HH", positions=[[0, 0, 0], [0, 0, 1]]), "numbers", 0, -1), "atom 0: atomic number -1"),
    "too heavy": (Atoms([119]), "atom 0: atomic number 119 is no element"),
    "overlap": (Atoms("HO", positions=[[0, 0, 0], [0, 0.05, 0]]), "atom [01]: 0.05 Å from atom [01]: two atoms at one place"),
    "overlap with an image": (
        Atoms("HO", positions=[[0, 0, 0.01], [0, 0, 4.99]], cell=[5, 5, 5], pbc=True), "0.02 Å from a periodic image of atom",
    ),
    "no cell": (Atoms("H", pbc=True), "periodic along a, but that cell vector is zero"),
    "no third vector": (Atoms("H", cell=[5, 5, 0], pbc=True), "periodic along c, but that cell vector is zero"),
    "singular": (Atoms("H", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True), "cell is singular"),
    "nearly singular": (Atoms("H", cell=[[3, 0, 0], [3, 1e-3, 0], [0, 0, 3]], pbc=True), "repeats itself every 0.001 Å"),
    "short": (Atoms("H", cell=[0.5, 4, 4], pbc=True), "cell vector a is 0.5 Å, shorter than any bond"),
    "long": (Atoms("H", cell=[1e6, 4, 4], pbc=True), r"cell vector a is 1e\+06 Å, beyond"),
    "cell NaN": (Atoms("H", cell=[np.nan, 4, 4], pbc=True), "cell holds NaN or inf"),
    "cell NaN without pbc": (Atoms("H", cell=[4, 4, np.inf]), "cell holds NaN or inf"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_place_and_mend(case):
    atoms, message = REFUSED[case]
    with pytest.raises(InvalidStructureError, match=message) as caught:
        AtomicGraph.build(atoms, CUTOFF, source="in.xyz", frame=7)
    assert str(caught.value).startswith("in.xyz, frame 7")
    assert "\n" not in str(caught.value)


INFO = {
    "fraction": ({"charge": 0.5}, "charge must be a whole number, not 0.5"),
    "text": ({"charge": "+1"}, r"charge must be a whole number, not '\+1'"),
    "none": ({"charge": None}, "charge must be a whole number, not None"),
    "true": ({"charge": True}, "charge must be a whole number, not True"),
    "NaN": ({"charge": float("nan")}, "charge must be a whole number within"),
    "inf": ({"spin": float("inf")}, "spin must be a whole number within"),
    "array": ({"charge": np.zeros((2, 2))}, "charge must be a whole number, not a ndarray"),
    "complex": ({"charge": 1j}, "charge must be a whole number, not a complex"),
    "googol": ({"charge": 10**100}, "charge must be a whole number within"),
    "beyond printing": ({"spin": 10**5000}, "spin must be a whole number within"),
    "long text": ({"charge": "x\n" * 1000}, "charge must be a whole number, not 'x"),
    "more than its electrons": ({"charge": 11}, "charge \\+11 removes more than all 10 electrons"),
    "too negative": ({"charge": -101}, "charge -101 is out of range"),
    "S for 2S+1": ({"spin": 0}, "spin multiplicity must be at least 1, not 0"),
    "parity": ({"spin": 2}, "spin multiplicity 2 is impossible with 10 electrons \\(try 1 or 3\\)"),
    "parity of an ion": ({"charge": 1, "spin": 1}, "impossible with 9 electrons"),
    "more spins than electrons": ({"charge": 9, "spin": 4}, "spin multiplicity 4 needs more than 1 electrons"),
}


@pytest.mark.parametrize("case", INFO)
def test_charge_and_spin_refused(case):
    info, message = INFO[case]
    atoms = molecule("H2O")
    atoms.info.update(info)
    with pytest.raises(InvalidStructureError, match=message) as caught:
        AtomicGraph.build(atoms, CUTOFF, frame=0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("symbols", "info", "wanted"),
    [
        ("H2O", {}, (0, 1)), ("NO", {}, (0, 2)), ("O2", {"spin": 3}, (0, 3)), ("H2O", {"charge": 1}, (1, 2)),
        ("H2O", {"charge": np.float32(-1.0), "spin": np.array([2])}, (-1, 2)), ("H", {"charge": 1}, (1, 1)),
        ("NO", {"charge": np.int8(-1), "spin": None}, (-1, 1)), ("Fe", {"charge": 3, "spin": 6.0}, (3, 6)),
    ],
)  # fmt: skip
def test_charge_and_spin_read(symbols, info, wanted):
    atoms = Atoms(symbols, positions=np.arange(3 * len(Atoms(symbols))).reshape(-1, 3))
    atoms.info.update(info)
    before = dict(atoms.info)
    assert charge_and_spin(atoms) == wanted
    assert atoms.info == before
    graph = AtomicGraph.build(atoms, CUTOFF)
    assert (graph.charge.item(), graph.spin.item()) == wanted


def test_sound_structures_pass():
    for atoms in structures().values():
        validate_atoms(atoms)
    validate_atoms(Atoms("H", cell=[[9, 0, 0], [0, 9, 0], [90, 90, 9]], pbc=True))  # skewed, but no short repeat
    validate_atoms(Atoms("H", cell=[3, 3, 0], pbc=[True, True, False]))
    validate_atoms(Atoms("H", cell=[1e-3, 1e9, 0]))  # not periodic: not used


def test_graph_follows_the_table_of_fields():
    graph = AtomicGraph.build(structures()["slab"], CUTOFF)
    sizes = {"atom": graph.num_nodes, "edge": graph.num_edges, "graph": 1}
    for name, field in INPUT_FIELDS.items():
        tensor = graph[name]
        assert tuple(tensor.shape) == (sizes[field.level], *field.shape), name
        assert str(tensor.dtype) == f"torch.{field.dtype}", name


def test_building_changes_nothing_and_shares_nothing():
    atoms = structures()["ion"]
    before = atoms.copy()
    graph = AtomicGraph.build(atoms, CUTOFF)
    graph.positions += 1
    graph.cell += 1
    assert atoms == before and atoms.info == before.info


def test_batch_equals_that_of_torch_geometric():
    graphs = [AtomicGraph.build(atoms, CUTOFF) for atoms in structures().values()]
    for some in (graphs, graphs[:1], [graphs[3], graphs[3], graphs[0]]):
        ours, theirs = GraphBatch.from_graphs(some), Batch.from_data_list(some)
        assert set(ours.keys()) - {"num_nodes"} == set(theirs.keys()) - {"num_nodes"}
        for name in theirs.keys():
            if name == "num_nodes":
                continue
            assert ours[name].dtype == theirs[name].dtype, name
            assert torch.equal(ours[name], theirs[name]), name
        assert (ours.num_graphs, ours.num_nodes, ours.num_edges) == (
            theirs.num_graphs,
            theirs.num_nodes,
            theirs.num_edges,
        )


def test_batch_of_nothing():
    with pytest.raises(ValueError, match="at least one graph"):
        GraphBatch.from_graphs([])


def test_given_edges_are_used():
    atoms = bulk("Cu")
    none = (np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int32))
    assert AtomicGraph.build(atoms, CUTOFF, edges=none).num_edges == 0
    assert AtomicGraph.build(atoms, CUTOFF, totals=(2, 3)).charge.item() == 2
