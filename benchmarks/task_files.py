"""The files of a downstream task as `gfm finetune` takes them: whole, divided by folds, or taken out of a package."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from gfm_calc.benchmarks.finetune_tasks import Case, Task
from gfm_calc.errors import InputFileError, one_line

_QM9 = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")  # the tables of qm9pack 1.0.3, in this order


@dataclass(frozen=True, kw_only=True)
class Files:
    """`train` and `test` to fine-tune on and to measure with (None: a part of `train`); `isolated`, energies of free atoms."""

    train: Path
    test: Path | None
    isolated: Path | None


def find(folder: Path, task: Task, name: str) -> Path:
    """A file of a task; `name` may hold a `*`.

    Raises:
        InputFileError: it is not there.
    """
    for place in (folder / task.folder, folder):
        found = sorted(place.glob(name)) if place.is_dir() else []
        if found:
            return found[0]
    raise InputFileError(
        f"{folder}: holds neither {task.folder}/{name} nor {name}: give the folder of the task's files"
    )


def require(folder: Path, task: Task, case: Case) -> None:
    """InputFileError where a file of a case is missing."""
    for name in (case.train, case.test, case.isolated, case.table, case.test_rows.get("file")):
        if name:
            find(folder, task, str(name))


def files_of(folder: Path, task: Task, case: Case, *, size: int, seed: int, place: Path) -> Files:
    """The files of a case; those that are made lie in `place`.

    Args:
        size: training structures that are wanted, 0 for all; tables are read no further than that takes.

    Raises:
        InputFileError: a file is missing, or is not what the task says.
    """
    isolated = find(folder, task, case.isolated) if case.isolated else None
    train = find(folder, task, case.train)
    test = find(folder, task, case.test) if case.test else None
    if case.table:
        table = find(folder, task, case.table)
        assert test is not None and case.label
        made = _from_table(table, (train, test), (case.label, case.factor), (size, task.most_test), seed, place)
        return Files(train=made[0], test=made[1], isolated=isolated)
    if case.fold is not None:
        train, test = _by_fold(train, case.fold, place)
    elif case.test_rows and test is not None:
        test = _rows_of(test, find(folder, task, case.test_rows["file"]), case.test_rows["key"], place)
    return Files(train=train, test=test, isolated=isolated)


def _by_fold(path: Path, fold: int, place: Path) -> tuple[Path, Path]:
    """The lines of a JSON-lines file whose "fold" is another one, and those where it is this."""
    with _text(path) as handle:
        lines = [line for line in handle if line.strip()]
    try:
        own = [json.loads(line)["fold"] == fold for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputFileError(f"{path}: its lines must be JSON objects with a fold ({one_line(error)})") from error
    if not any(own) or all(own):
        raise InputFileError(f"{path}: holds nothing of fold {fold}, or nothing else")
    found = []
    for name, wanted in (("train", False), ("test", True)):
        found.append(place / f"{name}.jsonl")
        found[-1].write_text("".join(line for line, is_own in zip(lines, own) if is_own == wanted))
    return found[0], found[1]


def _rows_of(path: Path, table: Path, key: str, place: Path) -> Path:
    """Some frames of a file of extended XYZ, whose numbers are in a JSON file."""
    with _text(path) as handle:
        frames = ase.io.read(io.StringIO(handle.read()), ":", format="extxyz")
    try:
        rows = json.loads(table.read_text())[key]
        chosen = [frames[k] for k in rows]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputFileError(f"{table}: holds no frames of {path.name} under {key!r} ({one_line(error)})") from error
    found = place / "test.extxyz"
    ase.io.write(found, chosen, format="extxyz")
    return found


def _from_table(
    table: Path, lists: tuple[Path, Path], label: tuple[str, float], most: tuple[int, int], seed: int, place: Path
) -> list[Path]:
    """Molecules of qm9pack (its wheel, or the folder it was unpacked to) as JSON lines, for each list of "id row" lines.

    Args:
        label: name of the column, and what its values are multiplied by.
        most: molecules of each list, drawn with `seed`; 0 for all.
    """
    wanted: dict[int, str] = {}
    found = [place / "train.jsonl", place / "test.jsonl"]
    for number, (path, count) in enumerate(zip(lists, most)):
        with _text(path) as handle:
            rows = [int(line.split()[1]) for line in handle if line.strip()]
        # The test molecules are the same for all seeds.
        random = np.random.default_rng([0 if number else seed, number])
        chosen = rows if not count or count >= len(rows) else random.choice(rows, count, replace=False)
        wanted |= dict.fromkeys((int(row) for row in chosen), str(found[number]))
    texts: dict[str, list[str]] = {str(path): [] for path in found}
    last = max(wanted)
    for number, row in enumerate(_table_rows(table)):
        if number in wanted:
            texts[wanted[number]].append(json.dumps(_molecule(row, *label, table)) + "\n")
        if number == last:
            break
    for path in found:
        path.write_text("".join(texts[str(path)]))
    return found


def _molecule(row: Mapping[str, str], label: str, factor: float, table: Path) -> dict[str, Any]:
    try:
        return {
            "elements": json.loads(row["Elements"].replace("'", '"')), "positions": _numbers(row["XYZ_Ang"]),
            label: factor * float(row[label]), "length_unit": "A",
        }  # fmt: skip
    except (KeyError, ValueError) as error:
        raise InputFileError(f"{table}: is no table of qm9pack with a column {label} ({one_line(error)})") from error


def _numbers(text: str) -> list[list[float]]:
    """A nested list, in which numbers may end with a point."""
    rows = text.strip().removeprefix("[[").removesuffix("]]").split("],[")
    return [[float(number) for number in row.split(",")] for row in rows]


def _table_rows(table: Path) -> Iterator[dict[str, str]]:
    for name in _QM9:
        with _member(table, name) as handle:
            yield from csv.DictReader(handle)


@contextmanager
def _member(table: Path, name: str) -> Iterator[Any]:
    if table.is_dir():
        with open(table / name, encoding="utf-8", newline="") as handle:
            yield handle
        return
    try:
        with zipfile.ZipFile(table) as archive, archive.open(f"qm9pack/data/{name}") as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8", newline="")
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputFileError(f"{table}: is no wheel of qm9pack ({one_line(error)})") from error


@contextmanager
def _text(path: Path) -> Iterator[Any]:
    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "rt", encoding="utf-8")
    with opened as handle:
        yield handle
