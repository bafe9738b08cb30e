"""`gfm models`, `gfm heads`, `gfm doctor`."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
from support import random_model

from gfm_calc import checkpoint
from gfm_calc.cli import main

HEADS = ["first", "second", "third", "gap", "volume", "population", "dipoles"]


def test_models_lists_what_is_packaged(capsys, saved_model, tmp_path, monkeypatch):
    shutil.copytree(saved_model, tmp_path / "tiny")
    monkeypatch.setattr(checkpoint, "PACKAGED", tmp_path)
    assert main(["models"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert [head["name"] for head in json.loads(capsys.readouterr().out)["tiny"]["heads"]] == HEADS


def test_heads_as_table_json_and_card(capsys, saved_model):
    assert main(["heads", str(saved_model)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2 : 2 + len(HEADS)]] == HEADS
    for column in ("level of theory", "labels", "dispersion", "elements", "charges", "references", "test error"):
        assert column in table[0]
    assert "10 elements" in table[2] and "-3 to +3" in table[2] and "not measured" in table[2]
    assert main(["heads", str(saved_model), "--json"]) == 0
    assert [head["name"] for head in json.loads(capsys.readouterr().out)] == HEADS
    assert main(["heads", str(saved_model), "second"]) == 0
    card = capsys.readouterr().out
    assert card.startswith("second: ") and "H C N O Na Al Si Cl Cu Pt" in card


def test_heads_with_a_wrong_name(capsys, saved_model):
    assert main(["heads", str(saved_model), "secund"]) == 1
    assert "did you mean 'second'?" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_doctor_finds_a_sound_model_sound(capsys, saved_model, dtype):
    assert main(["doctor", str(saved_model), "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok") == 3 + 4 * 3 and "FAILED" not in out and f"{dtype} on cpu" in out


def test_doctor_finds_other_weights_out(capsys, tmp_path):
    """A whole model, its checksums right, that no longer gives its golden numbers."""
    elements = ("H", "C", "N", "O", "Na", "Si", "Cl", "Cu", "Fe")
    checkpoint.save_model(random_model(heads=("only",), elements=elements), tmp_path / "model")
    found = checkpoint.open_model(tmp_path / "model")
    files = {name: found.read(name) for name in found.files}
    weights = safetensors.torch.load(files["weights.safetensors"])
    weights["energy_stack.output"] *= 1.1
    files["weights.safetensors"] = safetensors.torch.save(weights)
    checkpoint.artifacts.commit(tmp_path / "model", files, kind="model", format_version=checkpoint.FORMAT_VERSION)
    assert main(["doctor", str(tmp_path / "model"), "--json"]) == 1
    out, err = capsys.readouterr()
    failed = [check["check"] for check in json.loads(out) if not check["passed"]]
    assert failed == ["golden energy", "golden forces", "golden stress"]
    assert err.splitlines()[-1].startswith(f"gfm: error: {tmp_path}/model: 3 of 7 checks failed: golden energy (all)")


def test_doctor_of_one_head(capsys, saved_model):
    assert main(["doctor", str(saved_model), "--head", "second", "--json"]) == 0
    assert {check["head"] for check in json.loads(capsys.readouterr().out)} == {"all", "second"}
    assert main(["doctor", str(saved_model), "--head", "gap"]) == 1
    assert "only energy heads have checks" in capsys.readouterr().err
