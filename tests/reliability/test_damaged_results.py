"""R3 for screenings: a damaged, doubled, foreign or missing chunk, or a damaged screening.json, never gives a row."""

import random
import shutil

import pytest
from screenings import argv, chunks, need_pyarrow, random_candidates

from gfm_calc.cli import main
from gfm_calc.errors import CorruptFileError, GFMError
from gfm_calc.screening.folder import Folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, saved_model):
    need_pyarrow()
    folder = tmp_path_factory.mktemp("screening")
    candidates = random_candidates(folder, 23)
    assert main(argv([candidates], folder / "whole", saved_model)) == 0
    return candidates, folder / "whole"


def damages(data: bytes, count: int, seed: int):
    """`data` with bits turned, bytes exchanged, cut off, grown, or with a part repeated elsewhere."""
    chance = random.Random(seed)
    for number in range(count):
        changed = bytearray(data)
        kind = number % 5
        if kind == 0:
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            first = chance.randrange(len(data) - 8)
            changed[first : first + 8] = chance.randbytes(8)
        elif kind == 2:
            del changed[chance.randrange(len(data)) :]
        elif kind == 3:
            changed[chance.randrange(len(data)) :] += chance.randbytes(chance.randrange(1, 40))
        else:
            first, second = chance.randrange(len(data) - 16), chance.randrange(len(data) - 16)
            changed[first : first + 16] = changed[second : second + 16]
        if bytes(changed) != data:
            yield bytes(changed)


def read(directory) -> None:
    for _ in Folder(directory).tables():
        pass


def every_damage_is_noticed(whole, tmp_path, name: str, count: int, tally) -> None:
    shutil.copytree(whole, tmp_path / "run", dirs_exist_ok=True)
    path = tmp_path / "run" / name
    sound = path.read_bytes()
    for number, changed in enumerate(damages(sound, count, seed=len(name))):
        path.write_bytes(changed)
        try:
            read(tmp_path / "run")
            tally.check(False, f"{name}, damage {number}: not noticed")
        except CorruptFileError as error:
            tally.check(path.name in str(error) and "\n" not in str(error), f"{name}, damage {number}: {error}")
    path.write_bytes(sound)
    read(tmp_path / "run")


@pytest.mark.promise("R3")
@pytest.mark.parametrize("name", ["chunks/00000001.parquet", "screening.json"])
def test_damage_is_noticed(whole, tmp_path, tally, name):
    every_damage_is_noticed(whole[1], tmp_path, name, 200, tally)
    tally.verdict()


@pytest.mark.slow
@pytest.mark.promise("R3")
def test_damage_is_noticed_often(whole, tmp_path, tally):
    every_damage_is_noticed(whole[1], tmp_path, "chunks/00000001.parquet", 10_000, tally)
    tally.verdict()


def test_chunks_that_are_missing_doubled_or_of_others(whole, saved_model, tmp_path):
    candidates, directory = whole
    shutil.copytree(directory, tmp_path / "run")
    chunk = tmp_path / "run" / "chunks"
    shutil.copy(chunk / "00000001.parquet", chunk / "00000009.parquet")
    with pytest.raises(CorruptFileError, match="would count twice"):
        read(tmp_path / "run")
    (chunk / "00000009.parquet").unlink()
    shutil.copy(chunk / "00000001.parquet", chunk / "00000002.parquet")
    with pytest.raises(CorruptFileError, match="another screening or place"):
        read(tmp_path / "run")
    (chunk / "00000002.parquet").unlink()
    with pytest.raises(GFMError, match="1 of 5 chunks are missing"):
        read(tmp_path / "run")
    assert main(argv([candidates], tmp_path / "run", saved_model)) == 0
    assert chunks(tmp_path / "run") == chunks(directory)


def test_a_damaged_chunk_ends_the_command_and_can_be_made_anew(whole, saved_model, tmp_path, capsys):
    candidates, directory = whole
    shutil.copytree(directory, tmp_path / "run")
    path = tmp_path / "run" / "chunks" / "00000003.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert main(argv([candidates], tmp_path / "run", saved_model)) == 1
    assert "delete it and give the same command again" in capsys.readouterr().err
    path.unlink()
    assert main(argv([candidates], tmp_path / "run", saved_model)) == 0
    assert chunks(tmp_path / "run") == chunks(directory)
