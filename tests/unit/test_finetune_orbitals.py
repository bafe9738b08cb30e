"""Frontier orbitals: what is packaged belongs to one encoder and is near what GFN2-xTB says; heads that begin with it hold it."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import write
from test_finetune_readout import dataset_of, every, of_head, said, said_by
from test_finetune_readout import structures as distorted

from gfm_calc.checkpoint import load_model
from gfm_calc.data.build import build_flat
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.store import open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import CorruptFileError
from gfm_calc.finetune import mixing, orbital_training, readout
from gfm_calc.finetune.described import describe, means
from gfm_calc.finetune.orbitals import Orbitals, encoder_digest, orbitals_of, read_orbitals, written
from gfm_calc.finetune.readout import fit_readout
from gfm_calc.graph import AtomicGraph, GraphBatch

# HOMO and LUMO by tblite 0.8.0, eV, at the geometries of ASE
GFN2 = {
    "CH3CH2OH": (-11.136, 1.140), "C6H6": (-10.908, -6.087), "CH3COOH": (-11.705, -6.694), "HCN": (-12.300, -6.744),
    "CH3CONH2": (-10.808, -5.899), "C4H4O": (-10.684, -5.894),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_model("gfm-small")


def told(model, orbitals, frames) -> np.ndarray:
    batch = GraphBatch.from_graphs([AtomicGraph.build(atoms, model.config.cutoff) for atoms in frames])
    with torch.no_grad():
        return means(orbitals.of_atoms(model.encode(model.inputs(batch))), batch).numpy()


def test_what_is_packaged_is_near_the_method(model):
    """Of molecules that are smaller and simpler than what it was trained on, LUMO goes with the method's, over 8 eV."""
    found, wanted = told(model, orbitals_of(model), [molecule(name) for name in GFN2]), np.array(list(GFN2.values()))
    wrong = np.abs(found - wanted).mean(axis=0)
    assert wrong[0] < 0.4 and wrong[1] < 0.8 < 0.4 * np.abs(wanted[:, 1] - wanted[:, 1].mean()).mean()
    assert np.corrcoef(found[:, 1], wanted[:, 1])[0, 1] > 0.95


def test_it_belongs_to_one_encoder(model):
    """Whatever the dtype; an encoder that has learnt since, or another one, has none."""
    other = load_model("gfm-small", dtype=torch.float64)
    assert encoder_digest(other) == encoder_digest(model) and orbitals_of(other) is orbitals_of(model) is not None
    other.energy_stack.output.data += 1.0  # of a head
    assert orbitals_of(other) is not None
    next(other.encoder.parameters()).data[0] += 1e-3
    assert orbitals_of(other) is None


@pytest.mark.parametrize(
    "change, can",
    [({}, True), ({"charge": 0, "spin": 1}, True), ({"charge": 1, "spin": 2}, False), ({"spin": 3}, False),
     ({"remove": 0}, False), ({"element": "Fe"}, False), ({"periodic": True}, False)],
)  # fmt: skip
def test_it_tells_of_neutral_molecules_with_closed_shells(model, change, can, tmp_path):
    frames = distorted(4)
    atoms = frames[1]
    atoms.info |= {name: change[name] for name in ("charge", "spin") if name in change}
    if "remove" in change:
        del atoms[-1]
    if "element" in change:
        atoms.symbols[0] = change["element"]
    if "periodic" in change:
        atoms.set_cell([12.0] * 3)
        atoms.pbc = True
    for k, one in enumerate(frames):
        one.info["p"] = float(k)
    write(tmp_path / "frames.extxyz", frames)
    card = readout.HeadSpec(name="mine", kind="scalar", extensive=False, quantity="p", unit="eV")
    build_flat(tmp_path / "data", file_tasks([tmp_path / "frames.extxyz"], options=ReadOptions(property_key="p")), card)
    block = open_dataset(tmp_path / "data").read(np.arange(4))
    assert orbitals_of(model).can_tell(block) == can


