"""Labels of a cheap calculator around the user's structures: which, how many, kept how long."""

import json
from collections import Counter
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from finetuning import molecules, words, write

from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.perturb import perturb_as_they_come
from gfm_calc.data.schema import Record
from gfm_calc.data.workers import WorkerDiedError
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError
from gfm_calc.finetune import cheap
from gfm_calc.finetune.cheap import check, first_job, make_labels
from gfm_calc.finetune.plan import Cheap, Job

ASKED = Cheap(calculator="emt", structures=24, steps=2)


def record(atoms, group=""):
    where = {"positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
    return Record(atomic_numbers=atoms.numbers, **where, energy=0.0, group=group, source="a", frame=0)


def rattled(atoms, count, group=""):
    """Records of copies."""
    random = np.random.default_rng(len(atoms))
    found = []
    for _ in range(count):
        moved = atoms.copy()
        moved.positions += random.normal(scale=0.02, size=moved.positions.shape)
        found.append(record(moved, group))
    return found


@pytest.fixture
def job(tmp_path):
    return Job(inputs=(), model="gfm-small", card=HeadSpec(name="mine"), output=tmp_path / "out")


def made(job, records, asked=ASKED, say=lambda line: None):
    make_labels(job, asked, records, say)
    return ase.io.read(job.output / "cheap-labels" / "labels.extxyz", ":")


def test_as_many_as_were_asked_for_and_of_all_structures(job):
    """Not of the first ones in the file alone."""
    records = rattled(molecule("CH3OH"), 40) + rattled(molecule("NH3"), 40)
    found = made(job, records)
    assert len(found) == 24 and Counter(str(atoms.symbols) for atoms in found) == {"COH4": 12, "NH3": 12}


@pytest.mark.parametrize("groups, kept", [(("a",), False), (("a", "b"), False), (("a", "b", "c"), True)])
def test_a_walk_stays_on_one_side_of_the_split(job, groups, kept):
    """Unless the user's groups are enough to divide by."""
    found = made(job, [one for group in groups for one in rattled(molecule("CH3OH"), 4, group)])
    names = {atoms.info["group"] for atoms in found}
    assert names == (set(groups) if kept else {f"walk-{k}" for k in range(4 * len(groups))})


def test_primitive_cells_are_walked_from_and_free_atoms_are_not(job, tmp_path):
    found = made(job, rattled(bulk("Cu"), 3) + [record(Atoms("Cu"))])
    assert len(found) == 24 and all(atoms.pbc.all() for atoms in found)
    with pytest.raises(GFMError, match="all training structures are free atoms"):
        made(replace(job, output=tmp_path / "other"), [record(Atoms("Cu"))])


def test_walks_that_fail_are_counted_and_the_reason_is_named(job):
    """The calculator does not know iron."""
    lines = []
    iron = rattled(Atoms("FeH", [[0, 0, 0], [0, 0, 1.5]]), 1)
    found = made(job, rattled(molecule("CH3OH"), 3) + iron, replace(ASKED, structures=40), lines.append)
    assert {str(atoms.symbols) for atoms in found} == {"COH4"}
    (line,) = [line for line in lines if "failed" in line]
    assert "1 of 4 walks failed" in line and "Fe" in line
    with pytest.raises(GFMError, match="--cheap-labels emt: .*Fe"):
        made(replace(job, output=job.output / "b"), iron)


def test_labels_are_kept_until_others_are_asked_for(job):
    records = rattled(molecule("CH3OH"), 4)
    made(job, records)
    labels = job.output / "cheap-labels" / "labels.extxyz"
    before = labels.stat().st_mtime_ns
    made(replace(job, steps=7, strategy="adapters"), records, replace(ASKED, steps=9))  # another training on the same
    assert labels.stat().st_mtime_ns == before
    made(job, records, replace(ASKED, temperature=300.0))
    assert labels.stat().st_mtime_ns > before
    labels.write_text(labels.read_text()[:-40])
    with pytest.raises(CorruptFileError, match=r"damaged; remove .*cheap-labels and .*cheap, and --resume"):
        made(job, records, replace(ASKED, temperature=300.0))


IRON = Atoms("FeH", [[0, 0, 0], [0, 0, 1.5]])  # not known to the calculator


@pytest.fixture
def interrupted(monkeypatch):
    """Walks come last first, and the first run is stopped after four of them; what each run was told is done."""
    told = []

    def backwards(walks, done):
        told.append(sorted(done))
        for count, found in enumerate(sorted(perturb_as_they_come(walks, done=done), key=lambda found: -found[0])):
            if len(told) == 1 and count == 4:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(cheap, "perturb_as_they_come", backwards)
    return told


def test_walks_of_an_interrupted_run_are_not_walked_again(job, tmp_path, request):
    """However they came; what failed is tried again."""
    records = rattled(molecule("CH3OH"), 3) + rattled(IRON, 1) + rattled(molecule("NH3"), 2)
    made(job, records)
    whole = (job.output / "cheap-labels" / "structures.extxyz").read_bytes()
    told = request.getfixturevalue("interrupted")
    other = replace(job, output=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        made(other, records)
    journal = other.output / "cheap-labels" / "walks.jsonl"
    assert [json.loads(line)["walk"] for line in journal.read_text().splitlines()] == [5, 4, 2]
    with journal.open("a") as file:
        file.write('{"walk": 0, "text": "9\\nLatt')
    made(other, records)
    assert told == [[], [2, 4, 5]]
    assert [json.loads(line)["walk"] for line in journal.read_text().splitlines()] == [5, 4, 2, 1, 0]
    assert (other.output / "cheap-labels" / "structures.extxyz").read_bytes() == whole


def test_what_failed_is_tried_again_when_its_reason_is_gone(job, monkeypatch):
    records = rattled(molecule("CH3OH"), 4)

    def failing(walks, done):
        yield from ((number, GFMError("the licence server is away")) for number in range(4))

    with monkeypatch.context() as patch:
        patch.setattr(cheap, "perturb_as_they_come", failing)
        for _ in range(2):
            with pytest.raises(GFMError, match="--cheap-labels emt: the licence server is away"):
                made(job, records)
    assert len(made(job, records)) == 24


@pytest.mark.parametrize("line", ['{"text": "1\\n\\nH 0 0 0\\n"}', '["walk"]', "3", '{"walk": 0}'])
def test_a_journal_of_another_layout_is_not_taken_over(job, line):
    records = rattled(molecule("CH3OH"), 4)
    before = made(job, records)
    folder = job.output / "cheap-labels"
    asked = json.loads((folder / "made.json").read_text())["asked"]
    (folder / "made.json").write_text(json.dumps({"asked": asked}))
    (folder / "structures.extxyz").unlink()
    (folder / "walks.jsonl").write_text(line + "\n")
    assert made(job, records) == before


def test_minutes_are_looked_at_whenever_a_walk_ends(job, monkeypatch):
    """Not only when the slowest one at the beginning does."""

    def slow_first(walks, done):
        yield from perturb_as_they_come(walks, done={0})
        raise AssertionError("the walk that takes hours")

    monkeypatch.setattr(cheap, "perturb_as_they_come", slow_first)
    found = made(replace(job, max_minutes=1e-12), rattled(molecule("CH3OH"), 4), replace(ASKED, structures=80))
    assert 20 <= len(found) < 80


def test_walks_end_with_their_share_of_the_minutes(job):
    lines = []
    found = made(
        replace(job, max_minutes=1e-12), rattled(molecule("CH3OH"), 40), replace(ASKED, structures=400), lines.append
    )
    assert 20 <= len(found) < 400 and any("walks left out" in line for line in lines)


def timed_out(walks, done):
    for number in range(17):
        yield number, WorkerDiedError(f"start.extxyz: frame {number}: took longer than 60 s")


@pytest.mark.parametrize("minutes, walks", [(None, 3), (1e-12, 1)])
def test_walks_that_take_too_long_are_given_up(job, minutes, walks, monkeypatch):
    """Not after the last of them."""
    monkeypatch.setattr(cheap, "_SHORTEST_WALK", 1e-12)
    monkeypatch.setattr(cheap, "perturb_as_they_come", timed_out)
    said = rf"emt: structures: 0, after {walks} of 17 walks and 0.0 minutes \(a, frame 0: took longer than 60 s\).*--max-minutes"
    with pytest.raises(GFMError, match=said):
        made(replace(job, max_minutes=minutes), rattled(molecule("CH3OH"), 17))


def test_walks_that_are_slow_without_failing_are_given_up_too(job, monkeypatch):
    def slow(walks, done):
        yield 0, "1\n\nH 0 0 0\n"
        raise AssertionError("the walks that take hours")

    monkeypatch.setattr(cheap, "_SHORTEST_WALK", 1e-12)
    monkeypatch.setattr(cheap, "perturb_as_they_come", slow)
    with pytest.raises(GFMError, match="emt: structures: 1, after 1 of 17 walks"):
        made(replace(job, max_minutes=1e-12), rattled(molecule("CH3OH"), 17))


def test_an_element_that_the_method_does_not_know_is_named_at_once(job, monkeypatch):
    """Without a walk where all structures have it; else they are left out."""
    pytest.importorskip("tblite")
    asked, lines = replace(ASKED, calculator="tblite:GFN2-xTB"), []
    uranium = rattled(Atoms("UO", [[0, 0, 0], [0, 0, 1.8]]), 4)
    with monkeypatch.context() as patch:
        patch.setattr(cheap, "perturb_as_they_come", None)
        with pytest.raises(
            ConfigError, match=r"does not know U, which all training structures hold \(the first: a, frame 0"
        ):
            made(job, uranium, asked)
    found = made(job, uranium + rattled(molecule("H2"), 4), asked, lines.append)
    assert {str(atoms.symbols) for atoms in found} == {"H2"}
    assert any("4 structures are not walked from: it does not know U" in line for line in lines)


def test_what_is_refused_at_once():
    for asked, more, said in (
        (replace(ASKED, structures=19), {}, "20 at least"),
        (ASKED, {"kind": "scalar"}, "not for properties"),
        (ASKED, {"strategy": "heads"}, "not with --strategy heads"),
        (replace(ASKED, calculator="emtt"), {}, "did you mean 'emt'"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(asked, **{"kind": "energy", "strategy": None, **more})


def test_the_first_training_takes_a_free_name_and_what_the_user_accepts(job):
    first = first_job(replace(job, accepted=("unseen-elements",)), ASKED, ["mine", "mine-cheap"])
    assert first.card.name == "mine-cheap-cheap" and "unseen-elements" in first.accepted and first.cheap is None
    assert first.own_labels and "own_labels" not in replace(first, inputs=()).identity()


def test_a_job_that_is_refused_leaves_the_labels_of_another(tmp_path, capsys):
    """A typing error on a folder where labels are made already."""
    data = write(tmp_path / "frames.extxyz", molecules(24))
    more = [
        "--keep-heads",
        "none",
        "--steps",
        "1",
        "--cheap-labels",
        "emt",
        "--cheap-structures",
        "24",
        "--cheap-steps",
        "1",
    ]
    out = tmp_path / "out"
    assert main(words(data, out, *more, "--accept", "nothing", "--keep-heads", "typo")) == 1
    assert main(words(data, out, *more)) == 0
    for part in ("run", "cheap", "model"):
        (out / part).rename(tmp_path / f"old-{part}")
    labels = out / "cheap-labels" / "labels.extxyz"
    before = labels.stat().st_mtime_ns
    assert main(words(data, out, *more, "--strategy", "typo", "--resume")) == 1
    assert main(words(data, out, "--steps", "1", "--keep-heads", "none", "--strategy", "typo")) == 1
    assert "one of heads, adapters, full" in capsys.readouterr().err
    assert labels.stat().st_mtime_ns == before
    assert main(words(data, out, *more)) == 0
    assert labels.stat().st_mtime_ns == before
    damaged = out / "cheap" / "errors.json"
    damaged.write_text(damaged.read_text()[:40])
    (out / "run").rename(tmp_path / "older-run")
    assert main(words(data, out, *more, "--resume")) == 1
    assert "not valid JSON" in capsys.readouterr().err
    assert json.loads((out / "cheap-labels" / "made.json").read_text())["asked"]["structures"] == 24
