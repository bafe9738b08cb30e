"""Configurations and head cards: strict, exact, and refused with the nearest valid word."""

import json
import math

import pytest
from support import head_spec

from gfm_calc.config import HeadSpec, ModelConfig, from_mapping, read_toml, to_mapping
from gfm_calc.errors import ConfigError, InputFileError


def test_round_trip_is_exact():
    spec = head_spec(
        "pbe", charges=(-1, 2), reference_energies={"H": -13.605693122994, "C": 1 / 3}, elements=("H", "C")
    )
    assert from_mapping(HeadSpec, json.loads(json.dumps(to_mapping(spec))), "card") == spec
    config = ModelConfig(cutoff=5.1, repulsion=None)
    assert from_mapping(ModelConfig, json.loads(json.dumps(to_mapping(config))), "config") == config


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^recipe: unknown key 'cutof' \(did you mean 'cutoff'\?\)$"):
        from_mapping(ModelConfig, {"cutof": 5.0}, "recipe")


def test_missing_key_and_wrong_container():
    with pytest.raises(ConfigError, match="card: .*name"):
        from_mapping(HeadSpec, {}, "card")
    with pytest.raises(ConfigError, match="expected a table, found list"):
        from_mapping(HeadSpec, [], "card")


@pytest.mark.parametrize(
    "values",
    [
        {"cutoff": math.nan}, {"cutoff": -1}, {"cutoff": "5"}, {"cutoff": True}, {"num_features": 16.5},
        {"num_features": 10**9}, {"num_layers": 0}, {"envelope_exponent": 2}, {"repulsion": "coulomb"}, {"encoder": 3},
        {"avg_num_neighbors": None}, {"head_width": []},
    ],
)  # fmt: skip
def test_impossible_model(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        from_mapping(ModelConfig, values, "model")


@pytest.mark.parametrize(
    "values",
    [
        {"name": "PBE D3"}, {"name": 3}, {"name": ""}, {"name": "x" * 80}, {"kind": "tensor"}, {"dispersion": "yes"},
        {"elements": ["Xx"], "reference_energies": {"Xx": 0.0}}, {"elements": ["X"], "reference_energies": {"X": 0.0}},
        {"elements": ["H"]}, {"elements": "H"}, {"elements": [["H"]]}, {"elements": 3}, {"elements": None},
        {"reference_energies": ["H"]}, {"reference_energies": {"H": math.inf}}, {"reference_energies": {"H": "1"}},
        {"reference_energies": {"H": True}}, {"charges": [1]}, {"charges": [2, 1]}, {"charges": ["a", "b"]},
        {"charges": {"a": 1}}, {"max_excess_spin": "2"}, {"extensive": "no"}, {"unit": 3}, {"description": None},
        {"test_errors": []}, {"training_data": "x"}, {"periodicity": 1}, {"labels": ["calculated"]}, {"kind": {}},
        {"landmarks": 1}, {"landmarks": 3, "kind": "vector"},
        {"landmarks": -1, "kind": "class"}, {"landmarks": 2001, "kind": "class"}, {"landmarks": "3", "kind": "class"},
        {"landmarks": 1.5, "kind": "class"}, {"landmarks": True, "kind": "class"}, {"landmarks": 3, "kind": "atom_scalar"},
        {"nonnegative": 1, "kind": "scalar", "extensive": False}, {"nonnegative": True}, {"nonnegative": True, "kind": "scalar"},
        {"nonnegative": True, "kind": "scalar", "extensive": False, "stiffness": "pbe"}, {"nonnegative": True, "kind": "class"},
    ],
)  # fmt: skip
def test_impossible_card(values):
    with pytest.raises(ConfigError, match="^card: "):
        from_mapping(HeadSpec, {"name": "pbe"} | values, "card")


def test_card_answers():
    spec = head_spec(
        "pbe", elements=("H", "O"), reference_energies={"H": -13.0, "O": -400.1}, functional="PBE", code="VASP"
    )
    assert spec.unseen([1, 8, 92, 6, 6]) == ["C", "U"]
    assert spec.reference_energy([8, 1, 1]) == math.fsum([-400.1, -13.0, -13.0])
    assert spec.level_of_theory == "PBE/unknown (VASP)"


def test_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(InputFileError, match=r"recipe\.toml: cannot be read"):
        read_toml(path)
    path.write_text("[model]\ncutoff = 5.0")
    assert read_toml(path) == {"model": {"cutoff": 5.0}}
    for damaged in (b"[model\n", b"\xff\xfe", b"a = 1\na = 2"):
        path.write_bytes(damaged)
        with pytest.raises(InputFileError, match="not valid TOML"):
            read_toml(path)
    with pytest.raises(InputFileError):
        read_toml(tmp_path)


@pytest.mark.parametrize("extensive", [True, False])
def test_sums_and_means_may_have_landmarks(extensive):
    values = {"name": "heat", "kind": "scalar", "extensive": extensive, "landmarks": 3}
    assert from_mapping(HeadSpec, values, "card").landmarks == 3


def test_means_may_never_be_negative():
    values = {"name": "gap", "kind": "scalar", "extensive": False, "nonnegative": True}
    assert from_mapping(HeadSpec, values, "card").nonnegative
