"""Errors on a test split, against a case worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from support import predict, random_model

from gfm_calc.benchmarks.accuracy import draw, figures, load_test_frames, measure, recipe_files, write_cards
from gfm_calc.benchmarks.provenance import weights_id
from gfm_calc.checkpoint import load_model, open_model
from gfm_calc.errors import ConfigError, HeadError, InputFileError
from gfm_calc.predictor import Predictor
from gfm_calc.train.frames import TEST, TRAIN, Frames

ENERGY_ERRORS = np.array([0.03, -0.05])  # eV/atom, of the two test frames that can be predicted
FORCE_ERROR = 0.02  # eV/Å on every component of the first
STRESS_ERROR = 0.001  # eV/Å³ on the xx component of the second


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Two training and three test frames of one head; labels are the model's own numbers plus known errors.

    Test: a water molecule (with forces), a CO crystal (with stress), and one that the head refuses.
    """
    model = random_model(elements=("H", "C", "O"))
    numbers = [[1, 1], [8], [8, 1, 1], [6, 8], [79]]
    positions = [
        [[0, 0, 0], [0, 0, 0.8]], [[0, 0, 0]], [[0, 0, 0], [0.9, 0, 0], [0, 0.95, 0]], [[0, 0, 0], [1.2, 1.3, 1.1]], [[0, 0, 0]],
    ]  # fmt: skip
    sizes = [len(z) for z in numbers]
    total = sum(sizes)
    cells, pbc = np.zeros((5, 3, 3)), np.zeros((5, 3), dtype=bool)
    cells[3], pbc[3] = np.diag([3.0, 3.1, 3.2]), True
    blank = Frames(
        heads=("first",), numbers=np.concatenate(numbers), positions=np.concatenate(positions).astype(float),
        forces=np.full((total, 3), np.nan), ptr=np.cumsum([0, *sizes]), cell=cells, pbc=pbc,
        energy=np.array([-3.0, -10.0, 0.0, 0.0, -1.0]), stress=np.full((5, 3, 3), np.nan), charge=np.zeros(5, dtype=int),
        spin=np.zeros(5, dtype=int), head=np.zeros(5, dtype=int), side=np.array([TRAIN, TRAIN, TEST, TEST, TEST]),
        source=np.array(["a", "a", "b", "c", "c"]),
    )  # fmt: skip
    energy, forces, stress = blank.energy.copy(), blank.forces.copy(), blank.stress.copy()
    for index, error in zip((2, 3), ENERGY_ERRORS):
        found = predict(model, blank.atoms(index), "first")
        energy[index] = float(found.energy) - error * sizes[index]
        if index == 2:
            forces[3:6] = found.forces.numpy() - FORCE_ERROR
        else:
            stress[3] = found.stress[0].numpy()
            stress[3, 0, 0] += STRESS_ERROR
    return replace(blank, energy=energy, forces=forces, stress=stress)


@pytest.fixture(scope="module")
def entry(frames):
    model = random_model(elements=("H", "C", "O"))
    return measure({"first": Predictor(model, ["first"])}, frames)["first"]


def test_model_figures(entry):
    assert entry["model"] == {
        "frames": 2,
        "energy_mae_mev_per_atom": pytest.approx(40.0, abs=1e-3),
        "energy_rmse_mev_per_atom": pytest.approx(1e3 * np.sqrt((0.03**2 + 0.05**2) / 2), abs=1e-3),
        "forces_mae_mev_per_a": pytest.approx(20.0, abs=1e-3),
        "forces_rmse_mev_per_a": pytest.approx(20.0, abs=1e-3),
        "stress_mae_mev_per_a3": pytest.approx(1.0 / 6, abs=1e-4),
        "stress_rmse_mev_per_a3": pytest.approx(1.0 / np.sqrt(6), abs=1e-4),
    }


def test_refused_frames_are_counted_with_their_reason(entry):
    assert entry["test_frames"] == 3
    ((reason, count),) = entry["refused"].items()
    assert count == 1 and "Au" in reason


