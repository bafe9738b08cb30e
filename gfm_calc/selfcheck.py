"""Does a model still give the numbers it shipped with?  Golden predictions, and the check that `gfm doctor` prints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import atomic_numbers, covalent_radii

from .graph import AtomicGraph
from .model import GFMModel, Prediction
from .predictor import predict_one

# Largest allowed difference to the golden numbers: energy eV/atom, forces eV/Å, stress eV/Å³.
TOLERANCE = {torch.float64: (1e-9, 1e-8, 1e-9), torch.float32: (2e-5, 2e-4, 2e-5)}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report: `name`, the largest deviation `found`, what is `allowed`, and the `unit`."""

    name: str
    found: float
    allowed: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether `found` is a number within `allowed`."""
        return bool(self.found <= self.allowed)


def probe_structures() -> list[Atoms]:
    """Distorted, so that no force vanishes by symmetry: molecules, crystals, a slab, an atom, far fragments."""
    fragments = molecule("H2O")
    fragments.extend(Atoms("N", positions=[[0, 0, 30.0]]))
    structures = [
        molecule("CH3CH2OH"), molecule("C6H6"), bulk("NaCl", "rocksalt", a=5.64), bulk("Cu", cubic=True),
        bulk("Si"), fcc111("Pt", (1, 1, 3), vacuum=8.0, periodic=True), Atoms("Fe"), fragments,
    ]  # fmt: skip
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.08, seed=seed)
        atoms.info.clear()
    return structures


def _predict(model: GFMModel, atoms: Atoms, head: str) -> Prediction:
    return predict_one(model, AtomicGraph.build(atoms, model.config.cutoff), [head])[head]


def golden_record(model: GFMModel) -> dict[str, Any]:
    """Structures of elements that each energy head has seen, and its float64 predictions of them, as JSON values.

    The model is computed in float64 from its stored weights; it is left as it was.
    """
    exact = _in_float64(model)
    structures: list[dict[str, Any]] = []
    predictions: dict[str, Any] = {}
    for head in exact.energy_heads:
        predictions[head] = {}
        for atoms in _probes_of(exact, head):
            probe = _to_json(atoms)
            if probe not in structures:
                structures.append(probe)
            found = _predict(exact, atoms, head)
            entry = {"energy": found.energy, "forces": found.forces}
            if atoms.pbc.all():
                entry["stress"] = found.stress
            number = str(structures.index(probe))
            predictions[head][number] = {key: tensor.tolist() for key, tensor in entry.items()}
    return {"structures": structures, "predictions": predictions}


def golden_structures(golden: dict[str, Any], head: str) -> list[Atoms]:
    """What a golden record holds predictions of by a head."""
    return [_from_json(golden["structures"][int(number)]) for number in golden["predictions"][head]]


def check_golden(model: GFMModel, golden: dict[str, Any]) -> list[Check]:
    """Compare `model` (in its own dtype, device and compilation) with its golden record."""
    allowed = TOLERANCE[model.dtype]
    worst = {"energy": 0.0, "forces": 0.0, "stress": 0.0}
    structures = [_from_json(entry) for entry in golden["structures"]]
    for head, entries in golden["predictions"].items():
        for index, entry in entries.items():
            atoms = structures[int(index)]
            found = _predict(model, atoms, head)
            for key, wanted in entry.items():
                tensor = getattr(found, key)
                difference = (tensor - torch.tensor(wanted, dtype=torch.float64)).abs().max().item()
                difference = difference / len(atoms) if key == "energy" else difference
                worst[key] = max(worst[key], difference) if difference == difference else float("nan")
    units = ("eV/atom", "eV/Å", "eV/Å³")
    return [
        Check(name=f"golden {key}", found=worst[key], allowed=limit, unit=unit)
        for key, limit, unit in zip(worst, allowed, units)
    ]


def check_derivatives(model: GFMModel, head: str) -> list[Check]:
    """Forces and stress against central differences of the energy, for the probe structures the head knows."""
    single = model.dtype == torch.float32
    step = 1e-2 if single else 1e-4
    force_limit, stress_limit = (2e-2, 5e-3) if single else (1e-6, 1e-7)
    worst_force = worst_stress = 0.0
    for atoms in _probes_of(model, head):
        if len(atoms) < 2:
            continue
        found = _predict(model, atoms, head)
        for index, axis in ((0, 0), (len(atoms) - 1, 2)):
            difference = _slope(model, head, atoms, partial(_shift, index=index, axis=axis), step)
            worst_force = max(worst_force, abs(difference + found.forces[index, axis].item()))
        if atoms.pbc.all():
            for row, column in ((0, 0), (0, 1)):
                difference = _slope(model, head, atoms, partial(_strain, row=row, column=column), step)
                expected = found.stress[0, row, column].item()
                worst_stress = max(worst_stress, abs(difference / atoms.get_volume() - expected))
    return [
        Check(name="forces = -dE/dr", found=worst_force, allowed=force_limit, unit="eV/Å"),
        Check(name="stress = dE/dstrain / V", found=worst_stress, allowed=stress_limit, unit="eV/Å³"),
    ]


def check_rotation(model: GFMModel, head: str) -> list[Check]:
    """Energy and forces of a rotated, reflected, translated and permuted molecule or crystal."""
    energy_limit, force_limit = (1e-10, 1e-9) if model.dtype == torch.float64 else (1e-5, 1e-4)
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    worst_energy = worst_force = 0.0
    for atoms in _probes_of(model, head):
        order = random.permutation(len(atoms))
        moved = atoms[order]
        moved.set_cell(atoms.cell.array @ turn)
        moved.positions = atoms.positions[order] @ turn + random.normal(size=3)
        before, after = _predict(model, atoms, head), _predict(model, moved, head)
        worst_energy = max(worst_energy, (before.energy - after.energy).abs().item() / len(atoms))
        turned = before.forces.numpy()[order] @ turn
        worst_force = max(worst_force, float(np.abs(turned - after.forces.numpy()).max()))
    return [
        Check(name="rotation, energy", found=worst_energy, allowed=energy_limit, unit="eV/atom"),
        Check(name="rotation, forces", found=worst_force, allowed=force_limit, unit="eV/Å"),
    ]


def _probes_of(model: GFMModel, head: str) -> list[Atoms]:
    """Structures of elements that a head knows: a check that meets none would pass without having looked."""
    spec = model.specs[head]
    water = molecule("H2O")
    water.rattle(0.03, seed=8)
    known = [atoms for atoms in (*probe_structures(), water) if not spec.unseen(atoms.numbers)]
    if spec.elements and ("bulk" in spec.periodicity or not known):
        pair = [atomic_numbers[spec.elements[0]], atomic_numbers[spec.elements[-1]]]
        side = 1.2 * 2 / 3**0.5 * sum(covalent_radii[z] for z in pair)
        crystal = Atoms(pair, scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[side] * 3, pbc=True)  # CsCl
        crystal.rattle(0.08, seed=9)
        known.append(crystal)
    return known


def _slope(model, head, atoms, move, step) -> float:
    """Central difference of fourth order."""
    energies = [_predict(model, move(atoms.copy(), k * step), head).energy.item() for k in (-2, -1, 1, 2)]
    return (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)


def _shift(atoms: Atoms, by: float, *, index: int, axis: int) -> Atoms:
    atoms.positions[index, axis] += by
    return atoms


def _strain(atoms: Atoms, by: float, *, row: int, column: int) -> Atoms:
    strain = np.eye(3)
    strain[row, column] += by / 2
    strain[column, row] += by / 2
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


def _in_float64(model: GFMModel) -> GFMModel:
    with torch.random.fork_rng(devices=[]):
        exact = GFMModel(model.config, list(model.specs.values()))
    exact.to(torch.float64)
    exact.load_state_dict(model.state_dict())
    return exact.requires_grad_(False).eval()


def _to_json(atoms: Atoms) -> dict[str, Any]:
    return {
        "numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": atoms.cell.array.tolist(),
        "pbc": [bool(p) for p in atoms.pbc],
    }  # fmt: skip


def _from_json(entry: dict[str, Any]) -> Atoms:
    return Atoms(entry["numbers"], positions=entry["positions"], cell=entry["cell"], pbc=entry["pbc"])
