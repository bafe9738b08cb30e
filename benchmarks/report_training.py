"""Tables of the benchmarks of the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from gfm_calc.benchmarks.finetuning import SCRATCH
from gfm_calc.benchmarks.labels import needed
from gfm_calc.benchmarks.tables import Table, figure

FORGOTTEN = 5  # %: more is too much
_TINY = 1e-9  # an error that is none


def training(result: Mapping[str, Any]) -> Iterator[Table]:
    about, detail = result["structures"], []
    size = f"{about['count']} structures of {about['atoms_per_structure']:.3g} atoms, {about['edges_per_atom']:.3g} edges an atom"
    for match in result["matches"]:
        ratios = {(found["ours"], found["edges"]): found for found in match["ratios"]}
        kinds = list(dict.fromkeys(found["edges"] for found in match["ratios"]))
        rows = []
        for row in match["rows"]:
            name = row["contender"] + (", 20 neighbours at most" if row["edges"] == "capped" else "")
            found = [ratios.get((row["contender"], kind)) for kind in kinds]
            shown = ["-" if f is None else f"{f['ratio']:.2f} ({f['least']:.2f} to {f['largest']:.2f})" for f in found]
            rows.append([name, figure(row["structures_per_s"]), figure(row["ms_per_step"]), *shown])
            memory = [figure(row["peak_mb"]), figure(row["start_mb"])]
            detail.append([match["name"], name, row["model"], f"{row['parameters']:,}", *memory])
        columns = [
            f"times the peer{'' if kind == 'all' else ' with 20 neighbours'}, wanted {match['wanted']:g}"
            for kind in kinds
        ]
        yield Table(f"Training against {match['name']}: {size}", ["", "structures/s", "ms a step", *columns], rows)
    header = ["against", "", "model", "parameters", "peak MB", "of which before the first step"]
    yield Table("What was trained, and the memory of its process", header, detail, detail=True)


def multitask(result: Mapping[str, Any]) -> Iterator[Table]:
    about = result.get("about", {})
    start = f", all begun with the encoder of {about['start']}" if about.get("start") else ""
    seeds = about.get("seeds", 0)
    runs = "" if not seeds else f": {seeds} seeds, means" if seeds > 1 else ": one seed"
    count = len(result["heads"])
    yield _alone_and_together(
        result, f"Errors of {count} heads trained alone and together{start}, the same structures of each seen{runs}"
    )


def alone(result: Mapping[str, Any]) -> Iterator[Table]:
    yield _alone_and_together(
        result, "Heads of the model (together) and networks of its size that saw one head alone, as often: one seed"
    )


def _alone_and_together(result: Mapping[str, Any], title: str) -> Table:
    rows = []
    for row in sorted(result["heads"], key=lambda r: r["train_structures"]):
        shown = [row["head"], f"{row['train_structures']:,}"]
        for name in ("energy_mae_mev_per_atom", "forces_mae_mev_per_a"):
            if name in row["gain"]:
                means = [figure(sum(row[kind][name]) / len(row[kind][name])) for kind in ("alone", "together")]
                gains = [1 - together / alone for together, alone in zip(row["together"][name], row["alone"][name])]
                among = f" ({100 * min(gains):+.0f} to {100 * max(gains):+.0f})" if len(gains) > 1 else ""
                shown += [*means, f"{100 * row['gain'][name]:+.0f}{among}"]
            else:
                shown += ["-", "-", "-"]
        rows.append(shown)
    header = ["head", "training structures", "energy alone, meV/atom", "together", "gain, %", "forces alone, meV/Å",
              "together", "gain, %"]  # fmt: skip
    return Table(title, header, rows)


def ablation(result: Mapping[str, Any]) -> Iterator[Table]:
    rows = []
    base = result["variants"][0]
    for row in result["variants"]:
        ratios = [
            f"{row['ratios'][term]:.3f}" if term in row["ratios"] else "-" for term in ("energy", "forces", "stress")
        ]
        rows.append([row["variant"], ", ".join(row["settings"]) or "-", f"{row['parameters']:,}",
                     f"{row['seconds'] / base['seconds']:.2f}", *ratios])  # fmt: skip
    header = ["", "set", "parameters", "time", "energy error", "force error", "stress error"]
    seeds = f"{result['seeds']} seed{'s' * (result['seeds'] != 1)}"
    title = result.get("title") or "Changes of a recipe"
    about = f"{title}: validation errors over the recipe's own (geometric mean over heads, {seeds})"
    yield Table(about, header, rows)
    detail = [
        [row["variant"], head, *(figure(sum(values) / len(values)) for values in errors.values())]
        for row in result["variants"]
        for head, errors in row["errors"].items()
        if len(errors) == 2
    ]
    yield Table(f"{title}, head by head", ["", "head", "energy, meV/atom", "forces, meV/Å"], detail, detail=True)


def _means(rows: Sequence[Mapping[str, Any]], metric: str, others: Sequence[str]) -> Iterator[list[str]]:
    """A row for each size and arm over the cases with the metric of the task, where there are several; of another model only
    where it has all of them."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        # Values of properties have units of their own, which no mean is taken over.
        if row.get("metric", metric) == metric and row["errors"].get(metric) and not metric.startswith("value"):
            groups.setdefault((row["size"], row["arm"]), []).append(row)
    for (size, arm), group in groups.items():
        if len(group) > 1:
            mean = fmean(fmean(row["errors"][metric]) for row in group)
            known = [[row["published"].get(model) for row in group] for model in others]
            shown = [figure(None if None in values else fmean(values)) for values in known]
            yield [f"mean of {len(group)}", str(size or "all"), arm, figure(mean), "-", *shown, "", ""]


