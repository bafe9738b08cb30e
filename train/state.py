"""Checkpoints: all that a run needs to go on, bit for bit, written beside the training.

    RUN/checkpoints/step-000001000/   an artifact (see `gfm_calc.artifacts`), of which two are kept
        part<k>.safetensors           what process k holds: pieces of flat vectors, its random numbers
        state.json                    step, schedule, best validation, how the vectors are laid out

The vectors are stored with the names of their parameters and heads, so a run can go on with other numbers of processes.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gfm_calc.artifacts import MANIFEST, Artifact, canonical_json, commit, open_artifact, write_file
from gfm_calc.errors import CorruptFileError, GFMError, one_line
from gfm_calc.train.flat import BEST, STATES, FlatParameters

KIND = "training-state"
FORMAT_VERSION = 1
KEPT = 2
_NAME = re.compile(r"step-([0-9]{9,})")


class CheckpointWriter:
    """Writes checkpoints in a thread.

    Every process writes its own part; when all have (`is_written` on each of them), the first one commits.
    """

    def __init__(self, folder: Path, rank: int, world: int):
        self.folder, self._rank, self._world = folder, rank, world
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.step: int | None = None  # of the checkpoint that is being written
        self._state: Mapping[str, Any] = {}

    def begin(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Copy this process's part, and begin to write it.

        Args:
            tensors: see `tensors_of`.
            state: JSON values, the same on all processes.
        """
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self.step, self._state = step, state
        path = self._aside(step) / f"part{self._rank}.safetensors"
        self._start(lambda: write_file(path, safetensors.torch.save(copies)))

    def is_written(self) -> bool:
        """Whether this process has nothing left to write.

        Raises:
            GFMError: the disk refused.
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        if self._error is not None:
            error, self._error = self._error, None
            raise GFMError(f"{self.folder}: a checkpoint could not be written ({one_line(error)})") from error
        return True

    def wait(self) -> None:
        """Until `is_written`; raises as it does."""
        if self._thread is not None:
            self._thread.join()
        self.is_written()

    def commit(self) -> None:
        """All parts are written: make them a checkpoint.  To be called by all processes."""
        step, self.step = self.step, None
        if self._rank == 0 and step is not None:
            self._start(lambda: self._commit(step))

    def _commit(self, step: int) -> None:
        aside = self._aside(step)
        files: dict[str, bytes | Path] = {
            f"part{k}.safetensors": aside / f"part{k}.safetensors" for k in range(self._world)
        }
        files["state.json"] = canonical_json(self._state)
        commit(self.folder / f"step-{step:09d}", files, kind=KIND, format_version=FORMAT_VERSION, meta={"step": step})
        shutil.rmtree(aside, ignore_errors=True)
        for old in _directories(self.folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _aside(self, step: int) -> Path:
        return self.folder / f".step-{step:09d}.tmp"

    def _start(self, work) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # raised where somebody waits for it
                self._error = error

        self._thread = threading.Thread(target=guarded, name="gfm-checkpoint")
        self._thread.start()


def newest_checkpoint(folder: Path) -> tuple[Artifact | None, list[str]]:
    """The newest sound checkpoint, and what is wrong with newer ones, see `set_aside`."""
    problems: list[str] = []
    for directory in _directories(folder):
        try:
            found = open_artifact(directory, kind=KIND, newest_version=FORMAT_VERSION)
            found.verify()
            return found, problems
        except CorruptFileError as error:
            problems.append(str(error))
    return None, problems


def set_aside(folder: Path, sound: Artifact) -> None:
    """Rename the damaged checkpoints that are newer than a sound one, so that the run can write them again."""
    for directory in _directories(folder):
        if directory.name == sound.directory.name:
            return
        shutil.rmtree(folder / f"{directory.name}.damaged", ignore_errors=True)
        directory.rename(folder / f"{directory.name}.damaged")


def sweep(folder: Path) -> None:
    """Remove what interrupted writes left behind."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _directories(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    found = [path for path in found if (path / MANIFEST).exists()]  # else it was never finished
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)


