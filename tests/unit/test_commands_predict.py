"""`gfm predict`: the same numbers as the Predictor, in files that can be read back; bad frames."""

from __future__ import annotations

import json
import lzma

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import read, write

from gfm_calc import Predictor
from gfm_calc.cli import main
from gfm_calc.commands.outputs import write_extxyz


@pytest.fixture
def frames():
    ion, water, slab = molecule("CH3CH2OH"), molecule("H2O"), bulk("Cu", a=3.6, cubic=True)
    ion.info.update(charge=1, spin=2, tag="has blanks")
    water.set_constraint(FixAtoms([0]))
    slab.pbc = (True, True, False)
    crystal = bulk("NaCl", "rocksalt", a=5.5)
    crystal.rattle(0.05, seed=1)
    return [ion, water, slab, crystal]


@pytest.fixture
def predict(tmp_path, saved_model, capsys):
    """Run `gfm predict` on files in tmp_path; (code, stdout, stderr, path of the output)."""

    def run(*names, out="out.extxyz", heads=("first",), more=()):
        inputs = [str(tmp_path / name) for name in names]
        options = [word for head in heads for word in ("--head", head)]
        code = main(["predict", *inputs, "-o", str(tmp_path / out), "--model", str(saved_model), *options, *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err, tmp_path / out

    return run


def expected(saved_model, frames, heads):
    return list(Predictor(saved_model, heads).predict(frames))


def test_one_head_to_extxyz(tmp_path, saved_model, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    code, out, _, path = predict("in.extxyz")
    assert (code, out) == (0, f"{path}: 4 structures, first\n")
    found = read(path, ":")
    frames = read(tmp_path / "in.extxyz", ":")  # positions with the digits that the file has
    model_id = Predictor(saved_model, ["first"]).model.model_id
    for atoms, given, right in zip(found, frames, expected(saved_model, frames, ["first"]), strict=True):
        assert atoms.get_potential_energy() == float(right["first"].energy)
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), right["first"].forces, atol=1e-8)
        assert (atoms.info["head"], atoms.info["model_id"]) == ("first", model_id)
        assert atoms.symbols.get_chemical_formula() == given.symbols.get_chemical_formula()
        assert [type(c) for c in atoms.constraints] == [type(c) for c in given.constraints]
        assert ("stress" in atoms.calc.results) == bool(given.pbc.any())  # the vacuum of the slab stands upright
    np.testing.assert_allclose(
        found[3].get_stress(voigt=False), expected(saved_model, frames[3:], ["first"])[0]["first"].stress[0], atol=1e-8
    )
    assert (found[0].info["charge"], found[0].info["spin"], found[0].info["tag"]) == (1, 2, "has blanks")


def test_several_heads_prefix_their_keys(tmp_path, saved_model, predict, frames):
    frames = frames[1:]  # the property heads know no ions
    write(tmp_path / "in.extxyz", frames)
    heads = ("second", "first", "population", "gap", "dipoles")
    code, _, _, path = predict("in.extxyz", heads=heads)
    assert code == 0
    for atoms, right in zip(read(path, ":"), expected(saved_model, frames, heads), strict=True):
        assert atoms.info["head"] == " ".join(heads)
        for head in ("second", "first"):
            assert atoms.info[f"{head}_energy"] == float(right[head].energy)
            np.testing.assert_allclose(atoms.arrays[f"{head}_forces"], right[head].forces, atol=1e-8)
        assert atoms.info["gap_value"] == pytest.approx(
            float(right["gap"].value), abs=1e-10
        )  # landmarks enlarge rounding
        np.testing.assert_allclose(atoms.arrays["population_value"], right["population"].value, atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["dipoles_value"], right["dipoles"].value, atol=1e-8)


def test_json_lines_hold_every_digit(tmp_path, saved_model, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    code, _, _, path = predict("in.extxyz", out="out.jsonl")
    assert code == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2, 3]
    for record, right in zip(records, expected(saved_model, read(tmp_path / "in.extxyz", ":"), ["first"]), strict=True):
        assert record["energy"] == float(right["first"].energy)
        assert record["forces"] == right["first"].forces.tolist()
        assert record["source"] == str(tmp_path / "in.extxyz") and record["head"] == "first"
    assert ["stress" in record for record in records] == [False, False, True, True]


def test_several_files_of_several_kinds(tmp_path, predict, frames):
    write(tmp_path / "a.extxyz", frames[:2])
    write(tmp_path / "b.cif", frames[3])
    with lzma.open(tmp_path / "c.xyz.xz", "wb") as handle:
        handle.write((tmp_path / "a.extxyz").read_bytes())
    code, out, _, path = predict("a.extxyz", "b.cif", "c.xyz.xz")
    assert code == 0 and "5 structures" in out
    assert [len(atoms) for atoms in read(path, ":")] == [9, 3, 2, 9, 3]


@pytest.fixture
def mixed(tmp_path, frames):
    """Good, unreadable, outside the domain, overlapping, good, truncated."""
    unseen, overlap = molecule("SH2"), molecule("H2O")
    overlap.positions[2] = overlap.positions[1] + 0.01
    write(tmp_path / "in.extxyz", [frames[0], frames[1], unseen, overlap, frames[3], frames[1]])
    lines = (tmp_path / "in.extxyz").read_text().splitlines(keepends=True)
    lines[13] = lines[13].replace("0.", "?.")
    (tmp_path / "in.extxyz").write_text("".join(lines[:-1]))


def test_a_bad_frame_stops_everything(predict, mixed):
    code, out, err, path = predict("in.extxyz")
    assert (code, out) == (1, "") and err.count("\n") == 1 and not path.exists()
    assert "in.extxyz, frame 1, atom 0: line 14: pos is '0.00000000'" not in err
    assert "in.extxyz, frame 1, atom" in err and "not a number" in err


def test_skip_invalid_writes_the_good_ones_and_names_the_others(predict, mixed):
    code, out, err, path = predict("in.extxyz", more=["--skip-invalid"])
    assert code == 0 and out == f"{path}: 2 structures, first; 4 left out\n"
    assert [len(atoms) for atoms in read(path, ":")] == [9, 2]
    left_out = [line for line in err.splitlines() if line.startswith("gfm: left out: ")]
    for line, words in zip(
        left_out,
        (
            "frame 1, atom ",
            "frame 2: head first has not seen S; --no-strict",
            "frame 3, atom ",
            "frame 5: ends after 2 of 3",
        ),
        strict=True,
    ):
        assert words in line


def test_no_strict_predicts_elements_that_were_not_seen(tmp_path, predict):
    write(tmp_path / "in.xyz", molecule("SH2"))
    assert predict("in.xyz")[0] == 1
    assert predict("in.xyz", more=["--no-strict"])[0] == 0


def test_nothing_good_is_an_error_and_writes_nothing(tmp_path, predict):
    (tmp_path / "in.xyz").write_text("0\n\n")
    code, out, err, path = predict("in.xyz", more=["--skip-invalid"])
    assert (code, out) == (1, "") and "none of the 1 structures" in err and not path.exists()


def test_a_missing_file_is_an_error_even_where_frames_may_be_skipped(tmp_path, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    code, _, err, path = predict("in.extxyz", "none.xyz", more=["--skip-invalid"])
    assert code == 1 and "none.xyz: no such file" in err and not path.exists()


def test_an_output_that_is_there_is_kept(tmp_path, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    (tmp_path / "out.extxyz").write_text("mine")
    code, _, err, path = predict("in.extxyz")
    assert code == 1 and "add --overwrite" in err and path.read_text() == "mine"
    assert predict("in.extxyz", more=["--overwrite"])[0] == 0 and len(read(path, ":")) == 4
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_input_can_be_the_output(tmp_path, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    assert predict("in.extxyz", out="in.extxyz", more=["--overwrite"])[0] == 0
    assert [atoms.info["head"] for atoms in read(tmp_path / "in.extxyz", ":")] == ["first"] * 4


@pytest.mark.parametrize(
    "heads, words",
    [
        ((), "this model has 7 heads; choose with --head: first, second, third, gap, volume, population, dipoles"),
        (("frist",), "no head 'frist' (did you mean 'first'?)"),
        (("3",), "no head '3'; heads: first, second, third"),
    ],
)
def test_a_head_must_be_chosen_by_its_name(tmp_path, predict, frames, heads, words):
    write(tmp_path / "in.extxyz", frames)
    code, _, err, path = predict("in.extxyz", heads=heads)
    assert code == 1 and words in err and err.count("\n") == 1 and not path.exists()


def test_an_output_of_no_known_kind(predict):
    code, _, err, path = predict("in.extxyz", out="out.cif")
    assert code == 1 and "give it one of the suffixes .extxyz, .xyz, .jsonl, .ndjson" in err and not path.exists()


def test_text_that_extxyz_cannot_hold_is_mended(tmp_path, frames):
    """PDB files have blank residue names; a line end in a comment would break the frame."""
    atoms = frames[0]
    atoms.set_array("residuenames", np.array(["", "A B", *["C"] * 7]))
    atoms.info.update(comment="two\nlines", Lattice="nonsense", energy="of the file")
    with open(tmp_path / "out.extxyz", "w") as handle:
        for energy in (-1.0, -2.0):
            write_extxyz(handle, atoms, {"energy": energy})
    found = read(tmp_path / "out.extxyz", ":")
    assert [a.get_potential_energy() for a in found] == [-1.0, -2.0]
    assert found[1].arrays["residuenames"].tolist() == ["_", "A_B", *["C"] * 7]
    assert found[1].info["comment"] == "two lines" and not found[1].cell.array.any()
    assert atoms.info["comment"] == "two\nlines"


def test_compile_with_several_heads_gives_the_same_bits(tmp_path, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    paths = [
        predict("in.extxyz", out=f"{k}.jsonl", heads=("first", "third"), more=more)[3]
        for k, more in enumerate(([], ["--compile"]))
    ]
    assert paths[0].read_text() == paths[1].read_text()


@pytest.mark.slow
def test_compile_gives_the_same_numbers(tmp_path, predict, frames):
    write(tmp_path / "in.extxyz", frames)
    found = []
    for name, more in (("a.jsonl", []), ("b.jsonl", ["--compile"])):
        code, _, _, path = predict("in.extxyz", out=name, more=[*more, "--dtype", "float64"])
        assert code == 0
        found.append([json.loads(line) for line in path.read_text().splitlines()])
    for eager, compiled in zip(*found, strict=True):
        assert compiled["energy"] == pytest.approx(eager["energy"], abs=1e-10)
        np.testing.assert_allclose(compiled["forces"], eager["forces"], atol=1e-9)
