"""Candidates by substitution: elements of a prototype are exchanged, charges balanced, the volume guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from gfm_calc.artifacts import canonical_json, sha256
from gfm_calc.errors import ConfigError
from gfm_calc.neighbors import edge_vectors, neighbor_list
from gfm_calc.screening.prototypes import IONIC_RADII, STATES
from gfm_calc.screening.streams import Made
from gfm_calc.screening.templates import Scaled, Template

_MOST = 200_000_000  # combinations of a prototype that are looked through
_BLOCK = 1 << 20
_NONE = 1 << 40  # a charge that nothing balances
_SHELL = 1.1  # bonds of an atom: distances over sums of radii up to this times its smallest
_REACH = 6.5  # Å, within which bonds are looked for


class Substitutions:
    """All ways to exchange the elements of one prototype; see `streams.Stream`.

    Element after element of the prototype is replaced by those of its list.  The last list turns fastest.

    Args:
        name: of the prototype.
        prototype: the structure.
        replace: {symbol in the prototype: elements to put there}; the others stay.
        balance: keep combinations whose charges can add up to zero with an oxidation state of each element (one state
            for all its atoms on the sites of one symbol).
        distinct: keep combinations without the same element on the sites of two symbols.
        volume: "ionic" or "covalent" scales the cell by the mean over the bonds of the ratio of the sums of such radii,
            "prototype" keeps it; None: "ionic" with `balance`, else "covalent".

    Raises:
        ConfigError: a symbol that the prototype lacks, too many combinations, or none left.
    """

    def __init__(
        self, name: str, prototype: Atoms, replace: Mapping[str, Sequence[str]], *, balance: bool = True,
        distinct: bool = True, volume: str | None = None,
    ):  # fmt: skip
        kinds = list(dict.fromkeys(prototype.get_chemical_symbols()))
        for symbol in replace:
            if symbol not in kinds:
                raise ConfigError(f"prototype {name} has no {symbol}; it has {', '.join(kinds)}")
        volume = volume or ("ionic" if balance else "covalent")
        if volume not in ("ionic", "covalent", "prototype"):
            raise ConfigError(f"volume must be ionic, covalent or prototype, not {volume!r}")
        self.name, self.prototype = name, prototype
        self._template = Template(prototype)
        self.kinds = kinds
        self.lists = [tuple(replace.get(symbol, (symbol,))) for symbol in kinds]
        self.balance, self.distinct, self.volume = balance, distinct, volume
        total = int(np.prod([len(found) for found in self.lists], dtype=object))
        if total > _MOST:
            raise ConfigError(
                f"prototype {name}: {total:,} combinations are more than {_MOST:,}: shorten a list, or give several"
            )
        if not len(self._kept):
            raise ConfigError(f"prototype {name}: no combination is left; try balance = false or distinct = false")

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_kept", "_bonds", "_radii")}

    def identity(self) -> dict[str, Any]:
        """The prototype and what is exchanged."""
        atoms = self.prototype
        geometry = [atoms.numbers.tolist(), atoms.positions.tolist(), atoms.cell.array.tolist(), atoms.pbc.tolist()]
        return {
            "kind": "substitutions", "name": self.name, "prototype": sha256(canonical_json(geometry)),
            "lists": {kind: list(found) for kind, found in zip(self.kinds, self.lists)},
            "balance": self.balance, "distinct": self.distinct, "volume": self.volume,
        }  # fmt: skip

    def made(self, start: int, stop: int) -> Iterator[Made]:
        """See `Stream`."""
        sizes = [len(found) for found in self.lists]
        positions, cell = self.prototype.positions, self.prototype.cell.array
        own = np.array([self.kinds.index(symbol) for symbol in self.prototype.get_chemical_symbols()])
        for number in self._kept[start:stop].tolist():
            chosen = [found[k] for found, k in zip(self.lists, np.unravel_index(number, sizes))]
            numbers = np.array([atomic_numbers[symbol] for symbol in chosen])[own]
            scale = self._scale(numbers) if self.volume != "prototype" else 1.0
            atoms = Scaled(numbers, positions=positions * scale, cell=cell * scale, pbc=self.prototype.pbc)
            atoms.template, atoms.scale = self._template, scale
            changes = " ".join(f"{kind}={symbol}" for kind, symbol in zip(self.kinds, chosen))
            yield f"{self.name} {changes}", atoms

    @cached_property
    def _kept(self) -> np.ndarray:
        """Numbers of the combinations that are candidates, in order."""
        sizes = [len(found) for found in self.lists]
        total = int(np.prod(sizes))
        kept = []
        for first in range(0, total, _BLOCK):
            numbers = np.arange(first, min(first + _BLOCK, total))
            chosen = np.stack(np.unravel_index(numbers, sizes))
            good = np.ones(len(numbers), bool)
            if self.distinct:
                good &= self._all_differ(chosen)
            if self.balance:
                good[good] = self._balanced(chosen[:, good])
            kept.append(numbers[good])
        return np.concatenate(kept)

    def _all_differ(self, chosen: np.ndarray) -> np.ndarray:
        elements = [np.array([atomic_numbers[s] for s in found], np.int16)[k] for found, k in zip(self.lists, chosen)]
        differ = np.ones(chosen.shape[1], bool)
        for first, second in combinations(elements, 2):
            differ &= first != second
        return differ

    def _balanced(self, chosen: np.ndarray) -> np.ndarray:
        """Elements with the same oxidation states are one class: few combinations of classes stand for all."""
        symbols = self.prototype.get_chemical_symbols()
        sums = np.zeros((1, 1), np.int64)  # [combinations of classes, combinations of their states]
        place = np.zeros(chosen.shape[1], np.int64)
        for number, (found, kind, row) in enumerate(zip(self.lists, self.kinds, chosen), 1):
            states = [STATES.get(symbol, ()) for symbol in found]
            classes = sorted(set(states))
            place = place * len(classes) + np.array([classes.index(several) for several in states])[row]
            charges = [[symbols.count(kind) * state for state in several] for several in classes]
            if number == len(self.kinds):
                neutral = [np.isin(sums, [-charge for charge in several]).any(axis=1) for several in charges]
                return np.stack(neutral, axis=1).ravel()[place]
            width = max(1, *(len(several) for several in charges))
            table = np.array([[*several, *[_NONE] * (width - len(several))] for several in charges])
            sums = (sums[:, None, :, None] + table[None, :, None, :]).reshape(len(sums) * len(classes), -1)
        return np.ones(chosen.shape[1], bool)

    @cached_property
    def _radii(self) -> np.ndarray:
        """[119] Å; covalent where an element has no ionic one."""
        radii = covalent_radii[:119].copy()
        if self.volume == "ionic":
            radii[[atomic_numbers[symbol] for symbol in IONIC_RADII]] = list(IONIC_RADII.values())
        return radii

    @cached_property
    def _bonds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ends of the prototype's bonds, those of each atom to its nearest shell, and the sums of their radii."""
        atoms = self.prototype
        edge_index, shift = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, _REACH)
        lengths = np.linalg.norm(edge_vectors(atoms.positions, atoms.cell.array, edge_index, shift), axis=1)
        radii = self._radii[atoms.numbers]
        sums = radii[edge_index[0]] + radii[edge_index[1]]
        smallest = np.full(len(atoms), np.inf)
        np.minimum.at(smallest, edge_index[1], lengths / sums)
        bonded = lengths / sums < _SHELL * smallest[edge_index[1]]
        return edge_index[0][bonded], edge_index[1][bonded], sums[bonded]

    def _scale(self, numbers: np.ndarray) -> float:
        first, second, sums = self._bonds
        radii = self._radii[numbers]
        return float(((radii[first] + radii[second]) / sums).mean()) if len(sums) else 1.0
