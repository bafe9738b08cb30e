"""What is compiled computes what is written; where it does not, training says so and goes on as written."""

from types import SimpleNamespace

import pytest
import torch
from support import random_model
from torch import nn

from gfm_calc.compiling import compiled, gradients_inside
from gfm_calc.train import compilation
from gfm_calc.train.compilation import compiled_objective, disagreement
from gfm_calc.train.objective import head_slots

ATOMS, WIDTH = 600, 16


def own_energies(update, stack, scalars, vectors, labels):
    """The last update of an encoder and a head for each atom, in bfloat16: a loss of the gradients, and one of these."""
    with torch.autocast("cpu", torch.bfloat16):
        known, _ = update(scalars, vectors)
        own = stack.own(known, *labels)
    gradients = torch.autograd.grad(own.sum(), [scalars, vectors], create_graph=True)
    return sum(gradient.square().sum() for gradient in gradients), gradients[1].detach()


def test_gradients_through_gathered_rows():
    """torch.compile alone gives gradients of zero here: it multiplies with a sum before it has been taken."""
    model = random_model(dtype=torch.float32, num_features=WIDTH, num_layers=1, norm="soft")
    random = torch.Generator().manual_seed(0)
    scalars = torch.randn(ATOMS, WIDTH, generator=random)
    vectors = torch.randn(ATOMS, 3, WIDTH, generator=random) / 10
    gate, numbers = torch.rand(ATOMS, generator=random), torch.randint(1, 9, (ATOMS,), generator=random)
    head = torch.arange(3).repeat_interleave(torch.tensor([372, 180, 48]))
    labels = gate, numbers, head, *head_slots(head, 3)
    found = []
    with gradients_inside():
        for function in (own_energies, compiled(own_energies)):
            inputs = [scalars.clone().requires_grad_(), vectors.clone().requires_grad_()]
            loss, forces = function(model.encoder.updates[0], model.energy_stack, *inputs, labels)
            found.append((forces, *torch.autograd.grad(loss, inputs)))
    for written, other in zip(*found, strict=True):
        assert written.norm() > 0 and (other - written).norm() < 0.03 * written.norm()


class Slope:
    """An objective of one parameter, with a fault in what is compiled of it."""

    precision = "float32"

    def __init__(self, parts: float = 1.0, gradient: float = 1.0):
        self.parts, self.gradient = parts, gradient

    def __call__(self, model, vectors, inputs, labels, mechanical):
        loss = model.weight.sum() * vectors.sum()
        return loss * self.gradient, torch.stack([loss, 2 * loss]).detach().unsqueeze(0) * self.parts


@pytest.mark.parametrize(
    ("fault", "elsewhere", "said"),
    [
        (Slope(), [], ""), (Slope(parts=1.5), [], "its losses are 9, 18 where they should be 6, 12"),
        (Slope(gradient=0.5), [], "the gradient of its loss is off by 50%"),
        (Slope(parts=float("nan")), [], "its losses are nan"), (Slope(), ["another process's"], "another process's"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_not_used(monkeypatch, fault, elsewhere, said):
    model, lines = nn.Linear(2, 1, bias=False), []
    nn.init.ones_(model.weight)
    monkeypatch.setattr(compilation, "compiled", lambda function: fault)
    inputs = SimpleNamespace(edge_vector=torch.ones(1, 3), totals=None)
    step, written = [(None, inputs, None, True)], Slope()

    def tell(own):
        return [own, elsewhere]

    with compiled_objective(written, model, [step, step], model.zero_grad, tell, lines.append) as used:
        assert used is (written if said else fault)
    assert len(lines) == bool(said) and all(said in line and "\n" not in line for line in lines)
    assert model.weight.grad is None  # nothing of the comparison is left for the first step


def test_what_disagrees():
    one, gradient = torch.tensor([1.0, 0.01]), torch.ones(3)
    assert not disagreement(
        (one, gradient), (torch.tensor([1.01, 0.0108]), gradient), "float32"
    )  # small terms are noise
    assert disagreement((one, gradient), (torch.tensor([1.1, 0.01]), gradient), "float32")
    assert not disagreement((one, gradient), (torch.tensor([1.1, 0.01]), gradient * 1.2), "bf16")
    assert disagreement((one, gradient), (torch.tensor([1.1, 0.01]), gradient * 1.4), "bf16")
    assert not disagreement(
        (one * torch.inf, gradient), (one, gradient), "bf16"
    )  # a bad batch is dealt with in training
    assert disagreement((one, gradient), (one, gradient * torch.nan), "bf16")
