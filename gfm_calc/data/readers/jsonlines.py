"""JSON lines: an object a line, with elements, positions and labels under their usual names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError, one_line
from .files import open_text
from .options import Layout, ReadOptions
from .pymatgen_dict import geometry_of
from .raw import RawFrame
from .tables import frame_of, with_stated_units

FORMAT = "jsonl"
MAX_LINE = 1 << 26  # characters
_LAYOUT = Layout(name=FORMAT)


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every line of the file; empty lines are passed over."""
    frame = 0
    layouts: dict[tuple, Layout] = {}
    with open_text(path) as handle:
        while line := handle.readline(MAX_LINE):
            if not line.strip():
                continue
            try:
                yield _frame(line, path, frame, layouts)
            except GFMError as error:
                yield error
            frame += 1


def _frame(line: str, path: Path, frame: int, layouts: dict[tuple, Layout]) -> RawFrame:
    where = f"{path}, frame {frame}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{where}: not valid JSON ({one_line(error)})") from error
    if not isinstance(row, dict):
        raise InputFileError(f"{where}: a line must be a JSON object, not {type(row).__name__}")
    units = {name: value for name, value in row.items() if isinstance(value, str) and name.endswith(("unit", "units"))}
    stated = tuple(sorted(units.items()))
    if stated not in layouts:
        layouts[stated] = with_stated_units(_LAYOUT, units, where)
    row = _flattened({name: value for name, value in row.items() if name not in units}, path, frame)
    return frame_of(row, layouts[stated], path, frame, group=str(row.get("group", "")))


def _flattened(row: dict[str, Any], path: Path, frame: int) -> dict[str, Any]:
    """`row` with a nested structure (pymatgen's, or a plain object) lifted to the top."""
    for name in ("structure", "atoms"):
        inner = row.get(name)
        if isinstance(inner, dict):
            rest = {key: value for key, value in row.items() if key != name}
            found = geometry_of(inner, path, frame) if "sites" in inner else inner
            return {**found, **rest}
    return row
