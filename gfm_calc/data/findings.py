"""Judgements: what of a file's numbers a user should look at before training on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import force_findings, mixtures
from .finding import Finding, counted, listed, of_frames
from .fingerprints import NEAR
from .suspicion import EnergyKind, bulk_modulus, energy_kind, length_suspicion, stress_suspicion

if TYPE_CHECKING:
    from .frame_table import FrameTable
    from .inspection import FileInspection

_SAME_ENERGY = 1e-4  # eV/atom
_OTHER_ENERGY = 5e-3  # eV/atom, beyond what k-points and convergence do
_STEP, _WEAK = 0.02, 0.6  # Å, eV/Å: of an atom that is moved off a symmetric site, and the force that brings it back
_NOBLE = (2, 10, 18, 36, 54, 86)
_DENSE = 100.0  # Å³ per atom
_SEVERAL = 5  # formulas, whose valence energies are no fixed part of their all-electron energies
_STIFF = 2.0  # eV/Å²: what forces do over a step where energies and forces are in eV; in Ry or Ha it is far less


def findings_of(file: FileInspection, table: FrameTable) -> list[Finding]:
    """What there is to say of one file."""
    found: list[Finding] = []
    for rule in (
        _broken,
        _labels,
        _energies,
        force_findings.consistency,
        _lengths,
        _stress,
        force_findings.missing,
        force_findings.net,
    ):
        found += rule(file)
    found += mixtures.of_file(file, table)
    found += _duplicates(file, table)
    for rule in (_outliers, _references, _charges):
        found += rule(file)
    return found


def findings_across(files: Sequence[FileInspection], table: FrameTable) -> list[Finding]:
    """What there is to say of several files together."""
    if len(files) < 2:
        return []
    found = []
    labels = table.duplicates()
    source = np.repeat(np.arange(len(files)), [len(file.statistics) for file in files])
    order = np.lexsort((source, labels))
    first_of: dict[int, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    for k in order.tolist():
        label = int(labels[k])
        if label in first_of and source[k] != source[first_of[label]]:
            pair = (int(source[first_of[label]]), int(source[k]))
            pairs[pair] = pairs.get(pair, 0) + 1
        first_of.setdefault(label, k)
    for (one, two), count in sorted(pairs.items(), key=lambda item: -item[1])[:20]:
        text = (
            f"{count} structure{'s' * (count != 1)} of {files[two].path} also occur in {files[one].path}: split over all "
            "files together"
        )
        found.append(Finding(level="warning", code="shared-structures", text=text, num_frames=count))
    units = {convention.energy_unit for file in files for convention in file.conventions if convention.energy_unit}
    if len(units) > 1:
        text = f"energies came in {', '.join(sorted(units))} and were converted to eV"
        found.append(Finding(level="note", code="several-units", text=text))
    return found


def kind_of_energies(file: FileInspection) -> EnergyKind | None:
    """Total, cohesive, relative, ...; None without energies."""
    columns = file.statistics
    known = np.isfinite(columns["energy"]) & (columns["num_atoms"] > 1)
    known = known if known.any() else np.isfinite(columns["energy"])
    if not known.any():
        return None
    return energy_kind(
        columns["energy"][known],
        columns["num_atoms"][known],
        columns["ratio"][known],
        periodic=float((columns["volume"][known] < _DENSE).mean()) > 0.5,
        lowest_is_zero=columns.lowest_is_zero(),
        several=columns.num_compositions >= _SEVERAL,
        stiff=file.forces_check is not None and file.forces_check.is_right and file.curvature > _STIFF,
        hydrogen=_hydrogen(file),
    )


def _hydrogen(file: FileInspection) -> float:
    """Its fitted reference energy, NaN where the compositions leave it open."""
    fit = file.fit
    return math.nan if fit is None or "H" in fit.flagged or "H" not in fit.energies else fit.energies["H"]


# ---- rules ----


def _broken(file: FileInspection) -> list[Finding]:
    found = []
    if file.broken:
        text = f"{file.broken}; what follows is about the {len(file.statistics)} frames before"
        found.append(Finding(level="error", code="damaged", text=text))
    if file.num_errors:
        text = f"{file.num_errors} frame{'s' * (file.num_errors != 1)} cannot be used; first: {file.errors[0]}"
        found.append(Finding(level="error", code="unusable-frames", text=text, num_frames=file.num_errors))
    return found


def _labels(file: FileInspection) -> list[Finding]:
    columns, found = file.statistics, []
    missing = ~np.isfinite(columns["energy"])
    if missing.all():
        found.append(
            Finding(level="warning", code="no-energies", text="no energies: nothing to train an energy head on")
        )
    elif missing.any():
        found.append(of_frames(file, "warning", "some-energies", missing, "{} without an energy"))
    without = np.isnan(columns["max_force"])
    if without.all():
        found.append(Finding(level="note", code="no-forces", text="no forces"))
    elif without.any():
        found.append(of_frames(file, "warning", "some-forces", without, "{} without forces, others with"))
    if len(file.conventions) > 1:
        text = f"labels were understood in {len(file.conventions)} ways; see the list of keys"
        found.append(Finding(level="note", code="several-conventions", text=text))
    found += _mixed_keys(file)
    ungrouped = file.statistics.num_compositions and not file.has_groups
    if ungrouped:
        text = (
            "no groups: frames of one molecule or trajectory cannot be told; see --group-key, or split --by composition"
        )
        found.append(Finding(level="note", code="no-groups", text=text))
    return found


def _mixed_keys(file: FileInspection) -> list[Finding]:
    """Where frames hold their energy or forces under names that no single frame shows to be the same."""
    found = []
    for what in ("energy", "forces"):
        frames: dict[tuple[str, ...], int] = {}
        for convention, count in file.conventions.items():
            keys = getattr(convention, f"{what}_keys")
            if keys:
                frames[keys] = frames.get(keys, 0) + count
        if len(frames) > 1 and not set.intersection(*map(set, frames)):
            shown = ", ".join(f"{'/'.join(keys)} ({count})" for keys, count in frames.items())
            text = f"the {what} has a different name in different frames: {shown}; is it the same level of theory?"
            found.append(Finding(level="warning", code=f"mixed-{what}-keys", text=text))
    return found


def _energies(file: FileInspection) -> list[Finding]:
    kind = kind_of_energies(file)
    if kind is None:
        return []
    found = []
    if kind.unit is not None:
        text = f"the energies look like {kind.unit}, not eV ({kind.reason}): --energy-unit {kind.unit}"
        found.append(Finding(level="error" if kind.is_sure else "warning", code="energy-unit", text=text))
    elif kind.kind in ("relative", "formation"):
        # Solids bind weakly, and potentials for them have any zero.  Of molecules these are differences to others.
        solid = bool((file.statistics["axes"] > 0).all()) and not file.statistics.lowest_is_zero()
        sound = solid and file.forces_check is not None and file.forces_check.is_right
        text = f"the energies look like {kind.kind} energies ({kind.reason}): never in one head with total energies"
        text += "; the forces follow them, so a head of their own can have them" if sound else ""
        found.append(Finding(level="note" if sound else "warning", code="energy-kind", text=text))
    return found


def _lengths(file: FileInspection) -> list[Finding]:
    atoms = file.statistics.element_atoms
    if atoms[list(_NOBLE)].sum() > 0.2 * atoms.sum():
        return []  # they have no bonds to compare with
    suspected = length_suspicion(file.statistics["typical"])
    return [Finding(level="error", code="length-unit", text=suspected)] if suspected else []


def _stress(file: FileInspection) -> list[Finding]:
    if file.stress_check.is_clear:
        return []
    columns = file.statistics
    pressures = columns["pressure"]
    modulus = bulk_modulus(columns["volume"], pressures, columns["composition"])
    suspected = stress_suspicion(pressures[~np.isnan(pressures)], modulus)
    return [Finding(level="warning", code="stress-scale", text=suspected)] if suspected else []


def _duplicates(file: FileInspection, table: FrameTable) -> list[Finding]:
    columns = file.statistics
    same = table.duplicates_between(columns.first, len(columns))
    labels = _indexed(same, columns["charge"], columns["spin"])
    found = []
    exact = _indexed(labels, columns["force_key"])
    again = np.bincount(exact)[exact] > 1
    if again.any():
        spare = len(exact) - len(np.unique(exact))
        text = f"{{}} hold a structure that occurs again ({spare} could go)"
        found.append(of_frames(file, "warning", "duplicates", again, text))
    counts = np.bincount(labels)
    spread = _spread(columns["energy_per_atom"], labels, len(counts))
    # An atom that is moved a little, in this direction or that, leaves nearly the same distances; its forces are others.
    explained = np.zeros(len(counts))
    back = np.fmin(np.nan_to_num(columns["max_force"]), _WEAK)
    np.fmax.at(explained, labels, _STEP * back / columns["num_atoms"])
    differing = (counts[labels] > 1) & (spread > np.maximum(_SAME_ENERGY, explained))[labels]
    if differing.any():
        worst = float(spread[labels[differing]].max())
        text = (
            f"{{}} share their structure with another, but not their energy (up to {1000 * worst:.3g} meV/atom apart): "
            "different settings, states or runs"
        )
        level = "error" if worst > _OTHER_ENERGY else "warning"
        found.append(of_frames(file, level, "contradictions", differing, text))
    near = table.duplicates_between(columns.first, len(columns), NEAR)
    close = len(np.unique(same)) - len(np.unique(near))
    if close > 0:
        text = f"{counted(close)} close to another (atoms moved by some hundredths of an Å): split by group"
        found.append(Finding(level="note", code="near-duplicates", text=text, num_frames=close))
    return found


def _indexed(*columns: np.ndarray) -> np.ndarray:
    """[n] index of the combination of values (NaN is one) that a frame has."""
    table = np.stack([np.nan_to_num(column, nan=-99.0) for column in columns])
    return np.unique(table, axis=1, return_inverse=True)[1].reshape(-1)


def _spread(values: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.fmin.at(low, label, values)
    np.fmax.at(high, label, values)
    return high - low


def _outliers(file: FileInspection) -> list[Finding]:
    from .inspection import residual_outliers

    columns, found = file.statistics, []
    if file.fit is not None:
        alone = columns["free_atom"] > 0  # free atoms are far from everything by right
        worst = residual_outliers(np.where(alone, np.nan, columns["residual"]), 10.0, 0.5)
        if len(worst):
            value = float(columns["residual"][worst[0]])
            text = f"{{}} with energies far from the rest (worst: {value:+.3g} eV/atom after the reference energies)"
            found.append(listed(file, "warning", "energy-outliers", worst, text))
    large = np.flatnonzero(columns["max_force"] > 50.0)
    if len(large):
        large = large[np.argsort(-columns["max_force"][large], kind="stable")]
        text = f"{{}} with forces above 50 eV/Å (largest {columns['max_force'][large[0]]:.3g})"
        found.append(listed(file, "warning", "large-forces", large, text))
    close = np.flatnonzero(columns["closest"] < 0.5)
    if len(close):
        close = close[np.argsort(columns["closest"][close], kind="stable")]
        text = f"{{}} with atoms at less than half a bond (closest {columns['closest'][close[0]]:.2f} of one)"
        found.append(listed(file, "warning", "close-atoms", close, text))
    return found


def _references(file: FileInspection) -> list[Finding]:
    fit, found = file.fit, []
    if fit is None:
        return []
    if not fit.is_unique:
        text = (
            f"reference energies: rank {fit.rank} of {len(fit.energies)} elements: the compositions do not determine "
            f"{', '.join(s for s, why in fit.flagged.items() if 'not determined' in why) or 'all of them'} singly; give "
            "isolated atoms, or more compositions"
        )
        found.append(Finding(level="note", code="reference-rank", text=text))
    rare = [symbol for symbol, why in fit.flagged.items() if "structure" in why]
    if rare:
        text = f"elements in very few frames: {', '.join(f'{s} ({fit.counts[s]})' for s in rare[:20])}"
        found.append(Finding(level="warning", code="rare-elements", text=text))
    return found


def _charges(file: FileInspection) -> list[Finding]:
    columns, found = file.statistics, []
    charged = np.nan_to_num(columns["charge"]) != 0
    silent = charged & np.isnan(columns["spin"])
    if silent.any():
        text = "{} with a charge but no spin: the lowest multiplicity is taken"
        found.append(of_frames(file, "note", "no-spin", silent, text))
    return found
