"""What is compiled computes what is written; where it does not, training ends before it begins."""

from types import SimpleNamespace

import pytest
import torch
from support import random_model
from torch import nn
from torch._dynamo import config as dynamo
from torch._inductor.scheduler import SchedulerNode

from gfm_calc.compiling import compiled, gradients_inside
from gfm_calc.train import compilation
from gfm_calc.train.compilation import WrongStepError, compiled_objective, disagreement
from gfm_calc.train.objective import head_slots

ATOMS, WIDTH = 600, 16


def own_energies(update, stack, scalars, vectors, labels):
    """The last update of an encoder and a head for each atom, in bfloat16: a loss of the gradients, and one of these."""
    with torch.autocast("cpu", torch.bfloat16):
        known, _ = update(scalars, vectors)
        own = stack.own(known, *labels)
    gradients = torch.autograd.grad(own.sum(), [scalars, vectors], create_graph=True)
    return sum(gradient.square().sum() for gradient in gradients), gradients[1].detach()


def compiler():
    """What a compilation changes of torch while it runs."""
    return SchedulerNode.recompute_size_and_body, torch.compiler.config.cache_key_tag, dynamo.trace_autograd_ops


def test_gradients_through_gathered_rows():
    """torch.compile alone gives gradients of zero here: it multiplies with a sum before it has been taken."""
    model = random_model(dtype=torch.float32, num_features=WIDTH, num_layers=1, norm="soft")
    random = torch.Generator().manual_seed(0)
    scalars = torch.randn(ATOMS, WIDTH, generator=random)
    vectors = torch.randn(ATOMS, 3, WIDTH, generator=random) / 10
    gate, numbers = torch.rand(ATOMS, generator=random), torch.randint(1, 9, (ATOMS,), generator=random)
    head = torch.arange(3).repeat_interleave(torch.tensor([372, 180, 48]))
    labels = gate, numbers, head, *head_slots(head, 3)
    found, before = [], compiler()
    with gradients_inside():
        for function in (own_energies, compiled(own_energies)):
            inputs = [scalars.clone().requires_grad_(), vectors.clone().requires_grad_()]
            loss, forces = function(model.encoder.updates[0], model.energy_stack, *inputs, labels)
            found.append((forces, *torch.autograd.grad(loss, inputs)))
    for written, other in zip(*found, strict=True):
        assert written.norm() > 0 and (other - written).norm() < 0.03 * written.norm()
    assert compiler() == before  # what others compile is left to torch


class Slope:
    """An objective of one parameter, with a fault in what is compiled of it; counts how often it is asked."""

    precision = "float32"

    def __init__(self, parts: float = 1.0, gradient: float = 1.0):
        self.faults, self.asked = (parts, gradient), 0

    def __call__(self, model, vectors, inputs, labels, mechanical):
        self.asked += 1
        loss = model.weight.sum() * vectors.sum()
        return loss * self.faults[1], torch.stack([loss, 2 * loss]).detach().unsqueeze(0) * self.faults[0]

    def parameters(self):
        return []


NOT_FINITE = SimpleNamespace(edge_vector=torch.full((1, 3), torch.inf), totals=None)
ONE = SimpleNamespace(edge_vector=torch.ones(1, 3), totals=None)
CHARGED = SimpleNamespace(edge_vector=torch.ones(1, 3), totals=torch.ones(1, 2))
LABELS = SimpleNamespace(structure_head=torch.zeros(1, dtype=torch.int64))


def begun(monkeypatch, fault, steps, *, elsewhere=(), compare=True):
    """(what is used, as it is written) of a run that begins with batches of these inputs."""
    model, written, told = nn.Linear(2, 1, bias=False), Slope(), []
    nn.init.ones_(model.weight)
    monkeypatch.setattr(compilation, "compiled", lambda function: fault)

    def tell(own):
        told.append(own)
        return [own, list(elsewhere)]

    batches = [[(None, inputs, LABELS, True) for inputs in step] for step in steps]
    how = {"compare": compare, "clear": model.zero_grad, "tell": tell}
    with compiled_objective(written, model, batches, **how) as used:
        assert model.weight.grad is None  # nothing of the comparison is left for the first step
        assert len(told) == compare
        return used, written


@pytest.mark.parametrize(
    ("fault", "steps", "elsewhere", "said"),
    [
        (Slope(parts=1.5), [[ONE]], [], "a part of the loss is 9 where it should be 6"),
        (Slope(gradient=0.5), [[ONE]], [], "the gradient of the loss is off by 50%"),
        (Slope(parts=float("nan")), [[ONE]], [], "a part of the loss is nan"),
        (Slope(parts=1.5), [[NOT_FINITE], [ONE]], [], "a part of the loss is 9"),
        (Slope(), [[ONE]], ["another process's"], "another process's"),
        (Slope(), [], ["of one that has batches"], "of one that has batches"),
    ],
)  # fmt: skip
def test_a_wrong_step_ends_the_run_before_it_begins(monkeypatch, fault, steps, elsewhere, said):
    with pytest.raises(WrongStepError, match=said) as error:
        begun(monkeypatch, fault, steps, elsewhere=elsewhere)
    assert "run.compile=false" in str(error.value) and "\n" not in str(error.value)


def test_what_is_right_is_used(monkeypatch):
    fast = Slope()
    used, written = begun(monkeypatch, fast, [[ONE, ONE], [CHARGED], [ONE]])
    assert used is fast and fast.asked == written.asked == 2  # each kind of batch once
    fast = Slope(parts=1.5)
    used, written = begun(monkeypatch, fast, [[ONE], [ONE]], compare=False)  # a resumed run is what it was
    assert used is fast and (fast.asked, written.asked) == (1, 0)


def test_what_disagrees():
    one, gradient = torch.tensor([[1.0, 0.01]]), torch.ones(3)
    small, off, heads = torch.tensor([[1.01, 0.0108]]), torch.tensor([[1.1, 0.01]]), torch.tensor([[1.0], [0.1]])
    assert not disagreement((one, gradient), (small, gradient), "float32")  # of small terms much may be rounding
    assert disagreement((one, gradient), (small, gradient), "float64")
    assert disagreement((one, gradient), (off, gradient), "float32")
    assert not disagreement((one, gradient), (off, gradient * 1.2), "bf16")
    assert disagreement((one, gradient), (off, gradient * 1.4), "bf16")
    assert disagreement((one, gradient), (one, gradient * torch.nan), "bf16")
    assert disagreement((heads, gradient), (heads * torch.tensor([[1.0], [0.5]]), gradient), "bf16")  # one head of two
    signed = torch.tensor([[0.5], [-0.5]])  # with learnt weights terms may cancel
    assert not disagreement((signed, gradient), (signed * 1.01, gradient), "float32")
