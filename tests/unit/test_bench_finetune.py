"""Downstream tasks: a real one, of a few steps."""

import json
import lzma
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from finetuning import labelled, molecules, relabelled, write

from gfm_calc.benchmarks import finetune_peers, finetuning, labels, pretraining
from gfm_calc.benchmarks.finetune_tasks import Case, Task, load_task, task_names
from gfm_calc.benchmarks.finetuning import FinetunePlan, _arms, _growth, _kept_as, _runs, about, run_finetune
from gfm_calc.benchmarks.provenance import weights_id
from gfm_calc.benchmarks.report import tables
from gfm_calc.benchmarks.task_files import Files, files_of, require
from gfm_calc.checkpoint import load_model, open_model, save_model, subset
from gfm_calc.cli import main
from gfm_calc.data.build import build_flat
from gfm_calc.data.readers import ReadOptions, read
from gfm_calc.data.tasks import file_tasks
from gfm_calc.errors import ConfigError, GFMError, InputFileError
from gfm_calc.finetune.plan import Cheap
from gfm_calc.train.evaluation import UNITS
from gfm_calc.train.preparation import prepare
from gfm_calc.train.recipe import recipe_of

TASK = """
name = "methanol"
title = "Methanol"
folder = "methanol"
metric = "forces_mae_mev_per_a"
sizes = [12]
citation = "none"
[[cases]]
name = "one"
train = "train.extxyz"
test = "test.extxyz"
[[published]]
model = "somebody"
size = 12
source = "somewhere"
values = { one = 7.5 }
"""


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "methanol.toml"
    path.write_text(TASK)
    (tmp_path / "methanol").mkdir()
    write(tmp_path / "methanol" / "train.extxyz", molecules(20))
    write(tmp_path / "methanol" / "test.extxyz", molecules(6, seed=5))
    return load_task(str(path))


def test_a_task_is_run_with_and_without_what_was_learnt_before(task, tmp_path):
    rows = run_finetune(FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], steps=4))
    assert [(row["arm"], row["size"], row["test_frames"], row["steps"]) for row in rows] == [
        ("gfm-small", 12, 6, 4), ("scratch", 12, 6, 4)
    ]  # fmt: skip
    pretrained, scratch = (row["errors"]["forces_mae_mev_per_a"][0] for row in rows)
    assert pretrained < 0.2 * scratch  # the labels are those of one of its heads
    assert rows[0]["model_id"] and rows[0]["published"] == {"somebody": 7.5}
    (shown,) = tables({"benchmark": "finetune", "task": about(task), "rows": rows})
    assert len(shown.rows) == 2 and "somebody" in shown.header


PEER = """
import sys
sys.path.insert(0, {folder!r})
import argparse, learn, torch
from measure import answer_jobs

class Springs:  # between all atoms, one length and strength
    batch, rate = 4, 0.02
    def __init__(self, *, of_property=False):
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.model.weight, 0.5)
    def describe(self):
        return dict(name="springs", version="1")
    def ready(self, atoms):
        return torch.from_numpy(atoms.positions).float()
    def predict(self, inputs):
        found = []
        for positions in inputs:
            r = positions.clone().requires_grad_()
            i, j = torch.triu_indices(len(r), len(r), 1)
            lengths = (r[i] - r[j]).norm(dim=1)
            energy = (self.model.weight * (lengths - 1.5 - self.model.bias) ** 2).sum()
            (gradient,) = torch.autograd.grad(energy, r, create_graph=True)
            found.append((energy / len(r), -gradient))
        return torch.stack([e for e, _ in found]), torch.cat([f for _, f in found])
    def means(self, inputs):  # linear in the mean distance from the middle
        sizes = torch.stack([(r - r.mean(0)).norm(dim=1).mean() for r in inputs])
        return self.model(sizes.unsqueeze(1))[:, 0]
    def last_layer(self):
        return self.model
    loss = learn.SchNetPackLearner.loss
    loss_of_values = staticmethod(learn.SchNetPackLearner.loss_of_values)

learn.LEARNERS = {{"schnetpack": Springs}}
parser = argparse.ArgumentParser()
parser.add_argument("--model")
answer_jobs(learn.start, parser)
"""


