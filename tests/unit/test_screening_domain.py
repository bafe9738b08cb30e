"""How far from the training data: the statistics, the command that makes them, and the rows that are flagged."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from screenings import argv, need_pyarrow, rows
from support import batch_of, random_model, structures
from test_screening_command import refused
from training import make_datasets

from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.cli import main
from gfm_calc.errors import ConfigError, CorruptFileError
from gfm_calc.model import GFMModel
from gfm_calc.screening import domain
from gfm_calc.screening.domain import Features, arranged, encoded, features_of, features_seen, find, fit, load, save


def single(samples, numbers=None) -> Features:
    """Structures of one atom each."""
    numbers = np.full(len(samples), 29) if numbers is None else numbers
    return Features(samples, numbers, np.arange(len(samples) + 1))


def test_distances_are_those_of_mahalanobis():
    """With many samples, shrinking does next to nothing: the textbook's formula, about the mean of each element."""
    random = np.random.default_rng(0)
    numbers = random.choice([8, 29], 20_000)
    samples = random.normal(size=(20_000, 4)) @ random.normal(size=(4, 4)) + np.where(numbers == 8, 3.0, -9.0)[:, None]
    found = fit(single(samples, numbers))
    away = samples - np.where(
        (numbers == 8)[:, None], samples[numbers == 8].mean(axis=0), samples[numbers == 29].mean(axis=0)
    )
    exact = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(np.cov(away.T)), away))
    distances = found.distances(single(samples, numbers))
    assert distances == pytest.approx(exact / np.percentile(exact, 99), rel=0.02)
    assert np.mean(distances > 1) == pytest.approx(0.01, abs=0.001)
    pairs = Features(samples, numbers, np.arange(0, 20_001, 2))
    assert found.distances(pairs) == pytest.approx(distances.reshape(-1, 2).mean(axis=1))
    assert np.isnan(found.distances(single(samples[:1], np.array([54]))))


def test_few_samples_of_many_features_are_shrunk():
    """The covariance of 30 samples of 60 features is singular; the shrunk one finds what lies outside all the same."""
    random = np.random.default_rng(1)
    scales = np.geomspace(0.1, 3, 60)
    found = fit(single(random.normal(size=(30, 60)) * scales))
    inside, outside = (single(random.normal(size=(50, 60)) * scales * factor) for factor in (1, 4))
    assert found.distances(outside).min() > found.distances(inside).max()
    assert np.isfinite(fit(single(np.ones((30, 5)))).distances(single(np.ones((2, 5))))).all()
    with pytest.raises(ConfigError, match="too few"):
        fit(single(np.zeros((19, 5))))


def test_features_of_the_prediction_are_those_of_a_pass_of_their_own():
    model = random_model()
    several = list(structures().values())
    batch = batch_of(model, *several)
    with features_seen(model) as seen:
        model.predict(batch, ["first", "third"])
    assert len(seen) == 1 and not model.encoder._forward_hooks
    own, alone = encoded(model, batch), features_of(model, several)
    assert all(np.array_equal(a, b) for a, b in zip(arranged(seen[0], batch), own))
    assert np.abs(alone.scalars - own.scalars).max() < 1e-9
    assert np.array_equal(alone.ptr, own.ptr) and np.array_equal(alone.numbers, own.numbers)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory):
    """(datasets, a model with their heads, its statistics)."""
    need_pyarrow()
    folder = tmp_path_factory.mktemp("domain")
    data = make_datasets(folder / "data")
    model = random_model(dtype=torch.float32)
    specs = [replace(model.specs["first"], name=name, periodicity=()) for name in ("crystals", "other")]
    save_model(GFMModel(model.config, specs).requires_grad_(False).eval(), folder / "model")
    assert (
        main(["domain", str(data), "--model", str(folder / "model"), "-o", str(folder / "domain"), "--threads", "1"])
        == 0
    )
    return data, folder / "model", folder / "domain"


