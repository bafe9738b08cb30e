"""What is in files of labelled structures, and what is suspicious about it: `inspect(paths)` -> `Inspection`.

Files are read once, frame by frame; what is kept of a frame is some hundred bytes.  Findings name frames and the option
that mends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols as SYMBOLS

from ..errors import GFMError, InputFileError
from .consistency import ConsistencyCheck
from .file_statistics import FileStatistics
from .findings import Finding, findings_across, findings_of, kind_of_energies
from .fingerprints import describe
from .frame_table import FrameTable
from .mixtures import note_levels
from .readers import Labeller, RawFrame, ReadOptions, read_raw
from .readers.options import DEFAULTS
from .references import ReferenceFit, ReferenceFitter, isolated_atoms
from .schema import Record

_SAMPLE = 100  # frames of a file that are kept whole
_MAX_ERRORS = 1000  # of one file, before it is given up


@dataclass(kw_only=True)
class FileInspection:
    """One file.

    Attributes:
        path; format: of its layout ("extxyz", "ani1x", ...); statistics; conventions: how labels were understood -> frames;
        other_keys: names in the file that are no label -> frames; levels: what frames say of their level of theory, see
        `mixtures.note_levels`; errors: of frames that could not be used;
        fit: reference energies of this file alone, None without energies; isolated: energies of single atoms;
        forces_check, stress_check: see `consistency`; first_frames: symbol -> the first
        frame with that element; sample: some frames, drawn evenly; findings.
    """

    path: str
    format: str = "unknown"
    statistics: FileStatistics = field(default_factory=FileStatistics)
    conventions: dict[Any, int] = field(default_factory=dict)
    other_keys: dict[str, int] = field(default_factory=dict)
    levels: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    num_errors: int = 0
    has_groups: bool = False
    broken: str | None = None
    fit: ReferenceFit | None = None
    isolated: dict[str, float] = field(default_factory=dict)
    forces_check: Any = None
    stress_check: Any = None
    curvature: float = math.nan
    first_frames: dict[str, int] = field(default_factory=dict)
    sample: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(kw_only=True)
class Inspection:
    """All files: `files`; `table` (every frame of all of them); `findings` across files."""

    files: list[FileInspection]
    table: FrameTable
    findings: list[Finding]

    @property
    def worst(self) -> str:
        """'error', 'warning' or 'note': the gravest finding, 'note' where there is none."""
        levels = [finding.level for finding in self.all_findings()]
        return next((level for level in ("error", "warning") if level in levels), "note")

    def all_findings(self) -> Iterable[Finding]:
        """Those of the files, then those across files."""
        for file in self.files:
            yield from file.findings
        yield from self.findings


def inspect(
    paths: Sequence[Path | str],
    *,
    format: str | None = None,
    options: ReadOptions = DEFAULTS,
    on_frame: Callable[[], None] = lambda: None,
) -> Inspection:
    """Read files and judge them.

    Args:
        paths: files of labelled structures.
        format: of all of them; None: by name and content.
        options: what they do not say themselves.
        on_frame: called after every frame.

    Raises:
        InputFileError: no frame of a file can be read, or its labels leave a question open (the message shows the option).
    """
    table = FrameTable()
    files = [_inspect_file(Path(path), format, options, table, on_frame) for path in paths]
    return Inspection(files=files, table=table, findings=findings_across(files, table))


def _inspect_file(
    path: Path, format: str | None, options: ReadOptions, table: FrameTable, on_frame: Callable[[], None]
) -> FileInspection:
    file = FileInspection(path=str(path))
    labeller, fitter, check = Labeller(options), ReferenceFitter(), ConsistencyCheck()
    first = len(table)
    for raw in read_raw(path, format=format, options=options):
        on_frame()
        try:
            if isinstance(raw, GFMError):
                raise raw
            _take(raw, file, labeller, fitter, check, table)
        except InputFileError as error:
            if not isinstance(raw, GFMError):
                raise  # a question about keys or units: nothing can be said before it is answered
            file.broken = str(error)
            break
        except GFMError as error:
            file.num_errors += 1
            file.errors.append(str(error))
            if file.num_errors >= _MAX_ERRORS:
                file.broken = f"{path}: given up after {_MAX_ERRORS} frames that cannot be used"
                break
    if not len(file.statistics):
        raise InputFileError(file.broken or (file.errors[0] if file.errors else f"{path}: holds no structures"))
    file.conventions = dict(labeller.conventions.most_common())
    file.statistics.finish(first)
    if file.statistics.has_energies:
        file.fit = fitter.fit()
        file.statistics.subtract(file.fit.energies)
    kind = kind_of_energies(file)
    known = kind is not None and kind.kind == "all-electron total" and kind.unit is None
    file.forces_check, file.stress_check, file.curvature = check.forces(known), check.stress(), check.curvature()
    file.findings = findings_of(file, table)
    return file


def _take(
    raw: RawFrame,
    file: FileInspection,
    labeller: Labeller,
    fitter: ReferenceFitter,
    check: ConsistencyCheck,
    table: FrameTable,
) -> None:
    """One frame, into everything that collects."""
    file.format = raw.layout.name
    record = labeller.record(raw)
    used = labeller.convention(raw).keys
    file.has_groups |= bool(record.group)
    for name in (*raw.scalars, *raw.arrays):
        if name not in used:
            file.other_keys[name] = file.other_keys.get(name, 0) + 1
    note_levels(file.levels, raw.scalars, raw.frame)
    for z in np.unique(record.atomic_numbers).tolist():
        file.first_frames.setdefault(SYMBOLS[z], raw.frame)
    description = describe(record)
    table.add(record, record.group, description)
    file.statistics.add(record, description, raw.fixed)
    if not math.isnan(record.energy):
        fitter.add(record.atomic_numbers, record.energy)
        alone = isolated_atoms([record])
        for symbol, energy in alone.items():
            file.isolated[symbol] = min(energy, file.isolated.get(symbol, math.inf))
    check.add(record)
    _keep(record, file, np.random.default_rng(len(file.statistics)))


def _keep(record: Record, file: FileInspection, random: np.random.Generator) -> None:
    """Put the latest frame into the sample, which every frame so far is in by the same chance."""
    if len(file.sample) < _SAMPLE:
        file.sample.append(record)
    elif (slot := int(random.integers(len(file.statistics)))) < _SAMPLE:
        file.sample[slot] = record


def residual_outliers(values: np.ndarray, limit: float, floor: float) -> np.ndarray:
    """Indices, worst first, whose distance from the median is above `limit` median deviations and above `floor`."""
    known = ~np.isnan(values)
    if known.sum() < 3:
        return np.zeros(0, np.int64)
    middle = float(np.median(values[known]))
    deviation = np.abs(values - middle)
    scale = 1.4826 * float(np.median(deviation[known]))
    found = np.flatnonzero(known & (deviation > max(limit * scale, floor)))
    return found[np.argsort(-deviation[found], kind="stable")]
