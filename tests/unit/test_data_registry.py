"""The registry of published sources: complete, consistent, and used to read their files."""

import re

import pytest
from data_files import FIXTURES, methanol, write_ani1x, write_nabla, write_qm7x, write_tfrecord, write_transition1x

from gfm_calc.data.readers import FORMATS, read
from gfm_calc.data.registry import SOURCES, refuse_double_counting, source
from gfm_calc.errors import ConfigError

NAMES = {
    "alexandria", "ani1x", "mptrj", "oc20", "oc22", "oc25", "odac23", "omat24", "omol25", "omol25-neutral",
    "omol25-non-neutral", "opoly26", "nabla2dft", "qcml", "qm7x", "transition1x",
}  # fmt: skip


def test_the_sixteen_are_there():
    assert set(SOURCES) == NAMES and len(SOURCES) == 16


@pytest.mark.parametrize("entry", SOURCES.values(), ids=lambda entry: entry.name)
def test_an_entry_is_sound(entry):
    assert entry.format in FORMATS and entry.traps and entry.licence and entry.group
    assert re.fullmatch(r"10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5}", entry.reference)
    assert set(entry.to_verify) <= set(vars(entry)) and "name" not in entry.to_verify
    for other in (*entry.part_of, *entry.shares_structures):
        assert other in SOURCES and other != entry.name
    assert entry.total_charge in ("any", "zero", "nonzero") and entry.options.energy_key
    assert entry.functional in entry.level_of_theory and entry.code in entry.level_of_theory


def test_nothing_is_counted_twice():
    refuse_double_counting(["omol25-neutral", "omol25-non-neutral", "mptrj"])
    for part in ("omol25-neutral", "omol25-non-neutral"):
        with pytest.raises(ConfigError, match=f"{part} is part of omol25: its frames would be counted twice"):
            refuse_double_counting(["mptrj", "omol25", part])


def test_the_parts_of_omol25_share_nothing_and_leave_nothing_out():
    records = list(read(FIXTURES / "methanol.aselmdb", options=source("omol25").options))
    charges = [0, 1, -2, 0, 3]
    for record, charge in zip(records, charges):
        object.__setattr__(record, "charge", charge)
    kept = [[source(name).keeps(r) for r in records[:5]] for name in ("omol25", "omol25-neutral", "omol25-non-neutral")]
    assert kept == [[True] * 5, [True, False, False, True, False], [False, True, True, False, True]]


@pytest.mark.parametrize(
    "name, writer, file",
    [
        ("ani1x", write_ani1x, "a.h5"), ("qm7x", write_qm7x, "a.hdf5"), ("transition1x", write_transition1x, "a.h5"),
        ("nabla2dft", write_nabla, "a.db"), ("qcml", write_tfrecord, "qcml-full.tfrecord-00000-of-01024"),
    ],
)  # fmt: skip
def test_files_are_read_as_published(tmp_path, name, writer, file):
    writer(tmp_path / file, methanol())
    found = list(read(tmp_path / file, format=source(name).format, options=source(name).options))
    energies = sorted(record.energy for record in methanol())
    assert sorted(record.energy for record in found) == pytest.approx(energies, abs=4e-4)
    assert all(record.forces is not None for record in found)


@pytest.mark.parametrize(
    "name, file", [("alexandria", "alexandria.json.bz2"), ("mptrj", "mptrj.json.bz2"), ("omat24", "nbmotaw.aselmdb")]
)
def test_crystals_are_read_as_published(name, file):
    found = list(read(FIXTURES / file, format=source(name).format, options=source(name).options))
    expected = list(read(FIXTURES / "nbmotaw.extxyz.xz"))
    assert [record.energy for record in found] == [record.energy for record in expected[: len(found)]]
    assert (found[0].stress is None) == (name == "alexandria")


def test_unknown_sources():
    with pytest.raises(ConfigError, match="did you mean 'mptrj'"):
        source("mptraj")
