"""The packaged weights at a glance: one table over the results of many benchmarks, for the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from gfm_calc.benchmarks.structures import CRYSTALS
from gfm_calc.benchmarks.tables import Table, figure

_MOLECULES = "gfn2-xtb"
_PEERS = ("chgnet", "sevennet", "teacher")
_FORCES, _ENERGY = "forces_mae_mev_per_a", "energy_mae_mev_per_atom"
Result = Mapping[str, Any]
Row = list[str]


def glance(results: Iterable[Result], weights: str = "") -> Table:
    """What each benchmark says in a row: what was measured, `gfm-small`, and what stands beside it.

    A benchmark with several results is asked for the first one that has what the row needs; a row that none has is left out.

    Args:
        weights: id of today's weights: rows of others are said to be of earlier ones.
    """
    found, rows = list(results), []
    for name, row in _ROWS:
        shown = ((row(result), result) for result in found if result["benchmark"] == name)
        one, result = next((pair for pair in shown if pair[0] is not None), (None, None))
        if one is not None and result is not None:
            is_earlier = weights and result["provenance"]["weights"] not in ("", weights)
            rows.append([one[0] + " (earlier weights)" * bool(is_earlier), *one[1:]])
    return Table("At a glance", ["", "gfm-small", "beside it"], rows)


def wanted() -> list[str]:
    """The benchmarks that its rows are of."""
    return list(dict.fromkeys(name for name, _ in _ROWS))


def _held_out(head: str, what: str) -> Callable[[Result], Row | None]:
    def row(result: Result) -> Row | None:
        entry = next((one for one in result["heads"] if one["head"] == head and "model" in one), None)
        if entry is None:
            return None
        ours, zero = entry["model"], entry["mean"][_FORCES]
        text = f"{figure(ours[_ENERGY])} meV/atom, {figure(ours[_FORCES])} meV/Å"
        return [
            f"held-out {what} (`{head}`): energies, forces",
            text,
            f"forces of predicting zero: {figure(zero)} meV/Å",
        ]

    return row


def _frames(result: Result) -> Row | None:
    """Of heads of calculated labels alone: those of the distilled heads are predictions of a peer."""
    calculated = [one for one in result.get("peers", []) if not one["head"].startswith("distilled")]
    entries = [one for one in calculated if one.get("level", "") == calculated[0].get("level", "")]  # of the first
    if not entries:
        return None
    ours = {one["head"]: one["models"]["gfm-calc"][_FORCES] for one in entries}
    peers = [peer for peer in entries[0]["models"] if peer != "gfm-calc"]
    better = {p: sum(ours[one["head"]] < one["models"][p][_FORCES] for one in entries) for p in peers}
    said = ", ".join(f"{peer} of {number}" for peer, number in better.items())
    what = f"smaller force errors on held-out frames of {len(entries)} heads of crystals, whose other frames ours has learnt"
    return [what, f"than {said}", ""]


def _crystals(result: Result) -> Row | None:
    rows = {one["model"]: one.get("crystals", {}) for one in result["means"]}
    if "bulk_modulus" not in rows.get("gfm", {}):
        return None
    shown = {
        key: f"{figure(one['volume']['mean_absolute'])} %, {figure(one['bulk_modulus']['mean_absolute'])} %"
        for key, one in rows.items()
    }
    return [
        f"volumes and bulk moduli of {rows['gfm']['compared']} crystals, beside DFT",
        shown["gfm"],
        _beside(result, shown),
    ]


def _phonons(result: Result) -> Row | None:
    means = {one["model"]: one for one in result["means"]}
    shown = {key: f"{figure(one['mean_absolute'])} THz" for key, one in means.items()}
    what = f"frequencies of {means['gfm']['compared']} crystals, beside DFT"
    return [what, shown["gfm"], _beside(result, shown)]


def _beside(result: Result, shown: Mapping[str, str]) -> str:
    return "; ".join(f"{result['models'][key]} {shown[key]}" for key in _PEERS if key in shown)


def _relative(what: str) -> Callable[[Result], Row | None]:
    def row(result: Result) -> Row | None:
        head, own = result["head"], result["own_level"]
        if own is None:
            return None
        ours, theirs = (
            f"{figure(result['means'][key])} kcal/mol, {figure(result['mean_ranks'][key])}" for key in (head, own)
        )
        return [f"{what}: error, rank correlation (`{head}`)", ours, f"the method of its labels itself {theirs}"]

    return row


def _dynamics(result: Result) -> Row | None:
    rows = [one for one in result["rows"] if one["picoseconds"] >= 50 or one["why"]]
    if len(rows) < 20:
        return None
    kelvin = [one["kelvin"] for one in rows]
    what = (
        f"50 ps of Langevin dynamics at {min(kelvin):.0f} to {max(kelvin):.0f} K: no molecule breaks, no atoms collapse"
    )
    return [what, f"{sum(one['stable'] for one in rows)} of {len(rows)} systems", ""]


def _pairs(result: Result) -> Row | None:
    if "like_pairs" not in result:
        return None
    rows = [one for one in result["like_pairs"] if "error" not in one]
    shown = [f"{len(one['extra_minima'])} of {one['pairs']}" for one in rows]
    beside = "; ".join(f"{one['model']} {text}" for one, text in zip(rows[1:], shown[1:]))
    what = f"isolated pairs of like atoms with a second minimum (`{rows[0]['model']}` alone; see the card for others)"
    return [what, shown[0], beside] if rows[0] is result["like_pairs"][0] else None


def _speed(result: Result) -> Row | None:
    times: dict[str, dict[str, float]] = {}
    for one in (row for row in result["dynamics"] if row["threads"] == 1 and "error" not in row):
        times.setdefault(one["contender"], {})[one["system"]] = one["ms_per_step"]
    ours = times.get("gfm-calc compiled", {})
    said = []
    for key in ("chgnet", "sevennet"):
        ratios = [times[key][system] / own for system, own in ours.items() if system in times.get(key, {})]
        name = next((c["name"] for c in result["contenders"] if c["key"] == key), key)
        said += [f"{name} {min(ratios):.0f} to {max(ratios):.0f} times as long"] if ratios else []
    span = f"{figure(min(ours.values()))} to {figure(max(ours.values()))} ms" if ours else ""
    what = f"an MD step of {len(ours)} systems, one thread of a CPU, ours compiled"
    return [what, span, "; ".join(said)] if said else None


def _few_frames(result: Result) -> Row | None:
    if result["task"]["name"] != "rmd17":
        return None
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for one in result["rows"]:
        arms.setdefault(one["arm"], []).append(one)
    plain = arms.get("gfm-small", [])
    cheap = next((rows for arm, rows in arms.items() if "GFN2-xTB" in arm), [])
    if len(plain) != 8 or len(cheap) != 8 or {one["size"] for one in (*plain, *cheap)} != {50}:
        return None
    error = [f"{figure(fmean(fmean(one['errors'][_FORCES]) for one in rows))} meV/Å" for rows in (plain, cheap)]
    published = figure(fmean(one["published"]["MACE"] for one in plain))
    what = "forces after 50 frames of rMD17, mean of eight molecules (`--keep-heads none`, one seed)"
    beside = f"MACE, from 50 frames alone: {published} (published)"
    return [what, f"{error[0]}; {error[1]} with 1,000 labels of GFN2-xTB before", beside]


_ROWS: tuple[tuple[str, Callable[[Result], Row | None]], ...] = (
    ("accuracy", _held_out(_MOLECULES, "organic molecules far from rest")),
    ("accuracy", _held_out(CRYSTALS, "crystals of 85 elements, labels of SevenNet-l3i5")),
    ("accuracy", _frames),
    ("crystals", _crystals),
    ("phonons", _phonons),
    ("conformers", _relative("conformers beside coupled cluster")),
    ("torsions", _relative("torsions beside coupled cluster")),
    ("stability", _dynamics),
    ("physics", _pairs),
    ("speed", _speed),
    ("finetune", _few_frames),
)  # fmt: skip
