"""Labelling structures with a calculator, in parallel processes; an interrupted run goes on where it was.

Everything that is done is a line of a journal beside the output, so nothing is done twice or lost; the output is made of
it at the end.  A structure that cannot be labelled is a line, too: with the reason.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import write_xyz

from ..artifacts import sha256_of_file, sync_path
from ..errors import ConfigError, GFMError, InputFileError, InvalidStructureError, one_line
from ..structures import read_frames
from .calculators import make_calculator
from .store import open_dataset
from .workers import run_in_processes

LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """What to label, and how.

    Attributes:
        inputs: files of structures, or datasets (their own labels are left behind).
        output: .extxyz file; beside it NAME.failures.jsonl where structures failed.
        calculator: a name of `calculators.NAMES`.
        options: keyword arguments for it, a JSON object.
        processes: at a time; 0 does the work in this process, which a calculator may end.
        timeout: seconds for one structure, or None.
        overwrite: drop an unfinished run of another job, and replace an output that is there.
    """

    inputs: tuple[Path, ...]
    output: Path
    calculator: str
    options: str = "{}"
    processes: int = 1
    timeout: float | None = None
    overwrite: bool = False

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        files = [[path.name, _digest(path)] for path in self.inputs]
        return {"inputs": files, "calculator": self.calculator, "options": self.options}

    @property
    def journal(self) -> Path:
        """Where the work in progress is."""
        return self.output.with_name(f".{self.output.name}.journal")

    @property
    def failures(self) -> Path:
        """Where the reasons are."""
        return self.output.with_name(f"{self.output.name}.failures.jsonl")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: numbers of structures, how many of them an earlier run had done, and one reason to fail."""

    labelled: int
    failed: int
    taken_over: int
    first_failure: str | None


def label(job: LabelJob, *, on_progress: Callable[[int], None] = lambda structures: None) -> Outcome:
    """Label everything, write `job.output` (replaced where it is there) and `job.failures`.

    Labels are energy (eV), forces (eV/Å, of all atoms, constraints left aside) and, for structures with three periodic
    axes and calculators that have it, stress (eV/Å³, tension positive).  Positions are rounded to the 8 decimals that the
    file keeps before they are labelled.

    Raises:
        ConfigError: a calculator that does not exist or refuses its options.
        GFMError: nothing could be labelled; the disk refused.
    """
    if job.output.exists() and not job.overwrite:
        raise GFMError(f"{job.output}: exists; add --overwrite to replace it")
    make_calculator(job.calculator, job.options)  # in vain here rather than in every process
    given: dict[int, tuple[int, str, int]] = {}  # call -> what it is about
    try:
        with _Journal(job) as journal:
            taken_over = len(journal.offsets)
            for call, outcome in run_in_processes(
                _label_one, _calls(job, journal.offsets, given), job.processes, timeout=job.timeout
            ):
                journal.add(*given.pop(call), outcome)
                on_progress(1)
            return _finish(job, journal, taken_over)
    except OSError as error:
        raise GFMError(f"{job.output}: could not be written ({one_line(error)}); run it again to go on") from error


def structures_of(paths: Sequence[Path]) -> Iterator[tuple[str, int, Atoms | GFMError]]:
    """(name, frame, structure or what is wrong with it) of files and datasets, in order."""
    for path in paths:
        if path.is_dir():
            for index, record in enumerate(open_dataset(path).records()):
                atoms = record.structure()
                atoms.info["group"] = record.group or f"{record.source}:{record.frame}"
                yield path.name, index, atoms
        else:
            for frame, found in enumerate(read_frames(path)):
                if isinstance(found, InputFileError):
                    raise found
                yield path.name, frame, found


def clean_structure(atoms: Atoms, source: str, frame: int) -> Atoms:
    """The bare structure, rounded as extended XYZ keeps it, with charge, spin and group in `info`.

    Without a group of its own a structure is a group by itself, named after its file and frame.
    """
    kept = {key: atoms.info[key] for key in ("charge", "spin") if key in atoms.info}
    kept["group"] = str(atoms.info.get("group", f"{source}:{frame}"))
    return Atoms(atoms.numbers, positions=np.round(atoms.positions, 8), cell=atoms.cell.array, pbc=atoms.pbc, info=kept)


def extxyz_text(atoms: Atoms, *, forces: np.ndarray | None = None) -> str:
    """A frame of extended XYZ: 8 decimals for positions and forces, all digits for the rest."""
    copy = atoms.copy()
    if forces is not None:
        copy.arrays["forces"] = forces
    text = io.StringIO()
    write_xyz(text, copy, write_results=False)
    return text.getvalue()


# ---- one structure, in a process of its own ----


