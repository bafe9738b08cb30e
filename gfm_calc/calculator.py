"""`GFMCalculator`: the model as an ASE calculator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from .checkpoint import load_model, resolve
from .comparison import HeadComparison, HeadDelta, compare_heads, head_delta
from .config import HeadSpec
from .dispersion import make_dispersion
from .errors import ConfigError, GFMError, HeadError, InvalidStructureError
from .graph import AtomicGraph, GraphBatch, charge_and_spin, check_totals, validate_atoms
from .model import GFMModel, Prediction
from .predictor import check_domain, parse_device, parse_dtype, predict_one, refuse_options_of_loaded
from .verlet import VerletList


class GFMCalculator(Calculator):
    """A packaged or saved model as an ASE calculator.

    Args:
        model: packaged name ("gfm-small"), directory, or a loaded `GFMModel` (used as it is).
        head: which level of theory; may be left out only where the model has a single energy head.
        device: "cpu", "cuda", "cuda:N"; None takes the GPU where there is one.
        dtype: "float32" or "float64" (phonons, tight relaxations).
        compile: compile the networks: the first call takes tens of seconds, later ones are faster.
        skin: Å; neighbours are kept until an atom has moved by half of it.  0 finds them at every call.
        strict: refuse elements, charges and spins that the head has not seen.
        dispersion: None or "d3bj" (Grimme's D3 with Becke-Johnson damping); refused for heads whose labels hold a
            dispersion term already, or may.
        charge_from: "info" reads `atoms.info["charge"]` and `["spin"]` (2S+1); "initial" sums the initial charges and
            magnetic moments.
        uncertainty: the expected errors too, in `results`: energy_uncertainty in eV and forces_uncertainty [n] in eV/Å, of
            the model without dispersion.  They cost next to nothing, and are left out unless asked for because ASE's
            `SinglePointCalculator` takes no results but its own.

    Results: energy, free_energy (the same) in eV, energies [n] eV, forces [n, 3] eV/Å, stress [6] and, when asked for,
    stresses [n, 6] in eV/Å³ (Voigt order, tension positive).  Stress needs a cell: with fewer than three periodic axes
    it is given for the strains within them where the other cell vectors stand at right angles to them, else refused.

    Raises:
        HeadError: no head chosen where there are several (they are listed), an unknown one (the closest is named), or one
            without uncertainty where it is asked for.
        GFMError: model, dtype, device or dispersion that cannot be used.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]

    def __init__(
        self, model: str | Path | GFMModel = "gfm-small", head: str | None = None, device: str | None = None,
        dtype: str | torch.dtype = "float32", compile: bool = False, skin: float = 0.5, *, strict: bool = True,
        dispersion: str | None = None, charge_from: str = "info", uncertainty: bool = False,
    ):  # fmt: skip
        super().__init__()
        if charge_from not in ("info", "initial"):
            raise ConfigError(f"charge_from must be 'info' or 'initial', not {charge_from!r}")
        if isinstance(skin, bool) or not isinstance(skin, (int, float)) or not 0 <= skin <= 10:
            raise ConfigError(f"skin must lie between 0 and 10 Å, not {skin!r}")
        if isinstance(model, GFMModel):
            refuse_options_of_loaded(device, compile)
            self.model, self._source = model, None
        else:
            self.model = load_model(model, dtype=parse_dtype(dtype), device=parse_device(device)).compile(
                enabled=compile
            )
            packaged = isinstance(model, str) and not Path(model).is_dir()
            self._source = model if packaged else str(resolve(model))
        self._uncertainty = uncertainty
        self._head = self._choose_head(head)
        self._strict, self._charge_from = strict, charge_from
        self._options: dict[str, Any] = {
            "head": self._head, "device": device, "dtype": str(self.model.dtype).split(".")[1], "compile": compile,
            "skin": skin, "strict": strict, "dispersion": dispersion, "charge_from": charge_from,
            "uncertainty": uncertainty,
        }  # fmt: skip
        self.parameters.update({"model": str(self._source or "in memory"), **self._options})
        self.verlet = VerletList(self.model.config.cutoff, skin)
        self._dispersion = make_dispersion(dispersion, self.model.specs[self._head])
        self._totals: tuple[int, int] | None = None

    @property
    def head(self) -> str:
        """The level of theory in use; another may be set."""
        return self._head

    @head.setter
    def head(self, name: str) -> None:
        chosen = self._choose_head(name)
        self._dispersion = make_dispersion(self._options["dispersion"], self.model.specs[chosen])
        self._head = self._options["head"] = self.parameters["head"] = chosen
        self.reset()

    @property
    def strict(self) -> bool:
        """Whether elements, charges and spins that the head has not seen are refused."""
        return self._strict

    @property
    def charge_from(self) -> str:
        """Where charge and spin come from: "info" or "initial"."""
        return self._charge_from

    @property
    def heads(self) -> dict[str, HeadSpec]:
        """{name: HeadSpec} of all heads of the model."""
        return dict(self.model.specs)

    @property
    def model_id(self) -> str:
        """Digest of the weights and cards, "" for a model that was never saved."""
        return self.model.model_id

    # ---- ASE's contract ----

    def _get_name(self) -> str:
        return "gfm"

    def set(self, **options: Any) -> dict[str, Any]:
        """Refused: ASE would keep the new values and go on with the old model.  Set `head`, or make a new calculator."""
        if options:
            raise ConfigError(
                f"{', '.join(options)} cannot be changed with set(): set calc.head, or make a new GFMCalculator"
            )
        return {}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; ASE does not look at charge and spin in `atoms.info`, we do."""
        if not isinstance(atoms, Atoms):
            validate_atoms(atoms)
        changes = super().check_state(atoms, tol=tol)
        if self._totals is not None and not changes and self._charge_and_spin(atoms) != self._totals:
            changes = ["initial_charges"]
        return changes

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:  # fmt: skip
        """Fill `self.results` for `atoms`; see the class for what and in which units.

        Raises:
            InvalidStructureError: not a structure that can be predicted (see `graph.validate_atoms`).
            OutsideDomainError: not one that this head was trained for.
            PropertyNotImplementedError: a stress was asked for that this cell does not define.
        """
        super().calculate(atoms, properties, system_changes)
        self.results, self._totals = {}, None  # an error below must not leave the numbers of another structure
        atoms = self.atoms
        validate_atoms(atoms)
        totals = self._charge_and_spin(atoms)
        graph = AtomicGraph.build(atoms, self.model.config.cutoff, edges=self.verlet.edges(atoms), totals=totals)
        if self.strict:
            check_domain(self.model.specs[self.head], graph)
        per_atom = "stresses" in properties
        found = predict_one(self.model, graph, [self.head], stresses=per_atom, uncertainty=self._uncertainty)
        results = _results(found[self.head], atoms, per_atom)
        if self._dispersion is not None:
            _add_dispersion(results, self._dispersion, atoms)
        for wanted in ("stress", "stresses"):
            if wanted in properties and wanted not in results:
                raise PropertyNotImplementedError(
                    f"{wanted}: needs a cell, with its non-periodic vectors at right angles to the periodic ones"
                )
        self.results, self._totals = results, totals

    def reset(self) -> None:
        """Forget the results (not the neighbours: they are checked against positions and cell at every call)."""
        super().reset()
        self._totals = None

    def _choose_head(self, name: object) -> str:
        chosen = _choose_head(self.model, name)
        if self._uncertainty:
            self.model.require_uncertainty([chosen])
        return chosen

    def _charge_and_spin(self, atoms: Atoms) -> tuple[int, int]:
        if self.charge_from == "info":
            return charge_and_spin(atoms)

        def refuse(reason: str):
            raise InvalidStructureError(reason)

        charge, unpaired = atoms.get_initial_charges().sum(), abs(atoms.get_initial_magnetic_moments().sum())
        for name, value in (("initial charges", charge), ("initial magnetic moments", unpaired)):
            if not abs(value - np.round(value)) < 1e-3:
                refuse(f"{name} sum to {value:.4g}, not to a whole number")
        spin = int(np.round(unpaired)) + 1
        return check_totals(atoms, int(np.round(charge)), spin if unpaired else None, refuse)

    def __reduce__(self):
        if self._source is None:
            raise GFMError("a calculator of a model in memory cannot be pickled: save_model it and give the directory")
        return _restore, (self._source, self._options)

    def __deepcopy__(self, memo: dict[int, Any]) -> GFMCalculator:
        options: dict[str, Any] = {k: v for k, v in self._options.items() if k not in ("device", "dtype", "compile")}
        twin = GFMCalculator(self.model, **options)
        twin._source, twin._options = self._source, dict(self._options)
        return twin

    # ---- beyond ASE ----

    def compare_heads(self, atoms: Atoms, heads: Sequence[str] | None = None, *, forces: bool = True) -> HeadComparison:
        """What every energy head (or each of `heads`) says about `atoms`, in one encoder pass.

        Heads that have not seen the elements, charge or spin are left out and named in `refused`.

        Raises:
            HeadError: an unknown head, or none of the heads knows this structure.
        """
        chosen = self.model.energy_heads if heads is None else heads
        return compare_heads(self.model, self._graph(atoms), chosen, forces=forces, strict=self.strict)

    def delta(self, atoms: Atoms, first: str, second: str) -> HeadDelta:
        """What changes from head `first` to head `second` (eV, eV/Å), in one encoder pass.

        Raises:
            HeadError: an unknown head, or not one of energies.
            OutsideDomainError: a head that does not know this structure.
        """
        return head_delta(self.model, self._graph(atoms), first, second, strict=self.strict)

    def predict_property(self, atoms: Atoms, head: str, *, uncertainty: bool = False) -> Any:
        """What a property head says: a number or [3] of the structure, [n] or [n, 3] of its atoms, in the head's unit; of a
        class the probability of yes.

        Args:
            uncertainty: give (that, the error to expect of it), a number or [n], of vectors the length of their error.

        Raises:
            HeadError: no such head, one of energies, or one without uncertainty where it is asked for.
            OutsideDomainError: a structure that the head does not know.
        """
        spec = self.model.spec(head)
        if spec.kind == "energy":
            raise HeadError(f"head {head} is one of energies: set calc.head, and ask for the energy")
        graph = self._graph(atoms)
        if self.strict:
            check_domain(spec, graph)
        predicted = predict_one(self.model, graph, [head], uncertainty=uncertainty)[head]
        parts = [part.numpy() for part in (predicted.value, predicted.value_uncertainty) if part is not None]
        found = [p if spec.is_of_atoms else p[0] if p.ndim > 1 else float(p[0]) for p in parts]
        return tuple(found) if uncertainty else found[0]

    def descriptors(self, atoms: Atoms) -> np.ndarray:
        """The encoder's invariant features of every atom, [n, F]: the same for all heads."""
        batch = GraphBatch.from_graphs([self._graph(atoms)])
        with torch.no_grad():
            return self.model.encode(self.model.inputs(batch)).scalars.cpu().numpy()

    def hessian(self, atoms: Atoms) -> np.ndarray:
        """Second derivatives of the energy, [3n, 3n] in eV/Å², exact (not by finite differences); without dispersion."""
        from .derivatives import hessian

        graph = self._graph(atoms)
        if self.strict:
            check_domain(self.model.specs[self.head], graph)
        return hessian(self.model, GraphBatch.from_graphs([graph]), self.head).numpy()

    def _graph(self, atoms: Atoms) -> AtomicGraph:
        validate_atoms(atoms)
        return AtomicGraph.build(atoms, self.model.config.cutoff, totals=self._charge_and_spin(atoms))


