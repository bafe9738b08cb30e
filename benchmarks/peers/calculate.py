"""Energies, forces and stresses of a published model for a calculator in another process (see `benchmarks.remote`).

Run by the python of an environment that has the model.  It answers each structure with one JSON line:

    {"numbers": [N], "positions": [N, 3], "cell": [3, 3], "pbc": [3]} -> {"energy": eV, "forces": [N, 3], "stress": [6] Voigt}
"""

import argparse
import warnings
from importlib.metadata import version

from ase import Atoms
from measure import answer_jobs


def chgnet(device, model="0.3.0"):
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    loaded = CHGNet.load(model_name=model, use_device=device, verbose=False)
    return CHGNetCalculator(model=loaded, use_device=device, on_isolated_atoms="ignore"), version("chgnet")


def sevennet(device, model="7net-0", **options):
    from sevenn.calculator import SevenNetCalculator

    warnings.filterwarnings("ignore", message="No tensor product accelerator")  # they need a GPU
    return SevenNetCalculator(model, device=device, **options), version("sevenn")


MODELS = {
    "chgnet": ("CHGNet 0.3.0", chgnet),
    "sevennet": ("SevenNet-0", sevennet),
    "teacher": ("SevenNet-l3i5", lambda device: sevennet(device, "7net-l3i5")),
    "chgnet-r2scan": ("CHGNet r2SCAN", lambda device: chgnet(device, "r2scan")),
    "teacher-r2scan": ("SevenNet-MF-0 (r2SCAN)", lambda device: sevennet(device, "7net-mf-0", modal="R2SCAN")),
}


def start(options):
    """See `measure.answer_jobs`."""
    name, load = MODELS[options.model]
    calculator, release = load(options.device)

    def run(job):
        atoms = Atoms(
            job["numbers"], positions=job["positions"], cell=job["cell"], pbc=job["pbc"], calculator=calculator
        )
        return {
            "energy": float(atoms.get_potential_energy()),
            "forces": atoms.get_forces().tolist(),
            "stress": atoms.get_stress().tolist(),
        }

    return {"name": name, "version": release}, run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, required=True)
    answer_jobs(start, parser)
