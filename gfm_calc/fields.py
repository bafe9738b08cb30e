"""One table of every tensor that flows through gfm-calc: its level, shape, dtype, unit and rank under rotation.

Graph building, batching and the physics tests read this table, so a new field is declared once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Field:
    """One tensor.  `level`: "atom", "edge" or "graph" (its first dimension); `shape`: the rest; `rank`: how it turns when
    the structure is rotated (0 scalar, 1 vector, 2 second-rank tensor, None where rotation does not apply)."""

    level: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    rank: int | None = None


INPUT_FIELDS: dict[str, Field] = {
    "atomic_numbers": Field(level="atom", shape=(), dtype="int64", unit="1", rank=0),
    "positions": Field(level="atom", shape=(3,), dtype="float64", unit="Å", rank=1),
    "cell": Field(level="graph", shape=(3, 3), dtype="float64", unit="Å"),
    "pbc": Field(level="graph", shape=(3,), dtype="bool", unit="1"),
    "charge": Field(level="graph", shape=(), dtype="float64", unit="e", rank=0),
    "spin": Field(level="graph", shape=(), dtype="int64", unit="multiplicity 2S+1", rank=0),
    "edge_cell_shift": Field(level="edge", shape=(3,), dtype="int32", unit="cells"),
}

OUTPUT_FIELDS: dict[str, Field] = {
    "energy": Field(level="graph", shape=(), dtype="float64", unit="eV", rank=0),
    "energies": Field(level="atom", shape=(), dtype="float64", unit="eV", rank=0),
    "forces": Field(level="atom", shape=(3,), dtype="float64", unit="eV/Å", rank=1),
    "stress": Field(level="graph", shape=(3, 3), dtype="float64", unit="eV/Å³", rank=2),
    "stresses": Field(level="atom", shape=(3, 3), dtype="float64", unit="eV/Å³", rank=2),
    "energy_uncertainty": Field(level="graph", shape=(), dtype="float64", unit="eV", rank=0),
    "forces_uncertainty": Field(level="atom", shape=(), dtype="float64", unit="eV/Å", rank=0),
}
