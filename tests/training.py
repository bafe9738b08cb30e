"""Small datasets to train on, and training runs in processes of their own that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import safetensors.torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from labelled import need_adios

from gfm_calc.config import HeadSpec
from gfm_calc.data.build import build
from gfm_calc.data.tasks import file_tasks

SETTINGS = (
    "model.num_features=8", "model.num_layers=2", "model.num_radial=4", "model.cutoff=4.0", "model.head_width=8",
    "optimizer.warmup=5", "optimizer.learning_rate=0.005", "optimizer.ema=0.9", "run.structures=6", "run.steps=24",
    "run.save_every=4", "run.validate_every=10", "run.max_validation=5", "run.max_atoms=40",
)  # fmt: skip


# What a process would import anyway: each starts in milliseconds, whatever else the machine does.
_PRELOADED = ["torch", "torch_geometric", "pyarrow.parquet", "gfm_calc.train.trainer", "gfm_calc.screening.engine",
              "gfm_calc.screening.outcome", "gfm_calc.screening.plan", "training", "faults"]  # fmt: skip


def make_datasets(folder: Path, counts: Sequence[int] = (40, 30, 25)) -> Path:
    """Three heads, labelled by ASE's EMT: crystals with stress, clusters with forces, molecules with energies alone."""
    need_adios()
    random = np.random.default_rng(5)
    for name, count, make in zip(("crystals", "clusters", "molecules"), counts, (_crystal, _cluster, _molecule)):
        frames = []
        for k in range(count):
            atoms, wanted = make(random, k)
            atoms.calc = EMT()
            results = {"energy": atoms.get_potential_energy()}
            results |= {"forces": atoms.get_forces()} if "forces" in wanted else {}
            results |= {"stress": atoms.get_stress()} if "stress" in wanted else {}
            atoms.calc = SinglePointCalculator(atoms, **results)
            atoms.info["group"] = f"{name}-{k // 2}"
            frames.append(atoms)
        path = folder.parent / f"{name}.extxyz"
        ase.io.write(path, frames)
        head = HeadSpec(name=name, code="ASE", functional="EMT")
        build(folder / name, file_tasks([path]), head, processes=0)
    return folder


def _crystal(random, k):
    atoms = bulk(("Cu", "Al", "Ni")[k % 3], cubic=True)
    atoms.set_cell(atoms.cell.array * random.uniform(0.95, 1.05), scale_atoms=True)
    atoms.rattle(0.1, rng=random)
    return atoms, ("forces", "stress")


def _cluster(random, k):
    atoms = bulk("Pt", cubic=True)
    atoms.pbc = False
    atoms.cell = None
    atoms.rattle(0.2, rng=random)
    return atoms[: 2 + k % 3], ("forces",)


def _molecule(random, k):
    atoms = molecule(("H2O", "CH4", "NH3", "CO")[k % 4])
    atoms.rattle(0.05, rng=random)
    return atoms, ()


def argv(data: Path, output: Path, *settings: str, flags: Sequence[str] = ()) -> list[str]:
    """The command line of a small run, from `tiny`."""
    words = ["train", "tiny", "-o", str(output), "--device", "cpu", "--threads", "1", "--no-report", *flags]
    for setting in (f"data.path={data}", *SETTINGS, *settings):
        words += ["--set", setting]
    return words


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Job:
    """A training run of `world` processes, forked from one that has imported everything.

    Args:
        words: of the command line, see `argv`.
        fault: name of a function of `faults`, and what it gets, for the process `fault_rank`.
        environment: variables for the processes.
    """

    def __init__(
        self, words: Sequence[str], world: int = 1, *, fault: tuple = (), fault_rank: int = 0, log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ):  # fmt: skip
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        port = free_port()
        self.log = log
        self.processes = []
        for rank in range(world):
            own = fault if rank == fault_rank else ()
            process = context.Process(target=_run, args=(list(words), rank, world, port, own, log, environment or {}))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = 120.0) -> list[int | None]:
        """The exit codes; None for processes that do not end, which are killed then."""
        for process in self.processes:
            process.join(timeout)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)
        if number == signal.SIGKILL:
            for process in self.processes:
                process.join()

    def kill_one(self, rank: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid, number)

    def said(self) -> str:
        """What the processes printed."""
        return self.log.read_text(errors="replace") if self.log and self.log.exists() else ""


def _run(
    words: list[str], rank: int, world: int, port: int, fault: tuple, log: Path | None, environment: Mapping[str, str]
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", **environment}
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    if log is not None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    import sys

    from gfm_calc.cli import main

    if fault:
        import faults

        getattr(faults, fault[0])(*fault[1:])
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as a launcher's process would; the rest of a test process is none of its business


# ---- what a run left ----


def losses(run: Path) -> list[tuple]:
    """(step, loss, losses of heads, gradient norm) of every step in the log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(x["step"], x["loss"], x["head_losses"], x["grad_norm"]) for x in lines if "loss" in x]


def outcome(run: Path) -> dict[str, Any]:
    """Everything that must be the same: log, validations, weights of the model, all tensors of the newest checkpoint.

    "random" are the states of the processes' random numbers; they tell how a process was started, too.
    """
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    tensors = {}
    for path in sorted(checkpoint.glob("part*.safetensors")):
        tensors |= {key: value.numpy().tobytes() for key, value in safetensors.torch.load_file(path).items()}
    random = {key: tensors.pop(key) for key in list(tensors) if key.startswith("random/")}
    weights = next((run / "model").glob("weights-*.safetensors")).read_bytes()
    table = [line.split(",")[:4] for line in (run / "log.csv").read_text().splitlines()]
    return {
        "checkpoint": checkpoint.name, "tensors": tensors, "random": random, "weights": weights, "table": table,
        "log": [{k: v for k, v in line.items() if k != "structures_per_s"} for line in lines],
    }  # fmt: skip


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the parts in which two outcomes differ."""
    return [name for name in first if first[name] != second[name]]
