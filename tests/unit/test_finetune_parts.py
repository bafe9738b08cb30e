"""What fine-tuning is made of: adapters, rates of parts, nearest heads, reference energies, old heads, strategies."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from finetuning import HEAD, molecules, relabelled, words, write
from support import random_model

from gfm_calc import GFMCalculator
from gfm_calc.benchmarks.finetune_tasks import load_task, task_names
from gfm_calc.checkpoint import load_model, subset
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.schema import Record
from gfm_calc.errors import ConfigError
from gfm_calc.finetune import strategy
from gfm_calc.finetune.combine import combine
from gfm_calc.finetune.exemplars import exemplars
from gfm_calc.finetune.forgetting import measure
from gfm_calc.finetune.nearest import fit_references, predictions, rank_heads
from gfm_calc.finetune.readout import FittedHead
from gfm_calc.finetune.replay import labelled, structures
from gfm_calc.finetune.setup import _beginning_of
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.train.adapters import AdaptedLinear, add_adapters, merge_adapters
from gfm_calc.train.flat import AdamW, FlatParameters
from gfm_calc.train.models import rates
from gfm_calc.train.recipe import DataRecipe, StartRecipe, recipe_of, to_toml

OFFSETS = {"C": -700.0, "H": 3.25, "O": 42.0}


def copy_of(model):
    return subset(model, list(model.specs)).to(model.dtype)


@pytest.fixture(scope="module")
def small():
    return load_model("gfm-small")


@pytest.fixture(scope="module")
def records():
    """Labels of gfm-small's head with other reference energies: nothing is left of them when these are fitted."""
    frames = [*molecules(12), *(relabelled(a) for a in molecules(4, seed=7))]
    extra = [molecule(name) for name in ("H2O", "CH4", "CO2", "C2H6", "H2")]
    from finetuning import labelled as with_labels

    found = []
    for k, atoms in enumerate([*frames, *with_labels(extra)]):
        shift = sum(OFFSETS[s] for s in atoms.get_chemical_symbols())
        found.append(Record.from_atoms(relabelled(atoms, energy=lambda e, d=shift: e + d), frame=k))
    return found


def test_adapters_change_nothing_at_first_and_merge_to_the_same_bits(model):
    adapted = copy_of(model)
    batch = GraphBatch.from_graphs([AtomicGraph.build(molecule("CH3CH2OH"), model.config.cutoff)])
    add_adapters(adapted.encoder, 4, seed=0)
    head = model.energy_heads[0]
    before, now = (m.predict(batch, [head])[head] for m in (model, adapted))
    assert torch.equal(before.energy, now.energy) and torch.equal(before.forces, now.forces)
    layers = [m for m in adapted.modules() if isinstance(m, AdaptedLinear)]
    assert len(layers) == sum(isinstance(m, torch.nn.Linear) for m in model.encoder.modules())
    for layer in layers:
        torch.nn.init.normal_(layer.up, std=0.1)
    learnt = adapted.predict(batch, [head])[head]
    merge_adapters(adapted.encoder)
    merged = adapted.predict(batch, [head])[head]
    assert not torch.equal(learnt.forces, before.forces) and torch.equal(learnt.forces, merged.forces)
    assert set(adapted.state_dict()) == set(model.state_dict())


def test_rates_fall_with_the_distance_from_the_heads(model):
    found = rates(model, StartRecipe(model="any", encoder_rate=0.5, layer_decay=0.5))
    assert found["embedding.element.weight"] == 0.125 and found["encoder.messages.0.source.0.weight"] == 0.25
    assert found["encoder.messages.1.source.0.weight"] == 0.5 and "energy_stack.hidden" not in found
    of_properties = {
        name: rate
        for name, rate in rates(random_model(properties=True), StartRecipe(model="any", encoder_rate=0.5)).items()
        if name.startswith("properties.")
    }
    parts = [f"properties.{k}.landmarks.{part}" for k in (0, 1) for part in ("centres", "inverse_lengths", "output")]
    assert of_properties == dict.fromkeys(parts, 0.0)
    assert rates(model, StartRecipe()) == {} and rates(model, StartRecipe(model="any")) == {}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_rate_of_zero_leaves_the_weights_and_a_half_moves_them_half_as_far(parts):
    start = {name: torch.arange(1.0, 33.0) for name in ("still", "slow", "whole")}
    moved = {name: [] for name in start}
    for part in range(parts):
        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        flat = FlatParameters(parameters, {"still", "slow"}, parts=parts, part=part, rates={"still": 0.0, "slow": 0.5})
        gradient = torch.full_like(flat.weight, 0.3)[flat.own]
        flat.update(gradient, AdamW(beta1=0.9, beta2=0.99, weight_decay=0.0), rate=1e-2, count=1, decay=0.0)
        for name in start:
            moved[name].append((parameters[name].detach() - start[name]).abs())
    total = {name: torch.stack(values).sum(dim=0) for name, values in moved.items()}
    assert not total["still"].any()
    assert torch.allclose(2 * total["slow"], total["whole"], atol=1e-5) and total["whole"].min() > 9e-3


