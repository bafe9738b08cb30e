"""How far the rows of a screening lie from float64: measured on some of its own candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms

from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor

SAMPLE = 32  # candidates of each head


def against_float64(
    exact: Predictor, rows: Mapping[str, Sequence[Mapping[str, Any]]], structures: Mapping[str, Sequence[Atoms]]
) -> dict[str, dict[str, float]]:
    """{head: {"structures", "energy_mev_per_atom", "max_force_mev_per_a"}}: the largest differences, forces where there are.

    Args:
        exact: in float64, with the heads.
        rows: {head: rows that are ok}.  structures: {head: theirs}.
    """
    found = {}
    for head, several in rows.items():
        energies, forces = [], []
        exact.choose([head])
        for row, outcome in zip(several, exact.predict(structures[head], on_error="yield")):
            if isinstance(outcome, GFMError):
                continue
            one = outcome[head]
            energies.append(abs(one.energy.item() - row["energy"]) / row["num_atoms"])
            if one.forces is not None and row["max_force"] is not None:
                forces.append(abs(float(one.forces.norm(dim=1).max()) - row["max_force"]))
        if energies:
            found[head] = {"structures": float(len(energies)), "energy_mev_per_atom": _figure(1e3 * max(energies))}
            if forces:
                found[head]["max_force_mev_per_a"] = _figure(1e3 * max(forces))
    return found


def _figure(value: float) -> float:
    return float(f"{value:.2g}")
