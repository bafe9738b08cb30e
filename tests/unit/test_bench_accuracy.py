"""Errors on a test side, against a case worked out by hand."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import chemical_symbols
from labelled import need_adios
from support import predict, random_model

from gfm_calc.benchmarks.accuracy import _Tally, draw, measure, write_cards
from gfm_calc.benchmarks.accuracy_peers import measure_peers
from gfm_calc.benchmarks.kinds import ELEMENT_GROUPS, groups_of, system_type
from gfm_calc.benchmarks.provenance import read_result, weights_id
from gfm_calc.benchmarks.remote import MODELS, RemoteCalculator
from gfm_calc.benchmarks.report import tables
from gfm_calc.checkpoint import load_model, open_model, save_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.loader import Loader
from gfm_calc.data.schema import Record
from gfm_calc.data.split_files import save_split
from gfm_calc.data.splits import fixed
from gfm_calc.errors import ConfigError, CorruptFileError, HeadError
from gfm_calc.predictor import Predictor
from gfm_calc.train import preparation
from gfm_calc.train.evaluation import ErrorSums, error_sums, figures, rounded
from gfm_calc.train.preparation import load_heads, prepare
from gfm_calc.train.recipe import recipe_of

ENERGY_ERRORS = np.array([0.03, -0.05])  # eV/atom, of the two test structures that can be predicted
FORCE_ERROR = 0.02  # eV/Å on every component of the first
STRESS_ERROR = 0.001  # eV/Å³ on the xx component of the second
ELEMENTS = ("H", "C", "O")


@dataclass(frozen=True)
class GivenTask:
    """Records as a task of a build."""

    given: list[Record]

    def identity(self):
        return [len(self.given)]

    def records(self):
        return iter(self.given)

    def inputs(self):
        return [{"name": name, "size": 1, "sha256": name} for name in sorted({r.source for r in self.given})]


def given_records() -> list[Record]:
    """Three training and three test structures of one head; labels are the model's own numbers plus known errors.

    Test: a water molecule (with forces), a CO crystal (with stress), and one that the head refuses.
    """
    model = random_model(elements=ELEMENTS)
    numbers = [[1, 1], [8], [8, 1, 1], [6, 8], [79], [6, 79]]
    positions = [
        [[0, 0, 0], [0, 0, 0.8]], [[0, 0, 0]], [[0, 0, 0], [0.9, 0, 0], [0, 0.95, 0]], [[0, 0, 0], [1.2, 1.3, 1.1]], [[0, 0, 0]],
        [[0, 0, 0], [0, 0, 2.0]],
    ]  # fmt: skip
    energies = [-3.0, -10.0, 0.0, 0.0, -1.0, -7.0]
    records = [
        Record(
            atomic_numbers=np.array(z), positions=np.array(x, float), cell=np.diag([3.0, 3.1, 3.2]) * (k == 3),
            pbc=np.full(3, k == 3), energy=energies[k], group="test" if 2 <= k < 5 else "train", frame=k,
            source=f"{'aabcca'[k]}.extxyz.xz",
        )
        for k, (z, x) in enumerate(zip(numbers, positions))
    ]  # fmt: skip
    for index, error in zip((2, 3), ENERGY_ERRORS):
        found = predict(model, records[index].structure(), "first")
        labels = {"energy": float(found.energy) - error * len(records[index])}
        if index == 2:
            labels["forces"] = found.forces.numpy() - FORCE_ERROR
        else:
            stress = found.stress[0].numpy().copy()
            stress[0, 0] += STRESS_ERROR
            labels["stress"] = stress
        records[index] = replace(records[index], **labels)
    return records


@pytest.fixture(scope="module")
def records():
    return given_records()


@pytest.fixture(scope="module")
def data(records, tmp_path_factory):
    """A folder with the dataset `first` and a split."""
    need_adios()
    folder = tmp_path_factory.mktemp("accuracy")
    build(folder / "data" / "first", [GivenTask(records)], HeadSpec(name="first"), processes=0)
    save_split(folder / "split.json", fixed({"test": ["test"], "train": ["train"]}), {})
    return folder


@pytest.fixture(scope="module")
def recipe(data):
    return recipe_of({"data": {"path": str(data / "data"), "split": str(data / "split.json")}})


@pytest.fixture(scope="module")
def heads(recipe):
    return prepare(recipe, 5.0)


@pytest.fixture(scope="module")
def entry(heads):
    model = random_model(elements=ELEMENTS)
    return measure({"first": Predictor(model, ["first"])}, heads)["first"]


def test_model_figures(entry):
    assert entry["model"] == {
        "frames": 2,
        "energy_mae_mev_per_atom": pytest.approx(40.0, abs=1e-3),
        "energy_rmse_mev_per_atom": pytest.approx(1e3 * np.sqrt((0.03**2 + 0.05**2) / 2), abs=1e-3),
        "forces_mae_mev_per_a": pytest.approx(20.0, abs=1e-3),
        "forces_rmse_mev_per_a": pytest.approx(20.0, abs=1e-3),
        "stress_mae_mev_per_a3": pytest.approx(1.0 / 6, abs=1e-4),
        "stress_rmse_mev_per_a3": pytest.approx(1.0 / np.sqrt(6), abs=1e-4),
    }


def test_the_card_says_how_many_frames_of_each_file_are_trained_on(heads):
    (head,) = heads
    found = {data["name"].partition(".")[0]: data["frames"] for data in head.spec.training_data}
    assert found == {"a": 3, "b": 0, "c": 0}


def test_refused_frames_are_counted_with_their_reason(entry):
    assert entry["test_frames"] == 3
    ((reason, count),) = entry["refused"].items()
    assert count == 1 and "Au" in reason


def test_figures_by_source_leave_out_what_has_no_labels(entry):
    assert set(entry["by_source"]) == {"b", "c"}
    assert entry["by_source"]["b"]["energy_mae_mev_per_atom"] == pytest.approx(30.0, abs=1e-3)
    assert "stress_mae_mev_per_a3" not in entry["by_source"]["b"]
    assert "forces_mae_mev_per_a" not in entry["by_source"]["c"]
    assert entry["compositions"] == 2


def test_figures_by_kind_of_system(entry):
    assert {kind: found["frames"] for kind, found in entry["by_type"].items()} == {"crystals": 1, "molecules": 1}
    assert entry["by_type"]["molecules"] == entry["by_source"]["b"]


def test_figures_by_group_of_elements(entry):
    """Forces of the group's atoms; energies and stresses of structures with one of them."""
    assert {group: found["frames"] for group, found in entry["by_elements"].items()} == {"C N O": 2, "H": 1}
    assert entry["by_elements"]["H"]["energy_mae_mev_per_atom"] == pytest.approx(30.0, abs=1e-3)
    assert entry["by_elements"]["C N O"]["energy_mae_mev_per_atom"] == pytest.approx(40.0, abs=1e-3)
    assert entry["by_elements"]["H"]["forces_mae_mev_per_a"] == pytest.approx(20.0, abs=1e-3)
    assert "stress_mae_mev_per_a3" in entry["by_elements"]["C N O"]
    assert "stress_mae_mev_per_a3" not in entry["by_elements"]["H"]


