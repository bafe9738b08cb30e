"""Files of labelled structures, one module a format: `read(path)` yields `Record`s in eV, Å, eV/Å and eV/Å³.

Files are read lazily and in bounded memory.  Nothing is unpickled.  What a file does not say (a unit, which of two
energies is meant) is asked for, never guessed: the error names the option.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import ConfigError, GFMError, InputFileError, did_you_mean, one_line
from ..schema import Record
from .conventions import Convention
from .extxyz import Mark
from .labels import Labeller
from .options import DEFAULTS, ReadOptions
from .raw import RawFrame

__all__ = ["FORMATS", "Convention", "Labeller", "RawFrame", "ReadOptions", "read", "read_raw"]

# {name of the format: (module, function)}; a module is imported when a file needs it.
FORMATS = {
    "extxyz": ("extxyz", "frames"),
    "ase-db": ("asedb", "frames"),
    "ase-json": ("ase_json", "frames"),
    "ase-lmdb": ("aselmdb", "frames"),
    "traj": ("ase_files", "trajectory"),
    "vasprun": ("ase_files", "vasprun"),
    "outcar": ("ase_files", "outcar"),
    "ase": ("ase_files", "frames"),
    "npz": ("npz", "frames"),
    "hdf5": ("hdf5", "frames"),
    "jsonl": ("jsonlines", "frames"),
    "alexandria": ("alexandria", "frames"),
    "mptrj": ("mptrj", "frames"),
    "parquet": ("parquet", "frames"),
    "tfrecord": ("tfrecord", "frames"),
}


def read(
    path: Path | str, *, format: str | None = None, options: ReadOptions = DEFAULTS, on_error: str = "raise"
) -> Iterator[Any]:
    """The records of a file, in order, read lazily.

    Args:
        path: the file.
        format: a name of `FORMATS`; None: by the name and the first bytes of the file.
        options: what the file does not say itself.
        on_error: "raise", or "yield" to have the error of a bad frame in its place; an error that concerns the whole
            file (a key or unit that is left open, damage) is the last item then.

    Raises:
        InputFileError: missing, empty, damaged, of no known format, or leaving a key or a unit open.
        InvalidStructureError: an unsound structure or label.
        MissingDependencyError: the format needs a package that is not installed.
    """
    if on_error not in ("raise", "yield"):
        raise ConfigError(f"on_error must be 'raise' or 'yield', not {on_error!r}")
    return _records(Path(path), format, Labeller(options), on_error)


def _records(path: Path, format: str | None, labeller: Labeller, on_error: str) -> Iterator[Record | GFMError]:
    for raw in read_raw(path, format=format, options=labeller.options):
        found: Record | GFMError
        if isinstance(raw, GFMError):
            found = raw
        else:
            try:
                found = labeller.record(raw)
            except GFMError as error:
                found = error
        if isinstance(found, GFMError) and on_error == "raise":
            raise found
        yield found
        if isinstance(found, InputFileError) and not isinstance(raw, GFMError):
            return  # a question about the labels: it would be asked for every frame


def read_raw(
    path: Path | str, *, format: str | None = None, options: ReadOptions = DEFAULTS, start: int | Mark | None = None
) -> Iterator[RawFrame | GFMError]:
    """The frames of a file as it has them, before keys and units are decided; errors stand in their places.

    Args:
        start: where to begin, for formats that can be entered anywhere (see `access.FrameFile`, which knows them).
    """
    path = Path(path)
    begin = start.frame if isinstance(start, Mark) else start or 0
    frame = begin - 1
    try:
        name = checked_format(path, format)
        module, function = FORMATS[name]
        frames = getattr(import_module(f".{module}", __name__), function)
        given = (path, options) if start is None else (path, options, start)
        for frame, found in enumerate(frames(*given), begin):  # noqa: B007 (used in the message below)
            yield found
        if frame < 0 and start is None:
            yield InputFileError(f"{path}: holds no structures")
    except GeneratorExit:
        raise
    except GFMError as error:
        yield error
    except Exception as error:  # a damaged file may make a reader below us raise whatever comes
        what = "" if isinstance(error, OSError | EOFError) else f"{type(error).__name__}: "
        yield InputFileError(f"{path}, frame {frame + 1}: cannot be read ({what}{one_line(error)}): damaged?")


def checked_format(path: Path, format: str | None) -> str:
    """The format of a file that is there; None: by its name and first bytes.

    Raises:
        ConfigError: no such format.
        InputFileError: missing, empty, a directory, or of a format that cannot be told.
    """
    from .detect import format_of

    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}: one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise InputFileError(f"{path}: is a directory; give the files in it")
    if not path.exists():
        raise InputFileError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise InputFileError(f"{path}: is empty")
    return format or format_of(path)
