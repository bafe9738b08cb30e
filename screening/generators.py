"""Candidates that are made: perturbations of given structures, and random atoms in a box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from scipy.spatial import cKDTree

from gfm_calc.data.perturb import displaced
from gfm_calc.errors import ConfigError, GFMError, InvalidStructureError
from gfm_calc.screening.streams import Made, Stream

_ROUNDS = 1000  # of drawing atoms again that came too close to another


class Perturbations:
    """Copies of seeds with random displacements and strains, one seed after the other; see `streams.Stream`.

    Copy c of seed s depends on (seed, s, c) alone.

    Args:
        seeds: where the structures come from.
        copies: of each.
        rattle: Å, standard deviation of each coordinate.
        strain: largest component of a random symmetric strain.
        seed: of the random numbers.

    Raises:
        ConfigError: nothing to change, or an impossible amount.
    """

    def __init__(self, seeds: Stream, *, copies: int = 1, rattle: float = 0.0, strain: float = 0.0, seed: int = 0):
        if copies < 1 or seed < 0 or not 0 <= rattle < 100 or not 0 <= strain < 0.5 or not (rattle or strain):
            raise ConfigError("perturbations need copies >= 1, seed >= 0, and a rattle (Å) or a strain (below 0.5)")
        self.seeds, self.copies = seeds, copies
        self._how = {"rattle": float(rattle), "strain": float(strain)}
        self._seed = seed

    def __len__(self) -> int:
        return len(self.seeds) * self.copies

    def identity(self) -> dict[str, Any]:
        """The seeds and what is done to them."""
        own = {"kind": "perturbations", "copies": self.copies, "seed": self._seed, **self._how}
        return own | {"seeds": self.seeds.identity()}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        first, last = start // self.copies, -(-stop // self.copies)
        for number, (source, atoms) in enumerate(self.seeds.made(first, last), first):
            before = number * self.copies
            for copy in range(max(start - before, 0), min(stop - before, self.copies)):
                yield f"{source} copy {copy}", self._copy(atoms, number, copy)

    def _copy(self, atoms: Atoms | GFMError, number: int, copy: int) -> Atoms | GFMError:
        if isinstance(atoms, GFMError):
            return atoms
        try:
            return displaced(atoms, np.random.default_rng([self._seed, number, copy]), **self._how)
        except InvalidStructureError as error:
            return error


@dataclass(frozen=True, kw_only=True)
class RandomAtoms:
    """Random atoms in a cubic box: the workload of throughput papers; see `streams.Stream`.

    Attributes:
        count: structures.
        min_atoms, max_atoms: the number of atoms is drawn evenly between them.
        box: Å, edge of the cube.
        elements: symbols that are drawn from.
        periodic: the box repeats.
        distance: Å, no two atoms are closer.
        seed: candidate i depends on (seed, i) alone.

    Raises:
        ConfigError: impossible numbers, or a symbol that is no element.
    """

    count: int
    min_atoms: int = 2
    max_atoms: int = 500
    box: float = 10.0
    elements: tuple[str, ...] = ("H", "C", "N", "O")
    periodic: bool = False
    distance: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", tuple(self.elements))
        if self.count < 1 or not 1 <= self.min_atoms <= self.max_atoms or self.seed < 0:
            raise ConfigError("random structures need count >= 1, 1 <= min_atoms <= max_atoms and seed >= 0")
        unknown = [symbol for symbol in self.elements if atomic_numbers.get(symbol, 0) < 1]
        if unknown or not self.elements:
            raise ConfigError(f"random structures: {unknown[0] if unknown else 'an empty list'} is no element")
        filled = self.max_atoms * self.distance**3 / self.box**3 if self.box > 0 else np.inf
        if not self.distance >= 0 or not filled < 0.3:
            raise ConfigError(
                f"random structures: {self.max_atoms} atoms {self.distance:g} Å apart do not fit into a box of {self.box:g} Å"
            )

    def __len__(self) -> int:
        return self.count

    def identity(self) -> dict[str, Any]:
        """All that was asked for but the count, which may grow."""
        names = ("min_atoms", "max_atoms", "box", "periodic", "distance", "seed")
        return {"kind": "random", "elements": list(self.elements)} | {name: getattr(self, name) for name in names}

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        numbers = np.array([atomic_numbers[symbol] for symbol in self.elements])
        for index in range(start, stop):
            random = np.random.default_rng([self.seed, index])
            size = int(random.integers(self.min_atoms, self.max_atoms + 1))
            chosen = numbers[random.integers(0, len(numbers), size)]
            positions = self._positions(random, size)
            cell = np.full(3, self.box) if self.periodic else None
            yield f"random {index}", Atoms(chosen, positions=positions, cell=cell, pbc=self.periodic)

    def _positions(self, random: np.random.Generator, size: int) -> np.ndarray:
        positions = random.uniform(0.0, self.box, (size, 3))
        for _ in range(_ROUNDS if self.distance else 0):
            pairs = cKDTree(positions, boxsize=self.box if self.periodic else None).query_pairs(
                self.distance, output_type="ndarray"
            )
            again = np.unique(pairs.max(axis=1)) if len(pairs) else pairs[:0, 0]
            if not len(again):
                break
            positions[again] = random.uniform(0.0, self.box, (len(again), 3))
        return positions
