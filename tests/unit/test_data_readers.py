"""Readers: every format gives the same molecules, in the same units, bit for bit where the file holds the same numbers."""

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from data_files import FIXTURES, WRITERS, methanol, write_ani1x, write_npz, write_qm7x, write_transition1x

from gfm_calc.data.readers import FORMATS, ReadOptions, read, read_raw
from gfm_calc.data.readers.detect import format_of
from gfm_calc.data.readers.jsonstream import JSONDamage, JSONStream
from gfm_calc.data.readers.lmdb_pages import LMDBFile
from gfm_calc.data.readers.tfrecord import _masked_crc
from gfm_calc.data.schema import Record
from gfm_calc.errors import ConfigError, GFMError, InputFileError, InvalidStructureError

VASP = Path(ase.__file__).parent / "test" / "testdata" / "vasp"
# Formats whose numbers were divided by a unit, or stored as float32, are equal to so many eV and eV/Å.
INEXACT = {
    "rmd17": 1e-11,
    "npz": 1e-11,
    "nabla2dft": 1e-11,
    "ani1x": 1e-11,
    "hdf5": 1e-11,
    "parquet": 1e-11,
    "tfrecord": 3e-4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every format of `WRITERS`."""
    directory = tmp_path_factory.mktemp("formats")
    for name, writer, _ in WRITERS.values():
        writer(directory / name, methanol())
    return directory


def frames_of(folder: Path, kind: str) -> list[Record]:
    name, _, options = WRITERS[kind]
    return list(read(folder / name, options=ReadOptions(**options)))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_molecules(folder, kind):
    found, expected = frames_of(folder, kind), methanol()
    assert len(found) == len(expected) == 12
    tolerance = INEXACT.get(kind, 0.0)
    for k, (one, other) in enumerate(zip(found, expected)):
        assert np.array_equal(one.atomic_numbers, other.atomic_numbers) and one.atomic_numbers.dtype == np.int64
        assert one.energy == pytest.approx(other.energy, abs=tolerance, rel=tolerance)
        np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=tolerance)
        np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=2e-6 if kind == "tfrecord" else 1e-14)
        assert one.stress is None and not one.pbc.any() and one.frame == k
        assert one.source == WRITERS[kind][0]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_format_is_recognised(folder, kind):
    assert format_of(folder / WRITERS[kind][0]) in FORMATS


def test_groups(folder):
    assert {r.group for r in frames_of(folder, "nabla2dft")} == {"7"}
    assert {r.group for r in frames_of(folder, "ani1x")} == {"C1H4O1"}
    assert [r.group for r in frames_of(folder, "qm7x")] == ["qm7x-1"] * 4 + ["qm7x-2"] * 4 + ["qm7x-3"] * 4
    assert {r.group for r in frames_of(folder, "transition1x")} == {"CH4O"}
    assert {r.group for r in frames_of(folder, "rmd17")} == {"rmd17_methanol.npz"}
    assert {r.group for r in frames_of(folder, "jsonl")} == {"methanol"}
    assert {r.group for r in frames_of(folder, "tfrecord")} == {""}


@pytest.mark.parametrize("name", ["methanol.extxyz", "nbmotaw.extxyz.xz"])
def test_extended_xyz_is_what_ase_reads_bit_for_bit(name):
    text = lzma.open(FIXTURES / name, "rt").read() if name.endswith("xz") else (FIXTURES / name).read_text()
    path = FIXTURES / name
    from io import StringIO

    expected = ase.io.read(StringIO(text), ":", format="extxyz")
    for record, atoms in zip(read(path), expected, strict=True):
        given = record.to_atoms()
        assert given == atoms
        assert given.calc.results.keys() == atoms.calc.results.keys()
        for key, value in atoms.calc.results.items():
            assert np.array_equal(given.calc.results[key], value)
        assert record.spin == atoms.info.get("spin") and record.group == atoms.info["group"]


def test_records_and_atoms_are_the_same_both_ways():
    for record in read(FIXTURES / "nbmotaw.extxyz.xz"):
        back = Record.from_atoms(record.to_atoms(), frame=record.frame)
        for name in ("atomic_numbers", "positions", "cell", "pbc", "forces", "stress"):
            assert np.array_equal(getattr(back, name), getattr(record, name))
        assert (back.energy, back.group, back.source) == (record.energy, record.group, record.source)


# ---- published layouts ----


def test_ase_lmdb_of_the_fairchem_writer():
    """Written by ase-db-backends, which writes OMat24, OMol25 and OC25; row 3 was deleted and one was added."""
    expected = list(read(FIXTURES / "methanol.extxyz"))
    found = list(read(FIXTURES / "methanol.aselmdb"))
    expected = [*expected[:2], *expected[3:], expected[0]]
    assert len(found) == len(expected) == 16
    for one, other in zip(found, expected):
        assert np.array_equal(one.positions, other.positions) and np.array_equal(one.forces, other.forces)
        assert one.energy == other.energy
    assert [r.charge for r in found] == [0] * 15 + [None] and found[-3].spin == 3 and found[0].spin == 1


def test_ase_lmdb_keeps_stress_and_knows_what_is_fixed():
    path = FIXTURES / "nbmotaw.aselmdb"
    for one, other in zip(read(path), read(FIXTURES / "nbmotaw.extxyz.xz"), strict=True):
        assert np.array_equal(one.stress, other.stress) and one.pbc.all()
        assert np.array_equal(one.forces, other.forces)  # not set to zero by the constraint
    assert all(np.array_equal(raw.fixed, [0]) for raw in read_raw(path))


def test_lmdb_pages_are_what_the_library_reads(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="the library that this reader is compared with is not installed")
    random = np.random.default_rng(0)
    content = {f"{k}".encode(): random.bytes(int(random.integers(0, 9000))) for k in range(3000)}
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, map_size=1 << 28) as env:
        with env.begin(write=True) as transaction:
            for key, value in content.items():
                transaction.put(key, value)
        with env.begin(write=True) as transaction:
            for key in list(content)[::7]:
                transaction.delete(key)
                del content[key]
    with LMDBFile(tmp_path / "a.lmdb") as table:
        assert dict(table.items()) == content and table.num_entries == len(content)
        assert all(table.get(key) == value for key, value in content.items())
        assert table.get(b"0") is None and table.get(b"zzz") is None and table.get(b"") is None


@pytest.mark.parametrize("name, group", [("alexandria_path.json.bz2", "agm000002"), ("mptrj.json.bz2", "mp-102")])
def test_stress_of_published_json_is_kbar_in_compression(name, group):
    options = ReadOptions(energy_key="uncorrected_total_energy") if "mptrj" in name else ReadOptions()
    for one, other in zip(read(FIXTURES / name, options=options), read(FIXTURES / "nbmotaw.extxyz.xz"), strict=True):
        np.testing.assert_allclose(one.stress, other.stress, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=1e-10)
        assert one.energy == other.energy and np.array_equal(one.forces, other.forces)
    assert one.group == group


def test_static_alexandria_asks_which_energy_and_which_stress():
    path = FIXTURES / "alexandria.json.bz2"
    with pytest.raises(InputFileError, match="--stress-unit"):
        list(read(path))
    with pytest.raises(InputFileError, match=r"energy_total.*energy_corrected.*--energy-key"):
        list(read(path, options=ReadOptions(stress_key="none")))
    options = ReadOptions(energy_key="energy_total", stress_unit="kBar", stress_sign="compression")
    found = list(read(path, options=options))
    expected = list(read(FIXTURES / "nbmotaw.extxyz.xz"))[:6]
    assert [r.energy for r in found] == [r.energy for r in expected]
    np.testing.assert_allclose(found[3].stress, expected[3].stress, rtol=1e-12)
    assert [r.group for r in found] == ["agm000000", "agm000000", "agm000001", "agm000001", "agm000002", "agm000002"]


def test_vasp_asks_which_energy():
    for name, energy in (("OUTCAR_example_1", -68.228685), ("vasprun_pstress.xml", -20.246959)):
        with pytest.raises(InputFileError, match="forces belong to free_energy.*--energy-key energy or free_energy"):
            list(read(VASP / name))
        found = list(read(VASP / name, options=ReadOptions(energy_key="free_energy")))
        assert found[0].energy == pytest.approx(energy, abs=1e-6) and found[0].stress is not None
        assert found[0].group == f"vasp/{name}"


def test_ani1x_passes_over_what_was_not_calculated(tmp_path):
    write_ani1x(tmp_path / "a.h5", methanol())
    options = ReadOptions(energy_key="ccsd(t)_cbs.energy", forces_key="none")
    found = list(read(tmp_path / "a.h5", options=options))
    assert [record.frame for record in found] == [0, 2, 4, 6, 8, 10] and found[0].forces is None
    with pytest.raises(
        InputFileError, match=r"ccsd\(t\)_cbs\.energy.*wb97x_dz\.energy.*wb97x_tz\.energy.*--energy-key"
    ):
        list(read(tmp_path / "a.h5"))


def test_qm7x_pairs_energies_with_their_forces(tmp_path):
    write_qm7x(tmp_path / "a.hdf5", methanol())
    with_mbd = next(read(tmp_path / "a.hdf5", options=ReadOptions(energy_key="ePBE0+MBD")))
    without = next(read(tmp_path / "a.hdf5", options=ReadOptions(energy_key="ePBE0")))
    assert without.energy == with_mbd.energy + 0.5
    np.testing.assert_allclose(without.forces, with_mbd.forces + 0.01, rtol=0, atol=1e-14)
    with pytest.raises(InputFileError, match="--energy-key"):
        list(read(tmp_path / "a.hdf5"))


def test_transition1x_counts_nothing_twice(tmp_path):
    write_transition1x(tmp_path / "a.h5", methanol())
    energies = [record.energy for record in read(tmp_path / "a.h5")]
    assert sorted(energies) == sorted(record.energy for record in methanol())


def test_hdf5_links_out_of_the_file_are_not_followed(tmp_path):
    import h5py

    write_ani1x(tmp_path / "secret.h5", methanol())
    for name in ("link.h5", "external.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            if name == "link.h5":
                file["C1H4O1"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/C1H4O1")
            else:
                group = file.create_group("a")
                group["atomic_numbers"] = [1, 1]
                group.create_dataset("coordinates", (1, 2, 3), "f8", external=[(str(tmp_path / "secret.h5"), 0, 48)])
        with pytest.raises(InputFileError, match="another file"):
            list(read(tmp_path / name))


def test_a_reader_that_hangs_is_given_up(tmp_path, monkeypatch):
    """HDF5 goes round in circles on some damaged files; here it waits for a pipe that nobody writes to."""
    import os

    from gfm_calc.data.readers import isolated

    monkeypatch.setattr(isolated, "SILENCE", 1.0)
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(InputFileError, match="silent for 1 s: damaged"):
        list(read(tmp_path / "a.h5"))


@pytest.mark.promise("R4")
def test_a_module_beside_the_data_is_not_imported(tmp_path, monkeypatch):
    from gfm_calc.data.readers import isolated

    write_transition1x(tmp_path / "a.h5", methanol())
    for name in ("h5py", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(isolated, "_idle", [])
    assert len(list(read("a.h5"))) == len(methanol()) and not (tmp_path / "ran").exists()


def test_a_reader_that_dies_is_an_error_and_the_next_file_is_read(tmp_path, monkeypatch):
    from gfm_calc.data.readers import isolated

    write_transition1x(tmp_path / "a.h5", methanol())
    used = []
    take = isolated._take
    monkeypatch.setattr(isolated, "_take", lambda: used.append(take()) or used[-1])
    monkeypatch.setattr(
        isolated._Reader, "message", lambda self: self._process.kill() or (_ for _ in ()).throw(isolated._Gone("died"))
    )
    with pytest.raises(InputFileError, match="its reader died: damaged"):
        list(read(tmp_path / "a.h5"))
    monkeypatch.undo()
    assert len(list(read(tmp_path / "a.h5"))) == 12 and not used[0].is_alive()


def test_a_reader_is_used_again_and_ended_when_it_is_left(tmp_path):
    from gfm_calc.data.readers import isolated

    write_transition1x(tmp_path / "a.h5", methanol())
    list(read(tmp_path / "a.h5"))
    (kept,) = isolated._idle
    frames = read(tmp_path / "a.h5")
    next(frames)
    assert not isolated._idle and kept.is_alive()
    frames.close()
    assert not isolated._idle and not kept.is_alive()


# ---- memory, compression, streams ----


def test_npz_is_streamed(tmp_path, monkeypatch):
    from gfm_calc.data.readers import npz

    write_npz(tmp_path / "a.npz", methanol())
    expected = list(read(tmp_path / "a.npz", options=ReadOptions(energy_unit="kcal/mol", length_unit="A")))
    monkeypatch.setattr(npz, "_SMALL", 200)  # bytes: one frame at a time
    found = list(read(tmp_path / "a.npz", options=ReadOptions(energy_unit="kcal/mol", length_unit="A")))
    assert len(found) == 12 and all(np.array_equal(a.forces, b.forces) for a, b in zip(found, expected))


def test_npz_of_padded_molecules(tmp_path):
    records = [record for record in read(FIXTURES / "methanol.extxyz")][10:14]  # 6, 6, 1 and 1 atoms
    numbers, positions, forces = np.zeros((4, 8), int), np.zeros((4, 8, 3)), np.zeros((4, 8, 3))
    for k, record in enumerate(records):
        numbers[k, : len(record)], positions[k, : len(record)] = record.atomic_numbers, record.positions
        forces[k, : len(record)] = record.forces
    np.savez(
        tmp_path / "p.npz",
        Z=numbers,
        R=positions,
        energy=[r.energy for r in records],
        forces=forces,
        e_unit="eV",
        r_unit="A",
    )
    for one, other in zip(read(tmp_path / "p.npz"), records, strict=True):
        assert np.array_equal(one.positions, other.positions) and np.array_equal(one.forces, other.forces)
        assert one.energy == other.energy


def test_memory_does_not_grow_with_the_file(tmp_path):
    """20,000 frames of MPtrj's layout, 60 MB of JSON, in a process that may grow by 60 MB while it reads."""
    one = json.loads(__import__("bz2").open(FIXTURES / "mptrj.json.bz2").read())
    entry = json.dumps(next(iter(next(iter(one.values())).values())))
    with open(tmp_path / "big.json", "w") as handle:
        handle.write("{" + ",".join(f'"mp-{k}": {{"a": {entry}, "b": {entry}}}' for k in range(10_000)) + "}")
    code = (
        "import resource, sys\n"
        "from gfm_calc.data.readers import read, ReadOptions\n"
        "frames = read(sys.argv[1], options=ReadOptions(energy_key='uncorrected_total_energy'))\n"
        "for k in range(100): next(frames)\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = 100 + sum(1 for _ in frames)\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "big.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, grown = map(int, done.stdout.split())
    assert count == 20_000 and grown < 60_000


def test_json_stream_is_json():
    from io import StringIO

    value = {"a": [1, -2.5e3, {"b": 'ü\\u00e9"\\n'}, [], {}], "n": None, "t": True, "long": list(range(3000))}
    text = json.dumps(value)

    class Drip(StringIO):
        """Gives a few characters at a time."""

        def read(self, size=-1):
            return super().read(7)

    stream = JSONStream(Drip(f"  {text} "))
    found = {key: stream.value() for key in stream.members()}
    stream.end()
    assert found == value
    stream = JSONStream(Drip(text))
    assert [key for key in stream.members()] == list(value)  # values that are not taken are skipped
    for damaged in (text[:-1], text[:40], text.replace(",", ";", 1), '{"a": 1,}', '{"a" 1}', "{1: 2}", text + "x", ""):
        with pytest.raises(JSONDamage):
            stream = JSONStream(Drip(damaged))
            dict((key, stream.value()) for key in stream.members())
            stream.end()


def test_crc_is_castagnoli():
    crc = 0xE3069283  # of "123456789", from the literature
    assert _masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_gzip_and_plain_xyz(tmp_path):
    path = tmp_path / "plain.xyz.gz"
    path.write_bytes(gzip.compress(b'2\nany words: E= 3 "quoted\nH 0 0 0\nh 0 0 0.74\n'))
    (record,) = read(path)
    assert np.isnan(record.energy) and record.atomic_numbers.tolist() == [1, 1] and not record.pbc.any()


# ---- what is refused ----


def test_nothing_is_unpickled(tmp_path):
    import pickle

    for name in ("a.pkl", "a.pt", "a.pickle"):
        (tmp_path / name).write_bytes(pickle.dumps([1]))
        with pytest.raises(InputFileError, match="unpickling runs code"):
            list(read(tmp_path / name))
    np.savez(tmp_path / "o.npz", z=np.array([1, 1]), R=np.zeros((1, 2, 3)), E=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputFileError, match="have to be unpickled"):
        list(read(tmp_path / "o.npz"))


def test_pickled_lmdb_of_the_open_catalyst_project(tmp_path):
    import pickle

    lmdb = pytest.importorskip("lmdb", reason="the library that writes such files is not installed")
    with lmdb.open(str(tmp_path / "data.lmdb"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps({"pos": [1]}, protocol=-1))
        transaction.put(b"length", pickle.dumps(1, protocol=-1))
    with pytest.raises(InputFileError, match="pickled objects; unpickling runs code"):
        list(read(tmp_path / "data.lmdb"))


def test_a_reader_never_writes(tmp_path):
    """ASE's own reader makes tables in a SQLite file that has none."""
    import sqlite3

    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(InputFileError, match="no database of ASE"):
        list(read(path))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize(
    "comment, atoms, match",
    [
        ("Properties=species:S:1:pos:R:3:forces:R:3 energy=nan", "H 0 0 0 1 1 1", "energy is not a finite number"),
        ("Properties=species:S:1:pos:R:3:forces:R:3 energy=1", "H 0 0 0 1 nan 1", "atom 0: forces are not finite"),
        ("Properties=species:S:1:pos:R:3 energy=1", "Xx 0 0 0", "unknown element 'Xx'"),
        ("Properties=species:S:1:pos:R:3 energy=1", "H 0 0 0 1 2 3", "7 columns, but Properties names 4"),
        ("Properties=species:S:1:pos:R:3 energy=1", "H 0 0", "3 of 4 columns"),
        ("Properties=species:S:1:pos:R:3 energy=1", "H 0 zero 0", "'zero', not a number"),
        ("Properties=species:S:1:pos:R energy=1", "H 0 0 0", "Properties=.* is damaged"),
        ('Lattice="1 2 3" energy=1', "H 0 0 0", "nine numbers"),
        ('Lattice="5 0 0 0 5 0 0 0 5" pbc="T maybe F" energy=1', "H 0 0 0", "pbc must be"),
        ("energy=1 charge=5", "H 0 0 0", "removes more than all 1 electrons"),
        ("energy=1 spin=1", "H 0 0 0", "spin multiplicity 1 is impossible"),
        ("energy=1 energy_unit=furlong", "H 0 0 0", "unknown energy unit 'furlong'"),
        ("energy=1 stress=\"1 0 0 0 1 0 0 0 1\"", "H 0 0 0", "no periodic direction"),
        ("energy=1e300", "H 0 0 0", "no unit"),
    ],
)  # fmt: skip
def test_bad_frames_are_named(tmp_path, comment, atoms, match):
    path = tmp_path / "bad.xyz"
    path.write_text(f"1\nenergy=0\nH 0 0 0\n1\n{comment}\n{atoms}\n")
    with pytest.raises(GFMError, match=match) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path}, frame 1") and "\n" not in str(caught.value)


def test_reading_goes_on_after_a_bad_frame(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("1\nenergy=1\nH 0 0 0\n1\nenergy=2\nH 0 0 nan\n1\nenergy=3\nH 0 0 0\n")
    found = list(read(path, on_error="yield"))
    assert [type(item) for item in found] == [Record, InvalidStructureError, Record]
    assert found[1].frame == 1 and found[2].frame == 2


def test_what_is_no_file(tmp_path):
    (tmp_path / "empty.xyz").touch()
    (tmp_path / "odd.json").write_text('{"what": 1}')
    for name, match in (
        ("empty.xyz", "is empty"),
        ("none.xyz", "no such file"),
        (".", "is a directory"),
        ("odd.json", "--format"),
    ):
        with pytest.raises(InputFileError, match=match):
            list(read(tmp_path / name))
    with pytest.raises(ConfigError, match="did you mean 'extxyz'"):
        list(read(tmp_path / "odd.json", format="extxy"))


def test_fixed_atoms_are_found(tmp_path):
    slab = bulk("Cu", cubic=True)
    slab.set_constraint(FixAtoms([0, 2]))
    ase.io.write(tmp_path / "a.extxyz", slab)
    ase.io.write(tmp_path / "a.traj", slab)
    ase.io.write(tmp_path / "a.db", slab)
    for name in ("a.extxyz", "a.traj", "a.db"):
        (raw,) = read_raw(tmp_path / name)
        assert raw.fixed.tolist() == [0, 2], name


def test_no_atoms_is_an_error():
    with pytest.raises(InvalidStructureError, match="no atoms"):
        Record.from_atoms(Atoms())
