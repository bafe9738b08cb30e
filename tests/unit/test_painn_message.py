"""The message step in C++ is that in torch, to its second derivatives; without a compiler there is the one in torch."""

import pytest
import torch
from ase.build import molecule
from support import random_model

from gfm_calc import native
from gfm_calc.config import ModelConfig
from gfm_calc.encoders import painn_message
from gfm_calc.encoders.base import EdgeGeometry
from gfm_calc.encoders.painn import Message
from gfm_calc.graph import AtomicGraph, GraphBatch

ATOMS, EDGES, RADIAL = 11, 70, 6


@pytest.fixture(autouse=True)
def a_compiler_is_here():
    if not painn_message._is_there(torch.float32):
        pytest.skip("no C++ compiler on this machine: the message step runs in torch")


def case(width: int, vectors: bool, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor | None]:
    """features, vectors, basis, unit, filter, edges."""
    draw = torch.Generator().manual_seed(seed)
    parts = 3 if vectors else 2
    shapes = [(ATOMS, parts * width), (ATOMS, 3, width), (EDGES, RADIAL), (EDGES, 3), (parts * width, RADIAL)]
    tensors = [torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    edges = torch.randint(0, ATOMS, (2, EDGES), generator=draw)
    return [tensors[0], tensors[1] if vectors else None, *tensors[2:], edges]


def in_torch(features, vectors, basis, unit, filter, edges):
    config = ModelConfig(num_features=features.shape[1] // (2 if vectors is None else 3), num_radial=RADIAL)
    step = Message(config, first=vectors is None)
    del step.filter
    geometry = EdgeGeometry(edges, unit[:, 0], unit, basis, unit[:, 0])
    step.filter = lambda radial: radial @ filter.t()  # type: ignore[assignment]
    return step._sums(features, vectors, geometry)


def numbers(function, tensors) -> list[torch.Tensor]:
    """Sums, first derivatives of a loss that is not linear in them, and the derivatives of a loss of those, as training has."""
    draw = torch.Generator().manual_seed(1)
    inputs = [t for t in tensors[:5] if t is not None]
    scalar, vector = function(*tensors)
    loss = (scalar.sin() * torch.randn(scalar.shape, generator=draw)).sum() + vector.square().sum()
    geometry = [t for t in inputs if t is not tensors[4]]
    first = torch.autograd.grad(loss, geometry, create_graph=True)
    inner = sum((f * torch.randn(f.shape, generator=draw)).square().sum() for f in first)
    return [scalar, vector, *first, *torch.autograd.grad(inner + loss, inputs)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vectors", [False, True], ids=["first layer", "later layer"])
@pytest.mark.parametrize("width", [4, 8, 37, 64, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_and_derivatives_are_those_of_torch(dtype, width, vectors, threads, monkeypatch):
    monkeypatch.setattr(painn_message, "_THREADED", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = numbers(painn_message.message, case(width, vectors, dtype))
        again = numbers(painn_message.message, case(width, vectors, dtype))
    finally:
        torch.set_num_threads(before)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for own, same, expected in zip(ours, again, numbers(in_torch, case(width, vectors, dtype)), strict=True):
        assert torch.equal(own, same)  # the same bits
        assert (own - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_structure_without_edges():
    tensors = case(16, True, torch.float32)
    tensors[2], tensors[3], tensors[5] = (
        torch.zeros(0, RADIAL, requires_grad=True), torch.zeros(0, 3, requires_grad=True), torch.zeros(2, 0, dtype=torch.int64)
    )  # fmt: skip
    scalar, vector = painn_message.message(*tensors)
    assert scalar.shape == (ATOMS, 16) and vector.shape == (ATOMS, 3, 16) and not scalar.any() and not vector.any()


def test_derivatives_that_are_missing_are_refused():
    tensors = case(16, True, torch.float32)
    (gradient,) = torch.autograd.grad(painn_message.message(*tensors)[0].square().sum(), tensors[4], create_graph=True)
    with pytest.raises(NotImplementedError, match="filter"):
        gradient.square().sum().backward()


def test_many_gradients_at_once():
    """As for the forces of several heads."""
    tensors = case(16, True, torch.float64)
    seeds = torch.eye(ATOMS, dtype=torch.float64)

    def jacobian(function):
        sums = function(*tensors)[0].sum(dim=1)
        return torch.autograd.grad(sums, tensors[2], grad_outputs=seeds, is_grads_batched=True)[0]

    assert torch.allclose(jacobian(painn_message.message), jacobian(in_torch), atol=1e-12)


def test_a_cache_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    folder = tmp_path / ".cache" / "gfm-calc"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setattr(native.Path, "home", lambda: tmp_path)
    assert native.library.__wrapped__(painn_message._SOURCE, REAL="float") is None
    assert not list(folder.iterdir())


def test_a_machine_without_compiler_does_without(tmp_path, monkeypatch):
    monkeypatch.setattr(native.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.library.__wrapped__(painn_message._SOURCE, REAL="float") is None


def test_a_compiler_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(native.Path, "home", lambda: tmp_path)
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++")
    assert native.library.__wrapped__(source) is None
    assert not list((tmp_path / ".cache" / "gfm-calc").iterdir())


def test_matrix_products_in_bfloat16_leave_the_sums_in_float32():
    """As `run.dtype = "bf16"` has it: the forces stay near those of float32, and are not the same."""
    model = random_model(dtype=torch.float32, num_features=32, num_layers=2)
    inputs = model.inputs(GraphBatch.from_graphs([AtomicGraph.build(molecule("CH3CH2OH"), model.config.cutoff)]))
    found = []
    for mixed in (False, True):
        vectors = inputs.edge_vector.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            encoded = model.encode(inputs._replace(edge_vector=vectors))
            energy = model.decode(encoded).float().sum()
        assert encoded.scalars.dtype == encoded.vectors.dtype == torch.float32
        found.append(torch.autograd.grad(energy, vectors)[0])
    difference = (found[0] - found[1]).norm() / found[0].norm()
    assert 0 < difference < 0.05
