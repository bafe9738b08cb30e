"""Plain and extended XYZ, streamed, also from .xz, .gz and .bz2.

The values are those that ASE's reader gives, bit for bit; a bad frame gives an error in its place and reading goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers as NUMBER_OF

from ...errors import GFMError, InputFileError, InvalidStructureError
from ...structures import MAX_ATOMS, MAX_LINE, _chunks, _diagnose
from .files import open_text
from .options import Layout, ReadOptions, Units
from .raw import RawFrame, flags_from, no_cell

FORMAT = "extxyz"
_UNITS = Units(energy="eV", length="A", stress="eV/A^3")
_LAYOUT = Layout(name=FORMAT, units=_UNITS)
_PLAIN = "species:S:1:pos:R:3"
_ENTRY = re.compile(
    r"""\s*([^\s="'{}\[\]]+|"(?:[^"\\]|\\.)*")"""  # a key
    r"""(?:=("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^{}]*\}|\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\S*))?"""  # its value
)
_FLAGS = {
    "T": True,
    "F": False,
    "true": True,
    "false": False,
    "True": True,
    "False": False,
    "TRUE": True,
    "FALSE": False,
}
# Words that state a unit inside the comment line.
_UNIT_KEYS = {"energy_unit": "energy", "length_unit": "length", "forces_unit": "forces", "stress_unit": "stress"}


class Mark(NamedTuple):
    """The beginning of a frame: its number, the bytes and the lines before it."""

    frame: int = 0
    offset: int = 0
    line: int = 0


def frames(path: Path, options: ReadOptions, mark: Mark = Mark()) -> Iterator[RawFrame | GFMError]:  # noqa: B008
    """Every frame of the file, from `mark` on (of a file that is not compressed).

    Raises:
        InputFileError: the file is cut off, or no XYZ.
    """
    layouts: dict[tuple, Layout] = {(): _LAYOUT}
    with open_text(path, mark.offset) as handle:
        chunks = _chunks(handle, path, frame=mark.frame, number=mark.line)
        for frame, (number, lines) in enumerate(chunks, mark.frame):
            try:
                yield _frame(lines, path, frame, layouts)
            except GFMError as error:
                yield error
            except Exception as error:  # whatever: the frame is damaged, and this finds out where
                reason, atom = _diagnose(error, lines, number)
                yield InvalidStructureError(reason, source=str(path), frame=frame, atom=atom)


def marks(path: Path, stride: int) -> tuple[int, list[Mark]]:
    """Number of frames of a file that is not compressed, and where each `stride`-th begins.

    Lines are counted, not read: a file that breaks off has one frame more, the place of the error.
    """
    found: list[Mark] = []
    frame = line = offset = 0
    with open(path, "rb") as handle:
        head = handle.readline(MAX_LINE)
        while head:
            if not head.strip():
                line, offset, head = line + 1, handle.tell(), handle.readline(MAX_LINE)
                continue
            if frame % stride == 0:
                found.append(Mark(frame, offset, line))
            frame += 1
            if not head.strip().isdigit() or int(head) > MAX_ATOMS:
                break
            for _ in range(int(head) + 1):
                if not handle.readline(MAX_LINE):
                    return frame, found
            line += int(head) + 2
            offset, head = handle.tell(), handle.readline(MAX_LINE)
            for _ in range(3):
                if head.lstrip().startswith(b"VEC"):
                    line, offset, head = line + 1, handle.tell(), handle.readline(MAX_LINE)
    return frame, found


def _frame(lines: list[str], path: Path, frame: int, layouts: dict[tuple, Layout]) -> RawFrame:
    count = int(lines[0])
    where: dict[str, Any] = {"source": str(path), "frame": frame}
    if count == 0:
        raise InvalidStructureError("no atoms", **where)
    info = _comment(lines[1])
    if len(lines) > count + 2:
        raise InvalidStructureError("VEC lines (AMS dialect): convert the file to extended XYZ", **where)
    columns = _columns(info.pop("Properties", None) or _PLAIN, where)
    arrays = _arrays(lines[2:], columns, where)
    cell, pbc = _cell(info, where)
    layout = _layout(info, layouts, where)
    mask = arrays.pop("move_mask", None)
    return RawFrame(
        atomic_numbers=arrays.pop("numbers"),
        positions=arrays.pop("pos"),
        cell=cell,
        pbc=pbc,
        scalars=info,
        arrays=arrays,
        layout=layout,
        source=path.name,
        path=str(path),
        frame=frame,
        fixed=None if mask is None else np.flatnonzero(~mask.reshape(count, -1).all(axis=1)),
    )


# ---- the comment line ----


def _comment(line: str) -> dict[str, Any]:
    """Key=value pairs of the comment; free text gives keys that are True."""
    found: dict[str, Any] = {}
    position, end = 0, len(line.rstrip())
    while position < end:
        match = _ENTRY.match(line, position)
        if match is None or match.end() == position:
            position += 1  # a stray quote or bracket in free text
            continue
        position = match.end()
        key = match[1].strip('"')
        found[key] = True if match[2] is None else match[2]
    return {key: _value(key, text) if isinstance(text, str) else text for key, text in found.items()}


def _value(key: str, text: str) -> Any:
    if len(text) > 1 and text[0] + text[-1] in ('""', "''", "{}"):
        text = re.sub(r"\\(.)", r"\1", text[1:-1]) if "\\" in text else text[1:-1]
    if key in ("Properties", "group"):
        return text
    if text.startswith("_JSON "):
        return json.loads(text[6:])
    if text.startswith("["):
        return _bracketed(text)
    words = text.replace(",", " ").split()
    if not words or len(words) > 10_000:
        return text
    numbers = _numbers(words)
    if numbers is None:
        flags = [_FLAGS.get(word) for word in words]
        if None in flags:
            return text
        return flags[0] if len(flags) == 1 else np.array(flags)
    if len(numbers) == 1:
        return numbers[0]
    array = np.array(numbers)
    return array.reshape(3, 3, order="F") if len(array) == 9 and key != "Lattice" else array


def _bracketed(text: str) -> Any:
    try:
        return np.array(json.loads(text), dtype=np.float64)
    except (TypeError, ValueError):
        return text


def _numbers(words: list[str]) -> list[float] | None:
    if not all(word[0] in "+-.0123456789nNiI" and "_" not in word for word in words):
        return None
    try:
        return [int(word) if word.lstrip("+-").isdigit() and len(word) < 19 else float(word) for word in words]
    except ValueError:
        return None


def _cell(info: dict[str, Any], where: dict) -> tuple[np.ndarray, np.ndarray]:
    lattice, pbc = info.pop("Lattice", None), info.pop("pbc", None)
    if lattice is None:
        cell = no_cell()
    elif isinstance(lattice, np.ndarray) and lattice.size == 9 and lattice.dtype.kind in "fi":
        cell = lattice.reshape(3, 3).astype(np.float64)
    else:
        raise InvalidStructureError('Lattice must be nine numbers, such as Lattice="5 0 0 0 5 0 0 0 5"', **where)
    if pbc is None:
        return cell, np.full(3, lattice is not None)
    return cell, flags_from(pbc, where["source"], where["frame"])


def _layout(info: dict[str, Any], layouts: dict[tuple, Layout], where: dict) -> Layout:
    """The layout, with the units that the comment line states."""
    stated = tuple((key, str(info[key])) for key in _UNIT_KEYS if key in info)
    if stated not in layouts:
        from dataclasses import replace

        from .. import units

        try:
            found = {_UNIT_KEYS[key]: getattr(units, key)(text) for key, text in stated}
        except GFMError as error:
            raise InputFileError(f"{where['source']}, frame {where['frame']}: {error}") from error
        if "energy" in found and "forces" not in found:
            found["forces"] = None
        layouts[stated] = replace(_LAYOUT, units=replace(_UNITS, **found, declared=True))
    return layouts[stated]


# ---- the atoms ----


def _columns(properties: str, where: dict) -> list[tuple[str, str, slice]]:
    """(name, kind, columns) of each property."""
    fields = properties.split(":")
    found: list[tuple[str, str, slice]] = []
    start = 0
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3]):
        if kind not in ("S", "R", "I", "L") or not width.isdigit() or not 0 < int(width) < 1000:
            break
        found.append((name, kind, slice(start, start + int(width))))
        start += int(width)
    known = [name for name, _, _ in found]
    if len(fields) != 3 * len(found) or len(set(known)) != len(known):
        raise InvalidStructureError(f"Properties={properties[:80]} is damaged", **where)
    if "pos" not in known or not {"species", "Z"} & set(known):
        raise InvalidStructureError(f"Properties={properties[:80]} lacks species or pos", **where)
    return found


def _arrays(lines: list[str], columns: list[tuple[str, str, slice]], where: dict) -> dict[str, np.ndarray]:
    rows = [line.split() for line in lines]
    total = columns[-1][2].stop
    for atom, row in enumerate(rows):
        if len(row) != total:
            if len(row) < total:
                raise ValueError  # diagnosed with its line
            reason = f"has {len(row)} columns, but Properties names {total}: say what the others are"
            raise InvalidStructureError(reason, **where, atom=atom)
    table = list(zip(*rows))
    arrays: dict[str, np.ndarray] = {}
    for name, kind, span in columns:
        part = table[span]
        if name == "species":
            arrays["numbers"] = np.array([NUMBER_OF.get(word) or _element(word) for word in part[0]], np.int64)
        elif name == "Z" and kind == "I":
            arrays.setdefault("numbers", np.array(list(map(int, part[0])), np.int64))
        elif kind in "RI":
            values = np.array([list(map(float, column)) for column in part])
            arrays[name] = values[0] if len(part) == 1 else np.ascontiguousarray(values.T)
        elif kind == "L":
            arrays[name] = np.array([[_FLAGS[word] for word in column] for column in part]).T
    if "numbers" not in arrays or arrays["pos"].ndim != 2 or arrays["pos"].shape[1] != 3:
        raise InvalidStructureError("Properties must hold species:S:1 (or Z:I:1) and pos:R:3", **where)
    return arrays


def _element(word: str) -> int:
    number = NUMBER_OF.get(word.capitalize())
    if number is None and word.isdigit():
        number = int(word)
    if not number:
        raise ValueError(f"unknown element {word}")
    return number
