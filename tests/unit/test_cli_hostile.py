"""Hostile input through the command line: one line on stderr, an exit code that is not 0, nothing written over."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from gfm_calc import artifacts
from gfm_calc.checkpoint import FORMAT_VERSION, KIND, open_model
from gfm_calc.cli import main

COMMANDS = {
    "predict": ("-o", "out.extxyz"),
    "relax": ("-o", "out.extxyz", "--trajectory", "out.traj"),
    "md": ("-o", "out.traj", "--temperature", "300", "--steps", "3"),
    "eos": ("-o", "out"),
    "phonons": ("-o", "out", "--relax"),
}
OUTPUTS = ("out.extxyz", "out.traj", "out.traj.csv", "out")


def water(**changes) -> Atoms:
    atoms = molecule("H2O")
    for name, value in changes.items():
        if name in ("charge", "spin"):
            atoms.info[name] = value
        else:
            setattr(atoms, name, value)
    return atoms


def moved(value: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.positions[2, 1] = value
    return atoms


def crystal(cell) -> Atoms:
    return Atoms("Cu", cell=np.array(cell, dtype=float) if np.ndim(cell) == 2 else np.eye(3) * cell, pbc=True)


STRUCTURES = {
    "zero atoms": (Atoms(cell=[5, 5, 5], pbc=True), "no atoms"),
    "nan in positions": (moved(np.nan), "atom 2: position is NaN or infinite"),
    "inf in positions": (moved(np.inf), "atom 2: position is NaN or infinite"),
    "far position": (moved(1e9), "atom 2: position beyond"),
    "nan in cell": (crystal([[3, 0, 0], [0, np.nan, 0], [0, 0, 3]]), "cell holds NaN or inf"),
    "inf in cell": (crystal([[3, 0, 0], [0, np.inf, 0], [0, 0, 3]]), "cell holds NaN or inf"),
    "nan charge": (water(charge=np.nan), "charge must be a whole number"),
    "half a charge": (water(charge=0.5), "charge must be a whole number, not"),
    "impossible spin": (water(spin=2), "spin multiplicity 2 is impossible"),
    "charge beyond the domain": (water(charge=4, spin=1), "was trained on charge"),
    "two atoms at one point": (crystal(4.0) + Atoms("Cu", positions=[[0, 0, 0.01]]), "two atoms at one place"),
    "unknown element": (Atoms("X", cell=[4] * 3, pbc=True), "atomic number 0 is no element"),
    "unseen element": (bulk("U", "fcc", a=4.5), "head first has not seen U; --no-strict predicts all the same"),
    "periodic without a cell": (water(pbc=True), "periodic along a, but that cell vector is zero"),
    "singular cell": (crystal([[3, 0, 0], [3, 0, 0], [0, 0, 3]]), "cell is singular"),
    "0.5 Å cell": (crystal(0.5), "cell vector a is 0.5 Å, shorter than any bond"),
    "1e6 Å cell": (crystal(1e6), "cell vector a is 1e+06 Å"),
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with files of the names that the commands would write."""
    monkeypatch.chdir(tmp_path)
    for name in OUTPUTS[:-1]:
        (tmp_path / name).write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("eos.json", "summary.json"):
        (tmp_path / "out" / name).write_text("mine")
    return tmp_path


def untouched(folder, before) -> bool:
    return before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, folder, arguments, words: str) -> None:
    """Run; one line of error holding `words`, code 1 or 2, and no file changed."""
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    code = main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    assert code == 1 and out == "", (code, out)
    assert err.startswith("gfm: error: ") and err.count("\n") == 1, err
    assert words in err, err
    assert untouched(folder, before)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_structure_without_sense(capsys, here, saved_model, command, name):
    if command == "phonons":
        pytest.importorskip("phonopy", reason="phonons are an extra")
    atoms, words = STRUCTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write("bad.extxyz", atoms)
    wholly_periodic = atoms.pbc.all() and len(atoms)
    if command == "phonons" and atoms.info:
        words = words if "whole" in words or "impossible" in words else "phonons need a crystal"
    elif command in ("eos", "phonons") and not wholly_periodic and name == "charge beyond the domain":
        words = "periodic along three axes"
    model = ("--model", saved_model, "--head", "first", "--overwrite")
    refused(capsys, here, [command, "bad.extxyz", *COMMANDS[command], *model], words)


