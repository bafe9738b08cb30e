"""From predictions to result rows: a chunk's columns, filled batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses

from gfm_calc.config import HeadSpec
from gfm_calc.errors import GFMError, InvalidStructureError, OutsideDomainError, one_line
from gfm_calc.graph import GraphBatch
from gfm_calc.model import Prediction
from gfm_calc.predictor import finite_graphs, not_finite
from gfm_calc.screening.elements import table_of
from gfm_calc.screening.formulas import reduced_formula
from gfm_calc.screening.relaxation import Relaxed
from gfm_calc.screening.settings import Settings
from gfm_calc.screening.streams import Candidate
from gfm_calc.screening.table import columns_of

CLOSE = 0.6  # of a bond: closer atoms are flagged
_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


class Rows:
    """The rows of the candidates `first` to `last`, one a candidate and head; failed until they are filled.

    Args:
        specs: cards of the heads.
        elements: {head: {symbol: eV/atom}} for formation energies.
    """

    def __init__(
        self, settings: Settings, specs: Sequence[HeadSpec], elements: Mapping[str, Mapping[str, float]], first: int,
        last: int,
    ):  # fmt: skip
        self.settings, self.specs, self.first = settings, list(specs), first
        self.columns = columns_of(settings.keep, relaxed=settings.relax is not None)
        self._elements = [table_of(elements.get(spec.name, {})) for spec in specs]
        heads, count = len(specs), (last - first) * len(specs)
        self.values: dict[str, Any] = {}
        for name, (kind, _) in self.columns.items():
            self.values[name] = np.full(count, np.nan) if kind == "float64" else np.full(count, None, object)
        self.values["candidate"] = np.repeat(np.arange(first, last), heads)
        self.values["head"] = np.tile(np.array([spec.name for spec in specs], object), last - first)

    def describe(self, candidate: Candidate) -> None:
        """Where a candidate comes from and what it is; where it has an error, that is its row."""
        rows = self._rows(candidate)
        self.values["source"][rows] = candidate.source
        if candidate.atoms is not None:
            for name, value in _facts(candidate.atoms).items():
                self.values[name][rows] = value
        if candidate.error is not None:
            self.fail(candidate, candidate.error)

    def describe_relaxed(self, candidate: Candidate, relaxed: Relaxed) -> None:
        """How a relaxation ended; the candidate is the relaxed structure from now on."""
        row = self._rows(candidate).start
        candidate.atoms = relaxed.atoms
        if isinstance(relaxed.prediction, GFMError):
            candidate.error = relaxed.prediction
        self.describe(candidate)
        ended = {"converged": relaxed.converged, "steps": relaxed.steps, "unrelaxed_energy": relaxed.before}
        for name, value in ended.items():
            self.values[name][row] = value

    def fail(self, candidate: Candidate, error: GFMError, head: int | None = None) -> None:
        """No numbers, for one head or all."""
        invalid = "invalid" if isinstance(error, InvalidStructureError) else "failed"
        rows = self._rows(candidate)
        if head is not None:
            rows = slice(rows.start + head, rows.start + head + 1)
        self.values["status"][rows] = "outside" if isinstance(error, OutsideDomainError) else invalid
        self.values["error"][rows] = one_line(error)

    def fill(
        self, candidates: Sequence[Candidate], batch: GraphBatch, found: Mapping[str, Prediction], known: np.ndarray,
        far: np.ndarray,
    ) -> None:  # fmt: skip
        """Numbers of a batch.

        Args:
            far: [H, B], see `Domain.distances`.
            known: [H, B], which heads know which structure; the rows of the others stay as they are.
        """
        starts, numbers = batch.ptr[:-1].numpy(), batch.atomic_numbers.cpu().numpy()
        place = np.array([candidate.number - self.first for candidate in candidates]) * len(self.specs)
        sizes = np.diff(batch.ptr.numpy())
        closest = np.array([_closest(candidate) for candidate in candidates])
        spread = self._spread(found, known, batch)
        for head, prediction in enumerate(found.values()):
            good = known[head] & finite_graphs(prediction, batch).numpy()
            for index in np.flatnonzero(known[head] & ~good).tolist():
                self.fail(candidates[index], not_finite(prediction.energies.dtype), head)
            energy = prediction.energy.numpy()
            reference = np.add.reduceat(self._elements[head][numbers], starts)
            values = {
                "energy": energy, "energy_per_atom": energy / sizes, "closest": closest, "force_spread": spread,
                "formation_energy_per_atom": (energy - reference) / sizes, "domain_distance": far[head],
                **_uncertainties(prediction, sizes, starts), **self._mechanics(prediction, starts),
            }  # fmt: skip
            rows = place + head
            for name, value in values.items():
                self.values[name][rows[good]] = value[good]
            self.values["status"][rows[good]] = "ok"
            if "converged" in self.columns:
                self.values["status"][rows[good & (self.values["converged"][rows] == False)]] = "unconverged"  # noqa: E712
            for index in np.flatnonzero(good).tolist():
                self.values["domain"][rows[index]] = _doubts(
                    self.specs[head], candidates[index], closest[index], far[head, index]
                )
                self._keep(
                    rows[index], candidates[index], prediction, slice(starts[index], starts[index] + sizes[index])
                )

    def _mechanics(self, prediction: Prediction, starts: np.ndarray) -> dict[str, np.ndarray]:
        if prediction.forces is None or prediction.stress is None:
            return {}
        found: dict[str, np.ndarray] = {}
        found["max_force"] = np.maximum.reduceat(prediction.forces.norm(dim=1).numpy(), starts)
        stress = prediction.stress.numpy()
        found["pressure"] = -np.trace(stress, axis1=1, axis2=2) / 3 / units.GPa
        if self.settings.quantity == "stress":
            six = np.empty(len(stress), object)
            six[:] = [row if np.isfinite(row).all() else None for row in stress[:, *_VOIGT]]
            found["stress"] = six
        return found

    def _spread(self, found: Mapping[str, Prediction], known: np.ndarray, batch: GraphBatch) -> np.ndarray:
        """[B] eV/Å: the largest over atoms of the root mean square distance of the heads' forces from their mean."""
        forces = [prediction.forces for prediction in found.values()]
        if len(forces) < 2 or any(force is None for force in forces):
            return np.full(batch.num_graphs, np.nan)
        stacked = np.stack([force.numpy() for force in forces if force is not None])
        weight = known[:, batch.batch.cpu().numpy()][:, :, None].astype(float)
        count = weight.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weight * stacked).sum(axis=0) / count
            square = (weight * np.square(stacked - mean)).sum(axis=(0, 2)) / count[:, 0]
        square[count[:, 0] < 2] = np.nan
        return np.sqrt(np.maximum.reduceat(square, batch.ptr[:-1].numpy()))

    def _keep(self, row: int, candidate: Candidate, prediction: Prediction, atoms: slice) -> None:
        if "forces" in self.columns and prediction.forces is not None:
            self.values["forces"][row] = prediction.forces[atoms].numpy().reshape(-1)
        if "positions" in self.columns and candidate.atoms is not None:
            for name, value in _geometry(candidate.atoms).items():
                self.values[name][row] = value

    def _rows(self, candidate: Candidate) -> slice:
        start = (candidate.number - self.first) * len(self.specs)
        return slice(start, start + len(self.specs))


