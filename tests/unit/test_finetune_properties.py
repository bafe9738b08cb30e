"""Properties from the file to the prediction: what is read, learnt, saved and shown, and what is refused."""

import json
import sys
import time
import tomllib
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from finetuning import molecules, relabelled, words, write
from labelled import difference, need_adios
from support import batch_of, random_model
from training import argv

from gfm_calc import GFMCalculator, Predictor, load_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec, to_mapping
from gfm_calc.data.build import build_flat
from gfm_calc.data.loader import Loader
from gfm_calc.data.readers import ReadOptions, read
from gfm_calc.data.store import Selection, open_dataset
from gfm_calc.data.tasks import FileTask
from gfm_calc.errors import ConfigError, HeadError
from gfm_calc.finetune import mixing, plan, run, setup
from gfm_calc.finetune.plan import START
from gfm_calc.ranks import roc_auc, roc_curve
from gfm_calc.train.evaluation import ErrorSums
from gfm_calc.train.models import starting_model
from gfm_calc.train.objective import Objective
from gfm_calc.train.preparation import prepare
from gfm_calc.train.properties import start_of
from gfm_calc.train.recipe import ObjectiveRecipe, recipe_of

# --kind -> (the label's name in the file, kind of the head, whether it is a sum)
KINDS = {
    "extensive": ("weight", "scalar", True), "intensive": ("reach", "scalar", False), "class": ("odd", "class", False),
    "vector": ("pull", "vector", True), "atom-scalar": ("crowd", "atom_scalar", True),
    "atom-vector": ("push", "atom_vector", True),
}  # fmt: skip
NAMES = ("CH3OH", "H2O", "CH4", "NH3", "C2H6")


def structures(count=40):
    """Molecules, stretched and rattled, with labels of every kind that their geometry decides."""
    random = np.random.default_rng(0)
    found = []
    for k in range(count):
        atoms = molecule(NAMES[k % 5])
        atoms.positions *= random.uniform(0.9, 1.25)
        atoms.rattle(0.03, seed=k)
        distance = atoms.get_all_distances() + 10 * np.eye(len(atoms))
        arm = atoms.positions - atoms.positions.mean(axis=0)
        atoms.info.update(
            weight=float(atoms.get_masses().sum()), reach=float(distance.min(axis=1).mean()), odd=bool(len(atoms) > 4),
            pull=(arm * atoms.numbers[:, None]).sum(axis=0), group=f"g{k}",
        )  # fmt: skip
        atoms.arrays |= {"crowd": atoms.numbers + np.exp(-distance).sum(axis=1), "push": arm}
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("properties") / "frames.extxyz"
    ase.io.write(path, structures())
    return path


def dataset_of(path, folder, kind):
    key, of_head, extensive = KINDS[kind]
    card = HeadSpec(name="mine", kind=of_head, extensive=extensive, quantity=key, unit="u")
    return build_flat(folder, [FileTask(paths=(path,), options=ReadOptions(property_key=key))], card)


# ---- files and datasets ----


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_back_from_a_dataset(kind, path, tmp_path):
    wanted = list(read(path, options=ReadOptions(property_key=KINDS[kind][0])))
    dataset = dataset_of(path, tmp_path / "data", kind)
    assert not any(difference(a, b) for a, b in zip(dataset.records(), wanted, strict=True))
    assert not any(difference(dataset.record(k), record) for k, record in enumerate(wanted))
    assert dataset.summary["with_property"] == len(wanted) and dataset.summary["with_energy"] == 0
    batch = next(Loader([dataset], 4.5).once())
    given = batch.atom_values if "atom" in kind else batch.value
    label = np.concatenate([np.atleast_2d(r.atom_values if "atom" in kind else r.value) for r in wanted])
    np.testing.assert_array_equal(given.numpy()[:, : label.shape[1]], label)
    assert not torch.isfinite(batch.energy).any()


def test_a_structure_without_the_label_is_named(path, tmp_path):
    frames = structures(10)
    del frames[4].info["reach"]
    ase.io.write(tmp_path / "some.extxyz", frames)
    with pytest.raises(Exception, match=r"frame 4: no 'reach' \(--property-key\); there is .*weight"):
        list(read(tmp_path / "some.extxyz", options=ReadOptions(property_key="reach")))


