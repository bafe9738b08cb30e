"""New geometries from old ones: random displacements and strains, or snapshots of molecular dynamics.

What is made depends on the seed and on the place of the structure in its file, not on processes or order.  New structures
keep the group of the one they come from, so that no split sets them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii

from ..errors import ConfigError, GFMError, InvalidStructureError, one_line
from ..neighbors import edge_vectors, neighbor_list
from .calculators import make_calculator
from .label import clean_structure, extxyz_text, structures_of
from .workers import WorkerDiedError, run_in_processes

_TRIES = 20
_MAX_TEMPERATURE = 1.0e5  # K; beyond, atoms have been fired off


@dataclass(frozen=True, kw_only=True)
class PerturbJob:
    """How to make new geometries; rattle and strain go together, or dynamics takes their place.

    Attributes:
        inputs: files of structures, or datasets.
        skip: so many structures of the inputs, which an earlier run has done.
        copies: of each structure (with dynamics: snapshots).
        seed: of everything random.
        rattle: Å, standard deviation of each coordinate.
        strain: largest component of a random symmetric strain along periodic axes.
        closest: a copy is drawn again where two atoms are closer than this part of the sum of their covalent radii (or
            than they were).
        calculator: of the dynamics (a name of `calculators.NAMES`), or None.  options: its arguments, a JSON object.
        temperature: K.  time_step: fs.  every: steps between snapshots.  friction: 1/fs (Langevin).
        processes: at a time; 0 does the work in this process.
        timeout: seconds for the copies of one structure (not with processes = 0), or None.
    """

    inputs: tuple[Path, ...]
    skip: int = 0
    copies: int = 1
    seed: int = 0
    rattle: float = 0.0
    strain: float = 0.0
    closest: float = 0.6
    calculator: str | None = None
    options: str = "{}"
    temperature: float = 300.0
    time_step: float = 0.5
    every: int = 100
    friction: float = 0.01
    processes: int = 1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.copies < 1 or min(self.seed, self.skip) < 0 or not 0 <= self.rattle < 100 or not 0 <= self.strain < 0.5:
            raise ConfigError("perturb needs copies >= 1, seed >= 0, rattle >= 0 Å and strain between 0 and 0.5")
        positive = (self.temperature, self.time_step, self.every, self.friction)
        if not 0 <= self.closest <= 1 or not all(value > 0 for value in positive):
            raise ConfigError("perturb needs closest within 0 and 1, and positive temperature, time step and intervals")
        if self.calculator is not None and (self.rattle or self.strain):
            raise ConfigError("give dynamics, or rattle and strain: one kind of change a run")
        if self.calculator is None and not (self.rattle or self.strain):
            raise ConfigError("nothing to change: give a rattle, a strain, or dynamics with a calculator")


def perturb(job: PerturbJob) -> Generator[str | GFMError, None, None]:
    """The new structures of each input structure, as text of extended XYZ; or why there are none.  In order.

    Raises:
        ConfigError: a calculator that does not exist.
        InputFileError: an input that cannot be read.
    """
    early: dict[int, str | GFMError] = {}
    following = job.skip
    with closing(perturb_as_they_come(job)) as outcomes:
        for number, outcome in outcomes:
            early[number] = outcome
            while following in early:
                yield early.pop(following)
                following += 1


def perturb_as_they_come(
    job: PerturbJob, done: Collection[int] = ()
) -> Generator[tuple[int, str | GFMError], None, None]:
    """(number of the input structure, its new structures or why there are none), of all but those `done`, the first to be
    finished first.

    Raises:
        ConfigError: a calculator that does not exist.
        InputFileError: an input that cannot be read.
    """
    if job.calculator is not None:
        make_calculator(job.calculator, job.options)
    under_way: dict[int, tuple[int, str]] = {}

    def calls() -> Iterator[tuple]:
        wanted = (item for item in enumerate(structures_of(job.inputs)) if item[0] >= job.skip and item[0] not in done)
        for call, (number, (source, frame, atoms)) in enumerate(wanted):
            under_way[call] = number, f"{source}: frame {frame}"
            yield job, number, atoms, source, frame

    for call, outcome in run_in_processes(_perturb_one, calls(), job.processes, timeout=job.timeout):
        number, name = under_way.pop(call)
        if isinstance(outcome, WorkerDiedError):
            outcome = WorkerDiedError(f"{name}: {outcome}")
        yield number, _as_error(outcome)


def displaced(
    atoms: Atoms, random: np.random.Generator, *, rattle: float, strain: float, closest: float = 0.6
) -> Atoms:
    """A copy with normal displacements (Å) and a uniform random symmetric strain of the periodic axes.

    Raises:
        InvalidStructureError: no draw of 20 kept the atoms apart (see `PerturbJob.closest`).
    """
    floor = min(closest, _closeness(atoms))
    for _ in range(_TRIES):
        copy = atoms.copy()
        if strain and atoms.pbc.any():
            matrix = random.uniform(-strain, strain, (3, 3))
            matrix = 0.5 * (matrix + matrix.T) * np.outer(atoms.pbc, atoms.pbc)
            copy.set_cell(atoms.cell.array @ (np.eye(3) + matrix), scale_atoms=True)
        if rattle:
            copy.positions += random.normal(scale=rattle, size=(len(atoms), 3))
        if _closeness(copy) >= floor:
            return copy
    raise InvalidStructureError(
        f"{_TRIES} draws brought atoms too close to each other: take a smaller rattle or strain"
    )


def snapshots(
    atoms: Atoms, random: np.random.Generator, calculator: Any, *, copies: int, every: int, temperature: float,
    time_step: float, friction: float,
) -> Iterator[Atoms]:  # fmt: skip
    """Structures along Langevin dynamics (temperature K, time_step fs, friction 1/fs), one every so many steps.

    Raises:
        InvalidStructureError: the dynamics blew up.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    warm(atoms, random, temperature)
    dynamics = langevin(atoms, random, temperature=temperature, time_step=time_step, friction=friction)
    for _ in range(copies):
        dynamics.run(every)
        if not np.isfinite(atoms.positions).all() or atoms.get_temperature() > _MAX_TEMPERATURE:
            raise InvalidStructureError("the dynamics blew up: take a shorter time step or a better start")
        yield Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=atoms.info)


