"""`gfm bench uncertainty --settings`: ways to learn expected errors are judged by validation structures alone."""

from dataclasses import replace

import pytest
import torch
from support import random_model
from training import make_datasets

from gfm_calc.benchmarks import report_uncertainty, uncertainty_settings
from gfm_calc.benchmarks.uncertainty_settings import BASE, Setting, run_settings
from gfm_calc.checkpoint import save_model
from gfm_calc.cli import main
from gfm_calc.errors import ConfigError
from gfm_calc.train.cli import find_recipe
from gfm_calc.train.preparation import prepare
from gfm_calc.train.uncertainty import FitPlan, Residuals

HEADS, ELEMENTS = ("crystals", "clusters"), ("H", "C", "N", "O", "Al", "Ni", "Cu", "Pt")
QUICK = FitPlan(steps=200, fewest=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    make_datasets(folder / "data", counts=(24, 24, 12))
    model = random_model(dtype=torch.float32, heads=HEADS, elements=ELEMENTS)
    save_model(model, folder / "model", provenance={"recipe": "r"})
    return folder


def test_inputs_that_tell_errors_are_told_from_those_that_do_not(folder, monkeypatch):
    """Errors follow one of the lengths of vectors; the test side is not even there."""
    monkeypatch.setattr(uncertainty_settings, "residuals", lambda model, head, side, plan: drawn(side))
    (head, _) = prepare(find_recipe("tiny", [f'data.path="{folder / "data"}"', f"data.heads={list(HEADS)}"]), 4.5)
    head = replace(head, sides={side: rows for side, rows in head.sides.items() if side != "test"})
    chosen = [setting for setting in uncertainty_settings.SETTINGS if "alone" in setting.name or setting.name == BASE]
    model = random_model(heads=HEADS, elements=ELEMENTS)
    rows = run_settings(model, [head], settings=chosen, plan=QUICK)
    found = {row["setting"]: row["heads"][head.spec.name] for row in rows}
    assert found["scalars alone"]["surprise"] > found[BASE]["surprise"] + 0.1
    assert found["lengths of vectors alone"]["surprise"] == pytest.approx(found[BASE]["surprise"], abs=0.1)
    assert found[BASE]["forces"]["spearman"] > 0.5 > 0.2 > found["scalars alone"]["forces"]["spearman"]
    (table,) = report_uncertainty.uncertainty_settings({"rows": rows})
    base, scalars, _ = table.rows
    assert base[:3] == [BASE, "+0.000", "0 of 1"] and scalars[1].startswith("+") and float(scalars[1]) > 0.1


def drawn(side: str) -> Residuals:
    """300 structures of 4 atoms; the first four inputs say nothing about the errors."""
    generator = torch.Generator().manual_seed(len(side))
    batch = torch.arange(300).repeat_interleave(4)
    x = torch.randn(1200, 8, generator=generator)
    expected = 0.1 * torch.exp(1.5 * x[:, 5])
    forces = torch.empty_like(expected).exponential_(generator=generator) * expected
    return Residuals(
        x, torch.ones(1200), batch, torch.full((300,), 4), forces.double(), torch.full((300,), 0.1).double()
    )


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    """Fewer structures than it takes are refused in one line, and so are outside structures."""
    words = [
        "bench",
        "uncertainty",
        "--model",
        str(folder / "model"),
        "--data",
        str(folder / "data"),
        "--recipe",
        "tiny",
    ]
    assert main([*words, "--settings"]) == 1
    assert "no head has 100 training and 40 validation structures with forces" in capsys.readouterr().err
    assert main([*words, "--settings", "--outside", f"crystals={folder / 'crystals.extxyz'}"]) == 1
    assert "leave --outside away" in capsys.readouterr().err
    monkeypatch.setattr(uncertainty_settings, "_FEWEST", 1)
    monkeypatch.setattr(uncertainty_settings, "FitPlan", lambda: QUICK)
    monkeypatch.setattr(uncertainty_settings, "SETTINGS", (Setting(BASE), Setting("1 network", {"members": 1})))
    assert main([*words, "--settings", "-o", str(tmp_path / "settings.json")]) == 0
    assert "\n1 network " in capsys.readouterr().out


def test_settings_are_those_of_the_plan():
    """None is spelled wrong, and none is what the plan does anyway."""
    for setting in uncertainty_settings.SETTINGS[1:]:
        changed = replace(FitPlan(), **setting.changes)
        x = torch.randn(2, 4)
        assert changed != FitPlan() or not torch.equal(setting.seen(x), x)


def test_no_head_at_all(folder):
    with pytest.raises(ConfigError, match="no head has"):
        run_settings(random_model(heads=HEADS, elements=ELEMENTS), [], plan=QUICK)
