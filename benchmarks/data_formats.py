"""Random reads beside other formats: the same frames in our store, ASE-LMDB, ASE's sqlite and HDF5, read in turns.

Every format is read the way its users do, with everything that they keep open kept open, from files in the page cache.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ase.db
import ase.io.jsonio
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.row import AtomsRow
from ase.stress import full_3x3_to_voigt_6_stress

from gfm_calc.benchmarks.data_sample import Sample, latencies, quantiles, size_of
from gfm_calc.benchmarks.numbers import rounded
from gfm_calc.commands.progress import Progress
from gfm_calc.data.block import Block
from gfm_calc.data.schema import Record
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.errors import GFMError, MissingDependencyError

READS, BATCHES, BATCH = 400, 12, 32  # a round


class Reader(Protocol):
    """An open file of some format; structures are counted from 0."""

    def atoms(self, index: int) -> Atoms:
        """A structure with its labels in a SinglePointCalculator."""

    def arrays(self, indices: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Structures as flat arrays: numbers, positions, forces, energy, counts."""


def run_reads(samples: Mapping[str, Sample], scratch: Path, *, rounds: int = 5) -> dict[str, Any]:
    """Measure.

    Returns:
        {"sets": rows}: {set, structures, atoms, formats: {format: {bytes, median_us, p99_us (a structure as ase.Atoms),
        first_us (median of the first reads after opening), structures_per_s (batches of 32 as arrays)}}}.

    Raises:
        GFMError: formats that do not give the same frames.
        MissingDependencyError: no lmdb or h5py.
    """
    rows = []
    with Progress("reads", "turns", len(samples) * (rounds + 1)) as progress:
        for name, sample in samples.items():
            paths = _written(sample, scratch / name)
            progress.advance(note=f"{name} written")
            rows.append(
                {"set": name, **sample.about, "formats": _measured(paths, len(sample.dataset), rounds, progress)}
            )
    return {"sets": rows, "batch": BATCH}