@pytest.mark.parametrize("helps", [True, False])
def test_a_head_holds_the_guess(model, helps, tmp_path, monkeypatch):
    """The network says what the fits to what is left say, and a linear function of the orbitals; it is left out where it is of no
    use."""
    dataset, frames = dataset_of(model, tmp_path, "scalar", False, count=40)
    monkeypatch.setattr(mixing, "_TAMINGS", 0)
    monkeypatch.setattr(mixing, "_HELPFUL", np.inf if helps else 0.0)
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [0.25, 0.5, 0.25])
    rows, groups = every(dataset)
    found = fit_readout(model, dataset, rows, groups)
    orbitals = orbitals_of(model)
    assert found.orbitals == helps and len(found.heads) == (3 if helps else 4)
    assert ("GFN2-xTB would say of HOMO and LUMO" in readout._in_words(found, dataset.head)) == helps
    assert len(found.hidden) <= 4 * model.config.head_width
    seen = describe(model, dataset, rows, groups, list(found.references), orbitals=orbitals)
    if helps:
        np.testing.assert_allclose(seen.orbitals, told(model, orbitals, frames), atol=1e-4)
        mixed = mixing.mix(seen, is_sum=False, compares=True, tames=False)
        guess = seen.orbitals @ mixed.guess[:-1] + mixed.guess[-1]
        held = mixing.best(mixing.Fit([seen.orbitals], seen.labels, [1.0]), seen.groups)
        seen = seen.less(seen.labels - held.residual)
        assert mixed.error(np.arange(40)) == found.error
    else:
        guess = np.zeros(40)
    freedom = mixing.FREEDOMS[0]
    fits = sorted((of_head(k, seen, freedom) for k in range(len(model.energy_heads))), key=lambda one: one.error)
    wanted = np.mean([
        np.concatenate([seen.hidden[:, one.head][:, one.kept], seen.layers, seen.composition], axis=1) @ one.weights[:-1]
        + one.weights[-1]
        for one in fits[: 3 if helps else 4]
    ], axis=0)  # fmt: skip
    wanted = 0.25 * wanted + 0.5 * said_by(seen.layers, seen) + 0.25 * said_by(seen.features, seen) + guess
    np.testing.assert_allclose(said(model, dataset, found, frames), wanted, rtol=1e-4, atol=1e-4)


def test_gaps_of_the_method_are_known_at_once(model, tmp_path):
    """What the orbitals tell of twenty labelled molecules is found where the guess alone explains them."""
    dataset, frames = dataset_of(model, tmp_path, "scalar", False, count=20)
    orbitals = orbitals_of(model)
    gaps = told(model, orbitals, frames) @ [-1.0, 1.0]
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"], orbitals=orbitals)._replace(labels=gaps)
    found = mixing.mix(seen, is_sum=False, compares=True, tames=True)
    assert found.guess == pytest.approx([-1.0, 1.0, 0.0], abs=0.05)
    without = mixing.mix(seen._replace(orbitals=np.zeros((20, 0))), is_sum=False, compares=True, tames=True)
    assert without.guess is None and found.error(seen.judged) < 0.2 * without.error(seen.judged)


@pytest.mark.parametrize("gain, taken", [(0.0, False), (0.1, True)])
def test_a_guess_is_judged_by_what_both_fits_take_as_it_is(model, gain, taken, tmp_path, monkeypatch):
    """Calling one more label wild makes no guess helpful."""
    dataset, _ = dataset_of(model, tmp_path, "scalar", False, count=20)
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"], orbitals=orbitals_of(model))
    calm = np.ones(20, bool)
    plain = mixing.Mixed([], [], [1.0], None, np.where(np.arange(20) == 3, 50.0, 1.0), seen.labels, calm)
    beyond = plain._replace(residual=plain.residual - gain, calm=np.arange(20) != 3)
    answers = iter([plain, beyond])
    monkeypatch.setattr(mixing, "_fitted", lambda *arguments, **wanted: next(answers))
    assert beyond.error(seen.judged) < 0.5 * plain.error(seen.judged)
    found = mixing.mix(seen, is_sum=False, compares=True, tames=True)
    assert (found.guess is not None) == taken


def test_a_class_may_begin_with_the_guess(model, tmp_path, monkeypatch):
    dataset, frames = dataset_of(model, tmp_path, "class", False)
    monkeypatch.setattr(mixing, "_HELPFUL", np.inf)
    found = fit_readout(model, dataset, *every(dataset))
    assert found.orbitals and "of log-odds off" in readout._in_words(found, dataset.head)
    right = (said(model, dataset, found, frames) > 0.5) == np.array([len(atoms) > 8 for atoms in frames])
    assert right.mean() > 0.9


