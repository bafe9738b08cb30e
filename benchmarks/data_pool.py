"""Every file of a folder: datasets built, split over all of them, referenced, read back and compared bit for bit."""

from __future__ import annotations

import lzma
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.benchmarks.data_sample import files_of, size_of
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.compositions import Compositions
from gfm_calc.data.fingerprints import Description, describe
from gfm_calc.data.frame_table import FrameTable
from gfm_calc.data.grouping import by_group
from gfm_calc.data.readers import read
from gfm_calc.data.schema import Record
from gfm_calc.data.splits import draw, join
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.data.tasks import FileTask
from gfm_calc.data.workers import run_in_processes
from gfm_calc.errors import GFMError, InputFileError
from gfm_calc.neighbors import neighbor_list

CUTOFF = 5.0  # Å, of the edges that the papers' schema stores
_HEAD = re.compile(rb"[ \t]head=([\w.+-]+)")


def run_pool(folder: Path, scratch: Path, *, processes: int = 2) -> dict[str, Any]:
    """Measure.

    Returns:
        frames, atoms, files; heads, rows {head, files, frames, atoms, bytes, seconds, fitted_elements, residual}; build
        {seconds, frames_per_s, mb_per_s (of uncompressed text), peak_mb (of the largest process)}; bytes {ours, extxyz_xz,
        extxyz, with_edges, edges}; compared {frames, differing}; split {train, validation, test: frames; shared, leaks
        before groups that share a structure were joined; leaks, after}.

    Raises:
        GFMError: a frame that does not come back as it was, or is on two sides of the split.
    """
    heads = _by_head(files_of(folder))
    rows, datasets = [], []
    with Progress("build", "heads", len(heads)) as progress:
        for head, paths in heads.items():
            started = time.perf_counter()
            tasks = [FileTask(paths=(path,)) for path in paths]
            dataset = build(scratch / head, tasks, HeadSpec(name=head, code="see the file", functional="see the file"),
                            processes=processes)  # fmt: skip
            seconds = time.perf_counter() - started
            datasets.append(dataset)
            rows.append({
                "head": head, "files": len(paths), "frames": len(dataset), "atoms": dataset.num_atoms,
                "bytes": size_of(dataset.directory), "seconds": rounded(seconds),
            })  # fmt: skip
            progress.advance(note=head)
    peak = _largest_child_mb()
    texts = sum(_text_bytes(path) for paths in heads.values() for path in paths)
    seconds = sum(row["seconds"] for row in rows)
    frames, atoms = (sum(row[key] for row in rows) for key in ("frames", "atoms"))
    checks = _check(heads, datasets, processes)
    split = _split(datasets, rows, [description for check in checks for description in check.descriptions])
    return {
        "files": sum(map(len, heads.values())), "frames": frames, "atoms": atoms, "heads": rows,
        "build": {
            "processes": processes, "seconds": rounded(seconds), "frames_per_s": rounded(frames / seconds),
            "mb_per_s": rounded(texts / 1e6 / seconds), "peak_mb": peak,
        },
        "bytes": {
            "ours": sum(row["bytes"] for row in rows), "extxyz": texts,
            "extxyz_xz": sum(path.stat().st_size for paths in heads.values() for path in paths),
            "with_edges": sum(check.schema_bytes for check in checks), "cutoff": CUTOFF,
            "edges": sum(check.edges for check in checks),
        },
        "compared": {"frames": sum(check.frames for check in checks), "differing": 0},
        "split": split,
    }  # fmt: skip


