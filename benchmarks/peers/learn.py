"""A peer that learns the structures of a downstream task in the seconds that ours took (see `benchmarks.finetune_peers`).

Run by the python of an environment that has the peer.  It answers one JSON line for each JSON line that it is sent:

    {"train": FILE, "validation": FILE or null, "test": FILE, "seconds": S, "seed": n}
        -> {"steps": n, "frames": tested, "energy_mae_mev_per_atom": ..., "energy_rmse_mev_per_atom": ...,
            "forces_mae_mev_per_a": ..., "forces_rmse_mev_per_a": ...}

Files are extended XYZ with energies and forces.  Energies of elements are fitted to what the peer leaves of the training
labels.  AdamW with a rate that falls as a cosine of the time that is over, gradients clipped at 10; the weights are those of the
best of ten validations, where there is something to validate on.  Preparing the training structures takes of the seconds, testing
does not.
"""

import argparse
import copy
import math
import time
import typing
from importlib.metadata import version

import ase.io
import numpy as np
import torch
from measure import answer_jobs, batches

_VALIDATIONS = 10
_MOST_VALIDATED = 50  # structures: the seconds are for learning
_VACUUM = 15.0  # Å about a molecule, for models of crystals


class CHGNetLearner:
    """All weights of CHGNet 0.3.0, from the released ones; Huber losses of energies an atom and forces, as in its training."""

    batch, rate = 8, 1e-3

    def __init__(self):
        from chgnet.graph import CrystalGraphConverter
        from chgnet.model import CHGNet

        self.model = CHGNet.load(use_device="cpu", verbose=False)
        self.converter = CrystalGraphConverter(
            atom_graph_cutoff=self.model.graph_converter.atom_graph_cutoff,
            bond_graph_cutoff=self.model.graph_converter.bond_graph_cutoff, on_isolated_atoms="ignore",
        )  # fmt: skip

    def describe(self):
        return {"name": "CHGNet 0.3.0", "version": version("chgnet")}

    def ready(self, atoms):
        from pymatgen.io.ase import AseAtomsAdaptor

        atoms = atoms.copy()
        atoms.calc = None
        if not atoms.pbc.any():
            atoms.set_cell(np.ptp(atoms.positions, axis=0) + _VACUUM)
            atoms.pbc = True
        elif not atoms.pbc.all():
            raise ValueError("a model of crystals: molecules are put in a box, slabs are not")
        return self.converter(AseAtomsAdaptor.get_structure(atoms))

    def predict(self, inputs):
        found = self.model(inputs, task="ef")
        return found["e"], torch.cat(found["f"])

    def loss(self, energies, forces, wanted_energies, wanted_forces):
        huber = torch.nn.functional.huber_loss
        return huber(energies, wanted_energies, delta=0.1) + huber(forces, wanted_forces, delta=0.1)


class SchNetPackLearner:
    """schnetpack's PaiNN, 3 layers of 128, from random weights; losses and rate of its md17 experiment."""

    batch, rate = 10, 1e-3

    def __init__(self):
        import torch.utils.data.dataloader

        # schnetpack imports this type variable, which newer versions of torch have renamed.
        vars(torch.utils.data.dataloader).setdefault("T_co", typing.TypeVar("T_co", covariant=True))
        import schnetpack as spk

        cutoff = 5.0
        self.cutoff = cutoff
        self.model = spk.model.NeuralNetworkPotential(
            representation=spk.representation.PaiNN(
                n_atom_basis=128, n_interactions=3, radial_basis=spk.nn.GaussianRBF(n_rbf=20, cutoff=cutoff),
                cutoff_fn=spk.nn.CosineCutoff(cutoff),
            ),
            input_modules=[spk.atomistic.PairwiseDistances()],
            output_modules=[spk.atomistic.Atomwise(n_in=128, output_key="energy"), spk.atomistic.Forces()],
        )  # fmt: skip

    def describe(self):
        return {"name": "schnetpack's PaiNN", "version": version("schnetpack")}

    def ready(self, atoms):
        from ase.neighborlist import neighbor_list

        i, j, shifts = neighbor_list("ijS", atoms, self.cutoff)
        return {
            "Z": torch.from_numpy(atoms.numbers.astype(np.int64)), "R": torch.from_numpy(atoms.positions).float(),
            "i": torch.from_numpy(i), "j": torch.from_numpy(j),
            "offsets": torch.from_numpy(shifts @ atoms.cell.array).float(),
        }  # fmt: skip

    def predict(self, inputs):
        from schnetpack import properties

        sizes = torch.tensor([len(one["Z"]) for one in inputs])
        starts = (sizes.cumsum(0) - sizes).tolist()
        batch = {
            properties.Z: torch.cat([one["Z"] for one in inputs]),
            properties.R: torch.cat([one["R"] for one in inputs]),
            properties.n_atoms: sizes, properties.idx_m: torch.repeat_interleave(torch.arange(len(sizes)), sizes),
            properties.idx_i: torch.cat([one["i"] + start for one, start in zip(inputs, starts)]),
            properties.idx_j: torch.cat([one["j"] + start for one, start in zip(inputs, starts)]),
            properties.offsets: torch.cat([one["offsets"] for one in inputs]),
        }  # fmt: skip
        found = self.model(batch)
        return found["energy"] / sizes, found["forces"]

    def loss(self, energies, forces, wanted_energies, wanted_forces):
        mse = torch.nn.functional.mse_loss
        return 0.01 * mse(energies, wanted_energies) + 0.99 * mse(forces, wanted_forces)


