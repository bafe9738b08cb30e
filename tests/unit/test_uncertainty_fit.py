"""Learning expected errors: known ones are found again, the model does not move; and the benchmark that judges them."""

import json
from copy import deepcopy
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support import predict, random_model, same
from training import make_datasets

from gfm_calc.benchmarks.provenance import read_result
from gfm_calc.benchmarks.report import markdown
from gfm_calc.benchmarks.uncertainty import figures
from gfm_calc.benchmarks.uncertainty_methods import METHODS, Alternatives, look
from gfm_calc.checkpoint import describe, load_model, open_model, save_model
from gfm_calc.cli import main
from gfm_calc.data.loader import Loader
from gfm_calc.finetune import sureness
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.train import uncertainty
from gfm_calc.train.cli import find_recipe
from gfm_calc.train.preparation import prepare, save_preparation
from gfm_calc.train.residuals import Residuals, residuals
from gfm_calc.train.squeezed import bounds, squeezed
from gfm_calc.train.squeezed import vanishes as real_vanishes
from gfm_calc.train.uncertainty import FitPlan, calibrated, fit
from gfm_calc.uncertainty import features

HEADS = ("crystals", "clusters", "molecules")
ELEMENTS = ("H", "C", "N", "O", "Al", "Ni", "Cu", "Pt")


# ---- the fit ----


def drawn(structures: int, seed: int, scale: float = 1.0) -> tuple[Residuals, torch.Tensor, torch.Tensor]:
    """Errors distributed exponentially about known means [N] and [B], which depend on the features."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (structures,), generator=generator)
    batch = torch.repeat_interleave(torch.arange(structures), sizes)
    x = torch.randn(len(batch), 6, generator=generator) * torch.tensor([1, 5, 0.1, 1, 1, 1]) + 2
    forces = scale * torch.exp(0.8 * x[:, 0] - 3)
    energy = torch.zeros(structures).index_add(0, batch, scale * torch.exp(-0.5 * x[:, 3] - 2)) / sizes
    errors = [torch.empty_like(u).exponential_(generator=generator) * u for u in (forces, energy)]
    errors[0][::5] = torch.nan  # not labelled
    return Residuals(x, torch.ones(len(batch)), batch, sizes, *(e.double() for e in errors)), forces, energy


def test_known_errors_are_found_again():
    train, validation = drawn(1500, 0)[0], drawn(400, 1, scale=3.0)[0]
    weights, scale = calibrated(fit(train, validation, FitPlan()), validation)
    assert scale["forces"] == pytest.approx(3, rel=0.3) and scale["energy"] == pytest.approx(3, rel=0.3)
    test, *right = drawn(400, 2, scale=3.0)
    for found, wanted in zip(test.expected(weights), right):
        found = found.mean(dim=0)
        assert spearmanr(found, wanted).statistic > 0.9
        assert float((found / wanted).median()) == pytest.approx(1, rel=0.2)


def test_errors_far_away_are_no_smaller_than_bounds():
    """Along a feature that says nothing on the training side; what is expected there stays as right as it was."""
    train, validation, test = (drawn(count, seed) for count, seed in ((800, 0), (200, 1), (300, 2)))
    away = torch.tensor([0, 0, 0, 0, 40, -40])
    bound = float(np.nanquantile(train[0].forces, 0.99))
    far = train[0].take(torch.arange(100))
    far = far._replace(
        x=far.x + away, forces=torch.full_like(far.forces, bound), energy=torch.full_like(far.energy, 0.3)
    )
    there = test[0]._replace(x=test[0].x + away)
    found = {}
    for name, least in (("without", None), ("with", far)):
        weights = fit(train[0], validation[0], FitPlan(), least)
        found[name] = [part.expected(weights)[0].mean(dim=0) for part in (test[0], there)]
    assert (found["with"][1] > 0.5 * bound).float().mean() > 0.95 > (found["without"][1] > 0.5 * bound).float().mean()
    for here, _ in found.values():
        assert spearmanr(here, test[1]).statistic > 0.9
        assert float((here / test[1]).median()) == pytest.approx(1, rel=0.25)


def test_bounds_are_of_squeezed_training_structures(data):
    head = next(
        h for h in prepare(find_recipe("tiny", [f'data.path="{data / "data"}"']), 4.5) if h.spec.name == "clusters"
    )
    model = random_model("painn", heads=("clusters",), elements=ELEMENTS)
    train = residuals(model, head, head.sides["train"])
    found = bounds(model, head, train, 0)
    assert len(found.x) == int(found.atoms.sum()) and found.x.shape[1] == train.x.shape[1]
    assert not torch.isin(found.x[:, 0], train.x[:, 0]).any()
    for mine, errors in ((found.forces, train.forces), (found.energy, train.energy)):
        known = mine[torch.isfinite(mine)]
        assert len(known) and (known == float(np.nanquantile(errors, 0.99))).all()
    again, other = (bounds(model, head, train, seed) for seed in (0, 1))
    assert torch.equal(found.x, again.x) and not torch.equal(found.x, other.x)


def test_where_all_is_right_the_weights_stay_finite():
    """A property that the head knows exactly on the validation side."""
    train, validation = drawn(200, 0)[0], drawn(50, 1)[0]
    validation = validation._replace(forces=0 * validation.forces, energy=0 * validation.energy)
    weights, scale = calibrated(fit(train, validation, FitPlan(steps=20)), validation)
    assert all(torch.isfinite(tensor).all() for tensor in weights) and scale == {"forces": 0.0, "energy": 0.0}


def test_the_fit_does_not_touch_torchs_random_numbers():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    part = drawn(30, 0)[0]
    torch.set_rng_state(before)
    first, second = (fit(part, part, FitPlan(steps=20)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(fit(part, part, FitPlan(steps=20, seed=1))[0], first[0])


# ---- the command ----


@pytest.fixture(autouse=True, scope="module")
def whatever_is_expected_of_squeezed_atoms():
    """These models have learnt next to nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "vanishes", lambda *args: False)
        yield


