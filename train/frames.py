"""Labelled frames in memory: extended XYZ files in, flat arrays with labels, heads and split sides out."""

from __future__ import annotations

import hashlib
import io
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from gfm_calc.errors import InputFileError, one_line

TRAIN, VALIDATION, TEST = 0, 1, 2  # in order: the larger is the more held out


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames as flat arrays; frame k owns atoms ptr[k]:ptr[k+1].

    numbers [A], positions [A, 3] Å, forces [A, 3] eV/Å (NaN: no label), ptr [M+1], cell [M, 3, 3] Å, pbc [M, 3],
    energy [M] eV, stress [M, 3, 3] eV/Å³ (NaN: no label), charge [M], spin [M] (0: default), head [M] (index into
    `heads`), side [M] (TRAIN, VALIDATION, TEST), source [M] (file stem).
    """

    heads: tuple[str, ...]
    numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray
    ptr: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: np.ndarray
    stress: np.ndarray
    charge: np.ndarray
    spin: np.ndarray
    head: np.ndarray
    side: np.ndarray
    source: np.ndarray

    def atoms(self, index: int) -> Atoms:
        """Frame `index` as ase.Atoms, charge and spin in `info`, without labels."""
        rows = slice(self.ptr[index], self.ptr[index + 1])
        atoms = Atoms(self.numbers[rows], positions=self.positions[rows], cell=self.cell[index], pbc=self.pbc[index])
        if self.charge[index]:
            atoms.info["charge"] = int(self.charge[index])
        if self.spin[index]:
            atoms.info["spin"] = int(self.spin[index])
        return atoms

    def select(self, head: str, side: int) -> np.ndarray:
        """Indices of the frames of one head on one side of the split."""
        return np.flatnonzero((self.head == self.heads.index(head)) & (self.side == side))


def load_frames(files: Mapping[str, Sequence[Path]], cache: Path | None = None) -> Frames:
    """Read {head: files} and split by the `group` key (see `split_sides`).

    Args:
        cache: an .npz to read instead, where it is there, or to write.

    Raises:
        InputFileError: a file that is missing or not extended XYZ, or a frame without an energy.
    """
    if cache is not None and cache.exists():
        return _read_cache(cache, tuple(files))
    rows: list[tuple] = []
    groups: list[str] = []
    for index, paths in enumerate(files.values()):
        for path in paths:
            for k, atoms in enumerate(read_extxyz(path)):
                rows.append(_row(atoms, index, path, k))
                groups.append(str(atoms.info.get("group", f"{path.name}:{k}")))
    columns = list(zip(*rows))
    heads = np.array(columns[9])
    frames = Frames(
        heads=tuple(files),
        numbers=np.concatenate(columns[0]), positions=np.concatenate(columns[1]), forces=np.concatenate(columns[2]),
        ptr=np.cumsum([0] + [len(n) for n in columns[0]]), cell=np.stack(columns[3]), pbc=np.stack(columns[4]),
        energy=np.array(columns[5]), stress=np.stack(columns[6]), charge=np.array(columns[7]), spin=np.array(columns[8]),
        head=heads, side=split_sides(groups, heads), source=np.array(columns[10]),
    )  # fmt: skip
    if cache is not None:
        np.savez(cache, **{**frames.__dict__, "heads": np.array(frames.heads)})
    return frames


def _read_cache(cache: Path, heads: tuple[str, ...]) -> Frames:
    try:
        with np.load(cache, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
        kept = tuple(str(head) for head in columns.pop("heads"))
        frames = Frames(**columns, heads=kept)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise InputFileError(f"{cache}: no cache of frames ({one_line(error)}): delete it") from error
    if kept != heads:
        raise InputFileError(f"{cache}: holds heads {', '.join(kept)}, not {', '.join(heads)}: delete it")
    return frames


def read_extxyz(path: Path) -> list[Atoms]:
    """All frames of an .extxyz or .extxyz.xz file (decompressed first: ASE seeks, which is quadratic in .xz)."""
    if not path.is_file():
        raise InputFileError(f"{path}: no such file")
    try:
        if path.suffix == ".xz":
            with lzma.open(path, "rt") as handle:
                text = handle.read()
        else:
            text = path.read_text()
        return list(ase.io.iread(io.StringIO(text), ":", format="extxyz"))
    except Exception as error:  # ASE leaks KeyError, StopIteration and more on damaged files
        raise InputFileError(f"{path}: not readable as extended XYZ ({one_line(error)})") from error


def _row(atoms: Atoms, head: int, path: Path, frame: int) -> tuple:
    results = atoms.calc.results if atoms.calc is not None else {}
    energy = results.get("energy")
    if energy is None or not np.isfinite(energy):
        raise InputFileError(f"{path}, frame {frame}: no finite energy")
    forces = results.get("forces", np.full((len(atoms), 3), np.nan))
    stress = np.full((3, 3), np.nan)
    if "stress" in results:
        xx, yy, zz, yz, xz, xy = results["stress"]
        stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    charge, spin = int(atoms.info.get("charge", 0)), int(atoms.info.get("spin", 0))
    source = path.name.split(".")[0]
    return (
        atoms.numbers,
        atoms.positions,
        forces,
        atoms.cell.array,
        atoms.pbc,
        energy,
        stress,
        charge,
        spin,
        head,
        source,
    )


def split_sides(groups: Sequence[str], heads: np.ndarray, test: float = 0.05, validation: float = 0.02) -> np.ndarray:
    """TRAIN, VALIDATION or TEST for every frame, by group: a group is on one side in every file and head.

    The side follows from a hash of the group's name.  A name "a+b" is a pair of groups: it goes to the most held-out
    side of its parts.  A head whose few groups would leave a side empty gives it the groups of lowest hash.
    """
    drawn = {part: _fraction(part) for group in set(groups) for part in group.split("+")}
    side_of = {part: TEST if x < test else VALIDATION if x < test + validation else TRAIN for part, x in drawn.items()}
    for head in np.unique(heads):
        own = sorted({groups[int(k)] for k in np.flatnonzero(heads == head)}, key=_fraction)
        present = {max(side_of[p] for p in g.split("+")) for g in own}
        for side in (TEST, VALIDATION):
            if side not in present and len(own) > 2:
                moved = next(g for g in own if side_of[g] == TRAIN)
                side_of[moved] = side
    return np.array([max(side_of[p] for p in group.split("+")) for group in groups])


def _fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2.0**64


def fit_reference_energies(frames: Frames, indices: np.ndarray, ridge: float = 1e-3) -> dict[str, float]:
    """Least squares of the energies on the composition, float64, eV; a small ridge settles what the data do not fix.

    Args:
        indices: frames to fit (the training split only).
    """
    numbers = np.unique(np.concatenate([frames.numbers[frames.ptr[k] : frames.ptr[k + 1]] for k in indices]))
    counts = np.stack([(frames.numbers[frames.ptr[k] : frames.ptr[k + 1], None] == numbers).sum(0) for k in indices])
    sizes = counts.sum(axis=1, keepdims=True)
    matrix, energy = counts / sizes, frames.energy[indices] / sizes[:, 0]
    mean = energy.mean()
    normal = matrix.T @ matrix + ridge * np.eye(len(numbers))
    solution = mean + np.linalg.solve(normal, matrix.T @ (energy - mean))
    return {chemical_symbols[z]: round(float(e), 8) for z, e in zip(numbers, solution)}