FILES = {
    "truncated.extxyz": (
        b"2\nProperties=species:S:1:pos:R:3\nH 0 0 0\n",
        "frame 0: ends after 1 of 2 atoms: truncated",
    ),
    "missing.xyz": (None, "missing.xyz: no such file"),
    "empty.xyz": (b"", "empty.xyz: is empty"),
    "binary.xyz": (bytes(range(256)) * 8, "binary.xyz"),
    "damaged.xyz.xz": (b"\xfd7zXZ\x00 and no more", "damaged.xyz.xz"),
    "damaged.traj": (b"- of UlmASE-Trajectory" + bytes(40), "cannot be read as traj"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_none(capsys, here, saved_model, command, name):
    if command == "phonons":
        pytest.importorskip("phonopy", reason="phonons are an extra")
    content, words = FILES[name]
    if content is not None:
        (here / name).write_bytes(content)
    model = ("--model", saved_model, "--head", "first", "--overwrite")
    refused(capsys, here, [command, name, *COMMANDS[command], *model], words)


# ---- models ----


def flip_a_byte(model):
    path = next(model.glob("weights-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_file(model):
    next(model.glob("heads-*")).unlink()


def cut_a_file(model):
    path = next(model.glob("weights-*"))
    path.write_bytes(path.read_bytes()[:-7])


def lose_the_manifest(model):
    (model / "manifest.json").unlink()


def come_from_the_future(model):
    found = open_model(model)
    files = {name: found.read(name) for name in found.files}
    artifacts.commit(model, files, kind=KIND, format_version=FORMAT_VERSION + 1)


def lose_a_head(model):
    found = open_model(model)
    files = {name: found.read(name) for name in found.files}
    files["heads.json"] = json.dumps(json.loads(files["heads.json"])[1:]).encode()
    artifacts.commit(model, files, kind=KIND, format_version=FORMAT_VERSION)


def be_something_else(model):
    shutil.rmtree(model)
    model.mkdir()
    (model / "readme.txt").write_text("no model")


MODELS = {
    flip_a_byte: "its checksum does not match the manifest",
    lose_a_file: "missing or of the wrong size",
    cut_a_file: "missing or of the wrong size",
    lose_the_manifest: "has no readable manifest.json",
    come_from_the_future: f"model format {FORMAT_VERSION + 1} is newer than {FORMAT_VERSION}",
    lose_a_head: "config, heads and weights do not belong together",
    be_something_else: "not a gfm-calc model",
}


@pytest.mark.parametrize("damage", MODELS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("command", [*COMMANDS, "doctor"])
def test_a_damaged_model(capsys, here, saved_model, command, damage):
    if command == "phonons":
        pytest.importorskip("phonopy", reason="phonons are an extra")
    shutil.copytree(saved_model, here / "model")
    damage(here / "model")
    write("good.extxyz", bulk("Cu", cubic=True))
    arguments = (
        ["doctor", "model"] if command == "doctor" else [command, "good.extxyz", *COMMANDS[command], "--overwrite"]
    )
    arguments += ["--head", "second"] + ([] if command == "doctor" else ["--model", "model"])
    refused(capsys, here, arguments, MODELS[damage])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "more, words",
    [
        ((), "choose"),
        (("--head", "2"), "no head '2'; heads: first, second, third"),
        (("--head", "frist"), "did you mean 'first'?"),
        (("--head", "first", "--device", "quantum"), "device 'quantum' is unknown"),
        (("--head", "first", "--device", "cuda:77"), "device 'cuda:77'"),
    ],
)
def test_a_head_or_device_that_is_not_there(capsys, here, saved_model, command, more, words):
    if command == "phonons":
        pytest.importorskip("phonopy", reason="phonons are an extra")
    write("good.extxyz", bulk("Cu", cubic=True))
    arguments = [command, "good.extxyz", *COMMANDS[command], "--overwrite", "--model", saved_model, *more]
    refused(capsys, here, arguments, words)


def test_a_model_that_is_not_there(capsys, here):
    write("good.extxyz", bulk("Cu"))
    refused(capsys, here, ["predict", "good.extxyz", "-o", "new.extxyz", "--model", "gfm-smal"], "no model 'gfm-smal'")


def test_a_folder_that_cannot_be_written_to(capsys, here, saved_model):
    write("good.extxyz", bulk("Cu"))
    arguments = ["predict", "good.extxyz", "-o", "good.extxyz/out.extxyz", "--model", saved_model, "--head", "first"]
    refused(capsys, here, arguments, "could not be written")
    refused(
        capsys,
        here,
        ["eos", "good.extxyz", "-o", "good.extxyz", *arguments[4:]],
        "is a file; give the name of a directory",
    )