# ---- vectors by name ----


def tensors_of(flats: Mapping[str, tuple[FlatParameters, bool]], rank: int) -> dict[str, Tensor]:
    """What a process writes: its pieces of the vectors, and its random numbers.

    Args:
        flats: name of the set ("encoder", "heads<g>") -> (vectors, whether this process writes them).
    """
    found = {f"random/{rank}": torch.get_rng_state()}
    for name, (flat, writes) in flats.items():
        if writes:
            found |= {f"{name}/{kind}/{flat.own.start}": piece for kind, piece in flat.states().items()}
    return found


def layout_of(slots: Mapping[str, tuple[int, tuple[int, ...]]], heads: Sequence[str] = ()) -> dict[str, Any]:
    """How to find parameters (and, of a stack, heads) in the vectors of a set; see `flat.slots_of`."""
    return {"slots": {name: [start, list(shape)] for name, (start, shape) in slots.items()}, "heads": list(heads)}


class SavedState:
    """An opened checkpoint: every tensor by what it is.

    Raises:
        CorruptFileError: damaged.
    """

    def __init__(self, artifact: Artifact):
        self.directory = artifact.directory
        self.state: Mapping[str, Any] = artifact.read_json("state.json")
        pieces: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
        self.random: dict[int, Tensor] = {}
        for name in sorted(artifact.files):
            if name.startswith("part"):
                for key, tensor in safetensors.torch.load(artifact.read(name)).items():
                    kind, *rest = key.split("/")
                    if kind == "random":
                        self.random[int(rest[0])] = tensor
                    else:
                        pieces.setdefault((kind, rest[0]), []).append((int(rest[1]), tensor))
        self._whole = {
            key: torch.cat([tensor for _, tensor in sorted(found, key=lambda item: item[0])])
            for key, found in pieces.items()
        }

    @property
    def has_best(self) -> bool:
        """Whether a validation has found the best weights so far."""
        return ("encoder", BEST) in self._whole

    def parameter(self, kind: str, name: str) -> Tensor:
        """A state (of `flat.STATES`) of a parameter of the encoder."""
        return self._cut("encoder", kind, name)

    def head(self, kind: str, head: str) -> dict[str, Tensor]:
        """The same of all parameters of a head: name -> row.

        Raises:
            CorruptFileError: no such head.
        """
        for group, layout in self.state["layouts"].items():
            if head in layout["heads"]:
                row = layout["heads"].index(head)
                return {name: self._cut(group, kind, name)[row] for name in layout["slots"]}
        raise CorruptFileError(f"{self.directory}: holds no head {head}")

    def _cut(self, group: str, kind: str, name: str) -> Tensor:
        try:
            start, shape = self.state["layouts"][group]["slots"][name]
            size = int(torch.Size(shape).numel())
            return self._whole[group, kind][start : start + size].view(shape)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CorruptFileError(f"{self.directory}: lacks {kind} of {name} ({one_line(error)})") from error

    def fill(self, flat: FlatParameters, group: str, heads: Sequence[str] = ()) -> None:
        """Give vectors the values that were saved; `heads` are the rows of a stack."""
        for kind in (*STATES, BEST) if self.has_best else STATES:
            whole = torch.zeros_like(flat.weight)
            rows = [self.head(kind, head) for head in heads]
            for name in flat.names:
                target = flat.view(whole, name)
                if group == "encoder":
                    found = self.parameter(kind, name)
                else:
                    there = all(name in row for row in rows)
                    found = (
                        torch.stack([row[name] for row in rows])
                        if rows and there
                        else torch.empty(0, *target.shape[1:])
                    )
                if found.shape != target.shape:
                    raise CorruptFileError(
                        f"{self.directory}: is of another model: {name} has another shape, or is missing"
                    )
                target.copy_(found)
            if kind == "weight":
                flat.weight.copy_(whole)
            elif kind == BEST:
                flat.best = whole[flat.own].clone()
            else:
                getattr(flat, kind).copy_(whole[flat.own])
