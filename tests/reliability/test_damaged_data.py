"""R5 for readers: damaged and hostile files of every format give records or one of our errors, on one line, naming the file."""

import bz2
import random
import re
from pathlib import Path

import ase
import pytest
from data_files import FIXTURES, WRITERS, methanol

from gfm_calc.data.readers import ReadOptions, isolated, read
from gfm_calc.data.schema import Record
from gfm_calc.errors import GFMError

COUNT = 1000
LONG = 20_000
# Fixtures are tried as they are, and JSON without its compression, so that the damage reaches the parser.
SAMPLES = (
    ("nbmotaw.extxyz.xz", {}), ("methanol.aselmdb", {}), ("nbmotaw.aselmdb", {}),
    ("alexandria.json.bz2", {"energy_key": "energy_total", "stress_key": "none"}), ("alexandria_path.json.bz2", {}),
    ("mptrj.json.bz2", {"energy_key": "uncorrected_total_energy"}),
)  # fmt: skip
NUMBERS = (
    b"nan",
    b"-inf",
    b"1e400",
    b"-1",
    b"0",
    b"99999999999999999999999",
    b"1e-320",
    b"[]",
    b'"x"',
    b"null",
    b"{}",
    b"1 2",
)


def sound_files(folder: Path) -> list[tuple[Path, ReadOptions]]:
    """A sound file of every format, with the options that it needs."""
    found = []
    for name, writer, options in WRITERS.values():
        writer(folder / name, methanol())
        found.append((folder / name, ReadOptions(**options)))
    for name, options in SAMPLES:
        content = (FIXTURES / name).read_bytes()
        (folder / name).write_bytes(content)
        found.append((folder / name, ReadOptions(**options)))
        if name.endswith(".bz2"):
            plain = folder / f"plain_{name.removesuffix('.bz2')}"
            plain.write_bytes(bz2.decompress(content))
            found.append((plain, ReadOptions(**options)))
    for name in ("OUTCAR_example_1", "vasprun_pstress.xml"):
        (folder / name).write_bytes((Path(ase.__file__).parent / "test" / "testdata" / "vasp" / name).read_bytes())
        found.append((folder / name, ReadOptions(energy_key="free_energy")))
    return found


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with one to eight wounds."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at, kind = chance.randrange(max(len(data), 1)), chance.random()
        if kind < 0.25 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind < 0.4 and data:
            data[at] = chance.randrange(256)
        elif kind < 0.5:
            del data[at : at + chance.randrange(1, 300)]
        elif kind < 0.6:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
        elif kind < 0.7:
            data = data[:at]
        elif kind < 0.78:
            data[at : at + 8] = chance.choice(
                (b"\xff" * 8, b"\0" * 8, (1 << 62).to_bytes(8, "little"), b"\xff\xff\xff\x7f")
            )
        elif kind < 0.86:
            start = chance.randrange(max(len(data), 1))
            data[at:at] = data[start : start + chance.randrange(1, 400)]
        else:  # another number in the place of one
            found = list(re.finditer(rb"-?[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?", bytes(data[:20000])))
            if found:
                match = chance.choice(found)
                data[match.start() : match.end()] = chance.choice(NUMBERS)
    return bytes(data)


def check(path: Path, options: ReadOptions, tally, what: str) -> None:
    """Read it all: records, or an error of ours on one line that names the file."""
    try:
        for item in read(path, options=options, on_error="yield"):
            if isinstance(item, GFMError):
                text = str(item)
                tally.check("\n" not in text and len(text) < 2000 and str(path) in text, f"{what}: {text[:300]}")
                break
            assert isinstance(item, Record)
        else:
            tally.check(True, what)
    except Exception as error:
        tally.check(False, f"{what}: {type(error).__name__}: {error}")


@pytest.fixture
def short_patience(monkeypatch):
    """A damaged HDF5 file may keep its library busy for ever: do not wait two minutes for each."""
    monkeypatch.setattr(isolated, "SILENCE", 4.0)


def run(folder: Path, count: int, tally) -> None:
    chance = random.Random(20261121)
    files = [(path, options, path.read_bytes()) for path, options in sound_files(folder)]
    for number in range(count):
        path, options, content = files[number % len(files)]
        target = folder / f"damaged_{path.name}"
        target.write_bytes(damaged(content, chance))
        check(target, options, tally, f"damage {number} of {path.name}")


def test_the_sound_files_are_read(tmp_path):
    for path, options in sound_files(tmp_path):
        assert list(read(path, options=options)), path


@pytest.mark.promise("R5")
def test_damaged_files(short_patience, tmp_path, tally):
    run(tmp_path, COUNT, tally)


@pytest.mark.slow
@pytest.mark.promise("R5")
def test_many_damaged_files(short_patience, tmp_path, tally):
    run(tmp_path, LONG, tally)


@pytest.mark.promise("R5")
@pytest.mark.parametrize(
    "suffix", ["xyz", "traj", "db", "aselmdb", "lmdb", "npz", "h5", "jsonl", "json", "parquet", "tfrecord", "xml"]
)
def test_noise(short_patience, tmp_path, tally, suffix):
    """Bytes that are no file of the format that the name promises."""
    chance = random.Random(7)
    contents = [
        b"\0",
        b"\xef\xbb\xbf",
        b"[" * 100_000,
        b"{" * 100_000,
        bytes(range(256)) * 40,
        b"1\n" * 9,
        b'{"a":' * 30_000,
    ]
    contents += [chance.randbytes(chance.randrange(1, 5000)) for _ in range(5)]
    for number, content in enumerate(contents):
        name = f"vasprun{number}.xml" if suffix == "xml" else f"noise{number}.{suffix}"
        (tmp_path / name).write_bytes(content)
        check(tmp_path / name, ReadOptions(), tally, name)
