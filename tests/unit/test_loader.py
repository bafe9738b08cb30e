"""The loader: batches are what the graph module makes of the stored structures, whoever makes them and wherever."""

import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from labelled import HEAD, need_adios

from gfm_calc.data.block import Block
from gfm_calc.data.build import build
from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.loader import Loader, labelled_batches, pack, read_drawn, unpack
from gfm_calc.data.prefetch import is_core_free, prefetched, worked_ahead
from gfm_calc.data.sampling import Batch, SamplingPlan
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Selection, open_dataset
from gfm_calc.errors import ConfigError, GFMError, InvalidStructureError
from gfm_calc.graph import AtomicGraph, GraphBatch

CUTOFF = 4.0


def labelled(atoms: Atoms, random, frame: int, **values) -> Record:
    atoms = atoms.copy()
    atoms.rattle(0.05, rng=random)
    labels = {
        "energy": random.normal(), "forces": random.normal(size=(len(atoms), 3)),
        "stress": random.normal(size=(3, 3)) if atoms.pbc.all() else None, **values,
    }  # fmt: skip
    return Record(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        frame=frame,
        **labels,
    )


class Frames:
    """A task of given structures."""

    def __init__(self, structures):
        self.structures = structures

    def identity(self):
        return [len(self.structures)]

    def records(self):
        random = np.random.default_rng(0)
        for frame, atoms in enumerate(self.structures):
            forces = {"forces": None} if frame % 5 == 3 else {}
            yield labelled(atoms, random, frame, charge=1 if frame % 4 == 0 else None, **forces)

    def inputs(self):
        return []


def test_a_stress_that_is_no_label_is_none():
    """A slab's, by the volume of a cell that means nothing along one axis; a crystal's stays."""
    random = np.random.default_rng(3)
    stress = random.normal(size=(3, 3))
    slab, crystal = Atoms("Cu2", [[0, 0, 0], [1.3, 1.3, 2]], cell=[3, 3, 9], pbc=[True, True, False]), bulk("Cu")
    block = Block.from_records([labelled(one, random, k, stress=stress) for k, one in enumerate((slab, crystal))])
    (batch,) = labelled_batches(block, Batch(head=np.zeros(2, int), index=np.arange(2)), CUTOFF)
    assert batch.stress[0].isnan().all() and np.array_equal(batch.stress[1].numpy(), stress)


MOLECULES = [molecule(name) for name in ("H2O", "CH4", "C2H6", "CH3CHO", "C6H6")] * 8
CRYSTALS = [bulk("Cu") * (2, 2, 2), bulk("NaCl", "rocksalt", a=5.6), bulk("Si") * (2, 1, 1)] * 4


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    need_adios()
    folder = tmp_path_factory.mktemp("loader")
    options = {"processes": 0, "shard_atoms": 100}
    return [
        build(folder / "molecules", [Frames(MOLECULES)], HEAD, **options),
        build(folder / "crystals", [Frames(CRYSTALS)], HEAD, **options),
    ]


@pytest.fixture(scope="module")
def plan(datasets):
    return SamplingPlan(counts=tuple(map(len, datasets)), seed=3, structures=20, tau=0.5)


def same_graph(first: GraphBatch, second: GraphBatch) -> bool:
    return all(torch.equal(first[name], second[name]) for name in second.keys() if torch.is_tensor(second[name]))


def collected(steps) -> list:
    """Everything of a loader, as plain numbers."""
    return [
        [(b.head.tolist(), b.index.tolist(), b.energy.tolist(), b.graph.edge_index.tolist(), b.forces.nansum().item())
         for b in step]
        for step in steps
    ]  # fmt: skip


def test_batches_are_what_graphs_are_made_of(datasets, plan):
    loader = Loader(datasets, CUTOFF, max_atoms=60)
    for step in loader.steps(plan, 5, 8):
        assert len(step) > 1
        for batch in step:
            records = [datasets[h].record(i) for h, i in zip(batch.head.tolist(), batch.index.tolist())]
            wanted = GraphBatch.from_graphs([AtomicGraph.build(r.structure(), CUTOFF) for r in records])
            assert same_graph(batch.graph, wanted) and batch.graph.num_graphs == len(batch) == len(records)
            assert len(records) == 1 or len(batch.graph.positions) <= 60
            assert batch.energy.dtype == torch.float64 and batch.energy.tolist() == [r.energy for r in records]
            forces = [np.full((len(r), 3), np.nan) if r.forces is None else r.forces for r in records]
            stress = [np.full((3, 3), np.nan) if r.stress is None else r.stress for r in records]
            np.testing.assert_array_equal(batch.forces.numpy(), np.concatenate(forces))
            np.testing.assert_array_equal(batch.stress.numpy(), np.stack(stress))
            assert batch.graph.charge.tolist() == [float(r.charge or 0) for r in records]


def test_steps_go_on_anywhere(datasets, plan):
    loader = Loader(datasets, CUTOFF, max_atoms=80)
    whole = collected(loader.steps(plan, 0, 9))
    assert collected(loader.steps(plan, 4, 9)) == whole[4:]
    assert [sum(len(heads) for heads, *_ in step) for step in whole] == [20] * 9


