"""The frames of a file by number: how many there are, and any range of them without reading all that lies before."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError
from . import FORMATS, checked_format, read_raw
from .extxyz import Mark, marks
from .files import is_compressed
from .options import DEFAULTS, ReadOptions
from .raw import RawFrame

# Formats whose module has `count(path)` and whose `frames` takes the number of the first frame.
_JUMPING = ("ase-db", "ase-lmdb", "parquet")
_STRIDE = 256  # frames between the marks in extended XYZ


class FrameFile:
    """The frames of one file, by number; may be pickled to other processes.

    Extended XYZ, ASE databases, ASE-LMDB and parquet are entered anywhere; other formats, and what is compressed, are
    read from the beginning, and on from where the last range ended.

    Args:
        path, format, options: as for `readers.read`.

    Raises:
        InputFileError, MissingDependencyError: as `readers.read`, where nothing of the file can be read.
    """

    def __init__(self, path: Path, *, format: str | None = None, options: ReadOptions = DEFAULTS):
        self.path, self.options = path, options
        self.format = checked_format(path, format)
        self._marks: list[Mark] = []
        if self.format == "extxyz" and not is_compressed(path):
            self._count, self._marks = marks(path, _STRIDE)
        elif self.format in _JUMPING and not is_compressed(path):
            self._count = int(self._module().count(path))
        else:
            self._count = sum(1 for _ in read_raw(path, format=self.format, options=options))
        self._ahead: tuple[int, Iterator[Any]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None}

    def frames(self, start: int, stop: int) -> Iterator[RawFrame | GFMError]:
        """Frames `start` to `stop`; errors stand in their places, also those of a file that ends too early."""
        position, found = self._from(start)
        self._ahead = None  # until the range has been read to its end
        last: GFMError | None = None
        for frame in range(start, stop):
            item = next(found, None) if last is None else None
            if item is None:
                last = last or InputFileError(f"{self.path}, frame {frame}: is missing: has the file changed?")
                item = last
            elif isinstance(item, InputFileError):
                last = item
            position += 1
            yield item
        self._ahead = (position, found) if last is None and not self._enters() else None

    def _enters(self) -> bool:
        return bool(self._marks) or (self.format in _JUMPING and not is_compressed(self.path))

    def _module(self) -> Any:
        return import_module(f".{FORMATS[self.format][0]}", __package__)

    def _from(self, start: int) -> tuple[int, Iterator[Any]]:
        if self._marks:
            mark = self._marks[min(start // _STRIDE, len(self._marks) - 1)]
            found = read_raw(self.path, format=self.format, options=self.options, start=mark)
            return start, islice(found, start - mark.frame, None)
        if self._enters():
            return start, read_raw(self.path, format=self.format, options=self.options, start=start)
        if self._ahead is None or self._ahead[0] > start:
            self._ahead = 0, read_raw(self.path, format=self.format, options=self.options)
        position, found = self._ahead
        next(islice(found, start - position, start - position), None)
        return start, found