# ---- where a head starts, and its loss ----


def test_a_sum_over_atoms_starts_at_its_elements(path, tmp_path):
    references, scale = start_of(*[(d := dataset_of(path, tmp_path / "data", "extensive")).head, d], np.arange(40))
    masses = {s: molecule("CH3OH").get_masses()[molecule("CH3OH").symbols.indices()[s][0]] for s in "CHO"}
    assert {s: references[s] for s in "CHO"} == pytest.approx(masses, abs=1e-6) and scale < 1e-4


def test_a_class_starts_at_its_odds(path, tmp_path):
    dataset = dataset_of(path, tmp_path / "data", "class")
    yes = sum(len(atoms) > 4 for atoms in structures())
    references, _ = start_of(dataset.head, dataset, np.arange(40))
    assert set(references.values()) == {np.log((yes + 1) / (41 - yes))}


def trainable(kind, dataset, scale=0.7):
    key, of_head, extensive = KINDS[kind]
    references = dict.fromkeys("CHNO", 0.3) if "scalar" in of_head or of_head == "class" else {}
    spec = HeadSpec(
        name="mine", kind=of_head, extensive=extensive, quantity=key, unit="u", elements=tuple("CHNO"),
        reference_energies=references,
    )  # fmt: skip
    start = random_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = type(start)(start.config, [start.specs["first"], spec]).double()
    model.properties[0].scale.fill_(scale)
    batch = next(Loader([dataset], model.config.cutoff).once())
    return model.requires_grad_(True), batch


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_property_is_what_the_formula_says(kind, path, tmp_path):
    model, batch = trainable(kind, dataset_of(path, tmp_path / "data", kind))
    objective = Objective(ObjectiveRecipe(property=3.0), [1.0, 2.0], "float64")
    labels = objective.labels(model, batch, torch.tensor([1]), 10)
    inputs = model.inputs(batch.graph)
    vectors = inputs.edge_vector.detach().requires_grad_()
    loss, parts = objective(model, vectors, inputs, labels, False)
    value = model.predict(batch.graph, ["mine"])["mine"].value
    atoms = batch.graph.ptr.diff().double()
    soft = 1e-6 if "vector" in kind else 0.0  # under the root of a length, as for forces

    def length(error):
        return (error.square().sum(dim=1) + soft).sqrt()

    if "atom" in kind:
        error = value.reshape(len(value), -1) - batch.atom_values[:, : value[0].numel()]
        each = length(error / 0.7)
        wanted = torch.stack([each[batch.graph.batch == k].mean() for k in range(len(atoms))])
    elif kind == "class":
        wanted = -torch.where(batch.value[:, 0] > 0.5, value, 1 - value).log()
    else:
        error = value.reshape(len(value), -1) - batch.value[:, : value[0].numel()]
        wanted = length(error / 0.7) / (atoms if kind == "extensive" else 1)
    torch.testing.assert_close(parts[:, 3], 3.0 * 2.0 / 10 * wanted, rtol=1e-5, atol=1e-6)
    assert not parts[:, :3].any() and loss.item() == pytest.approx(parts.sum().item())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.properties.parameters())
    assert model.encoder.messages[0].source[0].weight.grad.any() and not model.energy_stack.hidden.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_the_predictions(kind, path, tmp_path):
    dataset = dataset_of(path, tmp_path / "data", kind)
    model, batch = trainable(kind, dataset)
    sums = ErrorSums(["mine"], {"mine": model.specs["mine"].kind})
    sums.add(model, Loader([Selection(dataset, range(40))], model.config.cutoff, max_atoms=50).once(), "mine")
    found = sums.table()["mine"]
    value = model.predict(batch.graph, ["mine"])["mine"].value
    label = (batch.atom_values if "atom" in kind else batch.value)[:, : value[0].numel()].reshape(value.shape)
    if kind == "class":
        assert found["accuracy"] == ((value > 0.5) == (label > 0.5)).double().mean()
        assert found["brier"] == pytest.approx((value - label).square().mean().item())
    else:
        assert found["value_mae"] == pytest.approx((value - label).abs().mean().item())
        assert found["value_rmse"] == pytest.approx((value - label).square().mean().sqrt().item())
    assert found["frames"] == 40


