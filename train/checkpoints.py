"""The checkpoints of a run: all processes begin them, the first one commits them, all go on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gfm_calc.artifacts import open_artifact
from gfm_calc.config import HeadSpec
from gfm_calc.errors import CorruptFileError
from gfm_calc.train.exchange import SharedParameters
from gfm_calc.train.flat import slots_of
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.placement import Placement
from gfm_calc.train.schedule import Schedule
from gfm_calc.train.state import (
    FORMAT_VERSION,
    KIND,
    CheckpointWriter,
    SavedState,
    layout_of,
    newest_checkpoint,
    set_aside,
    sweep,
    tensors_of,
)


class Checkpoints:
    """What all processes hold, in the folder `checkpoints`; every method is to be called by all processes.

    Args:
        shared: the parameters that this process has: "encoder", and "heads<g>" of its group g.
        specs: cards of all heads of the run.
        mode: of the recipe, for the record.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, placement: Placement, shared: Mapping[str, SharedParameters], *,
        specs: Sequence[HeadSpec], mode: str,
    ):  # fmt: skip
        self.folder, self.ranks, self.placement, self.shared = folder, ranks, placement, shared
        self.specs, self.mode = specs, mode
        self.group = placement.group_of(ranks.rank)
        self.writer = CheckpointWriter(folder, ranks.rank, ranks.world)

    def is_written(self) -> bool:
        """Whether this process has nothing left to write; GFMError where the disk refused."""
        return self.writer.is_written()

    def commit(self) -> None:
        """All processes have said that they have written: make it a checkpoint."""
        if self.writer.step is not None:
            self.writer.commit()

    def save(self, step: int, schedule: Schedule, *, wait: bool) -> None:
        """Begin a checkpoint; with `wait`, until it is there on all processes."""
        if self.writer.step is not None:  # the last one is not there yet: a slow disk
            self._finish()
        self.writer.wait()
        flats = {name: (s.flat, s.sharing.is_first) for name, s in self.shared.items()}
        layouts = {"encoder": layout_of(self.shared["encoder"].flat.slots)}
        for number, heads in enumerate(self.placement.heads):
            layouts[f"heads{number}"] = self._layout_of_heads(self._stacked(heads))
        state = {
            "step": step, "world": self.ranks.world, "mode": self.mode, "layouts": layouts, "schedule": schedule.state()
        }  # fmt: skip
        self.writer.begin(step, tensors_of(flats, self.ranks.rank), state)
        if wait:
            self._finish()

    def resume(self, schedule: Schedule) -> int:
        """Go on from the newest sound checkpoint; its step, 0 where no checkpoint was ever finished.

        Raises:
            CorruptFileError: there are checkpoints, but none is sound.
            UnsupportedVersionError: the newest one is of a newer format.
        """
        found = None
        if self.ranks.rank == 0:
            sweep(self.folder)
            found, problems = newest_checkpoint(self.folder)
            if problems and found is None:
                raise CorruptFileError(
                    f"{problems[0]}; no checkpoint of the run is sound: start a new run in another folder"
                )
            if problems and found is not None:
                set_aside(self.folder, found)
            for problem in problems:
                print(f"gfm: warning: {problem}; an older checkpoint is used", flush=True)
        name = self.ranks.tell(None if found is None else found.directory.name)[0]
        if name is None:
            return 0
        saved = SavedState(open_artifact(self.folder / name, kind=KIND, newest_version=FORMAT_VERSION))
        self.shared["encoder"].flat_from(saved, "encoder")
        own = self._stacked(self.placement.heads[self.group])
        self.shared[f"heads{self.group}"].flat_from(saved, "heads", own)
        schedule.restore(saved.state["schedule"])
        if saved.state["world"] == self.ranks.world and self.ranks.rank in saved.random:
            torch.set_rng_state(saved.random[self.ranks.rank])
        return saved.state["step"]

    def _stacked(self, heads: Sequence[int]) -> list[str]:
        """Names of those of the heads that are rows of a stack: property heads belong to what all processes share."""
        return [self.specs[k].name for k in heads if self.specs[k].kind == "energy"]

    def _layout_of_heads(self, names: Sequence[str]) -> dict[str, Any]:
        """The layout of a group's stack, which differs from that of this group in the number of rows alone."""
        own = self.shared[f"heads{self.group}"].flat
        shapes = {name: (len(names), *shape[1:]) for name, (_, shape) in own.slots.items()}
        return layout_of(slots_of(shapes, own.decayed), names)

    def _finish(self) -> None:
        self.writer.wait()
        self.ranks.wait()
        self.writer.commit()
        self.writer.wait()
        self.ranks.wait()
