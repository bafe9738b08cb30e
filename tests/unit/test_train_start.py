"""What a training begins with: energies that a saved model had are kept, whatever references and scales the new data suggest."""

from dataclasses import replace

import pytest
import torch
from ase.build import bulk
from labelled import need_adios
from support import predict, random_model
from training import make_datasets

from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.config import to_mapping
from gfm_calc.errors import ConfigError
from gfm_calc.model import GFMModel
from gfm_calc.train.mean import main
from gfm_calc.train.models import starting_model
from gfm_calc.train.preparation import prepare
from gfm_calc.train.recipe import recipe_of

METALS = ("Al", "Ni", "Cu", "Pt", "H", "C", "N", "O")
DENSE = bulk("Cu", cubic=True)  # so many neighbours that references and shifts are the same but for a part in 1e-8


def nearly(first, second):
    torch.testing.assert_close(first.energy, second.energy, rtol=0, atol=1e-4)
    torch.testing.assert_close(first.forces, second.forces, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A saved model, and what a run on other data begins with: one head that goes on, one that begins as another."""
    need_adios()
    folder = tmp_path_factory.mktemp("start")
    make_datasets(folder / "data")
    source = random_model(heads=("crystals", "others"), elements=METALS)
    save_model(source, folder / "model")
    recipe = recipe_on(folder, source)
    prepared = prepare(recipe, source.config.cutoff)
    return source, starting_model(recipe, prepared), {head.spec.name: head for head in prepared}, folder


def recipe_on(folder, source, **larger):
    heads = [{"name": "crystals", "start": "crystals"}, {"name": "clusters", "start": "others"}, {"name": "molecules"}]
    model = to_mapping(source.config) | larger
    values = {"model": model, "heads": heads, "start": {"model": str(folder / "model")}}
    return recipe_of(values, [f"data.path={folder / 'data'}"])


def test_a_head_that_goes_on_begins_with_the_energies_that_it_had(begun):
    source, model, heads, _ = begun
    assert heads["crystals"].scale != pytest.approx(float(source.energy_stack.scale[0]))
    atoms = DENSE.copy()
    atoms.rattle(0.2, seed=1)
    nearly(predict(model, atoms, "crystals"), predict(source, atoms, "crystals"))
    assert model.specs["crystals"].reference_energies != source.specs["crystals"].reference_energies


def test_a_head_that_begins_as_another_has_the_scale_of_its_data(begun):
    source, model, heads, _ = begun
    row = model.energy_heads.index("clusters")
    assert float(model.energy_stack.scale[row]) == heads["clusters"].scale
    assert torch.equal(model.energy_stack.hidden[row], source.energy_stack.hidden[1])


def test_a_larger_model_begins_with_the_energies_of_the_smaller_one(begun):
    source, _, heads, folder = begun
    larger = recipe_on(folder, source, expansion=3, num_radial=12, num_layers=3, head_width=40)
    lines = []
    model = starting_model(larger, list(heads.values()), lines.append)
    assert model.config.expansion == 3 and len(lines) == 1 and "num_radial 6 to 12" in lines[0]
    atoms = DENSE.copy()
    atoms.rattle(0.2, seed=1)
    nearly(predict(model, atoms, "crystals"), predict(source, atoms, "crystals"))
    with pytest.raises(ConfigError, match=r"start\.model .*: model\.num_features is 16 there; only num_layers, "):
        starting_model(recipe_on(folder, source, num_features=32), list(heads.values()))
    for still in ({"encoder_rate": 0.0}, {"adapter_rank": 2}):
        recipe = replace(larger, start=replace(larger.start, **still))
        with pytest.raises(ConfigError, match=r"model\.num_layers can only grow where all of the encoder learns"):
            starting_model(recipe, list(heads.values()))
    wider = recipe_on(folder, source, head_width=40)  # heads learn in any case
    assert starting_model(replace(wider, start=replace(wider.start, encoder_rate=0.0)), list(heads.values()))


def test_a_model_grows_where_heads_that_the_run_does_not_take_could_not(begun, tmp_path):
    _, _, heads, folder = begun
    source = random_model(heads=("crystals", "others"), elements=METALS, properties=True)
    save_model(source, tmp_path / "model")
    recipe = recipe_on(folder, source, num_layers=3)
    recipe = replace(recipe, start=replace(recipe.start, model=str(tmp_path / "model")))
    model = starting_model(recipe, list(heads.values()))
    atoms = DENSE.copy()
    atoms.rattle(0.2, seed=1)
    nearly(predict(model, atoms, "crystals"), predict(source, atoms, "crystals"))


def test_a_mean_is_of_energies_whatever_references_and_scales_are(tmp_path):
    """The same energies in other words: their mean is the same."""
    first = random_model(elements=METALS)
    specs = [
        replace(spec, reference_energies={s: e + 1.5 for s, e in spec.reference_energies.items()})
        for spec in first.specs.values()
    ]
    second = GFMModel(first.config, specs).to(first.dtype)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    state["energy_stack.shift"] -= 1.5
    state["energy_stack.scale"] /= 2
    state["energy_stack.output"] *= 2
    second.load_state_dict(state)
    save_model(first, tmp_path / "a")
    save_model(second.requires_grad_(False).eval(), tmp_path / "b")
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "mean")]) == 0
    atoms = DENSE.copy()
    atoms.rattle(0.2, seed=1)
    mean = load_model(tmp_path / "mean")
    for head in first.specs:
        nearly(predict(mean, atoms, head), predict(first, atoms, head))
