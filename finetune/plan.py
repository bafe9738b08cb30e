"""What the user asked for, and what was decided: kept in the job's folder, so that it can go on as it began."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gfm_calc.artifacts import canonical_json, read_json, sha256_of_file, write_file
from gfm_calc.config import HeadSpec, to_mapping
from gfm_calc.data.readers import ReadOptions
from gfm_calc.data.readers.options import DEFAULTS
from gfm_calc.errors import ConfigError, GFMError, one_line
from gfm_calc.finetune import strategy
from gfm_calc.predictor import parse_device
from gfm_calc.train.run_folder import locked

PREFLIGHT = "preflight.html"
GUESS = "guess"  # folder of what is taken off the labels of a property, see `stiff`
START = "start"  # folder of the model with the head of a property as it begins
# What the inspection may say of labels whose source is known: published data, or snapshots of short walks, which are alike.
HARMLESS = ("duplicates", "contradictions", "energy-unit", "force-scale", "stress-scale", "stress-unit", "energy-kind")
CHEAP, CHEAP_LABELS = (
    "cheap",
    "cheap-labels",
)  # folders of the fine-tuning to cheap labels, and of the labels themselves
_FILE, _LOCK = "job.json", "job.lock"
_MINUTES = "max_minutes"  # beside the identity of a job
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Cheap:
    """Labels to learn first, see `cheap`.

    Attributes:
        calculator: a name of `data.calculators.NAMES`.  options: its arguments, a JSON object.
        structures: to label.  temperature: of the dynamics that makes them, K.
        steps: of the training to them, None: by their number.
    """

    calculator: str
    options: str = "{}"
    structures: int = 1000
    temperature: float = 500.0
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fine-tuning.

    Attributes:
        inputs: files of labelled structures.  test_files: those that are held out whole.  isolated: a JSON file of the
            energies of free atoms, symbol -> eV.
        model: name or directory of the model to start from.
        card: of the new head.
        output: folder.
        options, format: how labels are read.
        max_train, drop_shared, validation, test, by, seed: see `gfm finetune --help`.
        curve: `max_train` of other jobs, 0 for all: test structures with elements that one of them does not train on are left
            out, so that all have the same ones.
        strategy, steps, max_minutes: None: chosen by the size of the data, not bounded.
        naive: no guards.  keep: old heads in the new model, None for all.
        accepted: codes of findings that shall not stop the run.
        cheap: what the model learns before the labels, None for nothing.
        device, dtype: of the run.  report: whether to write report.html.
        own_labels: they were made by this program: the inspection says nothing of what it may say of good ones, see `HARMLESS`.
    """

    inputs: tuple[Path, ...]
    model: str
    card: HeadSpec
    output: Path
    test_files: tuple[Path, ...] = ()
    isolated: Path | None = None
    options: ReadOptions = DEFAULTS
    format: str | None = None
    max_train: int | None = None
    drop_shared: bool = False
    validation: float = 0.1
    test: float = 0.1
    by: str = "auto"
    seed: int = 0
    strategy: str | None = None
    steps: int | None = None
    max_minutes: float | None = None
    naive: bool = False
    keep: tuple[str, ...] | None = None
    accepted: tuple[str, ...] = ()
    cheap: Cheap | None = None
    device: str | None = None
    dtype: str = "float32"
    report: bool = True
    own_labels: bool = False
    curve: Sequence[int] = ()

    def identity(self) -> dict[str, Any]:
        """What cannot change when the job goes on, as JSON."""
        files = [
            [path.name, sha256_of_file(path)]
            for path in (*self.inputs, *self.test_files, *([self.isolated] if self.isolated else []))
        ]
        asked = asdict(self)
        for name in (
            "inputs",
            "test_files",
            "output",
            "card",
            "options",
            "device",
            "max_minutes",
            "report",
            "own_labels",
            "accepted",
        ):
            asked.pop(name)
        if not self.curve:
            asked.pop("curve")  # as it was before there were any
        asked |= {
            "files": files,
            "test_files": len(self.test_files),
            "isolated": self.isolated and self.isolated.name,
            "card": to_mapping(self.card),
            "read": repr(self.options),
        }
        return json.loads(canonical_json(asked))

    def shortened(self, since: float, *, least: float, reserved: float = 0.0) -> Job:
        """With what is left of its minutes, at least a part of them.

        Args:
            since: of `time.monotonic`.  reserved: seconds for what comes later.
        """
        if self.max_minutes is None:
            return self
        spent = (time.monotonic() - since + reserved) / 60
        left = max(least * self.max_minutes, self.max_minutes - spent)
        return replace(self, max_minutes=float(f"{left:.3g}"))


def check(job: Job) -> None:
    """Refuse here, not after minutes of inspection, what can be told from the job alone.

    Raises:
        ConfigError: options that contradict each other, no such strategy, or no such device.
    """
    strategy.require(job.strategy)
    if job.naive and job.strategy == "heads":
        raise ConfigError("--naive moves all weights, --strategy heads those of the head alone: take one of them away")
    if job.drop_shared and not job.test_files:
        raise ConfigError("--drop-shared is about structures of test files: give --test-file, or take it away")
    parse_device(job.device)


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """The job's folder, for this process alone while the block lasts.

    Raises:
        GFMError: another job is at work there, it holds other files, or it cannot be written.
    """
    _refuse_foreign(job.output)
    with locked(job.output, _LOCK, "another fine-tuning is at work in this folder"):
        yield


