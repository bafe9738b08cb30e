"""HDF5, read by `hdf5_groups` in a process of its own: its library hangs or dies on some damaged files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ...errors import GFMError, MissingDependencyError
from . import isolated
from .options import ReadOptions
from .raw import RawFrame


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every frame of every group, see `hdf5_groups.frames`.

    Raises:
        InputFileError: not HDF5, damaged, or without a group that holds elements and positions.
        MissingDependencyError: h5py is not installed.
    """
    if find_spec("h5py") is None:
        raise MissingDependencyError(f"{path}: HDF5 needs h5py: pip install gfm-calc[readers]")
    yield from isolated.frames("hdf5_groups", path, options)
