"""Files that ASE reads well: its trajectories, vasprun.xml, OUTCAR and the other outputs of calculations.

A file is taken for one trajectory, so its frames share a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from ...errors import GFMError, InvalidStructureError
from ...structures import _ase_frames, _format
from .ase_rows import CALCULATED
from .options import ReadOptions
from .raw import RawFrame, floats_from

FORMAT = "ase"


def frames(path: Path, options: ReadOptions, fmt: str | None = None) -> Iterator[RawFrame | GFMError]:
    """Every frame that ASE finds.

    Args:
        fmt: ASE's name of the format; None: by the name and content of the file.
    """
    for frame, atoms in enumerate(_ase_frames(path, fmt or _format(path))):
        yield atoms if isinstance(atoms, GFMError) else _guarded(atoms, path, frame)


def trajectory(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """ASE's .traj."""
    return frames(path, options, "traj")


def vasprun(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """VASP's vasprun.xml."""
    return frames(path, options, "vasp-xml")


def outcar(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """VASP's OUTCAR."""
    return frames(path, options, "vasp-out")


def _guarded(atoms: Atoms, path: Path, frame: int) -> RawFrame | GFMError:
    try:
        # Calculations are told apart by their folders: the files are all called OUTCAR.
        return raw_of(atoms, path, frame, group=f"{path.resolve().parent.name}/{path.name}")
    except GFMError as error:
        return error
    except (TypeError, ValueError) as error:
        return InvalidStructureError(f"a damaged frame ({error})", source=str(path), frame=frame)


def raw_of(atoms: Atoms, path: Path, frame: int, *, group: str = "") -> RawFrame:
    """The raw frame of what ASE has read, results as its calculator holds them."""
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    scalars: dict[str, Any] = {k: results[k] for k in ("energy", "free_energy", "stress") if results.get(k) is not None}
    arrays = {}
    if results.get("forces") is not None:
        arrays["forces"] = floats_from(results["forces"], (len(atoms), 3), "forces", str(path), frame)
    scalars |= {str(key): value for key, value in atoms.info.items() if key not in scalars}
    return RawFrame(
        atomic_numbers=np.asarray(atoms.numbers, np.int64),
        positions=np.asarray(atoms.positions, np.float64),
        cell=np.asarray(atoms.cell.array, np.float64),
        pbc=np.asarray(atoms.pbc, bool),
        scalars=scalars,
        arrays=arrays,
        layout=CALCULATED,
        group=group,
        source=path.name,
        path=str(path),
        frame=frame,
        fixed=_fixed(atoms),
    )


def _fixed(atoms: Atoms) -> np.ndarray | None:
    found: set[int] = set()
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms | FixCartesian):
            found |= {int(k) for k in np.atleast_1d(constraint.index)}
    return np.array(sorted(found), np.int64) if found else None
