"""Tables over several results, between marks in the pages that discuss them."""

import pytest

from gfm_calc.benchmarks.digests import DIGESTS, beside, forgetting, labels
from gfm_calc.benchmarks.report import with_results, without_results
from gfm_calc.errors import ConfigError

OURS, CHGNET, PAINN = "gfm-small", "CHGNet, fine-tuned as long", "PaiNN of schnetpack, from scratch, as long"


def result(benchmark, weights="feed", **content):
    return {"benchmark": benchmark, "provenance": {"weights": weights}, **content}


def curves(metric, tuned, scratch, saved):
    return {
        "task": metric,
        "case": str(saved),
        "sizes": [10, 50, 250],
        "metric": metric,
        "errors": {"tuned": tuned, "scratch": scratch},
        "saved": saved,
    }


LABELS = [
    result("labels", rows=[
        curves("value_mae", [[1.0, 3.0], [1.0], [0.5]], [[8.0], [4.0], [0.9]], [True, False]),
        curves("value_mae", [[9.0], [1.0], [0.5]], [[8.0], [4.0], [0.9]], None),  # seen
    ]),
    result("labels", rows=[curves("roc_auc", [[0.6], [0.9], [0.9]], [[0.5], [0.7], [0.95]], [False, False])]),
]  # fmt: skip


def test_labels_are_counted_over_all_results_but_of_cases_that_were_seen():
    rows = labels(LABELS).rows
    assert [row[:3] for row in rows] == [
        ["the fewest", "1 of 2", "2 of 2"], ["5 times as many", "0 of 2", "2 of 2"], ["25 times as many", "-", "1 of 2"],
        ["at one of these at least", "1 of 2", "-"],
    ]  # fmt: skip
    assert 1 < float(rows[0][3]) < 25 and rows[2][3] == rows[3][3] == "-"
    assert labels([]).rows == [] and labels(LABELS, "feed").rows == rows
    assert labels(LABELS, "other").rows[0][0] == "the fewest (earlier weights)"
    with pytest.raises(ConfigError, match="two results of labels of roc_auc"):
        labels([*LABELS, LABELS[1]])


def kept(arm, **terms):
    return {"arm": arm, "case": "ethanol", "size": 50, "held_out": terms}


def test_what_old_heads_forget_is_in_percent_over_heads():
    guarded = kept("gfm-small, old heads kept", a={"forces": [0.01], "energy": [0.06, 0.08]}, b={"energy": [-0.01]})
    naive = kept("gfm-small, old heads kept (--naive)", a={"forces": [2.0], "energy": [3.0]}, b={"energy": [1.0]})
    found = forgetting(
        [result("finetune", task={"name": "rmd17"}, rows=[{"arm": OURS, "held_out": {}}, guarded, naive])]
    )
    assert found.rows == [
        ["50 structures of rmd17, ethanol", "1.0", "1.0", "0 of 1", "200", "3.0", "7.0", "1 of 2", "200"]
    ]
    assert len(found.header) == 9
    more = [{**one, "case": "aspirin"} for one in (guarded, naive)]
    found = forgetting([result("finetune", task={"name": "rmd17"}, rows=[guarded, naive, *more])], "other")
    assert [row[0] for row in found.rows] == [
        f"50 structures of rmd17, {case} (earlier weights)" for case in ("ethanol", "aspirin")
    ]
    calm = [kept(arm, a={"energy": [0.01]}) for arm in ("kept", "--naive")]
    assert forgetting([result("finetune", task={"name": "x"}, rows=calm)]).rows[0][1:5] == ["-"] * 4
    assert not forgetting([result("finetune", task={"name": "rmd17"}, rows=[guarded])]).rows


def forces(case, arm, error):
    metric = "forces_rmse_mev_per_a"
    return {"case": case, "arm": arm, "size": 100, "metric": metric, "unit": "", "errors": {metric: [error]}}


def test_forces_of_a_task_are_averaged_and_properties_stand_alone():
    arms = [(OURS, 10.0), ("scratch", 50.0), (CHGNET, 20.0)]
    mlearn = [forces(case, arm, factor * error) for case, factor in (("Li", 1), ("Cu", 3)) for arm, error in arms]
    mlearn.append(forces("Li", "gfm-small, old heads kept (--naive)", 99.0))
    about = {"task": "qm9", "size": 200, "metric": "value_mae"}
    errors = {OURS: [1.0, 3.0], "other": [99.0], "scratch": [9.0], PAINN: [5.0]}
    models = {OURS: {}, "other": {}}
    qm9 = [{**about, "case": case, "unit": "meV", "errors": errors} for case in ("U0", "gap")]
    found = beside([
        result("finetune", task={"name": "mlearn"}, rows=mlearn), result("pretraining", models=models, peers=[PAINN], rows=qm9),
        result("pretraining", models=models, rows=qm9), result("finetune", task={"name": "alone"}, rows=mlearn[:2]),
    ])  # fmt: skip
    assert [list(row) for row in found.rows] == [
        ["100 structures of mlearn, Li, Cu", "forces, RMSE, meV/Å", "20", "40", "-"],
        ["200 structures of qm9, U0", "MAE, meV", "2", "-", "5"], ["200 structures of qm9, gap", "MAE, meV", "2", "-", "5"],
    ]  # fmt: skip


def test_each_stands_between_marks_of_its_name():
    page = "a\n<!-- labels -->\nold\n<!-- end of labels -->\n<!-- forgetting -->\nkept\n<!-- end of forgetting -->\nb\n"
    text = with_results(page, iter(LABELS))
    assert "old" not in text and "| 1 of 2 |" in text and "kept" in text and text.endswith("b\n")
    assert with_results(text, LABELS) == text
    assert set(without_results(page, LABELS)) == {"finetune"} < set(DIGESTS["beside others"][1])
    with pytest.raises(ConfigError, match="no place for the results"):
        with_results("<!-- labels -->", LABELS)
    with pytest.raises(ConfigError, match="no place for the results"):
        with_results(f"{page}<!-- result -->", LABELS)
