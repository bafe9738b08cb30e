"""How `gfm finetune` divides structures: test files, elements, few groups; and what it says where that is not as asked."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from finetuning import labelled, molecules, words, write

from gfm_calc.checkpoint import load_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.compositions import Compositions
from gfm_calc.data.schema import Record
from gfm_calc.data.store import open_dataset
from gfm_calc.data.tasks import FileTask
from gfm_calc.errors import ConfigError
from gfm_calc.finetune import preparation
from gfm_calc.finetune.preparation import divide
from gfm_calc.train.recipe import DataRecipe

QUICK = ("--steps", "2", "--strategy", "heads", "--keep-heads", "none")


def of(name, count, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        atoms = molecule(name)
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return labelled(found)


def structures(out):
    return json.loads((out / "errors.json").read_text())["structures"]


def test_files_of_one_name_are_told_apart(tmp_path):
    """run1/OUTCAR is for training, run2/OUTCAR for the test."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    data = [write(tmp_path / "a" / "f.extxyz", molecules(20, 1)), write(tmp_path / "x.extxyz", molecules(12, 2))]
    test = write(tmp_path / "b" / "f.extxyz", molecules(7, 3))
    assert main(words(data, tmp_path / "out", *QUICK, "--test-file", str(test))) == 0
    found = structures(tmp_path / "out")
    assert found["test"] == 7 and found["train"] + found["validation"] == 32


def test_a_file_is_not_on_two_sides(tmp_path, capsys):
    data = write(tmp_path / "f.extxyz", molecules(20))
    assert main(words(data, tmp_path / "out", *QUICK, "--test-file", str(data), "--accept", "duplicates")) == 1
    assert "f.extxyz: named twice" in capsys.readouterr().err


def test_an_element_that_is_in_the_test_file_alone_is_named(tmp_path, capsys):
    data = write(tmp_path / "a.extxyz", molecules(20))
    test = write(tmp_path / "b.extxyz", [*molecules(4, 3), *of("CH3SH", 3)])
    assert main(words(data, tmp_path / "out", *QUICK, "--test-file", str(test))) == 0
    said = capsys.readouterr().out
    assert "3 test structures left out: no training structure has S" in said and "on 4 test structures" in said
    told = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert told["structures"]["test"] == told["after"]["frames"] == 4 and told["side"] == "test"
    assert told["unseen"] == {"test": {"structures": 3, "elements": ["S"]}}


def test_an_element_of_few_among_many_structures_is_learnt(tmp_path, monkeypatch):
    """Reference energies are fitted to some of many structures; to those with rare elements all the same."""
    monkeypatch.setattr(preparation, "_FITTED", 6)
    data = write(tmp_path / "a.extxyz", [*molecules(9), *of("CH3SH", 2), *molecules(11, 5)])
    test = write(tmp_path / "b.extxyz", [*molecules(4, 3), *of("CH3SH", 1, 7)])
    assert main(words(data, tmp_path / "out", *QUICK, "--test-file", str(test), "--validation", "0")) == 0
    assert "S" in load_model(tmp_path / "out" / "model").specs["mine"].elements
    assert structures(tmp_path / "out")["test"] == 5


def test_free_atoms_do_not_stand_for_their_element():
    """What is known of a free atom is not what its element adds to others."""
    found = Compositions()
    for k, atoms in enumerate([Atoms("S"), *[molecule("CH4")] * 8, molecule("CH3SH"), Atoms("C")]):
        found.add(Record(atomic_numbers=atoms.numbers, positions=atoms.positions, cell=np.zeros((3, 3)),
                         pbc=np.zeros(3, bool), energy=-float(k + 1), charge=-1 if k == 0 else None))  # fmt: skip
    assert found.covering(np.arange(11), np.array([0, 3, 6]), each=5).tolist() == [0, 3, 6, 9]
    assert found.covering(np.arange(9), np.array([0, 3, 6]), each=5).tolist() == [0, 3, 6]


def test_a_test_file_of_which_nothing_is_left_is_refused(tmp_path, capsys):
    data, test = write(tmp_path / "a.extxyz", molecules(20)), write(tmp_path / "b.extxyz", of("CH3SH", 3))
    assert main(words(data, tmp_path / "out", *QUICK, "--test-file", str(test))) == 1
    assert "all 3 structures hold S, which no training structure has" in capsys.readouterr().err