def test_ranks_share_a_step(datasets, plan):
    whole = [sorted(zip(h, i)) for h, i in _drawn(Loader(datasets, CUTOFF, max_atoms=10_000).steps(plan, 0, 4))]
    parts = [_drawn(Loader(datasets, CUTOFF, max_atoms=60, rank=r, world=3).steps(plan, 0, 4)) for r in range(3)]
    for step, wanted in enumerate(whole):
        assert sorted(pair for part in parts for pair in zip(*part[step])) == wanted


def _drawn(steps) -> list:
    """(heads, indices) of each step."""
    return [
        ([h for b in step for h in b.head.tolist()], [i for b in step for i in b.index.tolist()]) for step in steps
    ]  # fmt: skip


def test_workers_and_memory_change_nothing(datasets, plan):
    whole = collected(Loader(datasets, CUTOFF, max_atoms=60, max_edges=900).steps(plan, 2, 6))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert collected(Loader(datasets, CUTOFF, max_atoms=60, max_edges=900, workers=2).steps(plan, 2, 6)) == whole
    stores = [DistributedStore(dataset) for dataset in datasets]
    assert collected(Loader(stores, CUTOFF, max_atoms=60, max_edges=900, workers=1).steps(plan, 2, 6)) == whole
    assert torch.equal(before, torch.get_rng_state()), "the program's random numbers were used"


def test_graphs_of_few_structures_are_made_once_and_change_nothing(datasets, plan, monkeypatch):
    keeping = Loader(datasets, CUTOFF, max_atoms=60, max_edges=900)
    kept = collected(keeping.steps(plan, 0, 6))
    built = []
    monkeypatch.setattr(AtomicGraph, "build", lambda *a, **k: built.append(a))  # from here on it would be seen
    assert collected(keeping.steps(plan, 0, 6)) == kept and not built
    monkeypatch.undo()
    monkeypatch.setattr("gfm_calc.data.loader._KEPT", 0)
    assert collected(Loader(datasets, CUTOFF, max_atoms=60, max_edges=900).steps(plan, 0, 6)) == kept


def test_edges_keep_to_their_budget(datasets, plan):
    atoms_only = Loader(datasets, CUTOFF, max_atoms=400)
    loader = Loader(datasets, CUTOFF, max_atoms=400, max_edges=800)
    assert _drawn(loader.steps(plan, 0, 3)) == _drawn(atoms_only.steps(plan, 0, 3))
    cut = [batch for step in loader.steps(plan, 0, 3) for batch in step]
    assert any(len(batch) > 1 for batch in cut)
    assert all(len(b) == 1 or b.graph.edge_index.shape[1] <= 800 for b in cut)


@pytest.mark.parametrize("world", [1, 3])
def test_once_is_every_structure_once(datasets, world):
    chosen = [Selection(datasets[0], np.arange(30, 3, -2)), datasets[1]]
    seen = []
    for rank in range(world):
        for batch in Loader(chosen, CUTOFF, max_atoms=50, rank=rank, world=world).once():
            assert len(batch) == 1 or len(batch.graph.positions) <= 50
            seen += zip(batch.head.tolist(), batch.index.tolist())
    assert sorted(seen) == [(head, k) for head, source in enumerate(chosen) for k in range(len(source))]


def test_batches_move(datasets, plan):
    (batch, *_), *_ = Loader(datasets, CUTOFF).steps(plan, 0, 1)
    moved = batch.to("cpu")
    assert same_graph(moved.graph, batch.graph) and torch.equal(moved.energy, batch.energy)


def test_batches_travel_as_one_tensor(datasets, plan):
    several = next(iter(Loader(datasets, CUTOFF, max_atoms=40).steps(plan, 0, 1)))
    flat, layout = pack(several)
    assert flat.dtype == torch.uint8 and flat.ndim == 1
    for found, batch in zip(unpack(flat, layout), several, strict=True):
        assert same_graph(found.graph, batch.graph) and found.graph.num_nodes == batch.graph.num_nodes
        for name in ("head", "index", "energy", "forces", "stress"):
            np.testing.assert_array_equal(getattr(found, name), getattr(batch, name))
    assert unpack(*pack([])) == []


def test_order_is_kept_when_heads_are_mixed(datasets):
    drawn = Batch(head=np.array([1, 0, 1, 0]), index=np.array([2, 7, 0, 5]))
    block = read_drawn(datasets, drawn)
    assert block.energy.tolist() == [datasets[h].record(i).energy for h, i in zip([1, 0, 1, 0], [2, 7, 0, 5])]


def test_errors_name_the_structure(datasets):
    record = Record(atomic_numbers=np.array([1, 1]), positions=np.zeros((2, 3)), cell=np.zeros((3, 3)),
                    pbc=np.zeros(3, bool), energy=0.0, frame=41)  # fmt: skip
    with pytest.raises(InvalidStructureError, match=r"pool, structure 7, frame 41, atom \d: .*two atoms at one place"):
        labelled_batches(
            Block.from_records([record]), Batch(head=np.array([0]), index=np.array([7])), 3.0, names=["pool"]
        )


