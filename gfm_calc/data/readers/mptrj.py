"""MPtrj's JSON, streamed: {material: {frame: {structure, energies, force, stress, ...}}}.

Energies in eV, with and without the Materials Project's corrections; stress in kBar with VASP's sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError, InvalidStructureError
from .files import open_text
from .jsonstream import JSONDamage, JSONStream
from .options import Layout, ReadOptions, Units
from .pymatgen_dict import geometry_of
from .raw import RawFrame
from .tables import frame_of

FORMAT = "mptrj"
ENERGIES = ("uncorrected_total_energy", "corrected_total_energy")
_LAYOUT = Layout(
    name=FORMAT,
    units=Units(energy="eV", length="A", forces="eV/A", stress="kBar", stress_sign="compression"),
    energy=ENERGIES,
    forces=("force",),
    stress=("stress",),
)


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every frame of every material, in the order of the file."""
    frame = 0
    try:
        with open_text(path) as handle:
            stream = JSONStream(handle)
            for material in stream.members():
                if stream.peek() != "{":
                    yield InputFileError(f"{path}, frame {frame}: {material[:40]!r} holds no frames")
                    continue
                for _ in stream.members():
                    yield _guarded(stream.value(), path, frame, material)
                    frame += 1
            stream.end()
    except JSONDamage as error:
        raise InputFileError(f"{path}, frame {frame}: {error}") from error


def _guarded(entry: Any, path: Path, frame: int, material: str) -> RawFrame | GFMError:
    try:
        if not isinstance(entry, dict) or "structure" not in entry:
            raise InvalidStructureError("an entry without a structure", source=str(path), frame=frame)
        row = geometry_of(entry["structure"], path, frame)
        row |= {key: entry.get(key) for key in (*ENERGIES, "force", "stress")}
        return frame_of(row, _LAYOUT, path, frame, group=material)
    except GFMError as error:
        return error
