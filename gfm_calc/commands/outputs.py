"""What commands write: beside the target, then renamed; what is there is kept unless the user says otherwise."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError, GFMError, one_line

if TYPE_CHECKING:
    from ase import Atoms

EXTXYZ = (".extxyz", ".xyz")
_NO_TARGET = ("mysql", "postgresql", "db", "json", "bundletrajectory")
_RESERVED = ("Lattice", "Properties", "pbc")  # words of the format itself


def add_output(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """-o/--output and --overwrite."""
    parser.add_argument("-o", "--output", required=True, type=Path, metavar=metavar, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there (default: an error)")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """GFMError where `path` must not be written."""
    if path.is_dir():
        raise GFMError(f"{path}: is a directory; give the name of a file")
    if path.exists() and not overwrite:
        raise GFMError(f"{path}: exists; add --overwrite to replace it")


@contextmanager
def written_aside(path: Path, overwrite: bool) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it when the block ends well, removed when it does not.

    Raises:
        GFMError: `path` exists and `overwrite` is not set, or the disk refuses.
    """
    refuse_existing(path, overwrite)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
        refuse_existing(path, overwrite)  # it may have come while we worked
        os.replace(aside, path)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise GFMError(f"{path}: could not be written ({one_line(error)}); nothing was changed") from error
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def files_aside(directory: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A folder to write the files `names` to; they move into `directory` when the block ends well.

    Other files in `directory` are never touched.
    """
    if directory.exists() and not directory.is_dir():
        raise GFMError(f"{directory}: is a file; give the name of a directory")
    for name in names:
        refuse_existing(directory / name, overwrite)
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gfm-", dir=directory) as folder:
            yield Path(folder)
            for name in names:
                refuse_existing(directory / name, overwrite)  # it may have come while we worked
            for name in names:
                os.replace(Path(folder) / name, directory / name)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise GFMError(f"{directory}: could not be written ({one_line(error)})") from error
    finally:
        if is_new:
            with suppress(OSError):
                directory.rmdir()  # only where it stayed empty


class FrameWriter:
    """Frames written one by one as a job goes on, so that a job that is cut off leaves those it had.

    The file is opened at the first frame: a job that fails before leaves what was there.

    Args:
        path: .traj, .extxyz or .xyz.
        overwrite: replace a file that is there.

    Raises:
        ConfigError: another suffix.
        GFMError: the file exists and `overwrite` is not set.
    """

    def __init__(self, path: Path, overwrite: bool):
        if path.suffix.lower() not in (".traj", *EXTXYZ):
            raise ConfigError(f"{path}: a trajectory is .traj, {' or '.join(EXTXYZ)}")
        refuse_existing(path, overwrite)
        self.path = path
        self.frames = 0
        self._file: Any = None

    def write(self, atoms: Atoms, **info: Any) -> None:
        """Append `atoms` with the energy, forces and stress that its calculator holds."""
        results = {k: v for k, v in atoms.calc.results.items() if k in ("energy", "forces", "stress")}
        try:
            if self._file is None:
                self._open()
            if self.path.suffix.lower() == ".traj":
                self._file.write(atoms, **results)
            else:
                write_extxyz(self._file, atoms, {**results, **info})
                self._file.flush()
        except OSError as error:
            raise GFMError(f"{self.path}: could not be written ({one_line(error)})") from error
        self.frames += 1

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        from ase.io.trajectory import TrajectoryWriter

        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix.lower() == ".traj":
            self._file = TrajectoryWriter(self.path, "w")
        else:
            self._file = open(self.path, "w", encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented JSON; NaN and inf are errors, not JSON."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    """Comma-separated numbers under one line of names with units."""
    lines = [",".join(header), *(",".join(repr(float(value)) for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def structure_format(path: Path) -> str:
    """ASE's name of the format that the file name asks for.

    Raises:
        ConfigError: one that ASE cannot write.
    """
    from ase.io import formats

    try:
        name = "extxyz" if path.suffix.lower() in EXTXYZ else formats.filetype(str(path), read=False)
        known = formats.get_ioformat(name)
    except (formats.UnknownFileTypeError, TypeError) as error:
        raise ConfigError(f"{path}: unknown format; use .extxyz, .cif, .traj, .vasp, ...") from error
    if not known.can_write or name in _NO_TARGET:
        raise ConfigError(f"{path}: structures cannot be written as {name}; use .extxyz, .cif, .traj, .vasp, ...")
    return name


def write_structure(path: Path, fmt: str, atoms: Atoms, results: Mapping[str, Any]) -> None:
    """One structure with `results` ({name: value}, see `write_extxyz`) where the format can hold them."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    if fmt == "extxyz":
        with open(path, "w", encoding="utf-8") as handle:
            write_extxyz(handle, atoms, results)
        return
    copy = atoms.copy()
    keys = ("energy", "forces", "stress")
    copy.calc = SinglePointCalculator(copy, **{key: results[key] for key in keys if key in results})
    try:
        write(str(path), copy, format=fmt)
    except (OSError, GFMError):
        raise
    except Exception as error:  # ASE's writers raise whatever comes
        raise ConfigError(f"a structure like this cannot be written as {fmt} ({one_line(error)})") from error


def write_extxyz(handle: TextIO, atoms: Atoms, results: Mapping[str, Any]) -> None:
    """Append a frame; `results` go to the columns (arrays with a row an atom) and to the comment line (all else).

    Positions and forces have 8 decimals, as ASE writes them.  Text that the format cannot hold (line ends; blanks in a
    column) is mended, so that the file can always be read back.
    """
    import numpy as np
    from ase.io.extxyz import write_xyz
    from ase.stress import voigt_6_to_full_3x3_stress

    copy = atoms.copy()
    copy.info = {_one_word(k): _flat(v) for k, v in atoms.info.items() if k not in _RESERVED and k not in results}
    for name, array in list(copy.arrays.items()):
        if name in results:
            del copy.arrays[name]
        elif array.dtype.kind in "OUS":
            copy.arrays[name] = np.array([_one_word(value) for value in array.tolist()])
    for name, value in results.items():
        if isinstance(value, np.ndarray) and value.ndim and len(value) == len(atoms) and not name.endswith("stress"):
            copy.arrays[name] = value
        elif name == "stress" and np.shape(value) == (6,):
            copy.info[name] = voigt_6_to_full_3x3_stress(value)
        else:
            copy.info[name] = value
    try:
        write_xyz(handle, copy, write_results=False)
    except OSError:
        raise
    except Exception as error:  # an array or info value of a kind that the format has no room for
        raise ConfigError(f"a structure like this cannot be written as extxyz ({one_line(error)})") from error


def _one_word(value: Any) -> str:
    return "_".join(str(value).split()) or "_"


def _flat(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value
