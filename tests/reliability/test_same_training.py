"""The same training on any number of processes, in any mode: losses of 50 steps in float64 agree to 1e-10."""

import pytest
from training import Job, argv, losses, make_datasets

SETTINGS = ("run.dtype=float64", "run.steps=50", "run.validate_every=25", "run.save_every=50", "run.structures=8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("training") / "datasets")


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("alone") / "run", 1)


def trained(data, run, world: int, *settings: str, flags=()):
    job = Job(argv(data, run, *SETTINGS, *settings, flags=flags), world, log=run.parent / "log")
    assert job.wait(300) == [0] * world, job.said()
    return losses(run)


def largest_difference(first, second) -> float:
    assert [row[0] for row in first] == [row[0] for row in second] == list(range(1, 51))
    worst = 0.0
    for (_, loss, parts, norm), (_, other, others, other_norm) in zip(first, second):
        worst = max(worst, abs(loss - other) / abs(loss), abs(norm - other_norm) / norm)
        worst = max(worst, *(abs(parts[head] - others[head]) / abs(loss) for head in parts))
    return worst


@pytest.mark.parametrize(
    "world, mode, shard",
    [(2, "data", "none"), (2, "multitask", "none"), (3, "multitask", "none"), (4, "multitask", "none"), (3, "data", "all"),
     (4, "multitask", "all"), (2, "data", "replica")],
)  # fmt: skip
def test_modes_are_the_same_training(data, alone, tmp_path, world, mode, shard):
    found = trained(data, tmp_path / "run", world, f"parallel.mode={mode}", f"parallel.shard={shard}")
    assert largest_difference(alone, found) < 1e-10


def test_orthogonal_updates_are_the_same_training(data, tmp_path):
    """Muon needs whole matrices, of whose momenta each process may hold a part only."""
    muon = ("optimizer.method=muon", "optimizer.learning_rate=0.01")
    (tmp_path / "alone").mkdir()
    alone = trained(data, tmp_path / "alone" / "run", 1, *muon)
    for number, (world, mode, shard) in enumerate([(2, "multitask", "none"), (3, "data", "all")]):
        settings = (*muon, f"parallel.mode={mode}", f"parallel.shard={shard}")
        assert largest_difference(alone, trained(data, tmp_path / f"run{number}", world, *settings)) < 1e-10


def test_a_run_goes_on_with_other_numbers_of_processes(data, alone, tmp_path):
    """From 2 to 3 to 1 processes, from one mode to the other: correct, though not bit for bit."""
    run = tmp_path / "run"
    stages = [(2, "multitask", 13), (3, "data", 31), (1, "data", 50)]
    for number, (world, mode, last) in enumerate(stages):
        fault = ("at_step", last - 1, "term") if last < 50 else ()
        flags = ["--resume"] if number else []
        job = Job(
            argv(data, run, *SETTINGS, f"parallel.mode={mode}", flags=flags), world, fault=fault, log=tmp_path / "log"
        )
        assert job.wait() == [143 if fault else 0] * world, job.said()
    assert largest_difference(alone, losses(run)) < 1e-10


def test_accumulation_and_budget_change_nothing(data, alone, tmp_path):
    """Batches of one or two structures instead of eight, in worker processes."""
    found = trained(data, tmp_path / "run", 1, "run.max_atoms=6", "data.workers=2")
    assert largest_difference(alone, found) < 1e-10


def test_recomputed_activations_change_nothing(data, alone, tmp_path):
    found = trained(data, tmp_path / "run", 1, "run.activation_checkpointing=true")
    assert largest_difference(alone, found) < 1e-10