def test_a_peer_learns_the_same_structures_in_as_many_seconds(task, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(folder=str(Path(finetune_peers.__file__).parent / "peers")))
    monkeypatch.setattr(finetune_peers, "_SCRIPT", script)
    asked = []
    learn = finetune_peers.learn
    monkeypatch.setattr(  # four steps of ours are over sooner than its torch is there
        finetune_peers,
        "learn",
        lambda *words, **more: asked.append(more["seconds"]) or learn(*words, **more | {"seconds": 4}),
    )
    plan = FinetunePlan(
        task=task, data=tmp_path, models=["gfm-small"], steps=4, scratch=False, peers={"schnetpack": sys.executable},
        work=tmp_path / "work",
    )  # fmt: skip
    ours, peer = run_finetune(plan)
    assert peer["arm"] == "PaiNN of schnetpack, from scratch, as long" and peer["version"] == "springs (1)"
    assert asked == [ours["seconds"]] and peer["test_frames"] == ours["test_frames"] == 6
    assert peer["steps"] > 3 and peer["strategy"] == "its own"
    assert 10 < peer["errors"]["forces_mae_mev_per_a"][0] < 3000  # of springs, which are no molecule
    figures = {f"{term}_{kind}_{unit}" for term, unit in UNITS.items() for kind in ("mae", "rmse") if term != "stress"}
    assert peer["errors"].keys() == figures and peer["budget"] == ours["seconds"]
    assert run_finetune(plan) == [ours, peer]
    for path in (tmp_path / "work").iterdir():
        if "springs" in path.read_text():
            path.unlink()
    assert run_finetune(plan)[0] == ours and asked == 2 * [ours["seconds"]]  # ours is kept, and its seconds count
    (shown,) = tables({"benchmark": "finetune", "task": about(task), "rows": [ours, peer]})
    assert "springs (1)" in shown.rows[1][2]
    script.write_text("import sys; sys.exit('no springs here')")
    with pytest.raises(GFMError, match="schnetpack: its process ended: no springs here"):
        run_finetune(replace(plan, work=None))
    line = ["bench", "finetune", "rmd17", "--data", str(tmp_path), "--peer", "schnet=python"]
    assert main(line) == 1


def _size(atoms):
    return float(np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1).mean())


_NAMES = ("CH3OH", "H2O", "CH4", "CH3CH2OH", "C2H6", "HCOOH", "CH3CHO", "H2CO")


def _many(seed, count):
    """Molecules of several sizes and elements, distorted."""
    random, found = np.random.default_rng(seed), []
    for k in range(count):
        atoms = molecule(_NAMES[k % len(_NAMES)])
        found.append(
            Atoms(atoms.numbers, atoms.positions * random.uniform(0.95, 1.05) + random.normal(0, 0.03, (len(atoms), 3)))
        )
    return found


def _mean(atoms):
    """What `Springs` sees, and what elements add."""
    return 7 + 3 * _size(atoms) - 5 * (atoms.numbers == 8).mean() + 2 * (atoms.numbers == 1).mean()


@pytest.mark.parametrize(
    "kind, of, names",
    [
        ("intensive", _mean, {"value_mae", "value_rmse"}),
        ("extensive", lambda atoms: len(atoms) * _mean(atoms), {"value_mae", "value_rmse"}),
        ("class", lambda atoms: int(_size(atoms) < 1.1), {"accuracy", "roc_auc"}),
    ],
)
def test_a_peer_learns_a_property(kind, of, names, tmp_path, monkeypatch):
    """A number that is linear in what it sees and in elements is right from the start; a class is not."""
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(folder=str(Path(finetune_peers.__file__).parent / "peers")))
    monkeypatch.setattr(finetune_peers, "_SCRIPT", script)
    learn, seconds = finetune_peers.learn, 10 if kind == "class" else 2
    monkeypatch.setattr(finetune_peers, "learn", lambda *words, **more: learn(*words, **more | {"seconds": seconds}))
    path = tmp_path / "sizes.toml"
    metric = "roc_auc" if kind == "class" else "value_mae"
    label = f'kind = "{kind}"\nlabel = "size"\nunit = "A"\ntest = "t'
    path.write_text(TASK.replace("forces_mae_mev_per_a", metric).replace('test = "t', label))
    (tmp_path / "methanol").mkdir()
    sides = {"train": _many(0, 40), "test": _many(1, 16)}
    for side, frames in sides.items():
        for atoms in frames:
            atoms.info = {"size": of(atoms)}
        write(tmp_path / "methanol" / f"{side}.extxyz", frames)
    plan = FinetunePlan(
        task=load_task(str(path)), data=tmp_path, models=["gfm-small"], steps=2, scratch=False, sizes=(40,),
        peers={"schnetpack": sys.executable},
    )  # fmt: skip
    ours, peer = run_finetune(plan)
    assert peer["errors"].keys() == names and peer["test_frames"] == ours["test_frames"] == 16
    if kind == "class":
        assert peer["errors"]["roc_auc"][0] > 0.9  # 0.5 at the start
    else:
        labels = [of(atoms) for atoms in sides["test"]]
        assert peer["errors"]["value_mae"][0] < 0.05 * np.abs(labels - np.median(labels)).mean()


def test_what_old_heads_forget_with_and_without_replay(task, tmp_path):
    plan = FinetunePlan(
        task=task, data=tmp_path, models=["gfm-small"], steps=4, strategy="full", scratch=False, keep_heads=True
    )
    none, replay, naive = run_finetune(plan)
    assert [none["arm"], replay["arm"]] == ["gfm-small", "gfm-small, old heads kept"]
    assert naive["arm"] == "gfm-small, old heads kept (--naive)"
    assert none["forgetting"] == {} and replay["forgetting"].keys() == naive["forgetting"].keys()
    assert {"gfn2-xtb", "pbe-u-mp"} <= replay["forgetting"].keys()
    assert 0 < sum(sum(values) for values in replay["forgetting"].values())
    assert none["held_out"] == replay["held_out"] == {}
    _, lost = tables({"benchmark": "finetune", "task": about(task), "rows": [none, replay, naive]})
    assert [row[2] for row in lost.rows] == [replay["arm"], naive["arm"]]
    assert int(lost.rows[0][3]) == len(replay["forgetting"])


