"""Downstream tasks as data: files, official splits, metric and published values, each a TOML file in `tasks/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfm_calc.config import from_mapping, read_toml
from gfm_calc.errors import ConfigError, did_you_mean
from gfm_calc.train.evaluation import UNITS

_TASKS = Path(__file__).resolve().parent / "tasks"
METRICS = (
    *(f"{term}_{kind}_{unit}" for term, unit in UNITS.items() for kind in ("mae", "rmse")),
    "value_mae", "value_rmse", "accuracy", "roc_auc",
)  # fmt: skip
KINDS = {
    "energy": ("energy", True), "extensive": ("scalar", True), "intensive": ("scalar", False), "class": ("class", False),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training.

    Attributes:
        name; train, test: files of the task's folder to train on and to test on; without `test` a part of the structures is
            held out by groups.
        isolated: of energies of free atoms (symbol -> eV).
        label, kind, unit: name of a property in the files, one of `KINDS`, its unit.  factor: of values of a table.
        fold: `train` holds a fold on each line: this one is the test.
        test_rows: {file, key}: frames of `test` that are meant, from a JSON file.
        table: of all structures (qm9pack), where `train` and `test` are lists of rows.
        metric: instead of the task's.
    """

    name: str
    train: str
    test: str | None = None
    isolated: str | None = None
    label: str | None = None
    kind: str = "energy"
    unit: str = ""
    factor: float = 1.0
    fold: int | None = None
    test_rows: Mapping[str, str] = field(default_factory=dict)
    table: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind {self.kind!r}{did_you_mean(self.kind, KINDS)}: one of {', '.join(KINDS)}")
        if (self.kind == "energy") != (self.label is None):
            raise ConfigError("a property needs a label and a kind, and energies need neither")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What somebody else reports: case -> value of the case's metric, with so many training structures (0: all)."""

    model: str
    size: int
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task.

    Attributes:
        name, title; folder: below the user's; metric: one of `METRICS`.
        sizes: usual numbers of training structures, 0 for all.  most_test: test structures that are taken of a table.
        cases, published: see there.  card: of the head (level of theory).  licence, citation: of the data.
        read: how labels and geometries are to be read, fields of `ReadOptions`.
        overlaps: head -> what a model with that head has seen of this task: it earns no credit there.
        note: what a reader of the results must know.
    """

    name: str
    title: str
    folder: str
    metric: str
    sizes: tuple[int, ...]
    cases: tuple[Case, ...]
    published: tuple[Published, ...] = ()
    card: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    read: Mapping[str, str] = field(default_factory=dict)
    overlaps: Mapping[str, str] = field(default_factory=dict)
    most_test: int = 2000
    note: str = ""

    def __post_init__(self) -> None:
        for metric in (self.metric, *(case.metric for case in self.cases if case.metric)):
            if metric not in METRICS:
                raise ConfigError(f"metric {metric!r}{did_you_mean(metric, METRICS)}: one of {', '.join(METRICS)}")
        names = [case.name for case in self.cases]
        for entry in self.published:
            for name in entry.values:
                if name not in names:
                    raise ConfigError(f"published: {entry.model}: no case {name!r}{did_you_mean(name, names)}")

    def case(self, name: str) -> Case:
        """A case by name; ConfigError with the nearest one where there is none."""
        names = [case.name for case in self.cases]
        if name not in names:
            raise ConfigError(f"task {self.name}: no case {name!r}{did_you_mean(name, names)}: {', '.join(names)}")
        return self.cases[names.index(name)]

    def metric_of(self, case: Case) -> str:
        """The name of the figure that counts."""
        return case.metric or self.metric


def task_names() -> list[str]:
    """The tasks that come with the package."""
    return sorted(path.stem for path in _TASKS.glob("*.toml"))


def load_task(name: str) -> Task:
    """A packaged task, or one from a file.

    Raises:
        ConfigError: no such task, or an unknown key.
        InputFileError: a file that is not TOML.
    """
    path = Path(name)
    if not path.is_file():
        if name not in task_names():
            raise ConfigError(f"no task {name!r}{did_you_mean(name, task_names())}: one of {', '.join(task_names())}")
        path = _TASKS / f"{name}.toml"
    values: dict[str, Any] = read_toml(path)
    for key, kind in (("cases", Case), ("published", Published)):
        values[key] = tuple(
            from_mapping(kind, entry, f"{path.name}: {key} {k}") for k, entry in enumerate(values.get(key, ()))
        )
    values["sizes"] = tuple(values.get("sizes", ()))
    return from_mapping(Task, values, path.name)
