"""Writing: aside, then renamed; the progress lines; the tables."""

from __future__ import annotations

import os
import sys

import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read

from gfm_calc.commands.outputs import (
    FrameWriter,
    files_aside,
    structure_format,
    write_csv,
    write_json,
    write_structure,
    written_aside,
)
from gfm_calc.commands.progress import Progress
from gfm_calc.commands.tables import card, table
from gfm_calc.errors import ConfigError, GFMError


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_aside(path, True) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and names(tmp_path) == ["out.txt"]
    with written_aside(path, True) as aside:
        aside.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["out.txt"]


def test_a_file_that_came_meanwhile_is_kept(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(GFMError, match="exists; add --overwrite"), written_aside(path, False) as aside:
        aside.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_is_one_error(tmp_path, monkeypatch, call):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(GFMError, match="could not be written .*No space left"), written_aside(path, True) as aside:
        aside.write_text("new")
    assert path.read_text() == "old" and names(tmp_path) == ["out.txt"]


def test_a_folder_of_files_comes_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError), files_aside(target, ("a", "b"), False) as folder:
        (folder / "a").write_text("1")
        raise ZeroDivisionError
    assert not target.exists()
    for text in ("1", "2"):
        with files_aside(target, ("a", "b"), True) as folder:
            (folder / "a").write_text(text)
            (folder / "b").write_text(text)
            (folder / "scratch").write_text("not asked for")
    assert names(target) == ["a", "b"] and (target / "b").read_text() == "2"
    with pytest.raises(GFMError, match=r"out/a: exists"), files_aside(target, ("a",), False):
        pytest.fail("the block must not run")


def test_figures_are_written_exactly(tmp_path):
    write_csv(tmp_path / "x.csv", ("a", "b"), [(0.1 + 0.2, -12345.678901234567)])
    assert (tmp_path / "x.csv").read_text() == "a,b\n0.30000000000000004,-12345.678901234567\n"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})


@pytest.mark.parametrize(
    "name, fmt",
    [("a.xyz", "extxyz"), ("a.EXTXYZ", "extxyz"), ("a.cif", "cif"), ("POSCAR", "vasp"), ("a.vasp", "vasp"), ("a.db", None),
     ("a.log", None), ("mysql", None), ("a", None)],
)  # fmt: skip
def test_formats_by_name(tmp_path, name, fmt):
    if fmt is None:
        with pytest.raises(ConfigError):
            structure_format(tmp_path / name)
    else:
        assert structure_format(tmp_path / name) == fmt


def test_a_structure_that_a_format_has_no_room_for(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written as vasp"):
        write_structure(tmp_path / "POSCAR", "vasp", Atoms("H"), {})


@pytest.mark.parametrize("name", ["t.traj", "t.extxyz"])
def test_frames_are_there_as_they_are_written(tmp_path, name):
    atoms = molecule("H2O")
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    atoms.get_forces()
    (tmp_path / name).write_text("old")
    with FrameWriter(tmp_path / name, True) as writer:
        assert (tmp_path / name).read_text() == "old"  # until there is something to write
        for count in (1, 2, 3):
            writer.write(atoms, time_fs=count)
            assert len(read(tmp_path / name, ":")) == count
    assert read(tmp_path / name).get_potential_energy() == pytest.approx(energy, abs=1e-12)
    with pytest.raises(GFMError, match="exists"):
        FrameWriter(tmp_path / name, False)
    with pytest.raises(ConfigError, match="a trajectory is"):
        FrameWriter(tmp_path / "t.cif", False)


def test_progress_is_plain_where_there_is_no_terminal(capsys):
    with Progress("work", "steps", 3) as progress:
        for _ in range(3):
            progress.advance(note="fine")
    err = capsys.readouterr().err
    assert err.startswith("work: 3/3 steps, 0 s, ") and err.endswith("/s  fine\n") and err.count("\n") == 1


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("gfm_calc.commands.progress._REFRESH", 0.0)
    with Progress("work", "steps", 2) as progress:
        progress.advance()
        progress.advance()
    drawn = capsys.readouterr().err.split("\r")
    assert "work |############............| 1/2" in drawn[1] and "|########################| 2/2" in drawn[2]
    assert drawn[-1].startswith("work: 2/2 steps")


def test_progress_says_nothing_after_a_failure(capsys):
    with pytest.raises(ZeroDivisionError), Progress("work", "steps"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_tables():
    assert table(("a", "bb"), [("x", 1), ("yyy", 22)], right=(1,)) == "a    bb\n---  --\nx     1\nyyy  22"
    assert card([("name", "x"), ("empty", ""), ("of", 3)]) == "  name  x\n  of    3"
