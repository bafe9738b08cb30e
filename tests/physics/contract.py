"""What every encoder has to keep (promise R6): inherit `PhysicsContract`, name the encoder, done.

Bounds are those of the design, in float64 and float32; nothing is compared with an external number, everything with the
same model asked in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from support import DTYPES, UNCERTAINTIES, batch_of, predict, random_model, same, structures

STRUCTURES = structures()
PERIODIC = [name for name, atoms in STRUCTURES.items() if atoms.pbc.all()]
BOUND = [name for name, atoms in STRUCTURES.items() if len(atoms) > 1]
ENERGY = {torch.float64: 1e-10, torch.float32: 1e-5}  # eV/atom
FORCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # eV/Å
UNCERTAINTY = {torch.float64: 1e-10, torch.float32: 1e-4}  # of itself
KNOWN = ("second", "first")  # heads that know their errors, in an order of their own
STRESS = {torch.float64: 1e-10, torch.float32: 1e-5}  # eV/Å³
ORTHOGONAL, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
every_structure = pytest.mark.parametrize("name", STRUCTURES)
every_crystal = pytest.mark.parametrize("name", PERIODIC)
OF_SOME_SIZE = {"seed": 1}  # weights with which nothing is small by chance, see `test_the_random_weights_are_a_test`


def turned(atoms: Atoms, turn: np.ndarray) -> Atoms:
    """`atoms` with positions and cell multiplied by `turn` from the right."""
    result = atoms.copy()
    result.set_cell(atoms.cell.array @ turn)
    result.positions = atoms.positions @ turn
    return result


def deviation(first, second) -> float:
    """Largest absolute difference of two arrays or tensors; structures without a stress agree in having none."""
    difference = np.abs(np.asarray(first) - np.asarray(second))
    both = np.isnan(np.asarray(first)) & np.isnan(np.asarray(second))
    return float(np.where(both, 0.0, difference).max(initial=0.0))


def slopes(model, moved: list[Atoms], step: float) -> np.ndarray:
    """Derivatives by central differences of fourth order from structures at -2, -1, 1, 2 steps, one after another."""
    energies = model.predict(batch_of(model, *moved), [model.energy_heads[0]], forces=False)
    e = energies[model.energy_heads[0]].energy.numpy().reshape(-1, 4)
    return (e[:, 0] - 8 * e[:, 1] + 8 * e[:, 2] - e[:, 3]) / (12 * step)


@pytest.mark.promise("R6")
class PhysicsContract:
    """Subclasses set `encoder`, and `options` of the model where they are not the usual ones."""

    encoder: str
    options: Mapping[str, Any] = MappingProxyType({})

    @pytest.fixture(params=list(DTYPES))
    def model(self, request):
        return random_model(
            self.encoder,
            dtype=DTYPES[request.param],
            properties=True,
            uncertainty=KNOWN,
            **OF_SOME_SIZE,
            **self.options,
        )

    @pytest.fixture
    def exact(self):
        return random_model(
            self.encoder, dtype=torch.float64, properties=True, uncertainty=KNOWN, **OF_SOME_SIZE, **self.options
        )

    def agree(self, model, atoms: Atoms, other: Atoms, *, turn=None, order=None, copies: int = 1) -> None:
        """`other` is `atoms` turned, with its atoms in another order, repeated."""
        before, after = predict(model, atoms, uncertainty=True), predict(model, other, uncertainty=True)
        n = len(atoms)
        order = np.arange(n * copies) % n if order is None else order
        turn = np.eye(3) if turn is None else turn
        assert abs(after.energy.item() / copies - before.energy.item()) / n <= ENERGY[model.dtype]
        assert deviation(after.energies, before.energies[order]) <= ENERGY[model.dtype]
        assert deviation(after.forces, before.forces.numpy()[order] @ turn) <= FORCES[model.dtype]
        assert deviation(after.stress[0], turn.T @ before.stress[0].numpy() @ turn) <= STRESS[model.dtype]
        wanted = before.energy_uncertainty.item()
        assert abs(after.energy_uncertainty.item() / copies - wanted) <= UNCERTAINTY[model.dtype] * max(wanted, n)
        wanted = before.forces_uncertainty.numpy()[order]
        assert deviation(after.forces_uncertainty, wanted) <= UNCERTAINTY[model.dtype] * max(1, wanted.max())

    # ---- symmetries ----

    def test_the_random_weights_are_a_test(self, model):
        """Derivatives of zero would agree with anything."""
        for name in BOUND:
            found = predict(model, STRUCTURES[name])
            assert 0.02 < found.forces.abs().max() < 100, name
            if name in PERIODIC:
                assert found.stress.abs().max() > 1e-4, name
                assert torch.triu(found.stress[0], 1).abs().max() > 1e-5, name
        charged, neutral = STRUCTURES["ion"], STRUCTURES["ion"].copy()
        neutral.info.clear()
        assert abs(predict(model, charged).energy - predict(model, neutral).energy) > 1e-3

    @every_structure
    def test_rotation(self, model, name):
        turn = ORTHOGONAL * np.sign(np.linalg.det(ORTHOGONAL))
        self.agree(model, STRUCTURES[name], turned(STRUCTURES[name], turn), turn=turn)

    @every_structure
    def test_reflection(self, model, name):
        turn = -ORTHOGONAL * np.sign(np.linalg.det(ORTHOGONAL))
        self.agree(model, STRUCTURES[name], turned(STRUCTURES[name], turn), turn=turn)

    @every_structure
    def test_translation(self, model, name):
        moved = STRUCTURES[name].copy()
        moved.translate([3.1, -47.7, 1.9])
        self.agree(model, STRUCTURES[name], moved)

    @every_structure
    def test_wrapping(self, model, name):
        atoms = STRUCTURES[name]
        random = np.random.default_rng(0)
        shifts = random.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
        moved = atoms.copy()
        moved.positions += shifts @ atoms.cell.array
        self.agree(model, atoms, moved)
        moved.wrap()
        self.agree(model, atoms, moved)

    @every_structure
    def test_permutation(self, model, name):
        atoms = STRUCTURES[name]
        order = np.random.default_rng(1).permutation(len(atoms))
        self.agree(model, atoms, atoms[order], order=order)

    @pytest.mark.parametrize("name", [n for n, a in STRUCTURES.items() if a.pbc.any()])
    def test_supercell(self, model, name):
        """Extensive: twice the cell, twice the energy, the same forces and stress."""
        repeat = np.where(STRUCTURES[name].pbc, (2, 1, 3), 1)
        self.agree(model, STRUCTURES[name], STRUCTURES[name].repeat(repeat), copies=int(np.prod(repeat)))

    @every_crystal
    def test_another_basis_of_the_lattice(self, model, name):
        atoms = STRUCTURES[name]
        other = atoms.copy()
        other.set_cell(np.array([[1, 1, 0], [0, 1, 0], [-1, 0, 1]]) @ atoms.cell.array)
        self.agree(model, atoms, other)

    @pytest.mark.parametrize("structure", ["molecule", "crystal"])
    def test_property_heads_turn_with_the_structure(self, model, structure):
        atoms = STRUCTURES[structure]
        batch, other = batch_of(model, atoms), batch_of(model, turned(atoms, ORTHOGONAL))
        names = [name for name in model.property_heads if structure == "crystal" or not model.specs[name].stiffness]
        before, after = model.predict(batch, names), model.predict(other, names)
        for name in names:
            turn = ORTHOGONAL if name == "dipoles" else 1.0
            wanted = before[name].value.numpy() @ turn if name == "dipoles" else before[name].value
            # Second derivatives are large numbers.
            large = max(1.0, float(before[name].value.abs().max())) if model.specs[name].stiffness else 1.0
            assert deviation(after[name].value, wanted) <= FORCES[model.dtype] * large, name
            assert before[name].value.abs().max() > 1e-3

    # ---- derivatives ----

    @pytest.mark.parametrize("name", BOUND)
    def test_forces_are_the_derivative(self, exact, name):
        atoms, step = STRUCTURES[name], 2e-4
        moved = []
        for index in np.ndindex(len(atoms), 3):
            for k in (-2, -1, 1, 2):
                other = atoms.copy()
                other.positions[index] += k * step
                moved.append(other)
        numeric = -slopes(exact, moved, step).reshape(-1, 3)
        assert deviation(predict(exact, atoms).forces, numeric) <= 1e-6

    @every_crystal
    def test_stress_is_the_derivative(self, exact, name):
        atoms, step = STRUCTURES[name], 1e-4
        moved = []
        for row, column in np.ndindex(3, 3):
            for k in (-2, -1, 1, 2):
                strain = np.eye(3)
                strain[row, column] += k * step / 2
                strain[column, row] += k * step / 2
                other = atoms.copy()
                other.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                moved.append(other)
        numeric = slopes(exact, moved, step).reshape(3, 3) / atoms.get_volume()
        assert deviation(predict(exact, atoms).stress[0], numeric) <= 1e-7

    @pytest.mark.parametrize("name", [n for n in BOUND if n not in PERIODIC])
    def test_virial_is_the_derivative(self, exact, name):
        """Also of molecules, which have no stress, and of slabs and wires, which have it along their periodic axes only."""
        atoms, step = STRUCTURES[name], 1e-4
        moved = []
        for row, column in np.ndindex(3, 3):
            for k in (-2, -1, 1, 2):
                strain = np.eye(3)
                strain[row, column] += k * step / 2
                strain[column, row] += k * step / 2
                moved.append(turned(atoms, strain))
        found = predict(exact, atoms)
        assert deviation(found.virial[0], slopes(exact, moved, step).reshape(3, 3)) <= 1e-6
        if not atoms.pbc.any():
            assert found.stress.isnan().all()
            return
        basis, _ = np.linalg.qr(atoms.cell.array[atoms.pbc].T)
        inside = basis @ basis.T @ found.virial[0].numpy() @ basis @ basis.T
        assert deviation(found.stress[0], torch.from_numpy(inside / atoms.get_volume())) <= 1e-12

    @every_structure
    def test_single_precision_follows_double(self, exact, name):
        single = random_model(
            self.encoder, dtype=torch.float32, properties=True, uncertainty=KNOWN, **OF_SOME_SIZE, **self.options
        )
        atoms = STRUCTURES[name]
        found, wanted = (predict(model, atoms, uncertainty=True) for model in (single, exact))
        for tensor in UNCERTAINTIES:
            np.testing.assert_allclose(getattr(found, tensor), getattr(wanted, tensor), rtol=UNCERTAINTY[torch.float32])
        assert deviation(found.energy, wanted.energy) / len(atoms) <= ENERGY[torch.float32]
        assert deviation(found.forces, wanted.forces) <= FORCES[torch.float32]
        assert deviation(found.stress, wanted.stress) <= STRESS[torch.float32]

    @every_structure
    def test_forces_sum_to_zero(self, model, name):
        atoms = STRUCTURES[name]
        forces = predict(model, atoms).forces.numpy()
        assert np.abs(forces.sum(axis=0)).max() <= FORCES[model.dtype]
        if not atoms.pbc.any():
            torque = np.cross(atoms.positions - atoms.positions.mean(axis=0), forces).sum(axis=0)
            assert np.abs(torque).max() <= 10 * FORCES[model.dtype]  # ångströms of lever

    # ---- smoothness and limits ----

    def test_crossing_the_cutoff(self, model):
        """Nothing jumps when a pair enters the neighbour list, neither energy nor force."""
        cutoff, step = model.config.cutoff, 1e-6
        for name, extra in (("pair", None), ("third atom", [1.0, 0.4, 0.0])):
            found = []
            for distance in (cutoff - step, cutoff, cutoff + step):
                atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, distance]])
                if extra is not None:
                    atoms.append("H")
                    atoms.positions[2] = extra
                found.append(predict(model, atoms))
            edges = [
                batch_of(model, Atoms("CO", positions=[[0, 0, 0], [0, 0, cutoff + d]])).num_edges for d in (-step, step)
            ]
            assert edges == [2, 0]
            # The third atom's own slope over 2e-6 Å is no jump: compare with the step before.
            jump = abs((found[0].energy + found[2].energy - 2 * found[1].energy).item())
            assert jump <= (1e-12 if model.dtype == torch.float64 else 1e-5), name
            assert deviation(found[0].forces, found[2].forces) <= FORCES[model.dtype], name

    @pytest.mark.parametrize("crystal", ["Cu", "Si", "NaCl"])
    def test_forces_are_smooth_at_symmetric_sites(self, exact, crystal):
        """Vectors that vanish by symmetry must not leave a kink: the slope of a force is the same at every step."""
        ideal = {"Cu": bulk("Cu", cubic=True), "Si": bulk("Si"), "NaCl": bulk("NaCl", "rocksalt", a=5.64)}[crystal] * (
            2,
            1,
            1,
        )
        found = []
        for step in (1e-2, 1e-3, 1e-4):
            forces = []
            for sign in (1, -1):
                atoms = ideal.copy()
                atoms.positions[0, 0] += sign * step
                forces.append(predict(exact, atoms).forces[0, 0].item())
            found.append((forces[0] - forces[1]) / (2 * step))
        np.testing.assert_allclose(found[1:], found[0], rtol=0.01)

    def test_isolated_atom_returns_its_reference_energy(self, model):
        for symbol in ("H", "C", "Fe", "U", "Og"):
            for options in ({}, {"cell": [30, 30, 30], "pbc": True}):
                for head in model.energy_heads:
                    found = predict(model, Atoms(symbol, **options), head)
                    assert found.energy.item() == model.specs[head].reference_energies[symbol]
                    assert not found.forces.any()
        sure = predict(model, Atoms("Fe"), uncertainty=True)
        assert sure.energy_uncertainty.item() == sure.forces_uncertainty.item() == 0
        ion = Atoms("Fe")
        ion.info.update(charge=2, spin=5)
        assert predict(model, ion).energy.item() == model.specs["first"].reference_energies["Fe"]

    @pytest.mark.parametrize("distance", [8.0, 500.0, 1e6])
    def test_far_fragments_add_up(self, model, distance):
        first, second = STRUCTURES["molecule"], STRUCTURES["fragments"][:3]
        moved = second.copy()
        moved.translate([distance, 0, 0.3 * distance])
        parts, whole = [predict(model, part) for part in (first, moved)], predict(model, first + moved)
        difference = abs(whole.energy.item() - sum(p.energy.item() for p in parts))
        assert difference / len(first + moved) <= ENERGY[model.dtype]
        assert deviation(whole.forces, torch.cat([p.forces for p in parts])) <= FORCES[model.dtype]

    # ---- bookkeeping ----

    def test_batch_equals_singles(self, model):
        several = list(STRUCTURES.values())
        batch = batch_of(model, *several)
        everything = {"stresses": True, "uncertainty": True}
        parts = model.predict(batch, ["second"], **everything)["second"].split(batch.ptr.tolist())
        for name, atoms, part in zip(STRUCTURES, several, parts):
            single = predict(model, atoms, "second", **everything)
            for tensor in UNCERTAINTIES:
                np.testing.assert_allclose(
                    getattr(part, tensor), getattr(single, tensor), rtol=UNCERTAINTY[model.dtype]
                )
            assert deviation(part.energy, single.energy) / len(atoms) <= ENERGY[model.dtype], name
            assert deviation(part.forces, single.forces) <= FORCES[model.dtype], name
            assert deviation(part.stress, single.stress) <= STRESS[model.dtype], name
            assert deviation(part.stresses, single.stresses) <= STRESS[model.dtype], name

    def test_batch_of_properties_equals_singles(self, model):
        several = list(STRUCTURES.values())
        batch = batch_of(model, *several)
        for head in model.property_heads:
            parts = model.predict(batch, [head])[head].split(batch.ptr.tolist())
            for name, atoms, part in zip(STRUCTURES, several, parts):
                assert deviation(part.value, predict(model, atoms, head).value) <= FORCES[model.dtype], (head, name)

    @every_structure
    def test_shares_sum_to_the_whole(self, model, name):
        found = predict(model, STRUCTURES[name], stresses=True)
        assert abs(found.energies.sum() - found.energy[0]) / len(STRUCTURES[name]) <= 1e-12 * abs(found.energy[0])
        if name in PERIODIC:
            assert deviation(found.stresses.sum(dim=0), found.stress[0]) <= 1e-12
            assert torch.equal(found.stress, found.stress.transpose(1, 2))

    def test_several_heads_equal_single_calls(self, model):
        for name, atoms in STRUCTURES.items():
            batch = batch_of(model, atoms)
            together = model.predict(batch, ["third", "gap", "first", "second"])
            assert list(together) == ["third", "gap", "first", "second"]
            for head, found in together.items():
                alone = model.predict(batch, [head])[head]
                if head == "gap":
                    assert same(found, alone)
                    continue
                assert deviation(found.energy, alone.energy) / len(atoms) <= ENERGY[model.dtype], name
                assert deviation(found.forces, alone.forces) <= FORCES[model.dtype], name
                assert deviation(found.stress, alone.stress) <= STRESS[model.dtype], name

    @every_structure
    def test_energy_alone_equals_energy_with_forces(self, model, name):
        alone, both = predict(model, STRUCTURES[name], forces=False), predict(model, STRUCTURES[name])
        assert alone.forces is None and alone.stress is None
        assert torch.equal(alone.energy, both.energy)
        assert torch.equal(alone.energies, both.energies)