def _restore(source: str, options: Mapping[str, Any]) -> GFMCalculator:
    return GFMCalculator(source, **options)


def _choose_head(model: GFMModel, head: object) -> str:
    if head is None:
        if len(model.energy_heads) == 1:
            return model.energy_heads[0]
        count, names = len(model.energy_heads), ", ".join(model.energy_heads)
        raise HeadError(f"this model has {count} heads; choose one with head=...: {names}")
    spec = model.spec(head)
    if spec.kind != "energy":
        raise HeadError(
            f"head {spec.name} predicts {spec.quantity}, not energies: use calc.predict_property, or Predictor; a calculator "
            f"needs one of: {', '.join(model.energy_heads) or 'none is here'}"
        )
    return spec.name


def _results(prediction: Prediction, atoms: Atoms, per_atom: bool) -> dict[str, Any]:
    energy = prediction.energy.item()
    results = {
        "energy": energy, "free_energy": energy, "energies": prediction.energies.numpy(),
        "forces": prediction.forces.numpy(),
    }  # fmt: skip
    if prediction.energy_uncertainty is not None:
        results["energy_uncertainty"] = prediction.energy_uncertainty.item()
        results["forces_uncertainty"] = prediction.forces_uncertainty.numpy()
    stress = prediction.stress[0].numpy()
    if np.isfinite(stress).all():
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
        if per_atom:
            results["stresses"] = full_3x3_to_voigt_6_stress(prediction.stresses.numpy())
    return results


def _add_dispersion(results: dict[str, Any], dispersion: Calculator, atoms: Atoms) -> None:
    results["energy"] += dispersion.get_potential_energy(atoms)
    results["free_energy"] = results["energy"]
    results["forces"] = results["forces"] + dispersion.get_forces(atoms)
    if "stress" in results and atoms.pbc.all():
        results["stress"] = results["stress"] + dispersion.get_stress(atoms)
    else:
        results.pop("stress", None)
    # D3 gives no shares by atom.
    results.pop("energies"), results.pop("stresses", None)
