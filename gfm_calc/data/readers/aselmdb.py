"""ASE-LMDB (.aselmdb), as OMat24, OMol25, OPoly26, OC25 and ODAC are published: zlib-compressed JSON in an LMDB file.

The older .lmdb files of the Open Catalyst Project hold pickled objects; unpickling runs code, so they are refused.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError, InvalidStructureError, one_line
from .ase_rows import decoded, frame_of_row, loose_layout
from .lmdb_pages import LMDBFile
from .options import ReadOptions
from .raw import RawFrame

FORMAT = "ase-lmdb"
_MAX_ROW = 1 << 28  # bytes of one row, decompressed


def frames(path: Path, options: ReadOptions, start: int = 0) -> Iterator[RawFrame | GFMError]:
    """Every row by id, the first `start` passed over; ids that were deleted do not count.

    Raises:
        InputFileError: not LMDB, damaged, or holding pickled objects.
    """
    with LMDBFile(path) as table:
        loose = loose_layout(_value(table, b"metadata", path), path)
        for frame, number in enumerate(islice(_ids(table, path), start, None), start):
            yield _frame(table, number, path, frame, loose)


def count(path: Path) -> int:
    """Number of rows; InputFileError as `frames`."""
    with LMDBFile(path) as table:
        return sum(1 for _ in _ids(table, path))


def _ids(table: LMDBFile, path: Path) -> Iterator[int]:
    following = _value(table, b"nextid", path)
    deleted = _value(table, b"deleted_ids", path) or []
    sound = isinstance(following, int) and not isinstance(following, bool)
    if not sound or not 1 <= following <= table.num_entries + len(deleted) + 1:
        raise InputFileError(f"{path}: an LMDB file, but not of ASE (no sound 'nextid'): {_what_is_in(table)}")
    gone = {number for number in deleted if isinstance(number, int)}
    return (number for number in range(1, following) if number not in gone)


def _frame(table: LMDBFile, number: int, path: Path, frame: int, loose: Any) -> RawFrame | GFMError:
    try:
        row = _value(table, str(number).encode(), path)
        if not isinstance(row, dict):
            raise InvalidStructureError(f"row {number} is missing or no row of ASE", source=str(path), frame=frame)
        return frame_of_row(decoded(row), path, frame, loose)
    except InputFileError as error:
        return InputFileError(f"{path}, frame {frame}: {str(error).removeprefix(f'{path}: ')}")
    except GFMError as error:
        return error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return InvalidStructureError(f"a damaged row ({one_line(error)})", source=str(path), frame=frame)


def _value(table: LMDBFile, key: bytes, path: Path) -> Any:
    """The JSON under `key`, None where there is none."""
    stored = table.get(key)
    if stored is None:
        return None
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(stored, _MAX_ROW)
        if inflate.unconsumed_tail or not inflate.eof:
            raise ValueError("cut off, or larger than any row")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        if _is_pickled(stored):
            raise InputFileError(f"{path}: {_PICKLED}") from error
        raise InputFileError(f"{path}: {key.decode()} is not compressed JSON ({one_line(error)}): damaged") from error


_PICKLED = "holds pickled objects; unpickling runs code, so they are not read: take the .aselmdb or extxyz release"


def _is_pickled(value: bytes) -> bool:
    return len(value) > 2 and value[0] == 0x80 and value[1] <= 5


def _what_is_in(table: LMDBFile) -> str:
    for _, value in table.items():
        return _PICKLED if _is_pickled(value) else "take the .aselmdb release of the data"
    return "it is empty"
