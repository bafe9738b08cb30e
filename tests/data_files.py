"""The same labelled molecules in every format that is read, each with its own names and units."""

from __future__ import annotations

import json
import lzma
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from ase import Atoms
from ase.data import chemical_symbols
from ase.units import Bohr, Hartree, kcal, mol
from support import ROOT

from gfm_calc.data.readers.tfrecord import _masked_crc
from gfm_calc.data.schema import Record

FIXTURES = ROOT / "tests" / "fixtures"
KCAL = kcal / mol


def methanol() -> list[Record]:
    """The twelve frames of methanol in the fixture."""
    from gfm_calc.data.readers import read

    return [record for record in read(FIXTURES / "methanol.extxyz") if len(record) == 6]


def with_calculator(records: Sequence[Record]) -> list[Atoms]:
    """As ase.Atoms that hold their labels."""
    return [record.to_atoms() for record in records]


def stacked(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Elements [n], positions [M, n, 3], energies [M], forces [M, n, 3] of frames of one molecule, in eV and Å."""
    positions = np.stack([record.positions for record in records])
    forces = np.stack([record.forces for record in records])
    return records[0].atomic_numbers, positions, np.array([record.energy for record in records]), forces


# ---- writers: (path, records) ----


def write_extxyz(path: Path, records: Sequence[Record]) -> None:
    text = path.with_suffix("") if path.suffix == ".xz" else path
    ase.io.write(text, with_calculator(records), format="extxyz")
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(text.read_bytes()))


def write_traj(path: Path, records: Sequence[Record]) -> None:
    ase.io.write(path, with_calculator(records), format="traj")


def write_ase_db(path: Path, records: Sequence[Record]) -> None:
    with ase.db.connect(path, append=False) as database:
        for record in records:
            database.write(record.to_atoms(), key_value_pairs={"group": record.group or "none"})


def write_nabla(path: Path, records: Sequence[Record]) -> None:
    """As nabla2DFT: labels in `data`, in Hartree and Hartree/Å, units in the metadata."""
    with ase.db.connect(path, append=False) as database:
        for record in records:
            data = {"energy": [record.energy / Hartree], "forces": record.forces / Hartree}
            database.write(record.structure(), data=data, key_value_pairs={"moses_id": 7})
        database.metadata = {
            "_distance_unit": "Ang",
            "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Ang"},
        }


def write_rmd17(path: Path, records: Sequence[Record]) -> None:
    """As rMD17: kcal/mol and Å, the old labels beside the new."""
    numbers, positions, energies, forces = stacked(records)
    np.savez_compressed(
        path, nuclear_charges=numbers.astype(np.uint8), coords=positions, energies=energies / KCAL,
        forces=forces / KCAL, old_indices=np.arange(len(records)), old_energies=energies, old_forces=forces,
    )  # fmt: skip


def write_npz(path: Path, records: Sequence[Record]) -> None:
    """As MD17: one letter each, kcal/mol, and no word about it."""
    numbers, positions, energies, forces = stacked(records)
    np.savez(path, z=numbers, R=positions, E=energies[:, None] / KCAL, F=forces / KCAL, name=np.array("methanol"))


def write_ani1x(path: Path, records: Sequence[Record]) -> None:
    """As ANI-1x: Ha and Ha/Å, several levels of theory, NaN where there is none."""
    numbers, positions, energies, forces = stacked(records)
    with h5py.File(path, "w") as file:
        group = file.create_group("C1H4O1")
        group["atomic_numbers"] = numbers.astype(np.uint8)
        group["coordinates"] = positions
        group["wb97x_dz.energy"] = energies / Hartree
        group["wb97x_dz.forces"] = forces / Hartree
        group["wb97x_tz.energy"] = energies / Hartree - 0.1
        best = energies / Hartree - 1.0
        best[1::2] = np.nan
        group["ccsd(t)_cbs.energy"] = best
        group["wb97x_dz.dipole"] = np.zeros((len(records), 3))


def write_qm7x(path: Path, records: Sequence[Record]) -> None:
    """As QM7-X: a group a molecule, a group a conformation, eV and Å."""
    with h5py.File(path, "w") as file:
        for k, record in enumerate(records):
            group = file.create_group(f"{k // 4 + 1}/Geom-m{k // 4 + 1}-i1-c1-{k:02d}")
            group["atNUM"], group["atXYZ"] = record.atomic_numbers, record.positions
            group["ePBE0+MBD"], group["ePBE0"], group["eMBD"] = [[record.energy], [record.energy + 0.5], [-0.5]]
            group["totFOR"], group["pbe0FOR"] = record.forces, record.forces + 0.01
            group["hCHG"], group["mPOL"] = np.zeros((len(record), 1)), [1.0]


def write_transition1x(path: Path, records: Sequence[Record]) -> None:
    """As Transition1x: reactions with their end points; train links to the same groups."""
    numbers, positions, energies, forces = stacked(records)
    parts = {"": slice(2, None), "reactant": slice(0, 1), "product": slice(1, 2), "transition_state": slice(-1, None)}
    with h5py.File(path, "w") as file:
        reaction = file.create_group("data/CH4O/rxn0001")
        for name, rows in parts.items():
            group = reaction.create_group(name) if name else reaction
            group["atomic_numbers"], group["positions"] = numbers, positions[rows]
            group["wB97x_6-31G(d).energy"], group["wB97x_6-31G(d).forces"] = energies[rows], forces[rows]
        file.create_group("train/CH4O")["rxn0001"] = reaction


def write_spice(path: Path, records: Sequence[Record]) -> None:
    """HDF5 of no published layout, in atomic units, each array with its unit."""
    numbers, positions, energies, forces = stacked(records)
    with h5py.File(path, "w") as file:
        group = file.create_group("methanol")
        group["atomic_numbers"] = numbers
        for name, values, unit in (
            ("conformations", positions / Bohr, "bohr"),
            ("dft_total_energy", energies / Hartree, "hartree"),
            ("dft_total_gradient", -forces / Hartree * Bohr, "hartree/bohr"),
        ):
            group.create_dataset(name, data=values, compression="gzip").attrs["units"] = unit


def write_jsonl(path: Path, records: Sequence[Record]) -> None:
    with open(path, "w", encoding="utf-8") as handle:
        for record in records:
            row = {
                "symbols": [chemical_symbols[z] for z in record.atomic_numbers], "positions": record.positions.tolist(),
                "energy": record.energy, "forces": record.forces.tolist(), "group": record.group,
                "energy_unit": "eV", "length_unit": "angstrom",
            }  # fmt: skip
            handle.write(json.dumps(row) + "\n")


def _qcml_rows(records: Sequence[Record]) -> list[dict]:
    return [
        {
            "atomic_numbers": record.atomic_numbers.tolist(), "positions": (record.positions / Bohr).tolist(),
            "pbe0_energy": record.energy / Hartree, "pbe0_forces": (record.forces / Hartree * Bohr).tolist(),
            "pbe0_formation_energy": -1.0, "charge": 0, "multiplicity": 1, "is_outlier": False, "key_hash": f"{k:04x}",
        }
        for k, record in enumerate(records)
    ]  # fmt: skip


def write_parquet(path: Path, records: Sequence[Record]) -> None:
    """QCML's columns, in Ha and bohr."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_qcml_rows(records)), path, row_group_size=5)


def write_tfrecord(path: Path, records: Sequence[Record]) -> None:
    """QCML as TensorFlow writes it: float32, flat."""
    with open(path, "wb") as handle:
        for row in _qcml_rows(records):
            features = b"".join(_message(1, _feature(name, value)) for name, value in row.items())
            example = _message(1, features)
            length = struct.pack("<Q", len(example))
            crc = [struct.pack("<I", _masked_crc(part)) for part in (length, example)]
            handle.write(length + crc[0] + example + crc[1])


def _feature(name: str, value) -> bytes:
    if isinstance(value, str):
        inner = _message(1, _message(1, value.encode()))
    elif isinstance(value, float) or (isinstance(value, list) and isinstance(value[0], list)):
        inner = _message(2, _message(1, np.asarray(value, "<f4").tobytes()))
    else:
        numbers = [int(number) % (1 << 64) for number in np.atleast_1d(value)]
        inner = _message(3, _message(1, b"".join(_varint(number) for number in numbers)))
    return _message(1, name.encode()) + _message(2, inner)


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


# {format: (file name, writer, options that the file needs)}
WRITERS: dict[str, tuple[str, Callable[[Path, Sequence[Record]], None], dict]] = {
    "extxyz": ("methanol.extxyz", write_extxyz, {}),
    "extxyz.xz": ("methanol.extxyz.xz", write_extxyz, {}),
    "traj": ("methanol.traj", write_traj, {}),
    "ase-db": ("methanol.db", write_ase_db, {}),
    "ase-json": ("methanol.json", write_ase_db, {}),
    "nabla2dft": ("nabla.db", write_nabla, {"group_key": "moses_id"}),
    "rmd17": ("rmd17_methanol.npz", write_rmd17, {}),
    "npz": ("methanol.npz", write_npz, {"energy_unit": "kcal/mol", "length_unit": "A"}),
    "ani1x": ("ani1x.h5", write_ani1x, {"energy_key": "wb97x_dz.energy"}),
    "qm7x": ("qm7x.hdf5", write_qm7x, {"energy_key": "ePBE0+MBD"}),
    "transition1x": ("transition1x.h5", write_transition1x, {}),
    "hdf5": ("spice.h5", write_spice, {}),
    "jsonl": ("methanol.jsonl", write_jsonl, {}),
    "parquet": ("qcml.parquet", write_parquet, {}),
    "tfrecord": ("qcml.tfrecord-00000-of-00001", write_tfrecord, {}),
}
