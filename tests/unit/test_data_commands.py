"""`gfm data inspect`, `split` and `sources`, as a user runs them."""

import argparse
import dataclasses
import json

import numpy as np
from data_files import FIXTURES, methanol, write_npz

from gfm_calc.cli import main
from gfm_calc.commands.data import BY
from gfm_calc.commands.read_options import FIELDS
from gfm_calc.data.grouping import KEYS
from gfm_calc.data.readers import ReadOptions, read
from gfm_calc.data.split_files import load_split, read_split_file

METAL, METHANOL = str(FIXTURES / "nbmotaw.extxyz.xz"), str(FIXTURES / "methanol.extxyz")


def run(capsys, *argv) -> tuple[int, str, str]:
    code = main(["data", *map(str, argv)])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_names_that_are_kept_apart_to_start_fast_are_the_same():
    assert set(BY) == set(KEYS)
    assert set(FIELDS) == {field.name for field in dataclasses.fields(ReadOptions)}


# ---- inspect ----


def test_inspect_prints_and_writes(capsys, tmp_path):
    code, out, _ = run(capsys, "inspect", METHANOL, METAL, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    assert code == 0
    for words in (
        "frames          16",
        "energies are    all-electron total",
        "isolated atoms  H -13.5684",
        "stress from stress",
    ):
        assert words in out
    assert len(json.loads((tmp_path / "a.json").read_text())["files"]) == 2
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    code, _, err = run(capsys, "inspect", METHANOL, "--json", tmp_path / "a.json")
    assert code == 1 and "exists; add --overwrite" in err


def test_inspect_asks(capsys, tmp_path):
    write_npz(tmp_path / "a.npz", methanol())
    code, out, err = run(capsys, "inspect", tmp_path / "a.npz")
    assert code == 1 and err.count("\n") == 1 and "--energy-unit" in err and not out
    code, out, _ = run(capsys, "inspect", tmp_path / "a.npz", "--energy-unit", "kcal/mol", "--length-unit", "A")
    assert code == 0 and "energy from energy (kcal/mol)" in out


def test_inspect_can_fail_a_script(capsys, tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("2\nenergy=-1\nH 0 0 0\nH 0 0 0.74\n" * 2 + "2\nenergy=-2\nH 0 0 0\nH 0 0 0.74\n")
    assert run(capsys, "inspect", path)[0] == 0
    code, out, err = run(capsys, "inspect", path, "--fail-on", "error")
    assert code == 1 and "not their energy" in err and "ERROR: 3 frames" in out


# ---- split ----


def test_split_writes_what_it_says(capsys, tmp_path):
    code, out, _ = run(capsys, "split", METAL, "-o", tmp_path / "s.json", "--test", 0.3, "--seed", 4)
    assert code == 0 and "no structure is on two sides" in out
    content = read_split_file(tmp_path / "s.json")
    split = load_split(tmp_path / "s.json")
    sides = [split.side(record) for record in read(METAL)]
    assert {side: found["frames"] for side, found in content["ids"].items()} == {s: sides.count(s) for s in set(sides)}
    code, _, err = run(capsys, "split", METAL, "-o", tmp_path / "s.json")
    assert code == 1 and "--overwrite" in err
    run(capsys, "split", METAL, "-o", tmp_path / "again.json", "--test", 0.3, "--seed", 4)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "s.json").read_bytes()


def test_split_refuses_leaks_across_files(capsys, tmp_path):
    """The same crystals under other group names in a second file."""
    records = [record.to_atoms() for record in read(METAL)]
    for number, atoms in enumerate(records):
        atoms.info["group"] = f"copy {number}"
    import ase.io

    ase.io.write(tmp_path / "copy.extxyz", records)
    argv = ["split", METAL, tmp_path / "copy.extxyz", "-o", tmp_path / "s.json", "--test", "0.4"]
    code, _, err = run(capsys, *argv)
    assert code == 1 and "on two sides of the split" in err and "--join" in err and not (tmp_path / "s.json").exists()
    code, _, _ = run(capsys, *argv, "--join")
    assert code == 0
    split = load_split(tmp_path / "s.json")
    for one, two in zip(read(METAL), read(tmp_path / "copy.extxyz"), strict=True):
        assert split.side(one) == split.side(two)


def test_split_refuses_unusable_frames_or_lists_them(capsys, tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(
        "".join(
            f"2\nenergy={v} group=g{k}\nH 0 0 0\nH 0 0 {0.7 + k / 100}\n" for k, v in enumerate(["-1", "nan", "-1"])
        )
    )
    code, _, err = run(capsys, "split", path, "-o", tmp_path / "s.json")
    assert code == 1 and "frame 1: energy is not a finite number" in err
    code, out, _ = run(capsys, "split", path, "-o", tmp_path / "s.json", "--skip-invalid")
    assert code == 0 and "1 unusable frames" in out and "frame 1" in read_split_file(tmp_path / "s.json")["unusable"][0]


def test_split_asks_for_groups(capsys, tmp_path):
    (tmp_path / "a.xyz").write_text("1\nenergy=1\nH 0 0 0\n")
    code, _, err = run(capsys, "split", tmp_path / "a.xyz", "-o", tmp_path / "s.json")
    assert code == 1 and "no group" in err and "--by composition" in err
    assert run(capsys, "split", tmp_path / "a.xyz", "-o", tmp_path / "s.json", "--by", "composition")[0] == 0


def test_official_lists(capsys, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(map(str, range(8))))
    (tmp_path / "test.txt").write_text("8\n9\n")
    lists = ["--train-list", tmp_path / "train.txt", "--test-list", tmp_path / "test.txt"]
    code, _, _ = run(capsys, "split", METHANOL, "-o", tmp_path / "s.json", *lists)
    assert code == 0
    split = load_split(tmp_path / "s.json")
    assert [split.side(record) for record in read(METHANOL)] == ["train"] * 8 + ["test"] * 2 + ["unused"] * 6
    (tmp_path / "test.txt").write_text("8\n99\n")
    code, _, err = run(capsys, "split", METHANOL, "-o", tmp_path / "s.json", "--overwrite", *lists)
    assert code == 1 and "1 of 2 names are in no input file (first: methanol.extxyz:99)" in err
    (tmp_path / "test.txt").write_text("7\n")
    code, _, err = run(capsys, "split", METHANOL, "-o", tmp_path / "s.json", "--overwrite", *lists)
    assert code == 1 and "methanol.extxyz:7 is on the lists of train and of test" in err


def test_an_official_list_that_leaks_is_refused(capsys, tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("2\nenergy=-1\nH 0 0 0\nH 0 0 0.74\n" + "2\nenergy=-1\nH 5 0 0\nH 5 0.74 0\n")
    (tmp_path / "train.txt").write_text("0")
    (tmp_path / "test.txt").write_text("1")
    lists = ["--train-list", tmp_path / "train.txt", "--test-list", tmp_path / "test.txt"]
    code, _, err = run(capsys, "split", path, "-o", tmp_path / "s.json", *lists)
    assert code == 1 and "1 structure is on two sides" in err


def test_references_are_fitted_to_the_training_side(capsys, tmp_path):
    argv = ["split", METAL, "-o", tmp_path / "s.json", "--references", tmp_path / "e.json", "--test", "0.3"]
    assert run(capsys, *argv)[0] == 0
    fit = json.loads((tmp_path / "e.json").read_text())
    split = load_split(tmp_path / "s.json")
    training = [record for record in read(METAL) if split.side(record) == "train"]
    assert fit["structures"] == len(training) and fit["kind"] == "fitted" and fit["condition_number"] >= 1.0
    assert set(fit["energies"]) == {s for r in training for s in set(r.structure().symbols)}


def test_isolated_atoms_are_taken_from_the_data_or_a_file(capsys, tmp_path):
    argv = ["split", METHANOL, "-o", tmp_path / "s.json", "--references", tmp_path / "e.json", "--overwrite"]
    assert run(capsys, *argv, "--isolated-atoms", "data")[0] == 0
    energies = json.loads((tmp_path / "e.json").read_text())["energies"]
    assert energies == {"H": -13.568422, "C": -1025.277095, "N": -1479.066559, "O": -2035.570981}
    (tmp_path / "atoms.json").write_text('{"H": -13.0, "C": -1030.0}')
    assert run(capsys, *argv, "--isolated-atoms", tmp_path / "atoms.json")[0] == 0
    energies = json.loads((tmp_path / "e.json").read_text())["energies"]
    assert (energies["H"], energies["C"]) == (-13.0, -1030.0) and np.isfinite(energies["O"])
    code, _, err = run(capsys, *argv[:1], METAL, *argv[2:], "--isolated-atoms", "data")
    assert code == 1 and "no single atoms" in err


def test_a_part_is_not_added_to_the_whole(capsys, tmp_path):
    argv = ["build", FIXTURES / "methanol.aselmdb", "-o", tmp_path / "d", "--head", "wb97m-v", "--source"]
    assert run(capsys, *argv, "omol25")[0] == 0
    code, _, err = run(capsys, *argv, "omol25-neutral", "--append")
    assert code == 1 and "omol25-neutral is part of omol25: its frames would be counted twice" in err


def test_a_side_that_stays_empty_is_told(capsys, tmp_path):
    """The free atoms of the file are no side of their own, and one group cannot be split."""
    code, out, err = run(capsys, "split", METHANOL, "-o", tmp_path / "s.json")
    assert code == 0 and "train      16       5" in out
    for side in ("test", "validation"):
        assert f"nothing is left for {side}: there are 5 groups by group" in err


def test_an_earlier_split_is_kept(capsys, tmp_path):
    assert run(capsys, "split", METAL, "-o", tmp_path / "early.json", "--by", "composition", "--test", "0.5")[0] == 0
    assert (
        run(
            capsys, "split", METAL, METHANOL, "-o", tmp_path / "late.json", "--like", tmp_path / "early.json", "--join"
        )[0]
        == 0
    )
    early, late = load_split(tmp_path / "early.json"), load_split(tmp_path / "late.json")
    assert early.groups and early.groups.items() <= late.groups.items() and late.by == "composition"


def test_two_files_of_one_name(capsys, tmp_path):
    code, _, err = run(capsys, "split", METHANOL, METHANOL, "-o", tmp_path / "s.json")
    assert code == 1 and "two inputs are called methanol.extxyz" in err


# ---- sources ----


def test_sources(capsys):
    code, out, _ = run(capsys, "sources")
    assert code == 0 and out.count("\n") == 2 + 16 + 2
    code, out, _ = run(capsys, "sources", "mptrj")
    assert code == 0 and "--energy-key uncorrected_total_energy" in out and "trap" in out
    code, out, _ = run(capsys, "sources", "--json")
    assert len(json.loads(out)) == 16
    code, _, err = run(capsys, "sources", "mptraj")
    assert code == 1 and "did you mean 'mptrj'" in err


def test_every_command_has_an_example(capsys):
    parser = argparse.ArgumentParser()
    from gfm_calc.commands.data import add_parser

    add_parser(parser.add_subparsers())
    for command in ("inspect", "split", "sources"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0 and f"gfm data {command}" in out.split("example:")[1]
