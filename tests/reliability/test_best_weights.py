"""The model of a run holds the weights of its best validation, also where the run was cut off and went on."""

import json

import numpy as np
import pytest
import torch
from training import Job, argv, make_datasets

from gfm_calc import load_model
from gfm_calc.cli import main

# A learning rate that stays high: the validation errors jump, and the last are not the least.
JUMPY = ("optimizer.schedule=constant", "optimizer.learning_rate=0.05", "optimizer.ema=0.0", "run.validate_every=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("best") / "datasets", (20, 15, 12))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(argv(data, run, *JUMPY)) == 0
    return run


def validations(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "validation" in line}


def weights(run):
    return load_model(run / "model").state_dict()


def test_the_weights_are_those_of_the_best_validation(whole, data, tmp_path):
    found = validations(whole)
    scores = {step: line["score"] for step, line in found.items()}
    best = min(scores, key=scores.get)
    assert best != max(scores) and best > 2, "no test of anything: the last validation was the best"
    assert main(argv(data, tmp_path / "short", *JUMPY, f"run.steps={best}", "run.keep_best=false")) == 0
    short = weights(tmp_path / "short")
    assert all(torch.equal(tensor, short[name]) for name, tensor in weights(whole).items())
    provenance = next((whole / "model").glob("provenance-*.json"))
    assert json.loads(provenance.read_bytes())["step"] == best


def test_without_it_the_weights_are_the_last(whole, data, tmp_path):
    assert main(argv(data, tmp_path / "run", *JUMPY, "run.keep_best=false")) == 0
    last = weights(tmp_path / "run")
    assert any(not torch.equal(tensor, last[name]) for name, tensor in weights(whole).items())


def test_the_test_errors_are_those_of_the_best_weights(whole):
    everything = json.loads((whole / "errors.json").read_text())
    told, found = everything["test"], validations(whole)
    assert everything["validation"] == min(found.values(), key=lambda line: line["score"])["validation"]
    card = load_model(whole / "model").specs["crystals"]
    assert card.test_errors["forces_mae_mev_per_a"] == pytest.approx(told["crystals"]["forces_mae_mev_per_a"], rel=1e-4)
    from gfm_calc.data.loader import Loader
    from gfm_calc.train.evaluation import ErrorSums
    from gfm_calc.train.preparation import load_preparation

    model, sums = load_model(whole / "model"), ErrorSums(["crystals"])
    head = next(h for h in load_preparation(whole / "data") if h.spec.name == "crystals")
    sums.add(model, Loader([head.select("test")], model.config.cutoff).once(), "crystals")
    assert np.isclose(
        sums.table()["crystals"]["forces_mae_mev_per_a"], told["crystals"]["forces_mae_mev_per_a"], rtol=1e-4
    )


@pytest.mark.promise("R1", count=1)
def test_a_run_that_was_killed_keeps_its_best(whole, data, tmp_path):
    run = tmp_path / "run"
    job = Job(argv(data, run, *JUMPY), fault=("at_step", 21, "kill"), log=tmp_path / "log")
    assert job.wait() == [-9], job.said()
    goes_on = Job(argv(data, run, *JUMPY, flags=["--resume"]), log=tmp_path / "log2")
    assert goes_on.wait() == [0], goes_on.said()
    first, second = weights(whole), weights(run)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
