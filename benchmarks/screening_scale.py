"""A million candidates, projected from a sample of them; and what each precision costs and gives."""

from __future__ import annotations

import copy
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.structures import crystals, molecules
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import ConfigError
from gfm_calc.graph import AtomicGraph
from gfm_calc.model import GFMModel
from gfm_calc.predictor import DTYPES, MIXED, Predictor, parse_device
from gfm_calc.screening.cli import model_of
from gfm_calc.screening.domain import find as find_domain
from gfm_calc.screening.elements import element_energies
from gfm_calc.screening.engine import Engine, Tally, screen
from gfm_calc.screening.folder import begin
from gfm_calc.screening.generators import RandomAtoms
from gfm_calc.screening.outcome import finish, read
from gfm_calc.screening.plan import open_streams
from gfm_calc.screening.ranking import Objective, Ranking
from gfm_calc.screening.settings import Settings
from gfm_calc.screening.streams import Made, Stream

if TYPE_CHECKING:
    from gfm_calc.benchmarks.screening import ScreeningPlan

_CHUNK = 1000
_BILLION = 1.1e9  # of the paper
_CORES = 64  # of a node of the projection


class Every:
    """Every n-th candidate of a stream, as a stream: a fair sample of all of it."""

    def __init__(self, stream: Stream, step: int):
        self.stream, self.step = stream, step

    def __len__(self) -> int:
        return len(self.stream) // self.step

    def identity(self) -> dict[str, Any]:
        """The stream's, and the step."""
        return {"kind": "every", "step": self.step, "stream": self.stream.identity()}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        for number in range(start, stop):
            yield from self.stream.made(number * self.step, number * self.step + 1)