def test_vectors_of_a_structure_turn_with_it():
    spec = HeadSpec(name="dipole", kind="vector", quantity="dipole", unit="e Å")
    start = random_model()
    with torch.random.fork_rng(devices=[]):
        model = type(start)(start.config, [spec]).double()
    atoms = molecule("CH3CH2OH")
    before = model.predict(batch_of(model, atoms), ["dipole"])["dipole"].value[0].numpy()
    turned = atoms.copy()
    turned.rotate(77, (1, 2, 3))
    after = model.predict(batch_of(model, turned), ["dipole"])["dipole"].value[0].numpy()
    same = atoms.copy()
    same.set_positions([before] * len(atoms))
    same.rotate(77, (1, 2, 3))
    np.testing.assert_allclose(after, same.positions[0], atol=1e-10)
    assert np.abs(before).max() > 1e-3


def test_the_area_under_the_curve_is_the_chance_of_a_right_order():
    random = np.random.default_rng(0)
    truth, scores = (random.random(60) < 0.4).astype(float), np.round(random.random(60), 1)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth == 1] for b in scores[truth == 0]]
    assert roc_auc(truth, scores) == pytest.approx(np.mean(pairs))
    false, true = roc_curve(truth, scores)
    assert sum((b - a) * (c + d) / 2 for (a, b), (c, d) in zip(pairwise(false), pairwise(true))) == pytest.approx(
        np.mean(pairs)
    )
    assert np.isnan(roc_auc(np.ones(3), np.arange(3.0)))


# ---- the command ----


def finetune(path, out, kind, start, *more):
    return main(
        words(path, out, "--from", str(start), "--property", KINDS[kind][0], "--kind", kind, "--unit", "u", *more)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_property_is_learnt_and_predicted(kind, path, saved_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [1 / len(residuals)] * len(residuals))
    out = tmp_path / "out"
    steps = "500" if kind in ("intensive", "atom-scalar") else "150"  # the references leave these the least to learn
    assert finetune(path, out, kind, saved_model, "--steps", steps, "--strategy", "full", "--keep-heads", "first") == 0
    said = capsys.readouterr().out
    told = json.loads((out / "errors.json").read_text())
    lines = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["head_losses"]["mine"] for line in lines if "loss" in line]
    assert np.mean(losses[-30:]) < 0.9 * np.mean(losses[:30])
    back = "that it began with" in told["warning"]  # a fit that training did not improve: the encoder is what it was
    assert [one["head"] for one in told["forgetting"]] == ([] if back else ["first"]) and "Predictor(" in said
    model = load_model(out / "model")
    card = model.specs["mine"]
    assert (card.kind, card.unit, card.quantity) == (KINDS[kind][1], "u", KINDS[kind][0])
    dataset = open_dataset(out / "datasets" / "mine")
    from gfm_calc.train.preparation import load_preparation

    head = next(h for h in load_preparation(out / "run" / "data") if h.spec.name == "mine")
    if kind in ("intensive", "class"):  # of molecules; what structures are compared with is what was fitted
        begun = load_model(out / START)
        heads = (one.properties[one.property_heads.index("mine")] for one in (begun, model))
        before, after = (dict(one.landmarks.named_parameters()) for one in heads)
        assert len(before) == len(after) == 3 and all(torch.equal(before[name], after[name]) for name in before)
        assert card.landmarks == begun.specs["mine"].landmarks == len(head.sides["train"])
    else:
        assert card.landmarks == 0
    records = list(dataset.read(head.sides[told["side"]]).records())
    found = [row["mine"].value.numpy() for row in Predictor(model, ["mine"]).predict(r.structure() for r in records)]
    labels = [r.atom_values if "atom" in kind else r.value for r in records]
    errors = np.concatenate([np.abs(f.ravel() - label.ravel()) for f, label in zip(found, labels)])
    if kind == "class":
        assert told["after"]["accuracy"] == pytest.approx(np.mean(errors < 0.5))
        assert 0 <= told["after"]["roc_auc"] <= 1
    else:
        assert told["after"]["value_mae"] == pytest.approx(errors.mean(), rel=1e-4, abs=1e-9)
    assert card.test_errors["loss"] == pytest.approx(told["after"]["loss"], rel=1e-4)
    predicted = tmp_path / "predicted.jsonl"
    assert main(["predict", str(path), "-o", str(predicted), "--model", str(out / "model"), "--head", "mine"]) == 0
    row = json.loads(predicted.read_text().splitlines()[head.sides[told["side"]][0]])
    np.testing.assert_allclose(np.ravel(row["value"]), found[0].ravel(), atol=1e-6)


