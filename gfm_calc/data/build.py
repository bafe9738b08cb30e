"""Building datasets: tasks are read in parallel, written as shards, and committed in one step.

Work in progress lies in a folder of its own inside the dataset's directory; a build that was cut off goes on where it was
when it is started again with the same inputs.  What a dataset holds depends on the inputs alone, not on the number of
processes or MPI ranks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import MANIFEST, canonical_json, commit, refuse_foreign, sha256, sync_path, write_file
from ..config import HeadSpec, to_mapping
from ..errors import ConfigError, CorruptFileError, GFMError, InvalidStructureError, one_line
from .block import Block
from .mapped import MappedFile, Shard
from .schema import Record
from .shard import DATA, ShardInfo, chunk_digests, write_flat_shard, write_shard
from .store import KIND, Dataset, open_dataset
from .summary import merge, summarise
from .tasks import Task
from .workers import WorkerDiedError, run_in_processes

SHARD_ATOMS = 1 << 20  # some 25 to 50 MB on the disk
SHARD_STRUCTURES = 1 << 17
_REASONS = 100  # that are kept of structures that were left out, a file
_BUILD = ".build.0.tmp"  # a name that artifacts take for work in progress
_Writer = Callable[[Block, Path], tuple[ShardInfo, bytes]]
_SHARD = re.compile(r"shard_([0-9]{6,})-[0-9a-f]{12}\.bp")


def build(
    directory: Path | str, tasks: Sequence[Task], head: HeadSpec, *, processes: int = 1, append: bool = False,
    overwrite: bool = False, shard_atoms: int = SHARD_ATOMS, on_progress: Callable[[int], None] = lambda structures: None,
) -> Dataset:  # fmt: skip
    """Write a dataset.

    Args:
        directory: new or empty; or a dataset, with `append` (for the same head) or `overwrite`.
        head: its card; elements and reference energies are left to the split.
        processes: that read and write at a time; each holds one shard in memory.  They are started afresh: a script that
            calls this needs `if __name__ == "__main__":`.  0 does the work in this process, which ADIOS2 ends on some
            errors of the disk.
        shard_atoms: a shard is closed when it has so many.
        on_progress: called with a number of structures that have come in.

    Raises:
        GFMError: what cannot be read or written, with what was there before intact.
    """
    job = _Job(Path(directory), tasks, head, append=append, overwrite=overwrite, shard_atoms=shard_atoms)
    with job.locked():
        job.prepare()
        calls = [(job.folder, number, tasks[number], shard_atoms) for number in job.unfinished()]
        for _, done in run_in_processes(_run_task, calls, processes):
            if isinstance(done, WorkerDiedError):
                raise GFMError(
                    f"{directory}: {done}: out of memory or a full disk? The same command goes on where it was"
                )
            if isinstance(done, BaseException):
                raise done
            on_progress(done)
        return job.commit()


def build_flat(directory: Path | str, tasks: Sequence[Task], head: HeadSpec) -> Dataset:
    """`build` in this process and without ADIOS2 (see `shard.write_flat_shard`): for data of a job's own."""
    job = _Job(Path(directory), tasks, head, append=False, overwrite=False, shard_atoms=SHARD_ATOMS)
    with job.locked():
        job.prepare()
        for number in job.unfinished():
            _run_task(job.folder, number, tasks[number], SHARD_ATOMS, write_flat_shard)
        return job.commit()


def build_mpi(
    directory: Path | str, tasks: Sequence[Task], head: HeadSpec, comm, *, append: bool = False, overwrite: bool = False,
    shard_atoms: int = SHARD_ATOMS,
) -> Dataset:  # fmt: skip
    """`build` on the ranks of an mpi4py communicator, to be called by all of them; a shard is written by one rank.

    Run the ranks under `python -m mpi4py`, so that an error of one ends them all.
    """
    job = _Job(Path(directory), tasks, head, append=append, overwrite=overwrite, shard_atoms=shard_atoms)
    with job.locked() if comm.rank == 0 else _disk_errors(job.directory):
        if comm.rank == 0:
            job.prepare()
        todo = comm.bcast(job.unfinished() if comm.rank == 0 else None)
        for number in todo[comm.rank :: comm.size]:
            _run_task(job.folder, number, tasks[number], shard_atoms)
        comm.Barrier()
        if comm.rank == 0:
            job.commit()
        comm.Barrier()
    return open_dataset(directory)


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GFMError(
            f"{directory}: could not be written ({one_line(error)}); what was there before is intact"
        ) from error


# ---- one task, in a process of its own ----


