"""Models and structures that the tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import chemical_symbols

from gfm_calc.config import MAX_ATOMIC_NUMBER, HeadSpec, ModelConfig
from gfm_calc.finetune.combine import with_stiffness
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel, Prediction
from gfm_calc.uncertainty import ErrorHeads

ROOT = Path(__file__).resolve().parent.parent
ALL_ELEMENTS = tuple(chemical_symbols[1 : MAX_ATOMIC_NUMBER + 1])
UNCERTAINTIES = ("energy_uncertainty", "forces_uncertainty")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def head_spec(name: str, *, seed: int = 0, elements=ALL_ELEMENTS, **values) -> HeadSpec:
    """A card with random reference energies for `elements`."""
    random = np.random.default_rng(seed)
    references = {symbol: float(random.normal(-500, 300)) for symbol in elements}
    values = {"elements": elements, "reference_energies": references, "charges": (-3, 3), "max_excess_spin": 6} | values
    return HeadSpec(name=name, **values)


@cache
def random_model(
    encoder: str = "painn", *, dtype: torch.dtype = torch.float64, seed: int = 0, heads=("first", "second", "third"),
    properties: bool = False, elements=ALL_ELEMENTS, uncertainty=(), **config,
) -> GFMModel:  # fmt: skip
    """A small model, shared by all who ask for the same: leave it as it is.

    Its random weights give forces of the order of 1 eV/Å, so that nothing vanishes by chance.  The heads named in
    `uncertainty` know their errors.
    """
    values = {"num_features": 16, "num_layers": 2, "num_radial": 6, "cutoff": 4.5, "head_width": 12} | config
    specs = [head_spec(name, seed=index, elements=elements) for index, name in enumerate(heads)]
    if properties:
        specs += [
            HeadSpec(
                name="gap", kind="scalar", extensive=False, quantity="gap", unit="eV", elements=elements, landmarks=3
            ),
            HeadSpec(
                name="volume",
                kind="scalar",
                extensive=True,
                quantity="volume",
                unit="Å³",
                elements=elements,
                landmarks=2,
            ),
            HeadSpec(name="population", kind="atom_scalar", quantity="population", unit="e", elements=elements),
            HeadSpec(name="dipoles", kind="atom_vector", quantity="dipole", unit="e Å", elements=elements),
        ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GFMModel(ModelConfig(encoder=encoder, **values), specs)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if (
                    "properties.1.landmarks." in name
                ):  # of a sum: younger than all else, hence from a source of their own
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
                elif name.endswith(("bias", "share.weight", "energy_stack.shift")) or ".landmarks." in name:
                    parameter.normal_(std=0.3)
            model.energy_stack.output.mul_(1.5)
        model.energy_stack.scale.uniform_(0.5, 1.5)
        model.uncertainty = random_errors(uncertainty, model.config.num_features) if uncertainty else None
    for head in set(uncertainty) & set(model.property_heads):
        model.uncertainty.figures[head]["unit"] = 0.5
    if properties:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = with_stiffness(model, "volume", heads[0])
            model.properties[1].stiffness.weights.normal_()
    return model.requires_grad_(False).eval().to(dtype=dtype)


def random_errors(heads, num_features: int, *, members: int = 2, width: int = 5) -> ErrorHeads:
    """Expected errors without sense, of the order of 1."""
    shapes = {"hidden": (2 * num_features, width), "hidden_bias": (width,), "output": (width, 2), "output_bias": (2,)}
    tensors = {name: 0.3 * torch.randn(len(heads), members, *shape) for name, shape in shapes.items()}
    return ErrorHeads(tensors, {head: {"structures": 7 + k} for k, head in enumerate(heads)})


def structures() -> dict[str, Atoms]:
    """One of every kind that a contract has to hold for; distorted, so that nothing vanishes by symmetry."""
    pair = molecule("H2O")
    pair.extend(Atoms("N2", positions=[[0, 0, 30.0], [0.2, 0.9, 30.4]]))
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    skewed = bulk("Si")
    skewed.set_cell(np.array([[1, 2, 0], [0, 1, -1], [0, 0, 1]]) @ skewed.cell.array)  # the same lattice, a worse basis
    mirrored = bulk("ZnO", "wurtzite", a=3.25, c=5.2)
    mirrored.set_cell(mirrored.cell.array[[1, 0, 2]])
    wire = Atoms("AuC", positions=[[0.3, 0, 0], [1.9, 0.6, 0.4]], cell=[3.1, 9, 9], pbc=(True, False, False))
    ion = molecule("CH3CHO")
    tiny = bulk("Cu") + Atoms("H", positions=[[1.8, 0.2, 0.3]])
    found = {
        "molecule": molecule("CH3CH2OH"), "crystal": crystal, "slab": fcc111("Pt", (1, 2, 3), vacuum=7.0),
        "atom": Atoms("Fe"), "fragments": pair, "tiny cell": tiny, "skewed cell": skewed,
        "left-handed cell": mirrored, "wire": wire, "periodic slab": fcc111("Al", (1, 1, 3), vacuum=7.0, periodic=True),
        "ion": ion,
    }  # fmt: skip
    assert mirrored.cell.handedness == -1
    for seed, atoms in enumerate(found.values()):
        if len(atoms) > 1:
            atoms.rattle(0.12, seed=seed)
        atoms.info.clear()
    ion.info.update(charge=1, spin=4)
    return found


def batch_of(model: GFMModel, *several: Atoms) -> GraphBatch:
    """Structures as a batch for `model`."""
    return GraphBatch.from_graphs([AtomicGraph.build(atoms, model.config.cutoff) for atoms in several])


def predict(model: GFMModel, atoms: Atoms, head: str | None = None, **options) -> Prediction:
    """One structure, one head."""
    head = model.energy_heads[0] if head is None else head
    return model.predict(batch_of(model, atoms), [head], **options)[head]


def same(first: Prediction, second: Prediction) -> bool:
    """Whether two predictions agree bit for bit (NaN equals NaN)."""
    names = ("energy", "energies", "forces", "virial", "stress", "stresses", "value", *UNCERTAINTIES)
    for name in names:
        a, b = getattr(first, name), getattr(second, name)
        if (a is None) != (b is None):
            return False
        if a is not None and not np.array_equal(a.numpy(), b.numpy(), equal_nan=True):
            return False
    return True