def _facts(atoms: Atoms) -> dict[str, Any]:
    found: dict[str, Any] = {"formula": reduced_formula(atoms.numbers), "num_atoms": len(atoms)}
    if atoms.pbc.all():
        found["volume"] = volume = abs(float(np.linalg.det(atoms.cell.array)))
        found["volume_per_atom"] = volume / max(len(atoms), 1)
        if volume > 0 and len(atoms):
            found["density"] = float(atomic_masses[atoms.numbers].sum()) / volume / (units.kg / units.m**3 * 1000)
    return found


def _geometry(atoms: Atoms) -> dict[str, Any]:
    return {
        "atomic_numbers": atoms.numbers, "positions": atoms.positions.reshape(-1), "pbc": atoms.pbc,
        "cell": atoms.cell.array.reshape(-1) if atoms.cell.array.any() else None,
    }  # fmt: skip


def _closest(candidate: Candidate) -> float:
    return np.nan if candidate.closest is None else candidate.closest


def _uncertainties(prediction: Prediction, sizes: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """What the model itself says: eV/atom, and eV/Å of the least certain atom; nothing of a model that knows none."""
    energy, forces = prediction.energy_uncertainty, prediction.forces_uncertainty
    found = {} if energy is None else {"uncertainty": energy.numpy() / sizes}
    return found if forces is None else {**found, "force_uncertainty": np.maximum.reduceat(forces.numpy(), starts)}


def _doubts(spec: HeadSpec, candidate: Candidate, closest: float, far: float) -> str:
    """Why the numbers of a head should not be trusted for a structure, "" where nothing speaks against them."""
    atoms = candidate.atoms
    assert atoms is not None
    reasons = [f"unseen {symbol}" for symbol in spec.unseen(atoms.numbers)]
    kind = "bulk" if atoms.pbc.any() else "molecule"
    if spec.periodicity and kind not in spec.periodicity:
        reasons.append(f"no {kind} in training")
    if closest < CLOSE:
        reasons.append(f"atoms at {closest:.2f} of a bond")
    if far > 1.0:
        reasons.append(f"{far:.1f} times as far as training data")
    return "; ".join(reasons)