def test_old_heads_are_tried_on_what_their_training_held_out(task, tmp_path, capsys):
    """The labels are those of the head itself but for 0.1 eV/Å."""
    frames = [relabelled(atoms, forces=lambda f: f + 0.1) for atoms in molecules(40, seed=9)]
    card = load_model("gfm-small").specs["gfn2-xtb"]
    build_flat(tmp_path / "old" / "gfn2-xtb", file_tasks([write(tmp_path / "old.extxyz", frames)]), card)
    recipe = tmp_path / "old.toml"
    recipe.write_text('[data]\nby = "frame"\nvalidation = 0.1\ntest = 0.3\n')
    words = [
        "bench",
        "finetune",
        str(tmp_path / "methanol.toml"),
        "--data",
        str(tmp_path),
        "--steps",
        "4",
        "--no-scratch",
    ]
    words += ["--strategy", "full", "-o", str(tmp_path / "out.json"), "--work", str(tmp_path / "work")]
    old = ["--old-data", str(tmp_path / "old"), "--old-recipe", str(recipe), "--cache", str(tmp_path / "cache")]
    assert main([*words, *old]) == 1 and "--old-data is for --forgetting" in capsys.readouterr().err
    assert main([*words, *old[2:]]) == 1 and "are for --old-data" in capsys.readouterr().err
    assert main([*words, "--forgetting", *old]) == 0
    none, replay, naive = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert none["held_out"] == {} and replay["held_out"].keys() == naive["held_out"].keys() == {"gfn2-xtb"}
    found = replay["held_out"]["gfn2-xtb"]
    assert 8 <= found["frames"] <= 16 and -0.5 < found["forces"][0] < 0.5
    (_, lost, grown) = tables(json.loads((tmp_path / "out.json").read_text()))
    assert [row[2] for row in grown.rows] == [replay["arm"], naive["arm"]]
    assert grown.rows[0][3] == "1" and grown.rows[0][6] == grown.rows[0][10] == "gfn2-xtb" and len(lost.rows) == 2
    assert float(grown.rows[0][4]) == pytest.approx(100 * found["forces"][0], abs=0.06)
    kept = sorted((tmp_path / "work").iterdir())
    recipe.write_text('[data]\nby = "frame"\nvalidation = 0.1\ntest = 0.4\n')
    assert main([*words, "--forgetting", *old, "--overwrite"]) == 0
    assert len(sorted((tmp_path / "work").iterdir())) == len(kept) + 2, "other frames are another result"


def test_growth_is_of_the_errors_on_the_held_out_side(tmp_path):
    """Labels 0.1 eV/Å off the head, and a head whose forces are doubled: its errors become the forces themselves."""
    frames = [relabelled(atoms, forces=lambda f: f + 0.1) for atoms in molecules(30, seed=9)]
    before = load_model("gfm-small")
    build_flat(tmp_path / "gfn2-xtb", file_tasks([write(tmp_path / "old.extxyz", frames)]), before.specs["gfn2-xtb"])
    heads = prepare(recipe_of({"data": {"path": str(tmp_path), "by": "frame", "test": 0.3}}), before.config.cutoff)
    assert _growth(before, before, heads)["gfn2-xtb"]["forces"] == 0.0
    after = subset(before, list(before.specs)).to(before.dtype)
    with torch.no_grad():
        after.energy_stack.scale[after.energy_heads.index("gfn2-xtb")] *= 2
    found = _growth(before, after, heads)["gfn2-xtb"]
    assert found["forces"] > 3 and found["energy"] > 0 and found["frames"] == len(heads[0].sides["test"])
    assert _growth(before, subset(before, ["pbe-u-mp"]), heads) == {}


@pytest.mark.parametrize("sizes, most, curve", [((1, 5, 25), 25, (1, 5, 25)), ((5, 0), 0, (5, 0)), ((), 12, (12,))])
def test_runs_of_all_sizes_draw_from_the_same_files(sizes, most, curve, task, tmp_path, monkeypatch):
    """However few a run learns, so that it knows what the others can predict."""
    plan = FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], cases=["one"], sizes=sizes, alike=True)
    asked, jobs = [], []

    def files_of(*where, size, **how):
        asked.append(size)
        folder = tmp_path / "methanol"
        return Files(train=folder / "train.extxyz", test=folder / "test.extxyz", isolated=None)

    def stopped(job, **how):
        jobs.append(job)
        return "SIGTERM"

    monkeypatch.setattr(finetuning, "files_of", files_of)
    monkeypatch.setattr(finetuning, "finetune", stopped)
    for some in (plan, replace(plan, alike=False)):
        with pytest.raises(KeyboardInterrupt):
            next(_runs(some, task.case("one"), 5, 0, _arms(plan), None))
    assert asked == [most, 5] and [(job.max_train, tuple(job.curve)) for job in jobs] == [(5, curve), (5, ())]