def test_forces_of_a_group_are_those_of_its_atoms_alone(heads):
    """With the error on hydrogen alone, oxygen's is zero."""
    tally = _Tally()
    record = next(heads[0].select("test").read(np.array([0])).records())
    wrong = torch.from_numpy(record.forces).clone()
    wrong[torch.from_numpy(record.atomic_numbers == 1)] += 0.5
    tally.add("model", record, record.energy, wrong, None)
    found = tally.entry(1)["by_elements"]
    assert found["H"]["forces_mae_mev_per_a"] == 500.0 and found["C N O"]["forces_mae_mev_per_a"] == 0.0


def test_every_element_is_in_one_group():
    listed = [symbol for symbols in ELEMENT_GROUPS.values() for symbol in symbols]
    assert len(listed) == len(set(listed)) and set(chemical_symbols[1:104]) == set(listed)
    assert groups_of(np.array([1, 8, 92, 118])).tolist() == ["H", "C N O", "f", "others"]


@pytest.mark.parametrize(
    "atoms, kind",
    [
        (molecule("H2O"), "molecules"),
        (Atoms("Cl", info={"charge": -1}), "ions"),
        (Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"charge": 0, "spin": 2}), "radicals"),
        (bulk("Cu"), "crystals"),
        (bulk("Cu", cubic=True), "crystals"),
        (fcc111("Cu", (1, 1, 3), vacuum=5.0), "slabs"),
        (fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True), "slabs"),
        (Atoms("Xe", cell=np.eye(3) * 6.2, pbc=True), "crystals"),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 7.3])