def _label_one(atoms: Atoms | GFMError, source: str, frame: int, name: str, options: str) -> str:
    if isinstance(atoms, GFMError):
        raise atoms
    atoms = clean_structure(atoms, source, frame)
    known = make_calculator.cache_info().hits
    try:
        calculator = make_calculator(name, options)(atoms)
        found = _labels(calculator, atoms)
    except GFMError:
        used_before = make_calculator.cache_info().hits > known
        make_calculator.cache_clear()  # what failed may be broken now: the next structure gets a new one
        if not used_before:
            raise
        found = _labels(make_calculator(name, options)(atoms), atoms)  # or it was broken before
    forces = found.pop("forces", None)
    atoms.info |= found | {"source": source, "frame": frame, "calculator": name}
    return extxyz_text(atoms, forces=forces)


def _labels(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    try:
        found = _calculated(calculator, atoms)
    except Exception as error:  # calculators raise whatever comes
        raise GFMError(f"{type(error).__name__}: {one_line(error)}") from error
    for key, value in found.items():
        if not np.isfinite(value).all():
            raise GFMError(f"its {key} is not finite")
    return found


def _calculated(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    found: dict[str, Any] = {"energy": float(calculator.get_property("energy", atoms))}
    able = getattr(calculator, "implemented_properties", LABELS)
    if "forces" in able:
        found["forces"] = np.array(calculator.get_property("forces", atoms))
    if "stress" in able and atoms.pbc.all():
        xx, yy, zz, yz, xz, xy = np.array(calculator.get_property("stress", atoms)).reshape(6)
        found["stress"] = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return found


# ---- the journal ----


class _Journal:
    """A file of JSON lines: what the job is, then {n, text} or {n, source, frame, reason} for each structure done."""

    def __init__(self, job: LabelJob):
        self.job = job
        self.offsets: dict[int, int] = {}  # number of the structure -> where its line begins
        self._end = 0

    def __enter__(self) -> _Journal:
        self.job.journal.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.job.journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_over(json.dumps(self.job.identity()).encode() + b"\n")
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise GFMError(f"{self.job.output}: another run is at work on it") from error
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._file)

    def _take_over(self, head: bytes) -> None:
        with open(self.job.journal, "rb") as handle:
            first = handle.readline()
            if first.endswith(b"\n") and first != head and not self.job.overwrite:
                raise ConfigError(
                    f"{self.job.journal}: an unfinished run of other inputs or another calculator; finish that one, or "
                    "add --overwrite to drop it"
                )
            self._end = len(head) if first == head else 0
            while self._end and (line := handle.readline()).endswith(b"\n"):
                try:
                    self.offsets[json.loads(line)["n"]] = self._end
                except (ValueError, KeyError, TypeError):  # damaged: from here on it is done again
                    break
                self._end += len(line)
        os.ftruncate(self._file, self._end)  # also a last line that was cut off
        if not self._end:
            self._append(head)

    def add(self, number: int, source: str, frame: int, outcome: str | BaseException) -> None:
        """Note what became of a structure."""
        line: dict[str, Any] = {"n": number}
        if isinstance(outcome, str):
            line["text"] = outcome
        else:
            reason = outcome.reason if isinstance(outcome, InvalidStructureError) else one_line(outcome)
            line |= {"source": source, "frame": frame, "reason": reason}
        self.offsets[number] = self._end
        self._append(json.dumps(line).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        self._end += len(line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Everything done, in the order of the inputs."""
        with open(self.job.journal, "rb") as handle:
            for number in sorted(self.offsets):
                handle.seek(self.offsets[number])
                yield json.loads(handle.readline())


def _calls(job: LabelJob, done: Mapping[int, int], given: dict[int, tuple[int, str, int]]) -> Iterator[tuple]:
    """The calls for what is not done; what each is about goes to `given`."""
    calls = 0
    for number, (source, frame, atoms) in enumerate(structures_of(job.inputs)):
        if number not in done:
            given[calls] = (number, source, frame)
            calls += 1
            yield atoms, source, frame, job.calculator, job.options


def _finish(job: LabelJob, journal: _Journal, taken_over: int) -> Outcome:
    labelled = failed = 0
    first = None
    aside = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (job.output, job.failures)]
    try:
        with open(aside[0], "w", encoding="utf-8") as good, open(aside[1], "w", encoding="utf-8") as bad:
            for line in journal.lines():
                if "text" in line:
                    good.write(line["text"])
                    labelled += 1
                    continue
                first = first or f"{line['source']}, frame {line['frame']}: {line['reason']}"
                bad.write(json.dumps({key: line[key] for key in ("source", "frame", "reason")}) + "\n")
                failed += 1
        if not labelled:
            raise GFMError(f"none of the {failed} structures could be labelled; {first}")
        for path in aside:
            sync_path(path)
        if failed:
            os.replace(aside[1], job.failures)
        else:
            job.failures.unlink(missing_ok=True)
        os.replace(aside[0], job.output)
        job.journal.unlink()
    finally:
        for path in aside:
            path.unlink(missing_ok=True)
    return Outcome(labelled=labelled, failed=failed, taken_over=taken_over, first_failure=first)


def _digest(path: Path) -> str:
    if path.is_dir():
        return open_dataset(path).digest
    if not path.exists():
        raise InputFileError(f"{path}: no such file")
    return sha256_of_file(path)