def test_runs_of_all_sizes_are_alike_if_wanted(task, tmp_path):
    """Three structures of methanol know no sulfur: all of them do."""
    random = np.random.default_rng(0)
    for side, count in (("train", 20), ("test", 6)):
        rare = [molecule("CH3SH") for _ in range(2)]
        for atoms in rare:
            atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        write(tmp_path / "methanol" / f"{side}.extxyz", [*labelled(rare), *molecules(count, seed=count)])
    plan = FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], sizes=(3, 0), scratch=False, steps=2)
    for alike, frames in ((True, [6, 6]), (False, [6, 8])):
        assert [row["test_frames"] for row in run_finetune(replace(plan, alike=alike))] == frames
    names = {
        _kept_as(some, _arms(plan)[0], task.case("one"), 3, 0)
        for some in (plan, replace(plan, alike=True), replace(plan, alike=True, sizes=(3, 5)))
    }
    assert len(names) == 3


def test_a_table_of_what_is_forgotten_without_labels_of_forces():
    row = {"case": "one", "size": 3, "arm": "ours", "metric": "forces_mae_mev_per_a", "errors": {}, "steps": 1, "seconds": 1.0,
           "published": {}, "forgetting": {}, "held_out": {"a": {"frames": 3, "energy": [0.07]}}}  # fmt: skip
    task = {"title": "a task", "metric": "forces_mae_mev_per_a"}
    _, grown = tables({"benchmark": "finetune", "task": task, "rows": [row]})
    assert grown.rows == [["one", "3", "ours", "1", "", "", "", "", "7.0", "7.0", "a", "1"]]


def test_means_over_cases_are_of_cases_that_have_a_value():
    def row(case, error, published, arm="ours"):
        errors = {"forces_mae_mev_per_a": error}
        return {
            "case": case,
            "size": 50,
            "arm": arm,
            "errors": errors,
            "published": published,
            "steps": 1,
            "seconds": 1.0,
        }

    rows = [row("a", [1.0, 3.0], {"x": 4.0, "y": 1.0}), row("b", [6.0], {"x": 6.0}), row("b", [8.0], {}, "other")]
    task = {"title": "T", "metric": "forces_mae_mev_per_a"}
    (shown,) = tables({"benchmark": "finetune", "task": task, "rows": rows})
    assert [line[:4] for line in shown.rows[3:]] == [["mean of 2", "50", "ours", "4"]]
    assert shown.rows[3][shown.header.index("x")] == "5" and shown.rows[3][shown.header.index("y")] == "-"
    values = [{**one, "errors": {"value_mae": [1.0]}, "metric": "value_mae"} for one in rows]  # in units of their own
    (shown,) = tables({"benchmark": "finetune", "task": {"title": "T", "metric": "value_mae"}, "rows": values})
    assert len(shown.rows) == len(values)


def test_the_command(task, tmp_path, capsys):
    words = [
        "bench",
        "finetune",
        str(tmp_path / "methanol.toml"),
        "--data",
        str(tmp_path),
        "--steps",
        "1",
        "--no-scratch",
    ]
    assert main([*words, "--work", str(tmp_path / "work"), "-o", str(tmp_path / "r.json")]) == 0
    assert "Methanol" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rows"][0]["arm"] == "gfm-small" and found["provenance"]["weights"] == weights_id(
        open_model("gfm-small")
    )


def test_cheap_labels_are_an_arm_beside_the_others(task, tmp_path):
    cheap = Cheap(calculator="gfm:gfm-small:gfn1-xtb", structures=24, steps=2)
    plan = FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], steps=2, scratch=False, cheap=cheap)
    rows = run_finetune(plan)
    assert [row["arm"] for row in rows] == ["gfm-small", "gfm-small after 24 x gfm:gfm-small:gfn1-xtb"]
    assert rows[0]["model_id"] == rows[1]["model_id"] and rows[0]["errors"] != rows[1]["errors"]


def test_what_came_out_is_kept_until_something_else_is_asked(task, tmp_path):
    plan = FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], steps=2, scratch=False, work=tmp_path / "work")
    first = run_finetune(plan)
    (kept,) = plan.work.glob("run-*.json")
    written = kept.stat().st_mtime_ns
    assert run_finetune(plan) == first  # with the same seconds: it is not run again
    assert (
        run_finetune(replace(plan, seeds=2))[0]["errors"]["forces_mae_mev_per_a"][:1]
        == first[0]["errors"]["forces_mae_mev_per_a"]
    )
    assert kept.stat().st_mtime_ns == written and len(list(plan.work.glob("run-*.json"))) == 2
    write(tmp_path / "methanol" / "train.extxyz", molecules(20, seed=3))  # other data: another run
    assert run_finetune(plan)[0]["errors"] != first[0]["errors"]