def _by_head(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """head -> its files; the head that the first frame of a file names."""
    heads: dict[str, list[Path]] = {}
    for path in paths:
        with lzma.open(path) as handle:
            handle.readline()
            found = _HEAD.search(handle.readline())
        if found is None:
            raise InputFileError(f"{path}: its first frame names no head (head=NAME)")
        heads.setdefault(found[1].decode(), []).append(path)
    return dict(sorted(heads.items()))


def _text_bytes(path: Path) -> int:
    with lzma.open(path) as handle:
        return handle.seek(0, 2)


def _largest_child_mb() -> float:
    from resource import RUSAGE_CHILDREN, getrusage

    return rounded(getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024)


# ---- read back ----


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """What is kept of a file that was compared: frames, edges within `CUTOFF`, bytes in the papers' schema, and each frame's
    description for the split."""

    frames: int
    edges: int
    schema_bytes: int
    descriptions: list[Description]


def _check(heads: Mapping[str, Sequence[Path]], datasets: Sequence[Dataset], processes: int) -> list[FileCheck]:
    """Compare all files, large ones first; the checks in the order of the files."""
    calls = []
    for paths, dataset in zip(heads.values(), datasets):
        first = 0
        counts = {entry["name"]: entry["structures"] for entry in dataset.inputs}
        for path in paths:
            calls.append((path, dataset.directory, first, counts[path.name]))
            first += counts[path.name]
    order = sorted(range(len(calls)), key=lambda k: -calls[k][3])
    found: dict[int, FileCheck] = {}
    with Progress("compare", "files", len(calls)) as progress:
        for number, answer in run_in_processes(check_file, [calls[k] for k in order], processes):
            if isinstance(answer, BaseException):
                raise answer
            found[order[number]] = answer
            progress.advance()
    return [found[k] for k in range(len(calls))]


def check_file(path: Path, directory: Path, first: int, count: int) -> FileCheck:
    """Compare the frames of a file with what the dataset holds of it, from structure `first` on.

    Raises:
        GFMError: the first difference.
    """
    stored = open_dataset(directory).records(first, first + count)
    edges = size = 0
    descriptions: list[Description] = []
    for wanted, found in zip_longest(read(path), stored):
        name = "number of frames" if wanted is None or found is None else difference(wanted, found)
        if name is not None:
            raise GFMError(f"{path}, frame {len(descriptions)}: {name} did not come back as it was")
        pairs = neighbor_list(wanted.positions, wanted.cell, wanted.pbc, CUTOFF)[0].shape[1]
        size, edges = size + _schema_bytes(wanted, pairs), edges + pairs
        descriptions.append(describe(wanted))
    return FileCheck(frames=len(descriptions), edges=edges, schema_bytes=size, descriptions=descriptions)


def difference(first: Record, second: Record) -> str | None:
    """The field in which two records are not equal bit for bit (but for the sign of zeros), or None."""
    for name in (field.name for field in fields(Record)):
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            same = a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
        else:
            same = a == b or (a != a and b != b)
        if not same:
            return name
    return None


def _schema_bytes(record: Record, edges: int) -> int:
    """Bytes of a structure as the papers' code stores it, arrays alone: x [n, 4], pos and forces [n, 3] and energy in
    float32, edge_index [2, edges] in int64, edge lengths and shifts [edges, 1 + 3] in float32, cell in float32, pbc."""
    n = len(record)
    return 4 * n * (4 + 3 + 3) + 4 + edges * (2 * 8 + 4 * 4) + (36 + 3 if record.pbc.any() else 0)


# ---- split ----


def _split(
    datasets: Sequence[Dataset], rows: Sequence[dict[str, Any]], descriptions: Sequence[Description]
) -> dict[str, Any]:  # fmt: skip
    """Split over all datasets at once; reference energies of each head from its training side, added to its row."""
    table, energies = FrameTable(), Compositions()
    with Progress("split", "frames", len(descriptions)) as progress:
        for record, description in zip(chain.from_iterable(d.records() for d in datasets), descriptions, strict=True):
            table.add(record, by_group(record), description)
            energies.add(record)
            progress.advance()
    drawn = draw(table.groups_by_file(), by="group")
    shared = len(table.leaks(table.sides(drawn)))
    joined = join(drawn, table.groups_that_share())
    sides = table.sides(joined)
    table.refuse_leaks(sides)
    first = 0
    for dataset, row in zip(datasets, rows):
        chosen = np.zeros(len(table), bool)
        chosen[first : first + len(dataset)] = sides[first : first + len(dataset)] == 0
        first += len(dataset)
        fit = energies.fit(chosen)
        row["train_frames"] = int(chosen.sum())
        row["fitted_elements"], row["flagged_elements"] = len(fit.energies), len(fit.flagged)
        row["residual_ev_per_atom"] = rounded(fit.residual_rms)
        row["condition_number"] = rounded(fit.regularised_condition_number)
        if not all(math.isfinite(value) for value in fit.energies.values()):
            raise GFMError(f"{dataset.directory}: a reference energy is not finite")
    census = table.census(sides)["ids"]
    counts = {side: census[side]["frames"] if side in census else 0 for side in ("train", "validation", "test")}
    return {**counts, "shared_before": shared, "leaks": 0}
