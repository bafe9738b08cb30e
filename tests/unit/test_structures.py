"""Reading the user's files: sound structures, or errors that name file and frame."""

from __future__ import annotations

import bz2
import gzip
import lzma

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixCartesian
from ase.io import write

from gfm_calc.errors import GFMError, InputFileError, InvalidStructureError
from gfm_calc.structures import read_frames, read_structure, read_structures

WATER = "3\nProperties=species:S:1:pos:R:3 {}\nO 0.0 0.0 0.12\nH 0.0 0.76 -0.48\nH 0.0 -0.76 -0.48\n"


def text(tmp_path, content: str, name: str = "in.xyz"):
    path = tmp_path / name
    path.write_text(content)
    return path


def outcomes(path) -> list:
    return [type(found).__name__ if isinstance(found, GFMError) else len(found) for found in read_frames(path)]


def test_frames_keep_info_constraints_and_order(tmp_path):
    first, second = molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6)
    first.info.update(charge=1, spin=2, tag="a b")
    first.set_constraint(FixAtoms([0, 2]))
    second.set_constraint([FixCartesian(1, mask=(True, False, False))])
    write(tmp_path / "in.extxyz", [first, second])
    found = list(read_structures(tmp_path / "in.extxyz"))
    assert (found[0].info["charge"], found[0].info["spin"], found[0].info["tag"]) == (1, 2, "a b")
    assert found[0].constraints[0].index.tolist() == [0, 2]
    assert found[1].pbc.all() and len(found[1].constraints) == 2
    np.testing.assert_allclose(found[1].positions, second.positions, atol=1e-8)


@pytest.mark.parametrize("suffix, opener", [(".xz", lzma.open), (".gz", gzip.open), (".bz2", bz2.open)])
@pytest.mark.parametrize("inner", ["many.xyz", "one.cif", "many.traj"])
def test_compressed_files_read_like_plain_ones(tmp_path, suffix, opener, inner):
    frames = [bulk("Cu", a=3.5 + 0.1 * k) for k in range(3 if inner.startswith("many") else 1)]
    write(tmp_path / inner, frames)
    with opener(tmp_path / (inner + suffix), "wb") as handle:
        handle.write((tmp_path / inner).read_bytes())
    plain, packed = list(read_structures(tmp_path / inner)), list(read_structures(tmp_path / (inner + suffix)))
    assert len(plain) == len(frames) and plain == packed


def test_compressed_extxyz_is_streamed_in_linear_time(tmp_path):
    """Ten thousand frames, each read once: ASE alone starts the file over for every one."""
    with lzma.open(tmp_path / "in.xyz.xz", "wt", preset=0) as handle:
        handle.writelines([WATER.format("")] * 10_000)
    frames = read_frames(tmp_path / "in.xyz.xz")
    assert len(next(frames)) == 3  # the first comes before the rest is read
    assert sum(1 for _ in frames) == 9_999


@pytest.mark.parametrize(
    "bad, kind, words",
    [
        (WATER.format("").replace("0.76", "nan", 1), InvalidStructureError, "atom 1: position is NaN or infinite"),
        (WATER.format("").replace("0.76", "inf", 1), InvalidStructureError, "atom 1: position is NaN or infinite"),
        (
            WATER.format("").replace("0.76", "abc", 1),
            InvalidStructureError,
            "atom 1: line 9: pos is 'abc', not a number",
        ),
        (WATER.format("").replace("0.76 -0.48", "0.76", 1), InvalidStructureError, "atom 1: line 9 has 3 of 4 columns"),
        (WATER.format("").replace("H ", "Qq ", 1), InvalidStructureError, "atom 1: line 9: unknown element 'Qq'"),
        (WATER.format("").replace("H ", "X ", 1), InvalidStructureError, "atom 1: atomic number 0 is no element"),
        ("0\n\n", InvalidStructureError, "no atoms"),
        (WATER.format("charge=nan"), InvalidStructureError, "charge must be a whole number"),
        (WATER.format("charge=much"), InvalidStructureError, "charge must be a whole number, not 'much'"),
        (WATER.format("spin=2"), InvalidStructureError, "spin multiplicity 2 is impossible with 10 electrons"),
        (
            WATER.format("").replace("pos:R:3", "pos:R"),
            InvalidStructureError,
            "Properties=species:S:1:pos:R is damaged",
        ),
        (WATER.format('pbc="T T T"'), InvalidStructureError, "periodic along a, but that cell vector is zero"),
        (WATER.format('Lattice="1 2 3"'), InvalidStructureError, "Lattice"),
        (WATER.format('Lattice="5 0 0 0 nan 0 0 0 5"'), InvalidStructureError, "cell holds NaN or inf"),
        (WATER.format('Lattice="5 0 0 5 0 0 0 0 5"'), InvalidStructureError, "cell is singular"),
        (WATER.format('Lattice="0.5 0 0 0 5 0 0 0 5"'), InvalidStructureError, "cell vector a is 0.5 Å"),
        (WATER.format('Lattice="5 0 0 0 5 0 0 0 1e6"'), InvalidStructureError, "cell vector c is 1e+06 Å"),
    ],
    ids=lambda value: "" if not isinstance(value, str) or "\n" in value else value,
)
def test_a_bad_frame_is_named_and_spoils_no_other(tmp_path, bad, kind, words):
    path = text(tmp_path, WATER.format("") + bad + WATER.format(""))
    found = list(read_frames(path))
    assert [len(found[0]), len(found[2])] == [3, 3] and len(found) == 3
    assert isinstance(found[1], kind) and str(found[1]).startswith(f"{path}, frame 1") and words in str(found[1])
    assert "\n" not in str(found[1])