def test_energies_of_free_atoms_come_with_a_task(tmp_path):
    """As for 3BPA and acetylacetone."""
    path = tmp_path / "methanol.toml"
    path.write_text(TASK.replace('test = "test.extxyz"', 'test = "test.extxyz"\nisolated = "atoms.json"'))
    (tmp_path / "methanol").mkdir()
    write(tmp_path / "methanol" / "train.extxyz", molecules(20))
    write(tmp_path / "methanol" / "test.extxyz", molecules(6, seed=5))
    free = {"H": -10.5, "C": -48.0, "O": -102.0}
    (tmp_path / "methanol" / "atoms.json").write_text(json.dumps(free))
    plan = FinetunePlan(task=load_task(str(path)), data=tmp_path, models=["gfm-small"], steps=2, work=tmp_path / "work")
    errors = [row["errors"]["energy_mae_mev_per_atom"] for row in run_finetune(plan)]
    assert np.isfinite(errors).all() and len(list((tmp_path / "work").iterdir())) == 2


def test_labels_that_pretraining_saves(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labels, "TIMES", 2)
    monkeypatch.setattr(
        labels, "ENTRIES", ((str(tmp_path / "methanol.toml"), "one", 3), (str(tmp_path / "methanol.toml"), "", 4))
    )
    words = ["bench", "labels", "--data", str(tmp_path), "--steps", "2", "--work", str(tmp_path / "work"), "-o"]
    assert main([*words, str(tmp_path / "labels.json")]) == 0
    result = json.loads((tmp_path / "labels.json").read_text())
    assert [(row["sizes"], row["case"], row["saved"]) for row in result["rows"]] == [
        ([3, 6, 12], "one", [True, True]), ([4, 8, 16], "one", [True, True])
    ]  # fmt: skip
    for row in result["rows"]:
        assert {way: [len(values) for values in curve] for way, curve in row["errors"].items()} == {
            "tuned": [1, 1, 1], "scratch": [1, 1, 1]
        }  # fmt: skip
        assert row["errors"]["tuned"][0] < row["errors"]["scratch"][1] and row["test_frames"] == [6] * 3
        assert len(row["strategies"]) == 3
    (shown,) = tables(result)
    assert "in 2 and 2 of 2 cases (1 task)" in shown.title and shown.title.endswith("one seed; 2 steps each")
    assert [line[-2] for line in shown.rows] == ["yes / yes", "yes / yes"] and shown.rows[0][2:4] == [
        "3 / 6 / 12",
        "6",
    ]
    made = sorted((tmp_path / "work").iterdir())
    assert len(made) == 12 and main([*words, str(tmp_path / "again.json")]) == 0
    assert sorted((tmp_path / "work").iterdir()) == made
    seen = [dict(row) for row in result["rows"]]
    seen[0] |= {"overlap": "these very frames", "saved": None}
    (shown,) = tables(result | {"rows": seen})
    assert "in 1 and 1 of 1 cases (1 task)" in shown.title and shown.rows[0][-2:] == [
        "no credit: these very frames",
        "-",
    ]
    (tmp_path / "methanol" / "test.extxyz").unlink()
    assert main([*words, str(tmp_path / "x.json")]) == 1 and "test.extxyz" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "x.json"), "--tasks", "methanoll"]) == 1
    assert "no task 'methanoll'" in capsys.readouterr().err


def test_models_that_were_trained_in_several_ways(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "ENTRIES", ((str(tmp_path / "methanol.toml"), "one", 2),))
    many, one = load_model("gfm-small"), tmp_path / "one_head"
    save_model(subset(many, ["gfn1-xtb"]), one)
    words = [
        "bench",
        "pretraining",
        "--data",
        str(tmp_path),
        "--model",
        "gfm-small",
        "--model",
        str(one),
        "--steps",
        "12",  # of two, what came out hung on the processor
    ]
    words += ["--seeds", "2", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "pretraining.json")]
    assert main(words) == 0
    result = json.loads((tmp_path / "pretraining.json").read_text())
    assert result["models"]["one_head"] == {
        "model_id": load_model(one).model_id, "heads": ["gfn1-xtb"],
        "structures": sum(entry["frames"] for entry in many.specs["gfn1-xtb"].training_data),
    }  # fmt: skip
    (row,) = result["rows"]
    errors = row["errors"]
    assert row["size"] == 10 and row["test_frames"] == 6
    assert {arm: len(values) for arm, values in errors.items()} == {"gfm-small": 2, "one_head": 2, "scratch": 2}
    means = {arm: sum(values) / 2 for arm, values in errors.items()}
    assert max(errors["gfm-small"]) < min(errors["one_head"]) < min(errors["scratch"])  # its labels; others; none
    compared, begun = tables(result)
    assert compared.header[-3:] == ["gfm-small", "one head", "random weights"]
    assert compared.rows[-1][-3:] == [f"{means[arm] / means['scratch']:.2f}" for arm in errors]
    assert begun.rows[1][2] == "gfn1-xtb"
    assert result["provenance"]["model_id"] == ""  # of none of them
    assert main([*words, "--overwrite", "--tasks", "methanoll"]) == 1
    assert "no task 'methanoll'" in capsys.readouterr().err


