"""What must stay on one side of a split: the key of a record by group, composition, molecule, prototype, file or frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from ase.data import chemical_symbols as SYMBOLS
from ase.data import covalent_radii

from ..errors import ConfigError, InputFileError, MissingDependencyError, did_you_mean
from ..neighbors import edge_vectors, neighbor_list
from .schema import Record

PAIR = "+"  # "a+b" is a frame of two groups
_BOND = 1.25  # times the sum of the covalent radii
_ROUNDS = 6
_SYMPREC = 0.05  # Å


def keyer(by: str) -> Callable[[Record], str]:
    """The function that gives a record's key.

    Args:
        by: "group" (as the file says), "composition", "molecule" (bonded graph), "prototype" (anonymous formula, space
            group and occupied sites of a crystal), "file" or "frame".

    Raises:
        ConfigError: unknown.
    """
    if by not in KEYS:
        raise ConfigError(f"--by {by!r}{did_you_mean(by, KEYS)}: one of {', '.join(KEYS)}")
    return KEYS[by]


def by_group(record: Record) -> str:
    """What the file calls its group.

    Raises:
        InputFileError: the file names none.
    """
    if not record.group:
        raise InputFileError(
            f"{record.source}, frame {record.frame}: no group: name the key that holds it with --group-key, or choose --by "
            "composition, molecule, prototype, file or frame"
        )
    return record.group


def by_composition(record: Record) -> str:
    """The formula, reduced for crystals, elements in alphabetical order: 'C2H6O'."""
    numbers, counts = np.unique(record.atomic_numbers, return_counts=True)
    if record.pbc.all():
        counts = counts // np.gcd.reduce(counts)
    parts = sorted((SYMBOLS[z], int(n)) for z, n in zip(numbers, counts))
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in parts)


def by_file(record: Record) -> str:
    """The name of the file."""
    return record.source


def by_frame(record: Record) -> str:
    """Every frame by itself."""
    return f"{record.source}:{record.frame}"


def by_molecule(record: Record) -> str:
    """The bonded graph (elements and bonds, no orders), the same for all conformers; composition first.

    Graphs are told apart by colour refinement (Weisfeiler and Leman): it cannot tell some graphs of equal rings apart,
    which puts two molecules into one group, never one molecule into two.
    """
    numbers = record.atomic_numbers
    radii = covalent_radii[numbers]
    cutoff = _BOND * 2.0 * float(radii.max())
    edge_index, shift = neighbor_list(record.positions, record.cell, record.pbc, cutoff)
    vectors = edge_vectors(record.positions, record.cell, edge_index, shift)
    bonded = np.linalg.norm(vectors, axis=1) < _BOND * (radii[edge_index[0]] + radii[edge_index[1]])
    neighbours: list[list[int]] = [[] for _ in numbers]
    for source, target in edge_index[:, bonded].T.tolist():
        neighbours[target].append(source)
    colours = [str(z) for z in numbers.tolist()]
    for _ in range(_ROUNDS):
        colours = [
            _hash(f"{colours[i]}({','.join(sorted(colours[j] for j in near))})") for i, near in enumerate(neighbours)
        ]
    return f"{by_composition(record)}-{_hash(','.join(sorted(colours)))}"


def by_prototype(record: Record) -> str:
    """Anonymous formula, space group and occupied sites: 'AB-225-ab'.  For crystals near their ideal sites.

    Raises:
        MissingDependencyError: spglib is not installed.
    """
    if not record.pbc.all():
        return by_composition(record)
    try:
        import spglib
    except ImportError as error:
        raise MissingDependencyError("--by prototype needs spglib: pip install gfm-calc[phonons]") from error
    fractional = np.linalg.solve(record.cell.T, record.positions.T).T
    crystal = (record.cell.tolist(), fractional.tolist(), record.atomic_numbers.tolist())
    found = spglib.get_symmetry_dataset(crystal, symprec=_SYMPREC)
    _, counts = np.unique(record.atomic_numbers, return_counts=True)
    ratio = np.sort(counts // np.gcd.reduce(counts))
    anonymous = "".join(f"{chr(65 + k)}{n if n > 1 else ''}" for k, n in enumerate(ratio.tolist()))
    if found is None:
        return f"{anonymous}-{len(record)}"
    _, first = np.unique(found.equivalent_atoms, return_index=True)
    return f"{anonymous}-{found.number}-{''.join(sorted(found.wyckoffs[k] for k in first))}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


KEYS: dict[str, Callable[[Record], str]] = {
    "group": by_group,
    "composition": by_composition,
    "molecule": by_molecule,
    "prototype": by_prototype,
    "file": by_file,
    "frame": by_frame,
}
