"""Datasets of many heads at once, from a folder of files and a TOML file of head cards.

[[heads]]
name = "pbe"                  # also code, functional, basis, dispersion, labels, description
[[heads.files]]
name = "crystals"             # of a file in the folder, with or without what follows the first dot
licence = "CC-BY-4.0"         # and citation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifacts import MANIFEST
from ..config import HeadSpec, from_mapping, read_toml
from ..errors import ConfigError, CorruptFileError, GFMError, InputFileError, did_you_mean
from .build import build
from .store import Dataset, open_dataset
from .tasks import FileTask, file_tasks

_CARD = ("name", "code", "functional", "basis", "dispersion", "labels", "description")
_FILE = ("name", "licence", "citation")


@dataclass(frozen=True, kw_only=True)
class HeadFiles:
    """A head's card and the files with its labels."""

    head: HeadSpec
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of one head: its dataset, and whether it was there already with all its files."""

    dataset: Dataset
    was_there: bool


def read_cards(path: Path, folder: Path) -> list[HeadFiles]:
    """The heads of a file of cards, with their files in `folder`.

    Raises:
        InputFileError: not TOML, or a file of a head is not in the folder.
        ConfigError: an unknown key, a value that a card refuses, or a file that is named twice.
    """
    content = read_toml(path)
    _refuse_unknown(content, ("heads",), str(path))
    tables = content.get("heads")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path}: names no head: write [[heads]] for each")
    if not folder.is_dir():
        raise InputFileError(f"{folder}: no such directory")
    heads: list[HeadFiles] = []
    seen: dict[Path, str] = {}
    for number, table in enumerate(tables):
        one = _head(table, f"{path}: heads {number}", folder)
        if any(one.head.name == other.head.name for other in heads):
            raise ConfigError(f"{path}: head {one.head.name} occurs twice: name all its files in one [[heads]]")
        for file in one.paths:
            if file in seen:
                raise ConfigError(
                    f"{path}: {file.name} is named twice ({seen[file]}, {one.head.name}): structures are not counted twice"
                )
            seen[file] = one.head.name
        heads.append(one)
    return heads


def build_all(
    heads: Sequence[HeadFiles], directory: Path, *, processes: int = 1, append: bool = False, overwrite: bool = False,
    skip_invalid: bool = False, on_progress: Callable[[int], None] = lambda structures: None,
) -> Iterator[Built]:  # fmt: skip
    """Write `directory`/HEAD for each head; one that is there with this card and these files is left as it is.

    Args:
        append: add the files that a dataset does not hold yet.
        overwrite: replace datasets of another card or other files.
        skip_invalid: leave unsound structures out.
        processes, on_progress: see `build.build`.

    Raises:
        GFMError: before anything is written where a dataset of something else is in the way.
    """
    plans = [_plan(one, directory / one.head.name, append, overwrite, skip_invalid) for one in heads]
    for card, tasks, there in plans:
        if not tasks:
            assert there is not None
            yield Built(dataset=there, was_there=True)
            continue
        adds = append and there is not None and not overwrite
        dataset = build(directory / card.name, tasks, card, processes=processes, on_progress=on_progress, append=adds,
                        overwrite=overwrite)  # fmt: skip
        yield Built(dataset=dataset, was_there=False)


def _plan(
    one: HeadFiles, directory: Path, append: bool, overwrite: bool, skip_invalid: bool
) -> tuple[HeadSpec, list[FileTask], Dataset | None]:
    """(card, what is to be read, the dataset that is there)."""
    if not (directory / MANIFEST).exists():
        return one.head, file_tasks(one.paths, skip_invalid=skip_invalid), None
    try:
        there = open_dataset(directory)
    except CorruptFileError:
        if not overwrite:
            raise
        return one.head, file_tasks(one.paths, skip_invalid=skip_invalid), None
    entries = {path: FileTask(paths=(path,)).inputs()[0] for path in one.paths}
    held = {(entry["name"], entry["sha256"]): entry for entry in there.inputs}
    missing = [path for path, entry in entries.items() if (entry["name"], entry["sha256"]) not in held]
    whole = skip_invalid or not any(entry["left_out"] for entry in held.values())
    if not missing and len(held) == len(entries) and there.head == one.head and whole:
        return one.head, [], there
    if overwrite:
        return one.head, file_tasks(one.paths, skip_invalid=skip_invalid), there
    if not append:
        raise GFMError(f"{directory}: holds other files or another card: --append adds files, --overwrite replaces it")
    return _extended(there, one.head), file_tasks(missing, skip_invalid=skip_invalid), there


def _extended(there: Dataset, card: HeadSpec) -> HeadSpec:
    """The dataset's card with the data that the new one names beside its own."""
    held = there.head
    if replace(card, training_data=(), description="") != replace(held, training_data=(), description=""):
        raise ConfigError(
            f"{there.directory}: holds {held.level_of_theory}, not {card.level_of_theory}, or another kind of labels: use a "
            "head for each"
        )
    names = {data["name"] for data in held.training_data}
    more = [data for data in card.training_data if data["name"] not in names]
    return replace(held, training_data=(*held.training_data, *more))


# ---- the file of cards ----


def _head(table: Any, where: str, folder: Path) -> HeadFiles:
    _refuse_unknown(table, (*_CARD, "files"), where)
    files = table.get("files")
    if "name" not in table:
        raise ConfigError(f"{where}: has no name")
    if not isinstance(files, list) or not files:
        raise ConfigError(f"{where}: head {table['name']}: names no file: write [[heads.files]] for each")
    for file in files:
        _refuse_unknown(file, _FILE, f"{where}: files")
        for key in _FILE:
            if not isinstance(file.get(key, ""), str):
                raise ConfigError(f"{where}: files: {key} must be text, not {file[key]!r}")
        if not file.get("name"):
            raise ConfigError(f"{where}: files: one has no name")
    values = {key: value for key, value in table.items() if key != "files"}
    head = from_mapping(HeadSpec, values | {"training_data": files}, where)
    return HeadFiles(head=head, paths=tuple(_find(folder, file["name"]) for file in files))


def _find(folder: Path, name: str) -> Path:
    names = sorted(path.name for path in folder.iterdir())
    found = [other for other in names if other == name] or [other for other in names if other.startswith(f"{name}.")]
    if not found:
        stems = {other.partition(".")[0] for other in names}
        raise InputFileError(f"{folder}: holds no file {name}{did_you_mean(name, stems)}")
    if len(found) > 1:
        raise InputFileError(f"{folder}: {name} may be {' or '.join(found)}: write the whole name")
    return folder / found[0]


def _refuse_unknown(table: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table, found {type(table).__name__}")
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")
