"""A first guess at properties of crystals: made where it is of use, taken off the labels, added again by the saved head."""

import json
import re
import shutil
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from finetuning import words
from support import batch_of

from gfm_calc import Predictor, load_model
from gfm_calc.checkpoint import subset
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec, to_mapping
from gfm_calc.data.build import build_flat
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.tasks import FileTask
from gfm_calc.errors import ConfigError, CorruptFileError
from gfm_calc.finetune import fits, stiff
from gfm_calc.finetune.plan import GUESS
from gfm_calc.finetune.stiff import begin_guess
from gfm_calc.stiffness import COLUMNS, MODES, Stiffness
from gfm_calc.train.preparation import prepare
from gfm_calc.train.recipe import recipe_of

OLD = "distilled-7net-l3i5"
METALS, OTHERS = ("Li", "Na", "K", "Mg", "Ca", "Ti", "V"), ("O", "S", "N", "C", "F", "Cl")


@pytest.fixture(scope="module")
def model():
    return load_model("gfm-small")


@pytest.fixture(scope="module")
def frames(model):
    """Strained crystals of two elements; `modulus` and `tone`, the highest frequency, are what the head says and a little more,
    `luck` follows from nothing; `chord` is of both."""
    random = np.random.default_rng(0)
    found = []
    for metal in METALS:
        for other in OTHERS:
            atoms = bulk(metal + other, random.choice(["rocksalt", "zincblende"]), a=random.uniform(4.4, 5.6))
            found.append(atoms.repeat((1, 1, 2)) if random.uniform() < 0.5 else atoms)
    batch = batch_of(model, *found)
    columns = Stiffness(subset(model, [OLD])).columns(model.inputs(batch), batch).numpy()
    for k, (atoms, (modulus, tone)) in enumerate(zip(found, columns[:, [0, COLUMNS.index("highest")]])):
        told = float(0.8 * modulus + 5 + random.normal(scale=1.0))
        tuned = float(3 * tone + random.normal(scale=0.1))
        atoms.info = {
            "tone": tuned,
            "chord": tuned + told / 4,
            "modulus": told,
            "whole": told * len(atoms),
            "luck": float(random.normal()),
            "group": f"g{k}",
        }
    return found


