"""Labels of a cheap calculator around the user's structures: a model that has learnt them needs far fewer of the user's own.

Fifty frames of a molecule say little about the shape of its energy surface between them.  A semi-empirical method, wrong by
tenths of an eV/Å, has nearly that shape, and a thousand of its labels cost less than one of a density functional.  So the model
first learns those (a fine-tuning like any other, in a folder of the job), and the new head begins from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from gfm_calc.artifacts import canonical_json, read_json, sha256_of_file
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec
from gfm_calc.data.calculators import make_calculator, unknown_elements
from gfm_calc.data.label import LabelJob, extxyz_text, label
from gfm_calc.data.perturb import PerturbJob, perturb_as_they_come
from gfm_calc.data.readers.options import DEFAULTS
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.schema import Record
from gfm_calc.data.workers import WorkerDiedError
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError
from gfm_calc.finetune.plan import CHEAP, CHEAP_LABELS, HARMLESS, Cheap, Job, write
from gfm_calc.train.keys import FEW_GROUPS

_TIME_STEP, _EVERY, _FRICTION = 1.0, 15, 0.02  # fs, steps between structures, 1/fs
_LONGEST_LABEL, _LONGEST_WALK = 300.0, 3600.0  # s: a calculator that hangs loses one structure, not the job
_SHORTEST_WALK = 60.0  # s, however few the user's minutes are: a process needs some of it to begin
_LEAST = 20  # structures; fewer are not worth a training
_WALKING = 0.25  # of the user's minutes, for dynamics
_HOPELESS = 3  # walks that took too long before any gave a structure: the others will as well


def check(cheap: Cheap, *, kind: str, strategy: str | None) -> None:
    """Refuse here, not after an hour.

    Args:
        kind, strategy: of the job that comes after.

    Raises:
        ConfigError: a property, a strategy that keeps the encoder as it is, too few structures, or no such calculator.
        MissingDependencyError: the calculator's package is not installed.
    """
    if kind != "energy":
        raise ConfigError("--cheap-labels is for energies and forces, not for properties")
    if strategy == "heads":
        raise ConfigError("--cheap-labels moves the encoder: not with --strategy heads")
    if cheap.structures < _LEAST:
        raise ConfigError(f"--cheap-structures {cheap.structures}: {_LEAST} at least are worth a training")
    make_calculator(cheap.calculator, cheap.options)


def first_job(job: Job, cheap: Cheap, taken: Collection[str]) -> Job:
    """The fine-tuning to cheap labels that comes before the job.

    Units are ASE's, so that the work of forces along a walk, whose snapshots are far apart, has nothing to tell of them.

    Args:
        taken: names of heads that the model has.
    """
    labels, output = job.output / CHEAP_LABELS / "labels.extxyz", job.output / CHEAP
    name = f"{job.card.name}-cheap"
    while name in taken:
        name += "-cheap"
    card = HeadSpec(
        name=name, code=cheap.calculator, labels="calculated",
        training_data=({"name": f"{cheap.calculator} around the structures of {job.card.name}"},),
    )  # fmt: skip
    return replace(
        job, inputs=(labels,), test_files=(), isolated=None, output=output, card=card, options=DEFAULTS, format=None,
        max_train=None, curve=(), drop_shared=False, validation=0.1, test=0.0, by="auto", steps=cheap.steps,
        strategy=job.strategy or "full", accepted=(*job.accepted, *HARMLESS, "forces-unit"), cheap=None, report=False,
        own_labels=True,
    )  # fmt: skip


def make_labels(
    job: Job, cheap: Cheap, records: Sequence[Record], say: Callable[[str], None] = lambda line: None
) -> None:  # fmt: skip
    """Write the labels that `first_job` learns.

    Structures are snapshots of short Langevin dynamics with the calculator from the training structures, whose own labels
    are not used.  What an earlier run has made for the same structures in the same way is kept: walks and labels of an
    interrupted one are not made again.

    Args:
        records: training structures of the job.

    Raises:
        GFMError: the calculator could do too few of them.
        CorruptFileError: what is kept is damaged.
    """
    output = job.output / CHEAP_LABELS
    walked, labels, made = output / "structures.extxyz", output / "labels.extxyz", output / "made.json"
    records = [record for record in records if not record.is_free_atom]
    if not records:
        raise GFMError("--cheap-labels: all training structures are free atoms, there is nothing to walk from")
    chosen = _walkable(cheap, [records[k] for k in spread_indices(len(records), cheap.structures)], say)
    start = "".join(extxyz_text(atoms) for atoms in _starts(chosen)).encode()
    asked = {**asdict(replace(cheap, steps=None)), "seed": job.seed, "start": hashlib.sha256(start).hexdigest()}
    before = read_json(made) if made.exists() else {}
    if before.get("asked") != asked:
        shutil.rmtree(output, ignore_errors=True)
        write(made, canonical_json({"asked": asked}))
        before = {}
    if "labels" in before:
        if not labels.exists() or sha256_of_file(labels) != before["labels"]:
            raise CorruptFileError(
                f"{labels}: damaged; remove {output} and {job.output / CHEAP}, and --resume makes them again"
            )
        return
    processes = max(1, min(torch.get_num_threads(), os.cpu_count() or 1))
    failed = None
    if not walked.exists():
        write(output / "start.extxyz", start)
        names = [f"{record.source}, frame {record.frame}" for record in chosen]
        frames, failed = _walk(job, cheap, output / "start.extxyz", names, processes, say)
        write(walked, "".join(frames[k] for k in spread_indices(len(frames), cheap.structures)).encode())
    with Progress(cheap.calculator, "labels", cheap.structures) as progress:
        found = label(
            LabelJob(inputs=(walked,), output=labels, calculator=cheap.calculator, options=cheap.options, processes=processes,
                     timeout=_LONGEST_LABEL, overwrite=True),
            on_progress=progress.advance,
        )  # fmt: skip
    if found.labelled < _LEAST:
        shutil.rmtree(output)
        raise GFMError(
            f"--cheap-labels {cheap.calculator}: {found.labelled} structures could be labelled, too few: "
            f"{found.first_failure or failed or 'ask for more'}"
        )
    write(made, canonical_json({"asked": asked, "labels": sha256_of_file(labels)}))
    say(f"{cheap.calculator}: {found.labelled} structures at {cheap.temperature:g} K around the training ones labelled")


def _walkable(cheap: Cheap, records: list[Record], say: Callable[[str], None]) -> list[Record]:
    """The records whose elements the calculator knows, as far as its name tells; GFMError where none is left."""
    lost = [(record, unknown_elements(cheap.calculator, record.atomic_numbers.tolist())) for record in records]
    known = [record for record, unknown in lost if not unknown]
    symbols = ", ".join(sorted({symbol for _, unknown in lost for symbol in unknown}))
    if not known:
        first = records[0]
        raise ConfigError(
            f"--cheap-labels {cheap.calculator}: does not know {symbols}, which all training structures hold (the first: "
            f"{first.source}, frame {first.frame}): choose another calculator, or leave --cheap-labels out"
        )
    if len(known) < len(records):
        say(
            f"{cheap.calculator}: {len(records) - len(known)} structures are not walked from: it does not know {symbols}"
        )
    return known


def _walk(
    job: Job, cheap: Cheap, start: Path, names: Sequence[str], processes: int, say: Callable[[str], None]
) -> tuple[list[str], str | None]:
    """Snapshots of all walks, as text of a frame each; and why a walk failed, where one did; names: of the user's structures.

    Walks end early, those that have not begun are left out, when their share of the user's minutes is over.  A finished one is
    a line of a journal beside `start`, written as it comes, so that an interrupted run makes the others alone; one that failed
    is tried again, for its reason may be gone.

    Raises:
        GFMError: no walk gave anything, or too few did in all of the user's minutes, or the first ones took too long.
    """
    count = len(names)
    journal = start.with_name("walks.jsonl")
    texts = _whole_lines(journal)
    walks = PerturbJob(
        inputs=(start,), copies=-(-cheap.structures // count), seed=job.seed, calculator=cheap.calculator,
        options=cheap.options, temperature=cheap.temperature, time_step=_TIME_STEP, every=_EVERY, friction=_FRICTION,
        processes=processes, timeout=min(_LONGEST_WALK, max(_SHORTEST_WALK, 60 * (job.max_minutes or math.inf))),
    )  # fmt: skip
    minutes, began = math.inf if job.max_minutes is None else job.max_minutes, time.monotonic()
    most = max(minutes, _SHORTEST_WALK / 60)
    say(f"{cheap.calculator}: dynamics from {count} training structures at {cheap.temperature:g} K")
    made = sum(len(_frames(text)) for text in texts.values())
    failures: dict[int, str] = {}
    slow = 0  # walks whose process was ended
    with (
        Progress(cheap.calculator, "walks", count) as progress,
        journal.open("a") as written,
        closing(perturb_as_they_come(walks, done=frozenset(texts))) as outcomes,
    ):
        progress.advance(len(texts))
        for number, outcome in outcomes:
            if isinstance(outcome, str):
                texts[number] = outcome
                made += len(_frames(outcome))
                print(json.dumps({"walk": number, "text": outcome}), file=written, flush=True)
            else:
                failures[number] = str(outcome).replace(f"{start.name}, frame {number}", names[number])
                failures[number] = failures[number].replace(f"{start.name}: frame {number}", names[number])
                slow += isinstance(outcome, WorkerDiedError)
            progress.advance()
            spent = (time.monotonic() - began) / 60
            if spent > _WALKING * minutes and made >= _LEAST:
                break
            if (spent > most and made < _LEAST) or (not made and slow >= max(_HOPELESS, processes)):
                raise GFMError(_too_slow(cheap, made, len(texts) + len(failures), count, spent, failures))
    first = failures[min(failures)] if failures else None
    if not made:
        raise GFMError(f"--cheap-labels {cheap.calculator}: {first}")
    done = len(texts) + len(failures)
    if failures:
        say(f"{cheap.calculator}: {len(failures)} of {done} walks failed and are left out; the first: {first}")
    if done < count:
        say(f"{cheap.calculator}: {count - done} of {count} walks left out, their share of the minutes is over")
    return [frame for number in sorted(texts) for frame in _frames(texts[number])], first


def _too_slow(cheap: Cheap, made: int, walks: int, count: int, minutes: float, failures: Mapping[int, str]) -> str:
    """Why dynamics is given up, and how to mend it."""
    reason = f" ({failures[min(failures)]})" if failures else ""
    found = f"structures: {made}, after {walks} of {count} walks and {minutes:.1f} minutes{reason}"
    return (
        f"--cheap-labels {cheap.calculator}: {found}; {_LEAST} at least are worth a training: give more --max-minutes, a faster "
        "calculator, or more --threads, or ask for fewer --cheap-structures"
    )


def _whole_lines(journal: Path) -> dict[int, str]:
    """{walk: its frames} that an earlier run has written; a line that was cut off, and what follows it, is taken off the file."""
    found: dict[int, str] = {}
    end = 0
    for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
        try:
            walk = json.loads(line)
            number, text = walk["walk"], walk["text"]
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        found[number] = text
        end += len(line)
    if journal.exists():
        os.truncate(journal, end)
    return found


def _frames(text: str) -> list[str]:
    """The frames of extended XYZ, all of one number of atoms."""
    if not text:
        return []
    lines = text.splitlines(keepends=True)
    size = int(lines[0]) + 2
    return ["".join(lines[k : k + size]) for k in range(0, len(lines), size)]


def in_words(cheap: Cheap, after: dict[str, Any], side: str) -> str:
    """What the model had learnt, for the reasons of the strategy."""
    forces = after.get("forces_mae_mev_per_a")
    error = f": forces {forces:.1f} meV/Å off its labels ({side})" if forces is not None else ""
    return f"begins with what {cheap.calculator} says of structures around these{error}"


def _starts(records: Sequence[Record]) -> Iterator[Atoms]:
    """Bare structures; what must stay on one side of a split is the user's group, or where those are too few, a walk."""
    grouped = len({record.group for record in records}) >= FEW_GROUPS and all(record.group for record in records)
    for number, record in enumerate(records):
        atoms = record.structure()
        atoms.info["group"] = record.group if grouped else f"walk-{number}"
        yield atoms
