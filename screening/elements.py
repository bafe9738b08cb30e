"""Formation energies: the energies of the elements according to the same head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import atomic_numbers
from ase.spacegroup import crystal

from gfm_calc.errors import ConfigError, GFMError
from gfm_calc.predictor import Predictor

_SCALES = np.linspace(0.88, 1.12, 13)  # of the cell vectors
# What ASE does not build, or builds wrongly: space group, cell (Å, degrees), sites (Donohue, The Structures of the Elements,
# 1974).
_HEXAGONAL, _RIGHT = (90, 90, 120), (90, 90, 90)
_CRYSTALS: dict[str, tuple[int, tuple[float, ...], list[tuple[float, float, float]]]] = {
    "B": (166, (4.908, 4.908, 12.559, *_HEXAGONAL), [(0.1187, -0.1187, 0.8915), (0.1968, -0.1968, 0.0243)]),
    "P": (64, (3.3136, 10.478, 4.3763, *_RIGHT), [(0, 0.1017, 0.0806)]),
    "Cl": (64, (6.24, 4.48, 8.26, *_RIGHT), [(0, 0.1173, 0.1016)]),
    "Ga": (64, (4.5186, 7.6570, 4.5258, *_RIGHT), [(0, 0.1539, 0.0810)]),
    "Se": (152, (4.3662, 4.3662, 4.9536, *_HEXAGONAL), [(0.2254, 0, 1 / 3)]),
    "Br": (64, (6.67, 4.48, 8.72, *_RIGHT), [(0, 0.135, 0.11)]),
    "Te": (152, (4.4572, 4.4572, 5.929, *_HEXAGONAL), [(0.2633, 0, 1 / 3)]),
    "I": (64, (7.18, 4.71, 9.81, *_RIGHT), [(0, 0.1543, 0.1174)]),
    "U": (63, (2.854, 5.869, 4.955, *_RIGHT), [(0, 0.1025, 0.25)]),
    "Np": (62, (6.663, 4.723, 4.887, *_RIGHT), [(0.036, 0.25, 0.208), (0.319, 0.25, 0.842)]),
}  # fmt: skip
_PROXIES = {"Mn": ("fcc", 3.6)}  # close in energy to the 58 atoms of the stable one
_GASES = {"H": "H2", "N": "N2", "O": "O2", "F": "F2", "Cl": "Cl2"}


def element_energies(predictor: Predictor, given: Iterable[Atoms] = ()) -> dict[str, dict[str, float]]:
    """{head: {symbol: eV/atom}}: the lowest energy of each element that a head has seen, over its structures.

    Those are the stable crystal (or one close to it) at 13 volumes, the molecules H2, N2, O2, F2, Cl2 and S8, and `given`.
    They are not relaxed by the head: where that matters give relaxed structures.

    Args:
        predictor: of the heads wanted.
        given: more structures, each of one element.

    Raises:
        ConfigError: a given structure of several elements.
    """
    mine = list(given)
    for number, atoms in enumerate(mine):
        if len(set(atoms.numbers.tolist())) != 1:
            raise ConfigError(f"elements: structure {number} is {atoms.get_chemical_formula()}: give single elements")
    found: dict[str, dict[str, float]] = {}
    for spec in predictor.specs:
        one = Predictor(predictor.model, [spec.name], forces=False)
        one.mixed = predictor.mixed
        structures = [atoms for symbol in spec.elements for atoms in _structures(symbol)] + mine
        lowest: dict[str, float] = {}
        for atoms, outcome in zip(structures, one.predict(structures, on_error="yield")):
            if isinstance(outcome, GFMError):
                continue
            symbol = atoms.get_chemical_symbols()[0]
            energy = outcome[spec.name].energy.item() / len(atoms)
            lowest[symbol] = min(energy, lowest.get(symbol, np.inf))
        found[spec.name] = dict(sorted(lowest.items(), key=lambda item: atomic_numbers[item[0]]))
    return found


def table_of(energies: Mapping[str, float]) -> np.ndarray:
    """[119] eV/atom by atomic number, NaN where an element has none."""
    table = np.full(119, np.nan)
    for symbol, energy in energies.items():
        table[atomic_numbers[symbol]] = energy
    return table


def _structures(symbol: str) -> Iterator[Atoms]:
    solid = element_crystal(symbol)
    if solid is not None:
        for scale in _SCALES:
            atoms = solid.copy()
            atoms.set_cell(solid.cell.array * scale, scale_atoms=True)
            yield atoms
    if symbol in _GASES:
        yield molecule(_GASES[symbol])
    if symbol == "S":
        yield _crown(symbol)


def element_crystal(symbol: str) -> Atoms | None:
    """The stable crystal of an element, or one close to it, at about its volume; None where none is known."""
    if symbol in _CRYSTALS:
        group, cell, basis = _CRYSTALS[symbol]
        return crystal([symbol] * len(basis), basis, spacegroup=group, cellpar=cell, primitive_cell=True)
    try:
        return bulk(symbol, *_PROXIES.get(symbol, ()))
    except (ValueError, KeyError, NotImplementedError, RuntimeError):
        return None


def _crown(symbol: str) -> Atoms:
    """The ring of eight of sulphur: bonds of 2.05 Å, angles of 108 degrees."""
    angles = np.arange(8) * np.pi / 4
    heights = np.where(np.arange(8) % 2, 0.495, -0.495)
    return Atoms(f"{symbol}8", positions=np.stack([2.345 * np.cos(angles), 2.345 * np.sin(angles), heights], axis=1))
