"""Candidates from files, folders and datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ase import Atoms

from gfm_calc.artifacts import sha256, sha256_of_file
from gfm_calc.data.readers import Labeller, RawFrame, ReadOptions, read_raw
from gfm_calc.data.readers.access import FrameFile
from gfm_calc.data.store import open_dataset
from gfm_calc.errors import GFMError, InputFileError
from gfm_calc.screening.streams import Made
from gfm_calc.structures import refuse_disorder

# Structures are screened, not their labels; where a file has some they are left alone.
_NO_LABELS = {"energy_key": "none", "forces_key": "none", "stress_key": "none", "group_key": "none"}
_SINGLE = (".cif", ".vasp", ".poscar", ".contcar", ".xsf", ".gen", ".res", ".xtl", ".cell")


class Files:
    """Every frame of one file; see `streams.Stream`.

    Args:
        path: in any format of `gfm data`.
        length_unit: of the positions, where the file does not say.

    Raises:
        InputFileError: nothing of the file can be read.
    """

    def __init__(self, path: Path, *, length_unit: str | None = None):
        self.path = path
        self._labeller = Labeller(ReadOptions(**_NO_LABELS, length_unit=length_unit))  # type: ignore[arg-type]
        self._frames = FrameFile(path, options=self._labeller.options)
        if not len(self._frames):
            raise InputFileError(f"{path}: holds no structures")
        self._digest = sha256_of_file(path)

    def __len__(self) -> int:
        return len(self._frames)

    def identity(self) -> dict[str, Any]:
        """Name, content and unit of the file."""
        unit = self._labeller.options.length_unit
        return {"kind": "file", "name": self.path.name, "sha256": self._digest, "length_unit": unit}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        for frame, raw in enumerate(self._frames.frames(start, stop), start):
            yield f"{self.path.name}:{frame}", structure_of(raw, self._labeller)


class SingleFiles:
    """A folder of files of one structure each (.cif, .vasp, POSCAR, ...), by name; see `streams.Stream`.

    Raises:
        InputFileError: no such files in it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._names = sorted(
            str(file.relative_to(path))
            for file in path.rglob("*")
            if file.is_file() and (file.suffix.lower() in _SINGLE or file.name.upper() in ("POSCAR", "CONTCAR"))
        )
        if not self._names:
            kinds = ", ".join(_SINGLE)
            raise InputFileError(f"{path}: a folder without files of one structure each ({kinds}); give files by name")
        self._labeller = Labeller(ReadOptions(**_NO_LABELS))  # type: ignore[arg-type]
        digests = "".join(f"{name}\0{sha256_of_file(path / name)}\n" for name in self._names)
        self._digest = sha256(digests.encode("utf-8", "surrogateescape"))

    def __len__(self) -> int:
        return len(self._names)

    def identity(self) -> dict[str, Any]:
        """Names and contents of the files."""
        return {"kind": "folder", "name": self.path.name, "files": len(self._names), "sha256": self._digest}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        for name in self._names[start:stop]:
            yield name, self._one(self.path / name)

    def _one(self, file: Path) -> Atoms | GFMError:
        found = list(read_raw(file, format="ase", options=self._labeller.options))
        if len(found) > 1:
            return InputFileError(f"{file}: holds {len(found)} structures: give it by its own name, not in a folder")
        return structure_of(found[0], self._labeller)


class Stored:
    """The structures of a dataset of `gfm data build`; see `streams.Stream`."""

    def __init__(self, path: Path):
        self._dataset = open_dataset(path)

    def __len__(self) -> int:
        return len(self._dataset)

    def identity(self) -> dict[str, Any]:
        """The dataset's digest, which stands for its content."""
        return {"kind": "dataset", "name": self._dataset.directory.name, "digest": self._dataset.digest}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        name = self._dataset.directory.name
        for index, record in enumerate(self._dataset.records(start, stop), start):
            yield f"{name}:{index}", record.structure()


def structure_of(raw: RawFrame | GFMError, labeller: Labeller) -> Atoms | GFMError:
    """The bare structure of a frame, or why there is none."""
    if isinstance(raw, GFMError):
        return raw
    occupancy = raw.scalars.get("occupancy")
    try:
        refuse_disorder(occupancy if isinstance(occupancy, Mapping) else None, raw.path, raw.frame)
        return labeller.record(raw).structure()
    except GFMError as error:
        return error
