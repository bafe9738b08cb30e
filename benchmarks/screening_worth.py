"""What a screening is worth: does it find what the reference finds, and do its flags find its errors?

Structures that training has not seen go through `gfm screen` as a user's file would; their labels stay here.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np

from gfm_calc.benchmarks.accuracy import draw
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.checkpoint import load_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.ranks import rank_correlation
from gfm_calc.screening.elements import table_of
from gfm_calc.screening.folder import Folder
from gfm_calc.screening.formulas import reduced_formula
from gfm_calc.train.cli import recipe_on
from gfm_calc.train.preparation import Head, load_heads

if TYPE_CHECKING:
    from gfm_calc.benchmarks.screening import ScreeningPlan

SIGNALS = ("uncertainty", "force_uncertainty", "force_spread", "domain_distance")
_SHARES = (0.1, 0.2, 0.5)  # of the rows that are dropped
_KEPT = 0.8  # share of the rows that a filter by a signal lets pass
_TOPS = (10, 50)
_COMMON = 0.8  # of the elements, that a head must know to be asked beside another
_COLUMNS = ["status", "energy", "energy_per_atom", "formation_energy_per_atom", "forces", "domain", *SIGNALS]


class Screened:
    """Held-out structures of one head, screened: `records`, and arrays of the columns of those rows that are ok."""

    def __init__(self, plan: ScreeningPlan, head: Head, folder: Path):
        model = load_model(plan.model)
        self.head = head
        self.spec = model.spec(head.spec.name)
        self.companions = companions(self.spec, [model.spec(name) for name in model.energy_heads])
        chosen = draw(head.sides["test"], plan.frames, 0)
        records = list(head.dataset.read(chosen, names=True).records())
        if len(records) < 2:
            raise ConfigError(f"head {self.spec.name} has {len(records)} held-out structures: nothing to compare")
        path, self.run = folder / f"{self.spec.name}.extxyz", folder / self.spec.name
        ase.io.write(path, [record.structure() for record in records])
        self.words = ["screen", str(path), "-o", str(self.run), "--model", plan.model, "--device", "cpu", "--keep", "forces",
                      "--no-report"]  # fmt: skip
        self.words += [word for name in (self.spec.name, *self.companions) for word in ("--head", name)]
        screened(self.words)
        self.opened = Folder(self.run)
        table = [
            row for part in self.opened.tables(_COLUMNS) for row in part.to_pylist() if row["head"] == self.spec.name
        ]
        good = [number for number, row in enumerate(table) if row["status"] == "ok"]
        self.records = [records[number] for number in good]
        self.candidates = np.array(good)
        self.rows = [table[number] for number in good]
        self.refused = len(table) - len(good)

    def column(self, name: str) -> np.ndarray:
        """[rows] NaN where there is none."""
        return np.array([np.nan if row[name] is None else row[name] for row in self.rows], float)

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Absolute errors [rows] of the energy, eV/atom, and mean ones of a structure's force components, eV/Å."""
        energy = np.abs(self.column("energy_per_atom") - [record.energy / len(record) for record in self.records])
        forces = [np.nan if record.forces is None else np.abs(np.array(row["forces"]) - record.forces.ravel()).mean()
                  for row, record in zip(self.rows, self.records)]  # fmt: skip
        return energy, np.array(forces)