@pytest.mark.parametrize("cut", range(1, len(WATER.format("")), 7))
def test_every_cut_of_a_file_is_read_or_named(tmp_path, cut):
    """A file cut in the last line may still be whole; anywhere before, the last frame is an error."""
    whole = WATER.format("")
    found = list(read_frames(text(tmp_path, whole + whole[:cut])))
    assert len(found[0]) == 3 and len(found) == 2
    if cut < whole.rstrip().rindex(" ") + 1:
        assert isinstance(found[1], GFMError) and "frame 1" in str(found[1])


@pytest.mark.parametrize("header", ["three\n", "-3\n", "3.0\n", "99999999999\n", "٣\n"])
def test_a_lost_frame_count_ends_the_file_with_an_error(tmp_path, header):
    assert outcomes(text(tmp_path, WATER.format("") + header + WATER.format(""))) == [3, "InputFileError"]


def test_blank_lines_between_frames_are_no_end(tmp_path):
    assert outcomes(text(tmp_path, WATER.format("") + "\n\n" + WATER.format("") + "\n")) == [3, 3]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("none.xyz", None, "no such file"),
        ("empty.xyz", b"", "is empty"),
        ("blank.xyz", b"\n\n", "holds no structures"),
        ("what.ever", b"hello", "not a format of structures"),
        ("binary.xyz", b"\xff\xfe\x00\x01" * 99, "cannot be read"),
        ("packed.xyz.xz", b"not xz at all", "cannot be read"),
        ("packed.xyz.gz", b"\x1f\x8b\x08\x00 cut", "cannot be read"),
        ("damaged.cif", b"data_x\n_cell_length_a 5\nloop_\n", "holds no structures"),
        ("cut.cif", b"hello\n", "cannot be read as cif"),
        ("damaged.traj", b"- of UlmASE-Trajectory" + bytes(60), "cannot be read as traj"),
        ("POSCAR", b"x\n1.0\n1 0\n", "cannot be read as vasp"),
    ],
)
def test_a_file_that_is_none_is_an_input_error(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError) as caught:
        list(read_structures(path))
    assert str(caught.value).startswith(str(path)) and words in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_never_taken_apart(tmp_path):
    """ASE reads 'x@0' as frame 0 of x, and 'mysql...' as a server."""
    path = text(tmp_path, WATER.format("") * 2, "in@0.xyz")
    assert outcomes(path) == [3, 3]
    with pytest.raises(InputFileError, match="no such file"):
        list(read_frames("mysql://user@host/table"))
    with pytest.raises(InputFileError, match="is a directory"):
        list(read_frames(tmp_path))


def test_a_disordered_crystal_is_refused(tmp_path):
    write(tmp_path / "in.cif", bulk("Cu", cubic=True))
    whole = (tmp_path / "in.cif").read_text()
    assert len(next(read_structures(tmp_path / "in.cif"))) == 4
    (tmp_path / "in.cif").write_text(whole.replace("  1.0000\n", "  0.7500\n"))
    with pytest.raises(InvalidStructureError, match=r"frame 0: site 0 is partly occupied \(Cu 0.75\)"):
        list(read_structures(tmp_path / "in.cif"))


@pytest.mark.parametrize("frame, expected", [(0, 0), (2, 2), (-1, 3), (-4, 0)])
def test_one_frame_by_number(tmp_path, frame, expected):
    write(tmp_path / "in.extxyz", [Atoms("H", positions=[[k, 0, 0]]) for k in range(4)])
    atoms, number = read_structure(tmp_path / "in.extxyz", frame)
    assert (atoms.positions[0, 0], number) == (expected, expected)


@pytest.mark.parametrize(
    "frame, words", [(None, "several frames"), (4, "has no frame 4; it holds 4"), (-5, "no frame -5")]
)
def test_a_frame_that_is_not_there(tmp_path, frame, words):
    write(tmp_path / "in.extxyz", [Atoms("H")] * 4)
    with pytest.raises(InputFileError, match=words):
        read_structure(tmp_path / "in.extxyz", frame)


def test_one_frame_of_a_damaged_file(tmp_path):
    path = text(tmp_path, WATER.format("") + WATER.format("")[:-30])
    assert read_structure(path, 0)[1] == 0
    for frame in (1, -1, 5):
        with pytest.raises(InputFileError, match="truncated"):
            read_structure(path, frame)