def test_the_nearest_head_is_the_one_that_made_the_labels(small, records):
    ranking = rank_heads(small, records)
    assert ranking[0].head == HEAD and ranking[0].forces < 1e-6 and ranking[0].energy < 1e-6
    assert all(one.score > ranking[0].score for one in ranking[1:])


def test_reference_energies_are_found_again(small, records):
    spec = small.specs[HEAD]
    pairs = [(record, row[HEAD]) for record, row in predictions(small, [HEAD], records, forces=False)]
    fit = fit_references(pairs, spec.reference_energies)
    assert fit.is_unique
    for symbol, offset in OFFSETS.items():
        assert fit.energies[symbol] == pytest.approx(spec.reference_energies[symbol] + offset, abs=1e-4)


def test_old_heads_keep_their_bits_where_the_encoder_did_not_move():
    start = random_model(dtype=torch.float32, properties=True)
    trained = random_model(dtype=torch.float32, heads=("mine",))
    model = combine(trained, start, ["second", "gap", "dipoles"], cards=start.specs, note="")
    assert list(model.specs) == ["second", "gap", "dipoles", "mine"]
    assert model.specs["second"] == start.specs["second"]
    row, other = model.energy_heads.index("second"), start.energy_heads.index("second")
    for name, tensor in model.energy_stack.state_dict().items():
        assert torch.equal(tensor[row], start.energy_stack.state_dict()[name][other]), name
        assert torch.equal(tensor[model.energy_heads.index("mine")], trained.energy_stack.state_dict()[name][0])
    for mine, theirs in ((0, 0), (1, 3)):
        first, second = model.properties[mine].state_dict(), start.properties[theirs].state_dict()
        assert all(torch.equal(first[name], second[name]) for name in second)
    assert torch.equal(model.embedding.element.weight, trained.embedding.element.weight)


def test_replayed_structures_are_of_the_head_and_always_the_same(small):
    for name in ("gfn2-xtb", "distilled-7net-l3i5", "pbe-vasp"):
        spec = small.specs[name]
        first, again, other = (structures(spec, 10, seed) for seed in (0, 0, 1))
        assert first == again and first != other and len(first) == 10
        assert all(set(a.get_chemical_symbols()) <= set(spec.elements) for a in first)
        assert all(a.pbc.all() for a in first) or "molecule" in spec.periodicity
    record = labelled(small, "gfn2-xtb", 3, 0)[0]
    calculator = GFMCalculator(small, head="gfn2-xtb")
    atoms = record.structure()
    atoms.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(record.energy, abs=1e-4)


def test_forgetting_is_nothing_for_the_same_model_and_seen_in_another(small):
    other = copy_of(small)
    with torch.no_grad():
        other.encoder.updates[0].mix.weight.mul_(1.05)
    same, moved = (measure(small, model, ["gfn2-xtb"])[0] for model in (small, other))
    assert same.forces == same.energy == same.loss == 0.0
    assert (
        moved.forces > 1e-3
        and moved.loss > 0
        and moved.structures == len(exemplars(small.specs["gfn2-xtb"], "test")) >= 30
    )


