"""Supercells near equilibrium: of which crystals, how large, how far from rest, and of whose group."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from gfm_calc.train.near import is_near, main, supercell


def labelled(atoms: Atoms, force: float = 0.0, stress: float = 0.0, group: str = "g") -> Atoms:
    forces = np.zeros((len(atoms), 3))
    forces[0, 0] = force
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces, stress=[stress] * 3 + [0.0] * 3)
    atoms.info["group"] = group
    return atoms


def test_crystals_at_rest_become_supercells(tmp_path, capsys):
    salt, copper = bulk("NaCl", "rocksalt", a=5.64), bulk("Cu")
    frames = [
        labelled(copper, group="copper"), labelled(bulk("Cu"), force=0.2), labelled(bulk("Cu"), stress=0.2),
        labelled(molecule("H2O")), labelled(salt, group="salt"), labelled(bulk("Al") * (4, 4, 4)),
    ]  # fmt: skip
    ase.io.write(tmp_path / "crystals.extxyz", frames)
    words = [str(tmp_path / "crystals.extxyz"), "-o", str(tmp_path / "near.extxyz")]
    assert main(words) == 0 and "2 structures" in capsys.readouterr().out
    first = (tmp_path / "near.extxyz").read_bytes()
    found = ase.io.read(tmp_path / "near.extxyz", ":")
    assert [(atoms.info["group"], len(atoms)) for atoms in found] == [("copper", 8), ("salt", 8)]
    for atoms, ideal in zip(found, (copper, salt)):
        assert atoms.get_volume() / len(atoms) == pytest.approx(ideal.get_volume() / len(ideal), rel=0.04)
        nearest = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)].min()
        assert 0.5 * nearest < ideal.cell.lengths().min() < 3 * nearest and atoms.pbc.all()
        rest = supercell(ideal)
        moved = atoms.get_scaled_positions() - rest.get_scaled_positions()
        away = (moved - np.round(moved)) @ atoms.cell.array
        assert 0.003 < np.sqrt(np.square(away - away.mean(axis=0)).mean()) < 0.2
    assert main(words) == 1 and "is there already" in capsys.readouterr().err
    (tmp_path / "near.extxyz").unlink()
    assert main(words) == 0 and (tmp_path / "near.extxyz").read_bytes() == first
    assert main([*words[:2], str(tmp_path / "one.extxyz"), "--count", "1", "--seed", "1"]) == 0
    assert len(ase.io.read(tmp_path / "one.extxyz", ":")) == 1


def test_nothing_at_rest_is_said(tmp_path, capsys):
    ase.io.write(tmp_path / "crystals.extxyz", [labelled(bulk("Cu"), force=1.0)])
    assert main([str(tmp_path / "crystals.extxyz"), "-o", str(tmp_path / "near.extxyz")]) == 1
    assert "no labelled crystal of 32 atoms at most is at rest" in capsys.readouterr().err
    assert not (tmp_path / "near.extxyz").exists()


def test_crystals_without_a_group_are_refused(tmp_path, capsys):
    """Their supercells could lie on another side of a split."""
    frames = [labelled(bulk("Cu")), labelled(bulk("Al"))]
    del frames[1].info["group"]
    ase.io.write(tmp_path / "crystals.extxyz", frames)
    assert main([str(tmp_path / "crystals.extxyz"), "-o", str(tmp_path / "near.extxyz")]) == 1
    assert "1 of 2 structures have no group" in capsys.readouterr().err


def test_sheared_crystals_are_not_at_rest(tmp_path, capsys):
    """One atom in a cell feels no force however it is strained, and shear has no part in the pressure."""
    for component in range(6):
        stress = np.zeros(6)
        stress[component] = -0.05
        atoms = bulk("Cu")
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)), stress=stress)
        assert not is_near(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)), stress=stress / 2)
        assert is_near(atoms)


def test_bad_words_and_files(tmp_path, capsys):
    ase.io.write(tmp_path / "crystals.extxyz", [labelled(bulk("Cu"))])
    words = [str(tmp_path / "crystals.extxyz"), "-o", str(tmp_path / "near.extxyz")]
    for bad in (["--count", "0"], ["--count", "-1"], ["--seed", "-1"]):
        with pytest.raises(SystemExit):
            main([*words, *bad])
    (tmp_path / "file").touch()
    assert main([words[0], "-o", str(tmp_path / "file" / "near.extxyz")]) == 1
    assert "gfm: error: " in capsys.readouterr().err
    with (tmp_path / "crystals.extxyz").open("a") as file:
        file.write("2\nnonsense\nCu 0 0\n")
    assert main(words) == 1 and "crystals.extxyz" in capsys.readouterr().err
    assert not (tmp_path / "near.extxyz").exists()