LEARNERS = {"chgnet": CHGNetLearner, "schnetpack": SchNetPackLearner}


class Side:
    """Structures of a file, ready for the learner; energies [B] eV an atom and forces [N, 3] of each."""

    def __init__(self, learner, path, most=None):
        frames = ase.io.read(path, ":", format="extxyz")
        if most is not None:
            frames = frames[:: math.ceil(len(frames) / most)]
        self.frames, self.inputs = frames, [learner.ready(atoms) for atoms in frames]
        self.energies = torch.tensor([atoms.get_potential_energy() / len(atoms) for atoms in frames])
        self.forces = [torch.from_numpy(atoms.get_forces(apply_constraint=False)).float() for atoms in frames]

    def subtract(self, references):
        """Energies of the elements, {number: eV}."""
        elements = [np.mean([references.get(z, 0.0) for z in atoms.numbers]) for atoms in self.frames]
        self.energies = (self.energies.double() - torch.tensor(elements)).float()


def errors(learner, side, size):
    """Mean absolute and root mean square errors, meV an atom and meV/Å."""
    learner.model.eval()
    off = {"energy": [], "forces": []}
    for rows in batches(list(range(len(side.inputs))), size):
        energies, forces = learner.predict([side.inputs[k] for k in rows])
        off["energy"].append(energies.detach() - side.energies[rows])
        off["forces"].append((forces.detach() - torch.cat([side.forces[k] for k in rows])).reshape(-1))
    found = {}
    for name, unit in (("energy", "mev_per_atom"), ("forces", "mev_per_a")):
        differences = 1000 * torch.cat(off[name]).double()
        found[f"{name}_mae_{unit}"] = float(differences.abs().mean())
        found[f"{name}_rmse_{unit}"] = float(differences.square().mean().sqrt())
    return found


def left_over(learner, side):
    """Energies of elements that make the peer's energies of the training structures those of the labels, eV."""
    learner.model.eval()
    found = [learner.predict([one])[0].detach().double() for one in side.inputs]
    numbers = sorted({int(z) for atoms in side.frames for z in atoms.numbers})
    counts = np.array([[np.mean(atoms.numbers == z) for z in numbers] for atoms in side.frames])
    rest = (side.energies.double() - torch.cat([one.reshape(1) for one in found])).numpy()
    return dict(zip(numbers, np.linalg.lstsq(counts, rest, rcond=None)[0]))


def learn(learner, job):
    """Train on one side until the time is over, and test; see the module."""
    began = time.perf_counter()
    train = Side(learner, job["train"])
    validation = Side(learner, job["validation"], _MOST_VALIDATED) if job["validation"] else None
    references = left_over(learner, train)
    for side in (train, validation):
        if side is not None:
            side.subtract(references)
    optimizer = torch.optim.AdamW([p for p in learner.model.parameters() if p.requires_grad], lr=learner.rate)
    generator = np.random.default_rng(job["seed"])
    best, least, steps, validated = None, math.inf, 0, 0
    size = min(learner.batch, len(train.inputs))
    while True:
        done = (time.perf_counter() - began) / job["seconds"]
        if validation is not None and (done >= 1 or int(done * _VALIDATIONS) > validated):
            validated = int(done * _VALIDATIONS)
            found = errors(learner, validation, size)["forces_mae_mev_per_a"]
            if found < least:
                best, least = copy.deepcopy(learner.model.state_dict()), found
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learner.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        rows = generator.choice(len(train.inputs), size, replace=False).tolist()
        learner.model.train()
        optimizer.zero_grad()
        energies, forces = learner.predict([train.inputs[k] for k in rows])
        wanted = torch.cat([train.forces[k] for k in rows])
        learner.loss(energies, forces, train.energies[rows], wanted).backward()
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 10.0)
        optimizer.step()
        steps += 1
    if best is not None:
        learner.model.load_state_dict(best)
    test = Side(learner, job["test"])
    test.subtract(references)
    found = errors(learner, test, size)
    return {"steps": steps, "frames": len(test.inputs), **found}


def start(options):
    """See `measure.answer_jobs`."""
    make = LEARNERS[options.model]

    def run(job):
        torch.manual_seed(job["seed"])
        return learn(make(), job)

    return make().describe(), run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=LEARNERS, required=True)
    answer_jobs(start, parser)