def test_kinds_of_systems(atoms, kind, shift):
    moved = atoms.copy()
    moved.positions += shift
    assert system_type(Record.from_atoms(moved)) == kind


class Fixed:
    """What stands in for a process of `remote`: a published model's answers."""

    description = {"name": "Published 1.0"}

    def __init__(self, refuses=()):
        self.refuses = refuses

    def ask(self, job):
        if set(self.refuses) & set(job["numbers"]):
            return {"error": "no such element"}
        return {"energy": 0.0, "forces": np.zeros((len(job["numbers"]), 3)).tolist(), "stress": [0.0] * 6}


def comparable_model(functional):
    model = random_model(elements=ELEMENTS)
    model.specs["first"] = replace(model.specs["first"], functional=functional, periodicity=("molecule", "bulk"))
    return model


def test_published_models_are_measured_on_the_same_frames(heads):
    """A structure that one of them cannot do counts for none; energies only where their zero is the same."""
    ours = {"first": Predictor(comparable_model("PBE(+U)"), ["first"])}
    (row,) = measure_peers(ours, heads, {"chgnet": RemoteCalculator(Fixed())}, level="PBE(+U)", frames=10)
    assert row["frames"] == 2 and row["failed"] == 1  # ours refuses gold
    assert row["models"]["gfm-calc"]["energy_mae_mev_per_atom"] == pytest.approx(40.0, abs=1e-3)
    theirs = row["models"]["Published 1.0"]
    assert theirs["frames"] == 2 and "energy_mae_mev_per_atom" not in theirs
    records = list(heads[0].select("test").read(np.arange(3)).records())
    assert theirs["forces_mae_mev_per_a"] == pytest.approx(1e3 * np.abs(records[0].forces).mean(), rel=1e-4)
    (row,) = measure_peers(ours, heads, {"sevennet": RemoteCalculator(Fixed(refuses=[6]))}, level="PBE(+U)", frames=10)
    assert row["frames"] == 1 and row["failed"] == 2
    assert "energy_mae_mev_per_atom" in row["models"]["Published 1.0"]


@pytest.mark.parametrize("functional", ["PBEsol", "GFN2-xTB", "", "r2SCAN"])
def test_other_levels_of_theory_are_not_compared(heads, functional):
    ours = {"first": Predictor(comparable_model(functional), ["first"])}
    assert measure_peers(ours, heads, {"chgnet": RemoteCalculator(Fixed())}, level="PBE(+U)", frames=10) == []


