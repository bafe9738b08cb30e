"""R13: memory does not grow over MD steps and batches."""

import gc
import os

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet
from support import random_model

from gfm_calc import GFMCalculator
from gfm_calc.predictor import Predictor


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def md(steps: int) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = GFMCalculator(random_model(dtype=torch.float32), head="first", strict=False)
    VelocityVerlet(atoms, timestep=1.0 * units.fs).run(steps)


def stream(chunks: int) -> None:
    predictor = Predictor(random_model(dtype=torch.float32), ["first", "second"], max_atoms=30)

    def structures():
        random = np.random.default_rng(0)
        for _ in range(chunks):
            atoms = molecule("CH3CH2OH") if random.random() < 0.5 else bulk("Cu", cubic=True)
            atoms.rattle(0.05, rng=random)
            yield atoms

    for _ in predictor.predict(structures(), on_error="yield"):
        pass


def screening(count: int) -> None:
    """`count` structures, in chunks of 10, through the engine to files that are removed at once."""
    from gfm_calc.screening.engine import Engine
    from gfm_calc.screening.generators import RandomAtoms
    from gfm_calc.screening.prepare import prepared
    from gfm_calc.screening.settings import Settings
    from gfm_calc.screening.table import sealed

    model = random_model(dtype=torch.float32)
    stream = RandomAtoms(count=count, max_atoms=12, box=6.0)
    engine = Engine(Predictor(model, ["first", "second"]), Settings(heads=("first", "second"), max_edges=400), {})
    ranges = [(first, first + 10) for first in range(0, count, 10)]
    for chosen, candidates in zip(ranges, prepared(stream, model.config.cutoff, ranges, workers=0)):
        rows = engine.rows(candidates, *chosen)
        assert sealed(rows.values, rows.columns, {})


@pytest.mark.promise("R13")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux to read its own memory")
@pytest.mark.parametrize(("work", "count"), [
    (md, 500), (stream, 500), (screening, 500),
    pytest.param(md, 10_000, marks=pytest.mark.slow), pytest.param(stream, 10_000, marks=pytest.mark.slow),
    pytest.param(screening, 100_000, marks=pytest.mark.slow),
], ids=lambda value: getattr(value, "__name__", str(value)))  # fmt: skip
def test_memory_stays(work, count):
    work(200)
    gc.collect()
    before = resident()
    work(count)
    gc.collect()
    assert resident() - before <= 10
