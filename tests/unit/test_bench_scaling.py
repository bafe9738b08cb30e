"""The scaling benchmark: a run on two processes, the performance model, the tables."""

import json
import math
import signal
import subprocess
import sys

import pytest
from training import make_datasets

from gfm_calc.benchmarks.children import children
from gfm_calc.benchmarks.performance import ASSUMED, calibrate, predict_step, project, sum_seconds
from gfm_calc.benchmarks.report import tables
from gfm_calc.benchmarks.scaling import ScalingPlan, launch, run_scaling
from gfm_calc.cli import main
from gfm_calc.errors import GFMError


def test_a_sum_costs_latency_and_bandwidth():
    assert sum_seconds(1e6, 1, 1e-3, 1e9) == 0.0
    assert math.isclose(sum_seconds(8e6, 2, 1e-3, 1e9), 2e-3 + 8e-3)
    assert sum_seconds(4, 1024, 1e-3, 1e9) < 2 * 1023 * 1e-3  # a tree for small vectors
    assert sum_seconds(1e9, 1024, 1e-6, 1e9) < 2.1  # a ring for large ones


def test_the_model_is_calibrated_on_one_process_and_foretells_two():
    weak = [
        {"processes": n, "mode": "data", "structures_per_s": 100.0 * n, "structures_a_step": 10 * n, "seconds_a_step": 0.1,
         "more_processes_than_cores": False}
        for n in (1, 2)
    ]  # fmt: skip
    machine = calibrate(weak, [{"processes": 2, "sums": {"1024": 2e-4, "1048576": 1.2e-3}}])
    assert machine["structures_per_s"] == 100.0 and machine["latency_s"] == 1e-4
    assert math.isclose(machine["bandwidth_bytes_per_s"], 1048576 / 1e-3)
    found = predict_step(machine, weak[1])
    assert 0.1 < found["predicted_s"] < 0.102 and found["measured_s"] == 0.1


def test_multitask_holds_and_sends_less_in_the_projection():
    rows = project({"structures_per_s": 100.0})["rows"]
    for data, multitask in zip(rows[::2], rows[1::2]):
        assert data["mode"] == "data" and multitask["mode"] == "multitask"
        assert multitask["state_bytes"] < data["state_bytes"] and multitask["seconds_a_step"] <= data["seconds_a_step"]
    assert rows[-1]["processes"] == 2048 * ASSUMED["processes_a_machine"]


def test_modes_and_bytes_of_two_processes(tmp_path):
    data = make_datasets(tmp_path / "datasets", (12, 10, 8))
    plan = ScalingPlan(data=data, processes=(1, 2), steps=3, structures=4, repeats=1, parts=("equality", "volume"))
    found = run_scaling(plan)
    assert found["data"] == {"heads": 3, "structures": 30, "atoms": 105}
    assert [row["mode"] for row in found["equality"]] == ["data", "multitask"]
    assert all(row["largest_difference"] < 1e-10 and row["steps"] == 50 for row in found["equality"])
    for row in found["volume"]:
        # Beside the vectors: the three numbers of every head that all processes share, and the norm.
        for measured, theory in zip(row["bytes_a_step"], row["theory_bytes_a_step"]):
            assert 0 <= measured - theory < 1000 or row["mode"] == "multitask"
        for measured, theory in zip(row["state_bytes"], row["theory_state_bytes"]):
            assert abs(measured / theory - 1) < 0.01
    result = {"benchmark": "scaling", **found}
    about = " on 3 heads with 30 structures of 105 atoms in all"
    assert [table.title.split(":")[0] for table in tables(result)] == [
        f"Training on several processes{about}", "Memory and traffic of the largest process"
    ]  # fmt: skip
    assert tables({**result, "data": None})[0].title.startswith("Training on several processes: ")
    json.dumps(found)


def test_a_run_that_fails_says_why(tmp_path):
    plan = ScalingPlan(data=tmp_path, processes=(1, 2), parts=("equality",))
    with pytest.raises(GFMError, match="holds no dataset"):
        run_scaling(plan)
    with pytest.raises(GFMError, match="a run of 2 processes failed: out of luck"):
        launch(2, [sys.executable, "-c", "import sys; sys.exit('out of luck')"], 29511)


def test_wrong_options(capsys, tmp_path):
    assert main(["bench", "scaling", "--data", str(tmp_path), "--parts", "wek"]) == 1
    assert "no part 'wek'" in capsys.readouterr().err
    assert main(["bench", "scaling", "--data", str(tmp_path), "--processes", "2,4"]) == 1
    assert "begin with 1" in capsys.readouterr().err


def test_no_child_outlives_its_benchmark():
    """Neither where one that comes after it cannot be started, nor where the wait is interrupted."""
    with pytest.raises(FileNotFoundError), children() as started:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        started.append(subprocess.Popen(["no-such-program"]))
    with pytest.raises(KeyboardInterrupt), children() as waited:
        waited.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        raise KeyboardInterrupt
    assert [process.returncode for process in (*started, *waited)] == [-signal.SIGKILL] * 2
