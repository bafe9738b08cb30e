"""Loading, predicting and training leave the process as it was: dtypes, threads, seeds, flags, warnings, environment."""

import os
import random
import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from support import batch_of, random_model

from gfm_calc import GFMCalculator
from gfm_calc.checkpoint import load_model, save_model, subset
from gfm_calc.predictor import Predictor
from gfm_calc.selfcheck import check_derivatives, check_golden


def state() -> dict[str, object]:
    """What a library could change under its user's feet."""
    return {
        "dtype": torch.get_default_dtype(), "device": torch.get_default_device(), "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(), "torch seed": torch.get_rng_state().numpy().tobytes(),
        "numpy seed": str(np.random.get_state()), "python seed": random.getstate(),  # noqa: NPY002
        "deterministic": torch.are_deterministic_algorithms_enabled(), "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(), "anomaly": torch.is_anomaly_enabled(),
        "precision": torch.get_float32_matmul_precision(), "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "dynamo": torch._dynamo.config.trace_autograd_ops if hasattr(torch._dynamo.config, "trace_autograd_ops") else None,
        "numpy errors": np.geterr(), "print": np.get_printoptions(), "filters": list(warnings.filters),
        "environment": dict(os.environ), "folder": os.getcwd(),
    }  # fmt: skip


def save_load(folder):
    save_model(random_model(seed=3), folder / "m")
    model = load_model(folder / "m", dtype=torch.float64)
    subset(model, ["second"])


def predict(folder):
    model = random_model()
    list(Predictor(model, ["first", "second"]).predict([bulk("Cu"), molecule("H2O")]))
    model.predict(batch_of(model, bulk("Cu")), ["first"], stresses=True)


def calculate(folder):
    atoms = molecule("CH3OH")
    atoms.calc = calc = GFMCalculator(random_model(), head="first")
    atoms.get_forces()
    calc.hessian(atoms)
    calc.compare_heads(atoms)


def check(folder):
    save_model(random_model(seed=4, elements=("H", "O")), folder / "n")
    model = load_model(folder / "n", dtype=torch.float64)
    from gfm_calc.checkpoint import read_golden

    check_golden(model, read_golden(folder / "n"))
    check_derivatives(model, "first")


@pytest.mark.parametrize("action", [save_load, predict, calculate, check], ids=lambda f: f.__name__)
def test_nothing_moves(action, tmp_path):
    action(tmp_path)  # imports and caches first
    before = state()
    action(tmp_path)
    after = state()
    assert [key for key in before if before[key] != after[key]] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_users_default_dtype_does_not_matter(dtype, tmp_path):
    save_model(random_model(seed=3), tmp_path / "m")
    wanted = next(Predictor(tmp_path / "m", ["first"]).predict([molecule("H2O")]))["first"]
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = next(Predictor(tmp_path / "m", ["first"]).predict([molecule("H2O")]))["first"]
        save_model(random_model(seed=3), tmp_path / "again")
    finally:
        torch.set_default_dtype(kept)
    assert found.energy.dtype == torch.float64
    assert torch.equal(found.energy, wanted.energy) and torch.equal(found.forces, wanted.forces)
    assert load_model(tmp_path / "again").model_id == load_model(tmp_path / "m").model_id
