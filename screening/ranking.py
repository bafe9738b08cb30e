"""Which candidates are best: objectives and filters as data, over the columns of the rows."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gfm_calc.errors import ConfigError, did_you_mean
from gfm_calc.screening.table import COLUMNS, DERIVED, RELAXED

_TESTS = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip
_FILTER = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S.*?)\s*")
_TARGET = re.compile(r"\s*(\w+)\s*~\s*(\S+)\s*")
_NUMBERS = [name for name, (kind, _) in (COLUMNS | RELAXED | DERIVED).items() if kind in ("float64", "int32", "int64")]
_INSTEAD = "formation_energy_per_atom"
_WORDS = ["formula", "domain", "source"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is best: the lowest value of a column, the highest, or the nearest to a target."""

    column: str
    highest: bool = False
    target: float | None = None

    @classmethod
    def parse(cls, text: str, *, highest: bool = False) -> Objective:
        """From "column", or "column~target".

        Raises:
            ConfigError: no column of numbers of that name, or a target that is no number.
        """
        found = _TARGET.fullmatch(text)
        column = found[1] if found else text.strip()
        _known(column, _NUMBERS)
        if found and highest:
            raise ConfigError(f"{text!r} has a target: the nearest is best; leave --highest out")
        return cls(column=column, highest=highest, target=_number(found[2]) if found else None)

    def __str__(self) -> str:
        if self.target is not None:
            return f"{self.column} nearest to {self.target:g}"
        return f"{'highest' if self.highest else 'lowest'} {self.column}"

    def shown(self, cost: float) -> float:
        """A cost for people: the value, or its distance from the target."""
        return -cost if self.highest else cost

    def costs(self, values: np.ndarray) -> np.ndarray:
        """The lower, the better; NaN stays."""
        if self.target is not None:
            return np.abs(values - self.target)
        return -values if self.highest else values


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A row stays where `column` `test` `value` holds; one without a number in that column does not."""

    column: str
    test: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """From "max_force < 5", "formula != SrTiO3", ...

        Raises:
            ConfigError: not of this form, or no column of that name.
        """
        found = _FILTER.fullmatch(text)
        if found is None:
            raise ConfigError(f"filter {text!r}: write COLUMN < NUMBER (or <=, >, >=, ==, !=)")
        column, test, value = found.groups()
        _known(column, _NUMBERS + _WORDS)
        if column in _WORDS:
            if test not in ("==", "!="):
                raise ConfigError(f"filter {text!r}: {column} is text; compare it with == or !=")
            return cls(column=column, test=test, value="" if value in ('""', "''") else value)
        return cls(column=column, test=test, value=_number(value))

    def __str__(self) -> str:
        return f"{self.column} {self.test} {self.value!r}" if isinstance(self.value, str) else (
            f"{self.column} {self.test} {self.value:g}")  # fmt: skip

    def holds(self, values: np.ndarray) -> np.ndarray:
        """For each row."""
        if isinstance(self.value, str):
            return (values == self.value) == (self.test == "==")
        with np.errstate(invalid="ignore"):
            return _TESTS[self.test](values, self.value) & ~np.isnan(values)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How rows become an order.  `top`: so many of each head."""

    objective: Objective
    filters: tuple[Filter, ...] = ()
    top: int = 20

    @property
    def columns(self) -> list[str]:
        """What it reads."""
        return list(dict.fromkeys([self.objective.column, "status", *(kept.column for kept in self.filters)]))

    @property
    def derived(self) -> bool:
        """Whether it needs columns that are known only when all rows are."""
        return any(name in DERIVED for name in self.columns)

    def on_line(self) -> Ranking:
        """What can be said of it before: formation energies instead, and the filters of columns that rows have."""
        objective = self.objective if self.objective.column not in DERIVED else Objective(column=_INSTEAD)
        filters = tuple(kept for kept in self.filters if kept.column not in DERIVED)
        return Ranking(objective=objective, filters=filters, top=self.top)

    def costs(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """A cost a row, NaN where it does not take part (not ok, filtered, no value).

        Args:
            values: arrays of `columns`; numbers as float64, NaN where there is none.
        """
        costs = self.objective.costs(values[self.objective.column].astype(float))
        for kept in self.filters:
            costs = np.where(kept.holds(values[kept.column]), costs, np.nan)
        return np.where(values["status"] == "ok", costs, np.nan)


class Best:
    """The best rows so far, of each head: kept on line, however many rows pass.

    Equal costs are ordered by number, so that the order of arrival does not matter.
    """

    def __init__(self, ranking: Ranking, heads: Sequence[str]):
        self.ranking = ranking
        self._kept: dict[str, list[tuple[float, int]]] = {head: [] for head in heads}

    def add(self, candidates: np.ndarray, heads: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Rows: numbers of candidates, heads, and arrays of `Ranking.columns`."""
        costs = self.ranking.costs(values)
        for head, kept in self._kept.items():
            rows = np.flatnonzero((heads == head) & ~np.isnan(costs))
            if len(rows) > self.ranking.top:
                order = np.lexsort((candidates[rows], costs[rows]))
                rows = rows[order[: self.ranking.top]]
            for row in rows:
                # A heap with the worst on top.
                item = (-float(costs[row]), -int(candidates[row]))
                if len(kept) < self.ranking.top:
                    heapq.heappush(kept, item)
                else:
                    heapq.heappushpop(kept, item)

    def of(self, head: str) -> list[tuple[int, float]]:
        """(candidate, cost) of a head, best first."""
        return [(-number, -cost) for cost, number in sorted(self._kept[head], reverse=True)]


def numbers_of(table: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a `pyarrow.Table` as arrays: text as it is, numbers as float64 with NaN."""
    found = {}
    for name in names:
        column = table.column(name)
        if name in ("status", *_WORDS, "head", "error"):
            found[name] = np.array(column.to_pylist(), dtype=object)
        else:
            found[name] = column.to_numpy().astype(float)
    return found


def _known(column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise ConfigError(f"no column {column!r} to rank or filter by{did_you_mean(column, names)}: {', '.join(names)}")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ConfigError(f"{text!r} is no number")
    return value
