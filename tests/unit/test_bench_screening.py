"""`gfm bench screening` on tiny models; no test looks at how fast anything is."""

import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from screenings import need_pyarrow
from support import ROOT, random_model
from training import make_datasets

from gfm_calc.benchmarks import screening, screening_worth
from gfm_calc.benchmarks.contenders import Process
from gfm_calc.benchmarks.peers.steps import read_batches
from gfm_calc.benchmarks.report import markdown
from gfm_calc.benchmarks.roofline import Counted, roofline
from gfm_calc.benchmarks.screening import ScreeningPlan, batches_of, lead_model, lead_structures, run_screening
from gfm_calc.benchmarks.screening_peer import write_batches
from gfm_calc.benchmarks.screening_runs import end_to_end, processes
from gfm_calc.benchmarks.screening_scale import Every, precision
from gfm_calc.checkpoint import save_model
from gfm_calc.config import ModelConfig
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.graph import AtomicGraph
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor
from gfm_calc.screening.plan import open_streams
from gfm_calc.train.cli import find_recipe
from gfm_calc.train.preparation import load_heads

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
    return dict(seconds=0.5, flops=5 * 10**9)
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
    assert all(row["peer_gflop"] == 1.0 and row["ours_gflop"] > 0 for row in found["peer"])
    assert found["peer"][0]["ours_gflop"] < found["peer"][2]["ours_gflop"]  # the other heads' work
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


