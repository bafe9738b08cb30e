"""Judgements of forces: do they belong to the energies, are some missing, do they add up to zero?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .finding import Finding, of_frames
from .suspicion import force_suspicion

if TYPE_CHECKING:
    from .inspection import FileInspection

_MANY = 0.05  # of the frames; fewer are a slip
_NEAR_ONE = (0.45, 2.2)  # slopes that long steps and chance may give


def consistency(file: FileInspection) -> list[Finding]:
    """Forces and stresses against energy differences."""
    found = []
    for check, code in ((file.forces_check, "forces-unit"), (file.stress_check, "stress-unit")):
        if check.pairs == 0 or check.is_right:
            continue
        # Few frames far from each other may give a slope near 1 with a spread that is too small by chance.
        near = _NEAR_ONE[0] < check.median < _NEAR_ONE[1]
        told = check.recognised and check.close if near else check.recognised or check.pairs >= 20
        if check.is_clear and told:
            text = f"{check.verdict} (slope {check.median:.3g} ± {check.spread:.2g} over {check.pairs} pairs of frames)"
            found.append(Finding(level="error" if check.pairs >= 20 else "warning", code=code, text=text))
        elif check.pairs >= 50 and check.close:
            what = code.split("-")[0]
            text = (
                f"the {what} follow{'s' * (what == 'stress')} the energies poorly (slope {check.median:.2g} ± "
                f"{check.spread:.2g} over {check.pairs} pairs of frames): noise, several systems, or another key"
            )
            found.append(Finding(level="warning", code=f"{what}-noise", text=text))
    suspected = force_suspicion(file.curvature)
    if suspected and not any(finding.code == "forces-unit" for finding in found):
        found.append(Finding(level="warning", code="force-scale", text=suspected))
    return found


def missing(file: FileInspection) -> list[Finding]:
    """Forces that are exactly zero where a force is due."""
    columns = file.statistics
    never = columns["no_force"] > 0
    if never.any():
        text = (
            "{} in which no atom has a force, though nothing in the geometry forbids one: forces that were not written "
        )
        text += "are no labels; "
        written = never.sum() < np.isfinite(columns["no_force"]).sum()
        text += "leave these frames out, unless they are relaxed" if written else "leave them out (--forces-key none)"
        level = "error" if never.sum() > 1 and never.mean() > _MANY else "warning"
        return [of_frames(file, level, "no-forces-written", never, text)]
    taken = columns["taken_forces"] > 0
    if taken.any():
        text = (
            "{} in which the atoms without any force are frozen ones: forces set to zero by a constraint are no labels; "
            "write them without it (get_forces(apply_constraint=False)), or leave the forces of the file out (--forces-key none)"
        )
        return [of_frames(file, "error" if taken.mean() > _MANY else "warning", "zeroed-forces", taken, text)]
    some = columns["zero_forces"] > 0
    if some.mean() > 0.2:
        text = "{} with some forces exactly zero: symmetry, or a constraint"
        return [of_frames(file, "note", "zero-forces", some, text)]
    return []


def net(file: FileInspection) -> list[Finding]:
    """Forces that do not add up to zero."""
    columns = file.statistics
    with np.errstate(invalid="ignore"):
        large = columns["net_force"] > np.maximum(0.1, 0.05 * columns["rms_force"] * columns["num_atoms"])
    if large.mean() > 0.01:
        worst = float(np.nanmax(columns["net_force"]))
        text = (
            f"{{}} whose forces do not add up to zero (up to {worst:.2g} eV/Å): forces are missing, noisy or external"
        )
        return [of_frames(file, "warning", "net-force", large, text)]
    return []
