"""Tables over several results, for the pages that discuss them; each stands there between marks of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import fmean, median
from typing import Any

from gfm_calc.benchmarks import glance
from gfm_calc.benchmarks.finetuning import SCRATCH
from gfm_calc.benchmarks.labels import MORE_IS_BETTER, TIMES, needed
from gfm_calc.benchmarks.tables import Table, figure

Result = Mapping[str, Any]
_NAIVE = "--naive"
_PEERS = ("CHGNet", "PaiNN")
_MEASURED = {
    "forces_mae_mev_per_a": "forces, MAE, meV/Å",
    "forces_rmse_mev_per_a": "forces, RMSE, meV/Å",
}
_SAID = 5.0  # %, of an old head: beyond, it is counted


def labels(results: Iterable[Result], weights: str = "") -> Table:
    """How many labels pre-training saves, over all cases of all results that no model has seen the labels of."""
    rows = [row for result in _of(results, "labels", weights) for row in result["rows"] if row["saved"] is not None]
    found = [
        [row["saved"][number] for row in rows] for number in range(min((len(row["saved"]) for row in rows), default=0))
    ]
    table = []
    for number, saved in enumerate([*found, []] if found else []):
        least = "the fewest" if number == 0 else f"{TIMES**number} times as many"
        better = sum(_is_better(row, number) for row in rows)
        worth = figure(median(needed(row, number) / row["sizes"][number] for row in rows)) if saved else "-"
        many = f"{sum(saved)} of {len(saved)}" if saved else "-"
        table.append([least, many, f"{better} of {len(rows)}", worth])
    if found:
        either = sum(any(row["saved"]) for row in rows)
        table.append(["at one of these at least", f"{either} of {len(rows)}", "-", "-"])
    header = ["labels", f"as good as random weights with {TIMES} times as many: cases",
              "better than random weights with as many: cases", "random weights need for one label of ours: median"]  # fmt: skip
    return Table("Labels that pre-training saves", header, table)


def _is_better(row: Mapping[str, Any], number: int) -> bool:
    ours, theirs = (fmean(row["errors"][way][number]) for way in ("tuned", "scratch"))
    return ours > theirs if row["metric"] in MORE_IS_BETTER else ours < theirs


def forgetting(results: Iterable[Result], weights: str = "") -> Table:
    """Errors of old heads on labelled structures that were held out from their training, with replay and without."""
    table = []
    for result in _of(results, "finetune", weights):
        kept = {row["arm"]: row for row in result["rows"] if row.get("held_out")}
        guarded = next((row for arm, row in kept.items() if _NAIVE not in arm), None)
        naive = next((row for arm, row in kept.items() if _NAIVE in arm), None)
        if guarded is None or naive is None:
            continue
        row = [f"{guarded['size']} structures of {result['task']['name']}, {guarded['case']}"]
        for term in ("forces", "energy"):
            grown, loose = (_grown(one["held_out"], term) for one in (guarded, naive))
            over = sum(value > _SAID for value in grown)
            row += [f"{fmean(grown):.1f}", f"{max(grown):.1f}", f"{over} of {len(grown)}", f"{fmean(loose):.0f}"]
        table.append(row)
    of_term = ("mean, %", "worst head, %", f"heads over {_SAID:g} %", f"mean with `{_NAIVE}`, %")
    header = ["after", *(f"{term}: {what}" for term in ("forces", "energies") for what in of_term)]
    return Table("What old heads forget", header, table)


def _grown(held_out: Mapping[str, Mapping[str, Any]], term: str) -> list[float]:
    """In %, of each head."""
    return [100 * fmean(errors[term]) for errors in held_out.values() if term in errors]


def beside(results: Iterable[Result], weights: str = "") -> Table:
    """Fine-tuned models beside CHGNet and PaiNN in as many seconds; forces of the cases of one task are averaged."""
    cases: dict[tuple[str, ...], list[dict[str, float]]] = {}
    names: dict[tuple[str, ...], list[str]] = {}
    for task, row, errors in _compared(list(results), weights):
        key: tuple[str, ...] = (task, str(row["size"]), row["metric"], row["unit"], row["case"] if row["unit"] else "")
        cases.setdefault(key, []).append(errors)
        names.setdefault(key, []).append(row["case"])
    table = []
    for key, found in cases.items():
        task, size, metric, unit, _ = key
        means = [[one[arm] for one in found if arm in one] for arm in ("ours", *_PEERS)]
        shown = [figure(fmean(values)) if len(values) == len(found) else "-" for values in means]
        own = [name for name in names[key] if name != task.replace("_", " ") and not name.startswith("fold ")]
        measured = _MEASURED.get(metric) or ", ".join(
            filter(None, (metric.replace("value_mae", "MAE").replace("_", " "), unit))
        )
        table.append([f"{size} structures of {task}{', ' * bool(own)}{', '.join(own)}", measured, *shown])
    header = ["task", "error", "ours", "CHGNet, fine-tuned", "PaiNN of schnetpack, from scratch"]
    return Table("Beside others, in as many seconds", header, table)


def _compared(results: list[Result], weights: str) -> Iterator[tuple[str, Mapping[str, Any], dict[str, float]]]:
    """(task, row with its size, metric, unit and case, errors of "ours" and of peers) of each case that has a peer."""
    for result in _of(results, "finetune", weights):
        arms: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
        for row in result["rows"]:
            arms.setdefault((row["case"], row["size"]), {})[_arm(row["arm"])] = row
        for of_case in arms.values():
            if "ours" in of_case and any(peer in of_case for peer in _PEERS):
                errors = {arm: fmean(row["errors"][row["metric"]]) for arm, row in of_case.items()}
                yield result["task"]["name"], of_case["ours"], errors
    for result in _of(results, "pretraining", weights):
        for row in result["rows"] if result.get("peers") else ():
            yield row["task"], row, {_arm(arm): fmean(values) for arm, values in row["errors"].items()}


def _arm(name: str) -> str:
    return next((peer for peer in _PEERS if peer in name), SCRATCH if name == SCRATCH else "ours")


def _of(results: Iterable[Result], benchmark: str, weights: str) -> Iterator[Result]:
    """Those of a benchmark; with weights, of these alone."""
    for result in results:
        if result["benchmark"] == benchmark and (not weights or result["provenance"]["weights"] in ("", weights)):
            yield result


# name of the marks -> (table of results and weights, the benchmarks that it is of)
DIGESTS: Mapping[str, tuple[Callable[[Iterable[Result], str], Table], tuple[str, ...]]] = {
    "glance": (glance.glance, tuple(glance.wanted())),
    "labels": (labels, ("labels",)),
    "forgetting": (forgetting, ("finetune",)),
    "beside others": (beside, ("finetune", "pretraining")),
}
