"""Structures as pymatgen writes them to JSON, without pymatgen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidStructureError
from .raw import floats_from, numbers_from


def geometry_of(structure: Any, path: Path, frame: int) -> dict[str, Any]:
    """{"atomic_numbers" [n], "positions" [n, 3], "cell" [3, 3], "pbc" [3]} of a Structure or Molecule as a dict.

    Raises:
        InvalidStructureError: a site that is missing a part, or that is partly occupied.
    """
    where: dict[str, Any] = {"source": str(path), "frame": frame}
    sites = structure.get("sites") if isinstance(structure, dict) else None
    if not isinstance(sites, list) or not sites:
        raise InvalidStructureError("the structure has no sites", **where)
    lattice = structure.get("lattice")
    matrix = None
    pbc = np.zeros(3, bool)
    if lattice is not None:
        if not isinstance(lattice, dict) or "matrix" not in lattice:
            raise InvalidStructureError("the lattice has no matrix", **where)
        matrix = floats_from(lattice["matrix"], (3, 3), "lattice matrix", str(path), frame)
        pbc = _pbc(lattice.get("pbc"), where)
    symbols = [_symbol(site, atom, where) for atom, site in enumerate(sites)]
    return {
        "atomic_numbers": numbers_from(symbols, str(path), frame),
        "positions": _positions(sites, matrix, path, frame),
        "cell": np.zeros((3, 3)) if matrix is None else matrix,
        "pbc": pbc,
    }


def site_property(structure: Any, name: str) -> list | None:
    """The values of a property of the sites, None where a site lacks it."""
    values = [site.get("properties", {}).get(name) if isinstance(site, dict) else None for site in structure["sites"]]
    return None if any(value is None for value in values) else values


def _pbc(value: Any, where: dict) -> np.ndarray:
    if value is None:
        return np.ones(3, bool)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(flag, bool) for flag in value):
        raise InvalidStructureError("pbc of the lattice must be three of true and false", **where)
    return np.array(value)


def _symbol(site: Any, atom: int, where: dict) -> str:
    species = site.get("species") if isinstance(site, dict) else None
    if not isinstance(species, list) or not species or not all(isinstance(part, dict) for part in species):
        raise InvalidStructureError("a site without species", **where, atom=atom)
    occupied = species[0].get("occu", 1)
    if len(species) > 1 or not isinstance(occupied, int | float) or abs(occupied - 1) > 1e-3:
        raise InvalidStructureError("a partly occupied site: give an ordered structure", **where, atom=atom)
    return str(species[0].get("element", "?"))


def _positions(sites: list, matrix: np.ndarray | None, path: Path, frame: int) -> np.ndarray:
    """Cartesian coordinates where all sites give them, else the fractional ones times the lattice."""
    for name in ("xyz", "abc"):
        values = [site.get(name) for site in sites]
        if all(value is not None for value in values):
            found = floats_from(values, (len(sites), 3), name, str(path), frame)
            if name == "xyz":
                return found
            if matrix is not None:
                return found @ matrix
    raise InvalidStructureError("a site without coordinates", source=str(path), frame=frame)
