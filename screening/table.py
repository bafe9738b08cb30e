"""Result rows as Parquet: the columns, and files that carry the checksum of all their bytes.

A file is sealed by putting the SHA-256 of its bytes, computed with zeros in that place, into its own footer: any Parquet
reader reads it, and we notice every damage before a reader sees the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfm_calc.artifacts import sha256
from gfm_calc.errors import CorruptFileError, MissingDependencyError, one_line

_KEY = b"gfm_calc.sha256"
_BETWEEN = b"\x18\x40"  # in the footer (Thrift, compact): a text of 64 bytes follows
_ZEROS = b"0" * 64

# name: (type, meaning and unit).  One row a candidate and head.
COLUMNS: dict[str, tuple[str, str]] = {
    "candidate": ("int64", "number in the stream"),
    "source": ("string", "where it comes from"),
    "status": ("string", "ok, or why there are no numbers: invalid, outside (the head's domain), failed"),
    "error": ("string", "one line, where status is not ok"),
    "head": ("string", "level of theory"),
    "formula": ("string", "reduced formula"),
    "num_atoms": ("int32", "atoms"),
    "energy": ("float64", "eV"),
    "energy_per_atom": ("float64", "eV/atom"),
    "formation_energy_per_atom": ("float64", "eV/atom, against elements of the same head"),
    "max_force": ("float64", "eV/Å, length of the largest force"),
    "volume": ("float64", "Å³"),
    "volume_per_atom": ("float64", "Å³/atom"),
    "density": ("float64", "g/cm³"),
    "pressure": ("float64", "GPa, minus a third of the trace of the stress"),
    "stress": ("list", "eV/Å³, xx yy zz yz xz xy, tension positive"),
    "closest": ("float64", "shortest distance over the sum of covalent radii"),
    "uncertainty": ("float64", "eV/atom, the model's own, where it has one"),
    "force_uncertainty": ("float64", "eV/Å, largest over atoms of the model's own, where it has one"),
    "force_spread": ("float64", "eV/Å, largest over atoms of the disagreement of the heads"),
    "domain_distance": ("float64", "1 = edge of the training data, what 99 % of the head's are within"),
    "domain": ("string", "reasons to doubt the numbers, empty where there are none"),
}  # fmt: skip
RELAXED: dict[str, tuple[str, str]] = {
    "converged": ("bool", "relaxed within the steps"),
    "steps": ("int32", "of the relaxation"),
    "unrelaxed_energy": ("float64", "eV, before"),
}
# Not in the chunks: known when all rows are.
DERIVED: dict[str, tuple[str, str]] = {
    "hull_distance": (
        "float64",
        "eV/atom, above the hull of all other phases of the head; below zero: stable by so much",
    ),
}
STRUCTURES: dict[str, tuple[str, str]] = {
    "atomic_numbers": ("list int", "[n]"),
    "positions": ("list", "Å, [n * 3]"),
    "cell": ("list", "Å, [9], rows are vectors; null without"),
    "pbc": ("list bool", "[3]"),
}
FORCES: dict[str, tuple[str, str]] = {"forces": ("list", "eV/Å, [n * 3]")}


def columns_of(keep: tuple[str, ...] = (), *, relaxed: bool = False) -> dict[str, tuple[str, str]]:
    """The columns of a screening that keeps "structures" or "forces" too."""
    found = dict(COLUMNS)
    found |= RELAXED if relaxed else {}
    found |= STRUCTURES if "structures" in keep or relaxed else {}
    found |= FORCES if "forces" in keep else {}
    return found


def require_pyarrow() -> Any:
    """The module pyarrow; MissingDependencyError with the line that brings it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("results are Parquet files: pip install gfm-calc[screen]") from error
    return pyarrow


def sealed(values: Mapping[str, Any], columns: Mapping[str, tuple[str, str]], about: Mapping[str, str]) -> bytes:
    """A Parquet file of the columns.

    Args:
        values: {column: a value a row, None or NaN where there is none}.
        about: kept in the footer.
    """
    pa = require_pyarrow()
    types = {
        "int64": pa.int64(), "int32": pa.int32(), "float64": pa.float64(), "string": pa.string(), "bool": pa.bool_(),
        "list": pa.list_(pa.float64()), "list int": pa.list_(pa.int16()), "list bool": pa.list_(pa.bool_()),
    }  # fmt: skip
    schema = pa.schema([(name, types[kind]) for name, (kind, _) in columns.items()])
    arrays = [pa.array(values[field.name], field.type, from_pandas=True) for field in schema]
    sink = pa.BufferOutputStream()
    with pa.parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({**about, _KEY.decode(): _ZEROS.decode()})
    data = bytearray(sink.getvalue())
    place = _place(data)
    assert place is not None
    data[place : place + 64] = sha256(bytes(data)).encode()
    return bytes(data)


def unsealed(path: Path) -> Any:
    """The `pyarrow.parquet.ParquetFile` of a sealed file, whose bytes have been checked; in memory.

    Raises:
        CorruptFileError: missing, damaged, or not sealed by us.
    """
    pa = require_pyarrow()
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read ({one_line(error)})") from error
    place = _place(data)
    found = b"" if place is None else bytes(data[place : place + 64])
    if place is not None:
        data[place : place + 64] = _ZEROS
    if not found or found != sha256(bytes(data)).encode():
        raise CorruptFileError(
            f"{path}: its checksum does not match: damaged; delete it and give the same command again"
        )
    return pa.parquet.ParquetFile(pa.BufferReader(bytes(data)))


def about(file: Any) -> dict[str, str]:
    """What `sealed` kept in the footer."""
    found = file.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key not in (_KEY, b"ARROW:schema")}


def _place(data: bytearray) -> int | None:
    """Where the checksum stands."""
    key = data.rfind(_KEY + _BETWEEN)
    return None if key < 0 else key + len(_KEY) + len(_BETWEEN)
