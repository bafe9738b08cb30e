"""Alexandria's JSON, streamed: static calculations ({"entries": [...]}) and relaxation paths ({id: [{"steps": ...}]}).

Paths give energies in eV and stresses in kBar with VASP's sign; the unit of the stress of static entries is not stated,
so it has to be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import GFMError, InputFileError, InvalidStructureError
from .files import open_text
from .jsonstream import JSONDamage, JSONStream
from .options import Layout, ReadOptions, Units
from .pymatgen_dict import geometry_of, site_property
from .raw import RawFrame
from .tables import frame_of

FORMAT = "alexandria"
_EV = Units(energy="eV", length="A", forces="eV/A")
_STATIC = Layout(
    name="alexandria", units=_EV, energy=("energy_total", "energy_corrected"), forces=("forces",), stress=("stress",)
)
_PATHS = Layout(
    name="alexandria-paths",
    units=Units(energy="eV", length="A", forces="eV/A", stress="kBar", stress_sign="compression"),
    energy=("energy",),
    forces=("forces",),
    stress=("stress",),
)


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every entry, or every step of every path."""
    frame = 0
    try:
        with open_text(path) as handle:
            stream = JSONStream(handle)
            for key in stream.members():
                if key == "entries":
                    for _ in stream.items():
                        yield _guarded(_static, stream.value(), path, frame)
                        frame += 1
                elif stream.peek() == "[":
                    for found in _path(key, stream, path, frame):
                        yield found
                        frame += 1
            stream.end()
    except JSONDamage as error:
        raise InputFileError(f"{path}, frame {frame}: {error}") from error


def _path(material: str, stream: JSONStream, path: Path, frame: int) -> Iterator[RawFrame | GFMError]:
    for _ in stream.items():
        if stream.peek() != "{":
            continue
        for name in stream.members():
            if name != "steps" or stream.peek() != "[":
                continue
            for _ in stream.items():
                yield _guarded(_step, stream.value(), path, frame, material)
                frame += 1


def _guarded(build, value: Any, path: Path, frame: int, *rest: Any) -> RawFrame | GFMError:
    try:
        if not isinstance(value, dict) or "structure" not in value:
            raise InvalidStructureError("an entry without a structure", source=str(path), frame=frame)
        return build(value, path, frame, *rest)
    except GFMError as error:
        return error


def _static(entry: dict[str, Any], path: Path, frame: int) -> RawFrame:
    data = entry.get("data")
    data = data if isinstance(data, dict) else {}
    row = geometry_of(entry["structure"], path, frame)
    forces = site_property(entry["structure"], "forces")
    row |= {key: data.get(key) for key in ("energy_total", "energy_corrected", "stress")}
    if forces is not None:
        row["forces"] = forces
    return frame_of(row, _STATIC, path, frame, group=str(data.get("mat_id", "")))


def _step(step: dict[str, Any], path: Path, frame: int, material: str) -> RawFrame:
    row = geometry_of(step["structure"], path, frame)
    row |= {key: step.get(key) for key in ("energy", "forces", "stress")}
    return frame_of(row, _PATHS, path, frame, group=material)
