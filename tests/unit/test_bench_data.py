"""The benchmark of the data platform on a handful of frames; no test looks at how fast anything is."""

import lzma
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from labelled import difference as reference_difference
from labelled import make_dataset, need_adios, random_record, records
from support import ROOT
from training import make_datasets

from gfm_calc.benchmarks import data_loader
from gfm_calc.benchmarks.data import PARTS, DataPlan, run_data
from gfm_calc.benchmarks.data_formats import FORMATS, _compare, write_lmdb
from gfm_calc.benchmarks.data_million import SyntheticTask, _made
from gfm_calc.benchmarks.data_pool import _by_head, _schema_bytes, check_file, difference
from gfm_calc.benchmarks.data_ranks import different
from gfm_calc.benchmarks.data_sample import Sample, SampleTask, quantiles
from gfm_calc.benchmarks.report import markdown
from gfm_calc.data.readers import read
from gfm_calc.data.store import open_dataset
from gfm_calc.errors import ConfigError, GFMError, InputFileError

METHANOL = ROOT / "tests" / "fixtures" / "methanol.extxyz"
ABOUT = {"command": "gfm bench data", "date": "2026-01-02", "model_id": "", "weights": "", "threads": 1,
         "machine": {"processor": "Some CPU", "cores": 2}, "versions": {"gfm-calc": "0.1.0"}}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two files of molecules and one of crystals; frames name head and group."""
    folder = tmp_path / "pool"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, head, crystal in (("a", "first", False), ("b", "first", False), ("c", "second", True)):
        frames = []
        for k in range(8):
            record = random_record(random, k)
            while record.forces is None or np.isnan(record.energy) or bool(record.pbc.any()) != crystal:
                record = random_record(random, k)
            atoms = replace(record, charge=None, spin=None, group="").to_atoms()
            atoms.info = {"head": head, "group": f"{name}{k}"}
            frames.append(atoms)
        ase.io.write(folder / f"{name}.extxyz", frames, format="extxyz")
        (folder / f"{name}.extxyz.xz").write_bytes(lzma.compress((folder / f"{name}.extxyz").read_bytes()))
    return folder


def test_pool_and_reads_of_a_small_folder(folder, tmp_path):
    need_adios()
    pytest.importorskip("lmdb")
    pytest.importorskip("h5py")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plan = DataPlan(
        folder=folder, parts=("pool", "reads"), scratch=scratch, molecules=10, crystals=5, rounds=1, processes=0
    )
    found = run_data(plan)
    assert not list(scratch.iterdir()), "the scratch folder is left"
    pool = found["pool"]
    assert pool["frames"] == pool["compared"]["frames"] == 24 and pool["files"] == 3
    assert [(row["head"], row["files"], row["frames"]) for row in pool["heads"]] == [("first", 2, 16), ("second", 1, 8)]
    assert sum(pool["split"][side] for side in ("train", "validation", "test")) == 24
    assert pool["bytes"]["edges"] > 0
    sets = {row["set"]: row for row in found["reads"]["sets"]}
    assert {name: row["structures"] for name, row in sets.items()} == {"molecules": 10, "crystals": 5}
    assert sets["molecules"]["formats"].keys() == FORMATS.keys()
    text = markdown({"benchmark": "data", "format_version": 1, "provenance": ABOUT, **found})
    assert "| 10 molecules | ASE-LMDB |" in text and "24 frames" in text


def test_a_format_that_gives_other_numbers_is_noticed(tmp_path):
    need_adios()
    pytest.importorskip("lmdb")
    dataset = make_dataset(tmp_path / "data", (20,))
    kept = [replace(record, energy=1.0) for record in records(20)]
    write_lmdb(tmp_path / "other.aselmdb", kept)
    paths = {"gfm-calc": dataset.directory, "ASE-LMDB": tmp_path / "other.aselmdb"}
    readers = {name: FORMATS[name][2](path) for name, path in paths.items()}
    with pytest.raises(GFMError, match="energy"):
        _compare(readers, range(20))


def test_our_lmdb_is_what_the_published_layout_is_read_from(tmp_path):
    """The benchmark's file is read by the reader that reads ase-db-backends' own."""
    pytest.importorskip("lmdb")
    wanted = list(read(METHANOL))
    write_lmdb(tmp_path / "methanol.aselmdb", wanted)
    for a, b in zip(wanted, read(tmp_path / "methanol.aselmdb"), strict=True):
        assert a.energy == b.energy and np.array_equal(a.positions, b.positions) and np.array_equal(a.forces, b.forces)


def test_a_frame_that_did_not_come_back_is_named(folder, tmp_path):
    need_adios()
    dataset = make_dataset(tmp_path / "data", (8,))
    with pytest.raises(GFMError, match="a.extxyz.xz, frame 0"):
        check_file(folder / "a.extxyz.xz", dataset.directory, 0, 8)


def test_differences_are_those_of_the_store_tests():
    for seed in range(30):
        a, b = records(2, seed)
        assert difference(a, a) is None
        assert (difference(a, b) is None) == (reference_difference(a, b) is None)
        assert difference(a, replace(a, energy=a.energy + 1)) in ("energy", None if np.isnan(a.energy) else "energy")


def test_schema_bytes_by_hand():
    record = replace(records(1)[0], pbc=np.zeros(3, bool))
    n = len(record)
    assert _schema_bytes(record, 0) == 40 * n + 4
    assert _schema_bytes(record, 5) - _schema_bytes(record, 0) == 5 * 32


def test_blocks_differ_where_a_number_does(tmp_path):
    need_adios()
    block = make_dataset(tmp_path / "data", (12,)).read(range(12))
    assert different(block, block) is None
    assert different(replace(block, energy=block.energy + 1), block) == "energy"
    assert different(replace(block, frame=block.frame + 1), block) == "frame"
    assert different(replace(block, stress=None), replace(block, stress=np.full((12, 3, 3), np.nan))) is None


def test_synthetic_structures_are_a_series(tmp_path):
    whole = list(SyntheticTask(start=4000, stop=4200).records())
    part = list(SyntheticTask(start=4090, stop=4100).records())
    assert [record.frame for record in whole] == list(range(4000, 4200))
    for a, b in zip(whole[90:100], part, strict=True):
        assert difference(a, b) is None
    assert {bool(record.pbc.any()) for record in whole} == {False, True}
    assert difference(_made(0, 0)[0], _made(0, 1)[0]) is not None


def test_sample_takes_from_every_file(folder):
    task = SampleTask(paths=(folder / "a.extxyz.xz", folder / "b.extxyz.xz"), count=12, periodic=False)
    sources = [record.source for record in task.records()]
    assert len(sources) == 12 and sources.count("a.extxyz.xz") == sources.count("b.extxyz.xz") == 6
    short = SampleTask(paths=(folder / "a.extxyz.xz", folder / "b.extxyz.xz"), count=100, periodic=False)
    assert len(list(short.records())) == 16


def test_synthetic_part(tmp_path):
    need_adios()
    found = run_data(DataPlan(parts=("million",), structures=3000, scratch=tmp_path))["million"]
    assert found["structures"] == 3000 and found["bytes"]["index"] == 8 * 3001 and found["compared"] == 100
    assert found["peak_mb"]["largest_child"] > 0
    assert "3,000 synthetic structures" in markdown(
        {"benchmark": "data", "format_version": 1, "provenance": ABOUT, "million": found}
    )


def test_plans_that_cannot_be(folder, tmp_path):
    with pytest.raises(ConfigError, match="--data"):
        DataPlan(parts=("reads",))
    with pytest.raises(ConfigError, match=r"poool.*pool"):
        DataPlan(folder=folder, parts=("poool",))
    with pytest.raises(InputFileError, match="no .extxyz.xz"):
        run_data(DataPlan(folder=tmp_path, parts=("pool",)))
    (folder / "d.extxyz.xz").write_bytes(lzma.compress(METHANOL.read_bytes().replace(b" head=", b" haed=")))
    with pytest.raises(InputFileError, match="names no head"):
        _by_head([folder / "d.extxyz.xz"])
    assert DataPlan(folder=folder).parts == PARTS


def test_quantiles():
    assert quantiles([1e-6] * 99 + [1e-3]) == {"median_us": 1.0, "p99_us": pytest.approx(11, abs=1)}


@pytest.fixture
def two_samples(tmp_path, monkeypatch, saved_model):
    """Crystals and molecules for `run_loader`, whose turns are made short."""
    data = make_datasets(tmp_path / "datasets", (12, 10, 8))
    for name, value in (("MODEL", str(saved_model)), ("BATCH", 4), ("LOADED", 8), ("TRAINED", 2), ("WORKERS", 0)):
        monkeypatch.setattr(data_loader, name, value)
    return {name: Sample(dataset=open_dataset(data / name), about={}) for name in ("molecules", "crystals")}


def test_the_loader_beside_training(two_samples):
    """Molecules, crystals and both, by the steps of the trainer itself."""
    found = data_loader.run_loader(two_samples, rounds=1, modes=("eager",))
    assert [row["set"] for row in found["sets"]] == ["molecules", "crystals", "both"]
    for row in found["sets"]:
        assert row["loader_over_eager"] == pytest.approx(row["loader"] / row["eager"], rel=1e-3)
    assert found["sets"][1]["atoms_per_structure"] == 4


@pytest.mark.slow
def test_the_loader_beside_compiled_training(two_samples, monkeypatch):
    monkeypatch.setattr(data_loader, "WORKERS", 2)
    del two_samples["molecules"]
    found = data_loader.run_loader(two_samples, rounds=1)
    text = markdown({"benchmark": "data", "format_version": 1, "provenance": ABOUT, "loader": found})
    assert "| crystals | 4 |" in text and found["sets"][0]["compiled"] > 0


def test_loader_and_ranks_are_rows(folder, tmp_path):
    """The parts that need training and MPI: what they report is what the tables show."""
    loader = {"sets": [dict.fromkeys(
        ("atoms_per_structure", "edges_per_atom", "loader", "here", "eager", "compiled", "loader_over_eager",
         "loader_over_compiled"), 2.0) | {"set": "molecules"}]}  # fmt: skip
    way = {
        "single": {"median_us": 5.0, "p99_us": 6.0},
        "batch": {"median_us": 7.0, "p99_us": 8.0},
        "batch_mb_per_s": 9.0,
    }
    ranks = {"jobs": [{"set": "molecules", "ranks": 2, "compared": 1234, "ways": {"one-sided": way}}]}
    text = markdown({"benchmark": "data", "format_version": 1, "provenance": ABOUT, "loader": loader, "ranks": ranks})
    assert "| molecules | 2 | 1,234 | one-sided | 5 | 6 | 7 | 8 | 9 |" in text
