"""The user's structure files, read safely.

ASE's readers let KeyError, StopIteration and AssertionError out on damaged files, pass NaN through, and take quadratic time
on compressed extxyz.  Here every file gives sound structures or one of our errors, which names file, frame and atom.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from ase import Atoms
from ase.data import atomic_numbers
from ase.io import extxyz, formats, iread

from .errors import GFMError, InputFileError, InvalidStructureError, one_line

MAX_ATOMS = 10_000_000  # in a frame; a larger count in a file is damage
MAX_LINE = 1 << 24  # characters
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_SERVERS = ("mysql", "postgresql")  # ASE takes these names for databases elsewhere
_PROPERTIES = re.compile(r'Properties\s*=\s*["{]?([^\s"}]+)')
_DAMAGE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error)


def read_frames(path: Path | str) -> Iterator[Atoms | GFMError]:
    """Every frame of a file, in order: the structure, or the error that stands in its place.

    Reading goes on after a bad frame where the file's layout allows it; otherwise the error is the last item.  The
    structures have passed `validate_atoms` and `charge_and_spin`; `info` and constraints are kept.  Extended XYZ is
    streamed, also from .xz, .gz and .bz2.

    Raises:
        InputFileError: missing, empty, or of no format that ASE knows.
    """
    path = Path(path)
    fmt = _format(path)
    frames = _extxyz_frames(path) if fmt == "extxyz" else _ase_frames(path, fmt)
    count = 0
    for count, found in enumerate(frames, 1):
        yield found if isinstance(found, GFMError) else _checked(found, str(path), count - 1, fmt)
    if not count:
        yield InputFileError(f"{path}: holds no structures")


def read_structures(path: Path | str) -> Iterator[Atoms]:
    """`read_frames` that raises the first error."""
    for found in read_frames(path):
        if isinstance(found, GFMError):
            raise found
        yield found


def read_structure(path: Path | str, frame: int | None = None) -> tuple[Atoms, int]:
    """One structure of a file and its frame number.

    Args:
        frame: which; negative counts from the end; None takes the only one.

    Raises:
        InputFileError: no such frame, or several where none was chosen.
        InvalidStructureError: that frame is not sound.
    """
    kept: deque[tuple[int, Atoms | GFMError]] = deque(maxlen=max(1, -(frame or 0)))
    for item in enumerate(read_frames(path)):
        if frame is None and kept:
            raise InputFileError(
                f"{path}: holds several frames; choose one with --frame N (the first is 0, the last -1)"
            )
        kept.append(item)
        if item[0] == frame:
            break
    number, found = kept[0]
    if isinstance(kept[-1][1], InputFileError):
        raise kept[-1][1]  # the file broke before the frame was reached
    if frame is not None and (len(kept) < -frame if frame < 0 else number < frame):
        raise InputFileError(f"{path}: has no frame {frame}; it holds {kept[-1][0] + 1}")
    if isinstance(found, GFMError):
        raise found
    return found, number


@contextmanager
def located(path: Path | str, frame: int | None = None) -> Iterator[None]:
    """Errors about a structure leave this block with the file and frame that it came from."""
    try:
        yield
    except InvalidStructureError as error:
        raise error.at(source=str(path), frame=frame) from error


def _checked(atoms: Atoms, source: str, frame: int, fmt: str) -> Atoms | GFMError:
    # Here, since it brings torch, which takes seconds and which the processes that only read files do without.
    from .graph import charge_and_spin, validate_atoms

    try:
        validate_atoms(atoms, source=source, frame=frame)
        charge_and_spin(atoms, source=source, frame=frame)
        if fmt == "cif":
            refuse_disorder(atoms.info.get("occupancy"), source, frame)
    except GFMError as error:
        return error
    return atoms


def refuse_disorder(occupancy: Mapping[str, Mapping[str, float]] | None, source: str, frame: int) -> None:
    """InvalidStructureError for partly occupied sites: ASE keeps the most frequent element and says nothing."""
    for site, shares in (occupancy or {}).items():
        if len(shares) > 1 or min(shares.values()) < 0.999:
            what = ", ".join(f"{symbol} {share:g}" for symbol, share in shares.items())
            reason = f"site {site} is partly occupied ({what}): give an ordered structure"
            raise InvalidStructureError(reason, source=source, frame=frame)


def _format(path: Path) -> str:
    if path.is_dir():
        raise InputFileError(f"{path}: is a directory; give a file of structures")
    if not path.exists():
        raise InputFileError(f"{path}: no such file")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputFileError(f"{path}: is empty")
        fmt = formats.filetype(str(path))
        formats.get_ioformat(fmt)
    except _DAMAGE as error:
        raise InputFileError(f"{path}: cannot be read ({one_line(error)})") from error
    except formats.UnknownFileTypeError as error:
        raise InputFileError(
            f"{path}: not a format of structures that ASE knows; its name decides (.xyz, .cif, ...)"
        ) from error
    if fmt in _SERVERS:
        raise InputFileError(f"{path}: databases on servers are not read; export the structures to a file")
    return fmt


# ---- extended XYZ: split into frames here, each parsed by ASE, so that a bad frame spoils no other ----


def _extxyz_frames(path: Path) -> Iterator[Atoms | GFMError]:
    frame = 0
    try:
        with _OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8") as handle:
            for number, lines in _chunks(handle, path):
                yield _parse_chunk(lines, str(path), frame, number)
                frame += 1
    except InputFileError as error:
        yield error
    except _DAMAGE as error:
        yield InputFileError(
            f"{path}, frame {frame}: cannot be read ({one_line(error)}): damaged, or not what its name says"
        )


def _chunks(handle: TextIO, path: Path, *, frame: int = 0, number: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of each frame; `frame` frames and `number` lines lie before the handle."""
    pending = handle.readline(MAX_LINE)
    while pending:
        number += 1
        if not pending.strip():
            pending = handle.readline(MAX_LINE)
            continue
        start, header = number, pending.strip()
        where = f"{path}, frame {frame}"
        if not header.isascii() or not header.isdigit() or int(header) > MAX_ATOMS:
            raise InputFileError(f"{where}: line {number} should be a number of atoms, not {header[:40]!r}: damaged")
        lines = [pending, *_lines(handle, 1 + int(header), where)]
        number += len(lines) - 1
        pending = handle.readline(MAX_LINE)
        for _ in range(3):  # cell vectors of the AMS dialect
            if not pending.lstrip().startswith("VEC"):
                break
            lines.append(pending)
            number += 1
            pending = handle.readline(MAX_LINE)
        yield start, lines
        frame += 1


