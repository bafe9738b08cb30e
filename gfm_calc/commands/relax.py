"""`gfm relax`: move atoms, and the cell where asked, to the nearest minimum."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ConvergenceError
from .options import add_input, add_machine, add_model, natural, new_parser, number, positive, read_input
from .outputs import FrameWriter, add_output, refuse_existing, structure_format, write_structure, written_aside
from .progress import Progress

if TYPE_CHECKING:
    from ase import Atoms

OPTIMIZERS = ("FIRE", "LBFGS", "BFGS")


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """How `relax` wants to be done.

    Attributes: `fmax` eV/Å; `steps` at most; `optimizer`, one of OPTIMIZERS; `cell`, whether the cell moves too;
    `pressure` in GPa (with `cell`); `symmetry`, whether the space group is kept.
    """

    fmax: float = 0.02
    steps: int = 500
    optimizer: str = "FIRE"
    cell: bool = False
    pressure: float = 0.0
    symmetry: bool = False


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """What came of it: `converged`; `steps` taken; `energy` eV; `fmax`, the largest force (and cell force) left, eV/Å."""

    converged: bool
    steps: int
    energy: float
    fmax: float


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "relax", run, summary="relax a structure, with --cell its cell too",
        example="gfm relax NaCl.cif -o relaxed.cif --cell --head distilled-7net-l3i5",
    )  # fmt: skip
    add_input(parser)
    add_output(parser, "OUT", "the relaxed structure, in any format that ASE writes (.extxyz, .cif, .vasp, ...)")
    parser.add_argument("--cell", action="store_true", help="relax the cell too (its periodic directions)")
    parser.add_argument("--pressure", type=number, default=0.0, metavar="GPA", help="with --cell (default: 0 GPa)")
    parser.add_argument(
        "--fmax", type=positive, default=0.02, help="largest force allowed, eV/Å (default: %(default)s)"
    )
    parser.add_argument("--steps", type=natural, default=500, help="at most so many (default: %(default)s)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="FIRE", help="default: %(default)s")
    parser.add_argument("--trajectory", type=Path, metavar="T", help="also write every step, .traj or .extxyz")
    add_model(parser)
    add_machine(parser)


def run(args: argparse.Namespace) -> None:
    """Relax and write.

    Raises:
        ConvergenceError: not done within --steps; OUT then holds the structure so far, marked `converged=F`.
    """
    from ..structures import located

    if args.pressure and not args.cell:
        raise ConfigError("--pressure acts on the cell: add --cell")
    fmt = structure_format(args.output)
    refuse_existing(args.output, args.overwrite)
    _refuse_same_file(args)
    writer = nullcontext() if args.trajectory is None else FrameWriter(args.trajectory, args.overwrite)
    atoms, frame = read_input(args)
    how = Relaxation(fmax=args.fmax, steps=args.steps, optimizer=args.optimizer, cell=args.cell, pressure=args.pressure)
    with written_aside(
        args.output, args.overwrite
    ) as aside:  # before the work: a folder that refuses us is known at once
        with located(args.input, frame), writer as trajectory, Progress("relax", "steps") as progress:
            result = relax(atoms, how, _observer(atoms, trajectory, progress))
        about = {"converged": result.converged, "head": atoms.calc.head, "model_id": atoms.calc.model_id}
        write_structure(aside, fmt, atoms, {**_results(atoms), **about})
    left = f"largest force {result.fmax:.3g} eV/Å after {result.steps} steps"
    if not result.converged:
        raise ConvergenceError(
            f"{args.input}, frame {frame}: not relaxed, {left}; {args.output} holds the structure so far: "
            "go on from it, or raise --steps"
        )
    volume = f", volume {atoms.get_volume():.4f} Å³" if atoms.cell.rank == 3 else ""
    print(f"{args.output}: relaxed, energy {result.energy:.6f} eV{volume}, {left}")


def _refuse_same_file(args: argparse.Namespace) -> None:
    if args.trajectory is not None and args.trajectory.resolve() in (args.output.resolve(), Path(args.input).resolve()):
        raise ConfigError(f"--trajectory {args.trajectory} is the input or the output: give it a name of its own")


def relax(atoms: Atoms, how: Relaxation, observe: Callable[[int], None] | None = None) -> Relaxed:
    """Relax `atoms` (with a calculator) in place.

    Args:
        observe: called with the number of the step after each, and with 0 at the start.

    Raises:
        ConfigError: a cell was to be relaxed where there is none.
        InvalidStructureError: the atoms met, or left the model's domain.
    """
    import numpy as np
    from ase import optimize, units
    from ase.constraints import FixSymmetry
    from ase.filters import FrechetCellFilter

    target: Any = atoms
    constraints = list(atoms.constraints)
    if how.symmetry:
        atoms.set_constraint([*constraints, FixSymmetry(atoms, symprec=1e-4)])
    if how.cell:
        refuse_without_cell(atoms)
        # Strain only the plane or line that is periodic: there is no stress across a vacuum.
        free = [float(atoms.pbc[i] and atoms.pbc[j]) for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
        mask = None if atoms.pbc.all() else free
        target = FrechetCellFilter(atoms, mask=mask, scalar_pressure=how.pressure * units.GPa)
    optimizer = getattr(optimize, how.optimizer)(target, logfile=None)
    if observe is not None:
        optimizer.attach(lambda: observe(optimizer.nsteps))
    try:
        converged = bool(optimizer.run(fmax=how.fmax, steps=how.steps))
        left = float(np.linalg.norm(np.reshape(target.get_forces(), (-1, 3)), axis=1).max())
    finally:
        atoms.set_constraint(constraints)
    return Relaxed(converged=converged, steps=optimizer.nsteps, energy=float(atoms.get_potential_energy()), fmax=left)


def refuse_without_cell(atoms: Atoms) -> None:
    """ConfigError unless `atoms` has a cell that the calculator can give a stress for."""
    if not atoms.pbc.any():
        raise ConfigError("this structure is not periodic: it has no cell to relax; leave --cell out")
    if "stress" not in atoms.calc.results:
        atoms.get_potential_energy()
    if "stress" not in atoms.calc.results:
        raise ConfigError(
            "the cell cannot be relaxed: its non-periodic vectors must stand at right angles to the others"
        )


def _observer(atoms: Atoms, trajectory: FrameWriter | None, progress: Progress) -> Callable[[int], None]:
    import numpy as np

    def observe(step: int) -> None:
        force = np.linalg.norm(atoms.get_forces(), axis=1).max()
        progress.advance(
            1 if step else 0, f"energy {atoms.get_potential_energy():.5f} eV, largest force {force:.3g} eV/Å"
        )
        if trajectory is not None:
            trajectory.write(atoms, step=step)

    return observe


def _results(atoms: Atoms) -> dict[str, Any]:
    atoms.get_forces()
    return {key: value for key, value in atoms.calc.results.items() if key in ("energy", "forces", "stress")}
