"""Where the head of a property begins: least squares on what the model knows."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from gfm_calc.checkpoint import load_model
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.store import open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import CorruptFileError
from gfm_calc.finetune import readout
from gfm_calc.finetune.readout import FEWEST, _Fit, begin_head, fit_readout
from gfm_calc.predictor import Predictor

NAMES = ("CH3OH", "CH3CH2OH", "C6H6", "CH3COOH", "CH3CONH2", "H2O", "NH3", "C2H6", "CH3CHO", "HCOOH")


def structures(count: int, seed: int = 0) -> list[Atoms]:
    random = np.random.default_rng(seed)
    found = []
    for k in range(count):
        atoms = molecule(NAMES[k % len(NAMES)])
        atoms.positions += random.normal(scale=0.1, size=atoms.positions.shape)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def model():
    return load_model("gfm-small")


def dataset_of(model, place, kind, extensive, count=60, seed=0):
    """Labels that a sum over atoms of the model's own knowledge explains, with what elements add."""
    frames = structures(count, seed)
    rows = Predictor(model, ["gfn2-xtb"]).predict(frames)
    import ase.io

    for atoms, row in zip(frames, rows):
        energy = row["gfn2-xtb"].energy.item()
        value = {"class": float(len(atoms) > 8), "scalar": energy if extensive else energy / len(atoms)}[kind]
        atoms.info["p"] = value
    path = place / "frames.extxyz"
    ase.io.write(path, frames)
    card = HeadSpec(name="mine", kind=kind, extensive=extensive, quantity="p", unit="eV")
    build_flat(place / "data", file_tasks([path], options=ReadOptions(property_key="p")), card)
    return open_dataset(place / "data"), frames


@pytest.mark.parametrize("extensive", [True, False])
def test_what_the_model_knows_is_found_at_once(model, extensive, tmp_path):
    """Energies of an old head are linear in its hidden units and the composition."""
    dataset, _ = dataset_of(model, tmp_path, "scalar", extensive)
    said: list[str] = []
    begun = begin_head(tmp_path / "start", model, dataset, np.arange(len(dataset)), said.append)
    start = load_model(begun.where)
    assert start.model_id == begun.model_id and start.specs["mine"].reference_energies == begun.references
    fresh = structures(30, seed=1)
    truth = [row["gfn2-xtb"].energy.item() for row in Predictor(model, ["gfn2-xtb"]).predict(fresh)]
    truth = np.array(truth) / (1 if extensive else [len(atoms) for atoms in fresh])
    found = np.array([row["mine"].value.item() for row in Predictor(start, ["mine"], strict=False).predict(fresh)])
    spread = np.std(truth - np.mean(truth))
    assert np.abs(found - truth).mean() < 0.02 * spread
    for name in model.energy_heads:  # the old heads are as they were
        index = model.energy_heads.index(name)
        assert torch.equal(model.energy_stack.hidden[index], start.energy_stack.hidden[index])


def test_the_network_says_what_the_fit_says(model, tmp_path, monkeypatch):
    """Also where what is linear in the features is used: two hidden units make a linear function."""
    dataset, frames = dataset_of(model, tmp_path, "scalar", False)
    monkeypatch.setattr(readout, "_widest", lambda units, count: np.arange(count))
    whole = _Fit.left_out
    # Fits with fewer columns look worse: the linear ones win.
    monkeypatch.setattr(_Fit, "left_out", lambda self, ridge: whole(self, ridge) + 1e3 / len(self._spread))
    found = fit_readout(model, dataset, np.arange(len(dataset)))
    assert found.linear and found.hidden.shape == (model.config.head_width, model.config.num_features)
    np.testing.assert_array_equal(found.hidden[-1], -found.hidden[-2])
    start = readout._with_readout(model, dataset.head, found)
    values = [row["mine"].value.item() for row in Predictor(start, ["mine"], dtype="float64").predict(frames)]
    row = model.energy_heads.index(found.head)
    seen = readout._seen(model, dataset, np.arange(len(dataset)), list(found.references))
    units = seen.hidden[:, row, : model.config.head_width - 2] @ found.output[:-2]
    linear = (seen.features @ found.hidden[-2]) * found.output[-2]
    composition = seen.composition @ [found.references[symbol] for symbol in seen.symbols]
    np.testing.assert_allclose(values, found.scale * (units + linear) + composition, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ridge", [1e-4, 0.1])
def test_left_out_errors_are_those_of_fits_to_all_others(ridge):
    random = np.random.default_rng(0)
    columns, labels = random.normal(size=(30, 6)), random.normal(size=30)
    columns = (columns - columns.mean(0)) / columns.std(0)
    errors = []
    for k in range(30):
        others = np.arange(30) != k
        design = np.column_stack([columns, np.ones(30)])
        held = np.diag([30 * ridge] * 6 + [0.0])
        weights = np.linalg.solve(design[others].T @ design[others] + held, design[others].T @ labels[others])
        errors.append(abs(labels[k] - design[k] @ weights))
    assert _Fit(columns, labels, np.ones(6)).left_out(ridge) == pytest.approx(np.mean(errors))


def test_a_class_begins_on_the_right_side(model, tmp_path):
    dataset, frames = dataset_of(model, tmp_path, "class", False)
    begun = begin_head(tmp_path / "start", model, dataset, np.arange(len(dataset)), lambda line: None)
    values = [row["mine"].value.item() for row in Predictor(load_model(begun.where), ["mine"]).predict(frames)]
    right = [(value > 0.5) == (len(atoms) > 8) for value, atoms in zip(values, frames)]
    assert np.mean(right) > 0.9


def test_few_labels_and_other_kinds_begin_with_random_weights(model, tmp_path):
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=FEWEST - 1)
    assert begin_head(tmp_path / "start", model, dataset, np.arange(len(dataset)), lambda line: None) is None
    assert not (tmp_path / "start").exists()


def test_what_was_fitted_is_kept_and_damage_is_seen(model, tmp_path):
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=20)
    where, said = tmp_path / "start", []
    first = begin_head(where, model, dataset, np.arange(len(dataset)), said.append)
    assert begin_head(where, model, dataset, np.arange(len(dataset)), said.append) == first and len(said) == 1
    weights = next(where.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CorruptFileError):
        begin_head(where, model, dataset, np.arange(len(dataset)), said.append)
