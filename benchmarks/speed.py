"""`gfm bench speed`: structures and atoms a second, and milliseconds an MD step, ours and peers' side by side.

Every contender (ours eager, ours compiled, each peer) is a process of its own with its threads fixed before torch starts.
All run the same jobs on the same structures with the same stopwatch, taking turns within every job, so that a change in the
machine's mood meets all of them alike and ratios hold.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from gfm_calc.benchmarks import structures
from gfm_calc.benchmarks.contenders import Process
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.benchmarks.peers.measure import structures_in
from gfm_calc.checkpoint import load_model, resolve
from gfm_calc.commands.progress import Progress
from gfm_calc.config import HeadSpec
from gfm_calc.errors import ConfigError, HeadError, did_you_mean
from gfm_calc.structures import read_structures

PEERS = {
    "chgnet": "chgnet_speed.py",
    "sevennet": "sevennet_speed.py",
    "mace": "mace_speed.py",  # random weights
    "torchsim": "torchsim_speed.py",  # on the same MACE
}
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """What to measure.

    Attributes:
        model: packaged name or directory.  head: for everything; None picks one for molecules and one for crystals.
        device: "cpu", "cuda", ... of all contenders.
        threads: CPU threads, one round each.
        compile: ours compiled too, beside eager.
        peers: {name of `PEERS`: python of an environment that has it}.
        batches: structures handed over at once.
        systems: names of `structures.dynamics_systems` to time MD steps on.
        repeats: measurements a number; medians are reported.
        seconds: aimed at for each measurement.
        timestep: fs.
        sets: {name: structures} instead of the built-in molecules and crystals.
    """

    model: str
    head: str | None = None
    device: str = "cpu"
    threads: Sequence[int] = (1, 2)
    compile: bool = True
    peers: Mapping[str, str] = field(default_factory=dict)
    batches: Sequence[int] = (1, 32, 256)
    systems: Sequence[str] = ("ethanol", "NaCl", "Cu", "Si")
    repeats: int = 5
    seconds: float = 1.0
    timestep: float = 1.0
    sets: Mapping[str, Sequence[Atoms]] | None = None

    def __post_init__(self) -> None:
        for name in self.peers:
            if name not in PEERS:
                raise ConfigError(f"no peer {name!r}{did_you_mean(name, PEERS)}; peers: {', '.join(PEERS)}")


def run_speed(plan: SpeedPlan) -> dict[str, Any]:
    """Measure; returns the "contenders", "batches" and "dynamics" of the result.

    batches: rows {contender, threads, set, batch, structures_per_s, atoms_per_s, spread}; dynamics: rows {contender,
    threads, system, atoms, ms_per_step, spread}; spread is (largest - smallest) / median over the repeats.  A job that a
    contender could not do is a row with `error`.

    Raises:
        GFMError: a contender that does not start.
    """
    sets, systems = _structures(plan)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        ase.io.write(
            path, _tagged(sets, "set") + _tagged({k: [a] for k, a in systems.items()}, "system"), format="extxyz"
        )
        commands = _commands(plan, sets)
        described, rows = [], []
        with Progress("speed", "jobs", len(plan.threads) * len(_jobs(plan))) as progress:
            for threads in plan.threads:
                found = _round(plan, commands, path, threads, progress)
                described += found[0]
                rows += found[1]
    batch_rows = [_batch_row(row, sets) for row in rows if row["job"] == "batch"]
    dynamics_rows = [_dynamics_row(row, systems) for row in rows if row["job"] == "md"]
    return {"contenders": described, "batches": batch_rows, "dynamics": dynamics_rows}


def read_sets(path: Path) -> dict[str, list[Atoms]]:
    """The structures of a file as "molecules" (no periodic axis) and "crystals"."""
    frames = list(read_structures(path))
    sets = {"molecules": [a for a in frames if not a.pbc.any()], "crystals": [a for a in frames if a.pbc.any()]}
    return {name: kept for name, kept in sets.items() if kept}


def pick_head(specs: Mapping[str, HeadSpec], wanted: Sequence[Atoms], head: str | None) -> str:
    """`head`, or the first energy head trained on such boundary conditions that has seen all elements.

    Raises:
        HeadError: there is none.
    """
    if head is not None:
        return head
    kind = "bulk" if wanted[0].pbc.any() else "molecule"
    numbers = {int(z) for atoms in wanted for z in atoms.numbers}
    able = [s for s in specs.values() if s.kind == "energy" and not s.unseen(sorted(numbers))]
    for spec in sorted(able, key=lambda s: kind not in s.periodicity):  # stable: heads of that kind first
        return spec.name
    raise HeadError(
        f"no head of this model has seen all elements of the benchmark's {kind} structures: name one with --head"
    )


def _structures(plan: SpeedPlan) -> tuple[dict[str, list[Atoms]], dict[str, Atoms]]:
    count = max(16, *plan.batches)
    if plan.sets is None:
        sets = {"molecules": structures.molecules(count), "crystals": structures.crystals(count)}
    else:
        # A file with fewer structures is gone through again: timing does not mind copies.
        sets = {name: [frames[k % len(frames)].copy() for k in range(count)] for name, frames in plan.sets.items()}
    known = structures.dynamics_systems()
    unknown = [name for name in plan.systems if name not in known]
    if unknown:
        raise ConfigError(f"no MD system {unknown[0]!r}{did_you_mean(unknown[0], known)}; systems: {', '.join(known)}")
    return sets, {name: known[name] for name in plan.systems}


def _tagged(groups: Mapping[str, Sequence[Atoms]], key: str) -> list[Atoms]:
    tagged = []
    for name, frames in groups.items():
        for atoms in frames:
            atoms = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            atoms.info[key] = name
            tagged.append(atoms)
    return tagged


def _commands(plan: SpeedPlan, sets: Mapping[str, Sequence[Atoms]]) -> dict[str, list[str]]:
    """{contender: command line without --structures and --threads}."""
    specs = load_model(plan.model).specs
    molecular = [atoms for frames in sets.values() for atoms in frames if not atoms.pbc.any()] or structures.molecules(
        16
    )
    periodic = [atoms for frames in sets.values() for atoms in frames if atoms.pbc.any()] or structures.crystals(16)
    ours = [
        sys.executable, "-m", "gfm_calc.benchmarks.worker", "--model", str(resolve(plan.model)),
        "--molecule-head", pick_head(specs, molecular, plan.head), "--crystal-head", pick_head(specs, periodic, plan.head),
    ]  # fmt: skip
    commands = {"gfm-calc eager": ours}
    if plan.compile:
        commands["gfm-calc compiled"] = [*ours, "--compile"]
    for name, python in plan.peers.items():
        commands[name] = [python, str(_HERE / "peers" / PEERS[name])]
    return {name: [*command, "--device", plan.device] for name, command in commands.items()}


def _round(
    plan: SpeedPlan, commands: Mapping[str, Sequence[str]], path: Path, threads: int, progress: Progress
) -> tuple[list, list]:
    """All jobs at one number of threads: descriptions of the contenders, rows with the seconds of every repeat."""
    running: list[Process] = []
    try:
        for name, command in commands.items():
            running.append(Process(name, [*command, "--structures", str(path), "--threads", str(threads)], threads))
        descriptions = [{**process.description, **_check(plan, process)} for process in running]
        rows = []
        for job in _jobs(plan):
            rows += _take_turns(plan, running, job, threads)
            progress.advance(
                note=f"{threads} thread(s), {job.get('set') or job.get('system')} {job.get('batch', 'MD')}"
            )
        return descriptions, rows
    finally:
        for process in running:
            process.close()


def _check(plan: SpeedPlan, process: Process) -> dict[str, Any]:
    """batch_minus_calculator_ev_per_atom: the two timed paths of a contender must give the same energies."""
    answers = [process.ask({"job": "check", "set": name}) for name in _set_names(plan)]
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        return {"error": errors[0]}
    return {"batch_minus_calculator_ev_per_atom": rounded(max(answer["difference"] for answer in answers), 2)}


def _set_names(plan: SpeedPlan) -> tuple[str, ...]:
    return ("molecules", "crystals") if plan.sets is None else tuple(plan.sets)


def _jobs(plan: SpeedPlan) -> list[dict[str, Any]]:
    batches = [
        {"job": "batch", "set": s, "batch": b, "seconds": plan.seconds} for s in _set_names(plan) for b in plan.batches
    ]
    return batches + [
        {"job": "md", "system": s, "seconds": plan.seconds, "timestep": plan.timestep} for s in plan.systems
    ]


def _take_turns(plan: SpeedPlan, running: Sequence[Process], job: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    answers: dict[str, list[dict[str, Any]]] = {process.name: [] for process in running}
    for _ in range(plan.repeats):
        for process in running:
            if not _is_done(answers[process.name]):
                answers[process.name].append(process.ask(job))
    rows = []
    for name, found in answers.items():
        row = {**job, "contender": name, "threads": threads}
        errors = [answer["error"] for answer in found if "error" in answer]
        row |= {"error": errors[0]} if errors else {"calls": [a["seconds"] / a["calls"] for a in found]}
        rows.append(row)
    return rows


def _is_done(answers: Sequence[Mapping[str, Any]]) -> bool:
    """A job that failed is not tried again; of one that takes long, three measurements are enough."""
    slow = len(answers) >= 3 and all(answer.get("seconds", 0.0) > 10.0 for answer in answers)
    return slow or any("error" in answer for answer in answers)


def _batch_row(row: Mapping[str, Any], sets: Mapping[str, Sequence[Atoms]]) -> dict[str, Any]:
    found = {key: row[key] for key in ("contender", "threads", "set", "batch")}
    if "error" in row:
        return {**found, "error": row["error"]}
    count = structures_in(row)  # type: ignore[arg-type]
    atoms = sum(len(a) for a in sets[row["set"]][:count])
    seconds = statistics.median(row["calls"])
    return {
        **found, "structures_per_s": rounded(count / seconds), "atoms_per_s": rounded(atoms / seconds),
        "spread": _spread(row["calls"]),
    }  # fmt: skip


def _dynamics_row(row: Mapping[str, Any], systems: Mapping[str, Atoms]) -> dict[str, Any]:
    found = {"contender": row["contender"], "threads": row["threads"], "system": row["system"]}
    found["atoms"] = len(systems[row["system"]])
    if "error" in row:
        return {**found, "error": row["error"]}
    return {**found, "ms_per_step": rounded(1e3 * statistics.median(row["calls"])), "spread": _spread(row["calls"])}


def _spread(calls: Sequence[float]) -> float:
    return round((max(calls) - min(calls)) / statistics.median(calls), 3)
