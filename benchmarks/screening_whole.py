"""A screening of all candidates of a plan by processes of their own, as a user would start them, and what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gfm_calc
from gfm_calc.artifacts import parse_json
from gfm_calc.benchmarks.children import children
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.screening.folder import Folder
from gfm_calc.screening.outcome import read
from gfm_calc.screening.plan import open_streams
from gfm_calc.screening.ranking import Objective, Ranking

if TYPE_CHECKING:
    from gfm_calc.benchmarks.screening import ScreeningPlan

_CHUNK = 1000
_LOOK = 0.25  # seconds between looks at the memory of processes
_BILLION = 1.1e9  # of the paper
_CORES = 64  # of a node of the projection
_NODES = (1, 10, 100)


class Ended(NamedTuple):
    """How `together` ended: seconds from the start of the first process to the end of the last; the most memory that each has
    held, MB (0 where the system does not tell); processor time of all, seconds."""

    seconds: float
    peaks: list[float]
    cpu: float


def together(words: Sequence[str], number: int) -> Ended:
    """`gfm screen WORDS` as `number` processes that share the folder, a thread each.

    Raises:
        GFMError: one of them ended badly.
    """
    root = Path(gfm_calc.__file__).resolve().parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "gfm_calc.screening", *words, "--threads", "1", "--device", "cpu"]
    with tempfile.TemporaryFile("w+b") as said, children() as running:
        since, before = time.perf_counter(), _children()
        for rank in range(number):
            place = {
                "RANK": str(rank),
                "WORLD_SIZE": str(number),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(number),
            }
            running.append(
                subprocess.Popen(command, env={**environment, **place}, stdout=subprocess.DEVNULL, stderr=said)
            )
        peaks = [0.0] * number
        while any([process.poll() is None for process in running]):
            peaks = [max(peak, _peak(process.pid)) for peak, process in zip(peaks, running)]
            time.sleep(_LOOK)
        seconds = time.perf_counter() - since
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    for process in running:
        if process.returncode:
            raise GFMError(f"a screening ended with {process.returncode}: {text[-300:]}")
    return Ended(seconds, peaks, _children() - before)


def _children() -> float:
    """Processor time of the processes that have ended, s."""
    used = os.times()
    return used.children_user + used.children_system


def _peak(process: int) -> float:
    """MB that a process has held at most (not that of the process it was forked from, which `getrusage` counts, too)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def rate(folder: Path, number: int, chunk: int) -> float:
    """Structures a second from when each of `number` processes had written its first chunk to the last chunk."""
    ends = sorted(path.stat().st_mtime for path in (folder / "chunks").glob("*.parquet"))
    return (len(ends) - number) * chunk / (ends[-1] - ends[number - 1])


def all_of_it(plan: ScreeningPlan) -> dict[str, Any]:
    """{plan, candidates, processes, rows, doubtful, ranked, minutes, cpu_minutes, structures_per_s, finishing_s, reading_s,
    peak_mb, files, mb, billion}: energies alone of every candidate of the plan's file, from the start of the first process to
    ranking, best structures and page.

    rows: {status: rows}.  finishing_s: from the last chunk to the end, by one process; reading_s: of that, to read and check
    every chunk, which alone grows with their number.  peak_mb: of each process.  billion: {candidates, cores, nodes: {N: hours},
    reading_hours, gb}, for 1.1e9 such candidates on N nodes of 64 such cores that do not wait for each other.
    """
    path, number = plan.candidates_file, plan.processes
    if path is None or number is None:
        raise ConfigError("all of part million needs --candidates-file examples/million.toml and --processes")
    total = len(open_streams([path]))
    with tempfile.TemporaryDirectory() as name, Progress("million", "screenings", 1) as progress:
        directory = Path(name) / "run"
        words = [str(path), "-o", str(directory), "--model", plan.model, "--head", plan.head, "--quantity", "energies"]
        words += ["--chunk", str(_CHUNK)]
        started = time.time()
        ended = together(words, number)
        progress.advance()
        folder = Folder(directory)
        stats = [folder.path_of(chunk).stat() for chunk in range(folder.num_chunks)]
        since = time.perf_counter()
        read(folder, Ranking(objective=Objective(column="formation_energy_per_atom")))
        reading = time.perf_counter() - since
        counts = parse_json((directory / "counts.json").read_bytes(), directory / "counts.json")["heads"][plan.head]
        files = sum(1 for found in directory.rglob("*") if found.is_file())
        speed = rate(directory, number, folder.settings.chunk)
    size = sum(stat.st_size for stat in stats)
    nodes = {str(n): rounded(_BILLION * number / speed / (_CORES * n) / 3600, 3) for n in _NODES}
    return {
        "plan": path.name, "candidates": total, "processes": number,
        "rows": counts["rows"], "doubtful": counts["doubtful"], "ranked": counts["ranked"],
        "minutes": rounded(ended.seconds / 60), "cpu_minutes": rounded(ended.cpu / 60), "structures_per_s": rounded(speed),
        "finishing_s": rounded(started + ended.seconds - max(stat.st_mtime for stat in stats)),
        "reading_s": rounded(reading), "peak_mb": [rounded(peak) for peak in ended.peaks], "files": files,
        "mb": rounded(size / 1e6),
        "billion": {
            "candidates": _BILLION, "cores": _CORES, "nodes": nodes,
            "reading_hours": rounded(_BILLION / total * reading / 3600, 3), "gb": rounded(_BILLION / total * size / 1e9, 3),
        },
    }  # fmt: skip
