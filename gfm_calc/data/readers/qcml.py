"""The layout of QCML, which is published as TFRecord and passed on as parquet: atomic units throughout."""

from __future__ import annotations

from .options import Layout, Units

LAYOUT = Layout(
    name="qcml",
    units=Units(energy="Ha", length="bohr", forces="Ha/bohr"),
    energy=("pbe0_energy",),
    forces=("pbe0_forces",),
    stress=(),
)


def is_qcml(names) -> bool:
    """Whether these are QCML's columns."""
    return {"pbe0_energy", "positions", "atomic_numbers"} <= set(names)
