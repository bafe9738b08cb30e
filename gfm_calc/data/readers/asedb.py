"""ASE databases in SQLite, opened for reading only: ASE's own reader writes tables into files that lack them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ...errors import GFMError, InputFileError, InvalidStructureError, one_line
from .ase_rows import frame_of_row, loose_layout
from .options import ReadOptions
from .raw import RawFrame

FORMAT = "ase-db"
_COLUMNS = (
    "numbers", "positions", "cell", "pbc", "constraints", "energy", "free_energy", "forces", "stress",
    "key_value_pairs", "data",
)  # fmt: skip
_MAX_BLOB = 1 << 29


def frames(path: Path, options: ReadOptions, start: int = 0) -> Iterator[RawFrame | GFMError]:
    """Every row, by id; the first `start` are passed over.

    Raises:
        InputFileError: no SQLite, or no database of ASE.
    """
    frame = start
    try:
        connection = _connected(path)
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BLOB)
            loose = loose_layout(_metadata(connection), path)
            present = {row[1] for row in connection.execute("PRAGMA table_info(systems)")}
            if not {"numbers", "positions"} <= present:
                raise InputFileError(f"{path}: SQLite, but no database of ASE (it has no table of systems)")
            columns = [name for name in _COLUMNS if name in present]
            query = f"SELECT {', '.join(columns)} FROM systems ORDER BY id LIMIT -1 OFFSET {int(start)}"
            for values in connection.execute(query):
                yield _frame(dict(zip(columns, values)), path, frame, loose)
                frame += 1
        finally:
            connection.close()
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}, frame {frame}: not readable as SQLite ({one_line(error)}): damaged?") from error


def count(path: Path) -> int:
    """Number of rows; InputFileError as `frames`."""
    try:
        connection = _connected(path)
        try:
            return int(connection.execute("SELECT COUNT(*) FROM systems").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise InputFileError(f"{path}: not readable as a database of ASE ({one_line(error)}): damaged?") from error


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)


def _metadata(connection: sqlite3.Connection) -> Any:
    try:
        found = connection.execute("SELECT value FROM information WHERE name='metadata'").fetchone()
        return json.loads(found[0]) if found else None
    except (sqlite3.OperationalError, ValueError, TypeError, RecursionError):
        return None


def _frame(values: dict[str, Any], path: Path, frame: int, loose: Any) -> RawFrame | GFMError:
    try:
        return frame_of_row(_row(values), path, frame, loose)
    except GFMError as error:
        return error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return InvalidStructureError(f"a damaged row ({one_line(error)})", source=str(path), frame=frame)


def _row(values: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"numbers": np.frombuffer(values["numbers"], "<i4")}
    count = len(row["numbers"])
    for name, size in (("positions", 3 * count), ("cell", 9), ("forces", 3 * count), ("stress", 6)):
        blob = values.get(name)
        if blob is not None and len(blob):
            row[name] = np.frombuffer(blob, "<f4" if len(blob) == 4 * size else "<f8").astype(np.float64)
    if isinstance(values.get("pbc"), int):
        row["pbc"] = np.array([values["pbc"] >> axis & 1 for axis in range(3)], bool)
    for name in ("energy", "free_energy", "constraints"):
        row[name] = values.get(name)
    if values.get("key_value_pairs"):
        row["key_value_pairs"] = json.loads(values["key_value_pairs"])
    data = values.get("data")
    if isinstance(data, bytes):
        row["data"] = _unpacked(data)
    elif data:
        row["data"] = json.loads(data)
    return row


def _unpacked(blob: bytes) -> Any:
    """ASE's binary data: arrays, then JSON that tells where each lies; the first eight bytes tell where the JSON is."""
    offset = int.from_bytes(blob[:8], "little")
    if not 8 <= offset <= len(blob):
        raise ValueError("data points outside itself")
    return _resolved(json.loads(blob[offset:].decode()), blob)


def _resolved(value: Any, blob: bytes) -> Any:
    if isinstance(value, list):
        return [_resolved(part, blob) for part in value]
    if not isinstance(value, dict):
        return value
    if "__ndarray__" in value:
        shape, name, offset = value["__ndarray__"]
        dtype = np.dtype(str(name))
        size = int(np.prod(shape, dtype=object))
        if dtype.kind not in "fiub" or size < 0 or offset < 0 or offset + size * dtype.itemsize > len(blob):
            raise ValueError("an array that points outside the data")
        return np.frombuffer(blob, dtype.newbyteorder("<"), size, offset).reshape(shape)
    return {key: _resolved(part, blob) for key, part in value.items()}
