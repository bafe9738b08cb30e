"""What keeps old heads as they were: packaged structures, replay, last layers that are settled; and how far they moved."""

import itertools
import json
import lzma
import math
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetuning import molecules, relabelled, words, write

from gfm_calc.checkpoint import load_model, subset
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build_flat
from gfm_calc.data.label import extxyz_text
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.store import open_dataset
from gfm_calc.data.tasks import file_tasks
from gfm_calc.finetune import exemplars as packaged
from gfm_calc.finetune import replay, run, setup
from gfm_calc.finetune.exemplars import COUNTS, exemplars, wanted
from gfm_calc.finetune.forgetting import measure
from gfm_calc.finetune.replay import build_replay, enough, label, made, structures, within
from gfm_calc.finetune.settling import Changes, fitted, settle
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
        train, test = exemplars(spec, "train"), exemplars(spec, "test")
        assert 7 <= len(train) <= wanted(spec, "train") and len(test) <= COUNTS["test"], name
        assert not [a for k, a in enumerate(train) if a in train[:k]], "none twice"
        assert not [a for a in test if a in train], "held out means held out"
        assert all(set(atoms.symbols) <= set(spec.elements) for atoms in [*train, *test]), name
        assert all(len(atoms) > 1 or atoms.pbc.any() for atoms in [*train, *test]), "a free atom has nothing to repeat"
    assert exemplars(spec, "validation") == []


def test_a_head_of_another_model_has_none_whatever_its_name(small):
    spec = small.specs[CHARGED]
    assert exemplars(spec, "test") and exemplars(replace(spec, description="told otherwise", test_errors={}), "test")
    energies = dict(spec.reference_energies) | {"H": spec.reference_energies["H"] + 1e-3}
    other = replace(spec, reference_energies=energies)
    assert exemplars(other, "train") == exemplars(other, "test") == exemplars(replace(spec, name="mine"), "test") == []
    assert structures(other, 12, 0) == made(other, 12, 0) and len(made(other, 12, 0)) == 12


def test_a_head_of_many_elements_has_more(small):
    assert wanted(small.specs["mp2-avtz"], "train") == COUNTS["train"] < wanted(small.specs["pbe-vasp"], "train")
    assert wanted(small.specs["pbe-vasp"], "train") < wanted(small.specs["pbe-u-mp"], "train") == 1024
    assert len(exemplars(small.specs["distilled-7net-mf-r2scan"], "train")) == 1024
    assert wanted(small.specs["pbe-u-mp"], "test") == COUNTS["test"]


def test_what_is_done_to_an_exemplar_is_done_to_a_copy(small):
    spec = small.specs[CHARGED]
    before = exemplars(spec, "train")[0].positions
    exemplars(spec, "train")[0].positions += 1.0
    assert (exemplars(spec, "train")[0].positions == before).all()


def test_replay_is_of_exemplars_displaced_ones_and_structures_made_by_code(small):
    spec = small.specs["si-pbe-pyxtal"]
    own, count = exemplars(spec, "train"), enough(spec, 192)
    found = structures(spec, count, 0)
    assert len(found) == count and found[: len(own)] == own
    moved = [atoms for atoms in found if atoms.info.get("source") == "displaced exemplar"]
    assert found[len(own) : len(own) + len(moved)] == moved
    starts = [own[k] for k in spread_indices(len(own), len(moved))]
    assert len(moved) == count - 64 - len(own) and all(
        (a.numbers == b.numbers).all() and not np.allclose(a.positions, b.positions) for a, b in zip(starts, moved)
    )
    assert {atoms.info["source"] for atoms in own} == {"exemplar"}
    assert all("source" not in atoms.info for atoms in found[len(own) + len(moved) :])


def test_many_exemplars_are_all_repeated(small):
    own = exemplars(small.specs[CHARGED], "train")
    count = enough(small.specs[CHARGED], 192)
    found = structures(small.specs[CHARGED], count, 0)
    assert len(found) == count == 64 + math.ceil(1.5 * len(own)) and len(own) > 192 and found[: len(own)] == own
    assert enough(small.specs["gaas-pbe-qe"], 192) == 192, "of few, structures made by code"
    assert sum("source" in atoms.info for atoms in found) == math.ceil(1.5 * len(own))
    displaced = [atoms for atoms in found if atoms.info.get("source") == "displaced exemplar"]
    assert "Cl" in {symbol for atoms in displaced for symbol in atoms.symbols}, "of all of them, evenly"
    assert any(atoms.info.get("charge") for atoms in displaced)


