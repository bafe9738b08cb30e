"""A peer that learns the structures of a downstream task in the seconds that ours took (see `benchmarks.finetune_peers`).

Run by the python of an environment that has the peer.  It answers one JSON line for each JSON line that it is sent:

    {"train": FILE, "validation": FILE or null, "test": FILE, "seconds": S, "seed": n}
        -> {"steps": n, "frames": tested, "energy_mae_mev_per_atom": ..., "energy_rmse_mev_per_atom": ...,
            "forces_mae_mev_per_a": ..., "forces_rmse_mev_per_a": ...}
    the same with "property": "extensive", "intensive" or "class" -> {"steps": n, "frames": tested, "values": [n]}

Files are extended XYZ with energies and forces, or with the property as `value` of each structure.  Energies of elements are
fitted to what the peer leaves of the training labels.  A property is a mean over atoms, or that times their number; it begins at
the ridge regression of the training labels on what the peer says and on the fractions of elements, to which its last layer is
scaled; of a class, whose logistic function is taken, at how many are yes.  AdamW with a rate that falls as a cosine of the time
that is over, gradients clipped at 10; the weights are those of the best of ten validations, where there is something to validate
on.  Preparing the training structures takes of the seconds, testing does not.
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
_RIDGES = (1e-9, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0)  # of what a property begins at, for each label
_MOST_VALIDATED = 50  # structures: the seconds are for learning
_VACUUM = 15.0  # Å about a molecule, for models of crystals


class CHGNetLearner:
    """All weights of CHGNet 0.3.0, from the released ones; Huber losses of energies an atom and forces, as in its training.

    Of a property, without the energies of its elements; a Huber loss of what is left in units of its spread.
    """

    batch, rate = 8, 1e-3

    def __init__(self, *, of_property=False):
        from chgnet.graph import CrystalGraphConverter
        from chgnet.model import CHGNet

        self.model = CHGNet.load(use_device="cpu", verbose=False)
        self.converter = CrystalGraphConverter(
            atom_graph_cutoff=self.model.graph_converter.atom_graph_cutoff,
            bond_graph_cutoff=self.model.graph_converter.bond_graph_cutoff, on_isolated_atoms="ignore",
        )  # fmt: skip
        if of_property:
            self.model.composition_model = None

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

    def means(self, inputs):
        return self.model(inputs, task="e")["e"]

    def last_layer(self):
        return self.model.mlp.layers[-1]

    def loss(self, energies, forces, wanted_energies, wanted_forces):
        huber = torch.nn.functional.huber_loss
        return huber(energies, wanted_energies, delta=0.1) + huber(forces, wanted_forces, delta=0.1)

    loss_of_values = staticmethod(torch.nn.functional.huber_loss)


class SchNetPackLearner:
    """schnetpack's PaiNN, 3 layers of 128, from random weights; losses and rate of its md17 experiment, of a property squares."""

    batch, rate = 10, 1e-3

    def __init__(self, *, of_property=False):
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
            output_modules=[
                spk.atomistic.Atomwise(n_in=128, output_key="energy"), *([] if of_property else [spk.atomistic.Forces()])
            ],
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
        sizes, found = self._found(inputs)
        return found["energy"] / sizes, found["forces"]

    def means(self, inputs):
        sizes, found = self._found(inputs)
        return found["energy"] / sizes

    def last_layer(self):
        return self.model.output_modules[0].outnet[-1]

    def _found(self, inputs):
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
        return sizes, self.model(batch)

    def loss(self, energies, forces, wanted_energies, wanted_forces):
        mse = torch.nn.functional.mse_loss
        return 0.01 * mse(energies, wanted_energies) + 0.99 * mse(forces, wanted_forces)

    loss_of_values = staticmethod(torch.nn.functional.mse_loss)


LEARNERS = {"chgnet": CHGNetLearner, "schnetpack": SchNetPackLearner}


def opened(learner, path, most=None):
    """Structures of a file, and what the learner takes of each."""
    frames = ase.io.read(path, ":", format="extxyz")
    if most is not None:
        frames = frames[:: math.ceil(len(frames) / most)]
    return frames, [learner.ready(atoms) for atoms in frames]