def test_errors_come_from_workers_as_what_they_are(tmp_path):
    need_adios()
    twins = Atoms("H2", positions=np.zeros((2, 3)))

    class Twins(Frames):
        def records(self):
            yield from (labelled(atoms, np.random.default_rng(0), 0) for atoms in self.structures[:-1])
            n = len(twins)
            yield Record(atomic_numbers=twins.numbers, positions=twins.positions, cell=np.zeros((3, 3)),
                         pbc=np.zeros(3, bool), energy=0.0, forces=np.zeros((n, 3)), frame=41)  # fmt: skip

    dataset = build(tmp_path, [Twins([*MOLECULES[:3], twins])], HEAD, processes=0)
    plan = SamplingPlan(counts=(4,), seed=0, structures=4)
    for workers in (0, 1):
        with pytest.raises(InvalidStructureError, match="frame 41, atom"):
            list(Loader([dataset], CUTOFF, workers=workers).steps(plan, 0, 1))


def test_a_dead_worker_is_an_error(datasets, plan):
    loader = Loader(datasets, CUTOFF, workers=1)
    steps = loader.steps(plan)
    next(steps)
    children = [process.pid for process in multiprocessing.active_children()]
    assert children
    threading.Timer(0.1, lambda: [os.kill(pid, signal.SIGKILL) for pid in children]).start()
    with pytest.raises(GFMError, match="a worker that makes batches died"):
        for _ in steps:
            pass


@pytest.mark.parametrize(
    "options",
    [{"rank": 1}, {"max_atoms": 0}, {"max_edges": 0}, {"workers": -1}, {"ahead": 0}, {"max_edges": float("nan")}],
)
def test_impossible_loaders(datasets, options):
    with pytest.raises(ConfigError):
        Loader(datasets, CUTOFF, **options)


def test_a_plan_of_other_structures(datasets):
    with pytest.raises(ConfigError, match="the plan counts"):
        Loader(datasets, CUTOFF).steps(SamplingPlan(counts=(1, 2), seed=0, structures=3))
    with pytest.raises(ConfigError, match="at least one source"):
        Loader([], CUTOFF)


# ---- a store in the memory of one process ----


def test_a_store_without_mpi(datasets):
    dataset = datasets[0]
    with DistributedStore(dataset) as store:
        assert len(store) == len(dataset)
        for indices in (range(len(dataset)), [5, 5, 0]):
            found, wanted = store.read(indices), dataset.read(indices)
            for name in (
                "ptr",
                "atomic_numbers",
                "positions",
                "forces",
                "cell",
                "pbc",
                "energy",
                "charge",
                "spin",
                "frame",
            ):
                np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
            assert store.atom_counts(indices).tolist() == wanted.num_atoms.tolist()
        blocks = list(store.prefetch([[1, 2], [3]]))
        assert [block.frame.tolist() for block in blocks] == [[1, 2], [3]]
        for bad in ([], [len(dataset)], [-1]):
            with pytest.raises(IndexError):
                store.read(bad)
        with pytest.raises(ConfigError, match="not held in memory"):
            store.read([0], names=True)
    with DistributedStore(dataset, indices=np.array([7, 3])) as store:
        assert store.read([1, 0]).frame.tolist() == [3, 7]
    with pytest.raises(ConfigError, match="at least one structure"):
        DistributedStore(dataset, indices=np.array([], int))
    assert open_dataset(dataset.directory).digest == dataset.digest


# ---- prefetching ----


def test_prefetched_keeps_order_and_errors():
    def items():
        yield from range(5)
        raise KeyError("six")

    found = []
    with pytest.raises(KeyError, match="six"):
        for item in prefetched(items(), depth=3):
            found.append(item)
    assert found == [0, 1, 2, 3, 4]


def test_prefetched_stops_when_it_is_closed():
    def endless():
        k = 0
        while True:
            yield (k := k + 1)

    before = threading.active_count()
    items = prefetched(endless())
    assert [next(items) for _ in range(4)] == [1, 2, 3, 4]
    items.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("cores", "threads", "device", "free"), [
    (2, 2, "cpu", False), (1, 1, "cpu", False), (2, 1, "cpu", True), (16, 8, "cpu", True), (2, 2, "cuda", True)
])  # fmt: skip
def test_a_thread_works_ahead_where_a_core_is_free(cores, threads, device, free, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert is_core_free(torch.device(device)) == free


@pytest.mark.parametrize("free", [True, False])
def test_work_ahead_gives_the_same_items_in_a_thread_or_without_one(free, monkeypatch):
    monkeypatch.setattr("gfm_calc.data.prefetch.is_core_free", lambda device: free)
    names = []

    def items():
        for k in range(4):
            names.append(threading.current_thread().name)
            yield k

    assert list(worked_ahead(items(), torch.device("cpu"), depth=2)) == [0, 1, 2, 3]
    assert {name == "gfm-prefetch" for name in names} == {free}
    endless = worked_ahead(iter(int, 1), torch.device("cpu"), depth=2)
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "gfm-prefetch"]
