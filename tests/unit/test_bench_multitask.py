"""Heads together and alone: real runs, of a few steps."""

import pytest
from training import SETTINGS, make_datasets

from gfm_calc.benchmarks.alone import AlonePlan, run_alone
from gfm_calc.benchmarks.multitask import MultitaskPlan, run_multitask, start_of
from gfm_calc.benchmarks.report import tables
from gfm_calc.cli import main
from gfm_calc.errors import ConfigError, GFMError


def test_heads_together_and_alone(tmp_path):
    data = make_datasets(tmp_path / "datasets", (24, 20, 6))
    settings = [setting for setting in SETTINGS if setting.startswith(("model", "optimizer"))]
    plan = MultitaskPlan(data=data, heads=("crystals", "clusters"), draws=8, structures=2, seeds=2, settings=settings)
    rows = run_multitask(plan)
    assert [row["head"] for row in rows] == ["crystals", "clusters"]
    for row in rows:
        assert len(row["together"]["forces_mae_mev_per_a"]) == len(row["alone"]["forces_mae_mev_per_a"]) == 2
        together, alone = (row[kind]["energy_mae_mev_per_atom"] for kind in ("together", "alone"))
        expected = sum(1 - a / b for a, b in zip(together, alone)) / 2
        assert row["gain"]["energy_mae_mev_per_atom"] == pytest.approx(expected) and together != alone
    (shown,) = tables({"benchmark": "multitask", "heads": rows, "about": {"start": start_of(plan)}})
    assert len(shown.rows) == 2 and " to " in shown.rows[0][-1] and "begun" not in shown.title
    begun = start_of(MultitaskPlan(data=data, settings=["start.model=runs/first/model"]))
    assert start_of(MultitaskPlan(data=data, settings=["start.model=gfm-small"])) == "gfm-small"
    (shown,) = tables({"benchmark": "multitask", "heads": rows, "about": {"start": begun}})
    assert "begun with the encoder of first" in shown.title


def test_what_cannot_be_compared(tmp_path):
    data = make_datasets(tmp_path / "datasets", (12, 10, 6))
    with pytest.raises(ConfigError, match="two heads at least"):
        run_multitask(MultitaskPlan(data=data, heads=("crystals",)))
    plan = MultitaskPlan(data=data, heads=("crystals", "clusters"), settings=["run.stepz=1"])
    with pytest.raises(GFMError, match="did you mean 'steps'"):
        run_multitask(plan)


def test_heads_of_a_model_beside_networks_of_one_head(tmp_path, monkeypatch):
    """As often seen as in all stages, tested on the same structures, and kept."""
    data = make_datasets(tmp_path / "datasets", (24, 20, 6))
    tables_of = {name: {} for name in ("model", "optimizer", "run")}
    for setting in SETTINGS:
        table, key, value = *setting.partition("=")[0].split("."), setting.partition("=")[2]
        tables_of[table][key] = value
    text = "\n".join(f"[{name}]\n" + "\n".join(f"{k} = {v}" for k, v in of.items()) for name, of in tables_of.items())
    shares = {"crystals": 3, "clusters": 1}
    text += "".join(f'\n[[heads]]\nname = "{name}"\nshare = {share}\n' for name, share in shares.items())
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    assert main(["train", str(recipe), "--set", f"data.path={data}", "-o", str(tmp_path / "run"), "--no-report"]) == 0
    later = tmp_path / "later.toml"
    later.write_text(text.replace("share =", 'start = "somebody"\nshare ='))
    plan = AlonePlan(
        model=str(tmp_path / "run" / "model"), data=data, stages=[str(recipe), str(later)], work=tmp_path / "work",
        processes=2,
    )  # fmt: skip
    rows = run_alone(plan)
    assert {row["head"]: (row["draws"], row["steps"]) for row in rows} == {
        "crystals": (24 * 6 * 3 // 2, 24 * 6 * 3 // 2 // 4), "clusters": (24 * 6 // 2, 24 * 6 // 2 // 4)
    }  # fmt: skip
    for row in rows:
        for name, gain in row["gain"].items():
            assert gain == 1 - row["together"][name][0] / row["alone"][name][0] and gain != 0
        assert len(row["gain"]) == 2
    monkeypatch.setattr("gfm_calc.benchmarks.runs.subprocess.run", None)  # nothing is trained again
    assert run_alone(plan) == rows
    (shown,) = tables({"benchmark": "alone", "heads": rows})
    assert len(shown.rows) == 2 and "one head alone" in shown.title
    recipe.write_text(text.partition("[[heads]]")[0])
    with pytest.raises(ConfigError, match="gives head .* no share"):
        run_alone(plan)
