"""schnetpack's PaiNN, trained by its own `AtomisticTask`; run by the python of an environment that has schnetpack.

Its defaults: Gaussian radial functions, cosine cutoff, a head with one hidden layer of half the width; energies and forces by
mean squared errors, 1 : 99, as in its md17 experiment; AdamW.  The loop of Lightning around the task is left out.
"""

import argparse
import typing
from importlib.metadata import version

import torch
import torch.utils.data.dataloader
from measure import answer_jobs
from steps import clocked

# schnetpack imports this type variable, which newer versions of torch have renamed.
vars(torch.utils.data.dataloader).setdefault("T_co", typing.TypeVar("T_co", covariant=True))

import schnetpack as spk  # noqa: E402
from schnetpack import properties  # noqa: E402
from schnetpack.task import AtomisticTask, ModelOutput  # noqa: E402


class SchNetPackTrainee:
    """See `steps.Trainee`."""

    def __init__(self, options):
        self.options = options
        torch.manual_seed(0)
        potential = spk.model.NeuralNetworkPotential(
            representation=spk.representation.PaiNN(
                n_atom_basis=options.width, n_interactions=options.layers,
                radial_basis=spk.nn.GaussianRBF(n_rbf=options.radial, cutoff=options.cutoff),
                cutoff_fn=spk.nn.CosineCutoff(options.cutoff),
            ),
            input_modules=[spk.atomistic.PairwiseDistances()],
            output_modules=[
                spk.atomistic.Atomwise(n_in=options.width, output_key=properties.energy),
                spk.atomistic.Forces(),
            ],
        )  # fmt: skip
        outputs = [
            ModelOutput(name=name, loss_fn=torch.nn.MSELoss(), loss_weight=weight, metrics={})
            for name, weight in ((properties.energy, 0.01), (properties.forces, 0.99))
        ]
        self.task = AtomisticTask(potential, outputs, optimizer_cls=torch.optim.AdamW, optimizer_args={"lr": 1e-4})
        self.task.train()
        self.optimizer = torch.optim.AdamW(self.task.parameters(), lr=1e-4)

    def describe(self):
        o = self.options
        return {
            "name": "schnetpack", "version": version("schnetpack"), "torch": torch.__version__,
            "model": f"PaiNN, width {o.width}, {o.layers} layers, {o.radial} radial functions",
            "parameters": sum(p.numel() for p in self.task.parameters()),
        }  # fmt: skip

    def turn(self, batches):
        ready = [batch_of(batch) for batch in batches]

        def run():
            loss = None
            for batch in ready:
                self.optimizer.zero_grad()
                targets = {name: batch[name] for name in (properties.energy, properties.forces)}
                loss = self.task.loss_fn(self.task.predict_without_postprocessing(batch), targets)
                loss.backward()
                self.optimizer.step()
            return float(loss.detach())

        return run


def batch_of(arrays):
    """A batch in schnetpack's layout."""
    owner = torch.from_numpy(arrays["structure"])
    return {
        properties.Z: torch.from_numpy(arrays["numbers"]),
        properties.R: torch.from_numpy(arrays["positions"]).float(),
        properties.n_atoms: torch.bincount(owner),
        properties.idx_m: owner,
        properties.idx_i: torch.from_numpy(arrays["pairs"][1]),
        properties.idx_j: torch.from_numpy(arrays["pairs"][0]),
        properties.offsets: torch.from_numpy(arrays["shifts"]).float(),
        properties.energy: torch.from_numpy(arrays["energy"]).float(),
        properties.forces: torch.from_numpy(arrays["forces"]).float(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("width", 128), ("layers", 3), ("radial", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cutoff", type=float, default=5.0)
    answer_jobs(clocked(SchNetPackTrainee, parser), parser)


if __name__ == "__main__":
    main()
