"""Saved models: the same model back, cards and golden numbers, migrations, and crafted files that fit their checksums."""

import json

import pytest
import safetensors.torch
import torch
from support import batch_of, head_spec, random_model, same, structures
from test_artifacts import reseal

from gfm_calc import artifacts, checkpoint
from gfm_calc.checkpoint import describe, list_models, load_model, open_model, read_golden, resolve, save_model
from gfm_calc.config import to_mapping
from gfm_calc.errors import CorruptFileError, GFMError, UnsupportedVersionError
from gfm_calc.selfcheck import check_golden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_model_comes_back(tmp_path, dtype):
    model = random_model(dtype=dtype, properties=True, seed=5)
    save_model(model, tmp_path / "m", provenance={"command": "test"})
    loaded = load_model(tmp_path / "m")
    assert loaded.config == model.config and loaded.specs == model.specs
    assert list(loaded.specs) == list(model.specs)
    assert loaded.dtype == dtype
    assert loaded.model_id == model.model_id != ""
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    batch = batch_of(model, *structures().values())
    wanted, found = (m.predict(batch, list(model.specs), stresses=True) for m in (model, loaded))
    assert all(same(found[head], wanted[head]) for head in wanted)


def test_dtype_of_choice(saved_model):
    assert load_model(saved_model).dtype == torch.float32
    exact = load_model(str(saved_model), dtype=torch.float64)
    assert exact.dtype == torch.float64
    assert all(check.passed for check in check_golden(exact, read_golden(saved_model)))
    assert all(check.passed for check in check_golden(load_model(saved_model), read_golden(saved_model)))


def test_description_needs_no_tensor(saved_model, monkeypatch):
    monkeypatch.setattr(checkpoint.safetensors.torch, "load", lambda *_: pytest.fail("a tensor was read"))
    card = describe(saved_model)
    assert [head["name"] for head in card["heads"]][:3] == ["first", "second", "third"]
    assert card["format_version"] == checkpoint.FORMAT_VERSION
    assert card["model_id"] == open_model(saved_model).digest[:16]
    json.dumps(card)


def test_names_and_paths(tmp_path, saved_model):
    assert resolve(saved_model) == saved_model.resolve()
    with pytest.raises(GFMError, match="no model 'gfm-smal': neither packaged nor a directory"):
        resolve("gfm-smal")
    for nonsense in (None, 3, b"gfm-small", ["gfm-small"]):
        with pytest.raises(GFMError, match="a packaged name or a directory"):
            resolve(nonsense)
    (tmp_path / "file").write_text("x")
    with pytest.raises(GFMError, match="no model"):
        load_model(tmp_path / "file")
    with pytest.raises(CorruptFileError, match="not a gfm-calc model"):
        load_model(tmp_path)
    assert list_models() == sorted(list_models())


def test_saving_over_a_model_replaces_it(tmp_path):
    first, second = random_model(seed=1), random_model(seed=2)
    save_model(first, tmp_path / "m")
    save_model(second, tmp_path / "m")
    assert load_model(tmp_path / "m").model_id == second.model_id != first.model_id
    assert len(list((tmp_path / "m").iterdir())) == 6


# ---- versions ----


def test_newer_formats_are_refused(saved_model, monkeypatch):
    current = checkpoint.FORMAT_VERSION
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 0)
    with pytest.raises(UnsupportedVersionError, match=f"format {current} is newer than 0"):
        load_model(saved_model)


def test_migrations_run_in_order(tmp_path, monkeypatch):
    """Version 1 called the cutoff `radius`, version 2 had no head_width: both load as version 3."""
    model = random_model()
    save_model(model, tmp_path / "m")
    wanted = load_model(tmp_path / "m").specs
    old = to_mapping(model.config)
    old["radius"] = old.pop("cutoff")
    width = old.pop("head_width")
    files = {name: open_model(tmp_path / "m").read(name) for name in open_model(tmp_path / "m").files}
    files["config.json"] = artifacts.canonical_json(old)
    artifacts.commit(tmp_path / "m", files, kind="model", format_version=1)

    def to_2(parts):
        config = dict(parts["config"])
        config["cutoff"] = config.pop("radius")
        return parts | {"config": config}

    def to_3(parts):
        assert "cutoff" in parts["config"]
        return parts | {"config": parts["config"] | {"head_width": width}}

    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    monkeypatch.setattr(checkpoint, "MIGRATIONS", {1: to_2, 2: to_3})
    loaded = load_model(tmp_path / "m")
    assert loaded.config == model.config and loaded.specs == wanted
    assert describe(tmp_path / "m")["config"]["cutoff"] == model.config.cutoff
    monkeypatch.setattr(checkpoint, "MIGRATIONS", {2: to_3})
    with pytest.raises(CorruptFileError, match="claims format 1, which never existed"):
        load_model(tmp_path / "m")


