"""The parts of the trainer: recipe, placement, flat parameters, objective, schedule, processes."""

import tomllib
from importlib.util import find_spec

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import need_adios
from support import ROOT, random_model
from torch import nn
from training import make_datasets

from gfm_calc.checkpoint import PACKAGED, load_model
from gfm_calc.config import HeadSpec, to_mapping
from gfm_calc.data.build import build
from gfm_calc.data.frame_table import UNUSED, FrameTable
from gfm_calc.data.loader import Loader
from gfm_calc.data.sampling import Batch
from gfm_calc.data.splits import SIDES, draw
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError
from gfm_calc.train.cli import find_recipe, packaged_recipes
from gfm_calc.train.exchange import share
from gfm_calc.train.flat import AdamW, FlatParameters
from gfm_calc.train.growth import GROWS
from gfm_calc.train.models import build_model
from gfm_calc.train.objective import Objective, head_slots
from gfm_calc.train.orthogonal import orthogonalized
from gfm_calc.train.parallel import Place, discover
from gfm_calc.train.placement import place
from gfm_calc.train.preparation import loss_weights, prepare
from gfm_calc.train.recipe import ObjectiveRecipe, OptimizerRecipe, read_recipe, recipe_of, to_toml
from gfm_calc.train.schedule import Schedule
from gfm_calc.train.telemetry import Packages

# ---- recipe ----


def test_a_recipe_is_written_and_read_back():
    recipe = recipe_of(
        {"heads": [{"name": "a", "share": 0.5, "reference_energies": {"H": -13.6}}]}, ["data.path=/x y/ü"]
    )
    assert recipe_of(tomllib.loads(to_toml(recipe))) == recipe
    without = recipe_of({}, ["objective.soften=none", 'model.repulsion="none"'])
    assert without.objective.soften is None and without.model.repulsion is None
    assert recipe_of(tomllib.loads(to_toml(without))) == without != recipe_of({})