@pytest.mark.parametrize(
    ("model", "basis", "energies"),
    [
        ("teacher-r2scan", "as MP-r2SCAN", True),
        ("chgnet-r2scan", "as MP-r2SCAN", True),
        ("teacher-r2scan", "tight", False),
    ],
)
def test_each_level_has_models_of_its_own(heads, model, basis, energies):
    """Energies compare only on heads of the settings that the models were trained on."""
    assert {"chgnet-r2scan", "teacher-r2scan"} == {name for names in MODELS["r2SCAN"].values() for name in names}
    own = comparable_model("R2SCAN" if basis == "tight" else "r2SCAN")
    own.specs["first"] = replace(own.specs["first"], basis=basis)
    ours = {"first": Predictor(own, ["first"])}
    (row,) = measure_peers(ours, heads, {model: RemoteCalculator(Fixed())}, level="r2SCAN", frames=10)
    assert ("energy_mae_mev_per_atom" in row["models"]["Published 1.0"]) == energies
    other = {**row, "level": "PBE(+U)", "models": {**row["models"], "Another": row["models"]["gfm-calc"]}}
    titles = {t.title: t.header for t in tables({"benchmark": "accuracy", "heads": [], "peers": [row, other]})}
    of_r2scan = titles["Published models of r2SCAN on the same held-out frames: MAE of forces, meV/Å"]
    assert "Another" not in of_r2scan and "Published 1.0" in of_r2scan
    assert "Another" in titles["Published models of PBE(+U) on the same held-out frames: MAE of forces, meV/Å"]


def test_tables_of_errors(entry):
    peer = {"frames": 2, "forces_mae_mev_per_a": 12.5}  # no energies: of another zero
    peers = [{"head": "first", "frames": 2, "failed": 0, "models": {"gfm-calc": entry["model"], "Published": peer}}]
    found = tables({"benchmark": "accuracy", "heads": [{"head": "first", **entry}], "peers": peers})
    (beside,) = [table for table in found if table.title.startswith("Published models")]
    assert "forces" in beside.title and [row[-1] for row in beside.rows] == ["12.5"]
    text = "\n".join(map(str, found))
    for words in ("by kind of system", "by the atom's group", "with such an element"):
        assert words in text


def test_baselines(entry, records):
    energies, sizes = np.array([record.energy for record in records[2:4]]), np.array([3, 2])
    mean = (-3.0 / 2 + -10.0 + -7.0 / 2) / 3  # eV/atom of the training structures
    wanted = np.abs(mean - energies / sizes).mean()
    assert entry["mean"]["energy_mae_mev_per_atom"] == pytest.approx(1e3 * wanted, rel=1e-4)
    reference = random_model(elements=ELEMENTS).specs["first"].reference_energies
    sums = np.array([reference["O"] + 2 * reference["H"], reference["C"] + reference["O"]])
    assert entry["references"]["energy_mae_mev_per_atom"] == pytest.approx(
        1e3 * np.abs((sums - energies) / sizes).mean(), rel=1e-4
    )
    fitted = np.array([-10.0 + 2 * -1.5, -10.0 - 3.5])  # carbon and gold only occur together
    assert entry["composition"]["energy_mae_mev_per_atom"] == pytest.approx(
        1e3 * np.abs((fitted - energies) / sizes).mean(), rel=1e-4
    )
    labels = records[2].forces
    for name in ("mean", "references", "composition"):
        assert entry[name]["forces_mae_mev_per_a"] == pytest.approx(1e3 * np.abs(labels).mean(), rel=1e-4)


def test_limited_draw_is_seeded_and_sorted():
    indices = np.arange(100, 200)
    drawn = draw(indices, 10, seed=3)
    assert len(drawn) == 10 and (np.diff(drawn) > 0).all() and set(drawn) <= set(indices)
    assert (drawn == draw(indices, 10, seed=3)).all()
    assert (draw(indices, None, seed=3) == indices).all()


def test_no_structures_give_no_figures():
    assert figures(error_sums([(torch.zeros(0), torch.zeros(0))])) == {"frames": 0}


def test_a_prediction_that_is_not_finite_is_an_error_not_a_missing_label():
    found = figures(error_sums([(torch.tensor([np.nan, 1.0]), torch.tensor([1.0, np.nan]))]))
    assert found["frames"] == 2 and np.isnan(found["energy_mae_mev_per_atom"])


