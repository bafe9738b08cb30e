"""`gfm bench screening` on tiny models; no test looks at how fast anything is."""

import sys
from pathlib import Path

import numpy as np
import pytest
from screenings import need_pyarrow
from support import ROOT

from gfm_calc.benchmarks import screening
from gfm_calc.benchmarks.contenders import Process
from gfm_calc.benchmarks.peers.steps import read_batches
from gfm_calc.benchmarks.report import markdown
from gfm_calc.benchmarks.screening import ScreeningPlan, batches_of, lead_model, lead_structures, run_screening
from gfm_calc.benchmarks.screening_peer import write_batches
from gfm_calc.benchmarks.screening_runs import end_to_end, processes
from gfm_calc.config import ModelConfig
from gfm_calc.errors import ConfigError, GFMError

# A peer that answers without a model.
PEER = f"""
import argparse, sys
sys.path.insert(0, {str(ROOT / "benchmarks" / "peers")!r})
from measure import answer_jobs
parser = argparse.ArgumentParser()
for name in ("--checkout", "--batches", "--branches"):
    parser.add_argument(name)
def run(job):
    if job["mode"] == "single" and ANSWERS == "error":
        raise ValueError("not today")
    return dict(seconds=0.5)
answer_jobs(lambda options: (dict(name="HydraGNN", version="1", torch="2", parameters=7), run), parser)
"""
ABOUT = {
    "command": "gfm bench screening",
    "date": "2026-11-22",
    "machine": {"processor": "none", "cores": 1},
    "versions": {},
    "model_id": "",
}


@pytest.fixture
def small(monkeypatch):
    """The lead model, small, and a plan to go with it."""
    need_pyarrow()
    config = ModelConfig(num_features=8, num_layers=2, num_radial=4, head_width=8, cutoff=5.0, repulsion=None)
    monkeypatch.setattr(screening, "ModelConfig", lambda **given: config)
    return {"heads": 6, "count": 5, "max_atoms": 8, "turns": 1, "compile": False, "max_edges": 20}


def test_every_step_of_the_ablation_gives_the_numbers_of_the_first(small):
    plan = ScreeningPlan(parts=("ablation",), **small)
    found = run_screening(plan)
    rows = found["ablation"]
    assert [row["step"] for row in rows] == ["a pass a head", "encoder reuse", "head skip", "one gradient"]
    assert found["structures"]["count"] == 5 and found["structures"]["batches"] > 1
    assert all(row["energy_difference"] < 1e-5 and row["forces_difference"] < 1e-5 for row in rows)
    assert rows[0]["times_first"] == 1.0 and rows[-1]["structures_per_s"] > 0


def test_the_peer_gets_our_batches(small, tmp_path):
    plan = ScreeningPlan(**small)
    model, structures = lead_model(plan.heads), lead_structures(plan)
    batches = batches_of(structures, plan.max_edges)
    write_batches(batches, tmp_path / "batches.npz")
    read = read_batches(str(tmp_path / "batches.npz"), "all")
    assert len(model.energy_heads) == 6 and sum(len(set(batch["structure"].tolist())) for batch in read) == 5
    first = 0
    for batch, given in zip(read, batches, strict=True):
        source, target = batch["pairs"]
        lengths = np.linalg.norm(batch["positions"][source] + batch["shifts"] - batch["positions"][target], axis=1)
        assert (lengths < 5.0).all() and np.array_equal(batch["pairs"], given.edge_index.numpy())
        sizes = np.bincount(batch["structure"])
        assert [len(atoms) for atoms in structures[first : first + len(sizes)]] == sizes.tolist()
        first += len(sizes)


def test_beside_a_peer(small, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    monkeypatch.setattr("gfm_calc.benchmarks.screening_peer._SCRIPT", script)
    plan = ScreeningPlan(parts=("peer", "ablation"), peer=sys.executable, checkout=tmp_path, **small)
    script.write_text(PEER.replace("ANSWERS", "'numbers'"))
    found = run_screening(plan)
    assert [(row["what"], row["scope"]) for row in found["peer"]] == [
        (what, scope) for what in ("one head", "all heads, one gradient") for scope in ("model", "end to end")
    ]
    assert all(row["peer_per_s"] == 10.0 and row["ratio"] > 0 for row in found["peer"])
    text = markdown({"benchmark": "screening", "settings": {"heads": 6}, "provenance": ABOUT, **found})
    assert "Beside HydraGNN" in text and "one gradient, end to end" in text and "head skip" in text
    script.write_text(PEER.replace("ANSWERS", "'error'"))
    with pytest.raises(GFMError, match="not today"):
        run_screening(plan)
    with pytest.raises(ConfigError, match="--checkout"):
        run_screening(ScreeningPlan(parts=("peer",), peer=sys.executable, checkout=Path("nowhere"), **small))


def test_whole_screenings(small, packaged_model):
    plan = ScreeningPlan(candidates=300, model=packaged_model, **small)
    rows = end_to_end(plan)
    assert [row["mode"] for row in rows] == ["energies and forces", "energies"]
    for row in rows:
        assert row["candidates"] == 100 and row["atoms"] == 800 and row["atoms_per_s"] > 0
        assert set(row["shares"]) == {"waiting", "graphs", "model", "rows", "writing"}
        assert 0 < row["shares"]["model"] <= 1
    text = markdown({"benchmark": "screening", "settings": {"heads": 6}, "provenance": ABOUT, "end_to_end": rows})
    assert "from extended XYZ to Parquet" in text


def test_processes_share_a_folder(small, packaged_model):
    rows = processes(ScreeningPlan(candidates=300, model=packaged_model, **small))
    assert [row["processes"] for row in rows] == [1, 2] and rows[0]["times_one"] == 1.0


def test_plans_that_make_no_sense():
    with pytest.raises(ConfigError, match="no part 'speed'"):
        ScreeningPlan(parts=("speed",))
    with pytest.raises(ConfigError, match="at least 4"):
        ScreeningPlan(heads=2)


def test_a_contender_that_is_not_there(tmp_path):
    with pytest.raises(GFMError, match="cannot be run"):
        Process("HydraGNN", [str(tmp_path / "python")], 1)
