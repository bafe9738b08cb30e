"""A published model of another environment as an ASE calculator, so that every model goes through the same relaxation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from gfm_calc.benchmarks.contenders import Process
from gfm_calc.errors import ConfigError, GFMError, did_you_mean

# Level of theory -> environment -> what it is asked for.
MODELS: dict[str, dict[str, tuple[str, ...]]] = {
    "PBE(+U)": {"chgnet": ("chgnet",), "sevennet": ("sevennet", "teacher")},
    "r2SCAN": {"chgnet": ("chgnet-r2scan",), "sevennet": ("teacher-r2scan",)},
}
_SCRIPT = Path(__file__).resolve().parent / "peers" / "calculate.py"


class RemoteCalculator(Calculator):
    """Energy, forces and stress from a process that runs `peers/calculate.py`.

    Raises (when it calculates):
        GFMError: the model could not do a structure, or its process ended.
    """

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, process: Process):
        super().__init__()
        self.process = process

    @property
    def title(self) -> str:
        """Of the model, for tables."""
        return str(self.process.description["name"])

    @property
    def release(self) -> str:
        """Version of its package."""
        return str(self.process.description["version"])

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
    ) -> None:  # fmt: skip
        """ASE's entry point."""
        super().calculate(atoms, properties, system_changes)
        job = {
            "numbers": self.atoms.numbers.tolist(), "positions": self.atoms.positions.tolist(),
            "cell": self.atoms.cell.array.tolist(), "pbc": self.atoms.pbc.tolist(),
        }  # fmt: skip
        answer = self.process.ask(job)
        if "error" in answer:
            raise GFMError(f"{self.title}: {answer['error']}")
        self.results = {
            "energy": answer["energy"], "forces": np.array(answer["forces"]), "stress": np.array(answer["stress"])
        }  # fmt: skip


def releases(calculators: Mapping[str, RemoteCalculator]) -> dict[str, str]:
    """{title: version}, for a result's provenance."""
    return {calculator.title: calculator.release for calculator in calculators.values()}


@contextmanager
def remote_calculators(
    peers: Mapping[str, str], *, threads: int, level: str = "PBE(+U)"
) -> Iterator[dict[str, RemoteCalculator]]:
    """{model: calculator} of all MODELS of a level in the environments given; their processes end with the block.

    Args:
        peers: {"chgnet" | "sevennet": python of its environment}.
        level: of theory, one of `MODELS`.

    Raises:
        ConfigError: a peer that is none.
        GFMError: one that does not start.
    """
    models = MODELS[level]
    for name in peers:
        if name not in models:
            raise ConfigError(f"no peer {name!r}{did_you_mean(name, models)}; peers: {', '.join(models)}")
    with ExitStack() as stack:
        found = {}
        for environment, python in peers.items():
            for model in models[environment]:
                command = [python, str(_SCRIPT), "--model", model, "--threads", str(threads)]
                process = Process(model, command, threads)
                stack.callback(process.close)
                found[model] = RemoteCalculator(process)
        yield found
