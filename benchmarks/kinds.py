"""What errors are split by: kinds of systems, and groups of the periodic table."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from ase.data import chemical_symbols

from gfm_calc.data.schema import Record

_VACUUM = 6.0  # Å without atoms along a cell vector make a slab of a crystal
_GROUPS = {
    "H": "H", "noble gases": "He Ne Ar Kr Xe Rn", "C N O": "C N O", "P S Se": "P S Se", "halogens": "F Cl Br I At",
    "alkali": "Li Na K Rb Cs Fr", "alkaline earths": "Be Mg Ca Sr Ba Ra",
    "metalloids": "B Si Ge As Sb Te", "p metals": "Al Ga In Sn Tl Pb Bi Po",
    "3d": "Sc Ti V Cr Mn Fe Co Ni Cu Zn", "4d": "Y Zr Nb Mo Tc Ru Rh Pd Ag Cd", "5d": "Hf Ta W Re Os Ir Pt Au Hg",
    "f": " ".join((*chemical_symbols[57:72], *chemical_symbols[89:104])),
}  # fmt: skip
ELEMENT_GROUPS = MappingProxyType({name: tuple(symbols.split()) for name, symbols in _GROUPS.items()})
_GROUP_OF = {
    chemical_symbols.index(symbol): name for name, symbols in ELEMENT_GROUPS.items() for symbol in symbols
}  # fmt: skip


def groups_of(atomic_numbers: np.ndarray) -> np.ndarray:
    """[n] names of `ELEMENT_GROUPS`; "others" for what is in none."""
    return np.array([_GROUP_OF.get(int(z), "others") for z in atomic_numbers])


def system_type(record: Record) -> str:
    """The kind of system: "molecules" ("ions" with a charge, "radicals" with unpaired electrons), "slabs" (6 Å without atoms
    along a cell vector, or one not periodic), "crystals"."""
    if not record.pbc.any():
        return "ions" if record.charge else "radicals" if (record.spin or 1) > 1 else "molecules"
    if not record.pbc.all():
        return "slabs"
    volume = abs(float(np.linalg.det(record.cell)))
    scaled = np.sort((record.positions @ np.linalg.inv(record.cell)) % 1.0, axis=0)
    for axis in range(3):
        across = np.cross(record.cell[(axis + 1) % 3], record.cell[(axis + 2) % 3])
        gaps = np.diff(scaled[:, axis], append=scaled[0, axis] + 1.0)
        if len(record) > 1 and gaps.max() * volume / float(np.linalg.norm(across)) > _VACUUM:
            return "slabs"
    return "crystals"