def test_peers_learn_many_tasks(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "ENTRIES", ((str(tmp_path / "methanol.toml"), "one", 2),))
    monkeypatch.setattr(finetune_peers, "SEEN", {("chgnet", "methanol"): "these very frames"})
    found = {"steps": 9, "version": "1", "errors": {"frames": 6, "forces_mae_mev_per_a": 5.0}}
    monkeypatch.setattr(finetune_peers, "learn", lambda *words, **more: dict(found))
    words = [
        "bench",
        "pretraining",
        "--data",
        str(tmp_path),
        "--steps",
        "2",
        "--seeds",
        "1",
        "-o",
        str(tmp_path / "peers.json"),
    ]
    assert main([*words, "--peer", "schnetpack=python", "--peer", "chgnet=python"]) == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    (row,) = result["rows"]
    names = list(finetune_peers.PEERS.values())
    assert sorted(result["peers"]) == sorted(names) and all(row["errors"][name] == [5.0] for name in names)
    assert row["overlaps"] == {finetune_peers.PEERS["chgnet"]: "these very frames"}
    compared, _ = tables(result)
    assert compared.header[-2:] == result["peers"] and [line[-2:] for line in compared.rows] == [["5", "5*"]]
    assert main([*words, "--overwrite", "--peer", "chgnett=python"]) == 1
    assert "no peer 'chgnett'" in capsys.readouterr().err


def test_a_model_that_lacks_an_element_ends_no_suite(task, tmp_path, monkeypatch, capsys):
    """It is told before anything runs."""
    monkeypatch.setattr(pretraining, "ENTRIES", ((str(tmp_path / "methanol.toml"), "one", 2),))
    save_model(subset(load_model("gfm-small"), ["pypolymlp-mgo"]), tmp_path / "mgo")
    monkeypatch.setattr(pretraining, "run_finetune", lambda plan: pytest.fail("it began"))
    line = ["bench", "pretraining", "--data", str(tmp_path), "--model", "gfm-small", "--model", str(tmp_path / "mgo")]
    assert main([*line, "-o", str(tmp_path / "x.json")]) == 1
    assert "mgo has not seen C, H of methanol: take it away" in capsys.readouterr().err


def test_only_what_no_model_has_seen_is_compared_over_tasks():
    def row(many, one, random, **about):
        errors = {"many": many, "one_head": one, labels.SCRATCH: random}
        about = {"more_is_better": False, "overlaps": {}, "metric": "value_mae", "unit": "eV"} | about
        return {"task": "t", "case": "c", "size": 50, "test_frames": 9, "errors": errors} | about

    rows = [
        row([1.0, 3.0], [4.0, 4.0], [8.0, 8.0]),
        row([0.9, 0.9], [0.8, 0.8], [0.6, 0.6], more_is_better=True, metric="roc_auc"),
        row([0.1, 0.1], [9.0, 9.0], [9.0, 9.0], overlaps={"many": "these very frames"}),
    ]
    about = {name: {"model_id": "0", "heads": [name], "structures": 7} for name in ("many", "one_head")}
    result = {"benchmark": "pretraining", "seeds": 2, "steps": None, "models": about, "rows": rows}
    compared, _ = tables(result)
    assert [line[-3:] for line in compared.rows] == [
        ["2 (1 to 3)", "4 (4 to 4)", "8 (8 to 8)"],
        ["0.9 (0.9 to 0.9)", "0.8 (0.8 to 0.8)", "0.6 (0.6 to 0.6)"],
        ["0.1 (0.1 to 0.1)*", "9 (9 to 9)", "9 (9 to 9)"],
        ["0.25", "0.50", "1.00"],  # of 2 / 8 and 0.1 / 0.4, of 4 / 8 and 0.2 / 0.4
    ]
    assert compared.rows[-1][0].endswith("of 2 cases that none has seen") and compared.title.endswith(
        "2 seeds, means and ranges"
    )
    result |= {"seeds": 1, "steps": 30, "rows": [row([1.0], [1.0], [1.0], more_is_better=True), *rows[2:]]}
    compared, _ = tables(result)  # none of them errs
    assert compared.rows[-1][-3:] == ["1.00"] * 3 and compared.title.endswith("one seed; 30 steps each")


def test_few_labels_are_as_good_by_the_next_size_of_random_weights(task):
    """A curve of the tuned model against one that is a size ahead, whichever way is better."""
    plan = FinetunePlan(task=task, data=Path(), models=["gfm-small"], cases=["one"], sizes=(1, 5, 25))
    metric = task.metric_of(task.case("one"))

    def curve(arm, *values):
        return [
            {"arm": arm, "errors": {metric: [v]}, "test_frames": 6, "overlap": "", "strategy": "full"} for v in values
        ]

    def saved(tuned, scratch):
        return labels._row(plan, [*curve("gfm-small", *tuned), *curve(labels.SCRATCH, *scratch)])["saved"]

    assert saved((2.0, 1.0, 0.1), (9.0, 2.0, 0.5)) == [True, False]
    assert saved((2.1, 0.4, 0.1), (0.0, 2.0, 0.5)) == [False, True]