def test_figures_by_source_leave_out_what_has_no_labels(entry):
    assert set(entry["by_source"]) == {"b", "c"}
    assert entry["by_source"]["b"]["energy_mae_mev_per_atom"] == pytest.approx(30.0, abs=1e-3)
    assert "stress_mae_mev_per_a3" not in entry["by_source"]["b"]
    assert "forces_mae_mev_per_a" not in entry["by_source"]["c"]
    assert entry["compositions"] == 2


def test_baselines(entry, frames):
    energies, sizes = frames.energy[2:4], np.array([3, 2])
    mean = (-3.0 / 2 + -10.0) / 2  # eV/atom of the two training frames
    wanted = np.abs(mean - energies / sizes).mean()
    assert entry["mean"]["energy_mae_mev_per_atom"] == pytest.approx(1e3 * wanted, rel=1e-4)
    reference = random_model(elements=("H", "C", "O")).specs["first"].reference_energies
    sums = np.array([reference["O"] + 2 * reference["H"], reference["C"] + reference["O"]])
    assert entry["references"]["energy_mae_mev_per_atom"] == pytest.approx(
        1e3 * np.abs((sums - energies) / sizes).mean(), rel=1e-4
    )
    labels = frames.forces[3:6]
    for name in ("mean", "references", "composition"):
        assert entry[name]["forces_mae_mev_per_a"] == pytest.approx(1e3 * np.abs(labels).mean(), rel=1e-4)


def test_limited_draw_is_seeded_and_sorted():
    indices = np.arange(100, 200)
    drawn = draw(indices, 10, seed=3)
    assert len(drawn) == 10 and (np.diff(drawn) > 0).all() and set(drawn) <= set(indices)
    assert (drawn == draw(indices, 10, seed=3)).all()
    assert (draw(indices, None, seed=3) == indices).all()


def test_no_frames_give_no_figures():
    assert figures([]) == {"frames": 0}


def test_unknown_head_of_the_data(frames):
    with pytest.raises(HeadError, match="second"):
        measure({"second": Predictor(random_model(), ["second"])}, frames)


def test_recipes(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[heads]]\nname = "one"\n[[heads.files]]\nname = "a"\n[[heads.files]]\nname = "b"\n')
    assert recipe_files(recipe, tmp_path) == {"one": [tmp_path / "a.extxyz.xz", tmp_path / "b.extxyz.xz"]}
    recipe.write_text("[model]\nencoder = 1\n")
    with pytest.raises(ConfigError, match="r.toml"):
        recipe_files(recipe, tmp_path)


def test_cache_of_another_recipe_is_refused(tmp_path, frames):
    recipe, cache = tmp_path / "r.toml", tmp_path / "c.npz"
    recipe.write_text('[[heads]]\nname = "one"\n[[heads.files]]\nname = "a"\n')
    np.savez(cache, **{**frames.__dict__, "heads": np.array(frames.heads)})
    with pytest.raises(InputFileError, match="first"):
        load_test_frames(recipe, tmp_path, cache)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_damaged_cache_is_refused_by_name(tmp_path, content):
    recipe, cache = tmp_path / "r.toml", tmp_path / "c.npz"
    recipe.write_text('[[heads]]\nname = "one"\n[[heads.files]]\nname = "a"\n')
    cache.write_bytes(content)
    with pytest.raises(InputFileError, match="c.npz"):
        load_test_frames(recipe, tmp_path, cache)
    assert cache.read_bytes() == content
    with pytest.raises(InputFileError, match=r"a\.extxyz\.xz"):
        load_test_frames(recipe, tmp_path, None)


def test_cards_take_the_figures_and_weights_stay(tmp_path, saved_model, entry):
    from gfm_calc.checkpoint import save_model

    model = load_model(saved_model)
    save_model(model, tmp_path / "m", provenance={"recipe": "r.toml"})
    before = weights_id(open_model(tmp_path / "m"))
    write_cards(tmp_path / "m", {"first": entry})
    assert dict(load_model(tmp_path / "m").specs["first"].test_errors) == entry["model"]
    assert weights_id(open_model(tmp_path / "m")) == before
    assert open_model(tmp_path / "m").read_json("provenance.json") == {"recipe": "r.toml"}
