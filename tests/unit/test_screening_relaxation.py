"""Many structures relaxed at once take the steps that ASE's optimizers take with each alone."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS
from screenings import argv, need_pyarrow, rows
from support import random_model

from gfm_calc import GFMCalculator
from gfm_calc.cli import main
from gfm_calc.errors import GFMError
from gfm_calc.predictor import predict_graphs
from gfm_calc.screening.relaxation import relax_all
from gfm_calc.screening.settings import Relaxation


def structures():
    found = [bulk("Cu", cubic=True), molecule("CH3CH2OH"), bulk("NaCl", "rocksalt", a=5.6), molecule("H2O")]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.1, seed=seed)
    return found


def together(how, several):
    """Outcomes of `several` relaxed at once, each predicted alone so that bits are those of the calculator."""
    model = random_model()

    def predict(graphs):
        found = [predict_graphs(model, [graph], ["first"])[0] for graph in graphs]
        return [one if isinstance(one, GFMError) else one["first"] for one in found]

    return dict(relax_all(several, how, model.config.cutoff, predict))


@pytest.mark.parametrize("optimizer", [FIRE, LBFGS])
@pytest.mark.parametrize("cell", [False, True])
def test_steps_are_those_of_ase(optimizer, cell):
    how = Relaxation(optimizer=optimizer.__name__, fmax=0.3, steps=15, cell=cell, active=2)
    found = together(how, structures())
    for index, atoms in enumerate(structures()):
        atoms.calc = GFMCalculator(random_model(), head="first", strict=False, skin=0.5)
        target = FrechetCellFilter(atoms) if cell and atoms.pbc.all() else atoms
        alone = optimizer(target, logfile=None)
        converged = alone.run(fmax=how.fmax, steps=how.steps)
        ours = found[index]
        assert (ours.steps, ours.converged) == (alone.nsteps, converged)
        assert np.abs(ours.atoms.positions - atoms.positions).max() < 1e-9
        assert np.abs(ours.atoms.cell.array - atoms.cell.array).max() < 1e-9
        assert ours.prediction.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert {outcome.steps for outcome in found.values()} != {15}  # some leave early, others enter


def test_structures_are_left_alone_and_no_steps_are_single_points():
    several = structures()
    found = together(Relaxation(steps=0), several)
    for index, (atoms, fresh) in enumerate(zip(several, structures())):
        assert np.array_equal(atoms.positions, fresh.positions) and atoms.calc is None
        assert np.array_equal(found[index].atoms.positions, fresh.positions) and found[index].steps == 0


def test_a_relaxation_that_breaks_down_leaves_the_others_alone(monkeypatch):
    several, real = structures(), FIRE.step

    def astray(self, *given):
        if len(self.atoms) == 9:
            raise np.linalg.LinAlgError("no logarithm")
        return real(self, *given)

    wanted = together(Relaxation(fmax=0.3, steps=5), several)
    monkeypatch.setattr(FIRE, "step", astray)
    found = together(Relaxation(fmax=0.3, steps=5), several)
    assert "broke down after 0 steps (no logarithm)" in str(found[1].prediction) and not found[1].converged
    for index in (0, 2, 3):
        assert np.array_equal(found[index].atoms.positions, wanted[index].atoms.positions)


def test_relaxed_rows(tmp_path, saved_model):
    """Relaxed structures are in the rows; numbers are those of the calculator there; the cell moved."""
    need_pyarrow()
    import ase.io

    ase.io.write(tmp_path / "in.extxyz", structures())
    more = ("--relax", "--cell", "--steps", "8", "--fmax", "0.5", "--dtype", "float64", "--chunk", "3")
    assert main(argv([tmp_path / "in.extxyz"], tmp_path / "run", saved_model, *more)) == 0
    found = rows(tmp_path / "run")
    assert {row["status"] for row in found} <= {"ok", "unconverged"}
    calculator = GFMCalculator(saved_model, head="first", dtype="float64")
    from ase import Atoms

    for row in found:
        cell = None if row["cell"] is None else np.reshape(row["cell"], (3, 3))
        atoms = Atoms(row["atomic_numbers"], np.reshape(row["positions"], (-1, 3)), cell=cell, pbc=row["pbc"])
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(row["energy"], abs=1e-8)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(row["max_force"], abs=1e-7)
        assert row["energy"] < row["unrelaxed_energy"] or row["steps"] < 2
        assert row["converged"] == (row["status"] == "ok")
    assert abs(found[0]["volume"] - abs(structures()[0].get_volume())) > 1e-3
