"""Relax structures with SevenNet-l3i5 (the weights of its wheel), the teacher of the distilled heads.

Reads extended XYZ (info key `relax_cell`: 0 or 1) and prints the relaxed structures as JSON.
"""

import argparse
import json
import sys
import warnings

import ase.io
from relaxing import relax
from sevenn.calculator import SevenNetCalculator


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures")
    path = parser.parse_args().structures
    warnings.filterwarnings("ignore", message="No tensor product accelerator")  # they need a GPU
    replies, sys.stdout = sys.stdout, sys.stderr
    calculator = SevenNetCalculator("7net-l3i5", device="cpu")
    rows = []
    for atoms in ase.io.read(path, ":", format="extxyz"):
        atoms.calc = calculator
        converged, _ = relax(atoms, cell=bool(atoms.info["relax_cell"]))
        rows.append({"converged": converged, "positions": atoms.positions.tolist(), "cell": atoms.cell.array.tolist()})
    print(json.dumps(rows), file=replies)


if __name__ == "__main__":
    main()