# ---- what it is worth, how far it goes ----


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(datasets, recipe, a random model with heads of them)."""
    need_pyarrow()
    folder = tmp_path_factory.mktemp("labelled")
    data = make_datasets(folder / "data", (120, 30, 25))
    model = random_model(dtype=torch.float32)
    specs = [replace(model.specs["first"], name=name, periodicity=("bulk",)) for name in ("crystals", "second")]
    save_model(GFMModel(model.config, specs).requires_grad_(False).eval(), folder / "model")
    recipe = folder / "recipe.toml"
    recipe.write_text("[data]\ntest = 0.3\nvalidation = 0.1\n")
    return data, recipe, folder / "model"


def test_errors_fall_where_flagged_rows_are_dropped(labelled, small, monkeypatch, tmp_path):
    """The figures are those of numpy on the same predictions; a signal that is the error itself is the best there is."""
    data, recipe, model = labelled
    monkeypatch.setattr("gfm_calc.benchmarks.screening_worth._TOPS", (3, 5))
    plan = ScreeningPlan(
        parts=("flags", "discovery"), data=data, recipe=str(recipe), model=str(model), head="crystals", **small
    )
    found = run_screening(plan)
    spread = next(row for row in found["flags"] if row["signal"] == "force_spread")
    assert spread["beside"] == ["second"] and spread["structures"] >= 20
    assert [part["dropped"] for part in spread["kept"]] == [0.1, 0.2, 0.5]
    for part in spread["kept"]:
        assert part["energy_least"] <= part["energy_mae"] and part["forces_least"] <= part["forces_mae"]
        assert part["energy_least"] < spread["energy_mae"]
    assert {row["signal"] for row in found["flags"] if "flagged" in row} == {
        "remark: elements", "remark: boundaries", "remark: close atoms", "remark: distance"
    }  # fmt: skip
    assert next(row for row in found["flags"] if row["signal"] == "uncertainty")["rows"] == 0
    heads = {head.spec.name: head for head in load_heads(find_recipe(str(recipe), [f'data.path="{data}"']), None)}
    records = list(heads["crystals"].dataset.read(heads["crystals"].sides["test"]).records())
    predicted = Predictor(str(model), ["crystals"]).predict([record.structure() for record in records])
    errors = [abs(p["crystals"].energy.item() - r.energy) / len(r) for p, r in zip(predicted, records)]
    assert spread["energy_mae"] == pytest.approx(1e3 * np.mean(errors), rel=5e-3)
    whole = [row for row in found["discovery"] if row["scope"] == "structures" and not row["filter"]]
    assert len(whole) == 1 and whole[0]["kept"] == whole[0]["structures"] == len(records)
    filtered = [row for row in found["discovery"] if row["filter"].startswith("force_spread <")]
    assert filtered and all(row["kept"] < row["structures"] for row in filtered)
    text = markdown({"benchmark": "screening", "settings": {"heads": 6}, "provenance": ABOUT, **found})
    assert "Withheld crystals ranked" in text and "when the most doubtful are dropped" in text


def test_a_perfect_ranking_is_recalled(labelled):
    """Recall and correlation against orders that are known."""
    reference = np.array([0.3, -1.0, 0.5, -2.0, 0.1, 0.9])
    several = np.arange(6)
    order = np.argsort(reference)
    assert screening_worth._recall(several, order.tolist(), reference, 3) == 1.0
    assert screening_worth._recall(several, order[::-1].tolist(), reference, 3) == 0.0
    assert screening_worth._recall(several, [1, 5, 2], reference, 3) == pytest.approx(1 / 3, abs=1e-3)
    assert (
        screening_worth._rank(reference, 3 * reference) == 1.0 and screening_worth._rank(reference, -reference) == -1.0
    )
    assert screening_worth._left(np.array([1.0, 2.0, 9.0, 4.0]), np.array([0.0, 1.0, 3.0, 2.0]), 0.25) == 2330.0


def test_elements_of_the_labels(labelled):
    data, recipe, _ = labelled
    heads = {head.spec.name: head for head in load_heads(find_recipe(str(recipe), [f'data.path="{data}"']), None)}
    lowest = screening_worth.labelled_elements(heads["crystals"])
    frames = list(ase.io.iread(data.parent / "crystals.extxyz"))
    copper = [atoms.get_potential_energy() / len(atoms) for atoms in frames if set(atoms.symbols) == {"Cu"}]
    assert lowest["Cu"] == pytest.approx(min(copper), abs=1e-9) and set(lowest) == {"Cu", "Al", "Ni"}


def test_parts_that_lack_what_they_need(small):
    with pytest.raises(ConfigError, match="--data"):
        run_screening(ScreeningPlan(parts=("flags",), **small))
    with pytest.raises(ConfigError, match="--candidates-file"):
        run_screening(ScreeningPlan(parts=("million",), **small))


def test_a_million_from_a_sample(small, packaged_model, tmp_path):
    plan_file = tmp_path / "few.toml"
    plan_file.write_text(
        '[[candidates]]\nkind = "substitution"\nprototypes = ["rocksalt"]\nreplace = { Na = ["cations"], Cl = ["anions"] }\n'
    )
    plan = ScreeningPlan(parts=("million",), candidates_file=plan_file, sampled=40, model=packaged_model, **small)
    found = run_screening(plan)["million"]
    assert found["candidates"] > 200 and 40 <= found["sampled"] <= 45 and found["ok"] > 30
    assert found["minutes"]["2 processes"] < found["minutes"]["1 process"] and found["billion"]["hours"] > 0
    text = markdown({"benchmark": "screening", "settings": {"heads": 6}, "provenance": ABOUT, "million": found})
    assert "few.toml" in text and "(projected)" in text


def test_all_of_a_plan(small, packaged_model, tmp_path, monkeypatch):
    monkeypatch.setattr("gfm_calc.benchmarks.screening_whole._CHUNK", 50)
    plan_file = tmp_path / "few.toml"
    plan_file.write_text(
        '[[candidates]]\nkind = "substitution"\nprototypes = ["rocksalt"]\nreplace = { Na = ["cations"], Cl = ["anions"] }\n'
    )
    total = len(open_streams([plan_file]))
    plan = ScreeningPlan(parts=("million",), candidates_file=plan_file, processes=1, model=packaged_model, **small)
    found = run_screening(plan)["whole"]
    assert found["candidates"] == total == sum(found["rows"].values()) and found["rows"]["ok"] > total / 2
    assert len(found["peak_mb"]) == 1 and found["peak_mb"][0] > 100 and 0 < found["cpu_minutes"] < 2 * found["minutes"]
    assert found["billion"]["nodes"]["10"] < found["billion"]["nodes"]["1"]
    text = markdown({"benchmark": "screening", "settings": {"heads": 6}, "provenance": ABOUT, "whole": found})
    assert f"{total:,} crystals, energies alone, 1 process" in text
    with pytest.raises(GFMError, match="ended with"):
        run_screening(replace(plan, head="none"))


def test_every_nth_candidate_is_one_of_the_stream():
    everything = open_streams([ROOT / "examples" / "million.toml"])
    assert len(everything) >= 1_000_000
    few = Every(everything, len(everything) // 7)
    sources = [source for source, _ in few.made(0, 7)]
    assert sources[3] == next(everything.made(3 * few.step, 3 * few.step + 1))[0]
    assert len({source.split()[0] for source in sources}) >= 3


def test_precision_is_measured_against_float64(small, packaged_model):
    rows = precision(ScreeningPlan(**{**small, "count": 2}, model=packaged_model, molecule_head="gfn2-xtb"))
    assert [row["dtype"] for row in rows] == ["float64", "float32", "bfloat16"]
    assert rows[0]["energy_largest"] == 0.0 and 0 < rows[1]["energy_largest"] < 0.1 < rows[2]["energy_largest"]
    assert 0 < rows[1]["forces_largest"] < rows[2]["forces_largest"]


def test_operations_are_counted():
    a, b, c = torch.ones(3, 4), torch.ones(4, 5), torch.ones(5)
    with Counted() as count:
        torch.addmm(c, a, b)
    assert count.flops == 2 * 3 * 4 * 5 and count.bytes == 4 * (12 + 20 + 5 + 15)
    with Counted() as count:
        (a + a).view(-1).t()
    assert count.flops == 12 and count.bytes == 4 * 36
    graphs = [AtomicGraph.build(bulk("Cu", cubic=True), 4.0)]
    found = roofline(random_model(dtype=torch.float32), "first", graphs, turns=1)
    energies, forces = found["rows"]
    assert 0 < energies["gflop"] < forces["gflop"] and 0 < energies["share"] < 1 and set(found["ceilings"]) == {
        "memory_gb_per_s", "cache_gb_per_s", "gemm_gflop_per_s"
    }  # fmt: skip


def test_the_papers_workload_as_a_screening(small):
    plan = ScreeningPlan(parts=("workload",), **{**small, "count": 16})
    rows = run_screening(plan)["workload"]
    assert [(row["dtype"], row["heads"]) for row in rows] == [(d, h) for d in ("float32", "float64") for h in (1, 6)]
    assert all(row["structures_per_s"] > 0 and row["device"] == "cpu" for row in rows)
    text = markdown({"benchmark": "screening", "settings": {"heads": 6}, "provenance": ABOUT, "workload": rows})
    assert "2 to 8 random atoms" in text
