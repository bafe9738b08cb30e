"""Properties that are never negative and often zero: found by their labels, fitted as such, and never predicted negative."""

import json

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write
from finetuning import words
from test_finetune_readout import every, said, structures

from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec, ModelConfig, to_mapping
from gfm_calc.data.build import build_flat
from gfm_calc.data.loader import Loader
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.store import Selection, open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError
from gfm_calc.finetune import mixing, stiff
from gfm_calc.finetune.described import describe
from gfm_calc.finetune.readout import fit_readout
from gfm_calc.model import GFMModel
from gfm_calc.train.objective import Objective
from gfm_calc.train.preparation import prepare
from gfm_calc.train.properties import is_nonnegative
from gfm_calc.train.recipe import ObjectiveRecipe, recipe_of


@pytest.fixture(scope="module")
def model():
    return load_model("gfm-small")


def dataset_of(place, frames, labels, **card):
    for atoms, label in zip(frames, labels):
        atoms.info["p"] = float(label)
    write(place / "frames.extxyz", frames)
    spec = HeadSpec(name="mine", **({"kind": "scalar", "extensive": False, "quantity": "p", "unit": "eV"} | card))
    build_flat(place / "data", file_tasks([place / "frames.extxyz"], options=ReadOptions(property_key="p")), spec)
    return open_dataset(place / "data")


@pytest.mark.parametrize(
    "labels, card, wanted",
    [([0] * 5 + [1], {}, True), ([0] * 4 + [1, 2], {}, False), ([0] * 5 + [1] * 50, {}, False),
     ([0] * 6 + [-1e-9, 3], {}, False), ([0] * 6 + [3], {"extensive": True}, False), ([0] * 6 + [1], {"kind": "class"}, False)],
)  # fmt: skip
def test_which_properties_are(labels, card, wanted, tmp_path):
    dataset = dataset_of(tmp_path, structures(len(labels)), labels, **card)
    assert is_nonnegative(dataset.head, dataset, np.arange(len(labels))) == wanted


def gaps_of(frames) -> np.ndarray:
    """Half of them zero, and what the composition explains where they are not."""
    carbon = np.array([np.mean(atoms.numbers == 6) for atoms in frames])
    return np.maximum(carbon - np.median(carbon), 0)


def test_zeros_say_no_more_than_that(model, tmp_path, monkeypatch):
    """Fits to what only looks like a kink find the plane behind it."""
    frames = structures(60)
    dataset = dataset_of(tmp_path, frames, gaps_of(frames))
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"], nonnegative=True)
    random = np.random.default_rng(1)
    truth = seen.layers @ (random.normal(size=seen.layers.shape[1]) / seen.layers.std(axis=0))
    truth = (truth - np.median(truth)) / truth.std()
    seen = seen._replace(labels=np.maximum(truth, 0))
    found = {}
    for moves in (0, 3):
        monkeypatch.setattr(mixing, "_MOVES", moves)
        found[moves] = mixing.mix(seen, is_sum=False, compares=True, tames=True)
    assert found[3].error(seen.judged) < 0.9 * found[0].error(seen.judged)
    says = seen.labels - found[3].residual
    assert says.min() == 0.0 and (says[truth < -0.5] == 0.0).mean() > 0.6


def test_nothing_negative_is_said(model, tmp_path):
    frames = structures(60)
    dataset = dataset_of(tmp_path, frames, gaps_of(frames))
    found = fit_readout(model, dataset, *every(dataset))
    assert found.nonnegative and found.error < 0.5 * found.before
    assert said(model, dataset, found, structures(60, seed=1)).min() == 0.0