def million(plan: ScreeningPlan) -> dict[str, Any]:
    """{plan, candidates, sampled, ok, opening_s, structures_per_s, atoms_per_s, cpu_ms, shares, reading_s, page_s, peak_mb,
    mb_per_million, minutes: {"1 process", "2 processes"}, billion: {candidates, cores, hours}}.

    Energies alone of every n-th candidate of the plan's file, by one process with one thread.
    minutes: for all candidates, with what comes before and after: the time to read all rows for the ranking grows with their
    number, that of the page does not.  billion: hours on one node of 64 such cores, for 1.1e9 such candidates; they are made
    from their numbers, so nothing is read, and no process waits for another.
    """
    if plan.candidates_file is None:
        raise ConfigError("part million needs candidates: --candidates-file examples/million.toml")
    since = time.perf_counter()
    everything = open_streams([plan.candidates_file])
    opening = time.perf_counter() - since
    step = max(1, len(everything) // plan.sampled)
    stream = Every(everything, step)
    predictor = Predictor(plan.model, [plan.head], device="cpu", forces=False, uncertainty=None)
    settings = Settings(
        heads=(plan.head,), quantity="energies", chunk=min(_CHUNK, plan.sampled), last=min(len(stream), plan.sampled)
    )
    elements, domain = element_energies(predictor), find_domain("auto", plan.model)
    about = {"candidates": len(stream), "identity": stream.identity(), "elements_file": "", "domain": ""}
    with tempfile.TemporaryDirectory() as name, Progress("million", "candidates", settings.last or 0) as progress:
        folder = begin(
            Path(name) / "run", settings, about, lambda: {"model": model_of(plan.model), "elements": elements},
            patience=20.0,
        )  # fmt: skip
        engine = Engine(predictor, settings, elements, domain)
        with folder.claims:
            since, cpu = time.perf_counter(), time.process_time()
            screen(engine, stream, folder, range(folder.num_chunks), on_chunk=lambda rows: progress.advance(_CHUNK))
            seconds, cpu = time.perf_counter() - since, time.process_time() - cpu
        ranking = Ranking(objective=Objective(column="formation_energy_per_atom"))
        since = time.perf_counter()
        read(folder, ranking)
        reading = time.perf_counter() - since
        found = finish(folder, stream, ranking, report=True)
        page = time.perf_counter() - since - 2 * reading
        size = sum(path.stat().st_size for path in (Path(name) / "run" / "chunks").iterdir())
    counts = engine.tally.counts
    factor = len(everything) / counts["candidates"]
    one = opening + page + factor * (seconds + reading)
    two = opening + page + factor * (seconds / 2 + reading)
    return {
        "plan": plan.candidates_file.name, "candidates": len(everything), "sampled": counts["candidates"],
        "ok": found.statuses[plan.head]["ok"], "opening_s": rounded(opening), "reading_s": rounded(reading),
        "page_s": rounded(page),
        "structures_per_s": rounded(counts["candidates"] / seconds), "atoms_per_s": rounded(counts["atoms"] / seconds),
        "cpu_ms": rounded(1e3 * cpu / counts["candidates"]), "shares": {
            name: rounded(spent / seconds, 3) for name, spent in sorted(engine.tally.seconds.items())},
        "peak_mb": rounded(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "mb_per_million": rounded(size / counts["candidates"]),
        "minutes": {"1 process": rounded(one / 60), "2 processes": rounded(two / 60)},
        "billion": {"candidates": _BILLION, "cores": _CORES, "hours": rounded(
            _BILLION / counts["candidates"] * seconds / _CORES / 3600)},
    }  # fmt: skip


def workload(model: GFMModel, plan: ScreeningPlan) -> list[dict[str, Any]]:
    """Rows {dtype, heads, device, structures_per_s, atoms_per_s, shares}: the papers' workload as a screening, from the numbers
    of the candidates to Parquet: 2 to `max_atoms` random atoms in a box of 10 Å, energies and forces of every head."""
    stream = RandomAtoms(
        count=plan.count, max_atoms=plan.max_atoms, elements=model.spec(model.energy_heads[0]).elements
    )
    rows = []
    for dtype in DTYPES:
        own = copy.deepcopy(model).to(parse_device(plan.device), DTYPES[dtype])
        for heads in (model.energy_heads[:1], model.energy_heads):
            settings = Settings(heads=heads, dtype=dtype, chunk=max(1, plan.count // 8), max_atoms=1 << 20,
                                max_edges=plan.max_edges)  # fmt: skip
            engine = Engine(Predictor(own, heads), settings, {})
            about = {"candidates": len(stream), "identity": stream.identity(), "elements_file": "", "domain": ""}
            with tempfile.TemporaryDirectory() as name:
                folder = begin(
                    Path(name) / "run", settings, about, lambda: {"model": {}, "elements": {}}, patience=20.0
                )
                with folder.claims:
                    screen(engine, stream, folder, range(1))  # warms up
                    engine.tally = Tally()
                    since = time.perf_counter()
                    screen(engine, stream, folder, range(1, folder.num_chunks))
                    seconds = time.perf_counter() - since
            counts = engine.tally.counts
            rows.append({
                "dtype": dtype, "heads": len(heads), "device": str(own.device), "max_atoms": plan.max_atoms,
                "structures_per_s": rounded(counts["candidates"] / seconds), "atoms_per_s": rounded(counts["atoms"] / seconds),
                "shares": {part: rounded(spent / seconds, 3) for part, spent in sorted(engine.tally.seconds.items())},
            })  # fmt: skip
    return rows


def precision(plan: ScreeningPlan) -> list[dict[str, Any]]:
    """Rows {dtype, structures_per_s, energy_mean, energy_largest, forces_mean, forces_largest}: energies and forces of crystals
    and molecules, and how far from float64, meV/atom and meV/Å (components)."""
    several = {plan.head: crystals(plan.count * 4)}
    if plan.molecule_head is not None:
        several[plan.molecule_head] = molecules(plan.count * 4)
    exact: dict[str, list[Any]] = {}
    rows = []
    for dtype in ("float64", *(name for name in DTYPES if name != "float64"), MIXED):
        seconds, energies, forces, count = 0.0, [], [], 0
        for head, structures in several.items():
            predictor = Predictor(plan.model, [head], dtype=dtype, device="cpu", max_edges=plan.max_edges, strict=False)
            graphs = [AtomicGraph.build(atoms, predictor.model.config.cutoff) for atoms in structures]
            parts = [graphs[k : k + 32] for k in range(0, len(graphs), 32)]
            times, found = [], []
            for turn in range(plan.turns + 1):
                since = time.perf_counter()
                found = [predictor.predict_batch(part)[1][head] for part in parts]
                times += [time.perf_counter() - since] if turn else []
            seconds, count = seconds + statistics.median(times), count + len(graphs)
            sizes = np.array([len(atoms) for atoms in structures])
            own = (
                torch.cat([one.energy for one in found]).numpy() / sizes,
                torch.cat([one.forces for one in found]).numpy(),
            )
            exact.setdefault(head, list(own))
            energies.append(np.abs(own[0] - exact[head][0]))
            forces.append(np.abs(own[1] - exact[head][1]).ravel())
        off = {"energy": np.concatenate(energies), "forces": np.concatenate(forces)}
        row: dict[str, Any] = {"dtype": dtype, "structures_per_s": rounded(count / seconds)}
        for name, values in off.items():
            row |= {f"{name}_mean": rounded(1e3 * values.mean(), 2), f"{name}_largest": rounded(1e3 * values.max(), 2)}
        rows.append(row)
    return rows
