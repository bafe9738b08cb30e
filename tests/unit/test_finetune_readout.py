"""Where the head of a property begins: least squares on what the model knows."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import write

from gfm_calc.checkpoint import load_model, subset
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.store import open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import CorruptFileError, OutsideDomainError
from gfm_calc.finetune import fits, mixing, readout
from gfm_calc.finetune.described import describe
from gfm_calc.finetune.fits import Fit, Likeness, shares_of, together
from gfm_calc.finetune.readout import FEWEST, begin_head, fit_readout
from gfm_calc.graph import AtomicGraph
from gfm_calc.predictor import Predictor, check_domain

NAMES = ("CH3OH", "CH3CH2OH", "C6H6", "CH3COOH", "CH3CONH2", "H2O", "NH3", "C2H6", "CH3CHO", "HCOOH")


def structures(count: int, seed: int = 0) -> list[Atoms]:
    random = np.random.default_rng(seed)
    found = []
    for k in range(count):
        atoms = molecule(NAMES[k % len(NAMES)])
        atoms.positions += random.normal(scale=0.1, size=atoms.positions.shape)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def model():
    return load_model("gfm-small")


def dataset_of(model, place, kind, extensive, count=60, seed=0, *, wild=None, also=(), boxes=False):
    """Labels that a sum over atoms of the model's own knowledge explains, with what elements add; one is wild, a hundredfold.
    Of molecules, or of crystals of them in boxes and of molecules `also`."""
    frames = [*structures(count, seed), *map(molecule, also)]
    for atoms in frames[:count] if boxes else ():
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
    rows = Predictor(model, ["gfn2-xtb"]).predict(frames)
    for atoms, row in zip(frames, rows):
        energy = row["gfn2-xtb"].energy.item()
        value = {"class": float(len(atoms) > 8), "scalar": energy if extensive else energy / len(atoms)}[kind]
        atoms.info["p"] = value
    if wild is not None:
        frames[wild].info["p"] *= 100
    path = place / "frames.extxyz"
    write(path, frames)
    card = HeadSpec(name="mine", kind=kind, extensive=extensive, quantity="p", unit="eV")
    build_flat(place / "data", file_tasks([path], options=ReadOptions(property_key="p")), card)
    return open_dataset(place / "data"), frames


@pytest.mark.parametrize("extensive", [True, False])
def test_what_the_model_knows_is_found_at_once(model, extensive, tmp_path):
    """Energies of an old head are linear in its hidden units and the composition."""
    dataset, _ = dataset_of(model, tmp_path, "scalar", extensive)
    said: list[str] = []
    begun = begin_head(tmp_path / "start", model, dataset, *every(dataset), said.append)
    start = load_model(begun.where)
    assert start.model_id == begun.model_id and start.specs["mine"].reference_energies == begun.references
    fresh = structures(30, seed=1)
    truth = [row["gfn2-xtb"].energy.item() for row in Predictor(model, ["gfn2-xtb"]).predict(fresh)]
    truth = np.array(truth) / (1 if extensive else [len(atoms) for atoms in fresh])
    found = np.array([row["mine"].value.item() for row in Predictor(start, ["mine"], strict=False).predict(fresh)])
    spread = np.std(truth - np.mean(truth))
    assert np.abs(found - truth).mean() < 0.02 * spread
    for name in model.energy_heads:  # the old heads are as they were
        index = model.energy_heads.index(name)
        assert torch.equal(model.energy_stack.hidden[index], start.energy_stack.hidden[index])


def every(dataset) -> tuple[np.ndarray, np.ndarray]:
    """All rows, each a group of its own."""
    return np.arange(len(dataset)), np.arange(len(dataset))


def said(model, dataset, found, frames) -> np.ndarray:
    start = readout._with_readout(model, dataset.head, found)
    return np.array([row["mine"].value.item() for row in Predictor(start, ["mine"], dtype="float64").predict(frames)])


def two_far(atoms: Atoms) -> Atoms:
    other = atoms.copy()
    other.positions += [30.0, 0.0, 0.0]
    return atoms + other


def of_head(number, seen, freedom):
    return mixing._columns(number, seen, freedom).of(seen.labels, seen.groups)


def process_of(features, labels, groups):
    return Likeness(features).process(labels, groups)


def mean_of_fits(model, dataset, seen) -> np.ndarray:
    """[n], of the four heads that predict best."""
    freedom = mixing.freedom_of(seen) if dataset.head.is_sum else mixing.FREEDOMS[0]
    fits = [of_head(number, seen, freedom) for number in range(len(model.energy_heads))]
    found = []
    for one in sorted(fits, key=lambda fit: np.abs(fit.residual).mean())[:4]:
        columns = np.concatenate([seen.hidden[:, one.head][:, one.kept], seen.layers, seen.composition], axis=1)
        found.append(columns @ one.weights[:-1] + one.weights[-1])
    return np.mean(found, axis=0)


def said_by(features, seen) -> np.ndarray:
    """[n], the mean of the process."""
    process = process_of(features, seen.labels, seen.groups)
    scaled = features * process.inverse_lengths
    alike = np.exp(-np.square(scaled[:, None] - scaled).sum(axis=2))
    return alike @ process.weights + process.constant


@pytest.mark.parametrize(
    "extensive, wild, boxes", [(True, None, False), (True, None, True), (False, None, False), (False, 7, False)]
)
def test_the_network_says_what_the_fits_say(model, extensive, wild, boxes, tmp_path, monkeypatch):
    """Those to labels of which none is wild; sums of molecules are compared with nothing."""
    monkeypatch.setattr(readout, "orbitals_of", lambda model: None)
    dataset, frames = dataset_of(model, tmp_path, "scalar", extensive, wild=wild, boxes=boxes)
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [0.25, 0.5, 0.25] if len(residuals) == 3 else [1.0])
    found = fit_readout(model, dataset, *every(dataset))
    width, layers = model.config.head_width, model.config.num_layers * model.config.num_features
    assert found.hidden.shape == (4 * width - 2, layers) and len(set(found.heads)) == 4
    seen = describe(model, dataset, *every(dataset), list(found.references))
    if not extensive:
        mixed = mixing.mix(seen, is_sum=False, compares=True, tames=True)
        assert (mixed.labels != seen.labels).any() == (~mixed.calm).any() == (wild is not None)
        seen = seen._replace(labels=mixed.labels)
    wanted = mean_of_fits(model, dataset, seen)
    sizes = np.array([len(atoms) for atoms in frames])
    assert (found.landmarks is None) == (extensive and not boxes)
    if found.landmarks is not None:
        wanted = 0.25 * wanted + 0.5 * said_by(seen.layers, seen) + 0.25 * said_by(seen.features, seen)
    if extensive:
        wanted *= sizes
        twice = [frames[0].repeat((2, 1, 1)) if boxes else two_far(frames[0])]
        assert said(model, dataset, found, twice)[0] == pytest.approx(2 * wanted[0], rel=1e-4, abs=1e-3)
    np.testing.assert_allclose(said(model, dataset, found, frames) / sizes, wanted / sizes, rtol=1e-4, atol=1e-4)


def test_sums_are_compared_with_crystals_alone(model, tmp_path, monkeypatch):
    """One labelled molecule among them: two of it that are far apart are to give twice as much."""
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [1 / len(residuals)] * len(residuals))
    for count, also in ((30, ()), (29, ("CH4",))):
        place = tmp_path / str(count)
        place.mkdir()
        dataset, frames = dataset_of(model, place, "scalar", True, count=count, also=also, boxes=True)
        found = fit_readout(model, dataset, *every(dataset))
        assert len(frames) == 30 and (found.landmarks is None) == bool(also)
    crystal = replace(dataset.head, elements=tuple(model.specs["gfn2-xtb"].elements), landmarks=3)
    for spec in (crystal, replace(crystal, landmarks=0), replace(crystal, extensive=False)):
        refuses = spec is crystal
        with pytest.raises(OutsideDomainError, match="one of crystals") if refuses else nullcontext():
            check_domain(spec, AtomicGraph.build(molecule("CH4"), 5.0))


def test_a_wild_label_moves_little(model, tmp_path, monkeypatch):
    """One of sixty that is far off, as a misplaced point makes it: others are said nearly as before."""
    found = {}
    for wild, tamings in ((None, 3), (7, 3), (7, 0)):
        place = tmp_path / f"{wild}-{tamings}"
        place.mkdir()
        monkeypatch.setattr(mixing, "_TAMINGS", tamings)
        dataset, frames = dataset_of(model, place, "scalar", False, wild=wild)
        fit = fit_readout(model, dataset, *every(dataset))
        found[wild, tamings] = np.delete(said(model, dataset, fit, frames), 7), fit.scale
    calm, scale = found[None, 3]
    moved = {tamings: np.abs(found[7, tamings][0] - calm).mean() for tamings in (0, 3)}
    assert moved[3] < 0.2 * calm.std() and moved[3] < 0.1 * moved[0]
    assert scale < found[7, 3][1] < 0.1 * found[7, 0][1]


@pytest.mark.parametrize("many", [3, 30])
def test_labels_of_many_structures_are_not_wild(many):
    """Three of sixty that lie far away are moved, thirty are a part of the property; zeros of most do not hide the three."""
    labels = np.random.default_rng(0).normal(size=60)
    labels[:many] = 9999.0
    for one in (labels, np.where(np.arange(60) < 40, labels, 0.0)):
        assert (fits.within(one) != one).sum() == (3 if many == 3 else 0)
        assert np.abs(fits.within(one)).max() < 100 or many == 30
    assert np.array_equal(fits.within(np.ones(9)), np.ones(9)) and not fits.within(np.zeros(9)).any()


def test_labels_that_are_all_equal(model, tmp_path):
    """A constant is said, and nothing else."""
    frames = structures(14)
    for atoms in frames:
        atoms.info["p"] = 0.0
    write(tmp_path / "frames.extxyz", frames)
    card = HeadSpec(name="mine", kind="scalar", extensive=False, quantity="p", unit="eV")
    build_flat(tmp_path / "data", file_tasks([tmp_path / "frames.extxyz"], options=ReadOptions(property_key="p")), card)
    dataset = open_dataset(tmp_path / "data")
    found = fit_readout(model, dataset, *every(dataset))
    assert found.scale > 0 and np.abs(said(model, dataset, found, frames)).max() < 1e-3


def test_what_a_rare_element_adds_to_a_sum_is_not_wild(model, tmp_path):
    """Its structure, left out, is as far off as a misplaced point, and is learnt all the same."""
    dataset, frames = dataset_of(model, tmp_path, "scalar", True, also=("CH3Cl",))
    found = fit_readout(model, dataset, *every(dataset))
    label = dataset.read(np.array([len(frames) - 1])).value[0, 0]
    assert said(model, dataset, found, frames)[-1] == pytest.approx(label, rel=0.02)


def test_elements_of_a_sum_are_held_back_where_they_do_not_explain_it(model, tmp_path):
    """What no element adds is left to the layers; what elements alone add is theirs."""
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=40)
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"])
    random = np.random.default_rng(0)
    of_layers = seen.layers @ random.normal(size=seen.layers.shape[1])
    rare = np.eye(25)[random.integers(25, size=40)]
    assert mixing.freedom_of(seen._replace(labels=of_layers, composition=rare)) == mixing.FREEDOMS[0]
    of_elements = seen.composition @ np.array([-13.0, -1000.0, -1400.0, -2000.0])
    assert mixing.freedom_of(seen._replace(labels=of_elements)) == mixing.FREEDOMS[-1]


def test_units_without_a_part_in_the_fit_can_learn(tmp_path):
    """A model with one head of energies has three quarters of the units to spare: their outputs are zero, and nothing else."""
    one = subset(load_model("gfm-small"), ["gfn2-xtb"])
    dataset, _ = dataset_of(one, tmp_path, "scalar", True)
    found = fit_readout(one, dataset, *every(dataset))
    net = readout._with_readout(one, dataset.head, found).properties[0].net
    used = len(found.output)
    assert used == one.config.head_width + 1 and not net[2].weight[0, used:].any()
    assert net[0].weight.any(dim=1).all()


def test_a_process_alone_leaves_the_network_silent_and_able_to_learn(model, tmp_path, monkeypatch):
    dataset, frames = dataset_of(model, tmp_path, "scalar", False)
    monkeypatch.setattr(mixing, "_TAMINGS", 0)
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [0.0, 0.0, 1.0])
    found = fit_readout(model, dataset, *every(dataset))
    assert found.heads == () and not found.output.any() and found.hidden.any(axis=1).all()
    assert "begins at a Gaussian process on what all layers say and how far atoms differ: " in readout._in_words(
        found, dataset.head
    )
    seen = describe(model, dataset, *every(dataset), list(found.references))
    wanted = said_by(seen.features, seen)
    np.testing.assert_allclose(said(model, dataset, found, frames), wanted, rtol=1e-4, atol=1e-4)


def test_one_alone_is_taken_where_it_is_clearly_better():
    good, bad = np.full(10, 0.1), np.full(10, 0.5)
    assert shares_of([good, bad, bad]) == [1.0, 0.0, 0.0] and shares_of([bad, bad, good]) == [0.0, 0.0, 1.0]
    assert shares_of([good, good, good]) == [1 / 3] * 3 and shares_of([good, -bad, bad]) == [1 / 3] * 3
    assert shares_of([bad]) == [1.0]


GROUPS = [np.array([0, 3, 4]), np.array([1]), np.array([2, *range(5, 29)]), np.array([29])]


@pytest.mark.parametrize("groups", [np.split(np.arange(30), 30), GROUPS], ids=["alone", "groups"])
def test_what_a_process_leaves_out_it_has_not_seen(groups, monkeypatch):
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(30, 6)), random.normal(size=30)
    monkeypatch.setattr(fits, "_LENGTHS", (1.0,))
    monkeypatch.setattr(fits, "_NOISES", (0.01,))
    process = process_of(features, labels, groups)
    scaled = features * process.inverse_lengths
    covariance = 1 + np.exp(-np.square(scaled[:, None] - scaled).sum(axis=2))
    centred = labels - labels.mean()
    for group in groups:
        others = np.setdiff1d(np.arange(30), group)
        weights = np.linalg.solve(covariance[others][:, others] + 0.01 * np.eye(len(others)), centred[others])
        wanted = centred[group] - covariance[group][:, others] @ weights
        np.testing.assert_allclose(process.residual[group], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ridge", [1e-4, 0.1])
@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("groups", [np.split(np.arange(30), 30), GROUPS], ids=["alone", "groups"])
def test_left_out_errors_are_those_of_fits_to_all_others(groups, rare, ridge):
    """Also of a structure that alone has an element, which nothing holds back: its leverage is 1 but for 1e-11."""
    random = np.random.default_rng(0)
    columns, labels = random.normal(size=(30, 2)), random.normal(size=30)
    if rare:
        columns[:, 1] = np.arange(30) == 29
    columns = (columns - columns.mean(0)) / columns.std(0)
    freedom = 1e3 if rare else 2.0
    found = Fit([columns[:, :1], columns[:, 1:]], labels, [1.0, freedom]).left_out(ridge, groups)
    design = np.column_stack([columns, np.ones(30)])
    held = np.diag([30 * ridge, 30 * ridge / freedom**2, 0.0])
    for group in groups:
        others = np.setdiff1d(np.arange(30), group)
        weights = np.linalg.solve(design[others].T @ design[others] + held, design[others].T @ labels[others])
        np.testing.assert_allclose(
            found[group], labels[group] - design[group] @ weights, rtol=1e-2 if rare else 1e-5, atol=1e-6
        )


def test_groups_are_left_out_together():
    found = [list(part) for part in together(np.array([7, 3, 7, 5, 3, 4, 4, 9, 9, 8]))]
    assert found == [[1, 4], [5, 6], [3], [0, 2], [9], [7, 8]]
    parts = together(np.array([1] * 16 + [2] * 4))  # one that is most of all is judged in parts that follow each other
    assert [list(part) for part in parts] == [*np.arange(16).reshape(4, 4).tolist(), [16, 17, 18, 19]]
    assert together(np.zeros(0, int)) == []


def test_frames_of_a_molecule_do_not_tell_each_others_labels(model, tmp_path):
    """Labels that belong to the molecule and follow from nothing: by frames they look known, by molecules they do not."""
    dataset, _ = dataset_of(model, tmp_path, "scalar", False, count=60)
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"])
    molecules = np.arange(60) % len(NAMES)
    labels = np.random.default_rng(1).normal(size=len(NAMES))[molecules]
    by_frame = process_of(seen.layers, labels, together(np.arange(60)))
    by_molecule = process_of(seen.layers, labels, together(molecules))
    spread = np.abs(labels - labels.mean()).mean()
    assert np.abs(by_frame.residual).mean() < 0.5 * spread < 0.8 * spread < np.abs(by_molecule.residual).mean()


def test_of_many_labels_some_are_landmarks(model, tmp_path, monkeypatch):
    dataset, _ = dataset_of(model, tmp_path, "scalar", False, count=20)
    monkeypatch.setattr(mixing, "_TAMINGS", 0)
    monkeypatch.setattr(mixing, "shares_of", lambda residuals: [0.0, 1.0, 0.0])
    monkeypatch.setattr(readout, "_MOST", 18)
    monkeypatch.setattr(readout, "_MOST_COMPARED", 12)
    rows, groups = np.random.default_rng(0).permutation(20), np.arange(20) // 3
    found = fit_readout(model, dataset, rows, groups)
    chosen = spread_indices(20, 18)
    seen = describe(model, dataset, rows[chosen], groups[chosen], list(found.references))
    judged = np.sort(np.argsort(seen.labels)[spread_indices(18, 12)])
    assert np.array_equal(found.landmarks.centres, seen.features[judged])
    process = process_of(seen.layers[judged], seen.labels[judged], together(groups[chosen][judged]))
    assert found.landmarks.output[0] * found.scale == pytest.approx(process.weights)
    assert found.error == pytest.approx(np.abs(process.residual).mean())


def test_the_rarer_class_is_among_the_landmarks(model, tmp_path):
    dataset, _ = dataset_of(model, tmp_path, "class", False, count=20)
    labels = np.zeros(500)
    labels[[31, 77]] = 1.0
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"])._replace(labels=labels)
    chosen = seen.compared_with(50, np.arange(500)).judged
    assert len(chosen) == 50 and np.array_equal(chosen, np.unique(chosen)) and labels[chosen].any()
    few = seen._replace(labels=labels[:50]).compared_with(50, np.arange(50))
    assert np.array_equal(few.judged, np.arange(50)) and len(few.judged_groups) == 50


def test_a_class_begins_on_the_right_side(model, tmp_path):
    dataset, frames = dataset_of(model, tmp_path, "class", False)
    begun = begin_head(tmp_path / "start", model, dataset, *every(dataset), lambda line: None)
    values = [row["mine"].value.item() for row in Predictor(load_model(begun.where), ["mine"]).predict(frames)]
    right = [(value > 0.5) == (len(atoms) > 8) for value, atoms in zip(values, frames)]
    assert np.mean(right) > 0.9


def test_few_labels_and_other_kinds_begin_with_random_weights(model, tmp_path):
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=FEWEST - 1)
    assert begin_head(tmp_path / "start", model, dataset, *every(dataset), lambda line: None) is None
    assert not (tmp_path / "start").exists()


def test_what_was_fitted_is_kept_and_damage_is_seen(model, tmp_path):
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=20)
    where, said = tmp_path / "start", []
    first = begin_head(where, model, dataset, *every(dataset), said.append)
    assert begin_head(where, model, dataset, *every(dataset), said.append) == first and len(said) == 1
    weights = next(where.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CorruptFileError):
        begin_head(where, model, dataset, *every(dataset), said.append)


def test_an_energy_is_found_from_few_labels(model, tmp_path, monkeypatch):
    """Which sum of a head's units it is, few labels do not tell: the head does."""
    dataset, _ = dataset_of(model, tmp_path, "scalar", True, count=30)
    seen = describe(model, dataset, *every(dataset), ["H", "C", "N", "O"])
    number = model.energy_heads.index("gfn2-xtb")
    energies = seen.hidden[:, number] @ seen.output[number]
    seen = seen._replace(labels=2 * energies + seen.composition @ np.array([-13.0, -1000.0, -1400.0, -2000.0]))
    found = of_head(number, seen, mixing.FREEDOMS[-1])
    columns = np.concatenate([seen.hidden[:, number][:, found.kept], seen.layers, seen.composition], axis=1)
    np.testing.assert_allclose(
        columns @ found.weights[:-1] + found.weights[-1], seen.labels, atol=0.01 * energies.std()
    )
    monkeypatch.setattr(mixing, "_FREEDOM_OF_ENERGY", 1e-6)
    assert found.error < 0.1 * of_head(number, seen, mixing.FREEDOMS[-1]).error
