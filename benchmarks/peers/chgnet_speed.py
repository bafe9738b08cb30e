"""CHGNet 0.3.0 (the weights of its wheel) under the stopwatch; run by the python of an environment that has chgnet.

Its own batch path, `predict_structure(batch_size=...)`, and its own `CHGNetCalculator`.  It knows periodic cells only:
molecules get a cell that keeps images beyond its 6 Å cutoff.
"""

import argparse
from importlib.metadata import version

from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator
from measure import serve
from pymatgen.io.ase import AseAtomsAdaptor


class CHGNetContender:
    """See `measure.Contender`."""

    def __init__(self, options):
        self.device = options.device
        self.model = CHGNet.load(use_device=self.device, verbose=False)
        self.model.graph_converter.set_isolated_atom_response("ignore")

    def describe(self):
        return {
            "name": "CHGNet",
            "version": version("chgnet"),
            "model": "CHGNet 0.3.0",
            "parameters": self.model.n_params,
        }

    def predict(self, structures, batch):
        found = [AseAtomsAdaptor.get_structure(boxed(atoms)) for atoms in structures]
        rows = self.model.predict_structure(found, task="ef", batch_size=batch)
        rows = [rows] if len(structures) == 1 else rows
        return [float(row["e"]) * len(atoms) for row, atoms in zip(rows, structures)]

    def calculator(self, atoms):
        if not atoms.pbc.all():
            atoms.set_cell(boxed(atoms).cell)
            atoms.pbc = True
        # Its calculator also computes stress and magnetic moments; there is no switch.
        return CHGNetCalculator(model=self.model, use_device=self.device, on_isolated_atoms="ignore")


def boxed(atoms):
    """`atoms` where they are periodic, else a copy in a cell with 8 Å around them."""
    if atoms.pbc.all():
        return atoms
    atoms = atoms.copy()
    atoms.center(vacuum=8.0)
    atoms.pbc = True
    return atoms


if __name__ == "__main__":
    serve(CHGNetContender, argparse.ArgumentParser(description=__doc__))
