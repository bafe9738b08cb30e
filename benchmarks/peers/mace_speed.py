"""A MACE of the size of MACE-MP-0 small under the stopwatch; run by the python of an environment that has mace-torch.

Its wheel has no weights: they are random, which makes energies meaningless and no step faster or slower.  Its own batch path
(the data, loader and model of `mace_eval_configs`, in float32) and its own `MACECalculator`.
"""

import argparse
import contextlib
import sys
import warnings
from importlib.metadata import version

import numpy as np
import torch
from measure import serve

torch.serialization.add_safe_globals([slice])  # e3nn reads constants of its own with torch.load
with contextlib.redirect_stdout(sys.stderr):  # replies alone go to stdout; these say what accelerators they miss
    from e3nn import o3
    from mace import data, modules
    from mace.calculators import MACECalculator
    from mace.tools import torch_geometric, utils

MODEL = "MACE, size of MACE-MP-0 small, random weights"
_ELEMENTS = 89


def small(device):
    """Two layers of 128 scalars within 6 Å, correlation 3: what MACE-MP-0 small is made of (doi:10.48550/arXiv.2401.00096)."""
    torch.manual_seed(0)
    residual = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=6.0,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=residual,
        interaction_cls_first=residual,
        num_interactions=2,
        num_elements=_ELEMENTS,
        hidden_irreps=o3.Irreps("128x0e"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(_ELEMENTS),
        avg_num_neighbors=61.96,
        atomic_numbers=list(range(1, _ELEMENTS + 1)),
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as `mace_eval_configs` does: no gradients but those of positions
    return model.to(device, torch.float32).eval()


class MACEContender:
    """See `measure.Contender`."""

    def __init__(self, options):
        warnings.filterwarnings("ignore")
        self.device = options.device
        self.model = small(self.device)
        self.elements = utils.AtomicNumberTable([int(z) for z in self.model.atomic_numbers])
        torch.set_default_dtype(torch.float32)  # what its data are made of

    def describe(self):
        count = sum(p.numel() for p in self.model.parameters())
        return {"name": "MACE (random weights)", "version": version("mace-torch"), "model": MODEL, "parameters": count}

    def predict(self, structures, batch):
        cutoff = float(self.model.r_max)
        loader = torch_geometric.dataloader.DataLoader(
            [
                data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=self.elements, cutoff=cutoff)
                for atoms in structures
            ],
            batch_size=batch,
            shuffle=False,
            drop_last=False,
        )
        energies = []
        for part in loader:
            output = self.model(part.to(self.device).to_dict(), compute_stress=False)
            output["forces"].detach().cpu().numpy()
            energies += output["energy"].detach().cpu().tolist()
        return energies

    def calculator(self, atoms):
        return MACECalculator(models=[self.model], device=self.device, default_dtype="float32")


if __name__ == "__main__":
    serve(MACEContender, argparse.ArgumentParser(description=__doc__))
