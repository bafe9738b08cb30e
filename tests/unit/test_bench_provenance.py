"""Results carry who measured what with which versions, and never a path, a host or a user."""

import getpass
import json
import socket
from pathlib import Path

import pytest

from gfm_calc import __version__
from gfm_calc.benchmarks.provenance import provenance, public_command, read_result, result, weights_id, write_result
from gfm_calc.checkpoint import load_model, open_model, save_model
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError, InputFileError


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--data", "/home/me/pool"], "--data pool"),
        (["--data=/home/me/pool/"], "--data=pool"),
        (["--peer", "chgnet=/opt/env/bin/python"], "--peer chgnet=python"),
        (["--model", "~/models/mine"], "--model mine"),
        (["--cache", "../other/pool.npz"], "--cache pool.npz"),
        (["--cases", "high energies,600 K"], "--cases 'high energies,600 K'"),
        (
            ["--recipe", "train/recipes/gfm-small.toml", "--threads", "1,2"],
            "--recipe train/recipes/gfm-small.toml --threads 1,2",
        ),
    ],
)
def test_command_keeps_no_local_path(typed, shown):
    assert public_command(typed) == shown


def test_provenance_names_versions_and_machine_but_no_host(saved_model):
    about = provenance(
        ["speed", "--model", str(saved_model)], model=saved_model, threads=1, extra_versions={"CHGNet": "0.4"}
    )
    assert about["command"] == "gfm bench speed --model model"
    assert about["versions"]["gfm-calc"] == __version__
    assert {"python", "torch", "torch_geometric", "ase", "vesin", "CHGNet"} <= set(about["versions"])
    assert about["machine"]["cores"] >= 1 and about["machine"]["processor"]
    assert about["model_id"] == open_model(saved_model).digest[:16]
    text = json.dumps(about)
    for private in (socket.gethostname(), str(Path.home()), str(saved_model.parent)):
        assert private not in text or len(private) < 4
    assert getpass.getuser() not in about["command"]


def test_weights_keep_their_digest_when_cards_change(tmp_path, saved_model):
    loaded = load_model(saved_model)
    name = next(iter(loaded.specs))
    object.__setattr__(loaded.specs[name], "test_errors", {"energy_mae_mev_per_atom": 1.5})
    save_model(loaded, tmp_path / "carded")
    before, after = open_model(saved_model), open_model(tmp_path / "carded")
    assert weights_id(before) == weights_id(after) and before.digest != after.digest


@pytest.mark.parametrize(
    "text", ["/home/me/file.json", "read from /var/data/x", "model='/opt/m/w'", "~/pool/x", "C:\\data\\x"]
)
@pytest.mark.parametrize("place", ["value", "key", "list"])
def test_a_result_with_a_local_path_is_not_written(tmp_path, text, place):
    content = {"value": {"note": text}, "key": {text: 1}, "list": {"notes": [["fine"], [text]]}}[place]
    with pytest.raises(GFMError, match="local path"):
        write_result(tmp_path / "r.json", result("speed", {}, **{"content": content}))
    assert not list(tmp_path.iterdir())


def test_units_and_links_are_no_paths(tmp_path):
    fine = {
        "unit": "meV/atom/ps",
        "forces": "eV/Å",
        "doi": "https://doi.org/10.1000/x/y",
        "data": "train/recipes/a.toml",
    }
    write_result(tmp_path / "r.json", result("physics", {"date": "2026-01-01"}, **fine))
    assert read_result(tmp_path / "r.json")["unit"] == "meV/atom/ps"


def test_nan_is_not_written(tmp_path):
    with pytest.raises(GFMError, match="NaN"):
        write_result(tmp_path / "r.json", result("speed", {}, value=float("nan")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, InputFileError), ("{", CorruptFileError), ("[1]", CorruptFileError), ('{"a": 1}', ConfigError)],
)
def test_what_is_no_result_is_refused_by_name(tmp_path, content, error):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match="r.json"):
        read_result(path)
