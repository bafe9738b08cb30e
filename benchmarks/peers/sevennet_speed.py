"""SevenNet-0 (July 2024, the weights of its wheel) under the stopwatch; run by the python of an environment that has sevenn.

Its own batch path (the graphs, loader and model of `sevenn inference`) and its own `SevenNetCalculator`.
"""

import argparse
import warnings
from importlib.metadata import version

import sevenn._keys as KEY
from measure import batches, serve
from sevenn import util
from sevenn.atom_graph_data import AtomGraphData
from sevenn.calculator import SevenNetCalculator
from sevenn.train.dataload import unlabeled_atoms_to_graph
from torch_geometric.loader import DataLoader

MODEL = "7net-0"


class SevenNetContender:
    """See `measure.Contender`."""

    def __init__(self, options):
        warnings.filterwarnings("ignore", message="No tensor product accelerator")  # they need a GPU
        self.device = options.device
        self.model, _ = util.model_from_checkpoint(util.pretrained_name_to_path(MODEL))
        self.model.set_is_batch_data(True)
        self.model.to(self.device).eval()
        self._calculator = SevenNetCalculator(MODEL, device=self.device)

    def describe(self):
        count = sum(p.numel() for p in self.model.parameters())
        return {
            "name": "SevenNet-0",
            "version": version("sevenn"),
            "model": "SevenNet-0 (11 July 2024)",
            "parameters": count,
        }

    def predict(self, structures, batch):
        energies = []
        for part in batches(structures, batch):
            graphs = [
                AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, self.model.cutoff)) for atoms in part
            ]
            for data in DataLoader(graphs, batch_size=batch, shuffle=False):
                output = self.model(data.to(self.device))
                output[KEY.PRED_FORCE].detach().cpu().numpy()
                energies += output[KEY.PRED_TOTAL_ENERGY].detach().cpu().tolist()
        return energies

    def calculator(self, atoms):
        return self._calculator


if __name__ == "__main__":
    serve(SevenNetContender, argparse.ArgumentParser(description=__doc__))
