"""Tables over several results, for the pages that discuss them; each stands there between marks of its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import fmean, median
from typing import Any

from gfm_calc.benchmarks import glance
from gfm_calc.benchmarks.finetuning import SCRATCH
from gfm_calc.benchmarks.labels import MORE_IS_BETTER, TIMES, needed
from gfm_calc.benchmarks.report_training import FORGOTTEN
from gfm_calc.benchmarks.tables import Table, figure
from gfm_calc.errors import ConfigError

Result = Mapping[str, Any]
_NAIVE = "--naive"
_PEERS = ("CHGNet", "PaiNN")
_FORCES = {"forces_mae_mev_per_a": "forces, MAE, meV/Å", "forces_rmse_mev_per_a": "forces, RMSE, meV/Å"}


def labels(results: Iterable[Result], weights: str = "") -> Table:
    """How many labels pre-training saves, over all cases of all results that no model has seen the labels of.

    Raises:
        ConfigError: two results have one case.
    """
    chosen = list(_of(results, "labels", weights))
    rows = [row for result, _ in chosen for row in result["rows"] if row["saved"] is not None]
    for case, count in Counter((row["task"], row["case"]) for row in rows).items():
        if count > 1:
            raise ConfigError(f"two results of labels of {', '.join(case)}: leave one of them out")
    remark = next((found for _, found in chosen if found), "")
    table, steps = [], min((len(row["saved"]) for row in rows), default=0)
    for number in range(steps + bool(rows)):
        least = "the fewest" if number == 0 else f"{TIMES**number} times as many"
        better = sum(_is_better(row, number) for row in rows)
        cells = ["-", f"{better} of {len(rows)}", "-"]
        if number < steps:
            cells[0] = f"{sum(row['saved'][number] for row in rows)} of {len(rows)}"
            cells[2] = figure(median(needed(row, number) / row["sizes"][number] for row in rows))
        table.append([least + remark, *cells])
    if rows:
        table.append(["at one of these at least", f"{sum(any(row['saved']) for row in rows)} of {len(rows)}", "-", "-"])
    header = ["labels", f"as good as random weights with {TIMES} times as many: cases",
              "better than random weights with as many: cases", "random weights need for one label of ours: median"]  # fmt: skip
    return Table("Labels that pre-training saves", header, table)


def _is_better(row: Mapping[str, Any], number: int) -> bool:
    ours, theirs = (fmean(row["errors"][way][number]) for way in ("tuned", "scratch"))
    return ours > theirs if row["metric"] in MORE_IS_BETTER else ours < theirs


def forgetting(results: Iterable[Result], weights: str = "") -> Table:
    """Errors of old heads on labelled structures that were held out from their training, with replay and without."""
    table = []
    for result, remark in _of(results, "finetune", weights):
        cases: dict[tuple[str, int], dict[bool, Mapping[str, Any]]] = {}
        for row in result["rows"]:
            if row.get("held_out"):
                cases.setdefault((row["case"], row["size"]), {})[_NAIVE in row["arm"]] = row["held_out"]
        for (case, size), kept in cases.items():
            if len(kept) == 2:
                what = f"{size} structures of {result['task']['name']}, {case}{remark}"
                table.append([what, *_grown(kept, "forces"), *_grown(kept, "energy")])
    of_term = ("mean, %", "worst head, %", f"heads over {FORGOTTEN:g} %", f"mean with `{_NAIVE}`, %")
    header = ["after", *(f"{term}: {what}" for term in ("forces", "energies") for what in of_term)]
    return Table("What old heads forget", header, table)


def _grown(kept: Mapping[bool, Mapping[str, Any]], term: str) -> list[str]:
    """Over heads: mean, worst, how many are over `FORGOTTEN`, and the mean without replay; dashes of a term without labels."""
    grown, naive = (
        [100 * fmean(errors[term]) for errors in kept[which].values() if term in errors] for which in (False, True)
    )
    if not grown or not naive:
        return ["-"] * 4
    over = sum(value > FORGOTTEN for value in grown)
    return [f"{fmean(grown):.1f}", f"{max(grown):.1f}", f"{over} of {len(grown)}", f"{fmean(naive):.0f}"]


def beside(results: Iterable[Result], weights: str = "") -> Table:
    """Fine-tuned models, the first of each result, beside CHGNet and PaiNN in as many seconds; forces are averaged over the
    cases of a task."""
    cases: dict[tuple[str, ...], list[tuple[str, dict[str, float]]]] = {}
    for task, row, errors in _compared(list(results), weights):
        metric, case = row["metric"], row["case"]
        key = (task, str(row["size"]), metric, row["unit"], "" if metric in _FORCES else case)
        cases.setdefault(key, []).append((case, errors))
    table = []
    for (task, size, metric, unit, _), found in cases.items():
        means = [[errors[arm] for _, errors in found if arm in errors] for arm in ("ours", *_PEERS)]
        shown = [figure(fmean(values)) if len(values) == len(found) else "-" for values in means]
        own = [case for case, _ in found if case != task.replace("_", " ") and not case.startswith("fold ")]
        plain = metric.replace("value_mae", "MAE").replace("_", " ") + (f", {unit}" if unit not in ("", "1") else "")
        table.append([f"{size} structures of {', '.join([task, *own])}", _FORCES.get(metric, plain), *shown])
    header = ["task", "error", "ours", "CHGNet, fine-tuned", "PaiNN of schnetpack, from scratch"]
    return Table("Beside others, in as many seconds", header, table)


def _compared(results: list[Result], weights: str) -> Iterator[tuple[str, Mapping[str, Any], dict[str, float]]]:
    """(task, with a remark on earlier weights; row with its size, metric, unit and case; errors of "ours" and of peers) of each
    case that has a peer."""
    for result, remark in _of(results, "finetune", weights):
        arms: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
        for row in result["rows"]:
            of_case = arms.setdefault((row["case"], row["size"]), {})
            of_case.setdefault(_arm(row["arm"]), row)  # the plain model is the first of ours
        for of_case in arms.values():
            if "ours" in of_case and any(peer in of_case for peer in _PEERS):
                errors = {arm: fmean(row["errors"][row["metric"]]) for arm, row in of_case.items()}
                yield result["task"]["name"] + remark, of_case["ours"], errors
    for result, remark in _of(results, "pretraining", weights):
        own = [next(iter(result["models"])), *result.get("peers", [])]
        for row in result["rows"] if len(own) > 1 else ():
            yield row["task"] + remark, row, {_arm(arm): fmean(row["errors"][arm]) for arm in own}


def _arm(name: str) -> str:
    return next((peer for peer in _PEERS if peer in name), SCRATCH if name == SCRATCH else "ours")


def _of(results: Iterable[Result], benchmark: str, weights: str) -> Iterator[tuple[Result, str]]:
    """Those of a benchmark, and a remark on those that were measured with other weights than these."""
    for result in results:
        if result["benchmark"] == benchmark:
            is_earlier = weights and result["provenance"]["weights"] not in ("", weights)
            yield result, " (earlier weights)" * bool(is_earlier)


# name of the marks -> (table of results and weights, the benchmarks that it is of)
DIGESTS: Mapping[str, tuple[Callable[[Iterable[Result], str], Table], tuple[str, ...]]] = {
    "glance": (glance.glance, tuple(glance.wanted())),
    "labels": (labels, ("labels",)),
    "forgetting": (forgetting, ("finetune",)),
    "beside others": (beside, ("finetune", "pretraining")),
}