def warm(atoms: Atoms, random: np.random.Generator, temperature: float) -> None:
    """Give atoms velocities of Maxwell and Boltzmann's distribution at a temperature (K)."""
    spread = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(random.normal(size=(len(atoms), 3)) * spread)


def langevin(
    atoms: Atoms, random: np.random.Generator, *, temperature: float, time_step: float, friction: float
) -> Any:
    """ASE's Langevin dynamics of atoms with a calculator (temperature K, time_step fs, friction 1/fs)."""
    from ase.md.langevin import Langevin

    per_time = friction / units.fs
    return Langevin(atoms, time_step * units.fs, temperature_K=temperature, friction=per_time, rng=random, fixcm=False)


def _perturb_one(job: PerturbJob, number: int, atoms: Atoms | GFMError, source: str, frame: int) -> str:
    if isinstance(atoms, GFMError):
        raise atoms
    atoms = clean_structure(atoms, source, frame)
    try:
        made = list(_copies(job, number, atoms))
    except InvalidStructureError as error:
        raise error.at(source=source, frame=frame) from error
    except GFMError:
        raise
    except Exception as error:  # calculators raise whatever comes
        raise GFMError(f"{source}, frame {frame}: {type(error).__name__}: {one_line(error)}") from error
    text = []
    for copy, new in enumerate(made):
        new.info |= {"source": source, "frame": frame, "perturbation": f"{_kind(job)} seed {job.seed} copy {copy}"}
        text.append(extxyz_text(new))
    return "".join(text)


def _copies(job: PerturbJob, number: int, atoms: Atoms) -> Iterator[Atoms]:
    if job.calculator is not None:
        random = np.random.default_rng([job.seed, number])
        calculator = make_calculator(job.calculator, job.options)(atoms)
        yield from snapshots(
            atoms, random, calculator, copies=job.copies, every=job.every, temperature=job.temperature,
            time_step=job.time_step, friction=job.friction,
        )  # fmt: skip
        return
    for copy in range(job.copies):
        random = np.random.default_rng([job.seed, number, copy])
        yield displaced(atoms, random, rattle=job.rattle, strain=job.strain, closest=job.closest)


def _kind(job: PerturbJob) -> str:
    if job.calculator is not None:
        return f"dynamics {job.calculator} {job.temperature:g} K"
    return f"rattle {job.rattle:g} strain {job.strain:g}"


def _closeness(atoms: Atoms) -> float:
    """The smallest distance over the sum of covalent radii, among pairs within 3 Å; 1 where there are none."""
    edge_index, shift = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 3.0)
    if not edge_index.shape[1]:
        return 1.0
    lengths = np.linalg.norm(edge_vectors(atoms.positions, atoms.cell.array, edge_index, shift), axis=1)
    radii = covalent_radii[atoms.numbers]
    return float((lengths / (radii[edge_index[0]] + radii[edge_index[1]])).min())


def _as_error(outcome: Any) -> str | GFMError:
    if isinstance(outcome, str | GFMError):
        return outcome
    raise outcome
