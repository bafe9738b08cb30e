"""Where training structures come from: disk or memory; and data that nothing can be learnt from."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from labelled import need_adios
from training import make_datasets

from gfm_calc.artifacts import canonical_json, commit, open_artifact
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.loader import labelled_batches
from gfm_calc.data.sampling import Batch
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError, CorruptFileError
from gfm_calc.train.parallel import Place, Ranks
from gfm_calc.train.placement import place
from gfm_calc.train.preparation import FORMAT_VERSION, KIND, load_preparation, prepare, save_preparation
from gfm_calc.train.recipe import recipe_of
from gfm_calc.train.sources import training_sources


def test_memory_gives_the_batches_of_the_disk(tmp_path):
    need_adios()
    data = make_datasets(tmp_path / "datasets", (20, 15, 10))
    heads = prepare(recipe_of({}, [f"data.path={data}"]), 4.0)
    ranks, placement = Ranks(Place(), "cpu"), place([1.0] * len(heads), 1, "data")
    disk, memory = (training_sources(heads, ranks, placement, memory=memory) for memory in (False, True))
    assert all(isinstance(source, DistributedStore) for source in memory)
    for head, (one, other) in enumerate(zip(disk, memory)):
        assert len(one) == len(other) == len(heads[head].sides["train"])
        for index in (np.array([3]), np.array([2, 0, 5])):
            drawn = Batch(head=np.full(len(index), head), index=index)
            (first,), (second,) = (labelled_batches(source.read(index), drawn, 4.0) for source in (one, other))
            for name in ("energy", "forces", "stress"):
                torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, equal_nan=True)
            assert torch.equal(first.graph.edge_index, second.graph.edge_index)


def test_a_head_without_energies_is_named(tmp_path):
    need_adios()
    frames = []
    for k in range(12):
        atoms = molecule("H2O")
        atoms.rattle(0.1, seed=k)
        atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((3, 3)))
        frames.append(atoms)
    ase.io.write(tmp_path / "forces.extxyz", frames)
    build(tmp_path / "data", file_tasks([tmp_path / "forces.extxyz"]), HeadSpec(name="a"), processes=0)
    with pytest.raises(ConfigError, match="head a: no structure with an energy.* label some"):
        prepare(recipe_of({}, [f"data.path={tmp_path / 'data'}"]), 4.0)


def test_a_preparation_of_another_shape_is_refused(tmp_path):
    need_adios()
    data = make_datasets(tmp_path / "datasets", (20, 15, 10))
    save_preparation(tmp_path / "data", prepare(recipe_of({}, [f"data.path={data}"]), 4.0))
    saved = open_artifact(tmp_path / "data", kind=KIND, newest_version=FORMAT_VERSION)
    cards = saved.read_json("heads.json")
    assert [head.spec.name for head in load_preparation(tmp_path / "data")] == ["clusters", "crystals", "molecules"]
    del cards[0]["unseen"]
    files = {"heads.json": canonical_json(cards), "sides.safetensors": saved.read("sides.safetensors")}
    commit(tmp_path / "older", files, kind=KIND, format_version=FORMAT_VERSION)
    with pytest.raises(CorruptFileError, match="is not what this version writes: 'unseen'"):
        load_preparation(tmp_path / "older")