def counts_of(frames, elements=None):
    """(Atomic numbers, [B, their number] how many atoms of each)."""
    elements = elements or sorted({int(z) for atoms in frames for z in atoms.numbers})
    return elements, np.array([[np.sum(atoms.numbers == z) for z in elements] for atoms in frames], float)


class EnergySide:
    """Structures of a file, ready for the learner; energies [B] eV an atom and forces [N, 3] of each."""

    def __init__(self, learner, path, most=None):
        self.frames, self.inputs = opened(learner, path, most)
        self.energies = torch.tensor([atoms.get_potential_energy() / len(atoms) for atoms in self.frames])
        self.forces = [torch.from_numpy(atoms.get_forces(apply_constraint=False)).float() for atoms in self.frames]


class Energies:
    """Energies and forces are learnt; energies of elements are fitted to what the peer leaves of the training labels, eV."""

    def __init__(self, learner, job):
        self.learner = learner
        self.train = EnergySide(learner, job["train"])
        learner.model.eval()
        found = torch.cat([learner.predict([one])[0].detach().double().reshape(1) for one in self.train.inputs])
        self.elements, counts = counts_of(self.train.frames)
        rest = (self.train.energies.double() - found).numpy()
        self.references = np.linalg.lstsq(counts / counts.sum(1, keepdims=True), rest, rcond=None)[0]
        self._subtract(self.train)

    def side(self, path, most=None):
        found = EnergySide(self.learner, path, most)
        self._subtract(found)
        return found

    def _subtract(self, side):
        counts = counts_of(side.frames, self.elements)[1]
        own = counts @ self.references / [len(atoms) for atoms in side.frames]
        side.energies = (side.energies.double() - torch.from_numpy(own)).float()

    def loss(self, rows):
        energies, forces = self.learner.predict([self.train.inputs[k] for k in rows])
        wanted = torch.cat([self.train.forces[k] for k in rows])
        return self.learner.loss(energies, forces, self.train.energies[rows], wanted)

    def score(self, side, size):
        return self.errors(side, size)["forces_mae_mev_per_a"]

    def errors(self, side, size):
        """Mean absolute and root mean square errors, meV an atom and meV/Å."""
        self.learner.model.eval()
        off = {"energy": [], "forces": []}
        for rows in batches(list(range(len(side.inputs))), size):
            energies, forces = self.learner.predict([side.inputs[k] for k in rows])
            off["energy"].append(energies.detach() - side.energies[rows])
            off["forces"].append((forces.detach() - torch.cat([side.forces[k] for k in rows])).reshape(-1))
        found = {}
        for name, unit in (("energy", "mev_per_atom"), ("forces", "mev_per_a")):
            differences = 1000 * torch.cat(off[name]).double()
            found[f"{name}_mae_{unit}"] = float(differences.abs().mean())
            found[f"{name}_rmse_{unit}"] = float(differences.square().mean().sqrt())
        return found

    answer = errors


class ValueSide:
    """Structures of a file, ready for the learner; the property [B] of each and its number of atoms."""

    def __init__(self, learner, path, most=None):
        self.frames, self.inputs = opened(learner, path, most)
        self.values = np.array([atoms.info["value"] for atoms in self.frames], float)
        self.sizes = np.array([len(atoms) for atoms in self.frames], float)


def regression(columns, labels):
    """Coefficients [K] of centred columns and labels [n]; the ridge is the best for labels that are left out one by one."""
    width = columns.std(axis=0)
    centred = (columns - columns.mean(axis=0)) / np.where(width > 0, width, 1.0)
    left, best, found = labels - labels.mean(), math.inf, np.zeros(columns.shape[1])
    for ridge in _RIDGES:
        inverse = np.linalg.inv(centred.T @ centred + ridge * len(labels) * np.eye(len(width)))
        leverage = np.einsum("nk,kl,nl->n", centred, inverse, centred) + 1 / len(labels)
        fitted = inverse @ centred.T @ left
        off = np.abs((left - centred @ fitted) / np.maximum(1 - leverage, 1e-9)).mean()
        if off < best:
            best, found = off, fitted / np.where(width > 0, width, np.inf)
    return found