@pytest.mark.parametrize(
    "setting, said",
    [
        ("run.stepz=3", "run: unknown key 'stepz' (did you mean 'steps'?)"),
        ("rnu.steps=3", "unknown key 'rnu' (did you mean 'run'?)"),
        ("run.steps=0", "run.steps must be a whole number from 1"),
        ("run.steps=1.5", "run.steps must be a whole number"),
        ("run.dtype=fp8", "run.dtype must be one of float64, float32, tf32, bf16"),
        ("run.compile=1", "run.compile must be true or false"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be a number from 0 to 10, not nan"),
        ("model.cutoff=-1", "model.cutoff must lie between"),
        ("steps=3", "write TABLE.KEY=VALUE"),
        ("heads.a=3", "heads are set in the recipe"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(tmp_path, setting, said):
    (tmp_path / "recipe.toml").write_text("[run]\nseed = 1\n")
    with pytest.raises(ConfigError) as error:
        read_recipe(tmp_path / "recipe.toml", [setting])
    assert said in str(error.value) and "\n" not in str(error.value)


STAGES = ("gfm-small-2", "gfm-small-3", "gfm-small-4")  # begun with a model that is not packaged


def test_packaged_recipes_are_read_and_their_cards_fit():
    assert packaged_recipes() == ["gfm-medium", "gfm-small", *STAGES, "tiny"]
    with pytest.raises(ConfigError, match=r"head gfn2-xtb: start needs start\.model"):
        find_recipe("gfm-small-2", [])
    recipes = {n: find_recipe(n, ["start.model=FIRST/model"] if n in STAGES else []) for n in packaged_recipes()}
    cards = tomllib.loads((ROOT / "train" / "recipes" / "gfm-small.cards.toml").read_text())["heads"]
    assert [card["name"] for card in cards] == [head.name for head in recipes["gfm-small"].heads]
    first, *later = (recipes[name] for name in ("gfm-small", *STAGES, "gfm-medium"))
    for stage in (first, *later):
        assert sum(head.share for head in stage.heads) == pytest.approx(1.0)
        assert first.data == stage.data  # the same structures are held out
    assert all(stage.model == first.model for stage in later[:-1])
    larger = {name for name, value in to_mapping(later[-1].model).items() if value != to_mapping(first.model)[name]}
    assert later[-1].start.model in ("gfm-small", str(PACKAGED / "gfm-small")) and larger <= set(GROWS)
    for stage in later:
        for one, other in zip(first.heads, stage.heads, strict=True):
            assert one.name == other.name == other.start and one.reference_energies == other.reference_energies
    assert all(file.keys() == {"name", "licence", "citation"} for card in cards for file in card["files"])
    assert recipes["gfm-small"].model == load_model("gfm-small").config


# ---- placement ----


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.integers(1, 40), st.sampled_from(["data", "multitask"])
)
@settings(deadline=None)
def test_every_rank_and_head_has_its_place(loads, world, mode):
    found = place(loads, world, mode)
    assert [rank for ranks in found.groups for rank in ranks] == list(range(world))
    assert sorted(head for heads in found.heads for head in heads) == list(range(len(loads)))
    assert all(heads == tuple(sorted(heads)) and heads for heads in found.heads)
    assert len(found.groups) == (1 if mode == "data" else min(world, len(loads)))


def test_heavy_heads_get_more_processes():
    found = place([8.0, 1.0, 1.0], 6, "multitask")
    assert [len(ranks) for ranks in found.groups] == [4, 1, 1]
    assert place([5.0, 3.0, 2.0], 2, "multitask").heads == ((0,), (1, 2))


# ---- flat parameters ----


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (8, 40), (1, 5)])
def test_orthogonal_updates(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    size = 0.2 * max(shape) ** 0.5
    found = orthogonalized(matrix) / size
    inner = left.T @ found @ right.T  # the same singular vectors, other values
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-10
    assert inner.diagonal()[values > 0.05 * values[0]].sub(1).abs().max() < 0.35
    torch.testing.assert_close(orthogonalized(1e-12 * matrix), orthogonalized(matrix))  # whatever the scale
    assert torch.equal(orthogonalized(torch.zeros(shape)), torch.zeros(shape))


def test_orthogonal_updates_are_of_the_matrices_they_are_asked_for():
    """Beside them AdamW goes on as if it were alone; a frozen matrix stays."""
    generator = torch.Generator().manual_seed(4)
    values = {"a": torch.randn(6, 4, generator=generator), "b": torch.randn(5, generator=generator)}
    values["c"] = torch.randn(3, 3, generator=generator)
    constants = AdamW(beta1=0.9, beta2=0.99, weight_decay=0.0)
    ended = []
    for turned in ((), ("a", "c")):
        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
        flat = FlatParameters(parameters, {"a", "c"}, rates={"c": 0.0}, turned=turned)
        gradient = torch.linspace(-1, 1, len(flat.weight))
        orthogonal = flat.orthogonal(flat.ahead(gradient, constants)) if turned else None
        flat.update(gradient, constants, rate=0.1, count=1, decay=0.5, orthogonal=orthogonal)
        ended.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    plain, found = ended
    assert torch.equal(found["b"], plain["b"]) and torch.equal(found["c"], values["c"])
    step = orthogonalized(flat.view(0.19 * gradient, "a"))  # the mean of one gradient, one step ahead
    torch.testing.assert_close(found["a"], values["a"] - 0.1 * step, rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_share_orthogonal_updates(workers):
    shapes = {"a": (16, 4), "b": (5,), "c": (8, 8), "d": (4, 4), "e": (4, 12)}
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    flat = FlatParameters(parameters, set("acde"), turned=tuple("acde"))
    ahead = torch.randn(len(flat.weight), generator=torch.Generator().manual_seed(5))
    parts = [flat.orthogonal(ahead, k, workers) for k in range(workers)]
    assert torch.equal(sum(parts), flat.orthogonal(ahead))
    busy = [sum(bool(flat.view(part, name).any()) for name in "acde") for part in parts]
    assert sum(busy) == 4 and (min(busy) > 0) == (workers <= 4)
    assert torch.equal(flat.view(sum(parts), "b"), torch.zeros(5))


@pytest.mark.parametrize("parts", [1, 3])
def test_the_update_is_that_of_torch(parts):
    torch.manual_seed(0)
    shapes = {"a": (5, 3), "b": (7,), "c": (4, 2, 3)}
    start = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    theirs = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = torch.optim.AdamW(
        [{"params": [theirs["a"], theirs["c"]], "weight_decay": 0.1}, {"params": [theirs["b"]], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.99),
    )  # fmt: skip
    ours = [{name: nn.Parameter(value.clone()) for name, value in start.items()} for _ in range(parts)]
    flats = [FlatParameters(own, {"a", "c"}, parts=parts, part=k) for k, own in enumerate(ours)]
    constants = AdamW(beta1=0.9, beta2=0.99, weight_decay=0.1)
    for count in range(1, 6):
        for name, parameter in theirs.items():
            parameter.grad = torch.randn(shapes[name], dtype=torch.float64)
        optimizer.step()
        whole = torch.zeros_like(flats[0].gradient)
        for name, parameter in theirs.items():
            flats[0].view(whole, name).copy_(parameter.grad)
        for flat in flats:
            flat.update(whole[flat.own], constants, rate=0.01, count=count, decay=0.5)
        joined = torch.cat([flat.weight[flat.own] for flat in flats])
        for flat in flats:
            flat.weight.copy_(joined)
    for own in ours:
        for name, parameter in theirs.items():
            torch.testing.assert_close(own[name].data, parameter.data, rtol=1e-12, atol=1e-14)


def test_gradients_flow_into_the_flat_vector():
    layer = nn.Linear(3, 2)
    flat = FlatParameters(dict(layer.named_parameters()), {"weight"})
    layer(torch.ones(4, 3)).sum().backward()
    assert torch.equal(flat.view(flat.gradient, "bias"), torch.full((2,), 4.0))
    assert torch.equal(flat.view(flat.gradient, "weight"), torch.full((2, 3), 4.0))
    flat.weight.zero_()
    assert not layer.weight.any()


# ---- heads of a mixture ----


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
@settings(deadline=None)
def test_every_atom_has_its_slot(heads):
    owner = torch.tensor(heads)
    slots, slot_of = head_slots(owner, 5)
    assert torch.equal(slots.view(-1)[slot_of], torch.arange(len(owner)))
    assert torch.equal(slot_of // slots.shape[1], owner)


def test_own_heads_are_those_of_the_whole_stack():
    model = random_model()
    torch.manual_seed(1)
    scalars, gate = torch.randn(17, 16, dtype=torch.float64), torch.rand(17, dtype=torch.float64)
    numbers, head = torch.randint(1, 90, (17,)), torch.randint(0, 3, (17,))
    every = model.energy_stack(scalars, gate, numbers)
    own = model.energy_stack.own(scalars, gate, numbers, head, *head_slots(head, 3))
    torch.testing.assert_close(own, every[head, torch.arange(17)], rtol=1e-13, atol=1e-13)


# ---- objective ----


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    need_adios()
    data = make_datasets(tmp_path_factory.mktemp("objective") / "datasets", (20, 15, 10))
    recipe = recipe_of({}, [f"data.path={data}", "model.num_features=8", "model.num_layers=2", "model.head_width=8"])
    return recipe, prepare(recipe, 4.0)


def batch_of(heads, drawn):
    loader = Loader([head.select("train") for head in heads], 4.0, names=[head.spec.name for head in heads])
    made, _ = loader._maker[(drawn, None, True)]
    return made[0]


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
@pytest.mark.parametrize("uncertainty", [False, True])
def test_the_gradient_of_the_loss_is_its_derivative(heads, loss, uncertainty):
    recipe, found = heads
    model = build_model(recipe.model, found, 0).double()
    objective = Objective(ObjectiveRecipe(loss=loss, uncertainty=uncertainty), [1.0, 2.0, 0.5], "float64").double()
    if uncertainty:
        nn.init.normal_(objective.log_variance, std=0.3)
    batch = batch_of(found, Batch(head=np.array([0, 1, 2, 0]), index=np.array([0, 1, 2, 3])))
    inputs = model.inputs(batch.graph)
    labels = objective.labels(model, batch, torch.arange(3), 4)

    def value():
        return objective(model, inputs.edge_vector.detach().requires_grad_(), inputs, labels, True)

    total, parts = value()
    torch.testing.assert_close(parts.sum(), total.detach())
    assert parts.shape == (4, 3) and parts[2, 1] == 0 and (parts[:2, 1] != 0).all()  # molecules have energies alone
    total.backward()
    parameters = [*model.named_parameters(), *objective.named_parameters()]
    random = torch.Generator().manual_seed(3)
    for name, parameter in parameters:
        if parameter.grad is None or "share" in name or "condition" in name:
            continue
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=random)
        slope = float((parameter.grad * direction).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-6)
            ends.append(float(value()[0]))
            with torch.no_grad():
                parameter.add_(direction, alpha=-sign * 1e-6)
        assert abs((ends[0] - ends[1]) / 2e-6 - slope) < 1e-5 * max(1.0, abs(slope)), name


def test_missing_labels_do_not_count(heads):
    recipe, found = heads
    model = build_model(recipe.model, found, 0).double()
    objective = Objective(ObjectiveRecipe(), [1.0, 1.0, 1.0], "float64")
    batch = batch_of(found, Batch(head=np.array([2, 2]), index=np.array([0, 1])))
    labels = objective.labels(model, batch, torch.arange(3), 2)
    assert not labels.given[:, 1:].any() and not labels.force_weight.any() and not labels.stress_weight.any()
    inputs = model.inputs(batch.graph)
    loss, parts = objective(model, inputs.edge_vector.requires_grad_(), inputs, labels, False)
    assert parts.shape == (2, 1) and torch.isfinite(loss)


def test_loss_weights_stand_for_another_temperature(heads):
    recipe, found = heads
    sizes = np.array([len(head.sides["train"]) for head in found], float)
    assert loss_weights(found, recipe) == [1.0, 1.0, 1.0]
    other = recipe_of({}, [f"data.path={recipe.data.path}", "data.tau=0.5", "data.loss_tau=1.0"])
    expected = np.array([head.share for head in found]) * np.array(loss_weights(found, other))
    np.testing.assert_allclose(expected, sizes / sizes.sum())


def test_data_are_prepared_without_leaks(heads):
    _, found = heads
    for head in found:
        sides = {side: {head.dataset.record(int(k)).group for k in rows} for side, rows in head.sides.items()}
        assert not sides["train"] & sides["validation"] and not sides["train"] & sides["test"]
        assert sum(len(rows) for rows in head.sides.values()) + head.unseen == len(head.dataset)
        seen = set(head.spec.elements)
        for side in ("validation", "test"):
            for k in head.sides[side]:
                assert set(head.dataset[int(k)].get_chemical_symbols()) <= seen
        assert head.spec.elements and set(head.spec.elements) <= set(head.spec.reference_energies)


@pytest.mark.promise("R14", count=2)
@pytest.mark.parametrize("shared", ["join", "drop"])
def test_a_structure_of_several_groups_is_on_one_side(tmp_path, shared, tally):
    need_adios()
    frames = []
    for k in range(60):
        atoms = molecule("CH3OH")
        atoms.rattle(0.1, seed=k // 3 if k % 3 == 2 else 100 + k)  # every third group holds a structure of another
        for copy in (atoms, frames[-1].copy() if k % 3 == 1 else atoms):
            copy.info["group"] = f"g{k}"
            copy.calc = SinglePointCalculator(copy, energy=float(k))
            frames.append(copy)
    ase.io.write(tmp_path / "a.extxyz", frames)
    dataset = build(tmp_path / "data", file_tasks([tmp_path / "a.extxyz"]), HeadSpec(name="a"), processes=0)
    recipe = recipe_of({"data": {"path": str(tmp_path / "data"), "by": "group", "test": 0.3, "shared": shared}})
    (head,) = prepare(recipe, 4.0)
    sides = np.full(len(dataset), UNUSED)
    for number, side in enumerate(SIDES):
        sides[head.sides[side]] = number
    table = FrameTable()
    for record in dataset.records():
        table.add(record, record.group)
    drawn = draw({"a": table.groups}, by="group", test=0.3)
    assert table.leaks(table.sides(drawn)), "a test of nothing"
    tally.check(not table.leaks(sides), shared)
    if shared == "join":
        assert (sides != UNUSED).all() and (sides >= table.sides(drawn)).all()
    else:
        assert (sides == UNUSED).any() and np.array_equal(sides, np.where(sides == UNUSED, UNUSED, table.sides(drawn)))


# ---- schedule ----


def test_schedules():
    cosine = Schedule(OptimizerRecipe(learning_rate=1.0, final_learning_rate=0.1, warmup=10), 110)
    assert cosine.rate(0) == 0.1 and cosine.rate(9) == 1.0 and cosine.rate(10) == 1.0
    assert abs(cosine.rate(60) - 0.55) < 1e-12 and abs(cosine.rate(110) - 0.1) < 1e-12
    recipe = OptimizerRecipe(learning_rate=1.0, final_learning_rate=0.1, schedule="trapezoid", warmup=10, fall=50)
    assert [Schedule(recipe, 110).rate(step) for step in (4, 10, 60, 85, 110)] == [0.5, 1.0, 1.0, 0.55, 0.1]
    plateau = Schedule(OptimizerRecipe(learning_rate=1.0, schedule="plateau", warmup=0, patience=2), 100)
    for step, value in enumerate((3.0, 2.0, 2.5, 2.5, 1.0)):
        plateau.validated(step, value)
    assert plateau.rate(5) == 0.5 and plateau.best == 1.0 and plateau.failures == 0
    again = Schedule(plateau.recipe, 100)
    again.restore(plateau.state())
    assert again.state() == plateau.state() and again.rate(5) == 0.5


# ---- what a run costs ----


def test_counters_of_energy_come_round(tmp_path):
    """Those of packages alone, without their parts; each counts to a number of its own and begins again."""
    counts = {"intel-rapl:0": (900, 999), "intel-rapl:0:0": (5, 999), "intel-rapl:1": (10_000_000, 50_000_000),
              "intel-rapl:2": (7, 99)}  # fmt: skip

    def write(**now):
        for zone, (count, span) in (counts | now).items():
            (tmp_path / zone).mkdir(exist_ok=True)
            (tmp_path / zone / "energy_uj").write_text(f"{count}\n")
            (tmp_path / zone / "max_energy_range_uj").write_text(f"{span}\n")

    write()
    (tmp_path / "intel-rapl:2" / "name").write_text("psys\n")
    packages = Packages(tmp_path)
    assert packages.joules() == 0.0
    write(
        **{
            "intel-rapl:0": (100, 999),
            "intel-rapl:0:0": (700, 999),
            "intel-rapl:1": (13_000_000, 50_000_000),
            "intel-rapl:2": (60, 99),
        }
    )
    assert packages.joules() == pytest.approx(3.0002)
    assert packages.joules() == pytest.approx(3.0002)
    assert Packages(tmp_path / "none").joules() is None


@pytest.mark.parametrize(
    "members, machine, parts",
    [
        ([0, 1, 2, 3], 4, 4),
        ([0, 1, 2, 3, 4, 5], 4, 2),
        ([0, 1, 2], 4, 3),
        ([0, 1, 2, 3, 4], 4, 1),
        ([0, 1, 2, 3], 2, 2),
    ],
)
def test_parameters_are_cut_among_those_of_a_machine(members, machine, parts):
    class Those:
        rank, local_world = 0, machine

        def group(self, ranks):
            return tuple(ranks)

    found = share(Those(), [members], "replica")
    assert found.parts == parts and found.copies == len(members) // parts
    assert len({rank // machine for rank in found.part_group}) == 1


# ---- processes ----


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
         Place(launcher="torchrun", rank=3, world=4, local_rank=1, local_world=2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
         Place(launcher="mpirun", rank=1, world=2, local_rank=1, local_world=2)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Place(launcher="mpirun", rank=0, world=2, local_rank=0, local_world=2)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
          "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "PMI_RANK": "5", "PMI_SIZE": "8"},
         Place(launcher="mpirun" if find_spec("mpi4py") else "srun", rank=5, world=8, local_rank=1, local_world=4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"},
         Place(launcher="mpirun", rank=1, world=2, local_rank=1, local_world=2)),  # in a script of sbatch
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"},
         Place(launcher="mpirun", rank=1, world=2, local_rank=1, local_world=2)),  # in a shell by srun --pty
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "11", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
          "SLURM_NODEID": "2", "SLURM_STEP_ID": "3"}, Place(launcher="srun", rank=9, world=11, local_rank=1, local_world=3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"},
         Place(launcher="srun", local_world=1)),  # a shell by srun --pty
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Place()),
    ],
)  # fmt: skip
def test_launchers_are_recognised(variables, expected):
    assert discover(variables) == expected


def test_nonsense_of_a_launcher_is_an_error():
    local = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "(x2)"}
    for variables in ({"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, local):
        with pytest.raises(ConfigError, match="torchrun"):
            discover(variables)
