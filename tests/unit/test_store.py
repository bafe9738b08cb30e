"""Datasets on disk: what goes in comes out, however it is built and however it is read."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from labelled import HEAD, RecordTask, difference, make_dataset, need_adios, records
from support import ROOT

from gfm_calc.data import store
from gfm_calc.data.block import Block
from gfm_calc.data.build import build, build_flat
from gfm_calc.data.columns import Encoding, decode, encode
from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.store import Selection, open_dataset
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError, InvalidStructureError

COUNTS = (70, 1, 60)


@pytest.fixture(scope="module")
def expected():
    return [record for seed, count in enumerate(COUNTS) for record in records(count, seed)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    need_adios()
    return make_dataset(tmp_path_factory.mktemp("store") / "data", COUNTS)


# ---- columns and blocks ----

FLOATS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=False),
    st.floats(allow_nan=True, allow_infinity=False, width=32),
    st.decimals(-1000, 1000, places=5).map(float),
    st.decimals(-1, 1, places=9).map(float),
)


def restored(column, **options):
    kept, how = encode(column, **options)
    assert how.is_sound() and how.num_bytes == kept.nbytes and kept.dtype == np.dtype(how.dtype)
    read = decode(np.frombuffer(kept.tobytes(), how.dtype).reshape(how.shape), how)
    assert read.flags.owndata and read.flags.writeable
    return np.repeat(read, len(column), axis=0) if how.constant else read


@given(arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=FLOATS))
def test_columns_of_floats_come_back(column):
    np.testing.assert_array_equal(restored(column), column)
    np.testing.assert_array_equal(restored(column, plain=True), column)


@given(arrays(np.int64, array_shapes(min_dims=1, max_dims=2, max_side=6)))
def test_columns_of_integers_come_back(column):
    np.testing.assert_array_equal(restored(column), column)


@given(arrays(bool, st.tuples(st.integers(1, 6), st.just(3))))
def test_columns_of_flags_come_back(column):
    np.testing.assert_array_equal(restored(column).astype(bool), column)


@pytest.mark.parametrize(
    ("values", "dtype", "decimals"),
    [
        ([[0.1, -2.00001]], "<i4", 5), ([3.0, 4.0], "<i4", 0), ([1e-9, 2.0], "<i4", 9), ([1e-10, 2.0], "<f8", None),
        ([0.1, 1e10], "<f8", None), ([float(np.float32(0.1)), 2.5], "<f4", None), ([0.1, np.nan], "<i4", 1),
        ([-214.7483647, 0.5], "<i4", 7), ([-214.7483648, 0.5], "<f8", None), ([1 / 3, 1.0], "<f8", None),
    ],
)  # fmt: skip
def test_how_small_columns_get(values, dtype, decimals):
    how = encode(np.array(values))[1]
    assert (how.dtype, how.decimals) == (dtype, decimals)


def test_equal_rows_are_kept_once():
    kept, how = encode(np.tile([[1.5, 2.5]], (1000, 1)))
    assert how.constant and kept.nbytes == 8
    assert not encode(np.full(5, np.nan))[1].constant


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O"}, {"dtype": "<U9"}, {"shape": (3, -3)}, {"shape": (4, 3)}, {"rows": -3}, {"shape": ()}, {"rows": 3.0},
        {"decimals": 3, "dtype": "<f8"}, {"decimals": 99}, {"decimals": -1}, {"constant": 1}, {"shape": (3, 2, 2, 2)},
    ],
)  # fmt: skip
def test_encodings_from_a_bad_file_are_unsound(change):
    good = {"dtype": "<i4", "shape": (3, 3), "rows": 3}
    assert Encoding(**good).is_sound()
    assert not Encoding(**{**good, **change}).is_sound()


@given(st.integers(1, 30), st.integers(0, 2**32), st.data())
@settings(max_examples=30, deadline=None)
def test_blocks_hold_records(count, seed, data):
    wanted = records(count, seed)
    block = Block.from_records(wanted)
    assert len(block) == count and block.num_atoms.tolist() == [len(record) for record in wanted]
    assert not any(difference(a, b) for a, b in zip(block.records(), wanted, strict=True))
    order = data.draw(st.lists(st.integers(0, count - 1), min_size=1))
    taken = block.take(order)
    assert not any(difference(taken.record(k), wanted[i]) for k, i in enumerate(order))
    joined = Block.concatenate([Block.from_records([record]) for record in wanted])
    assert not any(difference(a, b) for a, b in zip(joined.records(), wanted, strict=True))


def test_a_block_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Block.from_records([])


# ---- reading ----


def test_every_record_comes_back(dataset, expected):
    assert len(dataset) == len(expected) == 131 and len(dataset.shards) > 4
    assert dataset.num_atoms == sum(len(record) for record in expected)
    for index, record in enumerate(expected):
        assert difference(dataset.record(index), record) is None
    assert not [d for a, b in zip(dataset.records(), expected, strict=True) if (d := difference(a, b))]
    assert difference(dataset.record(-1), expected[-1]) is None
    dataset.verify()


def test_many_at_once(dataset, expected):
    random = np.random.default_rng(5)
    for indices in (range(131), [130], [3, 3, 3], random.integers(0, 131, 300), range(130, -1, -1), range(60, 75)):
        block = dataset.read(indices, names=True)
        assert not [d for k, i in enumerate(indices) if (d := difference(block.record(k), expected[i]))]
        assert dataset.atom_counts(indices).tolist() == [len(expected[i]) for i in indices]
        assert dataset.read(indices).group is None
    assert dataset.atom_counts().tolist() == [len(record) for record in expected]
    assert [group for part in dataset.groups() for group in part] == [record.group for record in expected]


def test_atoms_with_labels(dataset, expected):
    index = next(k for k, r in enumerate(expected) if r.stress is not None and r.forces is not None and r.charge)
    atoms, record = dataset[index], expected[index]
    assert isinstance(atoms.calc, SinglePointCalculator) and atoms.info["head"] == "test-head"
    assert atoms.info["charge"] == record.charge
    assert np.array_equal(atoms.positions, record.positions)
    if record.energy == record.energy:
        assert atoms.get_potential_energy() == record.energy
    assert np.array_equal(atoms.get_forces(), record.forces)
    assert np.array_equal(atoms.get_stress(voigt=False), 0.5 * (record.stress + record.stress.T))
    assert [len(a) for a in dataset[3:9:2]] == [len(expected[k]) for k in (3, 5, 7)]
    assert sum(1 for _ in dataset) == 131 and next(iter(dataset)).info["head"] == "test-head"


@pytest.mark.parametrize("index", [131, -132, 10**20])
def test_no_such_structure(dataset, index):
    with pytest.raises(IndexError):
        dataset.record(index)


@pytest.mark.parametrize("indices", [[], [0, 131], [-1]])
def test_no_such_structures(dataset, indices):
    with pytest.raises(IndexError):
        dataset.read(indices)


def test_more_shards_than_open_files(dataset, expected, monkeypatch):
    monkeypatch.setattr(store, "_MAX_OPEN", 2)
    again = open_dataset(dataset.directory)
    order = np.random.default_rng(0).permutation(131)
    assert not [i for i in order if difference(again.record(i), expected[i])]
    assert len(again._open) == 2


def test_datasets_travel_to_other_processes(dataset, expected):
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.digest == dataset.digest and difference(copy.record(7), expected[7]) is None


def test_a_rebuilt_dataset_is_another_one(tmp_path):
    need_adios()
    text = pickle.dumps(make_dataset(tmp_path, (3,)))
    make_dataset(tmp_path, (4,), overwrite=True)
    with pytest.raises(CorruptFileError, match="was rebuilt meanwhile"):
        pickle.loads(text)


def test_selections(dataset, expected):
    indices = np.array([100, 3, 3, 70])
    chosen = Selection(dataset, indices)
    assert len(chosen) == 4 and len(chosen[0]) == len(expected[100]) and len(chosen[1:3]) == 2
    block = chosen.read([3, 0], names=True)
    assert difference(block.record(0), expected[70]) is None and difference(block.record(1), expected[100]) is None
    assert chosen.atom_counts().tolist() == [len(expected[k]) for k in indices]
    with pytest.raises(ConfigError, match="beyond"):
        Selection(dataset, [131])


def test_adios_reads_the_shards(dataset, expected):
    """In a process of its own: the files are sound here, but ADIOS2 may end a process that reads a bad one."""
    code = """if True:
        import sys
        import numpy as np
        from adios2 import FileReader
        with FileReader(sys.argv[1]) as file:
            energy, ptr = file.read("energy"), file.read("ptr")
            print(len(energy), float(energy[0]), int(ptr[-1]))
            print(float(np.ravel(file.read("positions"))[0] / 10.0 ** file.read_attribute("positions/decimals"))
                  if "positions/decimals" in file.available_attributes() else float(np.ravel(file.read("positions"))[0]))
    """
    info = dataset.shards[0]
    path = dataset.directory / info.name
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=ROOT, timeout=120)
    first, second = done.stdout.split("\n")[:2]
    assert first.split() == [str(info.structures), str(expected[0].energy), str(info.atoms)], done.stderr
    assert float(second) == expected[0].positions[0, 0]


def test_summary(dataset, expected):
    found = dataset.summary
    assert found["structures"] == 131 and found["atoms"] == dataset.num_atoms
    assert found["with_energy"] == sum(r.energy == r.energy for r in expected)
    assert found["with_forces"] == sum(r.forces is not None for r in expected)
    assert found["with_stress"] == sum(r.stress is not None for r in expected)
    assert found["charges"] == [min(r.charge for r in expected if r.charge is not None),
                                max(r.charge for r in expected if r.charge is not None)]  # fmt: skip
    assert found["periodic_axes"] == np.bincount([r.pbc.sum() for r in expected], minlength=4).tolist()
    assert sum(found["elements"].values()) == found["atoms"] and found["largest"] == max(map(len, expected))
    assert [entry["name"] for entry in dataset.inputs] == ["random-0", "random-1", "random-2"]


# ---- building ----


def test_processes_do_not_change_what_is_built(dataset, tmp_path):
    tasks = [RecordTask(count=count, seed=seed) for seed, count in enumerate(COUNTS)]
    again = build(tmp_path / "data", tasks, HEAD, processes=2, shard_atoms=150)
    assert again.digest == dataset.digest
    assert sorted(p.name for p in again.directory.iterdir()) == sorted(p.name for p in dataset.directory.iterdir())


def test_append(dataset, tmp_path, expected):
    make_dataset(tmp_path, COUNTS[:1])
    with pytest.raises(GFMError, match="holds a dataset; add to it with --append"):
        make_dataset(tmp_path, COUNTS[:1])
    with pytest.raises(ConfigError, match="random-0 has the content of random-0; structures are not counted twice"):
        make_dataset(tmp_path, COUNTS[:1], append=True)
    with pytest.raises(ConfigError, match="its card must be the same"):
        build(tmp_path, [RecordTask(count=3)], replace(HEAD, code="other"), processes=0, append=True)
    tasks = [RecordTask(count=count, seed=seed) for seed, count in enumerate(COUNTS)][1:]
    before = {path.name for path in tmp_path.iterdir() if path.suffix == ".bp"}
    grown = build(tmp_path, tasks, HEAD, processes=0, append=True, shard_atoms=150)
    assert before < {path.name for path in tmp_path.iterdir()}
    assert not [d for a, b in zip(grown.records(), expected, strict=True) if (d := difference(a, b))]
    assert grown.summary == dataset.summary
    grown.verify()
    with pytest.raises(ConfigError, match="no dataset to append to"):
        make_dataset(tmp_path / "none", (3,), append=True)


def test_overwrite_leaves_nothing_behind(tmp_path):
    need_adios()
    make_dataset(tmp_path, COUNTS)
    small = make_dataset(tmp_path, (2,), overwrite=True)
    assert len(small) == 2
    assert len(list(tmp_path.iterdir())) == 5  # manifest, table, index, digests, one shard
    next(tmp_path.glob("*.bp/data.0")).write_bytes(b"damaged")
    assert len(make_dataset(tmp_path, (4,), overwrite=True)) == 4
    (tmp_path / "manifest.json").write_text("{")  # whose is this?
    with pytest.raises(GFMError, match="holds other files"):
        make_dataset(tmp_path, (4,), overwrite=True)


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"append": True}):
        with pytest.raises(GFMError, match=r"holds other files|no dataset to append"):
            make_dataset(tmp_path, (2,), **options)
    with pytest.raises(GFMError, match="is a file"):
        make_dataset(tmp_path / "thesis.tex", (2,))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="nothing to build from"):
        build(tmp_path / "new", [], HEAD)
    with pytest.raises(GFMError, match="hold no structures"):
        make_dataset(tmp_path / "new", (0,))


def test_one_build_at_a_time(tmp_path):
    need_adios()

    class Nested(RecordTask):
        def records(self):
            with pytest.raises(GFMError, match="another build is at work"):
                make_dataset(tmp_path, (2,))
            return super().records()

    assert len(build(tmp_path, [Nested(count=3)], HEAD, processes=0)) == 3


def test_a_killed_build_goes_on(tmp_path, dataset, monkeypatch):
    tasks = [RecordTask(count=count, seed=seed) for seed, count in enumerate(COUNTS)]
    dying = [replace(tasks[0], dies_at=50, marker=tmp_path / "marker"), *tasks[1:]]
    folder = tmp_path / "data"
    with pytest.raises(GFMError, match=r"its process died \(signal 9\).*goes on where it was"):
        build(folder, dying, HEAD, processes=1, shard_atoms=150)
    with pytest.raises(CorruptFileError, match=r"no readable manifest\.json"):
        open_dataset(folder)
    kept = sorted(path.name for path in (folder / ".build.0.tmp").glob("*.json"))
    assert "task-000000-00000.json" in kept and "task-000000.json" not in kept
    written = []
    from gfm_calc.data import build as module

    real = module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda block, path: (written.append(path), real(block, path))[1])
    assert build(folder, tasks, HEAD, processes=0, shard_atoms=150).digest == dataset.digest
    assert 0 < len(written) < len(dataset.shards), "shards were written again"


def test_unsound_structures_are_counted(tmp_path):
    need_adios()

    class Some(RecordTask):
        def records(self):
            for k, record in enumerate(super().records()):
                if k % 3 == 1:
                    yield InvalidStructureError("is bad", source="folder/random-0", frame=k, atom=2)
                else:
                    yield record

    (entry,) = build(tmp_path, [Some(count=9)], HEAD, processes=0).inputs
    assert entry["left_out"] == 3 and entry["reasons"][0] == "frame 1, atom 2: is bad"


# ---- without ADIOS2 ----


def with_properties(count):
    """Records of which some have properties; a dataset holds one kind of them."""
    found = []
    for k, record in enumerate(records(count)):
        value, atom_values = np.array([0.5 * k, 1.0, -k]), np.outer(np.arange(len(record)) + 0.1 * k, [1.0])
        found.append(replace(record, value=value if k % 3 else None, atom_values=atom_values if k % 5 else None))
    return found


class GivenTask(RecordTask):
    """Records with properties as a task of a build."""

    def records(self):
        return iter(with_properties(self.count))


def test_flat_datasets_hold_properties_and_need_no_adios(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "adios2", None)  # as if it were not installed
    wanted = with_properties(60)
    dataset = build_flat(tmp_path / "data", [GivenTask(count=60)], HEAD)
    assert set(dataset.shards[0].files) == {"data.0"} and dataset.summary["with_property"] == 40
    assert not any(difference(a, b) for a, b in zip(dataset.records(), wanted, strict=True))
    assert not any(difference(dataset.record(k), wanted[k]) for k in (59, 3, 0, 17))
    order = [5, 2, 2, 40]
    assert not any(difference(a, wanted[k]) for a, k in zip(dataset.read(order, names=True).records(), order))
    dataset.verify()
    with pytest.raises(ConfigError, match="set data.memory = false"):
        DistributedStore(dataset)


def test_only_what_is_new_needs_the_new_format(tmp_path):
    need_adios()
    plain = make_dataset(tmp_path / "plain", (5,))
    flat = build_flat(tmp_path / "flat", [RecordTask(count=5)], HEAD)
    versions = [json.loads((d.directory / "manifest.json").read_bytes())["format_version"] for d in (plain, flat)]
    assert versions == [1, 2] == [1, store.FORMAT_VERSION]
    assert not any(difference(a, b) for a, b in zip(plain.records(), flat.records(), strict=True))


def test_a_damaged_flat_shard_is_found(tmp_path):
    path = build_flat(tmp_path / "data", [RecordTask(count=30)], HEAD).directory
    data = next(path.glob("shard_*/data.0"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(CorruptFileError, match="checksum"):
        list(open_dataset(path).records())
