"""Downstream tasks: a real one, of a few steps."""

import pytest
from finetuning import molecules, write

from gfm_calc.benchmarks.finetune_tasks import load_task
from gfm_calc.benchmarks.finetuning import FinetunePlan, about, run_finetune
from gfm_calc.benchmarks.report import tables
from gfm_calc.errors import ConfigError, InputFileError

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


def test_what_cannot_be_run(task, tmp_path):
    plan = FinetunePlan(task=task, data=tmp_path, models=["gfm-small"])
    with pytest.raises(ConfigError, match="no case 'on'.*did you mean 'one'"):
        run_finetune(FinetunePlan(task=task, data=tmp_path, models=["gfm-small"], cases=["on"]))
    (tmp_path / "methanol" / "test.extxyz").unlink()
    with pytest.raises(InputFileError, match=r"holds neither methanol/test.extxyz nor test.extxyz"):
        run_finetune(plan)
    (tmp_path / "bad.toml").write_text(TASK.replace("citation", "citations"))
    with pytest.raises(ConfigError, match="did you mean 'citation'"):
        load_task(str(tmp_path / "bad.toml"))
