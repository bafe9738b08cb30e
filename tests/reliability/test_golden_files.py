"""R9: files of every released format load and give their numbers; the format does not move without a new version."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from ase.build import bulk
from support import predict, random_model

from gfm_calc.artifacts import MANIFEST
from gfm_calc.checkpoint import FORMAT_VERSION, load_model, open_model, read_golden, save_model
from gfm_calc.config import ModelConfig, from_mapping, to_mapping
from gfm_calc.errors import HeadError
from gfm_calc.selfcheck import check_golden, probe_structures
from gfm_calc.train.growth import grown

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VERSIONS = range(1, FORMAT_VERSION + 1)


def golden_model():
    """The model that `tests/golden/make.py` saves: two energy heads, one of which knows its errors, and properties, one of which
    does, and is never negative; networks within atoms that are twice as wide as their features; three elements."""
    config = {"num_features": 8, "num_layers": 2, "num_radial": 4, "head_width": 4, "cutoff": 5.0, "norm": "soft"}
    common = random_model(
        dtype=torch.float32,
        heads=("first", "second"),
        elements=("H", "C", "O"),
        properties=True,
        uncertainty=("second", "gap"),
        **config,
    )
    model = grown(common, replace(common.config, expansion=2), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("source.2.weight", "gate.2.weight")
        ):  # what reads the wider half is zero, which hides mistakes in it
            half = parameter.shape[1] // 2
            parameter.data[:, half:] = 0.05 * torch.randn(parameter.shape[0], half, generator=generator)
    model.specs["gap"] = replace(model.specs["gap"], nonnegative=True)
    gap = model.properties[model.property_heads.index("gap")]
    gap.nonnegative = True
    gap.shift -= 0.8  # benzene would come out at -0.23
    return model


def golden_structures(spec):
    """Ethanol and benzene but for a head of crystals, and a crystal."""
    diamond = bulk("C")
    diamond.rattle(0.05, seed=1)
    return [*([] if spec.stiffness else probe_structures()[:2]), diamond]


@pytest.mark.promise("R9")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_loads_and_gives_its_numbers(version):
    directory = GOLDEN / f"model-v{version}"
    assert directory.is_dir(), f"format {version} has no golden directory: run tests/golden/make.py and commit it"
    for dtype in (torch.float64, torch.float32):
        model = load_model(directory, dtype=dtype)
        golden = read_golden(directory)
        assert sum(len(entries) for entries in golden["predictions"].values()) >= 4
        for check in check_golden(model, golden):
            assert check.passed, f"{dtype}: {check}"


@pytest.mark.promise("R9")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_check_sees_another_model(version):
    """Golden numbers that anything passes would guard nothing."""
    model = load_model(GOLDEN / f"model-v{version}", dtype=torch.float64)
    model.energy_stack.shift.data += 1e-6
    assert not all(check.passed for check in check_golden(model, read_golden(GOLDEN / f"model-v{version}")))


@pytest.mark.promise("R9")
def test_numbers_that_do_not_come_from_our_own_check():
    """Energies of the golden model, written down here: a change that moves code and file together is seen as well."""
    model = load_model(GOLDEN / f"model-v{FORMAT_VERSION}", dtype=torch.float64)
    numbers = json.loads((GOLDEN / "energies.json").read_text())
    ethanol, benzene = probe_structures()[:2]
    for head, wanted in numbers.items():
        found = [predict(model, atoms, head).energy.item() for atoms in (ethanol, benzene)]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.promise("R9")
def test_properties_of_the_golden_model():
    model = load_model(GOLDEN / f"model-v{FORMAT_VERSION}", dtype=torch.float64)
    numbers = json.loads((GOLDEN / "properties.json").read_text())
    assert list(numbers) == list(model.property_heads) and model.specs["gap"].landmarks
    assert model.specs["gap"].nonnegative and numbers["gap"][1] == [0.0] and numbers["gap"][0][0] > 0
    assert model.specs["volume"].stiffness and model.specs["volume"].landmarks
    for head, wanted in numbers.items():
        for atoms, values in zip(golden_structures(model.specs[head]), wanted, strict=True):
            np.testing.assert_allclose(predict(model, atoms, head).value.flatten(), values, rtol=1e-8, atol=1e-10)


@pytest.mark.promise("R9")
@pytest.mark.parametrize("version", range(1, 5))
def test_properties_of_formats_that_saw_the_last_layer_alone(version):
    """Whatever the first layers say, the numbers are those of the narrow network that is in the file, and all units can learn."""
    directory = GOLDEN / f"model-v{version}"
    model = load_model(directory, dtype=torch.float64)
    raw = safetensors.torch.load(open_model(directory).read("weights.safetensors"))
    layers = torch.randn(model.config.num_layers, 5, model.config.num_features, dtype=torch.float64)
    assert len(model.properties) >= 3
    for number, head in enumerate(model.properties):
        first, last = ((raw[f"properties.{number}.net.{k}.weight"].double(), raw[f"properties.{number}.net.{k}.bias"].double())
                       for k in (0, 2))  # fmt: skip
        assert first[0].shape[1] == model.config.num_features < head.net[0].weight.shape[1]
        wanted = torch.nn.functional.linear(
            torch.nn.functional.silu(torch.nn.functional.linear(layers[-1], *first)), *last
        )
        torch.testing.assert_close(head.net(torch.cat(list(layers), dim=1)), wanted, rtol=1e-12, atol=1e-12)
        assert head.net[0].weight.any(dim=1).all()


@pytest.mark.promise("R9")
def test_expected_errors_of_the_golden_model():
    """From format 2 on a model may know its errors; one of format 1 says that it does not."""
    model = load_model(GOLDEN / f"model-v{FORMAT_VERSION}", dtype=torch.float64)
    wanted = json.loads((GOLDEN / "uncertainties.json").read_text())
    found = [predict(model, atoms, "second", uncertainty=True) for atoms in probe_structures()[:2]]
    np.testing.assert_allclose([f.energy_uncertainty.item() for f in found], wanted["energy"], rtol=1e-8)
    np.testing.assert_allclose([f.forces_uncertainty.sum().item() for f in found], wanted["forces"], rtol=1e-8)
    found = [predict(model, atoms, "gap", uncertainty=True) for atoms in probe_structures()[:2]]
    np.testing.assert_allclose([f.value_uncertainty.item() for f in found], wanted["gap"], rtol=1e-8)
    with pytest.raises(HeadError, match="head second has no uncertainty"):
        predict(load_model(GOLDEN / "model-v1"), probe_structures()[0], "second", uncertainty=True)


def layout(directory) -> dict:
    """Everything about a saved model's format that a reader depends on."""
    artifact = open_model(directory)
    weights, errors = (safetensors.torch.load(artifact.read(f"{n}.safetensors")) for n in ("weights", "uncertainty"))
    heads = artifact.read_json("heads.json")
    golden = artifact.read_json("golden.json")
    return {
        "manifest": sorted(json.loads((Path(directory) / MANIFEST).read_bytes())),
        "files": sorted(artifact.files),
        "config": sorted(artifact.read_json("config.json")),
        "heads": [sorted(head) for head in heads],
        "weights": {name: [str(t.dtype), list(t.shape)] for name, t in sorted(weights.items())},
        "uncertainty": {name: [str(t.dtype), list(t.shape)] for name, t in sorted(errors.items())},
        "golden": [sorted(golden), sorted({key for s in golden["structures"] for key in s})],  # not which structures
    }


@pytest.mark.promise("R9")
def test_the_format_moves_only_with_a_new_version(tmp_path):
    save_model(golden_model(), tmp_path / "now")
    assert open_model(tmp_path / "now").format_version == FORMAT_VERSION
    assert layout(tmp_path / "now") == layout(GOLDEN / f"model-v{FORMAT_VERSION}"), (
        "the format of saved models has changed: raise checkpoint.FORMAT_VERSION, add a migration, run tests/golden/make.py"
    )


@pytest.mark.promise("R9")
def test_saving_what_was_loaded_gives_the_same_files(tmp_path):
    """Bytes of config, cards and weights survive a round trip: nothing is lost, rounded or reordered."""
    directory = GOLDEN / f"model-v{FORMAT_VERSION}"
    save_model(load_model(directory), tmp_path / "again")
    before, after = open_model(directory), open_model(tmp_path / "again")
    for name in ("config.json", "heads.json", "weights.safetensors", "uncertainty.json", "uncertainty.safetensors"):
        assert after.files[name] == before.files[name], name
    config = before.read_json("config.json")
    assert to_mapping(from_mapping(ModelConfig, config, "golden")) == config