def screened(words: Sequence[str]) -> None:
    """`gfm WORDS`, as from a shell.

    Raises:
        GFMError: it ended badly.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    if code:
        raise GFMError(f"gfm {' '.join(words[:2])} ended with {code}: {said.getvalue().strip()[-300:]}")


def companions(spec: HeadSpec, others: Sequence[HeadSpec]) -> list[str]:
    """Heads to ask beside one, for their disagreement: those that have seen such boundaries and nearly all its elements."""
    wanted, kinds = set(spec.elements), set(spec.periodicity)
    return [
        other.name for other in others
        if other.name != spec.name and kinds & set(other.periodicity or kinds)
        and len(wanted & set(other.elements)) >= _COMMON * len(wanted)
    ]  # fmt: skip


def worth(plan: ScreeningPlan) -> dict[str, list[dict[str, Any]]]:
    """{"flags": rows of `flags`, "discovery": rows of `discovery`} of the heads that the plan names.

    Raises:
        ConfigError: no data, or a head that has none.
    """
    if plan.data is None:
        raise ConfigError("parts flags and discovery need labelled structures: --data DATASETS")
    recipe = recipe_on(plan.data, plan.recipe)
    heads = {head.spec.name: head for head in load_heads(recipe, plan.cache)}
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in ("flags", "discovery") if part in plan.parts}
    with tempfile.TemporaryDirectory() as name:
        for wanted in plan.known or (plan.head,):
            if wanted not in heads:
                raise ConfigError(f"{plan.data}: holds no head {wanted!r}; it has {', '.join(heads)}")
            run = Screened(plan, heads[wanted], Path(name))
            if "flags" in found:
                found["flags"] += flags(run)
            if "discovery" in found and "bulk" in run.spec.periodicity:
                found["discovery"] += discovery(run)
    return found


def flags(run: Screened) -> list[dict[str, Any]]:
    """Rows {head, signal, rows, ...} of one head: for signals that are numbers, "energy_rank", "forces_rank" (rank
    correlation with the errors) and "kept" (mean errors of what is left when the worst 10, 20 and 50 % are dropped, beside
    the least that is possible, dropping by the error itself); for remarks in `domain`, "flagged" and the errors of
    the flagged and the others.  meV/atom and meV/Å."""
    energy, forces = run.errors()
    about = {"head": run.spec.name, "structures": len(run.rows), "beside": run.companions,
             "energy_mae": _milli(energy), "forces_mae": _milli(forces)}  # fmt: skip
    found = []
    for signal in SIGNALS:
        values = run.column(signal)
        known = np.isfinite(values)
        if known.sum() < max(10, len(values) // 2):
            found.append({**about, "signal": signal, "rows": int(known.sum())})
            continue
        own = values[known], energy[known], forces[known]
        found.append({
            **about, "signal": signal, "rows": int(known.sum()),
            "energy_rank": _rank(own[0], own[1]), "forces_rank": _rank(own[0], own[2]),
            "kept": [{"dropped": share, "energy_mae": _left(own[1], own[0], share), "forces_mae": _left(own[2], own[0], share),
                      "energy_least": _left(own[1], own[1], share), "forces_least": _left(own[2], own[2], share)}
                     for share in _SHARES],
        })  # fmt: skip
    remarks = {
        "elements": "unseen",
        "boundaries": "in training",
        "close atoms": "of a bond",
        "distance": "training data",
    }
    for kind, words in remarks.items():
        flagged = np.array([words in (row["domain"] or "") for row in run.rows])
        found.append({
            **about, "signal": f"remark: {kind}", "rows": len(flagged), "flagged": int(flagged.sum()),
            "energy_mae_flagged": _milli(energy[flagged]), "forces_mae_flagged": _milli(forces[flagged]),
            "energy_mae_others": _milli(energy[~flagged]), "forces_mae_others": _milli(forces[~flagged]),
        })  # fmt: skip
    return found


def discovery(run: Screened) -> list[dict[str, Any]]:
    """Rows {head, scope, filter, structures, kept, rank, tops}: formation energies of withheld crystals in the order of
    `gfm screen`, beside that of the labels, whose elements are the lowest single-element structures with labels.

    scope "structures": all; "compounds": of each formula the structure whose label is lowest.  rank: Spearman's.  tops:
    {k: share of the reference's first k that is among our first k}.  filter: what `--where` was given.
    """
    table = table_of(labelled_elements(run.head))
    reference = np.array([(r.energy - table[r.atomic_numbers].sum()) / len(r) for r in run.records])
    ours = run.column("formation_energy_per_atom")
    both = np.isfinite(reference) & np.isfinite(ours)
    names = np.array([reduced_formula(record.atomic_numbers) for record in run.records])
    lowest: dict[str, int] = {}
    for number in sorted(np.flatnonzero(both).tolist(), key=lambda k: reference[k]):
        if len(set(run.records[number].atomic_numbers.tolist())) > 1:
            lowest.setdefault(names[number], number)
    scopes = {"structures": np.flatnonzero(both), "compounds": np.array(sorted(lowest.values()), int)}
    filters: list[str | None] = [None, 'domain == ""']
    for signal in SIGNALS:
        values = run.column(signal)
        if np.isfinite(values).sum() > len(values) // 2:
            filters.append(f"{signal} < {np.nanquantile(values, _KEPT):.6g}")
    found = []
    for chosen in filters:
        order = _ranking(run, chosen)
        for scope, several in scopes.items():
            if len(several) < 2 * min(_TOPS):
                continue
            inside = set(several.tolist())
            ranked = [number for number in order if number in inside]
            found.append({
                "head": run.spec.name, "scope": scope, "filter": chosen or "", "structures": len(several),
                "without_elements": int((~both).sum()), "kept": len(ranked),
                "rank": _rank(reference[ranked], ours[ranked]),
                "tops": {str(k): _recall(several, ranked, reference, k) for k in _TOPS if 2 * k <= len(several)},
            })  # fmt: skip
    return found


def labelled_elements(head: Head) -> dict[str, float]:
    """{symbol: lowest label, eV/atom} of the crystals of one element in the head's data."""
    from ase.data import chemical_symbols

    lowest: dict[str, float] = {}
    for record in head.dataset.records():
        if len(set(record.atomic_numbers.tolist())) == 1 and np.isfinite(record.energy) and record.pbc.all():
            symbol = chemical_symbols[record.atomic_numbers[0]]
            lowest[symbol] = min(lowest.get(symbol, np.inf), record.energy / len(record))
    return lowest


def _ranking(run: Screened, chosen: str | None) -> list[int]:
    """Rows in the order of `ranking.csv`, which `gfm screen` writes anew for each filter."""
    import csv

    where = [] if chosen is None else ["--where", chosen]
    screened([*run.words, *where, "--top", str(len(run.rows) + run.refused)])
    row_of = {int(candidate): row for row, candidate in enumerate(run.candidates)}
    with open(run.run / "ranking.csv") as handle:
        return [row_of[int(row["candidate"])] for row in csv.DictReader(handle) if row["head"] == run.spec.name]


def _recall(several: np.ndarray, ranked: Sequence[int], reference: np.ndarray, k: int) -> float:
    wanted = set(several[np.argsort(reference[several], kind="stable")[:k]].tolist())
    return rounded(len(wanted & set(ranked[:k])) / k, 3)


def _left(errors: np.ndarray, signal: np.ndarray, dropped: float) -> float | None:
    kept = np.argsort(signal, kind="stable")[: max(1, round(len(signal) * (1 - dropped)))]
    return _milli(errors[kept])


def _milli(errors: np.ndarray) -> float | None:
    known = errors[np.isfinite(errors)]
    return rounded(1e3 * float(known.mean()), 3) if len(known) else None


def _rank(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation of ranks."""
    known = np.isfinite(first) & np.isfinite(second)
    found = rank_correlation(first[known], second[known])
    return None if np.isnan(found) else rounded(found, 3)