def _written(sample: Sample, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    paths = {"gfm-calc": sample.dataset.directory}
    for name, (suffix, write, _) in FORMATS.items():
        if write is not None:
            paths[name] = folder / f"frames{suffix}"
            write(paths[name], sample.dataset.records())
    return paths


def _measured(paths: Mapping[str, Path], count: int, rounds: int, progress: Progress) -> dict[str, dict[str, float]]:
    random = np.random.default_rng(0)
    readers: dict[str, Reader] = {name: FORMATS[name][2](path) for name, path in paths.items()}
    single: dict[str, list[float]] = {name: [] for name in readers}
    batched: dict[str, list[float]] = {name: [] for name in readers}
    first: dict[str, list[float]] = {}
    drawn = random.integers(count, size=READS).tolist()
    for name, reader in readers.items():
        first[name] = latencies(reader.atoms, drawn[:100])
        latencies(reader.arrays, np.array_split(np.arange(count), -(-count // 1024)))  # touch everything once
    for _ in range(rounds):
        drawn = random.integers(count, size=READS).tolist()
        groups = [random.integers(count, size=BATCH).tolist() for _ in range(BATCHES)]
        for name, reader in readers.items():
            single[name] += latencies(reader.atoms, drawn)
            batched[name] += latencies(reader.arrays, groups)
        progress.advance()
    _compare(readers, random.integers(count, size=100).tolist())
    return {
        name: {
            "bytes": size_of(paths[name]), **quantiles(single[name]), "first_us": quantiles(first[name])["median_us"],
            "structures_per_s": rounded(BATCH / float(np.median(batched[name]))),
        }
        for name in readers
    }  # fmt: skip


def _compare(readers: Mapping[str, Reader], indices: Sequence[int]) -> None:
    """All formats give the same numbers, else the comparison is none."""
    ours = readers["gfm-calc"]
    wanted = ours.arrays(indices)
    for name, reader in readers.items():
        found = reader.arrays(indices)
        for key, values in wanted.items():
            if not np.array_equal(values, found[key], equal_nan=True):
                raise GFMError(f"{name} gives other {key} than our store: the benchmark's writer or reader is wrong")
        for index in indices:
            a, b = ours.atoms(index), reader.atoms(index)
            same = a == b and a.calc.results.keys() == b.calc.results.keys()
            if not same or any(not np.array_equal(a.calc.results[key], b.calc.results[key]) for key in a.calc.results):
                raise GFMError(f"{name} gives another structure {index} than our store: the benchmark is wrong")


# ---- our store ----


class _Store:
    def __init__(self, path: Path):
        self.dataset: Dataset = open_dataset(path)

    def atoms(self, index: int) -> Atoms:
        return self.dataset[index]

    def arrays(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return _of_block(self.dataset.read(indices))


def _of_block(block: Block) -> dict[str, np.ndarray]:
    forces = np.full(block.positions.shape, np.nan) if block.forces is None else block.forces
    return {
        "numbers": block.atomic_numbers, "positions": block.positions, "forces": forces, "energy": block.energy,
        "counts": block.num_atoms,
    }  # fmt: skip


# ---- ASE-LMDB: the layout and the way of reading of ase-db-backends, which OMat24, OMol25 and OC25 are written with ----


def write_lmdb(path: Path, records: Iterable[Record]) -> None:
    """Rows as zlib-compressed JSON of ASE under their id, and `nextid`."""
    lmdb = _lmdb()
    with lmdb.open(str(path), map_size=1 << 36, subdir=False, meminit=False, map_async=True) as env:
        number = 0
        with env.begin(write=True) as transaction:
            for number, record in enumerate(records, 1):
                transaction.put(str(number).encode(), _packed(_row(record)))
            transaction.put(b"nextid", _packed(number + 1))
    path.with_name(path.name + "-lock").unlink(missing_ok=True)


def _row(record: Record) -> dict[str, Any]:
    row = AtomsRow(record.to_atoms())
    skipped = {"id", *row._keys}
    found = {key: row[key] for key in row.__dict__ if key[0] != "_" and key not in skipped}
    info = {"charge": record.charge, "spin": record.spin, "group": record.group, "source": record.source}
    data = {key: value for key, value in info.items() if value not in (None, "")}
    return {**found, "cell": np.asarray(found["cell"]), "ctime": 0.0, "mtime": 0.0, "user": "", "data": data}


def _packed(value: Any) -> bytes:
    return zlib.compress(ase.io.jsonio.encode(value).encode())


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise MissingDependencyError("reads of ASE-LMDB are measured with lmdb: pip install lmdb") from error
    return lmdb


class _Lmdb:
    """A transaction a read, as the library does it."""

    def __init__(self, path: Path):
        self._env = _lmdb().open(str(path), subdir=False, meminit=False, readonly=True, lock=False, readahead=False)

    def _row(self, index: int) -> dict[str, Any]:
        with self._env.begin() as transaction:
            stored = transaction.get(str(index + 1).encode())
        return ase.io.jsonio.decode(zlib.decompress(stored).decode())

    def atoms(self, index: int) -> Atoms:
        row = AtomsRow({**self._row(index), "id": index + 1})
        atoms = row.toatoms()
        atoms.info.update(row.data)
        return atoms

    def arrays(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return _joined([self._row(int(index)) for index in indices])


def _joined(rows: Sequence[Any]) -> dict[str, np.ndarray]:
    missing = [row.get("forces") for row in rows]
    forces = [np.full(r["positions"].shape, np.nan) if f is None else f for r, f in zip(rows, missing)]
    return {
        "numbers": np.concatenate([row["numbers"] for row in rows]), "forces": np.concatenate(forces),
        "positions": np.concatenate([row["positions"] for row in rows]),
        "energy": np.array([row.get("energy", np.nan) for row in rows]),
        "counts": np.array([len(row["numbers"]) for row in rows]),
    }  # fmt: skip


# ---- ASE's sqlite ----


def write_sqlite(path: Path, records: Iterable[Record]) -> None:
    """As `ase.db` writes it, in one transaction."""
    with ase.db.connect(path, append=False, type="db") as database:
        for record in records:
            info = {"group": record.group, "source": record.source}
            database.write(record.to_atoms(), data={key: value for key, value in info.items() if value})


class _Sqlite:
    """One connection that stays open."""

    def __init__(self, path: Path):
        self._database = ase.db.connect(path, type="db").__enter__()

    def atoms(self, index: int) -> Atoms:
        row = self._database._get_row(index + 1)
        atoms = row.toatoms()
        atoms.info.update(row.data)
        return atoms

    def arrays(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return _joined([self._database._get_row(int(index) + 1) for index in indices])


# ---- HDF5, a flat array a field ----


def write_hdf5(path: Path, records: Iterable[Record]) -> None:
    """The columns of a block, contiguous and uncompressed, with `ptr`; the fastest plain layout for random reads."""
    h5py = _h5py()
    block = Block.from_records(list(records))
    with h5py.File(path, "w") as file:
        for name in ("ptr", "atomic_numbers", "positions", "cell", "pbc", "energy", "charge", "spin"):
            file[name] = getattr(block, name)
        for name in ("forces", "stress"):
            if getattr(block, name) is not None:
                file[name] = getattr(block, name)
        for name in ("group", "source"):
            file[name] = np.array([word.encode() for word in getattr(block, name)])


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("reads of HDF5 are measured with h5py: pip install 'gfm-calc[readers]'") from error
    return h5py


class _Hdf5:
    """`ptr` in memory, all else read in place."""

    def __init__(self, path: Path):
        self._file = _h5py().File(path, "r")
        self._columns = {name: self._file[name] for name in self._file}
        self._ptr = self._columns["ptr"][:]

    def atoms(self, index: int) -> Atoms:
        columns, rows = self._columns, slice(int(self._ptr[index]), int(self._ptr[index + 1]))
        info = {name: columns[name][index].decode() for name in ("group", "source")}
        atoms = Atoms(
            columns["atomic_numbers"][rows], positions=columns["positions"][rows], cell=columns["cell"][index],
            pbc=columns["pbc"][index], info=info,
        )  # fmt: skip
        results: dict[str, Any] = {"energy": float(columns["energy"][index])}
        if "forces" in columns and not np.isnan((forces := columns["forces"][rows])[0, 0]):
            results["forces"] = forces
        if "stress" in columns and not np.isnan((stress := columns["stress"][index])[0, 0]):
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    def arrays(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        columns = self._columns
        rows = [slice(int(self._ptr[k]), int(self._ptr[k + 1])) for k in indices]
        counts = np.array([part.stop - part.start for part in rows])
        forces = (
            [columns["forces"][part] for part in rows] if "forces" in columns else [np.full((counts.sum(), 3), np.nan)]
        )
        return {
            "numbers": np.concatenate([columns["atomic_numbers"][part] for part in rows]),
            "positions": np.concatenate([columns["positions"][part] for part in rows]),
            "forces": np.concatenate(forces), "energy": np.array([columns["energy"][k] for k in indices]),
            "counts": counts,
        }  # fmt: skip


# {format: (suffix, writer, reader)}; our store is there already
FORMATS: dict[str, tuple[str, Callable[[Path, Iterable[Record]], None] | None, Callable[[Path], Reader]]] = {
    "gfm-calc": ("", None, _Store),
    "ASE-LMDB": (".aselmdb", write_lmdb, _Lmdb),
    "ASE sqlite": (".db", write_sqlite, _Sqlite),
    "HDF5": (".h5", write_hdf5, _Hdf5),
}
