"""Expected errors: the formula, the file, who may ask for them, and that nothing else moves when they are asked for."""

import json
import pickle
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import read, write
from support import batch_of, predict, random_errors, random_model, same, structures
from test_checkpoint import craft, edit_json, edit_weights

from gfm_calc import GFMCalculator, Predictor
from gfm_calc.checkpoint import load_model, open_model, save_model, subset
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.errors import CorruptFileError, HeadError
from gfm_calc.uncertainty import expected_errors, features

NONE = "has no uncertainty; gfm uncertainty MODEL --data DATASETS gives it one"


@pytest.fixture(scope="module")
def knowing():
    """A float64 model of which `first` and `third` know their errors."""
    return random_model(uncertainty=("third", "first"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A float32 model of a few elements, saved; its head `first` knows its errors."""
    directory = tmp_path_factory.mktemp("uncertainty") / "model"
    elements = ("H", "C", "N", "O", "Na", "Cl", "Cu")
    save_model(random_model(dtype=torch.float32, elements=elements, uncertainty=("first",)), directory)
    return directory


# ---- numbers ----


def test_the_formula(knowing):
    """Against the same written out atom by atom."""
    atoms = structures()["molecule"]
    batch = batch_of(knowing, atoms)
    encoded = knowing.encode(knowing.inputs(batch))
    row = list(knowing.uncertainty.figures).index("first")
    hidden, hidden_bias, output, output_bias = (t[row].numpy() for t in knowing.uncertainty.tensors.values())
    found = []
    for s, v, gate in zip(encoded.scalars.numpy(), encoded.vectors.numpy(), encoded.gate.numpy()):
        x = np.concatenate([s, np.log(np.square(v).sum(axis=0) + 0.01)])
        inner = [x @ w + b for w, b in zip(hidden, hidden_bias)]
        outer = [(h / (1 + np.exp(-h))) @ w + b for h, w, b in zip(inner, output, output_bias)]
        found.append(gate * np.exp(outer).mean(axis=0))
    forces, shares = np.array(found).T
    given = predict(knowing, atoms, "first", uncertainty=True)
    np.testing.assert_allclose(given.forces_uncertainty, forces, rtol=1e-12)
    np.testing.assert_allclose(given.energy_uncertainty, [shares.sum()], rtol=1e-12)
    assert forces.std() > 0.01 * forces.mean()


def test_whatever_the_features_it_stays_finite():
    errors = random_errors(["a"], 4)
    for size in (1e-30, 1e6, 1e15):
        found = errors(torch.full((3, 4), size), torch.full((3, 3, 4), size), torch.ones(3), ["a"])
        for tensor in found:
            assert torch.isfinite(tensor).all() and (tensor > 5e-6).all() and (tensor < 55).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("forces", [True, False])
@pytest.mark.parametrize("heads", [["first"], ["third", "first"]])
def test_other_numbers_keep_their_bits(dtype, forces, heads):
    single = dtype != "float64"
    model = random_model(dtype=torch.float32 if single else torch.float64, uncertainty=("third", "first"))
    frames = [atoms for name, atoms in structures().items() if name != "ion"]
    asked, silent = (
        list(Predictor(model, heads, dtype=dtype, forces=forces, uncertainty=asked, max_atoms=12).predict(frames))
        for asked in (True, False)
    )
    exact = list(Predictor(random_model(uncertainty=("third", "first")), heads, uncertainty=True).predict(frames))
    for found, wanted, right in zip(asked, silent, exact, strict=True):
        for head in heads:
            ours = found[head]
            np.testing.assert_allclose(
                ours.forces_uncertainty, right[head].forces_uncertainty, rtol=0.2 if dtype == "bfloat16" else 1e-4
            )
            assert ours.energy_uncertainty.dtype == ours.forces_uncertainty.dtype == torch.float64
            assert wanted[head].energy_uncertainty is wanted[head].forces_uncertainty is None
            assert same(_without(ours), wanted[head])


def _without(prediction):
    return replace(prediction, energy_uncertainty=None, forces_uncertainty=None)


def test_a_compiled_model_keeps_its_bits_and_says_the_same(saved):
    frames = [molecule("CH3CH2OH"), bulk("NaCl", "rocksalt", a=5.6)]
    for atoms in frames:
        atoms.rattle(0.1, seed=1)
    compiled = load_model(saved, dtype=torch.float64).compile()
    eager = load_model(saved, dtype=torch.float64)
    for atoms in frames:
        asked, silent = (predict(compiled, atoms, "first", uncertainty=asked) for asked in (True, False))
        assert same(_without(asked), silent)
        wanted = predict(eager, atoms, "first", uncertainty=True)
        np.testing.assert_allclose(asked.forces_uncertainty, wanted.forces_uncertainty, rtol=1e-9)
        np.testing.assert_allclose(asked.energy_uncertainty, wanted.energy_uncertainty, rtol=1e-9)


def test_a_model_is_the_same_with_and_without(saved, tmp_path):
    """Its weights file does not change, and neither do its predictions."""
    model = load_model(saved)
    model.uncertainty = None
    save_model(model, tmp_path / "without")
    before, after = (open_model(path).files["weights.safetensors"] for path in (saved, tmp_path / "without"))
    assert before == after
    atoms = structures()["molecule"]
    assert same(predict(load_model(saved), atoms, "first"), predict(load_model(tmp_path / "without"), atoms, "first"))


# ---- who may ask ----


def test_heads_without_refuse(knowing, model):
    atoms = molecule("H2O")
    for asked, head in ((knowing, "second"), (model, "first")):
        with pytest.raises(HeadError, match=f"head {head} {NONE}"):
            predict(asked, atoms, head, uncertainty=True)
        with pytest.raises(HeadError, match=f"head {head} {NONE}"):
            Predictor(asked, ["third", head] if asked is knowing else [head], uncertainty=True)
        with pytest.raises(HeadError, match=f"head {head} {NONE}"):
            GFMCalculator(asked, head=head, uncertainty=True)
    properties = random_model(properties=True, uncertainty=("first",))
    with pytest.raises(HeadError, match=f"head gap {NONE}"):
        Predictor(properties, ["first", "gap"], uncertainty=True)


def test_results_of_the_calculator(knowing):
    atoms = structures()["crystal"].copy()
    atoms.calc = GFMCalculator(knowing, head="first", uncertainty=True)
    plain = atoms.copy()
    plain.calc = GFMCalculator(knowing, head="first")
    assert (
        np.array_equal(atoms.get_forces(), plain.get_forces())
        and atoms.get_potential_energy() == plain.get_potential_energy()
    )
    wanted = predict(knowing, atoms, "first", uncertainty=True)
    assert atoms.calc.results["energy_uncertainty"] == wanted.energy_uncertainty.item()
    assert np.array_equal(atoms.calc.results["forces_uncertainty"], wanted.forces_uncertainty.numpy())
    assert not {"energy_uncertainty", "forces_uncertainty"} & set(plain.calc.results)
    with pytest.raises(HeadError, match=NONE):
        atoms.calc.head = "second"
    assert atoms.calc.head == "first"
    atoms.calc.head = "third"
    atoms.get_potential_energy()
    assert atoms.calc.results["energy_uncertainty"] != wanted.energy_uncertainty.item()


def test_copies_of_a_calculator_know_as_well(saved):
    calculator = GFMCalculator(saved, head="first", uncertainty=True)
    for twin in (deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        atoms = molecule("H2O")
        atoms.calc = twin
        atoms.get_potential_energy()
        assert atoms.calc.results["energy_uncertainty"] > 0


def test_subset_keeps_what_its_heads_know(knowing):
    smaller = subset(knowing, ["second", "first"])
    assert list(smaller.uncertainty.figures) == ["first"]
    atoms = molecule("H2O")
    assert same(*(predict(m, atoms, "first", uncertainty=True) for m in (knowing, smaller)))
    assert subset(knowing, ["second"]).uncertainty is None


# ---- files ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_come_back_from_a_file(tmp_path, dtype):
    model = random_model(dtype=dtype, uncertainty=("third", "first"))
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.uncertainty.figures == model.uncertainty.figures
    assert list(loaded.uncertainty.figures) == ["third", "first"]
    batch = batch_of(model, *structures().values())
    wanted, found = (m.predict(batch, ["first", "third"], uncertainty=True) for m in (model, loaded))
    assert all(same(found[head], wanted[head]) for head in wanted)


def edit(change):
    return "uncertainty.safetensors", edit_weights(change)


CRAFTED = {
    "a weight missing": edit(lambda s: s.pop("output")), "no weights": edit(lambda s: s.clear()),
    "a weight more": edit(lambda s: s.update(more=torch.zeros(1))),
    "a weight NaN": edit(lambda s: s["hidden"].fill_(float("nan"))),
    "another width": edit(lambda s: s.update(hidden_bias=torch.zeros(1, 2, 9))),
    "no networks": edit(lambda s: s.update({name: t[:, :0].clone() for name, t in s.items()})),
    "a bias of no axes": edit(lambda s: s.update(hidden_bias=torch.zeros(()))),
    "half precision": edit(lambda s: s.update(output=s["output"].half())),
    "no safetensors": ("uncertainty.safetensors", lambda raw: raw[:-4]),
    "no entries": ("uncertainty.json", edit_json(lambda entries: [])),
    "entries no list": ("uncertainty.json", edit_json(lambda entries: {"head": "first"})),
    "an entry of nobody": ("uncertainty.json", edit_json(lambda entries: [{"head": "fourth"}])),
    "an entry null": ("uncertainty.json", edit_json(lambda entries: [None])),
    "an entry twice": ("uncertainty.json", edit_json(lambda entries: entries * 2)),
    "a head that is a list": ("uncertainty.json", edit_json(lambda entries: [{"head": ["first"]}])),
    "no entries file": ("uncertainty.json", lambda _: None),
}  # fmt: skip


@pytest.mark.parametrize(
    "entry", [{"head": "gap"}, *({"head": "gap", "unit": unit} for unit in (0, -1.0, True, "1", None, [1])),
              {"head": "kind", "unit": 1.0}, {"head": ["gap"], "unit": 1.0}],
)  # fmt: skip
def test_a_property_without_a_sound_unit_is_refused(tmp_path, entry):
    """And a class, which has no expected errors."""
    start = random_model(elements=("H", "C", "O"), properties=True, uncertainty=("gap",))
    kind = HeadSpec(name="kind", kind="class", quantity="kind", unit="1")
    with torch.random.fork_rng(devices=[]):
        model = type(start)(start.config, [*start.specs.values(), kind])
    model.uncertainty = start.uncertainty
    save_model(model, tmp_path / "m")
    assert load_model(tmp_path / "m").uncertainty.figures == start.uncertainty.figures
    craft(tmp_path / "m", "uncertainty.json", edit_json(lambda entries: [entry]))
    with pytest.raises(CorruptFileError, match="uncertainty: not of heads of this model"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_parts_are_refused(tmp_path, case):
    save_model(random_model(elements=("H", "C", "O"), uncertainty=("first",)), tmp_path / "m")
    craft(tmp_path / "m", *CRAFTED[case])
    with pytest.raises(CorruptFileError) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


# ---- commands ----


@pytest.mark.parametrize("suffix", [".extxyz", ".jsonl"])
def test_gfm_predict(tmp_path, saved, suffix, capsys):
    frames = [molecule("CH3CH2OH"), bulk("Cu", cubic=True)]
    write(tmp_path / "in.extxyz", frames)
    words = ["predict", str(tmp_path / "in.extxyz"), "--model", str(saved), "--head"]
    out = tmp_path / f"out{suffix}"
    assert main([*words, "first", "--uncertainty", "-o", str(out)]) == 0
    wanted = [
        row["first"] for row in Predictor(saved, ["first"], uncertainty=True).predict(read(tmp_path / "in.extxyz", ":"))
    ]
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        found = [(row["energy_uncertainty"], row["forces_uncertainty"]) for row in rows]
    else:
        found = [(a.info["energy_uncertainty"], a.arrays["forces_uncertainty"]) for a in read(out, ":")]
    for (energy, forces), right in zip(found, wanted, strict=True):
        assert energy == pytest.approx(right.energy_uncertainty.item(), rel=1e-7)
        np.testing.assert_allclose(forces, right.forces_uncertainty, rtol=1e-6)
    assert main([*words, "second", "--uncertainty", "-o", str(tmp_path / "no.jsonl")]) == 1
    assert f"head second {NONE}" in capsys.readouterr().err
    assert not (tmp_path / "no.jsonl").exists()


def test_shapes():
    """Those in the docstrings."""
    errors = random_errors(["a", "b"], 4, members=3, width=5)
    x = features(torch.randn(6, 4), torch.randn(6, 3, 4))
    assert x.shape == (6, 8)
    assert expected_errors(x, torch.ones(6), list(errors.tensors.values())).shape == (2, 3, 6, 2)