def test_zeros_on_top_of_a_guess(model, tmp_path):
    """What no value is smaller than moves with the labels."""
    dataset, frames = dataset_of(model, tmp_path, "scalar", False, count=40)
    gaps = told(model, orbitals_of(model), frames) @ [-1.0, 1.0]
    labels = np.maximum(gaps - np.median(gaps), 0)
    seen = describe(
        model, dataset, *every(dataset), ["H", "C", "N", "O"], orbitals=orbitals_of(model), nonnegative=True
    )._replace(labels=labels)  # fmt: skip
    found = mixing.mix(seen, is_sum=False, compares=True, tames=True)
    without = mixing.mix(seen._replace(orbitals=np.zeros((40, 0))), is_sum=False, compares=True, tames=True)
    assert found.guess is not None and found.error(seen.judged) < without.error(seen.judged)
    assert (labels - found.residual).min() >= -1e-9


def test_sums_have_no_guess(model, tmp_path):
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=20)
    assert not fit_readout(model, dataset, *every(dataset)).orbitals


# ---- making the file ----


def labelled(count: int):
    """Molecules, and labels that the encoder can tell."""
    return [(atoms, (-11.0 - 0.1 * len(atoms), 0.3 * len(atoms))) for atoms in distorted(count)]


def test_a_layer_is_trained(model):
    frames = labelled(60)
    for k, (atoms, _) in enumerate(frames):
        atoms.info["group"] = f"g{k}"
    molecules = orbital_training.molecules_of(model, frames)
    weights, errors = orbital_training.train(molecules, steps=300)
    again, _ = orbital_training.train(molecules, steps=300)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    spread = float(np.std([0.3 * len(atoms) for atoms, _ in frames]))
    assert list(errors) == ["HOMO", "LUMO", "gap"] and errors["LUMO"] < 0.4 * spread
    layer = Orbitals(**{name: one.detach().double() for name, one in weights.items()}, elements=frozenset())
    found = told(model, layer, [atoms for atoms, _ in frames])
    assert np.abs(found - [label for _, label in frames]).mean() < 0.4 * spread


def test_labels_are_those_of_the_method():
    """Of neutral molecules with closed shells alone."""
    pytest.importorskip("tblite", reason="tblite is not installed: pip install 'gfm-calc[xtb]'")
    assert orbital_training.frontier(molecule("C6H6")) == pytest.approx(GFN2["C6H6"], abs=1e-3)
    ion = molecule("NH3")
    ion.info["charge"] = 1
    for atoms in (ion, molecule("CH3"), bulk("C")):
        assert orbital_training.frontier(atoms) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign", "elements"])
def test_a_damaged_file_is_seen(damage, tmp_path):
    path = tmp_path / "orbitals.safetensors"
    tensors = {"hidden": torch.ones(4, 6), "hidden_bias": torch.ones(4), "output": torch.ones(2, 4)}
    content = written(tensors | {"constant": torch.ones(2)}, "e", {"H"})
    path.write_bytes(content)
    assert read_orbitals(path)[1].hidden.shape == (4, 6)
    changed = {
        "cut": content[:-3], "empty": b"", "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "foreign": written(tensors, "e", {"H"}), "elements": content.replace(b'"elements":"H"', b'"elements":"C"'),
    }  # fmt: skip
    path.write_bytes(changed[damage])
    with pytest.raises(CorruptFileError, match=r"orbitals\.safetensors: damaged"):
        read_orbitals(path)


def test_the_command_writes_what_is_read(model, tmp_path, monkeypatch, capsys):
    frames = distorted(30)
    write(tmp_path / "molecules.extxyz", frames)
    write(tmp_path / "crystal.extxyz", bulk("C"))
    monkeypatch.setattr(orbital_training, "_STEPS", 20)
    monkeypatch.setattr(
        orbital_training, "frontier", lambda atoms: None if atoms.pbc.any() else (-10.0, 0.1 * len(atoms))
    )
    out = tmp_path / "orbitals.safetensors"
    line = [str(tmp_path / "molecules.extxyz"), "--most", "20", "-o", str(out)]
    assert orbital_training.main(line) == 0 and "molecules of 4 elements" in capsys.readouterr().out
    digest, orbitals = read_orbitals(out)
    assert digest == encoder_digest(model) and orbitals.elements == {"H", "C", "N", "O"}
    assert orbitals.hidden.shape == (64, 384) and orbitals.output.shape == (2, 64)
    assert orbital_training.main(line) == 1 and "is there already" in capsys.readouterr().err
    nothing = [str(tmp_path / "crystal.extxyz"), "-o", str(tmp_path / "other.safetensors")]
    assert orbital_training.main(nothing) == 1 and "no neutral molecule" in capsys.readouterr().err