def test_few_compositions_are_not_held_out_whole(tmp_path, capsys):
    data = write(tmp_path / "a.extxyz", [atoms for name in ("CH3OH", "CH4", "H2O") for atoms in of(name, 14)])
    assert main(words(data, tmp_path / "out", *QUICK)) == 0
    found = structures(tmp_path / "out")
    assert found["train"] > 28 and found["validation"] and found["test"]
    assert "blocks of frames" in capsys.readouterr().out
    assert main(words(data, tmp_path / "other", *QUICK, "--by", "composition")) == 0
    assert structures(tmp_path / "other") == {"train": 14, "validation": 14, "test": 14}
    said = capsys.readouterr().out
    assert "validation 0.33 (asked: 0.1), test 0.33 (asked: 0.1); divided by composition, of which there are 3" in said


def test_groups_that_the_user_names_stay_together(tmp_path, capsys):
    frames = of("CH3OH", 42)
    for k, atoms in enumerate(frames):
        atoms.info["group"] = f"g{k // 14}"
    assert main(words(write(tmp_path / "a.extxyz", frames), tmp_path / "out", *QUICK)) == 0
    assert structures(tmp_path / "out") == {"train": 14, "validation": 14, "test": 14}
    assert "divided by group, of which there are 3" in capsys.readouterr().out


def test_a_structure_that_is_in_the_test_file_too_can_be_dropped(tmp_path, capsys):
    frames = molecules(20)
    data, test = write(tmp_path / "a.extxyz", frames), write(tmp_path / "b.extxyz", frames[:5])
    more = (*QUICK, "--test-file", str(test), "--accept", "duplicates")
    assert main(words(data, tmp_path / "out", *more)) == 1
    assert "on two sides" in (said := capsys.readouterr().err)
    assert "--drop-shared" in said and "--join" not in said
    assert main(words(data, tmp_path / "out", *more, "--drop-shared")) == 0


@pytest.mark.parametrize(
    "more, said",
    [
        (["--max-train", "1"], "as --max-train 1 asks for: give at least 3"),
        (["--by", "composition", "--validation", "0.5", "--test", "0.49"], "(divided by composition: 1 group)"),
    ],
)
def test_why_nothing_is_left_to_train_on(more, said, tmp_path, capsys):
    data = write(tmp_path / "a.extxyz", molecules(20))
    assert main(words(data, tmp_path / "out", *QUICK, *more)) == 1
    assert said in capsys.readouterr().err


def test_primitive_cells_of_one_atom_are_no_free_atoms(tmp_path):
    """Strained fcc metals have one atom, and all to learn."""
    random, found = np.random.default_rng(0), []
    for _ in range(20):
        atoms = bulk("Cu")
        strain = random.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        found.append(atoms)
    data = write(tmp_path / "cu.extxyz", labelled(found, "distilled-7net-l3i5"))
    assert main(words(data, tmp_path / "out", *QUICK)) == 0
    assert sum(structures(tmp_path / "out").values()) == 20


def test_a_learning_curve_has_one_set_of_test_structures(tmp_path):
    """Those whose elements are in all draws, of which none is a part of another."""
    rare = ("CH3SH", "CH3Cl", "CH3NO2", "SiH4", "PH3")
    data = write(tmp_path / "a.extxyz", [*of("CH4", 24), *(one for name in rare for one in of(name, 2))])
    test = write(tmp_path / "b.extxyz", [one for name in ("CH4", *rare) for one in of(name, 2, 1)])
    build_flat(tmp_path / "all", [FileTask(paths=(path,)) for path in (data, test)], HeadSpec(name="mine"))
    dataset, sizes = open_dataset(tmp_path / "all"), (14, 16, 0)

    def sides(size, curve=()):
        recipe = DataRecipe(path="", by="frame", validation=0.0, test=0.0, seed=3)
        return divide(dataset, recipe, test_rows=12, max_train=size or None, curve=curve)

    alone = [set(sides(size).test.tolist()) for size in sizes]
    assert not alone[0] <= alone[1] and not alone[1] <= alone[0] and alone[1] < alone[2]
    for size in sizes:
        found = sides(size, sizes)
        assert set(found.test.tolist()) == set.intersection(*alone)
        assert np.array_equal(found.train, sides(size).train) and found.unseen == sides(size).unseen
    with pytest.raises(
        ConfigError, match="no test structure could be predicted after training on each of 3 structures"
    ):
        recipe = DataRecipe(path="", by="frame", validation=0.0, test=0.0, seed=3)
        divide(dataset, recipe, test_rows=2, max_train=None, curve=(3,))
