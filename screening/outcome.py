"""What a finished screening leaves: every chunk checked, counts, the ranking, the best structures, the page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from gfm_calc.artifacts import canonical_json, write_file
from gfm_calc.commands.outputs import write_extxyz
from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor
from gfm_calc.screening.folder import CHUNKS, CLAIMS, Folder
from gfm_calc.screening.formulas import composition_of
from gfm_calc.screening.hull import Hull, hulls
from gfm_calc.screening.precision import SAMPLE, against_float64
from gfm_calc.screening.ranking import Best, Ranking, numbers_of
from gfm_calc.screening.streams import Stream
from gfm_calc.screening.table import DERIVED, STRUCTURES

Phases = Mapping[str, Sequence[tuple[str, float]]]
_SAMPLE = 20_000  # candidates in the distributions
SHOWN = ("formation_energy_per_atom", "energy_per_atom", "max_force", "volume_per_atom", "pressure", "uncertainty",
         "force_uncertainty", "force_spread", "domain_distance", "closest", "hull_distance")  # fmt: skip


@dataclass(kw_only=True)
class Overview:
    """All rows in small.

    Attributes:
        statuses: {head: {status: rows}}.  errors: {head: {error without its place: rows}}.
        doubts: rows with a remark in `domain`.  ranked: rows that pass the filters and have a value to rank by.
        samples: {head: {column: values}}, of evenly chosen candidates that are ok.
        elements: {head: [119]}, rows that hold an element; flagged: those of them with a remark in `domain`; lowest:
            {head: [119]}, their lowest cost, inf where none.
        best: of the ranking.
        hulls: {head: Hull}, empty where nobody asked.
        some: {head: [(candidate, nothing)]}, evenly chosen among those that are ok.
        precision: of them, see `against_float64`.
    """

    statuses: dict[str, Counter[str]]
    errors: dict[str, Counter[str]]
    doubts: Counter[str] = field(default_factory=Counter)
    ranked: Counter[str] = field(default_factory=Counter)
    samples: dict[str, dict[str, list[np.ndarray]]]
    elements: dict[str, np.ndarray]
    flagged: dict[str, np.ndarray]
    lowest: dict[str, np.ndarray]
    best: Best
    hulls: dict[str, Hull] = field(default_factory=dict)
    some: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    precision: dict[str, dict[str, float]] = field(default_factory=dict)


def read(folder: Folder, ranking: Ranking, phases: Phases | None = None) -> Overview:
    """Read every chunk, checking all of them; twice where distances from the hull are wanted.

    Args:
        phases: of the hull, beside the elements and the candidates: {head: [(formula, formation energy)]}; None: no hull.

    Raises:
        GFMError: chunks that are missing.  CorruptFileError: damaged or doubled ones.
    """
    heads = folder.settings.heads
    found = Overview(
        statuses={head: Counter() for head in heads}, errors={head: Counter() for head in heads},
        samples={head: {name: [] for name in SHOWN} for head in heads},
        elements={head: np.zeros(119, np.int64) for head in heads},
        flagged={head: np.zeros(119, np.int64) for head in heads},
        lowest={head: np.full(119, np.inf) for head in heads}, best=Best(ranking, heads),
    )  # fmt: skip
    if phases is not None or ranking.derived:
        found.hulls = hulls_of(folder, phases or {})
    stride, apart = (max(1, (folder.last - folder.first) // count) for count in (_SAMPLE, SAMPLE))
    names = list(dict.fromkeys([*ranking.columns, *SHOWN, "formula", "error", "domain"]))
    for table in folder.tables([name for name in names if name not in DERIVED]):
        values = numbers_of(table, [name for name in names if name not in DERIVED])
        candidates, head_of = table.column("candidate").to_numpy(), np.array(table.column("head").to_pylist(), object)
        values["hull_distance"] = _distances(found.hulls, candidates, head_of, values)
        found.best.add(candidates, head_of, values)
        costs = ranking.costs(values)
        for head in heads:
            own = head_of == head
            _add(found, head, {name: column[own] for name, column in values.items()}, costs[own])
            sampled = own & (candidates % stride == 0) & (values["status"] == "ok")
            for name in SHOWN:
                found.samples[head][name].append(values[name][sampled])
            few = own & (candidates % apart == 0) & (values["status"] == "ok")
            found.some.setdefault(head, []).extend((number, 0.0) for number in candidates[few].tolist())
    return found


def hulls_of(folder: Folder, phases: Phases) -> dict[str, Hull]:
    """The hull of each head: elements, phases, and the candidates that are ok."""
    found = hulls({head: phases.get(head, ()) for head in folder.settings.heads})
    names = ["status", "formula", "formation_energy_per_atom"]
    for table in folder.tables(names):
        columns = [table.column(name).to_pylist() for name in ("candidate", "head", *names)]
        for candidate, head, status, formula, energy in zip(*columns):
            if status == "ok" and energy is not None:
                found[head].add(formula, energy, candidate)
    return found


def _distances(
    hulls: Mapping[str, Hull], candidates: np.ndarray, heads: np.ndarray, values: Mapping[str, np.ndarray]
) -> np.ndarray:
    found = np.full(len(candidates), np.nan)
    energies = values["formation_energy_per_atom"]
    for row in np.flatnonzero((values["status"] == "ok") & np.isfinite(energies)) if hulls else ():
        found[row] = hulls[heads[row]].distance(values["formula"][row], float(energies[row]), int(candidates[row]))
    return found


def _add(found: Overview, head: str, values: Mapping[str, np.ndarray], costs: np.ndarray) -> None:
    found.statuses[head] += Counter(values["status"].tolist())
    found.errors[head] += Counter(_kind(text) for text in values["error"].tolist() if text)
    found.doubts[head] += int(sum(bool(text) for text in values["domain"].tolist()))
    found.ranked[head] += int(np.count_nonzero(~np.isnan(costs)))
    for formula, cost, doubt in zip(values["formula"].tolist(), costs.tolist(), values["domain"].tolist()):
        numbers = list(composition_of(formula or ""))
        found.elements[head][numbers] += 1
        if doubt:
            found.flagged[head][numbers] += 1
        if not np.isnan(cost):
            found.lowest[head][numbers] = np.minimum(found.lowest[head][numbers], cost)


def finish(
    folder: Folder, stream: Stream, ranking: Ranking, *, report: bool, phases: Phases | None = None,
    exact: Predictor | None = None,
) -> Overview:  # fmt: skip
    """Check all, then write counts.json, ranking.csv, best.extxyz and summary.html; they are replaced where they are there.

    Args:
        phases: see `read`.
        exact: the model in float64, to say how far from it the rows are; None says nothing.

    Raises:
        GFMError: see `read`.
    """
    found = read(folder, ranking, phases)
    rows = {head: _rows(folder, found.best.of(head), head, found.hulls.get(head)) for head in folder.settings.heads}
    structures = {head: _structures(folder, stream, several) for head, several in rows.items()}
    if exact is not None:
        some = {head: _rows(folder, sample, head, None) for head, sample in found.some.items()}
        theirs = {head: _structures(folder, stream, several) for head, several in some.items()}
        found.precision = against_float64(exact, some, theirs)
    counts = {
        "candidates": folder.last - folder.first, "objective": str(ranking.objective),
        "filters": [str(kept) for kept in ranking.filters],
        "heads": {head: {"rows": dict(found.statuses[head]), "doubtful": found.doubts[head], "ranked": found.ranked[head],
                         "from_float64": found.precision.get(head, {})}
                  for head in rows},
    }  # fmt: skip
    write_file(folder.directory / "counts.json", canonical_json(counts))
    write_file(folder.directory / "ranking.csv", _csv(rows).encode())
    write_file(folder.directory / "best.extxyz", _extxyz(rows, structures).encode())
    if report:
        from gfm_calc.screening.summary import summary

        page = summary(folder, ranking, found, rows, structures)
        write_file(folder.directory / "summary.html", page.encode())
    _sweep(folder)
    return found


def _rows(folder: Folder, best: Sequence[tuple[int, float]], head: str, hull: Hull | None) -> list[dict[str, Any]]:
    """The rows of the best of a head, best first."""
    place, heads = folder.settings.heads.index(head), len(folder.settings.heads)
    ranks: dict[int, list[tuple[int, int]]] = {}  # of each chunk: (rank, candidate)
    for rank, (candidate, _) in enumerate(best, 1):
        ranks.setdefault((candidate - folder.first) // folder.settings.chunk, []).append((rank, candidate))
    found = []
    for chunk, several in ranks.items():
        table, first = folder.read(chunk), folder.range_of(chunk)[0]
        for rank, candidate in several:
            row = table.slice((candidate - first) * heads + place, 1).to_pylist()[0]
            if hull is not None:
                energy = row["formation_energy_per_atom"]
                row["hull_distance"] = None if energy is None else hull.distance(row["formula"], energy, candidate)
            found.append({"rank": rank, **row})
    return sorted(found, key=lambda row: row["rank"])


def _structures(folder: Folder, stream: Stream, rows: Sequence[Mapping[str, Any]]) -> list[Atoms]:
    """As they were screened: relaxed where they were."""
    found = []
    for row in rows:
        if row.get("positions") is not None:
            cell = row["cell"] and np.reshape(row["cell"], (3, 3))
            positions = np.reshape(row["positions"], (-1, 3))
            atoms = Atoms(row["atomic_numbers"], positions=positions, cell=cell, pbc=row["pbc"])
        else:
            (_, made), *_ = stream.made(row["candidate"], row["candidate"] + 1)
            if isinstance(made, GFMError):
                raise GFMError(f"candidate {row['candidate']} is another one now ({made}): have its files changed?")
            atoms = made
        found.append(atoms)
    return found


def _csv(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    several = [row for found in rows.values() for row in found]
    text = io.StringIO()
    names = [name for name in (several[0] if several else {"rank": 0}) if name not in (*STRUCTURES, "stress", "forces")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in several:
        writer.writerow(["" if row[name] is None else row[name] for name in names])
    return text.getvalue()


def _extxyz(rows: Mapping[str, Sequence[Mapping[str, Any]]], structures: Mapping[str, Sequence[Atoms]]) -> str:
    text = io.StringIO()
    for head, several in rows.items():
        for row, atoms in zip(several, structures[head]):
            kept = {k: v for k, v in row.items() if v not in (None, "") and k not in (*STRUCTURES, "error", "status")}
            if "forces" in kept:
                kept["forces"] = np.reshape(kept["forces"], (-1, 3))
            if "stress" in kept:
                kept["stress"] = np.array(kept["stress"])
            write_extxyz(text, atoms, kept)
    return text.getvalue()


def _sweep(folder: Folder) -> None:
    """What processes left that ended while they wrote; all chunks are there, so none of it is needed."""
    for path in _leftovers(folder.directory):
        path.unlink(missing_ok=True)


def _leftovers(directory: Path) -> Iterator[Path]:
    yield from (directory / CHUNKS).glob(".*.tmp")
    yield from (path for path in (directory / CLAIMS).glob("*") if path.name.isdigit() or path.name == "begin")


def _kind(error: str) -> str:
    """An error without the place in front of it, so that equal ones are counted together."""
    return error.partition(": ")[2] or error