def test_a_training_goes_on_with_the_landmarks_of_a_head(path, saved_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [1 / len(residuals)] * len(residuals))
    out = tmp_path / "out"
    assert finetune(path, out, "intensive", saved_model, "--steps", "2", "--keep-heads", "none") == 0
    source = load_model(out / "model")
    values = {
        "model": to_mapping(source.config), "heads": [{"name": "mine", "start": "mine"}],
        "start": {"model": str(out / "model")},
    }  # fmt: skip
    recipe = recipe_of(values, [f"data.path={out / 'datasets'}"])
    heads = prepare(recipe, source.config.cutoff)
    model = starting_model(recipe, heads)
    assert heads[0].spec.landmarks == source.specs["mine"].landmarks > 0
    found, wanted = (
        [row["mine"].value.item() for row in Predictor(one, ["mine"], dtype="float64").predict(structures())]
        for one in (model.requires_grad_(False).eval(), source)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    with pytest.raises(ConfigError, match="head mine: start: has other landmarks there"):
        starting_model(recipe, [replace(heads[0], spec=replace(heads[0].spec, landmarks=1))])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "frames.extxyz"
    ase.io.write(path, structures(160))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_property_says_what_errors_to_expect(kind, many, saved_model, tmp_path, capsys):
    """Learnt at the end, kept with the model, in the unit of the head, of sums over atoms as sums."""
    out = tmp_path / "out"
    assert finetune(many, out, kind, saved_model, "--steps", "60", "--strategy", "full", "--keep-heads", "none") == 0
    said, told = capsys.readouterr().out, json.loads((out / "errors.json").read_text())
    model = load_model(out / "model")
    if kind == "class":
        assert "expected errors" not in said and told["expected_errors"] is None
        with pytest.raises(HeadError, match="is a class: its probability says how sure it is"):
            Predictor(model, ["mine"], uncertainty=True)
        return
    found = told["expected_errors"]
    assert "expected errors: rank correlation" in said and found["side"] == "test" and 0.2 < found["ratio"] < 5
    frames = structures(160)
    rows = list(Predictor(model, ["mine"], uncertainty=True).predict(frames))
    silent = list(Predictor(model, ["mine"]).predict(frames))
    errors, expected = [], []
    for atoms, row, without in zip(frames, rows, silent):
        value, sure = row["mine"].value, row["mine"].value_uncertainty
        assert torch.equal(value, without["mine"].value) and without["mine"].value_uncertainty is None
        assert sure.shape == ((len(atoms),) if "atom" in kind else (1,)) and bool((sure > 0).all())
        label = atoms.arrays[KINDS[kind][0]] if "atom" in kind else atoms.info[KINDS[kind][0]]
        label = torch.as_tensor(np.array(label, dtype=float)).reshape(value.shape)
        errors += (value - label).reshape(len(sure), -1).norm(dim=1).tolist()
        expected += sure.tolist()
    assert 0.2 < np.mean(errors) / np.mean(expected) < 5
    atoms = molecule("CH3OH")
    apart = atoms.copy()
    apart.positions += 50
    twice = next(iter(Predictor(model, ["mine"], uncertainty=True).predict([atoms + apart])))["mine"]
    (one,) = Predictor(model, ["mine"], uncertainty=True).predict([atoms])
    sure = one["mine"].value_uncertainty
    more = torch.cat([sure, sure]) if "atom" in kind else 2 * sure if KINDS[kind][2] else sure
    np.testing.assert_allclose(twice.value_uncertainty, more, rtol=1e-4)
    predicted = tmp_path / "predicted.jsonl"
    line = [
        "predict",
        str(many),
        "-o",
        str(predicted),
        "--model",
        str(out / "model"),
        "--head",
        "mine",
        "--uncertainty",
    ]
    assert main(line) == 0
    row = json.loads(predicted.read_text().splitlines()[3])
    np.testing.assert_allclose(row["value_uncertainty"], rows[3]["mine"].value_uncertainty.squeeze(), rtol=1e-5)


def test_a_head_alone_without_old_ones_leaves_the_encoder(path, saved_model, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        finetune(path, out, "intensive", saved_model, "--steps", "4", "--strategy", "heads", "--keep-heads", "none")
        == 0
    )
    model, start = load_model(out / "model"), load_model(saved_model)
    assert list(model.specs) == ["mine"]
    assert finetune(path, tmp_path / "next", "class", out / "model", "--steps", "2", "--head", "other") == 0
    frames = tmp_path / "energies.extxyz"
    write(frames, molecules(12))
    assert main(words(frames, tmp_path / "third", "--from", str(out / "model"), "--head", "third")) == 1
    assert "has no head of energies" in capsys.readouterr().err
    for name, tensor in start.encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name


@pytest.mark.parametrize("took, left", [(60.0, 3.0), (600.0, 2.0)])
def test_fits_before_training_count_as_the_users_minutes(took, left, path, saved_model, tmp_path, monkeypatch):
    """Half of them are for training, however long the fits took."""
    past, begin = [0.0], setup.begin_head

    def slow(*args):
        past[0] += took
        return begin(*args)

    monkeypatch.setattr(setup, "begin_head", slow)
    for module in (run, plan):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + past[0]))
    out = tmp_path / "out"
    more = ("--steps", "2", "--strategy", "heads", "--keep-heads", "none", "--max-minutes", "4")
    assert finetune(path, out, "intensive", saved_model, *more) == 0
    told = tomllib.loads((out / "run" / "recipe.toml").read_text())["run"]
    assert left - 0.5 < told["max_minutes"] <= left