def test_few_are_of_all_exemplars_evenly(small):
    own = exemplars(small.specs[CHARGED], "train")
    found = [atoms for atoms in structures(small.specs[CHARGED], 24, 0) if "source" in atoms.info]
    assert len(found) == 16 and found[0] in own[:2] and found[-1] in own[-2:]


def test_where_time_is_short_old_heads_repeat_less(small, monkeypatch):
    counts = {head: enough(small.specs[head], 192) for head in ("mp2-avtz", CHARGED)}
    clock = itertools.count()  # each look at it is a second later
    monkeypatch.setattr(replay, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    needed = sum(counts.values()) / 16  # 16 structures are tried, in a second
    trials = 2 * 64 / 16
    same, after = within(small, counts, 2.6 * needed + trials, seed=0)
    assert same == counts and after == pytest.approx(1.6 * needed + trials)
    fewer, after = within(small, counts, 1.3 * needed + trials, seed=0)
    assert all(abs(fewer[head] - count / 2) <= 0.5 for head, count in counts.items())
    assert after == pytest.approx(0.8 * needed + trials, rel=0.01)
    assert set(within(small, counts, 0.0, seed=0)[0].values()) == {24}
    assert within(small, counts, 0.0, seed=0, fixed=True) == (counts, pytest.approx(1.6 * needed + trials))
    assert within(small, {}, 1.0, seed=0) == ({}, 0.0)


@pytest.mark.parametrize("after, left", [(60.0, 3.0), (600.0, 2.0)])
def test_what_old_heads_need_after_training_counts_as_the_users_minutes(after, left, tmp_path, monkeypatch):
    """Half of them are for training, whatever comes after."""
    asked = []

    def few(model, counts, seconds, **how):
        asked.append((seconds, how["fixed"]))
        return ({CHARGED: 24}, after)

    monkeypatch.setattr(setup, "within", few)
    write(tmp_path / "frames.extxyz", molecules(40))
    assert main(short(tmp_path, "--max-minutes", "4")) == 0
    ((seconds, fixed),) = asked
    assert 60 < seconds <= 0.35 * 240 and not fixed
    told = tomllib.loads((tmp_path / "out" / "run" / "recipe.toml").read_text())["run"]
    assert left - 0.5 < told["max_minutes"] <= left
    assert 12 < len(open_dataset(tmp_path / "out" / "replay" / CHARGED)) <= 24
    why = json.loads((tmp_path / "out" / "decisions.json").read_text())["strategy"]["reasons"]
    assert any("old heads repeat 24 structures instead of" in reason for reason in why)


def short(folder, *more):
    """The command line of a job with one old head, of two steps."""
    line = words(
        folder / "frames.extxyz", folder / "out", "--from", "gfm-small", "--keep-heads", CHARGED, "--steps", "2"
    )
    return [*line, "--strategy", "full", *more]


def test_a_job_that_goes_on_repeats_what_is_there(tmp_path, monkeypatch, small):
    """Killed after labels: with the same minutes what was made then counts, with others it is chosen anew."""
    write(tmp_path / "frames.extxyz", molecules(40))
    place, calls, real = tmp_path / "out" / "replay" / CHARGED, [], setup.within
    monkeypatch.setattr(setup, "seconds_of_step", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(short(tmp_path, "--max-minutes", "0.01")) == 130 and 12 < len(open_dataset(place)) <= 24
    few = open_dataset(place).digest
    monkeypatch.setattr(setup, "within", lambda *words, **how: calls.append(how["fixed"]) or real(*words, **how))
    assert main(short(tmp_path, "--max-minutes", "0.01", "--resume")) == 130
    assert calls == [True] and open_dataset(place).digest == few
    assert main(short(tmp_path, "--max-minutes", "9", "--resume")) == 130
    assert calls == [True, False] and len(open_dataset(place)) > 24
    monkeypatch.undo()
    assert main(short(tmp_path, "--resume")) == 0
    many = len(open_dataset(place))
    assert many > 192 and json.loads((place.parent / "counts.json").read_text())[CHARGED] >= many
    assert main(short(tmp_path, "--resume", "--max-minutes", "0.01")) == 0 and len(open_dataset(place)) == many


def test_a_head_is_guarded_by_its_exemplars_where_nothing_can_be_made(small, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "made", lambda spec, count, seed: [])
    found = build_replay(tmp_path, small, "gfm-small", {"mp2-avtz": 12}, seed=0)["mp2-avtz"]
    assert {record.source for record in found.read(np.arange(len(found)), names=True).records()} == {"exemplar"}


def test_replayed_ions_are_ions(small, tmp_path):
    ions = [atoms for atoms in exemplars(small.specs[CHARGED], "train") if atoms.info.get("charge")]
    assert ions, "the head has learnt some"
    assert [record.charge for record in label(small, CHARGED, ions)] == [atoms.info["charge"] for atoms in ions]
    found = build_replay(tmp_path, small, "gfm-small", {CHARGED: enough(small.specs[CHARGED], 192)}, seed=0)[CHARGED]
    charges = [record.charge or 0 for record in found.read(np.arange(len(found))).records()]
    assert any(charges)


def told(model, atoms):
    """Energies, eV/atom, and forces, eV/Å, one after the other."""
    rows = [row[CHARGED] for row in Predictor(model, [CHARGED], strict=False).predict(atoms)]
    energies = np.array([row.energy.item() / len(one) for row, one in zip(rows, atoms)])
    return energies, np.concatenate([row.forces.numpy().ravel() for row in rows])


def replayed(model, folder):
    return build_replay(folder, model, "gfm-small", {CHARGED: enough(model.specs[CHARGED], 192)}, seed=0)


def off(model, other, atoms):
    """Mean absolute differences of energies and forces."""
    return [float(np.abs(one - two).mean()) for one, two in zip(told(model, atoms), told(other, atoms))]


def test_what_elements_add_is_settled_and_forces_stay(small, tmp_path):
    moved, atoms = copy_of(small), molecules(4)
    row = moved.energy_heads.index(CHARGED)
    with torch.no_grad():
        moved.energy_stack.shift[row, 8] += 0.4
        moved.energy_stack.shift[row, 1] -= 0.2
    spoilt = off(small, moved, atoms)
    settle(moved, replayed(small, tmp_path), small)
    energies, forces = off(small, moved, atoms)
    assert spoilt[0] > 0.02 and energies < 0.02 * spoilt[0] and forces < 1e-3
    others = [k for k in range(len(moved.energy_heads)) if k != row]
    for part in ("shift", "output"):
        assert torch.equal(getattr(moved.energy_stack, part)[others], getattr(small.energy_stack, part)[others])
    assert torch.equal(moved.energy_stack.hidden, small.energy_stack.hidden)


def test_a_last_layer_is_settled(small, tmp_path):
    moved, atoms = copy_of(small), molecules(4)
    with torch.no_grad():
        moved.energy_stack.output[moved.energy_heads.index(CHARGED), ::2] *= 0.5
    spoilt = off(small, moved, atoms)
    settle(moved, replayed(small, tmp_path), small)
    energies, forces = off(small, moved, atoms)
    assert energies < 0.1 * spoilt[0] and forces < 0.1 * spoilt[1]


def test_what_counts_is_what_the_cards_of_the_origin_say(small, tmp_path):
    """Those of the model that was trained say nothing by then."""
    found = []
    for ratio in (1e-3, 0.5):
        moved, origin = shaken(small), copy_of(small)
        errors = {"energy_mae_mev_per_atom": 100.0 * ratio, "forces_mae_mev_per_a": 100.0}
        origin.specs = {name: replace(spec, test_errors=errors) for name, spec in origin.specs.items()}
        moved.specs = {name: replace(spec, test_errors={}) for name, spec in moved.specs.items()}
        settle(moved, replayed(small, tmp_path), origin)
        found.append(off(small, moved, exemplars(small.specs[CHARGED], "test")))
    assert found[0][0] < found[1][0] and found[0][1] > found[1][1]


def shaken(model):
    """Its encoder has moved by a hundredth."""
    moved, random = copy_of(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in moved.encoder.parameters():
            parameter += 0.01 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=random)
    return moved


@pytest.mark.parametrize("kind", ["test", "made"])
def test_a_moved_encoder_is_made_good_also_on_structures_that_are_not_replayed(small, tmp_path, kind):
    """Of its own kind, and of another."""
    spec = small.specs[CHARGED]
    moved = shaken(small)
    atoms = exemplars(spec, "test") if kind == "test" else made(spec, 32, 4711)
    spoilt = off(small, moved, atoms)
    settle(moved, replayed(small, tmp_path), small)
    energies, forces = off(small, moved, atoms)
    assert energies < spoilt[0] and forces < 1.1 * spoilt[1]


def test_a_head_without_exemplars_stays_as_it_is(small, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "exemplars", lambda spec, side: [])
    found = build_replay(tmp_path, small, "gfm-small", {CHARGED: 12}, seed=0)
    moved = copy_of(small)
    with torch.no_grad():
        moved.energy_stack.shift[:, 1] += 0.1
    spoilt = copy_of(moved)
    settle(moved, found, small)
    assert torch.equal(moved.energy_stack.shift, spoilt.energy_stack.shift)
    assert torch.equal(moved.energy_stack.output, spoilt.energy_stack.output)


def test_a_head_that_says_no_number_stays_as_it_is(small, tmp_path):
    moved = copy_of(small)
    row = moved.energy_heads.index(CHARGED)
    with torch.no_grad():
        moved.energy_stack.output[row, 0] = math.nan
    spoilt = moved.energy_stack.shift.clone()
    settle(moved, replayed(small, tmp_path), small)
    assert torch.equal(moved.energy_stack.shift, spoilt)


def changes_of(columns, truth):
    return changes_in(columns, columns @ truth, np.zeros_like(columns), np.zeros(len(columns)))


def changes_in(columns, energies, slopes, forces, own=None):
    count = len(columns)
    is_own = np.ones(count, bool) if own is None else own
    return Changes(columns, energies, slopes, forces, np.where(is_own, 1.0, 0.1), is_own)


def test_a_fit_is_not_bent_by_violent_structures_or_rare_elements():
    random = np.random.default_rng(0)
    columns, truth = np.zeros((60, 119)), np.zeros(119)
    columns[:, :3] = random.dirichlet(np.ones(3), size=60)
    truth[:2] = 0.03, -0.02
    changes = changes_of(columns, truth)
    changes.energies[:6] += 2.0
    assert fitted(changes, 0.05) == pytest.approx(truth, abs=2e-3)
    columns[0] = 0.0
    columns[0, 2], columns[0, 3] = 0.98, 0.02
    changes = changes_of(columns, truth)
    changes.energies[0] += 0.02
    assert abs(fitted(changes, 0.05)[3]) < 0.01
    assert fitted(changes._replace(energies=np.zeros(60)), 0.05) == pytest.approx(np.zeros(119))


def test_forces_count_as_much_as_the_ratio_says():
    """One unit cannot give energies and slopes what they want."""
    columns = np.zeros((40, 120))
    columns[:, 0] = 1.0
    torn = changes_in(columns, np.full(40, 1.0), columns, np.zeros(40))
    found = [fitted(torn, ratio)[0] for ratio in (0.01, 1.0, 100.0)]
    assert found[0] > 0.95 and found[2] < 0.05 and found[0] > found[1] > found[2]


def test_the_level_is_that_of_the_own_structures():
    """As many made by code say another one, and one of an element that no other shows."""
    columns, own = np.zeros((60, 121)), np.arange(60) < 30
    columns[:, :2] = np.random.default_rng(2).normal(size=(60, 2))
    columns[:, 8] = 1.0
    columns[59, 8], columns[59, 9] = 0.0, 1.0
    energies = np.where(own, 0.1, 0.3)
    found = fitted(changes_in(columns, energies, np.zeros_like(columns), np.zeros(60), own), 0.05)
    assert found[8] == pytest.approx(0.1, abs=0.03) and found[9] == 0.0


def test_a_unit_that_sleeps_is_not_woken():
    """What a thousandth of the others would have to explain stays unexplained."""
    random = np.random.default_rng(1)
    columns = np.concatenate([random.normal(size=(40, 3)), np.zeros((40, 119))], axis=1)
    columns[:, 2] *= 1e-3
    changes = changes_in(columns, 1e3 * columns[:, 2], np.zeros_like(columns), np.zeros(40))
    assert abs(fitted(changes, 0.05)[2]) < 100


def test_what_moved_is_told_on_held_out_structures_where_there_are_any(small):
    other = copy_of(small)
    with torch.no_grad():
        other.energy_stack.shift[:, 1] += 0.01
    found = {drift.head: drift for drift in measure(small, other, ["gfn2-xtb", "wb97x-631gd"])}
    own, without = found["gfn2-xtb"], found["wb97x-631gd"]
    assert own.held_out and own.structures == len(exemplars(small.specs["gfn2-xtb"], "test"))
    assert own.forces < 1e-6 and own.loss < 1e-9 and 0.001 < own.energy < 0.01 and own.energy_loss > 0
    assert not exemplars(small.specs["wb97x-631gd"], "test") and not without.held_out and without.structures > 30


def test_a_fine_tuning_settles_old_heads(tmp_path, monkeypatch):
    """What it does is to bring energies on exemplars back: without it they are farther off."""
    frames = [relabelled(atoms, forces=lambda f: 1.3 * f, energy=lambda e: 1.3 * e) for atoms in molecules(30)]
    moved = []
    for number, step in enumerate((run.settle, lambda model, replay, origin: None)):
        monkeypatch.setattr(run, "settle", step)
        out = tmp_path / f"{number}"
        line = [
            "--steps",
            "40",
            "--strategy",
            "full",
            "--keep-heads",
            CHARGED,
            "--accept",
            "force-scale",
            "--accept",
            "energy-unit",
        ]
        assert main(words(write(tmp_path / "a.extxyz", frames), out, *line)) == 0
        model, found = load_model(out / "model"), open_dataset(out / "replay" / CHARGED)
        records = [r for r in found.read(np.arange(len(found)), names=True).records() if r.source == "exemplar"]
        rows = Predictor(model, [CHARGED], strict=False).predict(r.structure() for r in records)
        changes = [(row[CHARGED].energy.item() - r.energy) / len(r) for r, row in zip(records, rows)]
        moved.append(float(np.median(np.abs(changes))))
    assert 0 < moved[0] < moved[1]


def test_exemplars_are_made_from_the_datasets_of_a_training(small, tmp_path, capsys):
    """Forty frames, two files, which are drawn from alike; those of the other head are of no model."""
    (tmp_path / "files").mkdir()
    for name, seed in (("a", 3), ("b", 5)):
        write(tmp_path / "files" / f"{name}.extxyz", molecules(20, seed=seed))
    files = file_tasks(sorted((tmp_path / "files").iterdir()))
    for name in (CHARGED, "mine"):
        build_flat(tmp_path / "data" / name, files, HeadSpec(name=name))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[data]\nby = 'frame'\nvalidation = 0.1\ntest = 0.2\n")
    line = [str(tmp_path / "data"), "--recipe", str(recipe), "-o", str(tmp_path / "found.extxyz.xz")]
    assert packaged.main(line) == 0
    found = list(read_structures(tmp_path / "found.extxyz.xz"))
    assert f"{len(found)} structures of 1 heads" in capsys.readouterr().out
    sides = [atoms.info["side"] for atoms in found]
    assert {atoms.info["head"] for atoms in found} == {CHARGED} and 20 <= sides.count("train") <= 36 and "test" in sides
    known = list(open_dataset(tmp_path / "data" / CHARGED).read(np.arange(40)).records())
    assert all(
        atoms.positions.tolist() in [record.positions.round(3).tolist() for record in known] for atoms in found[:3]
    )
    text = lzma.open(tmp_path / "found.extxyz.xz").read()
    assert b"energy" not in text and b"forces" not in text
    assert packaged.main(line) == 1 and "is there already" in capsys.readouterr().err
    half = tmp_path / "half.extxyz"
    half.write_text("".join(extxyz_text(atoms) for atoms in found[::2]))
    more = [*line[:-1], str(tmp_path / "more.extxyz.xz"), "--beside", str(half)]
    assert packaged.main(more) == 0
    others = list(read_structures(tmp_path / "more.extxyz.xz"))
    assert 0 < len(others) <= len(found) - len(found[::2]) and not [a for a in others if a in found[::2]], (
        "none comes again"
    )
    assert packaged.main([*line[:-1], str(tmp_path / "none.extxyz.xz"), "--beside", str(tmp_path / "half.xyz")]) == 1
    assert packaged.main([*line[:-1], str(tmp_path / "none.extxyz.xz"), "--beside", more[-3], str(half)]) == 1
    assert not (tmp_path / "none.extxyz.xz").exists() and "nothing that is not there already" in capsys.readouterr().err
    folder = tmp_path / "exemplars"
    folder.mkdir()
    (tmp_path / "found.extxyz.xz").rename(folder / "found.extxyz.xz")
    packaged._packaged.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packaged, "_FOLDER", folder)
            assert len(exemplars(small.specs[CHARGED], "train")) == sides.count("train")
    finally:
        packaged._packaged.cache_clear()
