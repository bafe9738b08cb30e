"""The stopwatch on tiny sizes, in this process and in children; no test looks at how fast anything is."""

import argparse
import sys

import numpy as np
import pytest
from ase import Atoms
from support import ROOT, batch_of, random_model

from gfm_calc.benchmarks import structures as made
from gfm_calc.benchmarks.contenders import Process, ProcessEndedError
from gfm_calc.benchmarks.heads import _loop, run_heads
from gfm_calc.benchmarks.peers.measure import Stopwatch, batches, thermalize
from gfm_calc.benchmarks.speed import PEERS, SpeedPlan, pick_head, read_sets, run_speed
from gfm_calc.benchmarks.worker import GFMContender, make
from gfm_calc.errors import ConfigError, GFMError, HeadError


def tagged(frames, key, name):
    for atoms in frames:
        atoms.info[key] = name
    return frames


@pytest.fixture
def stopwatch():
    contender = GFMContender(random_model(), "first", "second", "eager")
    frames = tagged(made.molecules(16), "set", "molecules") + tagged(made.crystals(16), "set", "crystals")
    return Stopwatch(contender, frames + tagged([made.dynamics_systems()["ethanol"]], "system", "ethanol"))


def test_batches_of_one_and_of_many(stopwatch):
    for size in (1, 16):
        found = stopwatch.run({"job": "batch", "set": "molecules", "batch": size, "seconds": 1e-6})
        assert found["calls"] == 1 and found["seconds"] > 0


def test_batch_path_gives_the_energies_of_the_calculator(stopwatch):
    for name in ("molecules", "crystals"):
        assert stopwatch.run({"job": "check", "set": name})["difference"] < 1e-9


def test_md_goes_on_between_measurements(stopwatch):
    job = {"job": "md", "system": "ethanol", "seconds": 1e-6, "timestep": 0.5}
    stopwatch.run(job)
    (run,) = stopwatch.runs.values()
    before = run.atoms.positions.copy()
    stopwatch.run(job)
    assert (run,) == tuple(stopwatch.runs.values())
    assert not np.array_equal(before, run.atoms.positions)


def test_batches_keep_order_and_everything():
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_structures_are_the_same_every_time():
    for build in (made.molecules, made.crystals):
        first, second = build(20), build(20)
        assert all((a.positions == b.positions).all() and (a.numbers == b.numbers).all() for a, b in zip(first, second))
        assert not any((a.positions == b.positions).all() for a, b in zip(first[:4], first[16:20]))  # other rattles
    assert {name: len(atoms) for name, atoms in made.dynamics_systems().items()} == {
        "ethanol": 9,
        "NaCl": 64,
        "Cu": 256,
        "Si": 1000,
    }
    assert len(made.aspirin()) == 21 and made.aspirin().get_chemical_formula() == "C9H8O4"
    cluster = made.water_cluster(21)
    distances = cluster.get_all_distances()
    other = np.repeat(np.arange(21), 3)[:, None] != np.repeat(np.arange(21), 3)
    assert distances[other].min() > 1.3


