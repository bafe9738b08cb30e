"""Datasets of many heads from one file of cards: strict, repeatable, nothing overwritten."""

import numpy as np
import pytest
from data_files import methanol, write_extxyz
from labelled import need_adios

from gfm_calc.cli import main
from gfm_calc.data.collection import build_all, read_cards
from gfm_calc.data.store import open_dataset
from gfm_calc.errors import ConfigError, GFMError, InputFileError

CARDS = """
[[heads]]
name = "pbe"
code = "VASP"
functional = "PBE"
dispersion = "none"
description = "Molecules."

[[heads.files]]
name = "first"
licence = "MIT"
citation = "A paper"

[[heads.files]]
name = "second.extxyz"
licence = "CC0"

[[heads]]
name = "pbe0"
functional = "PBE0"

[[heads.files]]
name = "third"
"""


@pytest.fixture
def place(tmp_path):
    """A folder of three files, and the cards of two heads."""
    files = tmp_path / "files"
    files.mkdir()
    records = methanol()
    for name, part in (("first", records[:3]), ("second", records[3:5]), ("third", records[5:7])):
        write_extxyz(files / f"{name}.extxyz", part)
    (tmp_path / "cards.toml").write_text(CARDS)
    return tmp_path


def build_here(place, **options):
    need_adios()
    heads = read_cards(place / "cards.toml", place / "files")
    return list(build_all(heads, place / "datasets", processes=0, **options))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_head_becomes_a_dataset_with_its_card(place):
    found = build_here(place)
    assert [built.was_there for built in found] == [False, False]
    pbe, pbe0 = (open_dataset(place / "datasets" / name) for name in ("pbe", "pbe0"))
    assert (len(pbe), len(pbe0)) == (5, 2)
    assert [entry["name"] for entry in pbe.inputs] == ["first.extxyz", "second.extxyz"]
    assert pbe.head.functional == "PBE" and pbe.head.code == "VASP" and pbe.head.description == "Molecules."
    assert pbe.head.training_data == (
        {"name": "first", "licence": "MIT", "citation": "A paper"}, {"name": "second.extxyz", "licence": "CC0"},
    )  # fmt: skip
    wanted = methanol()
    np.testing.assert_allclose(pbe.record(3).positions, wanted[3].positions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pbe0.record(0).energy, wanted[5].energy, rtol=0, atol=1e-9)


def test_the_command_can_be_repeated(place):
    build_here(place)
    before = stamps(place / "datasets")
    assert [built.was_there for built in build_here(place)] == [True, True]
    assert stamps(place / "datasets") == before


def test_what_is_there_is_not_overwritten(place):
    build_here(place)
    before = stamps(place / "datasets")
    write_extxyz(place / "files" / "third.extxyz", methanol()[:1])
    (place / "cards.toml").write_text(CARDS.replace('"PBE"', '"PBE+U"'))
    with pytest.raises(GFMError, match="pbe: holds other files or another card: --append adds files, --overwrite"):
        build_here(place)
    with pytest.raises(ConfigError, match=r"pbe: holds PBE/unknown \(VASP\), not PBE\+U"):
        build_here(place, append=True)
    assert stamps(place / "datasets") == before
    build_here(place, overwrite=True)
    assert len(open_dataset(place / "datasets" / "pbe0")) == 1
    assert open_dataset(place / "datasets" / "pbe").head.functional == "PBE+U"


def test_files_are_added(place):
    build_here(place)
    write_extxyz(place / "files" / "fourth.extxyz", methanol()[7:10])
    (place / "cards.toml").write_text(CARDS + '[[heads.files]]\nname = "fourth"\nlicence = "MIT"\n')
    first, second = build_here(place, append=True)
    assert first.was_there and not second.was_there and len(second.dataset) == 5
    assert [data["name"] for data in second.dataset.head.training_data] == ["third", "fourth"]
    assert all(built.was_there for built in build_here(place))


def test_a_head_that_was_cut_off_is_built_again(place, monkeypatch):
    from gfm_calc.data import build

    commit = build._Job.commit
    monkeypatch.setattr(build._Job, "commit", lambda job: commit(job) if job.head.name == "pbe" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_here(place)
    monkeypatch.undo()
    assert [built.was_there for built in build_here(place)] == [True, False]


def test_unsound_structures_left_out_are_not_passed_over_in_silence(place):
    with open(place / "files" / "third.extxyz", "a") as handle:
        handle.write("1\nenergy=nan\nH 0 0 nan\n")
    with pytest.raises(GFMError, match=r"third\.extxyz, frame 2"):
        build_here(place)
    assert len(build_here(place, skip_invalid=True)[1].dataset) == 2
    assert all(built.was_there for built in build_here(place, skip_invalid=True))
    with pytest.raises(GFMError, match="pbe0"):
        build_here(place)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("functional", "functionl", r"unknown key 'functionl' \(did you mean 'functional'\?\)"),
        ("licence", "license", r"files: unknown key 'license' \(did you mean 'licence'\?\)"),
        ("[[heads]]", "[[head]]", r"unknown key 'head' \(did you mean 'heads'\?\)"),
        ('"none"', '"D9"', "dispersion must be one of none, included, unknown"),
        ('name = "pbe0"', 'name = "pbe"', "head pbe occurs twice"),
        ('name = "pbe0"', 'name = "../pbe0"', "use lower-case letters"),
        ('name = "pbe0"', "", "heads 1: has no name"),
        ('name = "third"', "", "one has no name"),
        ('name = "third"', 'name = "thrid"', r"holds no file thrid \(did you mean 'third'\?\)"),
        ('name = "third"', 'name = "../cards"', r"holds no file \.\./cards"),
        ('name = "third"', 'name = "first"', r"first\.extxyz is named twice \(pbe, pbe0\)"),
        ('"MIT"', "3", "licence must be text, not 3"),
        ('[[heads.files]]\nname = "third"', "", "names no file"),
    ],
)  # fmt: skip
def test_wrong_cards_say_what_is_wrong(place, old, new, said):
    assert old in CARDS
    (place / "cards.toml").write_text(CARDS.replace(old, new))
    with pytest.raises((ConfigError, InputFileError), match=said) as error:
        read_cards(place / "cards.toml", place / "files")
    assert "\n" not in str(error.value)


def test_names_that_fit_several_files_are_asked(place):
    (place / "files" / "third.db").write_bytes(b"")
    with pytest.raises(InputFileError, match=r"third may be third\.db or third\.extxyz: write the whole name"):
        read_cards(place / "cards.toml", place / "files")


def test_the_command(place, capsys):
    need_adios()
    words = [
        "data",
        "build",
        "--cards",
        str(place / "cards.toml"),
        "--data",
        str(place / "files"),
        "-o",
        str(place / "out"),
    ]
    assert main(words) == 0
    assert "head pbe, 5 structures" in capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out.count("left as it was") == 2
    for more, said in (
        (["--head", "x"], "--cards does not go with --head"), (["--energy-unit", "Ha"], "--cards does not go with --energy-unit"),
        (["--append", "--overwrite"], "choose one"), (["extra.xyz"], "--cards does not go with files"),
    ):  # fmt: skip
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err
    assert main(["data", "build", "-o", str(place / "new")]) == 1
    assert "give files and --head NAME, or --cards" in capsys.readouterr().err
    assert not (place / "new").exists()