def test_errors_that_vanish_where_atoms_come_close(data):
    """A network that expects smaller ones of squeezed crystals is told from one that expects larger ones."""
    head = next(
        h for h in prepare(find_recipe("tiny", [f'data.path="{data / "data"}"']), 4.5) if h.spec.name == "crystals"
    )
    model = random_model("painn", heads=("crystals",), elements=ELEMENTS)
    size = 2 * model.config.num_features
    structures = [head.dataset.record(int(row)).structure() for row in head.sides["train"][:4]]
    graphs, close = (
        [AtomicGraph.build(squeezed(atoms, factor), model.config.cutoff) for atoms in structures]
        for factor in (1.0, 0.6)
    )
    means = []
    for some in (graphs, close):
        encoded = model.encode(model.inputs(GraphBatch.from_graphs(some)))
        means.append(features(encoded.scalars, encoded.vectors).mean(dim=0).detach())
    towards = (means[1] - means[0]).float()
    for sign, gone in ((1.0, False), (-1.0, True)):
        hidden = sign * 20 * (towards / towards.square().sum()).reshape(1, size, 1)
        bias = -(means[0].float() @ hidden[0]).reshape(1, 1) + 20
        output = torch.tensor([[[0.2, 0.0]]])
        assert real_vanishes(model, head, [hidden, bias, output, torch.full((1, 2), -8.0)]) is gone


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Datasets of three heads, of which `molecules` has no forces; and a model of the same heads, saved."""
    folder = tmp_path_factory.mktemp("uncertainty")
    make_datasets(folder / "data", counts=(24, 24, 12))
    save_model(
        random_model(dtype=torch.float32, heads=HEADS, elements=ELEMENTS), folder / "model", provenance={"recipe": "r"}
    )
    return folder


@pytest.fixture(scope="module")
def fitted(data):
    """The same model, knowing its errors."""
    words = [
        "uncertainty",
        str(data / "model"),
        "--data",
        str(data / "data"),
        "--recipe",
        "tiny",
        "-o",
        str(data / "fitted"),
    ]
    assert main([*words, "--structures", "20", "--fewest", "10", "--cache", str(data / "cache")]) == 0
    return data / "fitted"


def test_the_model_stays_as_it_was(data, fitted):
    before, after = open_model(data / "model"), open_model(fitted)
    assert after.files["weights.safetensors"] == before.files["weights.safetensors"]
    assert after.read_json("provenance.json") == {"recipe": "r"}
    assert load_model(data / "model").uncertainty is None
    known = describe(fitted)["uncertainty"]
    assert [entry["head"] for entry in known] == ["clusters", "crystals"]
    assert all(10 < entry["structures"] <= 20 and entry["validation"] > 0 for entry in known)
    atoms = ase.io.read(data / "crystals.extxyz", 0)
    asked = predict(load_model(fitted), atoms, "crystals", uncertainty=True)
    assert asked.energy_uncertainty > 0 and (asked.forces_uncertainty > 0).all()
    silent = [predict(load_model(path), atoms, "crystals") for path in (data / "model", fitted)]
    assert same(*silent) and torch.equal(asked.forces, silent[0].forces)


def test_what_the_data_do_not_hold_is_kept_or_named(data, fitted, tmp_path, capsys):
    """A run that has one head alone leaves what the model knows of the others."""
    recipe = find_recipe("tiny", [f'data.path="{data / "data"}"', 'data.heads=["crystals"]'])
    save_preparation(tmp_path / "run" / "data", prepare(recipe, 4.5))
    words = [
        "uncertainty",
        str(fitted),
        "--run",
        str(tmp_path / "run"),
        "-o",
        str(tmp_path / "m"),
        "--structures",
        "10",
        "--fewest",
        "10",
    ]
    assert main(words) == 0
    assert "no uncertainty, no data of these here: molecules" in capsys.readouterr().out
    old, new = load_model(fitted).uncertainty, load_model(tmp_path / "m").uncertainty
    assert list(new.figures) == ["clusters", "crystals"] and new.figures["crystals"]["structures"] == 10
    for name, tensor in new.tensors.items():
        assert torch.equal(tensor[0], old.tensors[name][0]) and not torch.equal(tensor[1], old.tensors[name][1])


def test_a_head_of_few_structures_gets_none_and_loses_what_it_had(data, fitted, tmp_path, capsys):
    words = ["uncertainty", str(fitted), "--data", str(data / "data"), "--recipe", "tiny", "-o", str(tmp_path / "m")]
    assert main(words) == 1  # 24 structures, where 100 are wanted
    assert (
        "fewer than 100 training structures with labelled forces: clusters, crystals, molecules"
        in capsys.readouterr().err
    )
    sizes = {
        h.spec.name: len(h.sides["train"]) for h in prepare(find_recipe("tiny", [f'data.path="{data / "data"}"']), 4.5)
    }
    few, many = sorted(("clusters", "crystals"), key=sizes.__getitem__)
    assert sizes[few] < sizes[many], sizes
    assert main([*words, "--fewest", str(sizes[many])]) == 0
    said = f"no uncertainty, fewer than {sizes[many]} training structures with labelled forces: {few}"
    assert said in capsys.readouterr().out.replace(", molecules", "")
    assert list(load_model(tmp_path / "m").uncertainty.figures) == [many]


def test_data_without_forces_are_refused(data, tmp_path, capsys):
    recipe = find_recipe("tiny", [f'data.path="{data / "data"}"', 'data.heads=["molecules"]'])
    save_preparation(tmp_path / "run" / "data", prepare(recipe, 4.5))
    words = ["uncertainty", str(data / "model"), "--run", str(tmp_path / "run"), "--fewest", "1"]
    assert main([*words, "-o", str(tmp_path / "m")]) == 1
    assert "no head of this model gets expected errors: fewer than 1 training structures" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_heads_whose_errors_would_vanish_get_none_and_the_reason_is_named(data, fitted, tmp_path, capsys, monkeypatch):
    """One of them, then all."""
    words = ["uncertainty", str(fitted), "--data", str(data / "data"), "--recipe", "tiny", "-o", str(tmp_path / "m")]
    words += ["--structures", "10", "--fewest", "5"]
    monkeypatch.setattr(uncertainty, "vanishes", lambda model, head, weights: head.spec.name == "clusters")
    assert main(words) == 0
    assert "no uncertainty, what they expect would vanish where atoms come close: clusters" in capsys.readouterr().out
    assert list(load_model(tmp_path / "m").uncertainty.figures) == ["crystals"]
    monkeypatch.setattr(uncertainty, "vanishes", lambda *args: True)
    assert main([*words[:-4], "--fewest", "5", "-o", str(tmp_path / "n")]) == 1
    said = capsys.readouterr().err
    assert (
        "would vanish where atoms come close: clusters, crystals; fewer than 5" in said
        and not (tmp_path / "n").exists()
    )


def test_a_new_head_says_why_it_gets_none(data, monkeypatch):
    heads = prepare(find_recipe("tiny", [f'data.path="{data / "data"}"']), 4.5)
    head = next(head for head in heads if head.spec.name == "crystals")
    model = load_model(data / "model")
    said = sureness.in_words(sureness.learn(model, head, "test"))
    assert said == "expected errors: none; fewer than 100 training structures with labelled forces"
    monkeypatch.setattr(sureness, "_PLAN", FitPlan(fewest=5, steps=5))
    monkeypatch.setattr(uncertainty, "vanishes", lambda *args: True)
    said = sureness.in_words(sureness.learn(model, head, "test"))
    assert (
        said == "expected errors: none; what they expect would vanish where atoms come close"
        and model.uncertainty is None
    )


# ---- the benchmark ----


def test_figures_by_hand():
    errors, guesses = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 8.0])
    found = figures(errors, guesses, 2.5, calibrated=True)
    assert found["spearman"] == pytest.approx(0.8) and found["auroc"] == 1.0
    assert found["ratio"] == pytest.approx(10 / 15, rel=1e-3) and found["within_two"] == 0.75
    assert found["miscalibration"] == pytest.approx((1 + 0.5 + 0.25 + 0.5) / 4)
    assert figures(errors, guesses, 9.0, calibrated=False)["auroc"] is None  # none is large
    assert figures(errors, np.ones(4), 2.5, calibrated=False) == {"spearman": None, "auroc": 0.5}


def test_slopes_are_those_of_the_forces(data):
    """Moving the last layer moves the forces as `look` says."""
    model = deepcopy(random_model(heads=HEADS, elements=ELEMENTS))
    (batch,) = _batches(model, data)
    known = look(model, batch, "crystals")
    row, step = model.energy_heads.index("crystals"), 1e-4
    direction = torch.randn(model.config.head_width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = []
    for sign in (1, -1):
        model.energy_stack.output.data[row] += sign * step * direction
        moved.append(model.predict(batch.graph, ["crystals"])["crystals"])
        model.energy_stack.output.data[row] -= sign * step * direction
    np.testing.assert_allclose((moved[0].forces - moved[1].forces) / (2 * step), known.slopes @ direction, atol=1e-7)
    energies = (moved[0].energy - moved[1].energy) / (2 * step * known.atoms)
    np.testing.assert_allclose(energies, known.mean(known.activations @ direction), atol=1e-7)


def test_a_committee_that_agrees_guesses_nothing(data):
    """Labels that the model hits exactly leave all bootstraps the same."""
    model = random_model(heads=HEADS, elements=ELEMENTS)
    (batch,) = _batches(model, data)
    exact = replace(batch, forces=model.predict(batch.graph, ["crystals"])["crystals"].forces)
    agree, differ = (Alternatives(model, "crystals", [one]).guess(batch)["committee"] for one in (exact, batch))
    assert agree[0].max() < 1e-9 < 1e-3 < differ[0].max() and agree[1].max() < 1e-9 < differ[1].max()


def _batches(model, data):
    (head,) = prepare(find_recipe("tiny", [f'data.path="{data / "data"}"', 'data.heads=["crystals"]']), 4.5)
    return list(Loader([head.select("train")], model.config.cutoff, max_atoms=10**6).once())


def test_the_benchmark(data, fitted, tmp_path, capsys):
    words = ["bench", "uncertainty", "--model", str(fitted), "--data", str(data / "data"), "--recipe", "tiny", "--head"]
    out = tmp_path / "uncertainty.json"
    more = ["--outside", f"crystals={data / 'clusters.extxyz'}", "--max-frames", "8", "-o", str(out)]
    assert main([*words, "crystals", *more]) == 0
    assert "size of the force" in capsys.readouterr().out
    result = read_result(out)
    inside, outside = result["rows"]
    assert (inside["set"], outside["set"], outside["structures"], outside["refused"]) == ("held out", "clusters", 8, 0)
    for row in (inside, outside):
        for what in ("forces", "energy"):
            assert set(METHODS) < set(row[what]) and row[what]["error"] > 0
            assert row[what]["expected"]["ratio"] > 0
    assert inside["forces"]["large"] == outside["forces"]["large"]
    assert "--outside crystals=clusters.extxyz" in result["provenance"]["command"]
    assert "Expected errors of forces" in markdown(result)
    assert main([*words, "molecules"]) == 1
    assert "head molecules has no uncertainty" in capsys.readouterr().err


def test_outside_structures_that_a_head_refuses_are_counted(data, fitted, tmp_path):
    atoms = ase.io.read(data / "crystals.extxyz", 0)
    atoms.symbols[0] = "Au"
    ase.io.write(tmp_path / "gold.extxyz", atoms)
    words = [
        "bench",
        "uncertainty",
        "--model",
        str(fitted),
        "--data",
        str(data / "data"),
        "--recipe",
        "tiny",
        "--head",
        "crystals",
    ]
    for flags, refused in (([], 1), (["--no-strict"], 0)):
        out = tmp_path / f"{refused}.json"
        assert main([*words, "--outside", f"crystals={tmp_path / 'gold.extxyz'}", "-o", str(out), *flags]) == 0
        row = json.loads(out.read_text())["rows"][1]
        assert (row["structures"], row["refused"]) == (1 - refused, refused)