def _lines(handle: TextIO, wanted: int, where: str) -> Iterator[str]:
    for found in range(wanted):
        line = handle.readline(MAX_LINE)
        if not line:
            raise InputFileError(f"{where}: ends after {max(found - 1, 0)} of {wanted - 1} atoms: truncated")
        yield line


def _parse_chunk(lines: list[str], source: str, frame: int, number: int) -> Atoms | GFMError:
    if int(lines[0]) == 0:
        return Atoms()
    given = _PROPERTIES.search(lines[1])
    if given and "pos:R:3" not in given[1]:  # ASE would put all atoms at the origin
        reason = f"line {number + 1}: Properties={given[1][:80]} is damaged, it holds no pos:R:3"
        return InvalidStructureError(reason, source=source, frame=frame)
    try:
        return next(extxyz.read_xyz(StringIO("".join(lines)), 0))
    except Exception as error:  # ASE's parser raises whatever comes
        reason, atom = _diagnose(error, lines, number)
        return InvalidStructureError(reason, source=source, frame=frame, atom=atom)


def _diagnose(error: Exception, lines: list[str], number: int) -> tuple[str, int | None]:
    """What is wrong with a frame that the parser refused, and the atom where that is known."""
    given = _PROPERTIES.search(lines[1])
    fields = (given[1] if given else "species:S:1:pos:R:3").split(":")
    try:
        columns = [
            (n, k) for n, k, c in zip(fields[::3], fields[1::3], fields[2::3], strict=True) for _ in range(int(c))
        ]
    except ValueError:
        return f"line {number + 1}: Properties={':'.join(fields)} is damaged", None
    for atom, line in enumerate(lines[2 : 2 + int(lines[0])]):
        values = line.split()
        where = f"line {number + 2 + atom}"
        if len(values) < len(columns):
            return f"{where} has {len(values)} of {len(columns)} columns: damaged or truncated", atom
        for value, (name, kind) in zip(values, columns):
            if kind in "RI" and not _is_number(value):
                return f"{where}: {name} is {value[:40]!r}, not a number", atom
            if name == "species" and value.capitalize() not in atomic_numbers:
                return f"{where}: unknown element {value[:40]!r}", atom
    return f"line {number + 1} or after: {type(error).__name__}: {one_line(error)}", None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- every other format: ASE's reader, fenced in ----


def _ase_frames(path: Path, fmt: str) -> Iterator[Atoms | GFMError]:
    frame = 0
    try:
        with _plain(path) as plain:
            for atoms in iread(str(plain), ":", format=fmt, parallel=False, do_not_split_by_at_sign=True):
                yield atoms
                frame += 1
    except GeneratorExit:
        raise
    except Exception as error:  # ASE's readers raise whatever comes
        kind = "" if isinstance(error, OSError | formats.UnknownFileTypeError) else f"{type(error).__name__}: "
        yield InputFileError(f"{path}, frame {frame}: cannot be read as {fmt} ({kind}{one_line(error)})")


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """The file itself, or a decompressed copy of it: ASE seeks, which starts a compressed file over each time."""
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gfm-") as folder:
        plain = Path(folder) / path.stem
        with opener(path, "rb") as source, open(plain, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield plain