class Values:
    """A property is learnt: a level by elements, and what the peer says in units of what the level leaves.  What it says is held
    within what the level leaves of the training labels: a few structures may be off by hundreds of units."""

    def __init__(self, learner, job):
        self.learner, self.kind = learner, job["property"]
        self.train = ValueSide(learner, job["train"])
        learner.model.eval()
        raw = self._raw(self.train, learner.batch)
        labels = self.train.values / self._sizes(self.train)
        self.elements, counts = counts_of(self.train.frames)
        fractions = counts / counts.sum(1, keepdims=True)
        self.adds, self.constant, scale = np.zeros(len(self.elements)), 0.0, 0.0
        self.spread, self.wanted = 1.0, labels
        if self.kind == "class":
            yes = np.clip(labels.mean(), 0.5 / len(labels), 1 - 0.5 / len(labels))
            self.constant = math.log(yes / (1 - yes))
        else:
            *self.adds, scale = regression(np.column_stack([fractions, raw]), labels)
            self.constant = float((labels - fractions @ self.adds).mean())
            left = labels - self.constant - fractions @ self.adds
            self.spread = float(left.std()) or 1.0
            self.wanted, scale = left / self.spread, float(scale) / self.spread
        self.wanted = torch.from_numpy(self.wanted).float()
        self.middle = scale * float(raw.mean())
        with torch.no_grad():
            for parameter in learner.last_layer().parameters():
                parameter *= scale

    def _sizes(self, side):
        return side.sizes if self.kind == "extensive" else np.ones(len(side.sizes))

    def _level(self, side):
        return self._sizes(side) * (self.constant + counts_of(side.frames, self.elements)[1] @ self.adds / side.sizes)

    def _raw(self, side, size):
        rows = batches(list(range(len(side.inputs))), size)
        parts = [self.learner.means([side.inputs[k] for k in some]).detach().reshape(-1) for some in rows]
        return torch.cat(parts).double().numpy()

    def side(self, path, most=None):
        return ValueSide(self.learner, path, most)

    def loss(self, rows):
        found = self.learner.means([self.train.inputs[k] for k in rows]).reshape(-1) - self.middle
        if self.kind == "class":
            return torch.nn.functional.binary_cross_entropy_with_logits(found + self.constant, self.wanted[rows])
        return self.learner.loss_of_values(found, self.wanted[rows])

    def predicted(self, side, size):
        self.learner.model.eval()
        found = self._raw(side, size) - self.middle
        if self.kind == "class":
            return 0.5 * (1 + np.tanh((found + self.constant) / 2))
        found = np.clip(found, float(self.wanted.min()), float(self.wanted.max()))
        return self._level(side) + self._sizes(side) * self.spread * found

    def score(self, side, size):
        return float(np.abs(self.predicted(side, size) - side.values).mean())

    def answer(self, side, size):
        return {"values": self.predicted(side, size).tolist()}


def learn(learner, job):
    """Train on one side until the time is over, and test; see the module."""
    began = time.perf_counter()
    goal = (Values if job.get("property") else Energies)(learner, job)
    validation = goal.side(job["validation"], _MOST_VALIDATED) if job["validation"] else None
    optimizer = torch.optim.AdamW([p for p in learner.model.parameters() if p.requires_grad], lr=learner.rate)
    generator = np.random.default_rng(job["seed"])
    best, least, steps, validated = None, math.inf, 0, 0
    count = len(goal.train.inputs)
    size = min(learner.batch, count)
    while True:
        done = (time.perf_counter() - began) / job["seconds"]
        if validation is not None and (done >= 1 or int(done * _VALIDATIONS) > validated):
            validated = int(done * _VALIDATIONS)
            found = goal.score(validation, size)
            if found < least:
                best, least = copy.deepcopy(learner.model.state_dict()), found
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learner.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        rows = generator.choice(count, size, replace=False).tolist()
        learner.model.train()
        optimizer.zero_grad()
        goal.loss(rows).backward()
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 10.0)
        optimizer.step()
        steps += 1
    if best is not None:
        learner.model.load_state_dict(best)
    test = goal.side(job["test"])
    return {"steps": steps, "frames": len(test.inputs), **goal.answer(test, size)}


def start(options):
    """See `measure.answer_jobs`."""
    make = LEARNERS[options.model]

    def run(job):
        torch.manual_seed(job["seed"])
        return learn(make(of_property=bool(job.get("property"))), job)

    return make().describe(), run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=LEARNERS, required=True)
    answer_jobs(start, parser)
