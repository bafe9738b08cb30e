"""Tables of `gfm bench screening`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gfm_calc.benchmarks.tables import Table, figure


def screening(result: Mapping[str, Any]) -> Iterator[Table]:
    yield from _speed(result)
    if result.get("others"):
        yield _others(result["others"])
    if result.get("roofline"):
        yield _roofline(result["roofline"])
    if result.get("precision"):
        yield _precision(result["precision"])
    if result.get("workload"):
        yield _workload(result["workload"])
    if result.get("million"):
        yield _million(result["million"])
    if result.get("whole"):
        yield _whole(result["whole"])
    if result.get("discovery"):
        yield _discovery(result["discovery"])
    if result.get("flags"):
        yield from _flags(result["flags"])


def _speed(result: Mapping[str, Any]) -> Iterator[Table]:
    about = result.get("structures", {"count": 1, "atoms": 0, "edges": 0})
    each = f"{about['count']} random structures, {about['atoms'] / about['count']:.3g} atoms and " + (
        f"{about['edges'] / about['count']:.3g} edges each"
    )
    rows = [
        [row["step"], figure(row["structures_per_s"]), f"{row['times_first']:.2f}", f"{row['energy_difference']:.1e}",
         f"{row['forces_difference']:.1e}"]
        for row in result.get("ablation", ())
    ]  # fmt: skip
    header = [
        "each with those before",
        "structures/s",
        "times the first",
        "energy, eV/atom, off the first",
        "forces, eV/Å",
    ]
    heads = result["settings"]["heads"]
    yield Table(f"A mixture of 4 of {heads} heads at the size of HydraGNN's lead model, forces: {each}", header, rows)
    rows = [
        [f"{row['what']}, {row['scope']}", figure(row["ours_per_s"]), figure(row["peer_per_s"]),
         f"{row['ratio']:.2f} ({row['least']:.2f} to {row['largest']:.2f})",
         *(f"{figure(row[f'{who}_gflop'])}, {figure(row[f'{who}_gflop'] * row[f'{who}_per_s'])}" for who in ("ours", "peer"))]
        for row in result.get("peer", ())
    ]  # fmt: skip
    title = f"Beside HydraGNN's own inference, structures/s: {each}, {heads} heads"
    header = ["", "ours", "HydraGNN", "ratio", "ours: GFLOP a structure, a second", "HydraGNN's"]
    if result.get("peer"):
        title += f"; large matrix products: {result['peer_ceilings']['gemm_gflop_per_s']:.3g} GFLOP/s"
    yield Table(title, header, rows)
    rows = [
        [row["mode"], f"{row['candidates']:,}", figure(row["structures_per_s"]), figure(row["atoms_per_s"]),
         *(f"{100 * row['shares'].get(name, 0.0):.0f}" for name in ("waiting", "graphs", "model", "rows", "writing"))]
        for row in result.get("end_to_end", ())
    ]  # fmt: skip
    header = ["the packaged model, crystals of 8 atoms", "candidates", "structures/s", "atoms/s", "waiting, %", "graphs, %",
              "model, %", "rows, %", "writing (beside it), %"]  # fmt: skip
    yield Table("Screening from extended XYZ to Parquet, one process", header, rows)
    rows = [
        [f"{row['processes']}", figure(row["structures_per_s"]), f"{row['times_one']:.2f}"]
        for row in result.get("processes", ())
    ]
    yield Table("Processes on one folder, a thread each", ["processes", "structures/s", "times one"], rows)


def _others(found: Mapping[str, Any]) -> Table:
    about = {contender["key"]: contender for contender in found["contenders"]}
    rows = []
    for row in found["batches"]:
        one = about[row["contender"]]
        cells = [f"{one.get('name', row['contender'])} {one.get('mode', '')}".strip(), f"{one.get('parameters', 0):,}"]
        spread = f"{100 * row['spread']:.0f}" if "spread" in row else "-"
        rows.append([*cells, figure(row.get("structures_per_s")), figure(row.get("atoms_per_s")), spread])
    header = [
        "from ase.Atoms to energies and forces, batches of 256, one thread",
        "parameters",
        "structures/s",
        "atoms/s",
        "largest less smallest, %",
    ]
    return Table("Other models by their own batch paths, crystals of 8 to 16 atoms", header, rows)


def _roofline(found: Mapping[str, Any]) -> Table:
    top = found["ceilings"]
    rows = [
        [row["what"], figure(row["ms"]), figure(row["gb_per_s"]), figure(row["gflop_per_s"]), row["bound"],
         f"{100 * row['share']:.0f}", ", ".join(f"{name} {100 * part:.0f} %" for name, part in row["largest"].items())]
        for row in found["rows"]
    ]  # fmt: skip
    title = (
        f"Bytes and operations of the model beside the machine: memory {top['memory_gb_per_s']:.3g} GB/s, caches "
        f"{top['cache_gb_per_s']:.3g} GB/s, matrix products {top['gemm_gflop_per_s']:.3g} GFLOP/s"
    )
    header = ["", "ms a batch", "GB/s, counted", "GFLOP/s", "bound by", "share of the bound, %", "most bytes"]
    return Table(title, header, rows)


def _precision(found: Iterable[Mapping[str, Any]]) -> Table:
    names = ("energy_mean", "energy_largest", "forces_mean", "forces_largest")
    rows = [[row["dtype"], figure(row["structures_per_s"]), *(f"{row[name]:.1e}" for name in names)] for row in found]
    header = ["", "structures/s", "energy, mean", "largest", "forces, mean", "largest"]
    return Table("Precision: distance from float64, meV/atom and meV/Å", header, rows)


def _workload(found: Sequence[Mapping[str, Any]]) -> Table:
    names = ("waiting", "graphs", "model", "rows", "writing")
    rows = [
        [row["device"], row["dtype"], str(row["heads"]), figure(row["structures_per_s"]), figure(row["atoms_per_s"]),
         *(f"{100 * row['shares'].get(name, 0.0):.0f}" for name in names)]
        for row in found
    ]  # fmt: skip
    most = found[0]["max_atoms"]
    header = ["device", "", "heads", "structures/s", "atoms/s", *(f"{name}, %" for name in names)]
    return Table(f"2 to {most} random atoms in a box of 10 Å, the lead model, from numbers to Parquet", header, rows)


def _million(found: Mapping[str, Any]) -> Table:
    minutes, billion = found["minutes"], found["billion"]
    rows = [
        ["predicted, evenly chosen", f"{found['sampled']:,}"],
        ["structures/s, one process and thread", figure(found["structures_per_s"])],
        ["CPU ms a structure", figure(found["cpu_ms"])],
        ["minutes for all, one process, two", f"{figure(minutes['1 process'])}, {figure(minutes['2 processes'])}"],
        ["peak memory, MB; chunks, MB a million", f"{figure(found['peak_mb'])}; {figure(found['mb_per_million'])}"],
        [f"hours for {billion['candidates']:.2g} on {billion['cores']} such cores", figure(billion["hours"])],
    ]
    return Table(f"{found['plan']}: {found['candidates']:,} crystals, energies alone (projected)", ["", ""], rows)


def _whole(found: Mapping[str, Any]) -> Table:
    billion, number = found["billion"], found["processes"]
    statuses = ", ".join(
        f"{count:,} {status}" for status, count in sorted(found["rows"].items(), key=lambda item: -item[1])
    )
    nodes = billion["nodes"]
    rows = [
        ["minutes, from the start to ranking, structures and page; of processors", f"{figure(found['minutes'])}; "
         f"{figure(found['cpu_minutes'])}"],
        ["rows", f"{statuses}; {found['doubtful']:,} with a remark in `domain`; {found['ranked']:,} ranked"],
        ["structures/s", figure(found["structures_per_s"])],
        ["seconds from the last chunk to the end; to read and check all rows again",
         f"{figure(found['finishing_s'])}; {figure(found['reading_s'])}"],
        ["peak memory of each process, MB", ", ".join(map(figure, found["peak_mb"]))],
        ["files; MB of chunks", f"{found['files']:,}; {figure(found['mb'])}"],
        [f"projected: hours for {billion['candidates']:.2g} on {', '.join(nodes)} nodes of {billion['cores']} such cores",
         ", ".join(map(figure, nodes.values()))],
        ["projected: hours to read and check those rows, one process; GB", f"{figure(billion['reading_hours'])}; "
         f"{figure(billion['gb'])}"],
    ]  # fmt: skip
    several = "1 process" if number == 1 else f"{number} processes"
    title = f"{found['plan']}: {found['candidates']:,} crystals, energies alone, {several} of one thread, all of them"
    return Table(title, ["", ""], rows)


def _discovery(found: Iterable[Mapping[str, Any]]) -> Table:
    rows = [
        [row["head"], row["scope"], row["filter"] or "none", f"{row['kept']:,} of {row['structures']:,}",
         figure(row["rank"]), *(figure(row["tops"].get(k)) for k in ("10", "50"))]
        for row in found
    ]  # fmt: skip
    header = ["head", "of", "filter", "ranked", "Spearman", "first 10 found", "first 50"]
    return Table("Withheld crystals ranked by formation energy, beside the order of their labels", header, rows)


def _flags(found: Iterable[Mapping[str, Any]]) -> Iterator[Table]:
    ranked, remarks = [], []
    for row in found:
        if "flagged" in row:
            cells = [row[f"{what}_{whose}"] for what in ("energy_mae", "forces_mae") for whose in ("flagged", "others")]
            remarks.append([row["head"], row["signal"].removeprefix("remark: "), f"{row['flagged']} of {row['rows']}",
                            *map(figure, cells)])  # fmt: skip
        elif "kept" in row:
            parts = [figure(part[name]) for name in ("energy_mae", "forces_mae") for part in row["kept"]]
            ranked.append([row["head"], row["signal"], figure(row["energy_rank"]), figure(row["forces_rank"]),
                           figure(row["energy_mae"]), *parts[:3], figure(row["forces_mae"]), *parts[3:]])  # fmt: skip
        else:
            ranked.append([row["head"], row["signal"], *["-"] * 10])
    dropped = ["10 % dropped", "20 %", "50 %"]
    header = [
        "head",
        "signal",
        "rank with energy error",
        "with forces error",
        "energy MAE",
        *dropped,
        "forces MAE",
        *dropped,
    ]
    yield Table("Errors of held-out structures when the most doubtful are dropped, meV/atom and meV/Å", header, ranked)
    header = ["head", "remark", "rows", "energy MAE with it", "without", "forces MAE with it", "without"]
    yield Table("Errors of rows with a remark in `domain`, and of the others", header, remarks)