@contextmanager
def advice_on_full_disk() -> Iterator[None]:
    """Where the disk is full in the block, say that the job can go on."""
    try:
        yield
    except (GFMError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _FULL or "--resume" in str(error):
            raise
        raise GFMError(f"{one_line(error)}; --resume goes on when there is room") from error


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise GFMError(f"{folder}: is a file; give a folder")
    if not folder.exists() or (folder / _FILE).exists():
        return
    if any(entry.name not in (PREFLIGHT, _LOCK) for entry in folder.iterdir()):
        raise GFMError(f"{folder}: holds other files; give a new or empty folder")


def is_begun(job: Job) -> bool:
    """Whether the folder holds a job."""
    return (job.output / _FILE).exists()


def begin(job: Job, *, resume: bool) -> None:
    """Make sure that the folder is free, or with `resume` that it holds the same job; nothing is written.

    A job that never came to train holds nothing that another one could lose: that may take its place.

    Raises:
        GFMError: it holds a job (without `resume`) or other files.
        ConfigError: the job there is another one.
    """
    folder, path = job.output, job.output / _FILE
    _refuse_foreign(folder)
    if path.exists():
        if not any((folder / part / "run").exists() for part in (".", CHEAP)):
            return
        if not resume:
            raise GFMError(f"{folder}: holds a fine-tuning; go on with --resume, or choose another folder")
        _refuse_changes(folder, read_json(path), job.identity())


def take(job: Job) -> None:
    """Make the folder that of this job, without what another one left that never came to train, and without what was chosen
    for other minutes as long as nothing is trained.

    Cheap labels stay: they know themselves what they were made for.
    """
    path, identity = job.output / _FILE, job.identity()
    # Those of labels that are made here are what the job has left of its own, another number each time.
    minutes = job.max_minutes if not job.own_labels else job.max_minutes is not None
    began = read_json(path) if path.exists() else None
    if began is not None:
        # One of a version that did not keep the card may have another in its dataset.
        if _changes(began, identity) or ("card" not in began and not _has_trained(job.output)):
            _remove(job.output, ("datasets", "replay", GUESS, START))
        if began.get(_MINUTES) != minutes:
            for place in (job.output, job.output / CHEAP):
                if not _has_trained(place):
                    _remove(place, ("replay", GUESS, START))
    write(path, canonical_json({**identity, _MINUTES: minutes}))


def _has_trained(place: Path) -> bool:
    return (place / "run" / "recipe.toml").exists()


def _remove(place: Path, names: Sequence[str]) -> None:
    """Folders, each at once, and before them what was decided with them: a job that is killed here finds none of it, or all."""
    decisions_file(place).unlink(missing_ok=True)
    for name in names:
        if (place / name).exists():
            aside = place / f".{name}-removed"
            shutil.rmtree(aside, ignore_errors=True)
            (place / name).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _changes(began: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{what: (value then, value now)} of what differs; a job of a version that kept less of the card, or knew fewer fields of
    it, is not another one for that."""
    then, now = dict(began), dict(now)
    card = now["card"]
    if "card" in then:
        then["card"] = {**to_mapping(HeadSpec(name=card["name"])), **then["card"]}
        then["card"] = json.loads(canonical_json(then["card"]))
    else:
        now = {**now, "card": None, "head": card["name"], "kind": [card["kind"], card["extensive"]]}
    return {name: (then.get(name), now[name]) for name in now if then.get(name) != now[name]}


def _refuse_changes(folder: Path, began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = _changes(began, now)
    if changed:
        name, (old, new) = next(iter(changed.items()))
        if isinstance(old, dict) and isinstance(new, dict):
            inner = next(key for key in {**new, **old} if old.get(key) != new.get(key))
            name, old, new = f"{name} {inner}", old.get(inner), new.get(inner)
        raise ConfigError(
            f"{folder}: the job began with {name} = {_short(old)}, not {_short(new)}: take back the change, or start "
            "a new job in another folder"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else text[:57] + "..."


def decisions_file(folder: Path) -> Path:
    """Where what was decided is kept."""
    return folder / "decisions.json"


def read_decisions(folder: Path) -> dict[str, Any] | None:
    """What an earlier run decided; None where it did not come so far."""
    path = decisions_file(folder)
    return read_json(path) if path.exists() else None


def write_decisions(folder: Path, found: Mapping[str, Any]) -> None:
    """Keep what was decided."""
    write(decisions_file(folder), canonical_json(found))


def write(path: Path, content: bytes) -> None:
    """A file of the job; GFMError where the disk refuses."""
    try:
        write_file(path, content)
    except OSError as error:
        raise GFMError(f"{path}: could not be written ({one_line(error)}); the job can go on with --resume") from error


def old_heads(wanted: Sequence[str] | None, there: Sequence[str], new: str) -> list[str]:
    """The old heads that the new model keeps.

    Raises:
        ConfigError: an unknown name, or the new head's.
    """
    if new in there:
        raise ConfigError(f"--head {new}: the model has a head of that name; choose another")
    if wanted is None:
        return list(there)
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise ConfigError(f"--keep-heads {unknown[0]}: no such head; heads: {', '.join(there)}, or all, or none")
    return [name for name in there if name in wanted]