def test_the_loss_lets_zeros_be_said_to_be_less(tmp_path):
    """Of a zero that is said to be negative nothing is wrong; a label above zero that is said to be negative pulls."""
    frames = structures(4)
    dataset = dataset_of(tmp_path, frames, [0.0, 0.0, 2.0, 3.0])
    spec = HeadSpec(
        name="mine", kind="scalar", extensive=False, unit="eV", elements=("H", "C", "N", "O"), nonnegative=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GFMModel(ModelConfig(num_features=8, num_layers=2, num_radial=4), [spec])
    objective = Objective(ObjectiveRecipe(), [1.0], "float32")
    batch = next(iter(Loader([Selection(dataset, np.arange(4))], model.config.cutoff).once()))
    inputs = model.inputs(batch.graph)
    head = model.properties[0]
    pulls = {}
    for shift in (-50.0, 50.0):
        head.shift.fill_(shift)
        labels = objective.labels(model, batch, torch.tensor([0]), 4)
        loss, parts = objective(model, inputs.edge_vector.detach().requires_grad_(), inputs, labels, False)
        pulls[shift] = parts[:, -1] > 0
        bias = torch.autograd.grad(loss, head.net[2].bias)[0]
        assert torch.sign(bias) == (-1 if shift < 0 else 1)
    assert pulls[-50.0].tolist() == [False, False, True, True] and pulls[50.0].all()


def test_crystals_that_are_often_zero_have_no_first_guess(model, tmp_path):
    """What a guess leaves of zeros would not tell that they are zeros."""
    random = np.random.default_rng(0)
    frames = [bulk("MgO", "rocksalt", a=random.uniform(4.0, 4.5)) for _ in range(24)]
    volumes = np.array([atoms.get_volume() for atoms in frames])
    dataset = dataset_of(tmp_path, frames, np.maximum(volumes - np.median(volumes), 0))
    sides = {"train": np.arange(24), "validation": np.arange(0), "test": np.arange(0)}
    lines: list[str] = []
    assert stiff.begin_guess(tmp_path / "guess", model, dataset, sides, np.arange(24), lines.append) is None
    assert lines == ["first guess: none, for a property that is never negative and often 0"]


def test_zeros_that_are_wild_stay_tamed(model, tmp_path):
    """0 for "unknown", which was moved up: it stays there while the other zeros go where a fit puts them."""
    frames = structures(12)
    dataset = dataset_of(tmp_path, frames, np.arange(12.0))
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"], nonnegative=True)
    seen = seen._replace(labels=np.array([0.0] * 6 + [1.0] * 6))
    tamed = np.array([3.0] + [0.0] * 5 + [1.0] * 6)  # the first one was wild
    asked = []

    def mixed(labels):
        asked.append(labels)
        said = np.where(labels == 0, -0.5 / len(asked), labels) + 0.1 / len(asked)
        return mixing.Mixed([], [], [1.0], None, seen.labels - said, labels, labels == seen.labels)

    found = mixing._above_the_least(mixed(tamed), seen, mixed)
    assert len(asked) > 2 and all(labels[0] == 3.0 for labels in asked)
    assert asked[1][1:6] == pytest.approx(-0.4) and found.calm.tolist() == [False] + [True] * 11


def trained(place, labels, start=None):
    """The head that `gfm train` would begin with."""
    place.mkdir(exist_ok=True)
    dataset = dataset_of(place, structures(len(labels)), labels)
    values = {"model": {"num_features": 8, "num_layers": 2, "num_radial": 4}, "data": {"validation": 0.0, "test": 0.0}}
    if start is not None:
        values |= {"model": to_mapping(start.config), "heads": [{"name": "mine", "start": "mine"}]}
        values |= {"start": {"model": str(place.parent / "start")}}
    recipe = recipe_of(values, [f"data.path={dataset.directory}"])
    return prepare(recipe, 5.0)[0]


def test_training_finds_it_and_keeps_it(tmp_path):
    """Also of a head that goes on with labels of which few are zero; labels below zero are refused then."""
    assert trained(tmp_path / "a", [0.0] * 6 + [1.0] * 6).spec.nonnegative
    assert not trained(tmp_path / "b", [0.0] * 2 + [1.0] * 6).spec.nonnegative
    with torch.random.fork_rng(devices=[]):
        spec = HeadSpec(
            name="mine", kind="scalar", extensive=False, unit="eV", elements=("H", "C", "N", "O"), nonnegative=True
        )
        start = GFMModel(ModelConfig(num_features=8, num_layers=2, num_radial=4), [spec])
    save_model(start, tmp_path / "start")
    assert trained(tmp_path / "c", [0.0] * 2 + [1.0] * 6, start).spec.nonnegative
    with pytest.raises(ConfigError, match=r"head mine: start: is never negative there, .* label is -1: begin anew"):
        trained(tmp_path / "d", [-1.0, *[1.0] * 6], start)


def test_the_command_says_so_and_predicts_nothing_negative(model, tmp_path, capsys):
    frames = structures(40)
    for atoms, value in zip(frames, gaps_of(frames)):
        atoms.info["gap"] = float(value)
    path, out = tmp_path / "gaps.extxyz", tmp_path / "out"
    write(path, frames)
    asked = ("--property", "gap", "--kind", "intensive", "--unit", "eV", "--accept", "duplicates", "--steps", "3")
    assert main(words(path, out, *asked, "--strategy", "full", "--keep-heads", "none")) == 0
    assert "never negative" in capsys.readouterr().out
    assert load_model(out / "model").specs["mine"].nonnegative
    assert main(["heads", str(out / "model"), "mine"]) == 0 and "gap in eV, never negative" in capsys.readouterr().out
    rows = tmp_path / "rows.jsonl"
    assert main(["predict", str(path), "-o", str(rows), "--model", str(out / "model"), "--head", "mine"]) == 0
    values = [json.loads(line)["value"] for line in rows.read_text().splitlines()]
    assert min(values) == 0.0 < max(values)