def test_what_a_label_is_worth():
    """Labels that random weights need: between two sizes on straight lines of logarithms; beyond the curve, bounds."""

    def needed(tuned, scratch, metric="value_mae"):
        errors = {"tuned": [[tuned]], "scratch": [[value] for value in scratch]}
        return labels.needed({"metric": metric, "sizes": [10, 50, 250], "errors": errors}, 0)

    assert needed(2.0, (8.0, 2.0, 0.5)) == pytest.approx(50)
    assert needed(1.0, (8.0, 2.0, 0.5)) == pytest.approx(50 * 5**0.5)
    assert needed(8.0, (8.0, 2.0, 0.5)) == 10 and needed(9.0, (8.0, 2.0, 0.5)) == 0
    assert needed(0.4, (8.0, 2.0, 0.5)) == math.inf
    assert needed(4.0, (8.0, 9.0, 2.0)) == pytest.approx(50 * 5 ** (math.log(9 / 4) / math.log(9 / 2)))
    assert needed(0.9, (0.8, 0.9, 0.95), "roc_auc") == pytest.approx(50)


def test_cases_and_tasks_are_counted_and_seeds_shown():
    def row(task, case, saved, *errors):
        return {
            "task": task, "case": case, "metric": "value_mae", "unit": "eV", "sizes": [1, 5], "test_frames": [6, 6],
            "saved": saved, "overlap": "" if saved else "seen",
            "errors": {"tuned": [list(errors)] * 2, "scratch": [list(errors)] * 2},
        }  # fmt: skip

    rows = [
        row("qm9", "U0", [True], 1.0, 4.0),
        row("qm9", "gap", [False], 2.0, 2.0),
        row("water", "water", None, 3.0, 3.0),
    ]
    (shown,) = tables({"benchmark": "labels", "seeds": 2, "rows": rows})
    assert "in 1 of 2 cases (1 task)" in shown.title and shown.title.endswith("2 seeds, means and ranges")
    assert shown.rows[0][4:] == [" / ".join(["2.5 (1 to 4)"] * 2)] * 2 + ["yes", "1.0"]
    (shown,) = tables({"benchmark": "labels", "seeds": 2, "rows": [*rows, row("water", "ice", [True], 3.0)]})
    assert "in 2 of 3 cases (2 tasks)" in shown.title and shown.rows[3][4] == "3 / 3"


def test_every_entry_of_labels_is_a_case():
    for name, case, fewest in labels.ENTRIES:
        task = load_task(name)
        assert fewest > 0 and (not case or task.case(case))
    assert len({name for name, _, _ in labels.ENTRIES}) >= 12


def test_what_cannot_be_run(task, tmp_path):
    plan = FinetunePlan(task=task, data=tmp_path, models=["gfm-small"])
    with pytest.raises(ConfigError, match="no case 'on'.*did you mean 'one'"):
        run_finetune(FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], cases=["on"]))
    with pytest.raises(ConfigError, match="two directories of one name"):
        run_finetune(replace(plan, models=["a/gfm-small", "b/gfm-small"]))
    (tmp_path / "methanol" / "test.extxyz").unlink()
    with pytest.raises(InputFileError, match=r"holds neither methanol/test.extxyz nor test.extxyz"):
        run_finetune(plan)
    (tmp_path / "bad.toml").write_text(TASK.replace("citation", "citations"))
    with pytest.raises(ConfigError, match="did you mean 'citation'"):
        load_task(str(tmp_path / "bad.toml"))


# ---- tasks as data ----


def test_the_suite_is_whole_and_says_where_its_numbers_come_from():
    names = task_names()
    assert len(names) >= 12 and {"rmd17", "3bpa", "acac", "mlearn", "qm9", "nomad2018", "water"} <= set(names)
    assert sum(name.startswith("matbench_") for name in names) == 9
    for name in names:
        task = load_task(name)
        assert task.cases and task.sizes and task.citation and task.licence, name
        assert task.published or task.note, name
        assert all(entry.source for entry in task.published), name
    assert len(load_task("qm9").cases) == 12 and "b3lyp-631g2dfp-u0" in load_task("qm9").overlaps


def a_task(**case):
    return Task(
        name="t", title="T", folder="t", metric="value_mae", sizes=(2,), cases=(Case(name="one", **case),), most_test=1
    )