def test_far_candidates_are_flagged(crystals, tmp_path):
    data, model, statistics = crystals
    frames = list(ase.io.iread(data.parent / "crystals.extxyz"))
    frames += [bulk("Cu", cubic=True, a=2.6), bulk("Ni", cubic=True, a=4.8), bulk("Pt", cubic=True)]
    for atoms in frames:
        atoms.calc = None
    ase.io.write(tmp_path / "in.extxyz", frames)
    words = argv(
        [tmp_path / "in.extxyz"], tmp_path / "run", model, "--domain", str(statistics), heads=("crystals", "other")
    )
    assert main(words) == 0
    found = rows(tmp_path / "run")
    own, other = found[::2], found[1::2]
    assert sum(row["domain_distance"] > 1 for row in own[:40]) == 1  # of 40 in training, 99 % are within
    assert own[42]["domain_distance"] is None  # no platinum in the statistics
    for row in own[40:42]:
        assert row["domain_distance"] > 1 and "times as far as training data" in row["domain"]
    assert all(row["domain_distance"] is None and row["domain"] == "" for row in other)
    exact = load(statistics).distances(["crystals"], features_of(load_model(model), frames))[0]
    assert [row["domain_distance"] for row in own[:42]] == pytest.approx(exact[:42], rel=1e-3) and np.isnan(exact[42])
    assert main(argv([tmp_path / "in.extxyz"], tmp_path / "compiled", model, "--domain", str(statistics), "--compile",
                     heads=("crystals", "other"))) == 0  # fmt: skip
    again = [row["domain_distance"] for row in rows(tmp_path / "compiled")[::2]]
    assert again[:42] == pytest.approx(exact[:42], rel=1e-3)


def test_statistics_belong_to_weights_and_folders(crystals, saved_model, tmp_path, capsys):
    data, model, statistics = crystals
    ase.io.write(tmp_path / "in.extxyz", [bulk("Cu")])
    words = argv([tmp_path / "in.extxyz"], tmp_path / "run", model, heads=("crystals",))
    assert main([*words, "--domain", str(statistics)]) == 0
    refused(words, capsys, "another --domain")
    refused(
        argv([tmp_path / "in.extxyz"], tmp_path / "b", saved_model, "--domain", str(statistics)),
        capsys,
        "other weights",
    )
    refused([*words, "--domain", str(tmp_path)], capsys, "not a gfm-calc domain")
    refused(["domain", str(data), "--model", str(saved_model), "-o", str(tmp_path / "d")], capsys, "no head of")
    assert find("none", str(model)) is None and find("auto", str(model)) is None
    path = next(statistics.glob("domain-*.safetensors"))
    saved = path.read_bytes()
    path.write_bytes(saved[:-1] + b"?")
    with pytest.raises(CorruptFileError, match="checksum"):
        load(statistics)
    path.write_bytes(saved)


def test_the_training_side_of_a_recipe_alone(crystals, tmp_path, capsys):
    """Structures that a recipe holds out leave no trace."""
    data, model, _ = crystals
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\ncutoff = 4.0\n[data]\npath = ""\ntest = 0.3\nvalidation = 0.1\n')
    words = ["domain", str(data), "--model", str(model), "-o", str(tmp_path / "part"), "--recipe", str(recipe)]
    assert main(words) == 0, capsys.readouterr().err
    from gfm_calc.train.cli import find_recipe
    from gfm_calc.train.preparation import prepare

    sides = {
        head.spec.name: head for head in prepare(find_recipe(str(recipe), [f"data.path={json.dumps(str(data))}"]), 4.0)
    }
    head = sides["crystals"]
    chosen = head.sides["train"]
    assert 0 < len(chosen) < len(head.dataset)
    wanted = fit(features_of(load_model(model), (r.structure() for r in head.dataset.read(chosen).records())))
    assert load(tmp_path / "part").heads["crystals"].means == pytest.approx(wanted.means, rel=1e-5)


def test_the_packaged_model_has_statistics(packaged_model):
    """Made for exactly its weights: a new model needs new ones (`gfm domain`)."""
    found = find("auto", packaged_model)
    assert found is not None and "distilled-7net-l3i5" in found.heads
    near = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    squeezed = bulk("NaCl", "rocksalt", a=2.6, cubic=True)
    far = found.distances(["distilled-7net-l3i5"], features_of(load_model(packaged_model), [near, squeezed]))[0]
    assert far[0] < 1 < far[1]


def test_packaged_statistics_are_small():
    size = sum(path.stat().st_size for path in domain.PACKAGED.rglob("*") if path.is_file())
    assert 0 < size < 1_800_000  # 22 heads of 128 features


def test_save_and_load_are_inverse(tmp_path):
    random = np.random.default_rng(0)
    given = {name: fit(single(random.normal(size=(500, 6)) @ random.normal(size=(6, 6)))) for name in "ab"}
    save(tmp_path / "d", "0" * 64, given)
    found = load(tmp_path / "d")
    points = single(random.normal(size=(9, 6)))
    assert list(found.heads) == ["a", "b"] and found.weights == "0" * 64
    assert found.distances(["b", "c"], points)[0] == pytest.approx(given["b"].distances(points), rel=1e-5)
    assert np.isnan(found.distances(["c"], points)).all()
