"""Changes of a recipe, compared: real runs, of a few steps."""

import subprocess
from dataclasses import replace

import pytest
from training import SETTINGS, make_datasets

from gfm_calc.benchmarks.ablation import BASE, AblationPlan, Variant, read_variants, run_ablation
from gfm_calc.benchmarks.report import tables
from gfm_calc.errors import ConfigError, GFMError

FEW = [s for s in SETTINGS if s.startswith(("model", "optimizer"))] + ["run.steps=4", "run.structures=4"]


def test_a_recipe_and_its_changes(tmp_path):
    data = make_datasets(tmp_path / "datasets", (24, 20, 6))
    settings = [*FEW, f"data.path={data}", 'data.heads=["crystals", "clusters"]', "data.validation=0.3"]
    variants = [Variant(name="wider", settings=("model.num_features=24",)), Variant(name="same", settings=())]
    rows = run_ablation(AblationPlan(recipe="tiny", variants=variants, settings=settings, seeds=2))
    assert [row["variant"] for row in rows] == [BASE, "wider", "same"]
    base, wider, same = rows
    assert base["ratios"] == pytest.approx({term: 1.0 for term in base["ratios"]})
    assert same["errors"] == base["errors"]  # the same bits
    assert wider["parameters"] > base["parameters"] and wider["ratios"]["forces"] != 1
    assert len(base["errors"]["crystals"]["forces_mae_mev_per_a"]) == 2
    assert len(next(iter(tables({"benchmark": "ablation", "seeds": 2, "variants": rows}))).rows) == 3


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
    assert read_variants(path) == [Variant(name="a", settings=("run.steps=2", "optimizer.ema=0.5"))]


def test_what_cannot_be_compared(tmp_path):
    data = make_datasets(tmp_path / "datasets", (12, 10, 6))
    settings = [*FEW, f"data.path={data}"]
    plan = AblationPlan(recipe="tiny", variants=(Variant(name="a", settings=("run.stepz=1",)),), settings=settings)
    with pytest.raises(GFMError, match="did you mean 'steps'"):
        run_ablation(plan)
    plan = AblationPlan(recipe="tiny", variants=(), settings=[*settings, "data.validation=0.0"])
    with pytest.raises(ConfigError, match="nothing to validate on"):
        run_ablation(plan)
