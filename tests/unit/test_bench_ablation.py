"""Changes of a recipe, compared: real runs, of a few steps."""

import subprocess
from dataclasses import replace

import pytest
from support import ROOT
from training import SETTINGS, make_datasets

from gfm_calc.benchmarks.ablation import BASE, AblationPlan, Variant, read_variants, run_ablation
from gfm_calc.benchmarks.report import tables
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.train.cli import find_recipe

FEW = [s for s in SETTINGS if s.startswith(("model", "optimizer"))] + ["run.steps=4", "run.structures=4"]


def test_a_recipe_and_its_changes(tmp_path):
    data = make_datasets(tmp_path / "datasets", (24, 20, 6))
    settings = [*FEW, f"data.path={data}", 'data.heads=["crystals", "clusters"]', "data.validation=0.3"]
    variants = [Variant(name="wider", settings=("model.num_features=24",)), Variant(name="same", settings=())]
    variants.append(Variant(name="the larger head alone", settings=("data.tau=4",)))
    plan = AblationPlan(recipe="tiny", variants=variants, settings=settings, seeds=2, repeats=1, processes=2)
    rows = run_ablation(plan)
    noise = f"{BASE}, other seeds 1"
    assert [row["variant"] for row in rows] == [BASE, noise, "wider", "same", "the larger head alone"]
    base, again, wider, same, drawn = rows
    assert again["errors"] != base["errors"] != drawn["errors"] and again["parameters"] == base["parameters"]
    assert base["ratios"] == pytest.approx({term: 1.0 for term in base["ratios"]})
    assert same["errors"] == base["errors"]  # the same bits
    assert wider["parameters"] > base["parameters"] and wider["ratios"]["forces"] != 1
    assert len(base["errors"]["crystals"]["forces_mae_mev_per_a"]) == 2
    assert len(next(iter(tables({"benchmark": "ablation", "seeds": 2, "variants": rows}))).rows) == 5


def test_a_comparison_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    data = make_datasets(tmp_path / "datasets", (12, 10, 6))
    settings = [*FEW, f"data.path={data}", 'data.heads=["crystals"]', "data.validation=0.3"]
    plan = AblationPlan(recipe="tiny", variants=(), settings=settings, seeds=2, work=tmp_path / "work")
    real, calls = subprocess.run, []

    def counted(words, **options):
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(words, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(plan)
    rows = run_ablation(plan)
    assert len(calls) == 3  # the first run is not made again, the one that was cut off is
    assert rows == run_ablation(plan) and len(calls) == 3
    assert rows[0]["errors"] == run_ablation(replace(plan, work=None))[0]["errors"] and len(calls) == 5


def test_what_is_no_list_of_variants(tmp_path):
    path = tmp_path / "variants.toml"
    for content, message in (
        ("", "write \\[\\[variants\\]\\]"),
        ('[[variants]]\nname = "a"', "variant 0: write name"),
        ('[[variants]]\nname = "a"\nset = ["x=1"]\nsets = 1', "variant 0: write name"),
        ('[[variants]]\nname = "a"\nset = []\n[[variants]]\nname = "a"\nset = []', "two variants are called 'a'"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_variants(path)
    path.write_text('[[variants]]\nname = "a"\nset = ["run.steps=2", "optimizer.ema=0.5"]')
    variants = [Variant(name="a", settings=("run.steps=2", "optimizer.ema=0.5"))]
    assert read_variants(path) == ("", variants)
    path.write_text('title = "Steps"\n' + path.read_text())
    assert read_variants(path) == ("Steps", variants)


def test_committed_changes_are_of_their_recipe():
    """And each of them changes it."""
    folder = ROOT / "benchmarks" / "ablations"
    pages = sorted(path for path in folder.glob("*.toml") if path.name != "recipe.toml")
    assert len(pages) >= 4
    recipe = find_recipe(str(folder / "recipe.toml"), ["data.path=datasets"])
    for path in pages:
        title, variants = read_variants(path)
        assert title and variants
        for variant in variants:
            changed = find_recipe(str(folder / "recipe.toml"), ["data.path=datasets", *variant.settings])
            assert changed != recipe, f"{path}: {variant.name}"


def test_what_cannot_be_compared(tmp_path):
    data = make_datasets(tmp_path / "datasets", (12, 10, 6))
    settings = [*FEW, f"data.path={data}"]
    plan = AblationPlan(recipe="tiny", variants=(Variant(name="a", settings=("run.stepz=1",)),), settings=settings)
    with pytest.raises(GFMError, match="did you mean 'steps'"):
        run_ablation(plan)
    other = Variant(name="other", settings=("data.validation=0.1",))
    with pytest.raises(ConfigError, match="variant 'other': data.validation has to be the same"):
        run_ablation(AblationPlan(recipe="tiny", variants=(other,), settings=settings))
    plan = AblationPlan(recipe="tiny", variants=(), settings=[*settings, "data.validation=0.0"])
    with pytest.raises(ConfigError, match="nothing to validate on"):
        run_ablation(plan)
