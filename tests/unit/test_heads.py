"""Heads: the stack equals its heads one by one, references stay exact, an atom alone keeps its own."""

import copy

import numpy as np
import torch
from support import batch_of, head_spec, predict, random_model, structures

from gfm_calc.config import HeadSpec, ModelConfig
from gfm_calc.heads import EnergyHeads, PropertyHead, isolation_gate
from gfm_calc.stiffness import MODES


def test_stack_equals_a_head_alone():
    specs = [head_spec(name) for name in "abc"]
    generator = torch.Generator().manual_seed(0)
    stack = EnergyHeads(specs, 8, 5).requires_grad_(False)
    for parameter in stack.parameters():
        parameter.normal_(generator=generator)
    scalars, gate = torch.randn(7, 8, generator=generator), torch.rand(7, generator=generator)
    numbers = torch.tensor([1, 6, 8, 1, 92, 1, 6])
    found = stack(scalars, gate, numbers)
    for h in range(3):
        hidden = torch.nn.functional.silu(scalars @ stack.hidden[h] + stack.hidden_bias[h])
        alone = gate * ((hidden @ stack.output[h]) * stack.scale[h].float() + stack.shift[h][numbers])
        torch.testing.assert_close(found[h], alone)
    chosen = stack(scalars, gate, numbers, torch.tensor([2, 0]))
    torch.testing.assert_close(chosen, found[[2, 0]])


def test_gate():
    gate = isolation_gate(torch.tensor([0.0, 1e-12, 1.0, 50.0], dtype=torch.float64))
    assert gate[0] == 0.0
    assert 0 < gate[1] < 1e-11
    assert 0.94 < gate[2] < 0.96
    assert gate[3] == 1.0


def test_references_stay_double():
    """Totals of 1e4 eV would lose meV in single precision, also on the way there and back."""
    references = {"H": -13.605693122994, "U": -814_123.456789012}
    spec = HeadSpec(name="a", elements=("H", "U"), reference_energies=references)
    stack = EnergyHeads([spec], 4, 4).to(torch.float32).to(torch.float64).half().to(torch.float32)
    assert stack.hidden.dtype == torch.float32
    assert stack.reference.dtype == torch.float64
    assert stack.scale.dtype == torch.float64
    assert stack.reference[0, 92].item() == references["U"]
    assert "reference" not in stack.state_dict()


def test_intensive_and_extensive_properties():
    model = copy.deepcopy(random_model(properties=True))
    model.properties[1].stiffness.weights[:-1][MODES] = 0.0  # which waves there are depends on the cell
    crystal = structures()["crystal"]
    once, twice = batch_of(model, crystal), batch_of(model, crystal * (2, 1, 1))
    gap = [model.predict(b, ["gap"])["gap"].value.item() for b in (once, twice)]
    volume = [model.predict(b, ["volume"])["volume"].value.item() for b in (once, twice)]
    assert abs(gap[1] - gap[0]) < 1e-10 < abs(gap[0])
    assert abs(volume[1] - 2 * volume[0]) < 1e-9 < abs(volume[0])


def test_shapes_of_properties():
    model = random_model(properties=True)
    batch = batch_of(model, structures()["molecule"], structures()["slab"])
    found = model.predict(batch, ["gap", "population", "dipoles"])
    assert found["gap"].value.shape == (2,)
    assert found["population"].value.shape == (15,)
    assert found["dipoles"].value.shape == (15, 3)
    assert all(p.value.dtype == torch.float64 and p.energy is None for p in found.values())
    parts = found["dipoles"].split(batch.ptr.tolist())
    assert [len(part.value) for part in parts] == [9, 6]


def test_scale_and_shift_of_a_property():
    spec = HeadSpec(name="p", kind="atom_scalar", quantity="q", unit="e")
    head = PropertyHead(spec, ModelConfig(num_features=4, num_layers=2, head_width=4)).requires_grad_(False)
    numbers, batch = torch.tensor([1, 8]), torch.zeros(2, dtype=torch.int64)
    inputs = ([torch.ones(2, 4)] * 2, torch.ones(2, 3, 4), numbers, batch, torch.tensor([2]))
    plain = head(*inputs)
    head.scale.fill_(3.0)
    head.shift.fill_(-1.0)
    torch.testing.assert_close(head(*inputs), 3 * plain - 1)


def test_heads_differ():
    model, atoms = random_model(), structures()["molecule"]
    forces = [predict(model, atoms, head).forces.numpy() for head in model.energy_heads]
    assert np.abs(forces[0] - forces[1]).max() > 0.01
    assert np.abs(forces[1] - forces[2]).max() > 0.01