@pytest.mark.parametrize("kind", ["class", "intensive"])
def test_the_report_of_a_property(kind, path, saved_model, tmp_path):
    out = tmp_path / "out"
    line = [
        w
        for w in words(path, out, "--from", str(saved_model), "--steps", "3", "--strategy", "heads")
        if w != "--no-report"
    ]
    assert main([*line, "--property", KINDS[kind][0], "--kind", kind]) == 0
    page = (out / "report.html").read_text()
    assert (
        page.count("<img") >= 3
        and ("Area under the curve" in page) == (kind == "class")
        and "The worst structures" in page
    )


def test_nothing_but_the_package_is_needed(path, saved_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "adios2", None)  # as if it were not installed
    assert finetune(path, tmp_path / "out", "intensive", saved_model, "--steps", "2") == 0
    assert open_dataset(tmp_path / "out" / "datasets" / "mine").shards[0].files.keys() == {"data.0"}
    open_dataset(tmp_path / "out" / "datasets" / "mine").verify()


# what is wrong -> (changes the frames, options, words of the message)
def _all(name, value):
    def change(frames):
        for atoms in frames:
            atoms.info[name] = value(atoms)

    return change


def _same_atoms(frames):
    for atoms in frames:
        atoms.arrays["crowd"] = np.full(len(atoms), 0.1)


