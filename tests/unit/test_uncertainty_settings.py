"""`gfm bench uncertainty --settings`: ways to learn expected errors are judged by validation structures alone."""

from dataclasses import replace

import pytest
import torch
from support import random_model
from training import make_datasets

from gfm_calc.benchmarks import report_uncertainty, uncertainty_settings
from gfm_calc.benchmarks.provenance import read_result
from gfm_calc.benchmarks.uncertainty_settings import BASE, Setting, halves_of, run_settings
from gfm_calc.checkpoint import save_model
from gfm_calc.cli import main
from gfm_calc.errors import ConfigError
from gfm_calc.train.cli import find_recipe
from gfm_calc.train.preparation import prepare
from gfm_calc.train.residuals import Residuals
from gfm_calc.train.uncertainty import FitPlan

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
    (head, _) = prepare(find_recipe("tiny", [f'data.path="{folder / "data"}"', f"data.heads={list(HEADS)}"]), 4.5)
    side_of = {row: side for side in ("train", "validation") for row in head.sides[side]}
    monkeypatch.setattr(uncertainty_settings, "residuals", lambda model, head, rows: drawn(side_of[rows[0]]))
    monkeypatch.setattr(uncertainty_settings, "bounds", lambda *args: drawn("train"))
    halves = torch.arange(0, 300, 2), torch.arange(1, 300, 2)
    monkeypatch.setattr(uncertainty_settings, "halves_of", lambda head, rows: halves)
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
    assert base[:4] == [BASE, "+0.0000", "-", "0 of 1"] and float(scalars[1]) > 0.1


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


def test_no_group_is_in_both_halves(folder):
    """Two structures are a group here; every structure is in one of the halves, and the draw is not that of the sides."""
    settings = [f'data.path="{folder / "data"}"', f"data.heads={list(HEADS)}", "data.validation=0.5"]
    for head in prepare(find_recipe("tiny", settings), 4.5):
        rows = head.sides["validation"]
        groups = head.dataset.read(rows, names=True).group
        stop, judge = halves_of(head, rows)
        assert sorted([*stop.tolist(), *judge.tolist()]) == list(range(len(rows))) and len(stop) and len(judge)
        assert not {groups[k] for k in stop} & {groups[k] for k in judge}
        (one,) = {len(part) for part in halves_of(head, rows[:0])}
        assert one == 0


def test_a_single_group_cannot_be_judged(folder, monkeypatch):
    """Half of it would say when to stop for the other half."""
    monkeypatch.setattr(uncertainty_settings, "_FEWEST", 1)
    settings = [f'data.path="{folder / "data"}"', f"data.heads={list(HEADS)}", "data.validation=0.5"]
    (head, _) = prepare(find_recipe("tiny", settings), 4.5)
    groups = head.dataset.read(head.sides["validation"], names=True).group
    mine = head.sides["validation"][[group == groups[0] for group in groups]]
    assert len(mine) == 2
    model = random_model(dtype=torch.float32, heads=HEADS, elements=ELEMENTS)
    with pytest.raises(ConfigError, match="halves by group"):
        run_settings(model, [replace(head, sides={**head.sides, "validation": mine})], plan=replace(QUICK, fewest=1))


def test_the_table_shows_what_other_seeds_differ_by():
    """A setting is compared with the mean of the base and its repeats, over their spread."""

    def row(setting, seed, *surprises):
        told = {"forces": {"spearman": 0.5, "auroc": 0.6, "miscalibration": 0.1}}
        return {
            "setting": setting,
            "seed": seed,
            "heads": {n: {"surprise": s, **told} for n, s in zip("ab", surprises)},
        }

    rows = [row(BASE, 0, 0.1, 0.1), row("again", 1, 0.2, 0.2), row("third", 2, 0.3, 0.3), row("wide", 0, 0.4, 0.1)]
    (table,) = report_uncertainty.uncertainty_settings({"rows": rows, "left_out": ["x", "y"]})
    assert [line[:4] for line in table.rows] == [
        [BASE, "-0.1000", "-1.0", "2 of 2"], ["again", "+0.0000", "+0.0", "0 of 2"], ["third", "+0.1000", "+1.0", "0 of 2"],
        ["wide", "+0.0500", "+0.5", "1 of 2"],
    ]  # fmt: skip
    assert "over 3 seeds: 0.1, up to twice that is noise. Too few such structures: x, y" in table.title
    (table,) = report_uncertainty.uncertainty_settings({"rows": [rows[0], rows[3]]})
    assert "seeds" not in table.title and table.rows[1][1:3] == ["+0.1500", "-"]


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    """Fewer structures than it takes are refused in one line, and so are outside structures."""
    (tmp_path / "r.toml").write_text("[data]\nvalidation = 0.5\ntest = 0.1\n")
    words = ["bench", "uncertainty", "--model", str(folder / "model"), "--data", str(folder / "data")]
    words += ["--recipe", str(tmp_path / "r.toml")]
    assert main([*words, "--settings"]) == 1
    assert "no head has 100 training structures with forces and 20 validation structures in" in capsys.readouterr().err
    assert main([*words, "--settings", "--outside", f"crystals={folder / 'crystals.extxyz'}"]) == 1
    assert "leave --outside away" in capsys.readouterr().err
    monkeypatch.setattr(uncertainty_settings, "_FEWEST", 1)
    monkeypatch.setattr(uncertainty_settings, "FitPlan", lambda: replace(QUICK, fewest=4))
    settings = (Setting(BASE), Setting("again", {"seed": 1}), Setting("1 network", {"members": 1}))
    monkeypatch.setattr(uncertainty_settings, "SETTINGS", settings)
    assert main([*words, "--settings", "-o", str(tmp_path / "settings.json")]) == 0
    shown, found = capsys.readouterr().out, read_result(tmp_path / "settings.json")
    assert "\n1 network " in shown and "standard deviation of the first's over 2 seeds" in shown
    assert [row["seed"] for row in found["rows"]] == [0, 1, 0]
    base, again, _ = (row["heads"] for row in found["rows"])
    assert base != again and set(base) | set(found["left_out"]) == set(HEADS)


def test_settings_are_those_of_the_plan():
    """None is spelled wrong, and none is what the plan does anyway."""
    for setting in uncertainty_settings.SETTINGS[1:]:
        changed = replace(FitPlan(), **setting.changes)
        x = torch.randn(2, 4)
        assert changed != FitPlan() or not torch.equal(setting.seen(x), x)


def test_no_head_at_all(folder):
    with pytest.raises(ConfigError, match="no head has"):
        run_settings(random_model(heads=HEADS, elements=ELEMENTS), [], plan=QUICK)
