"""What a dataset is built from: tasks, each read from beginning to end by one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..artifacts import sha256_of_file
from ..errors import ConfigError, GFMError, InputFileError, InvalidStructureError
from .readers import ReadOptions, read
from .readers.options import DEFAULTS
from .registry import source as registry_source
from .schema import Record

TASK_BYTES = 16 << 20  # of input files that one task reads, at least, where there are so many


class Task(Protocol):
    """A part of the input that one process reads from beginning to end; pickled to it."""

    def identity(self) -> list[Any]:
        """JSON that differs where the task would give other records."""

    def records(self) -> Iterator[Record | InvalidStructureError]:
        """The records, always the same in the same order; errors for structures that are left out."""

    def inputs(self) -> list[dict[str, Any]]:
        """{name, size, sha256} of each file that is read."""


@dataclass(frozen=True, kw_only=True)
class FileTask:
    """Files, one after the other, through `readers.read`.

    Attributes: `paths`; `format` and `options` as for `read`; `skip_invalid`, leave unsound structures out (and say so);
    `source`, a name of the registry: frames that do not belong to it are passed over.
    """

    paths: tuple[Path, ...]
    format: str | None = None
    options: ReadOptions = DEFAULTS
    skip_invalid: bool = False
    source: str | None = None

    def identity(self) -> list[Any]:
        """Names, sizes and times of the files, and how they are read."""
        stats = [(path.name, path.stat()) for path in self.paths]
        files = [[name, s.st_size, s.st_mtime_ns] for name, s in stats]
        return [files, self.format, repr(self.options), self.skip_invalid, self.source]

    def records(self) -> Iterator[Record | InvalidStructureError]:
        """The records of all files."""
        on_error = "yield" if self.skip_invalid else "raise"
        origin = None if self.source is None else registry_source(self.source)
        for path in self.paths:
            for found in read(path, format=self.format, options=self.options, on_error=on_error):
                if isinstance(found, GFMError) and not isinstance(found, InvalidStructureError):
                    raise found
                if origin is None or isinstance(found, GFMError) or origin.keeps(found):
                    yield found

    def inputs(self) -> list[dict[str, Any]]:
        """{name, size, sha256} of the files, and the name of the registry that they were read by."""
        known = {} if self.source is None else {"published_as": self.source}
        return [{"name": p.name, "size": p.stat().st_size, "sha256": sha256_of_file(p), **known} for p in self.paths]


def file_tasks(
    paths: Sequence[Path], *, format: str | None = None, options: ReadOptions = DEFAULTS, skip_invalid: bool = False,
    source: str | None = None,
) -> list[FileTask]:  # fmt: skip
    """Tasks for `paths`, in order: small files share one; see `FileTask`.

    Raises:
        ConfigError: a file named twice.
        InputFileError: a file that is missing.
    """
    groups: list[list[Path]] = [[]]
    held = 0
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path}: named twice; structures are not counted twice")
        if not path.exists():
            raise InputFileError(f"{path}: no such file")
        if groups[-1] and held >= TASK_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(path)
        held += path.stat().st_size
    how: dict[str, Any] = {"format": format, "options": options, "skip_invalid": skip_invalid, "source": source}
    return [FileTask(paths=tuple(group), **how) for group in groups if group]