@pytest.fixture(scope="module")
def path(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("stiff") / "crystals.extxyz"
    ase.io.write(path, frames)
    return path


def dataset_of(path, folder, key="modulus", **values):
    card = HeadSpec(
        **{"name": "mine", "kind": "scalar", "extensive": key == "whole", "quantity": key, "unit": "GPa", **values}
    )
    return build_flat(folder, [FileTask(paths=(path,), options=ReadOptions(property_key=key))], card)


def halves(dataset):
    count = len(dataset)
    rows = np.arange(count)
    return {"train": rows[: count - 12], "validation": rows[:0], "test": rows[count - 12 :]}, rows[: count - 12]


@pytest.mark.parametrize("key", ["modulus", "whole", "tone", "chord"])
def test_it_takes_off_what_the_old_head_knows(key, model, path, frames, tmp_path):
    dataset = dataset_of(path, tmp_path / "data", key)
    sides, groups = halves(dataset)
    said = []
    guess = begin_guess(tmp_path / "guess", model, dataset, sides, groups, said.append)
    assert guess.head == OLD and guess.error < 0.5 * guess.before
    says = f"how {OLD} says the crystals vibrate" if key == "tone" else f"how stiff {OLD} says the crystals are"
    assert key != "chord" or guess.says.endswith("and how they vibrate")
    assert guess.says.startswith(says) and said[1].startswith(f"first guess: {guess.says}; a fit to what is left is ")
    left, whole = (d.read(np.arange(len(d)), names=True) for d in (guess.dataset, dataset))
    assert left.group == whole.group and np.array_equal(left.positions, whole.positions)
    # Held-out structures lose what the linear function says of them, to the last digit.
    chosen = sides["test"]
    module = Stiffness(subset(model, [OLD]))
    module.weights.copy_(module.weights.new_tensor(guess.weights))
    batch = batch_of(model, *[frames[k] for k in chosen])
    sizes = np.array([len(frames[k]) if key == "whole" else 1 for k in chosen])
    taken = whole.value[chosen, 0] - left.value[chosen, 0]
    np.testing.assert_allclose(taken, module(model.inputs(batch), batch).numpy() * sizes, rtol=1e-4, atol=1e-3)
    again = begin_guess(tmp_path / "guess", model, dataset, sides, groups, said.append, goes_on=True)
    assert again.weights == guess.weights and again.dataset.digest == guess.dataset.digest


def test_a_training_structure_does_not_tell_its_own_label(model, path, tmp_path, monkeypatch):
    """What is taken off one label does not follow that label: here it alone is 1,000 GPa off."""
    monkeypatch.setattr(fits, "_RIDGES", (0.01,))
    fixed = {"_SHARES": (1.0,), "_PARTS": (stiff.STRAINS,), "_WORTH": -1e9, "_CLEAR": -1e9, "_MOST_PAIRS": 0}
    for name, value in fixed.items():
        monkeypatch.setattr(stiff, name, value)
    frames = ase.io.read(path, ":")
    frames[3].info["modulus"] += 1000.0
    ase.io.write(tmp_path / "wrong.extxyz", frames)
    taken = []
    for name, source in (("right", path), ("wrong", tmp_path / "wrong.extxyz")):
        dataset = dataset_of(source, tmp_path / name)
        taken.append(stiff._fitted(model, dataset, *halves(dataset), print)["taken"])
    right, wrong = taken
    assert wrong[3] == pytest.approx(right[3], abs=1e-6)
    assert abs(wrong[0] - right[0]) > 1  # others do


def test_it_must_help_clearly_in_all_or_structure_by_structure():
    """However large the error of one may be."""
    random = np.random.default_rng(0)
    before, gain = random.uniform(50, 150, 40), random.uniform(0.2, 1.2, 40)
    odd = before.copy()
    odd[7] = 3000.0
    assert stiff._helps(before, before * gain) and stiff._helps(odd, odd * np.where(odd > 1000, 0.9, gain))
    assert not stiff._helps(before * gain, before) and not stiff._helps(before, before)
    assert not stiff._helps(odd, np.where(odd > 1000, 100.0, odd * random.uniform(0.8, 1.25, 40)))  # one alone
    assert not stiff._helps(before, 0.98 * before)  # clear, and too little
    assert not stiff._helps(np.zeros(3), np.zeros(3))
    few = np.arange(40) < 3
    assert stiff._helps(np.where(few, 500.0, 30.0), np.where(few, 300.0, 31.0))
    large = np.arange(40) < 10  # they lose half of a large error, the others make more of a small one
    assert stiff._helps(np.where(large, 100.0, 1.0), np.where(large, 50.0 + 2 * np.arange(40), 1.3))


@pytest.mark.parametrize("reason", ["luck", "elements", "molecules", "few", "kind", "one slab", "stress"])
def test_there_is_none_where_it_is_of_no_use(reason, model, path, frames, tmp_path, monkeypatch):
    some = [atoms.copy() for atoms in frames]
    start, values = model, {}
    if reason == "elements":
        start = subset(model, ["pypolymlp-mgo", "gfn2-xtb"])
    elif reason == "molecules":
        some = [molecule("CH4") for _ in some]
        for atoms, crystal in zip(some, frames):
            atoms.rattle(0.05, seed=len(crystal))
            atoms.info = dict(crystal.info)
    elif reason == "few":
        some = some[:20]
    elif reason == "kind":
        values = {"kind": "class"}
        for atoms in some:
            atoms.info["modulus"] = float(atoms.info["modulus"] > 50)
    elif reason == "one slab":
        some[0].pbc = (True, True, False)
    elif reason == "stress":  # the card of no head says that it was measured on stresses
        start = subset(model, [OLD])
        start.specs[OLD] = replace(start.specs[OLD], test_errors={})
    ase.io.write(tmp_path / "some.extxyz", some)
    key = "luck" if reason == "luck" else "modulus"
    dataset = dataset_of(tmp_path / "some.extxyz", tmp_path / "data", key, **values)
    sides, groups = halves(dataset)
    said = []
    for _ in range(2):  # decided once
        assert begin_guess(tmp_path / "guess", start, dataset, sides, groups, said.append) is None
        monkeypatch.setattr(stiff, "_fitted", None)
    assert bool(said) == (reason == "luck") and (not said or said[-1].startswith("first guess: none"))


def test_vibrations_that_take_long_are_left_out(model, path, tmp_path, monkeypatch):
    """By the training structures; for a user whose minutes are bounded, by all."""
    dataset = dataset_of(path, tmp_path / "data", "chord")
    sides, groups = halves(dataset)
    pairs = [stiff._pairs(dataset, rows) for rows in (sides["train"], np.arange(len(dataset)))]
    assert pairs[0] < pairs[1]
    water = molecule("H2O")
    water.info |= ase.io.read(path).info
    ase.io.write(tmp_path / "with.extxyz", [*ase.io.read(path, ":"), water])
    beside = dataset_of(tmp_path / "with.extxyz", tmp_path / "beside", "chord")
    assert stiff._pairs(beside, np.arange(len(beside))) == pairs[1]  # a molecule has none
    monkeypatch.setattr(stiff, "_PAIRS_A_MINUTE", 10)
    for most, minutes, says in (
        (pairs[0] - 1, None, "how stiff"),
        (pairs[0], pairs[1] / 10 - 0.1, "how stiff"),
        (pairs[0], pairs[1] / 10 + 0.1, "and how they vibrate"),
    ):
        monkeypatch.setattr(stiff, "_MOST_PAIRS", most)
        said = []
        found = stiff._fitted(model, dataset, sides, groups, said.append, minutes)
        assert says in found["says"] and bool(np.any(found["weights"][MODES])) == ("vibrate" in says)
        assert ("vibrate" in said[0]) == ("vibrate" in says)


def test_columns_that_are_no_numbers_are_left_out(model, path, tmp_path, monkeypatch):
    """Vibrations of a training structure; all of a held-out one, which loses the constant."""
    dataset = dataset_of(path, tmp_path / "data")
    sides, groups = halves(dataset)
    real = stiff._columns

    def broken(model, head, dataset, rows, **wanted):
        found = real(model, head, dataset, rows, **wanted)
        found[0, MODES if len(rows) == len(sides["train"]) else slice(None)] = np.nan
        return found

    monkeypatch.setattr(stiff, "_columns", broken)
    found = stiff._fitted(model, dataset, sides, groups, print)
    assert found["says"] == f"how stiff {OLD} says the crystals are"
    assert np.isfinite(found["taken"]).all() and found["taken"][sides["test"][0]] == found["weights"][-1]


def test_what_was_not_asked_for_is_no_guess(model, path, tmp_path, monkeypatch):
    """Columns of vibrations that were left out are zeros, and constants nobody guesses with."""
    dataset = dataset_of(path, tmp_path / "data")
    sides, groups = halves(dataset)
    asked = []
    real = stiff._linear
    monkeypatch.setattr(
        stiff, "_linear", lambda columns, parts, *more: asked.extend(parts) or real(columns, parts, *more)
    )
    monkeypatch.setattr(stiff, "_MOST_PAIRS", 0)
    assert np.any(stiff._fitted(model, dataset, sides, groups, print)["weights"][:-1])
    assert len(asked) == 8 and all(part.stop <= stiff.STRAINS.stop for part in asked)
    nothing = np.zeros((20, len(COLUMNS)))
    labels, alone = np.random.default_rng(0).normal(size=20), np.split(np.arange(20), 20)
    monkeypatch.setattr(stiff, "_helps", lambda before, after: True)
    assert stiff._linear(nothing, asked, labels, [np.arange(20.0)[:, None]] * 2, alone) is None


def test_a_column_without_a_weight_may_be_no_number(model, frames, monkeypatch):
    module = Stiffness(subset(model, [OLD]))
    module.weights[COLUMNS.index("number density")] = 1.0
    batch = batch_of(model, *frames[:3])
    wanted = module(model.inputs(batch), batch)
    real = module._strained

    def broken(*arguments):
        found = real(*arguments)
        found[1, :2] = np.nan
        return found

    monkeypatch.setattr(module, "_strained", broken)
    assert np.array_equal(module(model.inputs(batch), batch), wanted) and np.isfinite(wanted).all()
    module.weights[0] = 1.0
    assert module(model.inputs(batch), batch).isnan().tolist() == [False, True, False]


def test_held_out_structures_decide_nothing(model, path, tmp_path):
    """A slab among them has no stiffness, and loses the constant."""
    frames = ase.io.read(path, ":")
    frames[-1].pbc = (True, True, False)
    ase.io.write(tmp_path / "slab.extxyz", frames)
    with_slab, without = dataset_of(tmp_path / "slab.extxyz", tmp_path / "one"), dataset_of(path, tmp_path / "two")
    found, wanted = (stiff._fitted(model, dataset, *halves(dataset), print) for dataset in (with_slab, without))
    assert found["weights"] == wanted["weights"] and found["taken"][:-1] == wanted["taken"][:-1]
    assert found["taken"][-1] == pytest.approx(found["weights"][-1])


def test_a_job_of_before_goes_on_without(model, path, tmp_path):
    dataset = dataset_of(path, tmp_path / "data")
    assert begin_guess(tmp_path / "guess", model, dataset, *halves(dataset), print, goes_on=True) is None
    assert not (tmp_path / "guess").exists()


def test_a_damaged_guess_is_named(model, path, tmp_path):
    dataset = dataset_of(path, tmp_path / "data")
    (tmp_path / "guess").mkdir()
    (tmp_path / "guess" / "guess.json").write_text('{"head": "first"}')
    with pytest.raises(CorruptFileError, match=r"guess.json: is not what this version writes: damaged, begin anew"):
        begin_guess(tmp_path / "guess", model, dataset, *halves(dataset), print)


@pytest.fixture(scope="module")
def tuned(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    assert main(job(path, out)) == 0
    return out


def job(path, out, *more):
    about = ("--property", "modulus", "--kind", "intensive", "--unit", "GPa", "--validation", "0", "--test", "0.3")
    return words(path, out, *about, "--keep-heads", "none", "--steps", "3", "--threads", "1", *more)


def test_the_saved_head_says_the_whole(tuned, frames, model):
    """Errors that the job tells of what is left are those of the saved head on the labels."""
    told = json.loads((tuned / "errors.json").read_text())
    assert told["first_guess"]["head"] == OLD
    saved = load_model(tuned / "model")
    assert list(saved.specs) == ["mine"] and saved.specs["mine"].stiffness == OLD
    stream = Predictor(saved, ["mine"], strict=False).predict(frames)
    errors = np.array([abs(row["mine"].value.item() - atoms.info["modulus"]) for atoms, row in zip(frames, stream)])
    from gfm_calc.train.preparation import load_preparation

    (head,) = load_preparation(tuned / "run" / "data")
    assert told["side"] == "test" and told["after"]["value_mae"] == pytest.approx(
        errors[head.sides["test"]].mean(), rel=1e-3
    )
    assert told["after"]["value_mae"] < 8  # labels spread by 40


def test_the_report_is_about_the_whole_labels(path, tmp_path):
    out = tmp_path / "out"
    assert main([word for word in job(path, out) if word != "--no-report"]) == 0
    page = (out / "report.html").read_text()
    found = re.findall(r"crystals.extxyz frame (\d+)</th><td[^>]*>([^<]+)</td>", page)
    frames = ase.io.read(path, ":")
    assert found and all(label == f"{frames[int(number)].info['modulus']:.4g}" for number, label in found)
    assert f"beside a first guess: how stiff {OLD} says the crystals are" in page


def test_a_killed_job_comes_to_the_same_bits(path, tuned, tmp_path, monkeypatch):
    """Between the guess and the training; and after the labels were written, without the record that they are whole."""
    from gfm_calc.finetune import setup

    out = tmp_path / "out"
    real = setup.begin_head
    monkeypatch.setattr(setup, "begin_head", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(job(path, out)) == 130
    assert (out / GUESS / "guess.json").exists()
    monkeypatch.setattr(setup, "begin_head", real)
    shutil.rmtree(out / GUESS / "labels")
    assert main(job(path, out, "--resume")) == 0
    assert load_model(out / "model").model_id == load_model(tuned / "model").model_id


def test_a_guess_that_is_gone_is_missed(path, tuned, tmp_path, capsys):
    """The head that begins at what it leaves does not learn whole labels."""
    out = tmp_path / "out"
    shutil.copytree(tuned, out)
    for name in ("model", "run", GUESS):
        shutil.rmtree(out / name)
    (out / "errors.json").unlink()
    assert main(job(path, out, "--resume")) == 1
    assert "was fitted to other labels, with a guess that is gone: begin anew" in capsys.readouterr().err


def test_a_start_of_before_gets_no_guess(path, tmp_path, monkeypatch):
    """An earlier version left the head that begins at whole labels, and came no further."""
    from gfm_calc.finetune import setup

    out = tmp_path / "out"
    monkeypatch.setattr(setup, "begin_guess", lambda *args, **more: None)
    monkeypatch.setattr(setup, "build_replay", lambda *args, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(job(path, out)) == 130 and (out / "start").exists() and not (out / GUESS).exists()
    monkeypatch.undo()
    assert main(job(path, out, "--resume")) == 0
    assert load_model(out / "model").specs["mine"].stiffness == ""
    assert json.loads((out / "errors.json").read_text())["first_guess"] is None


def test_errors_are_not_learnt_from_what_is_left(tuned, capsys):
    assert main(["uncertainty", str(tuned / "model"), "--run", str(tuned / "run")]) == 1
    assert "holds what a first guess leaves of the labels of mine, not the labels" in capsys.readouterr().err


def test_it_is_not_trained_on_with_whole_labels(tuned):
    source = load_model(tuned / "model")
    values = {
        "model": to_mapping(source.config), "heads": [{"name": "mine", "start": "mine"}],
        "start": {"model": str(tuned / "model")},
    }  # fmt: skip
    recipe = recipe_of(values, [f"data.path={tuned / 'datasets'}"])
    with pytest.raises(ConfigError, match=r"head mine: start: it learnt what a first guess leaves .*gfm finetune"):
        prepare(recipe, source.config.cutoff)