def test_strategies_follow_the_number_of_labels():
    assert strategy.choose(8, 224).name == "heads" and not strategy.choose(8, 224).replay
    assert strategy.choose(50, 1400).name == "full" and strategy.choose(50, 1400).replay
    naive = strategy.choose(50, 1400, naive=True)
    assert naive.layer_decay == 1.0 and not naive.replay
    assert not strategy.choose(50, 1400, keeps_heads=False).replay
    methods = [strategy.choose(50, 1400, wanted=name, keeps_heads=False).method for name in strategy.NAMES]
    assert methods == ["adamw", "adamw", "muon"]  # which has not been tried on adapters
    assert strategy.choose(50, 1400).method == "muon"
    assert strategy.choose(50, 50, start=strategy.RANDOM, naive=True).method == "adamw"
    assert strategy.choose(100, 100, start=strategy.RANDOM).name == "heads"
    assert strategy.choose(100, 100, start=strategy.FITTED).name == "full"
    few = strategy.choose(50, 50, start=strategy.FITTED)
    many = strategy.choose(5000, 5000, start=strategy.FITTED, wanted="heads")
    assert few.name == many.name == "heads" and few.learning_rate < many.learning_rate
    assert few.steps < 1500 < many.steps  # many labels are worth more than the fit
    sums, few, means, naive = (
        strategy.choose(n, n, start=begins, naive=naive, keeps_heads=False)
        for n, begins, naive in (
            (1000, strategy.FITTED, False), (200, strategy.FITTED_MEAN, False), (1000, strategy.FITTED_MEAN, False),
            (1000, strategy.FITTED_MEAN, True),
        )
    )  # fmt: skip
    assert sums.learning_rate == few.learning_rate == naive.learning_rate < means.learning_rate
    old = [strategy.choose(n, n, start=strategy.FITTED_MEAN).learning_rate for n in (200, 1000)]
    assert old[0] == old[1] < sums.learning_rate  # old heads would forget
    assert strategy.choose(50, 50, start=strategy.FITTED_MEAN).name == "heads"
    rates = [strategy.choose(n, 10**6, keeps_heads=False).learning_rate for n in (10, 100, 1000)]
    assert rates == sorted(set(rates))  # a handful of frames is soon learnt by heart
    steps = [strategy.choose(n, 10**6).steps for n in (10, 100, 1000, 10_000, 100_000)]
    assert steps == sorted(steps) and steps[-1] <= 60_000
    with pytest.raises(ConfigError, match="did you mean 'adapters'"):
        strategy.choose(8, 224, wanted="adapter")


@pytest.mark.parametrize(
    "about, left_out, begins",
    [
        ({"kind": "energy"}, None, strategy.AS_ANOTHER),
        ({"kind": "vector", "quantity": "p", "unit": "D"}, None, strategy.RANDOM),
        ({"kind": "scalar", "extensive": False, "quantity": "p", "unit": "D"}, None, strategy.RANDOM),
        ({"kind": "scalar", "extensive": False, "quantity": "p", "unit": "D"}, 0.3, strategy.FITTED_MEAN),
        ({"kind": "scalar", "extensive": False, "quantity": "p", "unit": "D"}, 0.1, strategy.FITTED),
        ({"kind": "scalar", "extensive": False, "quantity": "p", "unit": "D"}, math.nan, strategy.FITTED_MEAN),
        ({"kind": "scalar", "extensive": True, "quantity": "p", "unit": "D"}, 0.3, strategy.FITTED),
        ({"kind": "class", "extensive": False, "quantity": "p"}, 0.3, strategy.FITTED),
    ],
)
def test_how_a_head_begins(about, left_out, begins):
    fitted = None if left_out is None else FittedHead(Path(), "id", {}, 1.0, 0, left_out)
    assert _beginning_of(HeadSpec(name="new", **about), fitted, spread=1.0) == begins