def test_folds_of_a_file_become_training_and_test(tmp_path):
    cell = [[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 0.0, 5.0]]
    rows = [
        {
            "fold": k % 4,
            "target": k / 3,
            "cell": cell,
            "species": ["Na", "Cl"],
            "frac": [[0, 0, 0], [0.5, 0.5, 0.1 * k]],
        }
        for k in range(8)
    ]
    path = tmp_path / "rows.jsonl.xz"
    path.write_bytes(lzma.compress("\n".join(map(json.dumps, rows)).encode()))
    task = a_task(train="rows.jsonl*", fold=2, label="target", kind="intensive")
    files = files_of(tmp_path, task, task.cases[0], size=0, seed=0, place=tmp_path)
    how = ReadOptions(property_key="target", length_unit="A")
    train, test = (list(read(path, options=how)) for path in (files.train, files.test))
    assert [r.value[0] for r in test] == [2 / 3, 6 / 3] and len(train) == 6
    assert test[0].positions[1] == pytest.approx([1.5 + 0.2, 2.0, 1.0]) and test[0].pbc.all()
    wrong = a_task(train="rows.jsonl*", fold=7, label="target", kind="intensive")
    with pytest.raises(InputFileError, match="nothing of fold 7"):
        files_of(tmp_path, wrong, wrong.cases[0], size=0, seed=0, place=tmp_path)


def test_some_frames_of_a_file_are_the_test(tmp_path):
    frames = molecules(6)
    write(tmp_path / "a.extxyz", frames)
    (tmp_path / "rows.json").write_text('{"high": [1, 4]}')
    task = Task(
        name="t", title="T", folder="t", metric="forces_mae_mev_per_a", sizes=(2,),
        cases=(Case(name="one", train="a.extxyz", test="a.extxyz", test_rows={"file": "rows.json", "key": "high"}),),
    )  # fmt: skip
    files = files_of(tmp_path, task, task.cases[0], size=2, seed=0, place=tmp_path)
    found = ase.io.read(files.test, ":")
    wanted = [frames[1].get_potential_energy(), frames[4].get_potential_energy()]
    assert [a.get_potential_energy() for a in found] == pytest.approx(wanted)
    (tmp_path / "rows.json").unlink()
    with pytest.raises(InputFileError, match="rows.json"):
        require(tmp_path, task, task.cases[0])


def test_molecules_are_taken_out_of_the_wheel_of_qm9pack(tmp_path):
    header = "XYZ_file,Elements,XYZ_Ang,ZPVE_au\n"
    line = "f{k},\"['O','H','H']\",\"[[0.,0.,{k}.],[0.,0.9,0.],[0.9,0.,0.]]\",0.{k}\n"
    with zipfile.ZipFile(tmp_path / "qm9pack-1.0.3.whl", "w") as archive:
        for part in range(3):
            rows = "".join(line.format(k=k) for k in range(3 * part, 3 * part + 3))
            archive.writestr(f"qm9pack/data/qm9_part{part + 1}.csv", header + rows)
    (tmp_path / "train.txt").write_text("000001 0\n000005 4\n000008 7\n")
    (tmp_path / "test.txt").write_text("000003 2\n")
    task = a_task(train="train.txt", test="test.txt", table="*.whl", label="ZPVE_au", kind="extensive", factor=10.0)
    files = files_of(tmp_path, task, task.cases[0], size=2, seed=1, place=tmp_path)
    train, test = (list(read(f, options=ReadOptions(property_key="ZPVE_au"))) for f in (files.train, files.test))
    assert [r.value[0] for r in test] == [2.0] and test[0].positions[0, 2] == 2.0
    assert len(train) == 2 and {r.value[0] for r in train} <= {0.0, 4.0, 7.0}
    again = files_of(tmp_path, task, task.cases[0], size=2, seed=1, place=tmp_path)
    first = next(iter(read(again.train, options=ReadOptions(property_key="ZPVE_au"))))
    assert first.value[0] == train[0].value[0]


def test_a_model_that_has_seen_a_task_gets_no_credit(task, tmp_path):
    path = tmp_path / "methanol.toml"
    path.write_text(TASK.replace("[[cases]]", 'overlaps = { gfn2-xtb = "made by this head" }\n[[cases]]', 1))
    plan = FinetunePlan(task=load_task(str(path)), data=tmp_path, models=["gfm-small"], steps=1)
    rows = run_finetune(plan)
    assert [row["overlap"] for row in rows] == ["made by this head", ""]
    (shown,) = tables({"benchmark": "finetune", "task": about(plan.task), "rows": rows})
    assert "no credit: made by this head" in shown.rows[0][2] and shown.rows[1][2] == "scratch"


def test_copies_of_test_structures_are_not_trained_on(tmp_path):
    frames = molecules(20)
    (tmp_path / "t").mkdir()
    write(tmp_path / "t" / "train.extxyz", frames)
    write(tmp_path / "t" / "test.extxyz", [relabelled(a) for a in frames[:6]])
    (tmp_path / "t.toml").write_text(TASK.replace('"methanol"', '"t"').replace("sizes = [12]", "sizes = [0]"))
    rows = run_finetune(
        FinetunePlan(
            task=load_task(str(tmp_path / "t.toml")), data=tmp_path, models=["gfm-small"], steps=1, scratch=False
        )
    )
    assert rows[0]["test_frames"] == 6 and rows[0]["size"] == 0