def test_six_components_of_stress_count():
    found, label = torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)
    found[0, 0, 1] = found[0, 1, 0] = 0.006
    sums = error_sums([(torch.zeros(1), torch.zeros(1)), (torch.zeros(0, 3), torch.zeros(0, 3)), (found, label)])
    shown = rounded(figures(sums))
    assert shown["stress_mae_mev_per_a3"] == 1.0 and shown["stress_rmse_mev_per_a3"] == 2.4495
    assert "forces_mae_mev_per_a" not in shown


@pytest.mark.promise("R12")
def test_validation_and_benchmark_give_the_same_figures(heads):
    model = random_model(elements=ELEMENTS)
    measured = measure({"first": Predictor(model, ["first"], strict=False)}, heads)["first"]["model"]
    sums = ErrorSums(["other", "first"])
    sums.add(model, Loader([heads[0].select("test")], model.config.cutoff, max_atoms=4).once(), "first")
    assert measured["frames"] == 3 and len(measured) == 7
    assert {name: rounded(row) for name, row in sums.table().items()} == {"first": measured}


def test_unknown_head_of_the_data(heads):
    with pytest.raises(HeadError, match="second"):
        measure({"second": Predictor(random_model(), ["second"])}, heads)


def test_what_was_prepared_is_kept(tmp_path, recipe, heads, monkeypatch):
    first = load_heads(recipe, tmp_path)
    monkeypatch.setattr(preparation, "prepare", lambda *_: pytest.fail("prepared again"))
    second = load_heads(recipe, tmp_path)
    for found in (first, second):
        assert found[0].spec == heads[0].spec and found[0].shift == heads[0].shift
        assert {side: rows.tolist() for side, rows in found[0].sides.items()} == {
            "train": [0, 1, 5], "validation": [], "test": [2, 3, 4]
        }  # fmt: skip
    monkeypatch.undo()
    other = recipe_of({"data": {"path": recipe.data.path, "by": "frame", "test": 0.5}})
    assert load_heads(other, tmp_path)[0].sides["train"].tolist() != [0, 1, 5]  # another recipe, another preparation


