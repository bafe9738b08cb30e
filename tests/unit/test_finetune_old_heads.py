"""What keeps old heads as they were: packaged structures of theirs, replay, shifts that are settled, and how far they moved."""

import lzma
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning import molecules, write

from gfm_calc.checkpoint import load_model, subset
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.store import open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.finetune import exemplars as packaged
from gfm_calc.finetune.exemplars import COUNTS, exemplars
from gfm_calc.finetune.forgetting import measure
from gfm_calc.finetune.replay import build_replay, label, made, structures
from gfm_calc.finetune.settling import of_elements, settle
from gfm_calc.predictor import Predictor
from gfm_calc.structures import read_structures

CHARGED = "gfn2-xtb"


@pytest.fixture(scope="module")
def small():
    return load_model("gfm-small")


def copy_of(model):
    return subset(model, list(model.specs)).to(model.dtype)


def test_every_packaged_head_of_energies_has_structures_and_no_other(small):
    for name in small.energy_heads:
        spec = small.specs[name]
        train, test = exemplars(name, "train"), exemplars(name, "test")
        assert 7 <= len(train) <= COUNTS["train"] and len(test) <= COUNTS["test"], name
        assert not [a for a in test if a in train], "held out means held out"
        assert all(set(atoms.symbols) <= set(spec.elements) for atoms in [*train, *test]), name
        assert all(len(atoms) > 1 or atoms.pbc.any() for atoms in [*train, *test]), "a free atom has nothing to repeat"
    assert exemplars("my-dft", "train") == [] and exemplars(small.energy_heads[0], "validation") == []


def test_what_is_done_to_an_exemplar_is_done_to_a_copy():
    exemplars(CHARGED, "train")[0].positions += 1.0
    assert (exemplars(CHARGED, "train")[0].positions != exemplars(CHARGED, "train")[0].positions + 1.0).all()
    first, again = (exemplars(CHARGED, "train")[0] for _ in range(2))
    assert first == again and first is not again


def test_replay_is_of_exemplars_displaced_ones_and_structures_made_by_code(small):
    own = exemplars(CHARGED, "train")
    found = structures(small.specs[CHARGED], 192, 0)
    assert len(found) == 192 and found[: len(own)] == own
    seconds = found[len(own) : 2 * len(own)]
    assert all(
        (a.numbers == b.numbers).all() and not np.allclose(a.positions, b.positions) for a, b in zip(own, seconds)
    )
    zeros = dict.fromkeys("HC", 0.0)
    spec = HeadSpec(name="my-dft", elements=("H", "C"), reference_energies=zeros)
    assert structures(spec, 12, 0) == made(spec, 12, 0) and len(made(spec, 12, 0)) == 12
    fewer = structures(replace(spec, name=CHARGED), 30, 0)
    assert len(fewer) == 30 and {s for atoms in fewer for s in atoms.symbols} == {"H", "C"}


def test_replayed_ions_are_ions(small, tmp_path):
    ions = [atoms for atoms in exemplars(CHARGED, "train") if atoms.info.get("charge")]
    assert ions, "the head has learnt some"
    assert [record.charge for record in label(small, CHARGED, ions)] == [atoms.info["charge"] for atoms in ions]
    found = build_replay(tmp_path, small, "gfm-small", [CHARGED], count=192, seed=0)[CHARGED]
    charges = [record.charge or 0 for record in found.read(np.arange(len(found))).records()]
    assert any(charges)


def test_energies_are_settled_and_forces_stay(small, tmp_path):
    replay = build_replay(tmp_path, small, "gfm-small", [CHARGED], count=60, seed=0)
    moved = copy_of(small)
    row = moved.energy_heads.index(CHARGED)
    with torch.no_grad():
        moved.energy_stack.shift[row, 8] += 0.4
        moved.energy_stack.shift[row, 1] -= 0.2
    atoms = molecules(1)[0]

    def told(model):
        return next(iter(Predictor(model, [CHARGED]).predict([atoms])))[CHARGED]

    before, spoilt = told(small), told(moved)
    settle(moved, replay)
    after = told(moved)
    assert abs(spoilt.energy - before.energy) > 0.2 and abs(after.energy - before.energy) < 0.01
    assert torch.allclose(after.forces, spoilt.forces, atol=1e-5)
    others = [k for k in range(len(moved.energy_heads)) if k != row]
    assert torch.equal(moved.energy_stack.shift[others], small.energy_stack.shift[others])


def test_what_elements_add_is_not_bent_by_violent_structures_or_rare_elements():
    random = np.random.default_rng(0)
    fractions = random.dirichlet(np.ones(3), size=60)
    fractions = np.concatenate([fractions, np.zeros((60, 1))], axis=1)
    truth = np.array([0.03, -0.02, 0.0, 0.0])
    changes = fractions @ truth
    changes[:6] += 2.0
    assert of_elements(fractions, changes) == pytest.approx(truth, abs=2e-3)
    fractions[0] = [0.0, 0.0, 0.98, 0.02]
    changes = fractions @ truth
    changes[0] += 0.02
    assert abs(of_elements(fractions, changes)[3]) < 0.01
    assert of_elements(fractions, np.zeros(60)) == pytest.approx(np.zeros(4))


def test_what_moved_is_told_on_held_out_structures_where_there_are_any(small):
    other = copy_of(small)
    with torch.no_grad():
        other.energy_stack.shift[:, 1] += 0.01
    found = {drift.head: drift for drift in measure(small, other, ["gfn2-xtb", "wb97x-631gd"])}
    own, without = found["gfn2-xtb"], found["wb97x-631gd"]
    assert own.held_out and own.structures == len(exemplars("gfn2-xtb", "test"))
    assert own.forces < 1e-6 and own.loss < 1e-9 and 0.001 < own.energy < 0.01 and own.energy_loss > 0
    assert not exemplars("wb97x-631gd", "test") and not without.held_out and without.structures > 30


def test_exemplars_are_made_from_the_datasets_of_a_training(tmp_path, capsys):
    spec = HeadSpec(name="mine")
    build_flat(tmp_path / "data" / "mine", file_tasks([write(tmp_path / "a.extxyz", molecules(40))]), spec)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[data]\nby = 'frame'\nvalidation = 0.1\ntest = 0.2\n")
    words = [str(tmp_path / "data"), "--recipe", str(recipe), "-o", str(tmp_path / "found.extxyz.xz")]
    assert packaged.main(words) == 0 and "40 structures" not in capsys.readouterr().out
    found = list(read_structures(tmp_path / "found.extxyz.xz"))
    sides = [atoms.info["side"] for atoms in found]
    assert {atoms.info["head"] for atoms in found} == {"mine"} and 20 <= sides.count("train") <= 36 and "test" in sides
    dataset = open_dataset(tmp_path / "data" / "mine")
    known = [record.positions.round(3).tolist() for record in dataset.read(np.arange(40)).records()]
    assert all(atoms.positions.tolist() in known for atoms in found)
    assert lzma.open(tmp_path / "found.extxyz.xz").read().count(b"energy") == 0
    assert packaged.main(words) == 1 and "is there already" in capsys.readouterr().err