INTENSIVE, CLASS = ("--kind", "intensive"), ("--kind", "class")
WRONG = {
    "no kind": (None, ["--property", "reach"], "--property reach needs --kind: one of extensive, intensive, vector, class"),
    "no key": (None, CLASS, "--kind class needs --property KEY"),
    "an energy": (None, ["--property", "reach", "--kind", "energy"], "--energy-key reach"),
    "no such label": (None, ["--property", "range", *INTENSIVE], "no 'range'"),
    "a class of halves": (_all("odd", lambda a: 0.5 * (len(a) > 4)), ["--property", "odd", *CLASS], "a class is 0 or 1"),
    "always the same": (_all("odd", lambda a: True), ["--property", "odd", *CLASS], "has the same label"),
    "a label of atoms": (None, ["--property", "crowd", *INTENSIVE], "1 number an atom: --kind must be atom-scalar"),
    "a label of structures": (None, ["--property", "reach", "--kind", "atom-scalar"], "--kind must be extensive or intensive"),
    "numbers for vectors": (None, ["--property", "reach", "--kind", "vector"], "1 number a structure: --kind must be extensive"),
    "not finite": (_all("reach", lambda a: float("nan")), ["--property", "reach", *INTENSIVE], "the property is not finite"),
    "words": (_all("reach", lambda a: "far"), ["--property", "reach", *INTENSIVE], "is no number ('far'): give numbers"),
    "classes in words": (_all("odd", lambda a: "yes"), ["--property", "odd", *CLASS], "('yes'): give numbers, of a class 0"),
    "too large": (_all("reach", lambda a: 1e30), ["--property", "reach", *INTENSIVE], "the property is 1e+30: too large"),
    "no label, no mend": (None, ["--property", "range", *INTENSIVE], "label the frame, leave it out, or choose another name"),
    "atoms all the same": (_same_atoms, ["--property", "crowd", "--kind", "atom-scalar"], "has the same label, 0.1"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_labels_of_a_property_are_refused(what, saved_model, tmp_path, capsys):
    change, options, said = WRONG[what]
    frames = structures(20)
    if change:
        change(frames)
    path = tmp_path / "frames.extxyz"
    ase.io.write(path, frames)
    assert main(words(path, tmp_path / "out", "--from", str(saved_model), *options)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gfm: error:")]
    assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "out" / "run").exists()


def test_a_table_of_compositions_is_told_where_to_go(tmp_path, capsys):
    path = tmp_path / "gaps.csv"
    path.write_text("composition,target\nAg(AuS)2,0.0\n")
    assert main(words(path, tmp_path / "out", "--property", "target", "--kind", "intensive")) == 1
    assert "use a model of compositions" in capsys.readouterr().err


def test_a_dataset_of_a_property_is_built_and_trained_on(path, tmp_path, capsys):
    need_adios()
    data = tmp_path / "data" / "gap"
    line = ["data", "build", str(path), "-o", str(data), "--head", "gap", "--property", "reach"]
    assert main([*line, "--kind", "intensive", "--unit", "Å"]) == 0
    assert open_dataset(data).head.quantity == "reach" and open_dataset(data).head.kind == "scalar"
    assert main([*line[:4], str(tmp_path / "x"), *line[5:]]) == 1 and "needs --kind" in capsys.readouterr().err
    run = tmp_path / "run"
    assert main(argv(tmp_path / "data", run, "data.validation=0.2", "data.test=0.2")) == 0
    model = load_model(run / "model")
    assert list(model.specs) == ["gap"] and model.specs["gap"].test_errors["value_mae"] > 0
    assert "gap: test errors reach" in capsys.readouterr().out
    atoms = structures(1)[0]
    value = next(iter(Predictor(model, ["gap"]).predict([atoms])))["gap"].value.item()
    labels = [a.info["reach"] for a in structures()]
    assert min(labels) - 1 < value < max(labels) + 1


def test_a_calculator_gives_properties(saved_model):
    calculator = GFMCalculator(saved_model, head="first")
    atoms = molecule("CH3OH")
    assert isinstance(calculator.predict_property(atoms, "gap"), float)
    assert calculator.predict_property(atoms, "dipoles").shape == (6, 3)
    with pytest.raises(HeadError, match="first is one of energies"):
        calculator.predict_property(atoms, "first")
    with pytest.raises(HeadError, match="gap has no uncertainty"):
        calculator.predict_property(atoms, "gap", uncertainty=True)
    with pytest.raises(HeadError, match=r"gap predicts gap, not energies: use calc.predict_property"):
        GFMCalculator(saved_model, head="gap")


def test_old_heads_of_properties_are_measured_where_the_encoder_moves(path, saved_model, tmp_path, capsys):
    assert finetune(path, tmp_path / "first", "intensive", saved_model, "--steps", "5") == 0
    # Six numbers held out are too few to choose weights by.
    assert "keep_best = false" in (tmp_path / "first" / "run" / "recipe.toml").read_text()
    other = [relabelled(atoms, forces=lambda f: 1.3 * f, energy=lambda e: 1.3 * e) for atoms in molecules(16)]
    frames = write(tmp_path / "energies.extxyz", other)
    begun = ["--from", str(tmp_path / "first" / "model"), "--keep-heads", "mine", "--accept", "energy-unit"]
    argv = words(frames, tmp_path / "second", "--strategy", "full", "--steps", "40", *begun, "--accept", "force-scale")
    assert main(["other" if word == "mine" and argv[k - 1] == "--head" else word for k, word in enumerate(argv)]) == 0
    assert (
        "mine*: values moved by" in (said := capsys.readouterr().out) and "nothing guards heads of properties" in said
    )
