"""ASE's JSON databases, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError, InvalidStructureError, one_line
from .ase_rows import decoded, frame_of_row
from .files import open_text
from .jsonstream import JSONDamage, JSONStream
from .options import ReadOptions
from .raw import RawFrame

FORMAT = "ase-json"


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every row, in the order of the file."""
    frame = 0
    try:
        with open_text(path) as handle:
            stream = JSONStream(handle)
            for key in stream.members():
                if key.isdigit():
                    yield _frame(stream.value(), path, frame)
                    frame += 1
            stream.end()
    except JSONDamage as error:
        raise InputFileError(f"{path}, frame {frame}: {error}") from error


def _frame(row: Any, path: Path, frame: int) -> RawFrame | GFMError:
    try:
        if not isinstance(row, dict):
            raise InvalidStructureError("no row of ASE", source=str(path), frame=frame)
        return frame_of_row(decoded(row), path, frame)
    except GFMError as error:
        return error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return InvalidStructureError(f"a damaged row ({one_line(error)})", source=str(path), frame=frame)
