"""`gfm md`: molecular dynamics at constant energy, temperature, or temperature and pressure."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ConvergenceError
from .options import add_input, add_machine, add_model, natural, new_parser, number, positive, positive_int, read_input
from .outputs import FrameWriter, add_output, refuse_existing
from .progress import Progress

if TYPE_CHECKING:
    from ase import Atoms

ENSEMBLES = ("nve", "nvt", "npt")
HEADER = ("step", "time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K", "volume_A3")
_MAX_TEMPERATURE = 1e5  # K; beyond, atoms have been fired off by a bad start or too long a step


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How an MD run is to be done.

    Attributes: `ensemble`, one of ENSEMBLES (nvt: Langevin; npt: Martyna-Tobias-Klein, the cell keeps its shape);
    `temperature` K; `time_step` fs; `friction` 1/fs (nvt); `pressure` GPa (npt); `seed` of velocities and noise;
    `keep_velocities`, start from those of the structure.
    """

    ensemble: str = "nve"
    temperature: float
    time_step: float = 1.0
    friction: float = 0.01
    pressure: float = 0.0
    seed: int = 0
    keep_velocities: bool = False


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "md", run, summary="molecular dynamics, nve, nvt or npt",
        example="gfm md aspirin.xyz -o aspirin.traj --temperature 400 --ensemble nvt --steps 2000 --head gfn2-xtb",
    )  # fmt: skip
    add_input(parser)
    add_output(parser, "TRAJ", "trajectory, .traj or .extxyz; TRAJ.csv beside it logs time, energies and temperature")
    parser.add_argument(
        "--temperature", type=positive, required=True, metavar="K", help="of the start, and of the bath"
    )
    parser.add_argument("--ensemble", choices=ENSEMBLES, default="nve", help="default: %(default)s")
    parser.add_argument("--time-step", type=positive, default=1.0, metavar="FS", help="default: %(default)s fs")
    parser.add_argument("--steps", type=natural, default=1000, help="default: %(default)s")
    parser.add_argument(
        "--every", type=positive_int, default=10, help="write every so many steps (default: %(default)s)"
    )
    parser.add_argument(
        "--friction", type=positive, default=0.01, help="of nvt (Langevin), 1/fs (default: %(default)s)"
    )
    parser.add_argument("--pressure", type=number, default=0.0, metavar="GPA", help="of npt (default: 0 GPa)")
    parser.add_argument("--seed", type=natural, default=0, help="of velocities and noise (default: %(default)s)")
    parser.add_argument("--keep-velocities", action="store_true", help="start with the velocities in IN")
    add_model(parser)
    add_machine(parser)


def run(args: argparse.Namespace) -> None:
    """Run, and write the trajectory and its log as it goes.

    Raises:
        ConvergenceError: the run blew up; the files hold it up to there.
    """
    from ..structures import located

    log_path = args.output.with_name(args.output.name + ".csv")
    refuse_existing(log_path, args.overwrite)
    writer = FrameWriter(args.output, args.overwrite)
    atoms, frame = read_input(args)
    how = Dynamics(
        ensemble=args.ensemble, temperature=args.temperature, time_step=args.time_step, friction=args.friction,
        pressure=args.pressure, seed=args.seed, keep_velocities=args.keep_velocities,
    )  # fmt: skip
    with located(args.input, frame), ExitStack() as stack:
        dynamics = prepare(atoms, how)
        log = _Log(atoms, log_path, stack)
        trajectory = stack.enter_context(writer)
        progress = stack.enter_context(Progress("md", "steps", args.steps))

        def write() -> None:
            row = log.write(dynamics.nsteps, dynamics.nsteps * args.time_step)
            trajectory.write(atoms, time_fs=row["time_fs"])

        def count() -> None:
            progress.advance(1 if dynamics.nsteps else 0, f"{atoms.get_temperature():.0f} K")

        dynamics.attach(write, interval=args.every)
        dynamics.attach(count)
        dynamics.run(args.steps)
    print(f"{args.output}: {trajectory.frames} frames; {log_path.name}: {log.summary(len(atoms))}")


def prepare(atoms: Atoms, how: Dynamics) -> Any:
    """ASE's dynamics object for `atoms` (with a calculator), velocities set; its energy is calculated once.

    Raises:
        ConfigError: npt without a three-dimensional cell, or with constraints.
        InvalidStructureError: the model refuses the structure.
    """
    import numpy as np
    from ase import units
    from ase.md.nose_hoover_chain import IsotropicMTKNPT
    from ase.md.velocitydistribution import Stationary, ZeroRotation
    from ase.md.verlet import VelocityVerlet

    from ..data.perturb import langevin, warm

    if how.ensemble == "npt" and (not atoms.pbc.all() or atoms.constraints):
        raise ConfigError("npt needs a structure that is periodic along three axes and has no constraints; use nvt")
    atoms.get_potential_energy()  # a bad structure is refused before anything is opened
    random = np.random.default_rng(how.seed)
    if not how.keep_velocities:
        warm(atoms, random, how.temperature)
        if not atoms.constraints:
            Stationary(atoms)
            if not atoms.pbc.any():
                ZeroRotation(atoms)
    step = how.time_step * units.fs
    if how.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if how.ensemble == "nvt":
        return langevin(atoms, random, temperature=how.temperature, time_step=how.time_step, friction=how.friction)
    return IsotropicMTKNPT(
        atoms,
        step,
        temperature_K=how.temperature,
        pressure_au=how.pressure * units.GPa,
        tdamp=100 * step,
        pdamp=1000 * step,
    )


class _Log:
    """The CSV log of a run, opened at its first row."""

    def __init__(self, atoms: Atoms, path: Path, stack: ExitStack):
        self.atoms, self.path, self._stack = atoms, path, stack
        self.rows: list[dict[str, float]] = []
        self._handle: Any = None

    def write(self, step: int, time: float) -> dict[str, float]:
        """Append a row for the atoms as they are."""
        potential, kinetic = self.atoms.get_potential_energy(), self.atoms.get_kinetic_energy()
        temperature = self.atoms.get_temperature()
        values = [time, potential, kinetic, potential + kinetic, temperature]
        values += [self.atoms.get_volume()] if self.atoms.cell.rank == 3 else []
        row = dict(zip(HEADER, (step, *(float(value) for value in values))))
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self._stack.enter_context(open(self.path, "w", encoding="utf-8"))
            self._handle.write(",".join(row) + "\n")
        self._handle.write(",".join(map(repr, row.values())) + "\n")
        self._handle.flush()
        self.rows.append(row)
        if not temperature < _MAX_TEMPERATURE:
            raise ConvergenceError(
                f"the run blew up: {temperature:.3g} K at step {step}; relax the structure first, or use a smaller --time-step"
            )
        return row

    def summary(self, atoms: int) -> str:
        """Mean temperature of the second half, and how far the total energy went."""
        half = self.rows[len(self.rows) // 2 :]
        mean = sum(row["temperature_K"] for row in half) / len(half)
        moved = 1e3 * (self.rows[-1]["total_eV"] - self.rows[0]["total_eV"]) / atoms
        return f"mean temperature {mean:.0f} K (second half), total energy {moved:+.3g} meV/atom over the run"
