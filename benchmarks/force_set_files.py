"""Force sets of phonopy's sources as files for `gfm bench phonons`: `python -m gfm_calc.benchmarks.force_set_files PHONOPY OUT`.

PHONOPY is a source tree of phonopy (BSD-3-Clause; Togo et al., DOI 10.1088/1361-648X/acd831).  Taken are examples by VASP and the
crystals of its tests of irreducible representations; which functional it was is said of few of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

_EXAMPLES = ("Al2O3", "CaTiO3", "MgB2", "MgO", "NaCl", "SiO2-HP", "SnO2", "TiO2-anatase", "ZnO")
# Space group in the name of a file -> supercell, as in phonopy's test/phonon/test_irreps.py.
_OF_TESTS = {
    "P2": (3, 2, 2), "Pc": (2, 2, 2), "P222_1": (2, 2, 1), "Amm2": (3, 2, 2), "P4_1": (2, 2, 1), "P-4": (1, 1, 2),
    "P4mm": (3, 3, 2), "P-42_1m": (2, 2, 3), "P3m1": (4, 4, 2), "P31m": (1, 1, 3), "P-3m1": (3, 3, 2), "P6": (2, 2, 1),
    "P-6": (1, 1, 3), "P6_222": (2, 2, 2), "P-6m2": (2, 2, 3), "P-62m": (1, 1, 2), "P2_13": (2, 2, 2), "Pa-3": (2, 2, 2),
    "P4_332": (1, 1, 1), "P-43m": (2, 2, 2),
}  # fmt: skip
_MOST, _LARGEST = 20, 100  # displacements of a crystal; atoms of its supercell


def main() -> None:
    """Write OUT/NAME.yaml of each."""
    import phonopy

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("phonopy", type=Path, metavar="PHONOPY")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in _EXAMPLES:
        folder = args.phonopy / "example" / name
        disp, sets = folder / "phonopy_disp.yaml", folder / "FORCE_SETS"
        found[name] = phonopy.load(
            disp, primitive_matrix="auto", force_sets_filename=sets, produce_fc=False, is_nac=False, log_level=0
        )
    for group, repeat in _OF_TESTS.items():
        cell, sets = (args.phonopy / "test" / "phonon" / f"{what}_{group}" for what in ("POSCAR", "FORCE_SETS"))
        found[group] = phonopy.load(
            supercell_matrix=np.diag(repeat), primitive_matrix=np.eye(3), unitcell_filename=cell, force_sets_filename=sets,
            produce_fc=False, is_nac=False, log_level=0,
        )  # fmt: skip
    for name, phonon in found.items():
        count, size = len(phonon.displacements), len(phonon.supercell)
        kept = count <= _MOST and size <= _LARGEST
        print(f"{name}: {phonon.unitcell.formula}, {count} displacements of {size} atoms{'' if kept else ': left out'}")
        if kept:
            phonon.save(args.out / f"{name}.yaml", settings={"force_sets": True, "displacements": True})


if __name__ == "__main__":
    main()
