"""Judgements of files that hold labels of more than one kind: total and relative energies, two levels of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .finding import Finding, of_frames
from .readers.names import plain

if TYPE_CHECKING:
    from .frame_table import FrameTable
    from .inspection import FileInspection

# Names of what says the level of theory of a frame.
_LEVEL_NAMES = (
    "functional", "xc", "xc_functional", "dft_functional", "exchange_correlation", "level", "level_of_theory", "theory",
    "theory_level", "basis", "basis_set", "qm_method", "dft_method", "calculation_method",
)  # fmt: skip
_MOST_LEVELS = 50  # values of one name; more are no levels of theory
_ALL_ELECTRON, _OTHER = (0.85, 1.15), 0.7  # of the energy of free atoms with all their electrons
_CORE, _ECP = (
    4,
    36,
)  # up to the one, pseudopotentials take no electrons; beyond the other, molecules have some by custom
_SEVERAL, _SHARE = 5, 0.05  # frames of each kind
_ENOUGH = 30  # frames of a composition: among ten, three beyond a gap are chance
_LEAST, _LEAST_PART = 5, 0.15  # frames of the smaller of two clusters, and its part
_LEAST_GAP = 0.3  # eV
_MINGLED = 0.5  # of the close pairs across two clusters that chance would make


def of_file(file: FileInspection, table: FrameTable) -> list[Finding]:
    """What speaks for several kinds of energies in one file."""
    return [*_named_levels(file), *(_kinds(file) or _clusters(file, table))]


def note_levels(levels: dict[str, dict[str, int]], scalars: Mapping[str, Any], frame: int) -> None:
    """Keep name -> {level of theory: its first frame} of what a frame says of itself."""
    for name, value in scalars.items():
        if isinstance(value, str) and plain(name) in _LEVEL_NAMES:
            said = levels.setdefault(name, {})
            if len(said) <= _MOST_LEVELS:
                said.setdefault(value.strip().lower(), frame)


def two_levels(energies: np.ndarray, features: np.ndarray) -> np.ndarray | None:
    """[n] whether a frame of one composition is of the higher of two levels that its geometry does not explain; else None.

    The widest gap between energies must be wider than either side is, and the nearest geometries must lie across it nearly
    as often as chance puts them there.

    Args:
        energies: [n] eV.
        features: [n, k] of the geometries, in which close ones are close.
    """
    count = len(energies)
    least = max(_LEAST, int(np.ceil(_LEAST_PART * count)))
    if count < 2 * least:
        return None
    ordered = np.sort(energies)
    gaps = np.diff(ordered)[least - 1 : count - least]
    place = least - 1 + int(gaps.argmax())
    low, high = ordered[: place + 1], ordered[place + 1 :]
    gap = float(high[0] - low[-1])
    width = max(float(np.subtract(*np.percentile(side, [95, 5]))) for side in (low, high))
    if gap < max(_LEAST_GAP, width):
        return None
    upper = energies > low[-1]
    scaled = features / np.maximum(features.std(axis=0), 1e-9)
    distance = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    across = float((upper != upper[distance.argmin(axis=1)]).mean())
    part = float(upper.mean())
    return upper if across > _MINGLED * 2 * part * (1 - part) else None


def _named_levels(file: FileInspection) -> list[Finding]:
    found = []
    for name, said in file.levels.items():
        if 1 < len(said) <= _MOST_LEVELS:
            shown = ", ".join(f"{value!r:.40} (frame {frame})" for value, frame in list(said.items())[:5])
            text = f"{name} differs between frames: {shown}; one head learns one level of theory: give each a file and a head"
            found.append(Finding(level="warning", code="mixed-levels", text=text))
    return found


def _kinds(file: FileInspection) -> list[Finding]:
    """Totals of all electrons beside energies that are none."""
    columns = file.statistics
    judged = columns.heaviest() > _CORE
    judged &= (columns.heaviest() <= _ECP) | (columns["axes"] == 3)
    with np.errstate(invalid="ignore"):
        total = judged & (columns["ratio"] > _ALL_ELECTRON[0]) & (columns["ratio"] < _ALL_ELECTRON[1])
        other = judged & (columns["ratio"] < _OTHER)
    fewer = total if total.sum() < other.sum() else other
    if fewer.sum() < _SEVERAL or fewer.mean() < _SHARE:
        return []
    what = ("totals of all electrons", "others (of valence electrons, atomisation, ...)")
    one, two = what if fewer is total else what[::-1]
    text = f"{{}} with energies that are {one}, beside {two}: one head needs one kind; give each a file and a head"
    return [of_frames(file, "error", "mixed-energy-kinds", fewer, text)]


def _clusters(file: FileInspection, table: FrameTable) -> list[Finding]:
    """Two levels of energies within a composition."""
    columns = file.statistics
    columns_of = [np.nan_to_num(columns[name], nan=-99.0) for name in ("composition", "axes", "charge", "spin")]
    _, system = np.unique(np.stack(columns_of), axis=1, return_inverse=True)
    features = table.fingerprints(columns.first, len(columns))
    higher, worst, formula = np.zeros(len(columns), bool), 0.0, ""
    for number in np.flatnonzero(np.bincount(system.reshape(-1)) >= _ENOUGH):
        rows = np.flatnonzero((system.reshape(-1) == number) & np.isfinite(columns["energy"]))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), 400)).astype(int)] if len(rows) else rows
        upper = two_levels(columns["energy"][rows], features[rows])
        if upper is not None:
            higher[rows[upper]] = True
            energies = columns["energy"][rows]
            apart = float(np.median(energies[upper]) - np.median(energies[~upper]))
            if apart > worst:
                worst, formula = apart, columns.formula(int(columns["composition"][rows[0]]))
    if not higher.any():
        return []
    text = (
        f"{{}} with energies on a second level ({formula}: {worst:.3g} eV higher) that their geometries do not explain: two "
        "levels of theory or kinds of energy; give each a file and a head"
    )
    return [of_frames(file, "error", "mixed-levels", higher, text)]