def test_a_damaged_cache_is_refused(tmp_path, recipe):
    load_heads(recipe, tmp_path)
    (file,) = tmp_path.glob("*/sides-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFileError, match="sides"):
        load_heads(recipe, tmp_path)


def test_data_that_are_missing_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        load_heads(recipe_of({"data": {"path": str(tmp_path / "none")}}), None)


def test_the_command(tmp_path, data, capsys):
    save_model(random_model(elements=ELEMENTS), tmp_path / "m")
    (tmp_path / "r.toml").write_text(f"[data]\nsplit = {json.dumps(str(data / 'split.json'))}\n")
    words = ["bench", "accuracy", "--model", str(tmp_path / "m"), "--head", "first", "--data", str(data / "data")]
    words += ["--recipe", str(tmp_path / "r.toml"), "--dtype", "float64", "-o", str(tmp_path / "a.json")]
    assert main(words) == 0
    found = read_result(tmp_path / "a.json")
    assert found["heads"][0]["model"]["energy_mae_mev_per_atom"] == pytest.approx(40.0, abs=1e-3)
    assert found["settings"]["recipe"] == "r.toml"
    assert "--data data" in found["provenance"]["command"]
    assert "before" not in found["heads"][0] and "before" not in found
    assert main(words[:-1] + [str(tmp_path / "b.json"), "--recipe", "gfm-smal"]) == 1
    assert "gfm-smal" in capsys.readouterr().err


def test_the_command_says_which_weights_stand_beside(tmp_path, data, capsys):
    """The older model's ids, what it is called, and the errors of both by data file."""
    older = random_model(elements=ELEMENTS)
    trained = ({"name": "b.extxyz.xz", "frames": 2}, {"name": "c.extxyz.xz", "frames": 0})
    older.specs["first"] = replace(older.specs["first"], training_data=trained)
    save_model(older, tmp_path / "older")
    save_model(random_model(elements=ELEMENTS), tmp_path / "m")
    (tmp_path / "r.toml").write_text(f"[data]\nsplit = {json.dumps(str(data / 'split.json'))}\n")
    words = ["bench", "accuracy", "--model", str(tmp_path / "m"), "--head", "first", "--data", str(data / "data")]
    words += ["--recipe", str(tmp_path / "r.toml"), "--dtype", "float64", "-o", str(tmp_path / "a.json")]
    named = ["--before-name", "the first packaged weights"]
    for bad in (named, ["--before", str(tmp_path / "older"), "--before-name", str(tmp_path)]):
        assert main([*words, *bad]) == 1 and "--before-name" in capsys.readouterr().err
    assert main([*words, "--before", str(tmp_path / "older"), *named]) == 0
    found, artifact = read_result(tmp_path / "a.json"), open_model(tmp_path / "older")
    weights = weights_id(artifact)
    assert found["before"] == {
        "name": "the first packaged weights", "weights": weights, "model_id": artifact.digest[:16]
    }  # fmt: skip
    assert found["provenance"]["command"].endswith(
        "--before older --before-name 'the first packaged weights' --dtype float64"
    )
    (entry,) = found["heads"]
    assert entry["before"] == entry["now"] == entry["model"]
    assert entry["before_by_source"] == entry["now_by_source"] == entry["by_source"]
    assert entry["before_trained_on"] == ["b"]
    assert (
        f"The first packaged weights ({weights}, given by --before) and these, by data file" in capsys.readouterr().out
    )


def older_and_newer(**about):
    """Tables of one head of two data files, the second of a kind that the older weights have not seen."""
    figures = [{"frames": 4, "forces_mae_mev_per_a": mae} for mae in (100.0, 80.0, 200.0, 20.0, 150.0, 50.0)]
    known, seen, new, learnt, before, now = figures
    entry = {
        "head": "xtb", "compositions": 1, "model": now, "mean": now, "references": now, "by_source": {},
        "before": before, "now": now, "before_trained_on": ["old", "elsewhere"],
        "before_by_source": {"old": known, "near": new}, "now_by_source": {"old": seen, "near": learnt},
    }  # fmt: skip
    return {table.title: table for table in tables({"benchmark": "accuracy", "heads": [entry], **about})}


def test_the_change_is_told_by_data_file():
    """What the newer weights alone were trained on stands apart: the change of a head is not theirs alone."""
    found = older_and_newer(before={"name": "", "weights": "feed", "model_id": "cafe"})
    (title,) = [title for title in found if "on the same frames" in title]
    assert title.startswith("Weights feed (given by --before) and these, on the same frames")
    assert title.endswith(
        "forces on average -67 % over heads, -20 % over data files that the older ones were trained on, -90 % over other files"
    )
    files = found["Weights feed (given by --before) and these, by data file (MAE of forces, meV/Å)"]
    assert files.rows == [
        ["xtb", "old", "4", "100", "80", "-20 %", "yes"],
        ["xtb", "near", "4", "200", "20", "-90 %", "no"],
    ]


def test_cards_take_the_figures_and_weights_stay(tmp_path, saved_model, entry):
    model = load_model(saved_model)
    save_model(model, tmp_path / "m", provenance={"recipe": "r.toml"})
    before = weights_id(open_model(tmp_path / "m"))
    write_cards(tmp_path / "m", {"first": entry})
    assert dict(load_model(tmp_path / "m").specs["first"].test_errors) == entry["model"]
    assert weights_id(open_model(tmp_path / "m")) == before
    assert open_model(tmp_path / "m").read_json("provenance.json") == {"recipe": "r.toml"}