def test_old_heads_repeat_themselves_more_often_where_they_are_good(small):
    errors = {
        name: strategy.OldHead(192, 0.1 * error, error)
        for name, error in (("good", 0.05), ("middle", 0.1), ("bad", 0.2), ("hopeless", 5.0), ("unknown", math.nan))
    }
    recipe = strategy.recipe_of(
        strategy.choose(50, 1400), model=("m", "id"), data=DataRecipe(), config=small.config, head="new", nearest="good",
        old_heads=errors, dtype="float32",
    )  # fmt: skip
    heads = {head.name: head for head in recipe.heads}
    assert heads["good"].share > heads["middle"].share > heads["bad"].share > heads["hopeless"].share > 0
    assert heads["good"].weight > heads["middle"].weight > heads["bad"].weight > heads["hopeless"].weight > 0
    assert sum(heads[name].share for name in errors) == pytest.approx(strategy.REPLAY_SHARE)
    pull = sum(heads[name].share * heads[name].weight for name in errors)
    assert pull == pytest.approx(strategy.REPLAY_SHARE * strategy._REPLAY_WEIGHT)  # whatever the errors are
    assert heads["new"].share == pytest.approx(1 - strategy.REPLAY_SHARE) and heads["new"].weight == 1.0
    told = {
        "much": strategy.OldHead(384, 0.01, 0.1),
        "little": strategy.OldHead(192, 0.01, 0.1),
        "sharp": strategy.OldHead(192, 0.005, 0.1),
    }
    stakes = strategy._stakes(told)
    assert stakes["much"][0] == pytest.approx(2 * stakes["little"][0]), "a head with more to repeat is drawn more often"
    assert math.prod(stakes["much"]) == pytest.approx(math.prod(stakes["little"]))
    assert math.prod(stakes["sharp"]) > math.prod(stakes["little"])
    most = strategy._stakes(
        {name: strategy.OldHead(count, 0.01, 0.1) for name, count in (("few", 416), ("all", 832), ("more", 1600))}
    )
    assert most["more"] == most["all"] and most["all"][0] == pytest.approx(2 * most["few"][0])
    alone = strategy.recipe_of(
        strategy.choose(50, 1400, keeps_heads=False), model=("m", "id"), data=DataRecipe(), config=small.config, head="new",
        nearest=None, old_heads={}, dtype="float32",
    )  # fmt: skip
    assert [(head.name, head.share) for head in alone.heads] == [("new", None)]


def test_a_recipe_with_a_start_is_read_back():
    recipe = recipe_of(
        {"start": {"model": "gfm-small", "adapter_rank": 4}, "heads": [{"name": "a", "start": "gfn2-xtb"}]}
    )
    import tomllib

    assert recipe_of(tomllib.loads(to_toml(recipe))) == recipe
    with pytest.raises(ConfigError, match=r"head a: start needs start.model"):
        recipe_of({"heads": [{"name": "a", "start": "gfn2-xtb"}]})


@pytest.mark.parametrize("name", ["heads", "adapters", "full"])
def test_every_strategy_gives_a_calculator(name, tmp_path, small):
    atom = Atoms("H")
    frames = molecules(20)
    mean = np.mean([a.get_potential_energy() for a in frames])
    different = [relabelled(a, energy=lambda e: mean + 1.3 * (e - mean), forces=lambda f: 1.3 * f) for a in frames]
    frames = [*different, relabelled(molecules(1)[0])[:0] or _free_atom(atom)]
    out = tmp_path / "out"
    more = ["--steps", "12", "--strategy", name, "--keep-heads", "gfn2-xtb,mp2-avtz", "--accept", "energy-unit"]
    assert main(words(write(tmp_path / "frames.extxyz", frames), out, *more)) == 0
    found = json.loads((out / "errors.json").read_text())
    assert found["strategy"]["name"] == name and found["structures"]["train"] > 10
    calculator = GFMCalculator(out / "model", head="mine", device="cpu")
    assert list(calculator.heads) == ["gfn2-xtb", "mp2-avtz", "mine"]
    atom.calc = calculator
    assert atom.get_potential_energy() == -13.6  # as calculated, exactly
    old = GFMCalculator("gfm-small", head="gfn2-xtb", device="cpu")
    atoms = molecule("CH3OH")
    atoms.calc = old
    before = atoms.get_forces()
    calculator.head = "gfn2-xtb"
    atoms.calc = calculator
    moved = np.abs(atoms.get_forces() - before).max()
    assert (moved == 0) == (name == "heads")
    assert bool(found["forgetting"]) == (name != "heads") and not found["warning"]


def _free_atom(atom):
    from ase.calculators.singlepoint import SinglePointCalculator

    found = atom.copy()
    found.calc = SinglePointCalculator(found, energy=-13.6, forces=np.zeros((1, 3)))
    return found


def test_downstream_tasks_are_sound_data():
    assert {"acac", "mlearn", "rmd17"} <= set(task_names())
    for name in task_names():
        task = load_task(name)
        assert task.cases and task.sizes and task.citation and (task.published or task.note)
    mace = load_task("rmd17").published[0]
    assert mace.size == 50 and np.mean(list(mace.values.values())) == pytest.approx(24.8, abs=0.1)
    with pytest.raises(ConfigError, match="did you mean 'rmd17'"):
        load_task("md17")
