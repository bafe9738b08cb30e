"""The run folder: one job at a time works in it, on the data and with the model that the run began with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gfm_calc.artifacts import write_file
from gfm_calc.checkpoint import resolve
from gfm_calc.errors import ConfigError, GFMError, one_line
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.preparation import Head, load_preparation, prepare, save_preparation
from gfm_calc.train.recipe import Recipe, read_recipe, to_toml

_RECIPE, _LOCK = "recipe.toml", "run.lock"
_OURS = ("data", "checkpoints", _LOCK)  # what a run that was ended early may have left before its recipe
_FIXED_DATA = ("path", "heads", "split", "by", "validation", "test", "shared", "seed", "tau")


@contextmanager
def open_run(
    folder: Path, recipe: Recipe, ranks: Ranks, *, resume: bool, prepare: Callable[[Recipe, float], list[Head]] = prepare
) -> Iterator[list[Head]]:  # fmt: skip
    """The data of a run, whose folder belongs to this job while the block lasts; to be entered by all processes.

    The first process looks and writes, all read.

    Args:
        prepare: gives the heads of a run that begins, see `preparation.prepare`.

    Raises:
        GFMError: the folder holds a run (without `resume`) or other files, or another job works in it.
        ConfigError: the recipe is not that of the run in what cannot change.
    """
    with _alone_in(folder, resume) if ranks.rank == 0 else nullcontext():
        if ranks.rank == 0:
            _begin(folder, recipe, resume, prepare)
        ranks.wait()
        heads = load_preparation(folder / "data")
        _refuse_blind_schedule(recipe, heads)
        yield heads


def _begin(folder: Path, recipe: Recipe, resume: bool, prepare: Callable[[Recipe, float], list[Head]]) -> None:
    if (folder / _RECIPE).exists():
        _refuse_changes(folder, recipe)
    else:
        if resume:
            print(f"{folder}: holds no run to go on with; a new one begins", flush=True)
        begin(folder, recipe, prepare(recipe, recipe.model.cutoff))
        return
    write_file(folder / _RECIPE, to_toml(_with_whole_paths(recipe)).encode())


def begin(folder: Path, recipe: Recipe, heads: Sequence[Head]) -> None:
    """Write a run's heads, then its recipe: from then on there is a run to go on with.

    Args:
        heads: what `prepare` found for the recipe.
    """
    _refuse_blind_schedule(recipe, heads)
    save_preparation(folder / "data", heads)
    write_file(folder / _RECIPE, to_toml(_with_whole_paths(recipe)).encode())


@contextmanager
def _alone_in(folder: Path, resume: bool) -> Iterator[None]:
    """The lock goes with the process, however that ends."""
    if folder.exists() and not folder.is_dir():
        raise GFMError(f"{folder}: is a file; give a folder")
    if (folder / _RECIPE).exists():
        if not resume:
            raise GFMError(f"{folder}: holds a run; go on with --resume, or choose another folder")
    elif folder.exists() and any(path.name not in _OURS for path in folder.iterdir()):
        raise GFMError(f"{folder}: holds other files; give a new or empty folder")
    with locked(folder, _LOCK, "another job trains in this folder"):
        yield


@contextmanager
def locked(folder: Path, name: str, taken: str) -> Iterator[None]:
    """A folder, made where it is not there, for this process alone while the block lasts.

    Args:
        name: of the lock file in it.  taken: what to say where another process has it.

    Raises:
        GFMError: another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise GFMError(f"{folder}: cannot be written ({one_line(error)}); choose another folder") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise GFMError(f"{folder}: {taken}; wait for it, or choose another folder") from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def _refuse_blind_schedule(recipe: Recipe, heads: Sequence[Head]) -> None:
    waits = recipe.run.stop_after or recipe.optimizer.schedule == "plateau"
    if waits and not any(head.sides["validation"].size for head in heads):
        raise ConfigError(
            "run.stop_after and the schedule plateau need validation structures, and no head has any: raise "
            "data.validation, or take another schedule"
        )


def _refuse_changes(folder: Path, recipe: Recipe) -> None:
    began, now = (_fixed(_with_whole_paths(r)) for r in (read_recipe(folder / _RECIPE), recipe))
    changed = [
        f"{name} = {began.get(name)}, not {now.get(name)}" for name in now | began if began.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{folder}: the run began with {'; '.join(changed[:3])}: a run keeps its data, heads and model; "
            "take back the change, or start a new run in another folder"
        )


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What cannot change in the middle of a run, by name."""
    found = {f"model.{name}": value for name, value in asdict(recipe.model).items()}
    found |= {f"start.{name}": value for name, value in asdict(recipe.start).items()}
    found |= {f"data.{name}": getattr(recipe.data, name) for name in _FIXED_DATA}
    found |= {"run.seed": recipe.run.seed, "objective.uncertainty": recipe.objective.uncertainty}
    for head in recipe.heads:
        fixed = {"share": head.share, "start": head.start, "reference_energies": dict(head.reference_energies)}
        for name, value in fixed.items():
            if value:
                found[f"{name} of head {head.name}"] = value
    return found


def _with_whole_paths(recipe: Recipe) -> Recipe:
    """The same recipe for any working directory."""
    data, start = recipe.data, recipe.start
    path, split = (text and str(Path(text).expanduser().absolute()) for text in (data.path, data.split))
    model = str(resolve(start.model)) if start.model else ""
    return replace(recipe, data=replace(data, path=path or "", split=split), start=replace(start, model=model))