def _run_task(folder: Path, number: int, task: Task, shard_atoms: int, write: _Writer | None = None) -> int:
    """Read a task, write its shards and journal; the number of structures."""
    inputs = {entry["name"]: {**entry, "structures": 0, "left_out": 0, "reasons": []} for entry in task.inputs()}
    parts = _finished_parts(folder, number)
    done = sum(part["shard"]["structures"] for part in parts)
    written = len(parts)
    for block in _blocks(task.records(), done, shard_atoms, inputs):
        path = folder / f"{_part_name(number, written)}.bp"
        info, digests = (write or write_shard)(block, path)
        part = {"shard": info.to_mapping(), "digests": digests.hex(), "summary": summarise(block)}
        write_file(path.with_suffix(".json"), canonical_json(part))
        written += 1
        done += len(block)
    write_file(folder / f"{_task_name(number)}.json", canonical_json({"inputs": list(inputs.values())}))
    return done


def _blocks(
    records: Iterator[Record | InvalidStructureError], done: int, shard_atoms: int, inputs: dict[str, dict[str, Any]]
) -> Iterator[Block]:
    """What comes after the first `done` records, a shard at a time; counted in `inputs`."""
    held: list[Record] = []
    atoms = count = 0
    for record in records:
        if isinstance(record, InvalidStructureError):
            _leave_out(record, inputs)
            continue
        count += 1
        if record.source in inputs:
            inputs[record.source]["structures"] += 1
        if count <= done:
            continue
        held.append(record)
        atoms += len(record)
        if atoms >= shard_atoms or len(held) >= SHARD_STRUCTURES:
            yield Block.from_records(held)
            held, atoms = [], 0
    if held:
        yield Block.from_records(held)


def _leave_out(error: InvalidStructureError, inputs: dict[str, dict[str, Any]]) -> None:
    entry = inputs.get(Path(str(error.source)).name)
    if entry is None:
        raise error
    entry["left_out"] += 1
    if len(entry["reasons"]) < _REASONS:
        atom = "" if error.atom is None else f", atom {error.atom}"
        entry["reasons"].append(f"frame {error.frame}{atom}: {error.reason}")


