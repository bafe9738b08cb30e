"""Many structures relaxed at once: ASE's optimizers, each fed from one batch a step.

Every structure has an optimizer and, where the cell moves, a cell filter of its own, those that `gfm relax` uses; they ask
for forces, and find what the batch has given.  So a structure takes the steps that it takes alone.  Those that are done
leave the batch, and the next ones enter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, optimize
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.stress import full_3x3_to_voigt_6_stress

from gfm_calc.errors import ConvergenceError, GFMError, InvalidStructureError, one_line
from gfm_calc.graph import AtomicGraph
from gfm_calc.model import Prediction
from gfm_calc.screening.settings import Relaxation
from gfm_calc.verlet import VerletList

_SKIN = 0.5  # Å, of the neighbour lists that are kept between steps

# What predicts: graphs to {what each is: Prediction of one structure, or an error}, in order.
Predict = Callable[[Sequence[AtomicGraph]], Sequence[Prediction | GFMError]]


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """The end of one relaxation.

    Attributes: `atoms`, moved; `prediction` there, or the error; `converged`; `steps` taken; `before`, the energy at the
    start in eV.
    """

    atoms: Atoms
    prediction: Prediction | GFMError
    converged: bool
    steps: int
    before: float


def relax_all(
    structures: Sequence[Atoms], how: Relaxation, cutoff: float, predict: Predict
) -> Iterator[tuple[int, Relaxed]]:
    """(index, outcome) of every structure, as they end.

    Args:
        structures: validated; they are not changed.
        cutoff: of the model, Å.
        predict: see `Predict`.
    """
    waiting = deque(enumerate(structures))
    active: list[_Active] = []
    while waiting or active:
        while waiting and len(active) < how.active:
            index, atoms = waiting.popleft()
            active.append(_Active(index, atoms, how, cutoff))
        ready = [(one, graph) for one in active if (graph := one.graph()) is not None]
        for (one, _), found in zip(ready, predict([graph for _, graph in ready]) if ready else ()):
            one.take(found)
        for one in active:
            if one.ended:
                yield one.index, one.outcome()
        active = [one for one in active if not one.ended]


class _Given(Calculator):
    """Gives the results that were put into it, for the positions that they belong to."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """The results at hand."""
        super().calculate(atoms, properties, system_changes)
        self.results = dict(self.given)


class _Active:
    """One structure on its way down."""

    def __init__(self, index: int, atoms: Atoms, how: Relaxation, cutoff: float):
        self.index, self.how = index, how
        self.atoms = atoms.copy()
        self.atoms.calc = self._given = _Given()
        target: Any = FrechetCellFilter(self.atoms) if how.cell and self.atoms.pbc.all() else self.atoms
        self._optimizer = getattr(optimize, how.optimizer)(target, logfile=None)
        self._target = target
        self._neighbours = VerletList(cutoff, _SKIN)
        self._last: Prediction | GFMError = ConvergenceError("not begun")
        self.steps, self.before = 0, np.nan
        self.converged = self.ended = False

    def graph(self) -> AtomicGraph | None:
        """What is to be predicted now; None where the structure has become unsound, which ends it."""
        try:
            return AtomicGraph.build(self.atoms, self._neighbours.cutoff, edges=self._neighbours.edges(self.atoms))
        except InvalidStructureError as error:
            self._end(error)
            return None

    def take(self, found: Prediction | GFMError) -> None:
        """The prediction for `graph`: end, or go a step."""
        if isinstance(found, GFMError):
            self._end(found)
            return
        self._last = found
        assert found.energy is not None and found.forces is not None and found.stress is not None
        energy = found.energy.item()
        self.before = energy if np.isnan(self.before) else self.before
        self._given.given = {"energy": energy, "free_energy": energy, "forces": found.forces.numpy()}
        if found.stress.isfinite().all():
            self._given.given["stress"] = full_3x3_to_voigt_6_stress(found.stress[0].numpy())
        self._given.reset()
        try:
            self._go_on()
        except Exception as error:  # ASE raises whatever comes where a cell has gone astray
            self._end(ConvergenceError(f"the relaxation broke down after {self.steps} steps ({one_line(error)})"))

    def _go_on(self) -> None:
        forces = np.reshape(self._target.get_forces(), (-1, 3))
        self.converged = bool(np.linalg.norm(forces, axis=1).max() < self.how.fmax)
        self.ended = self.converged or self.steps >= self.how.steps
        if not self.ended:
            self._optimizer.step()
            self._given.given = {}
            self.steps += 1

    def _end(self, error: GFMError) -> None:
        self._last, self.ended, self.converged = error, True, False

    def outcome(self) -> Relaxed:
        """How it ended."""
        bare = self.atoms.copy()
        bare.calc = None
        return Relaxed(
            atoms=bare, prediction=self._last, converged=self.converged, steps=self.steps, before=float(self.before)
        )