# ---- crafted files: every checksum fits ----


def craft(directory, name, change):
    """Replace one file of a saved model by `change(content)`, with a manifest that vouches for it."""
    artifact = open_model(directory)
    files = {key: artifact.read(key) for key in artifact.files}
    files[name] = change(files[name])
    kept = {k: v for k, v in files.items() if v is not None}
    artifacts.commit(directory, kept, kind="model", format_version=artifact.format_version)


def edit_json(change):
    def edit(raw):
        value = json.loads(raw)
        return artifacts.canonical_json(change(value))

    return edit


def edit_weights(change):
    def edit(raw):
        state = safetensors.torch.load(raw)
        change(state)
        return safetensors.torch.save(state)

    return edit


def edit_weight(name, change):
    return edit_weights(lambda state: state.update({name: change(state[name])}))


CRAFTED = {
    "a head removed": ("heads.json", edit_json(lambda heads: heads[1:])),
    "a head twice": ("heads.json", edit_json(lambda heads: [heads[0], heads[0], heads[2]])),
    "a head more": ("heads.json", edit_json(lambda heads: [*heads, to_mapping(head_spec("fourth", elements=("H",)))])),
    "heads no list": ("heads.json", edit_json(lambda heads: {"heads": heads})),
    "a head is null": ("heads.json", edit_json(lambda heads: [None, *heads[1:]])),
    "a head with an unknown key": ("heads.json", edit_json(lambda heads: [heads[0] | {"exec": "x"}, *heads[1:]])),
    "elements null": ("heads.json", edit_json(lambda heads: [heads[0] | {"elements": None}, *heads[1:]])),
    "references a list": ("heads.json", edit_json(lambda heads: [heads[0] | {"reference_energies": [1]}, *heads[1:]])),
    "config null": ("config.json", lambda _: b"null\n"),
    "config empty": ("config.json", lambda _: b""),
    "another width": ("config.json", edit_json(lambda config: config | {"num_features": 20})),
    "an unknown encoder": ("config.json", edit_json(lambda config: config | {"encoder": "os.system"})),
    "a huge model": ("config.json", edit_json(lambda config: config | {"num_features": 10**9})),
    "cutoff text": ("config.json", edit_json(lambda config: config | {"cutoff": "5"})),
    "weights empty": ("weights.safetensors", lambda _: b""),
    "weights no safetensors": ("weights.safetensors", lambda raw: b"\x80\x04" + raw),
    "weights header too long": ("weights.safetensors", lambda raw: b"\xff" * 8 + raw[8:]),
    "weights cut": ("weights.safetensors", lambda raw: raw[:-4]),
    "a weight NaN": ("weights.safetensors", edit_weights(lambda s: s["energy_stack.output"].fill_(float("nan")))),
    "a weight inf": ("weights.safetensors", edit_weights(lambda s: s["energy_stack.scale"].fill_(float("inf")))),
    "a weight missing": ("weights.safetensors", edit_weights(lambda s: s.pop("energy_stack.hidden"))),
    "no weights": ("weights.safetensors", edit_weights(lambda s: s.clear())),
    "a weight more": ("weights.safetensors", edit_weights(lambda s: s.update(more=torch.zeros(1)))),
    "a weight of integers": ("weights.safetensors", edit_weight("energy_stack.shift", torch.Tensor.long)),
    "a weight of half precision": ("weights.safetensors", edit_weight("energy_stack.hidden", torch.Tensor.half)),
    "a weight transposed": ("weights.safetensors", edit_weight("energy_stack.output", lambda t: t.t().contiguous())),
    "no weights file": ("weights.safetensors", lambda _: None),
    "no heads file": ("heads.json", lambda _: None),
}  # fmt: skip


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_parts_are_refused(tmp_path, case):
    save_model(random_model(elements=("H", "C", "O")), tmp_path / "m")
    craft(tmp_path / "m", *CRAFTED[case])
    with pytest.raises(CorruptFileError) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_part_of_another_model_is_refused(tmp_path):
    save_model(random_model(), tmp_path / "a")
    save_model(random_model(num_features=20), tmp_path / "b")
    weights = open_model(tmp_path / "b").read("weights.safetensors")
    craft(tmp_path / "a", "weights.safetensors", lambda _: weights)
    with pytest.raises(CorruptFileError, match="do not belong together"):
        load_model(tmp_path / "a")


def test_another_kind_of_artifact_is_refused(tmp_path):
    save_model(random_model(), tmp_path / "m")
    reseal(tmp_path / "m", lambda manifest: manifest.update(kind="dataset"))
    with pytest.raises(CorruptFileError, match="is a 'dataset', not a model"):
        load_model(tmp_path / "m")
