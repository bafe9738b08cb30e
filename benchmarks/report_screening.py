"""Tables of `gfm bench screening`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gfm_calc.benchmarks.tables import Table, figure


def screening(result: Mapping[str, Any]) -> Iterator[Table]:
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
         f"{row['ratio']:.2f} ({row['least']:.2f} to {row['largest']:.2f})"]
        for row in result.get("peer", ())
    ]  # fmt: skip
    yield Table(
        f"Beside HydraGNN's own inference, structures/s: {each}, {heads} heads", ["", "ours", "HydraGNN", "ratio"], rows
    )
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
