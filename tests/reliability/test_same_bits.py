"""R7: the same machine, versions and threads give the same bits, run after run and process after process."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from support import DTYPES, ROOT, batch_of, random_model, structures

from gfm_calc.calculator import GFMCalculator
from gfm_calc.derivatives import hessian


def digest_of_a_run(dtype: torch.dtype) -> str:
    """SHA-256 over predictions, training gradients, a Hessian and a short MD run of a small model."""
    model = random_model(dtype=dtype, properties=True)
    state = hashlib.sha256()

    def add(tensor) -> None:
        state.update(
            np.ascontiguousarray(tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor).tobytes()
        )

    batch = batch_of(model, *structures().values(), bulk("Cu", cubic=True) * (3, 3, 3))
    for prediction in model.predict(batch, list(model.specs), stresses=True).values():
        for name in ("energy", "energies", "forces", "virial", "stress", "stresses", "value"):
            if getattr(prediction, name) is not None:
                add(getattr(prediction, name))
    for gradient in training_gradients(model, batch):
        add(gradient)
    add(hessian(model, batch_of(model, structures()["wire"]), "first"))
    atoms = structures()["crystal"] * (2, 1, 1)
    atoms.calc = GFMCalculator(model, head="first")
    VelocityVerlet(atoms, timestep=0.1).run(5)
    add(atoms.positions)
    return state.hexdigest()


def training_gradients(model, batch):
    """Of a loss with forces in it, with respect to the weights: backward of backward."""
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        inputs = model.inputs(batch)
        vectors = inputs.edge_vector.detach().requires_grad_()
        energies = model.atom_energies(inputs._replace(edge_vector=vectors))
        (forces,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        loss = energies.square().mean() + forces.square().mean()
        return [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@pytest.fixture
def threads(request):
    """So many threads for one test: sums that depend on who comes first show with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.promise("R7", count=20)
@pytest.mark.parametrize(("name", "threads"), [("float32", 4), ("float64", 1)], indirect=["threads"])
def test_twenty_runs(name, threads):
    assert torch.get_num_threads() == threads
    assert len({digest_of_a_run(DTYPES[name]) for _ in range(20)}) == 1


@pytest.mark.slow
@pytest.mark.promise("R7", count=100)
def test_a_hundred_runs():
    assert len({digest_of_a_run(torch.float32) for _ in range(100)}) == 1


@pytest.mark.promise("R7", count=1)
def test_another_process():
    program = (
        f"import sys, torch; sys.path[:0] = ['tests', 'tests/reliability']; torch.set_num_threads({torch.get_num_threads()});"
        "from test_same_bits import digest_of_a_run; print(digest_of_a_run(torch.float64))"
    )
    wanted = digest_of_a_run(torch.float64)
    environment = os.environ | {"PYTHONHASHSEED": "1"}  # the order of sets of strings must not matter
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == wanted
