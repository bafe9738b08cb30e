"""`gfm bench training` on tiny models; no test looks at how fast anything is."""

import json
import sys
from dataclasses import replace

import ase.io
import ase.neighborlist
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from labelled import need_adios
from support import ROOT

from gfm_calc.benchmarks import training
from gfm_calc.benchmarks.peers.steps import StepClock, memory, read_batches
from gfm_calc.benchmarks.report import markdown
from gfm_calc.benchmarks.training import (
    CUTOFF,
    MATCHES,
    Match,
    TrainingPlan,
    labelled,
    nearest,
    run_training,
    write_batches,
)
from gfm_calc.benchmarks.training_worker import GFMTrainee
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec, ModelConfig
from gfm_calc.data.build import build
from gfm_calc.data.tasks import FileTask
from gfm_calc.errors import ConfigError, GFMError

TINY = ModelConfig(num_features=8, num_layers=2, num_radial=4, cutoff=CUTOFF, head_width=8, repulsion=None)
MATCH = Match(key="small", name="a peer", peer="schnetpack", edges=("all", "capped"), ours={"small": TINY}, wanted=1.5)
# A peer whose energy is a learnt number times the sum of squared distances.
PEER = f"""
import argparse, sys
sys.path.insert(0, {str(ROOT / "benchmarks" / "peers")!r})
import torch
from measure import answer_jobs
from steps import clocked
class Peer:
    def __init__(self, options):
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.optimizer = torch.optim.AdamW([self.weight])
    def describe(self):
        return dict(name="peer", version="1", torch=torch.__version__, model="springs", parameters=1)
    def turn(self, batches):
        def run():
            print("libraries print")
            for b in batches:
                r = torch.tensor(b["positions"], requires_grad=True)
                source, target = torch.from_numpy(b["pairs"])
                energy = self.weight * (r[source] + torch.from_numpy(b["shifts"]) - r[target]).square().sum()
                (gradient,) = torch.autograd.grad(energy, r, create_graph=True)
                loss = (gradient + torch.from_numpy(b["forces"])).square().mean() * FACTOR
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            return float(loss)
        return run
parser = argparse.ArgumentParser()
answer_jobs(clocked(Peer, parser), parser)
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    path = tmp_path / "peer.py"
    path.write_text(PEER.replace("FACTOR", "1.0"))
    monkeypatch.setitem(training.PEERS, "schnetpack", str(path))
    return {"schnetpack": sys.executable}


def dataset_of(folder, frames):
    need_adios()
    path = folder / "frames.extxyz"
    ase.io.write(path, frames)
    return build(folder / "dataset", [FileTask(paths=(path,))], HeadSpec(name="bench"), processes=0)


def crystals():
    found = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        found.append(atoms)
    return found


def test_the_shortest_edges_of_each_atom_are_kept():
    target = np.array([1, 0, 1, 1, 0])
    kept = nearest(target, np.array([3.0, 1.0, 1.0, 2.0, 5.0]), 2)
    assert kept.tolist() == [False, True, True, True, True]
    assert nearest(target, np.ones(5), 9).all()


def test_made_structures_are_of_21_to_30_atoms_and_always_the_same():
    first, second = labelled(4), labelled(4)
    assert [len(atoms) for atoms in first] == [21, 24, 27, 30]
    for one, other in zip(first, second):
        assert (one.positions == other.positions).all() and np.isfinite(one.get_forces()).all()
        distances = one.get_all_distances()
        assert distances[~np.eye(len(one), dtype=bool)].min() > 0.7
        assert one.get_all_distances()[0].max() < 15  # nobody has flown away


@pytest.mark.parametrize("frames", [labelled(3), crystals()], ids=["molecules", "crystals"])
def test_batches_hold_every_neighbour_and_the_labels(tmp_path, frames):
    dataset = dataset_of(tmp_path, frames)
    about = write_batches(dataset, 2, tmp_path / "batches.npz")
    batches = read_batches(str(tmp_path / "batches.npz"), "all")
    assert about["count"] == 3 and [int(b["structure"].max()) + 1 for b in batches] == [2, 1]
    expected = [ase.neighborlist.neighbor_list("d", atoms, CUTOFF) for atoms in frames]
    for part, wanted in zip(batches, (np.concatenate(expected[:2]), expected[2])):
        source, target = part["pairs"]
        found = np.linalg.norm(part["positions"][source] + part["shifts"] - part["positions"][target], axis=1)
        assert np.allclose(np.sort(found), np.sort(wanted), atol=1e-6)
    assert batches[1]["energy"] == pytest.approx(frames[2].get_potential_energy(), abs=1e-6)
    assert np.allclose(batches[1]["forces"], frames[2].get_forces(), atol=1e-6)
    capped = read_batches(str(tmp_path / "batches.npz"), "capped")
    assert max(np.bincount(part["pairs"][1]).max() for part in capped) <= training.CAP
    assert about["edges_per_atom_capped"] <= about["edges_per_atom"]


def test_structures_without_forces_are_refused(tmp_path):
    (tmp_path / "in.extxyz").write_text('1\nProperties=species:S:1:pos:R:3 energy=1.0 pbc="F F F"\nH 0 0 0\n' * 2)
    plan = TrainingPlan(frames=tmp_path / "in.extxyz", count=2, matches=[MATCH])
    need_adios()
    with pytest.raises(ConfigError, match="forces"):
        run_training(plan)


def test_ours_takes_the_steps_of_the_trainer(tmp_path):
    dataset = dataset_of(tmp_path, labelled(3))
    write_batches(dataset, 2, tmp_path / "batches.npz")
    trainee = GFMTrainee(dataset.directory, TINY, 2, compile=False)
    assert trainee.describe()["parameters"] == sum(p.numel() for p in trainee.steps.trainer.model.parameters())
    before = trainee.steps.trainer.encoder.flat.weight.clone()
    clock = StepClock(trainee, str(tmp_path / "batches.npz"))
    found = clock.run({"job": "steps", "edges": "all"})
    assert found["steps"] == 2 and trainee.steps.trainer.step == 4  # the first turn is not timed
    assert not (before == trainee.steps.trainer.encoder.flat.weight).all()
    assert clock.run({"job": "steps", "edges": "all"})["steps"] == 2 and trainee.steps.trainer.step == 6
    sizes = clock.run({"job": "memory"})
    assert 0 < sizes["start_mb"] and 0 < sizes["peak_mb"] <= memory("VmHWM")
    with pytest.raises(ValueError, match="not the batches"):
        trainee.turn([{"pairs": np.zeros((2, 0), int)}] * 2)


def test_contenders_are_measured_and_compared(tmp_path, peers):
    need_adios()
    ase.io.write(tmp_path / "in.extxyz", labelled(5))
    plan = TrainingPlan(
        peers=peers, frames=tmp_path / "in.extxyz", count=4, batch=2, turns=3, compile=False, matches=[MATCH]
    )
    measured = run_training(plan)
    assert measured["structures"]["count"] == 4 and measured["structures"]["atoms_per_structure"] == 25.5
    (match,) = measured["matches"]
    kinds = [(row["mode"], row["edges"]) for row in match["rows"]]
    assert kinds == [("peer", "all"), ("peer", "capped"), ("eager", "all")]
    for row in match["rows"]:
        assert row["structures_per_s"] == pytest.approx(2e3 / row["ms_per_step"], rel=1e-2) and row["peak_mb"] > 50
    assert [found["edges"] for found in match["ratios"]] == ["all", "capped"]
    for found in match["ratios"]:
        assert found["least"] <= found["ratio"] <= found["largest"]
    about = {"command": "c", "date": "d", "machine": {"processor": "p", "cores": 1}, "versions": {}, "model_id": ""}
    text = markdown({"benchmark": "training", "format_version": 1, "provenance": about, **measured})
    assert "a peer" in text and "springs" in text and "wanted 1.5" in text


def test_a_peer_that_fails_is_named_in_one_line(tmp_path, peers):
    need_adios()
    path = tmp_path / "peer.py"
    path.write_text(path.read_text().replace("* 1.0", "* float('nan')"))
    plan = TrainingPlan(peers=peers, count=2, batch=2, turns=1, compile=False, matches=[replace(MATCH, ours={})])
    with pytest.raises(GFMError, match="schnetpack: ValueError: the loss is not finite") as caught:
        run_training(plan)
    assert "\n" not in str(caught.value)


def test_plans_that_cannot_be_run(monkeypatch):
    monkeypatch.delenv("HYDRAGNN_CHECKOUT", raising=False)
    with pytest.raises(ConfigError, match="did you mean 'hydragnn'"):
        TrainingPlan(peers={"hydragn": "python"})
    with pytest.raises(ConfigError, match="--checkout"):
        TrainingPlan(peers={"hydragnn": "python"})
    assert main(["bench", "training", "--against", "hydragn"]) != 0


def test_ours_is_never_smaller_than_what_it_is_measured_against():
    lead = MATCHES[0]
    assert lead.peer == "hydragnn" and lead.wanted == 3.0
    wide = lead.ours["as wide and deep"]
    assert (wide.num_features, wide.num_layers, wide.num_radial, wide.head_width) == (337, 2, 4, 776)
    assert all(match.wanted == 1.5 for match in MATCHES[1:])


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    need_adios()
    out = tmp_path / "training.json"
    monkeypatch.setattr(training, "run_training", lambda plan: run_training(replace(plan, matches=(MATCH,))))
    assert main(["bench", "training", "--count", "2", "--batch", "2", "--turns", "1", "-o", str(out)]) == 0
    assert "gfm-calc eager, small" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["provenance"]["command"] == "gfm bench training --count 2 --batch 2 --turns 1"
    assert found["provenance"]["threads"] == 1 and str(tmp_path) not in out.read_text()