def finetune(result: Mapping[str, Any]) -> Iterator[Table]:
    task, rows = result["task"], []
    others = list(dict.fromkeys(model for row in result["rows"] for model in row["published"]))
    for row in result["rows"]:
        metric = row.get("metric", task["metric"])  # the first results had one for all cases
        values = row["errors"].get(metric, [])
        mean = sum(values) / len(values) if values else None
        spread = f"{max(values) - min(values):.2g}" if len(values) > 1 else "-"
        shown = [figure(row["published"].get(model)) for model in others]
        what = f"{row['case']}, {row['unit']}" if row.get("unit") else row["case"]
        what += "" if metric == task["metric"] else f": {metric.replace('_', ' ')}"
        arm = f"{row['arm']} (no credit: {row['overlap']})" if row.get("overlap") else row["arm"]
        arm += f": {row['version']}" if "version" in row else ""
        rows.append([what, str(row["size"] or "all"), arm, figure(mean), spread, *shown, f"{row['steps']}",
                     figure(row["seconds"])])  # fmt: skip
    rows += _means(result["rows"], task["metric"], others)
    header = ["case", "structures", "", task["metric"].replace("_", " "), "spread", *others, "steps", "s"]
    yield Table(task["title"] + (f". {task['note']}" if task.get("note") else ""), header, rows)
    lost, grown = list[list[str]](), list[list[str]]()
    for row in result["rows"]:
        about = [row["case"], str(row["size"] or "all"), row["arm"]]
        if row.get("forgetting"):
            lost.append([*about, str(len(row["forgetting"])), *_forgotten(row["forgetting"])])
        if row.get("held_out"):
            terms = [
                {head: e[term] for head, e in row["held_out"].items() if term in e} for term in ("forces", "energy")
            ]
            grown.append([*about, str(len(row["held_out"])), *(cell for term in terms for cell in _forgotten(term))])
    of_one = ["mean, %", "worst, %", "worst head", f"heads over {FORGOTTEN} %"]
    yield Table(
        "What old heads forget: growth of the force errors on their cards, if what moved on structures like theirs, or made for "
        "the purpose, is added as independent",
        ["case", "structures", "", "old heads", *of_one], lost,
    )  # fmt: skip
    yield Table(
        "What old heads forget on labelled frames that were held out from their training: growth of the mean absolute errors",
        ["case", "structures", "", "old heads", *(f"{term}: {what}" for term in ("forces", "energies") for what in of_one)],
        grown,
    )  # fmt: skip


