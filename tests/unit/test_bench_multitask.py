"""Heads together and alone: real runs, of a few steps."""

import pytest
from training import SETTINGS, make_datasets

from gfm_calc.benchmarks.multitask import MultitaskPlan, run_multitask, start_of
from gfm_calc.benchmarks.report import tables
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
