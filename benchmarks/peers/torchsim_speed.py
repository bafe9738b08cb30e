"""torch-sim with the MACE of `mace_speed` under the stopwatch; run by the python of an environment that has both.

Its own batch path, `torch_sim.static`, with its own neighbour lists.  It has no ASE calculator: MACE's stands in its place,
which shows that both compute the same energies.
"""

import argparse
from importlib.metadata import version

import torch
import torch_sim
from mace_speed import MACEContender
from measure import batches, serve
from torch_sim.models.mace import MaceModel


class TorchSimContender(MACEContender):
    """See `measure.Contender`."""

    def __init__(self, options):
        super().__init__(options)
        self.wrapped = MaceModel(
            self.model, device=torch.device(self.device), dtype=torch.float32, compute_stress=False
        )

    def describe(self):
        about = {"name": "torch-sim (MACE, random weights)", "version": version("torch-sim-atomistic")}
        return {**super().describe(), **about}

    def predict(self, structures, batch):
        energies = []
        for part in batches(structures, batch):
            for found in torch_sim.static(part, self.wrapped):
                found["forces"].cpu().numpy()
                energies.append(float(found["potential_energy"]))
        return energies


if __name__ == "__main__":
    serve(TorchSimContender, argparse.ArgumentParser(description=__doc__))