def _finished_parts(folder: Path, number: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    while (path := folder / f"{_part_name(number, len(parts))}.json").exists():
        parts.append(json.loads(path.read_bytes()))
    return parts


def _task_name(number: int) -> str:
    return f"task-{number:06d}"


def _part_name(number: int, part: int) -> str:
    return f"{_task_name(number)}-{part:05d}"


# ---- the whole ----


class _Job:
    """A build: its folder of work in progress, and the step that makes it a dataset."""

    def __init__(
        self, directory: Path, tasks: Sequence[Task], head: HeadSpec, *, append: bool, overwrite: bool, shard_atoms: int
    ):
        if not tasks:
            raise ConfigError(f"{directory}: nothing to build from")
        self.directory, self.folder, self.tasks, self.head = directory, directory / _BUILD, tasks, head
        self.append, self.overwrite, self.shard_atoms = append, overwrite, shard_atoms
        self.base: Dataset | None = None  # what is added to
        self.listed: set[str] = set()  # shards of the dataset that is there now

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out; the operating system lets go of the lock when this process ends, however it does."""
        if self.directory.exists() and not self.directory.is_dir():
            raise GFMError(f"{self.directory}: is a file; give a directory")
        with _disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.directory, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield
            except BlockingIOError as error:
                raise GFMError(f"{self.directory}: another build is at work there") from error
            finally:
                os.close(handle)

    def prepare(self) -> None:
        """Make the folder, or take over what an earlier run of the same build left in it."""
        refuse_foreign(self.directory, KIND)
        if (self.directory / MANIFEST).exists():
            there = open_dataset(self.directory) if self.append else _open_to_replace(self.directory, self.overwrite)
            # Of a damaged dataset it is not known what belongs to it: all that is there is left alone till the end.
            names = [info.name for info in there.shards] if there else os.listdir(self.directory)
            self.listed = {name for name in names if _SHARD.fullmatch(name)}
            if self.append:
                self.base = there
                if replace(there.head, training_data=()) != replace(self.head, training_data=()):
                    raise ConfigError(
                        f"{self.directory}: holds head {there.head.name}; its card must be the same to append"
                    )
        elif self.append:
            raise ConfigError(f"{self.directory}: holds no dataset to append to")
        identity = {
            "base": self.base.digest if self.base else "", "head": to_mapping(self.head), "shard_atoms": self.shard_atoms,
            "replaces": sorted(self.listed), "tasks": [task.identity() for task in self.tasks],
        }  # fmt: skip
        name, text = self.folder / "job.json", canonical_json(identity)
        if not name.exists() or name.read_bytes() != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_file(name, text)

    def unfinished(self) -> list[int]:
        """Numbers of the tasks that are still to be run."""
        return [n for n in range(len(self.tasks)) if not (self.folder / f"{_task_name(n)}.json").exists()]

    def commit(self) -> Dataset:
        """Make the shards and what was there before one dataset."""
        finished = [json.loads((self.folder / f"{_task_name(n)}.json").read_bytes()) for n in range(len(self.tasks))]
        inputs = [*(self.base.inputs if self.base else ()), *(entry for task in finished for entry in task["inputs"])]
        try:
            _refuse_twice(inputs, self.directory)
        except ConfigError:
            shutil.rmtree(self.folder, ignore_errors=True)  # to go on with it would be refused again
            raise
        parts = [part for number in range(len(self.tasks)) for part in _finished_parts(self.folder, number)]
        if not parts:
            raise GFMError(f"{self.directory}: the inputs hold no structures")
        shards = self._move_shards(parts)
        digests = [bytes.fromhex(part["digests"]) for part in parts]
        index = self._write_index(shards, digests)
        base = self.base
        summary = merge([*([base.summary] if base else []), *(part["summary"] for part in parts)])
        table = {
            "head": to_mapping(self.head), "summary": summary, "inputs": inputs,
            "shards": [info.to_mapping() for info in [*(base.shards if base else ()), *shards]],
        }  # fmt: skip
        content: dict[str, bytes | Path] = {
            "dataset.json": canonical_json(table), "index.bin": index,
            "digests.bin": chunk_digests(index) + (base.shard_digests() if base else b"") + b"".join(digests),
        }  # fmt: skip
        commit(
            self.directory,
            content,
            kind=KIND,
            format_version=max(info.format_version for info in [*(base.shards if base else ()), *shards]),
            meta={"structures": summary["structures"]},
        )
        dataset = open_dataset(self.directory)
        self._sweep({info.name for info in dataset.shards})
        return dataset

    def _move_shards(self, parts: Sequence[Mapping[str, Any]]) -> list[ShardInfo]:
        """Give the new shards their names in the dataset; one that an earlier run has moved is there already."""
        numbers = [int(match[1]) for name in self.listed if (match := _SHARD.fullmatch(name))]
        following = max(numbers, default=-1) + 1
        moved = []
        for number, part in enumerate(parts, following):
            digest = sha256(canonical_json(part["shard"]["files"]))[:12]
            source = self.folder / part["shard"]["name"]
            info = ShardInfo.from_mapping({**part["shard"], "name": f"shard_{number:06d}-{digest}.bp"}, self.directory)
            target = self.directory / info.name
            if source.exists():
                shutil.rmtree(target, ignore_errors=True)  # of a build that was never committed: no manifest lists it
                os.replace(source, target)  # flushed when it was written
            moved.append(info)
        sync_path(self.directory)
        return moved

    def _write_index(self, shards: Sequence[ShardInfo], digests: Sequence[bytes]) -> Path:
        path = self.folder / "index.bin"
        with open(path, "wb") as handle:
            base = 0
            if self.base:
                for piece in self.base.index_pieces():
                    handle.write(piece)
                base = self.base.num_atoms
            else:
                handle.write(np.zeros(1, "<i8").tobytes())
            for info, pieces in zip(shards, digests):
                seen = memoryview(bytearray(info.num_chunks))
                data = self.directory / info.name / DATA
                file = MappedFile(data, info.files[DATA]["size"], memoryview(pieces), seen)
                ptr = Shard(info, file).read("ptr", slice(1, info.structures + 1))
                handle.write((ptr.astype("<i8") + base).tobytes())
                base += info.atoms
        return path

    def _sweep(self, keep: set[str]) -> None:
        """Remove the work in progress and shards that no manifest lists any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for entry in self.directory.iterdir():
            if _SHARD.fullmatch(entry.name) and entry.name not in keep:
                shutil.rmtree(entry, ignore_errors=True)


def _open_to_replace(directory: Path, overwrite: bool) -> Dataset | None:
    if not overwrite:
        raise GFMError(f"{directory}: holds a dataset; add to it with --append, replace it with --overwrite")
    try:
        return open_dataset(directory)
    except CorruptFileError:
        return None  # a damaged one is replaced as well


def _refuse_twice(inputs: Sequence[Mapping[str, Any]], directory: Path) -> None:
    seen: dict[str, str] = {}
    for entry in inputs:
        if entry["sha256"] in seen:
            raise ConfigError(
                f"{directory}: {entry['name']} has the content of {seen[entry['sha256']]}; structures are not counted twice"
            )
        seen[entry["sha256"]] = entry["name"]