def labels(result: Mapping[str, Any]) -> Iterator[Table]:
    """Means over seeds, with the least and the largest; a task may have several cases."""
    rows, counted = [], [row for row in result["rows"] if row["saved"] is not None]
    for row in result["rows"]:
        metric = row["metric"].replace("_", " ") + (f", {row['unit']}" if row["unit"] else "")
        curves = [" / ".join(_with_range(values) for values in row["errors"][way]) for way in ("tuned", "scratch")]
        said = (
            [f"no credit: {row['overlap']}"] if row["saved"] is None else ["yes" if s else "no" for s in row["saved"]]
        )
        frames = row["test_frames"]
        counts = [
            " / ".join(map(str, of_sizes))
            for of_sizes in (row["sizes"], frames[:1] if len(set(frames)) == 1 else frames)
        ]
        worth = ["-"] if row["saved"] is None else [_worth(row, number) for number in range(len(row["saved"]))]
        rows.append([f"{row['task']}, {row['case']}", metric, *counts, *curves, " / ".join(said), " / ".join(worth)])
    seeds = f"{result['seeds']} seeds, means and ranges" if result["seeds"] > 1 else "one seed"
    tasks = len({row["task"] for row in counted})
    found = [sum(saved) for saved in zip(*(row["saved"] for row in counted))]
    good = " and ".join(map(str, found)) or "0"
    title = f"Labels that pre-training saves: as good as random weights with the next more labels in {good} "
    title += f"of {len(counted)} cases ({tasks} task{'s' * (tasks != 1)}): {seeds}"
    if result.get("steps"):
        title += f"; {result['steps']} steps each"
    if result.get("max_minutes"):
        title += f"; {result['max_minutes']:g} minutes of one thread for each run: few steps where structures are large"
    yield Table(
        title,
        [
            "task, case",
            "error",
            "labelled structures",
            "test structures",
            "tuned",
            "random weights",
            "as good",
            "a label is worth",
        ],
        rows,
    )


def pretraining(result: Mapping[str, Any]) -> Iterator[Table]:
    """Means over seeds, with the least and the largest; the last row is over the cases that no model has seen."""
    rows: list[list[str]] = []
    peers = result.get("peers", [])
    arms = [*result["models"], SCRATCH, *peers]
    for row in result["rows"]:
        metric = row["metric"].replace("_", " ") + (f", {row['unit']}" if row["unit"] else "")
        shown = [_with_range(row["errors"][arm]) + ("*" if arm in row["overlaps"] else "") for arm in arms]
        rows.append([f"{row['task']}, {row['case']}", metric, str(row["size"]), str(row["test_frames"]), *shown])
    fair = [row for row in result["rows"] if not row["overlaps"]]
    if fair:
        over = [geometric_mean(_mean_error(row, arm) / _mean_error(row, SCRATCH) for row in fair) for arm in arms]
        about = f"error over that of random weights, geometric mean of {len(fair)} case{'s' * (len(fair) > 1)}"
        about += " that none has seen" if len(fair) < len(result["rows"]) else ""
        rows.append([about, "", "", "", *(f"{ratio:.2f}" for ratio in over)])
    seeds = f"{result['seeds']} seeds, means and ranges" if result["seeds"] > 1 else "one seed"
    title = f"Fine-tuning that begins with different models: {seeds}"
    title += f"; {result['steps']} steps each" if result["steps"] else ""
    names = [*(name.replace("_", " ") for name in result["models"]), "random weights", *peers]
    yield Table(title, ["task, case", "error", "labelled structures", "test structures", *names], rows)
    origin = [
        [name.replace("_", " "), f"{about['structures']:,}", ", ".join(about["heads"]), about["model_id"]]
        for name, about in result["models"].items()
    ]
    header = ["", "training structures on the cards", "heads", "model id"]
    yield Table("What they begin with (* above: has seen the task)", header, origin, detail=True)


def _mean_error(row: Mapping[str, Any], arm: str) -> float:
    """Of several seeds; of what is better the larger, what is missing to 1."""
    mean = fmean(row["errors"][arm])
    return max(1 - mean if row["more_is_better"] else mean, _TINY)


def _worth(row: Mapping[str, Any], number: int) -> str:
    """Labels without pre-training to one with it, as far as the curve of random weights tells."""
    sizes, found = row["sizes"], needed(row, number)
    if math.isinf(found):
        return f"> {figure(sizes[-1] / sizes[number])}"
    return f"{found / sizes[number]:.1f}" if found else f"< {figure(sizes[0] / sizes[number])}"


def _with_range(values: Sequence[float]) -> str:
    """The mean, and the least and largest of several."""
    return figure(fmean(values)) + (f" ({figure(min(values))} to {figure(max(values))})" if len(values) > 1 else "")


