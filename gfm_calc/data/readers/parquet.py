"""Parquet: a row a frame, elements and positions as lists (QCML and others)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError, InvalidStructureError, MissingDependencyError, one_line
from .options import Layout, ReadOptions
from .qcml import LAYOUT as QCML
from .qcml import is_qcml
from .raw import RawFrame
from .tables import frame_of, with_stated_units

FORMAT = "parquet"
_ROWS = 256  # decoded at a time


def frames(path: Path, options: ReadOptions, start: int = 0) -> Iterator[RawFrame | GFMError]:
    """Every row from `start` on.

    Raises:
        InputFileError: not parquet, damaged, or without elements and positions.
        MissingDependencyError: pyarrow is not installed.
    """
    pyarrow = _pyarrow(path)
    frame = start
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            layout = QCML if is_qcml(file.schema_arrow.names) else _stated(file.schema_arrow, path)
            groups, before = _from_group(file, start)
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups):
                drop = min(max(start - before, 0), len(batch))
                before += len(batch)
                for row in batch.slice(drop).to_pylist():
                    yield _guarded(row, layout, path, frame)
                    frame += 1
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise InputFileError(f"{path}, frame {frame}: not readable as parquet ({one_line(error)}): damaged?") from error


def count(path: Path) -> int:
    """Number of rows; errors as `frames`."""
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputFileError(f"{path}: not readable as parquet ({one_line(error)}): damaged?") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"{path}: parquet needs pyarrow: pip install gfm-calc[readers]") from error
    return pyarrow


def _from_group(file: Any, start: int) -> tuple[list[int], int]:
    """The row groups from that of row `start` on, and the rows before them."""
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
    first = before = 0
    while first < len(sizes) - 1 and before + sizes[first] <= start:
        before += sizes[first]
        first += 1
    return list(range(first, len(sizes))), before


def _stated(schema: Any, path: Path) -> Layout:
    """The layout with the units in the file's metadata."""
    units = {key.decode("utf-8", "replace"): value for key, value in (schema.metadata or {}).items()}
    return with_stated_units(Layout(name=FORMAT), units, str(path))


def _guarded(row: dict[str, Any], layout: Layout, path: Path, frame: int) -> RawFrame | GFMError:
    try:
        return frame_of(row, layout, path, frame, group=str(row.get("group") or ""))
    except InvalidStructureError as error:
        return error
