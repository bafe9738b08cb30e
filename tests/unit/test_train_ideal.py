"""Simple crystals: which, how large, and that no split sets them apart from the same crystals of other files."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from gfm_calc.data.splits import draw, fraction
from gfm_calc.train.ideal import Beside, compounds, elements, main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("ideal") / "ideal.extxyz"
    assert main(["-o", str(path), "--copies", "1", "--count", "2"]) == 0
    return path, ase.io.read(path, ":")


def test_all_elements_in_all_structures(made):
    _, found = made
    groups = [atoms.info["group"] for atoms in found]
    structures = [group.split("-")[1] for group in groups if group.startswith("proto-")]
    assert len(set(groups)) == len(groups) == len(structures)
    assert {name: structures.count(name) for name in ("fcc", "diamond", "rocksalt", "fluorite", "cesiumchloride")} == {
        "fcc": 79, "diamond": 79, "rocksalt": 2, "fluorite": 2, "cesiumchloride": 4
    }  # fmt: skip
    for atoms in found:
        distances = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
        assert 8 <= len(atoms) <= 24 and atoms.pbc.all() and 1.0 < distances.min() < 7, atoms.info


def test_volumes_are_about_right():
    """Å³ an atom: measured, and of Si, Ge, C, Cu and Al in what they are not, by density functionals (Materials Project)."""
    volumes = {names[0]: atoms.get_volume() / len(atoms) for names, atoms in elements()}
    for name, volume in {
        "diamond-Si": 20.0, "fcc-Si": 14.5, "bcc-Si": 14.6, "sc-Si": 16.0, "diamond-Ge": 22.6, "fcc-Cu": 11.8, "bcc-Cu": 12.0,
        "fcc-Fe": 11.0, "bcc-Fe": 11.8, "hcp-Mg": 23.2, "fcc-Al": 16.5, "bcc-Al": 16.9, "own-U": 20.8, "own-Np": 19.2,
        "own-Sb": 30.6, "fcc-Sb": 27.0, "own-Ga": 19.6, "fcc-Ga": 18.9, "own-In": 26.0, "fcc-In": 26.2,
    }.items():  # fmt: skip
        assert volumes[f"proto-{name}"] == pytest.approx(volume, rel=0.12), name
    assert "proto-own-Cu" not in volumes and "proto-own-Si" not in volumes  # the same crystal by two names


def test_the_same_file_twice(made, tmp_path, capsys):
    path, _ = made
    words = ["-o", str(tmp_path / "ideal.extxyz"), "--copies", "1", "--count", "2"]
    assert main(words) == 0 and (tmp_path / "ideal.extxyz").read_bytes() == path.read_bytes()
    assert main(words) == 1 and "is there already" in capsys.readouterr().err
    for bad in (["--count", "0"], ["--copies", "-1"], ["--seed", "-1"]):
        with pytest.raises(SystemExit):
            main(["-o", str(tmp_path / "other.extxyz"), *bad])
    (tmp_path / "file").touch()
    assert main(["-o", str(tmp_path / "file" / "ideal.extxyz"), "--count", "1", "--copies", "1"]) == 1
    assert "gfm: error: " in capsys.readouterr().err
    assert main(["-o", str(tmp_path / "other.extxyz"), "--beside", str(tmp_path / "none.extxyz")]) == 1
    assert "none.extxyz" in capsys.readouterr().err


def in_file(path, groups):
    frames = [Atoms(symbols, positions=[[0, 0, k] for k in range(len(symbols))]) for symbols in groups.values()]
    for frame, group in zip(frames, groups):
        frame.info["group"] = group
    ase.io.write(path, frames, format="extxyz")
    return Beside([path])


def of_side(side, start):
    """A name of a group that a split draws for a side."""
    wanted = {"train": (0.07, 1.0), "test": (0.0, 0.05)}[side]
    return next(name for k in range(1000) if wanted[0] <= fraction(name := f"{start}{k}") < wanted[1])


def test_a_crystal_has_the_group_that_a_file_gives_it(tmp_path):
    beside = in_file(
        tmp_path / "a.extxyz", {"proto-zincblende-Si-Si": ["Si", "Si"], "proto-rocksalt-O-Mg": ["Mg", "O"]}
    )
    assert beside.group(["proto-diamond-Si", "proto-zincblende-Si-Si"], bulk("Si")) == "proto-zincblende-Si-Si"
    salt = bulk("MgO", "rocksalt", a=4.2)
    assert beside.group(["proto-rocksalt-Mg-O", "proto-rocksalt-O-Mg"], salt) == "proto-rocksalt-O-Mg"
    assert beside.group(["proto-wurtzite-Mg-O", "proto-wurtzite-O-Mg"], salt) == "proto-wurtzite-Mg-O"


def test_a_crystal_that_would_be_on_two_sides_is_left_out(tmp_path):
    held, trained = of_side("test", "proto-a"), of_side("train", "proto-b")
    beside = in_file(tmp_path / "a.extxyz", {held: ["Cu"], trained: ["Cu"]})
    assert beside.group([held, trained], bulk("Cu")) is None
    assert beside.group([held], bulk("Cu")) == held and beside.group([trained], bulk("Cu")) == trained
    names = of_side("test", "mp-"), of_side("train", "proto-rocksalt-MgO")
    beside = in_file(tmp_path / "b.extxyz", {names[0]: ["Mg", "Mg", "O", "O"]})
    assert beside.group(names[1:], bulk("MgO", "rocksalt", a=4.2)) is None  # the file's may be this one
    assert beside.group(names[1:], bulk("CaO", "rocksalt", a=4.2)) == names[1]


def test_no_group_of_a_file_has_a_twin_on_another_side(tmp_path):
    """What is made beside a file, drawn together with it: one side for all names of a crystal."""
    structures = ("fcc", "diamond", "zincblende", "L12")
    symbols = ("Si", "Cu", "Pb", "Al", "Fe", "Ge", "Na", "Pd", "Sn", "Y")
    groups = {f"proto-{name}-{x}" + f"-{x}" * (name in structures[2:]): [x] for name in structures for x in symbols}
    in_file(tmp_path / "a.extxyz", groups)
    assert (
        main(
            ["-o", str(tmp_path / "b.extxyz"), "--beside", str(tmp_path / "a.extxyz"), "--count", "1", "--copies", "1"]
        )
        == 0
    )
    mine = [atoms.info["group"] for atoms in ase.io.read(tmp_path / "b.extxyz", ":")]
    split = draw({"pool": [*groups, *mine]})
    for names, _ in elements():
        if names[0].split("-")[-1] in symbols:
            assert len({split.side_of_group(name) for name in names if name in {*groups, *mine}} | {"train"}) <= 2
            written = [name for name in names if name in mine]
            sides = {split.side_of_group(name) for name in names if name in groups}
            assert len(written) <= 1 and (not written or sides <= {split.side_of_group(written[0])})


def test_ab_and_ba_are_one_alloy():
    alike = {}
    for names, atoms in compounds(60):
        assert alike.setdefault(frozenset(names), names) == names and len(set(atoms.numbers)) == 2
    assert len(alike) > 300


def test_what_is_left_out_changes_no_other_crystal(made, tmp_path):
    held, trained = of_side("test", "mp-"), of_side("train", "mp-")
    formula = next(atoms for names, atoms in compounds(2) if "rocksalt" in names[0]).get_chemical_symbols()
    in_file(tmp_path / "a.extxyz", {held: formula, trained: formula})
    words = ["--beside", str(tmp_path / "a.extxyz"), "--copies", "1", "--count", "2"]
    assert main(["-o", str(tmp_path / "b.extxyz"), *words]) == 0
    before = {atoms.info["group"]: atoms for atoms in made[1]}
    fewer = ase.io.read(tmp_path / "b.extxyz", ":")
    assert 0 < len(before) - len(fewer) < 5 and all(atoms == before[atoms.info["group"]] for atoms in fewer)
