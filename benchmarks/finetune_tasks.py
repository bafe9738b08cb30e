"""Downstream tasks as data: files, official splits, metric and published values, each a TOML file in `tasks/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfm_calc.config import from_mapping, read_toml
from gfm_calc.errors import ConfigError, InputFileError, did_you_mean
from gfm_calc.train.evaluation import UNITS

_TASKS = Path(__file__).resolve().parent / "tasks"
METRICS = tuple(f"{term}_{kind}_{unit}" for term, unit in UNITS.items() for kind in ("mae", "rmse"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training: files of the task's folder to train on and to test on, and of energies of free atoms (symbol -> eV)."""

    name: str
    train: str
    test: str
    isolated: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """What somebody else reports: case -> value of the task's metric, with so many training structures."""

    model: str
    size: int
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task.

    Attributes:
        name, title; folder: below the user's; metric: one of `METRICS`.
        sizes: usual numbers of training structures.
        cases, published: see there.  card: of the head (level of theory).  licence, citation: of the data.
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

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(
                f"metric {self.metric!r}{did_you_mean(self.metric, METRICS)}: one of {', '.join(METRICS)}"
            )
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


def find(folder: Path, task: Task, name: str) -> Path:
    """A file of a task.

    Raises:
        InputFileError: it is not there.
    """
    for place in (folder / task.folder, folder):
        if (place / name).is_file():
            return place / name
    raise InputFileError(
        f"{folder}: holds neither {task.folder}/{name} nor {name}: give the folder of the task's files"
    )