def test_children_measure_and_report(tmp_path, saved_model):
    plan = SpeedPlan(
        model=str(saved_model), threads=(1,), compile=False, batches=(1, 2), systems=("ethanol",), repeats=2, seconds=1e-3,
        sets={"molecules": made.molecules(2), "crystals": [a for a in made.crystals(16) if "Cu" in a.symbols]},
    )  # fmt: skip
    measured = run_speed(plan)
    (contender,) = measured["contenders"]
    assert contender["threads"] == 1 and contender["parameters"] > 0
    assert contender["batch_minus_calculator_ev_per_atom"] < 1e-4
    assert [(row["set"], row["batch"]) for row in measured["batches"]] == [
        ("molecules", 1), ("molecules", 2), ("crystals", 1), ("crystals", 2),
    ]  # fmt: skip
    assert all(
        row["structures_per_s"] > 0 and row["atoms_per_s"] > row["structures_per_s"] for row in measured["batches"]
    )
    (dynamics,) = measured["dynamics"]
    assert dynamics["atoms"] == 9 and dynamics["ms_per_step"] > 0


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_that_cannot_start_is_named_in_one_line(peer):
    script = ROOT / "benchmarks" / "peers" / PEERS[peer]  # none of them is a dependency of ours
    package = {"sevennet": "sevenn", "mace": "e3nn", "torchsim": "torch_sim"}.get(peer, peer)
    with pytest.raises(GFMError, match=f"{peer}: its process ended: .*No module named '{package}") as caught:
        Process(peer, [sys.executable, str(script), "--structures", "none", "--threads", "1"], threads=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(GFMError, match="no-such-python"):
        Process(peer, ["no-such-python", str(script)], threads=1)


@pytest.mark.parametrize("said", ["no accelerator", "1"])
def test_a_contender_that_prints_something_else_is_named(said):
    with pytest.raises(GFMError, match=f"loud: its process printed '{said}' where an answer was due"):
        Process("loud", [sys.executable, "-c", f"print('{said}')"], threads=1)


def test_a_contender_that_says_too_much_is_ended():
    """The answer to one job is never taken for that to the next."""
    chatty = "import sys\nprint('{}', flush=True)\nfor line in sys.stdin:\n    print('by the way')\n    print(line, flush=True)"
    process = Process("chatty", [sys.executable, "-c", chatty], threads=1)
    try:
        with pytest.raises(ProcessEndedError, match="printed 'by the way' where"):
            process.ask({"job": 1})
        with pytest.raises(ProcessEndedError, match="chatty: its process ended"):
            process.ask({"job": 2})
    finally:
        process.close()


def test_momenta_have_the_temperature_and_are_seeded():
    atoms = made.dynamics_systems()["Si"]
    thermalize(atoms, 300.0, seed=1)
    first = atoms.get_momenta()
    assert atoms.get_temperature() == pytest.approx(300.0, rel=0.05)
    thermalize(atoms, 300.0, seed=1)
    assert (first == atoms.get_momenta()).all()


def test_unknown_peers_and_systems(saved_model):
    with pytest.raises(ConfigError, match="chgnet"):
        SpeedPlan(model="m", peers={"chgnett": "python"})
    with pytest.raises(ConfigError, match="ethanol"):
        run_speed(SpeedPlan(model=str(saved_model), systems=("ethanl",), threads=(1,), compile=False))


def test_heads_are_picked_by_elements_and_kind():
    model = random_model(elements=("H", "O"))
    water = made.molecules(1)
    assert pick_head(model.specs, water, "third") == "third"
    assert pick_head(model.specs, water, None) == "first"
    with pytest.raises(HeadError, match="--head"):
        pick_head(model.specs, [Atoms("U")], None)


def test_user_structures_are_sorted_into_molecules_and_crystals(tmp_path):
    import ase.io

    ase.io.write(tmp_path / "in.extxyz", [*made.molecules(2), *made.crystals(1)], format="extxyz")
    assert {name: len(frames) for name, frames in read_sets(tmp_path / "in.extxyz").items()} == {
        "molecules": 2,
        "crystals": 1,
    }


def test_worker_loads_what_it_is_told(saved_model):
    options = argparse.Namespace(
        model=saved_model, molecule_head="first", crystal_head="third", compile=False, device="cpu"
    )
    contender = make(options)
    assert contender.describe()["heads"] == ["first", "third"]
    assert contender.calculator(made.crystals(1)[0]).head == "third"


def test_heads_benchmark_measures_every_way(model):
    found = run_heads(model, batches=(1, 2), repeats=1)
    assert found["heads"] == 3
    assert [(row["structures"], row["batch"]) for row in found["batches"]] == [
        ("molecules", 1), ("molecules", 2), ("crystals", 1), ("crystals", 2),
    ]  # fmt: skip
    for row in found["batches"]:
        assert set(row["energies_ms"]) == {"one", "all", "ratio"}
        assert set(row["forces_ms"]) == {"one", "all", "ratio", "loop", "rerun"}
        assert min(row["forces_ms"].values()) > 0


def test_the_ways_to_all_forces_agree(model):
    batch = batch_of(model, *made.molecules(3))
    target, source = batch.edge_index[1], batch.edge_index[0]
    for gradient, (_, wanted) in zip(_loop(model, batch), model.predict(batch, list(model.energy_heads)).items()):
        zero = gradient.new_zeros(batch.num_nodes, 3)
        forces = zero.index_add(0, target, gradient) - zero.index_add(0, source, gradient)
        assert np.allclose(forces, wanted.forces, atol=1e-10)