def _forgotten(lost: Mapping[str, Sequence[float]]) -> list[str]:
    if not lost:
        return [""] * 4
    means = {head: 100 * sum(values) / len(values) for head, values in lost.items()}
    worst = max(means, key=lambda head: means[head])
    return [f"{sum(means.values()) / len(means):.1f}", f"{means[worst]:.1f}", worst,
            f"{sum(value > FORGOTTEN for value in means.values())}"]  # fmt: skip


def scaling(result: Mapping[str, Any]) -> Iterator[Table]:
    data, on = result.get("data"), ""
    if data:  # the first results did not say
        on = f" on {data['heads']} heads with {data['structures']:,} structures of {data['atoms']:,} atoms in all"
    rows = [
        [f"{r['processes']}", r["mode"], f"{r['heads']}", f"{r['steps']}", f"{r['largest_difference']:.1e}"]
        for r in result.get("equality", ())
    ]
    title = f"Training on several processes{on}: largest relative difference of loss or gradient norm from one process, float64"
    yield Table(title, ["processes", "mode", "heads", "steps", "difference"], rows)
    for part, what in (("weak", "the same work a process"), ("strong", "the same work in all")):
        rows = [
            [f"{r['processes']}" + (" (more than cores)" if r["more_processes_than_cores"] else ""), r["mode"],
             figure(r["structures_per_s"]), f"{r['speedup']:.2f}", f"{100 * r['efficiency']:.0f}",
             "-" if r["of_separate_runs"] is None else f"{100 * r['of_separate_runs']:.0f}",
             f"{100 * r['communication_share']:.1f}"]
            for r in result.get(part, ())
        ]  # fmt: skip
        header = [
            "processes, one thread each",
            "mode",
            "structures/s",
            "speed-up",
            "efficiency, %",
            "of separate runs, %",
            "communication and waiting, %",
        ]
        yield Table(f"Training speed{on}, {what}", header, rows)
    rows = [
        [f"{r['processes']}", r["mode"], ", ".join(map(str, r["heads_a_process"])), _largest_mb(r["state_bytes"]),
         _largest_mb(r["theory_state_bytes"]), _largest_mb(r["bytes_a_step"]), _largest_mb(r["theory_bytes_a_step"])]
        for r in result.get("volume", ())
    ]  # fmt: skip
    header = ["processes", "mode", "heads a process", "held, MB", "theory", "sent a step, MB", "theory"]
    sizes: Mapping[str, Any] = next(iter(result.get("volume", ())), {})
    about = f"an encoder of {sizes.get('encoder_parameters', 0):,} parameters and heads of {sizes.get('head_parameters', 0):,}"
    yield Table(f"Memory and traffic of the largest process: {about}", header, rows)
    rows = [
        [r["dtype"], figure(r["structures_per_s"]), f"{r['first_loss_difference']:.1e}",
         figure(r["energy_mae_mev_per_atom"]), figure(r["forces_mae_mev_per_a"])]
        for r in result.get("precision", ())
    ]  # fmt: skip
    header = ["precision", "structures/s", "first loss, difference", "energy, meV/atom", "forces, meV/Å"]
    yield Table(f"The same short training in several precisions{on}: mean validation errors over heads", header, rows)
    model = result.get("model", {})
    rows = [
        [f"{r['processes']}", r["mode"], figure(r["predicted_s"]), figure(r["measured_s"])]
        for r in model.get("predicted", ())
    ]
    yield Table("Performance model: seconds a step", ["processes", "mode", "predicted", "measured"], rows, detail=True)
    rows = [
        [f"{r['machines']:,}", f"{r['processes']:,}", r["mode"], figure(1e3 * r["seconds_a_step"]),
         figure(r["structures_per_s"]), f"{100 * r['efficiency']:.0f}", _largest_mb([r["state_bytes"]])]
        for r in model.get("projection", {}).get("rows", ())
    ]  # fmt: skip
    header = ["machines", "processes", "mode", "ms a step", "structures/s", "efficiency, %", "held, MB"]
    yield Table("Projected, not measured (assumptions in the result file)", header, rows, detail=True)


def _largest_mb(counts: Sequence[float]) -> str:
    return f"{max(counts) / 1e6:.3g}"
