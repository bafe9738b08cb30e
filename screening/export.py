"""A finished screening as datasets of `gfm data` (ADIOS2): structures, energies, whole forces and stresses, one a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from gfm_calc.artifacts import sha256_of_file
from gfm_calc.config import HeadSpec
from gfm_calc.data.schema import Record
from gfm_calc.errors import ConfigError, InvalidStructureError
from gfm_calc.screening.folder import Folder
from gfm_calc.screening.settings import Settings
from gfm_calc.screening.table import STRUCTURES

_CHUNKS = 64  # of a task


@dataclass(frozen=True, kw_only=True)
class ChunkTask:
    """Some chunks of a screening, as a task of `data.build`: rows of a head that are ok, in order."""

    directory: Path
    head: str
    first: int
    last: int

    def identity(self) -> list[Any]:
        """The screening and the place in it."""
        return ["screening", Folder(self.directory).digest, self.head, self.first, self.last]

    def records(self) -> Iterator[Record | InvalidStructureError]:
        """The structures as they were predicted, with the predictions as labels."""
        folder = Folder(self.directory)
        wanted = ["status", "source", "energy", "stress", "forces", *STRUCTURES]
        for chunk in range(self.first, self.last):
            for row in folder.read(chunk, wanted).to_pylist():
                if row["head"] == self.head and row["status"] == "ok":
                    yield _record(row)

    def inputs(self) -> list[dict[str, Any]]:
        """{name, size, sha256} of the chunks."""
        folder = Folder(self.directory)
        paths = [folder.path_of(chunk) for chunk in range(self.first, self.last)]
        return [{"name": path.name, "size": path.stat().st_size, "sha256": sha256_of_file(path)} for path in paths]


def refuse_incomplete(settings: Settings) -> None:
    """ConfigError where rows do not hold what a dataset needs."""
    missing = {"structures", "forces"} - set(settings.keep) - ({"structures"} if settings.relax is not None else set())
    if missing:
        options = " ".join(f"--keep {what}" for what in sorted(missing))
        raise ConfigError(f"--export needs structures and forces in the rows: add {options}")


def export(folder: Folder, specs: Sequence[HeadSpec], model: str, to: Path) -> list[Path]:
    """Write the datasets `to`/HEAD, replacing those of an earlier export; their folders.

    Raises:
        GFMError: damaged chunks, a folder of something else, or a fault of the disk.
    """
    from gfm_calc.data.build import build

    written = []
    for spec in specs:
        tasks = [
            ChunkTask(directory=folder.directory.resolve(), head=spec.name, first=first,
                      last=min(first + _CHUNKS, folder.num_chunks))
            for first in range(0, folder.num_chunks, _CHUNKS)
        ]  # fmt: skip
        card = replace(
            spec,
            labels="distilled",
            code=f"gfm-calc {Path(model).name} (predictions)",
            test_errors={},
            training_data=(),
        )
        build(to / spec.name, tasks, card, overwrite=True)
        written.append(to / spec.name)
    return written


def _record(row: dict[str, Any]) -> Record:
    stress = row["stress"]
    return Record(
        atomic_numbers=np.array(row["atomic_numbers"], np.int64), positions=np.reshape(row["positions"], (-1, 3)),
        cell=np.zeros((3, 3)) if row["cell"] is None else np.reshape(row["cell"], (3, 3)), pbc=np.array(row["pbc"], bool),
        energy=row["energy"], forces=np.reshape(row["forces"], (-1, 3)),
        stress=None if stress is None else voigt_6_to_full_3x3_stress(np.array(stress)), source=row["source"] or "",
        frame=row["candidate"],
    )  # fmt: skip
