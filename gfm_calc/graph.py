"""Structures to graphs: the only place where structures are validated and edges are made.

`validate_atoms` -> `AtomicGraph.build` -> `GraphBatch.from_graphs`.  Training, calculator and screening all pass here,
so they see the same structures, the same errors and the same edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from .config import MAX_ATOMIC_NUMBER
from .errors import InvalidStructureError
from .fields import INPUT_FIELDS
from .neighbors import edge_vectors, neighbor_list, reduced_cell

MIN_DISTANCE = 0.1  # Å; closer atoms are one atom given twice
MIN_CELL_LENGTH = 0.6  # Å; shorter than any bond
MAX_CELL_LENGTH = 1.0e5  # Å
MAX_POSITION = 1.0e7  # Å; beyond, float64 differences lose the digits that forces need
MAX_CHARGE = 100
MAX_WHOLE_NUMBER = 1_000_000  # of charge and spin


def validate_atoms(atoms: Atoms, *, source: str | None = None, frame: int | None = None) -> None:
    """Refuse structures that have no physical meaning.

    Raises:
        InvalidStructureError: no atoms, an unknown element, NaN or inf in positions or cell, a zero, singular, tiny or
            huge periodic cell.  (Overlapping atoms are found by `AtomicGraph.build`, charge and spin by
            `charge_and_spin`.)
    """

    def refuse(reason: str, atom: int | None = None):
        raise InvalidStructureError(reason, source=source, frame=frame, atom=atom)

    if not isinstance(atoms, Atoms):
        refuse(f"expected ase.Atoms, found {type(atoms).__name__}")
    if len(atoms) == 0:
        refuse("no atoms")
    numbers, positions = atoms.numbers, atoms.positions
    bad = np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))
    if bad.size:
        refuse(f"atomic number {numbers[bad[0]]} is no element (1 to {MAX_ATOMIC_NUMBER})", atom=int(bad[0]))
    # One pass over the array in the usual case: NaN and inf fail the comparison too.
    if not np.abs(positions).max() <= MAX_POSITION:
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        if bad.size:
            refuse("position is NaN or infinite", atom=int(bad[0]))
        far = int(np.abs(positions).max(axis=1).argmax())
        refuse(f"position beyond {MAX_POSITION:g} Å: check the unit", atom=far)
    if atoms.pbc.any() or atoms.cell.array.any():
        _validate_cell(atoms.cell.array, atoms.pbc, refuse)


def _is_plain(cell: np.ndarray) -> bool:
    """Whether a cell with three periodic axes is beyond doubt, by a bound that most meet: the product of the other two singular
    values of three unit vectors is 1.5 at most.  In plain numbers, which for nine of them are ten times as fast as arrays."""
    (a, b, c), (d, e, f), (g, h, i) = cell.tolist()
    lengths = math.hypot(a, b, c), math.hypot(d, e, f), math.hypot(g, h, i)
    if not (min(lengths) >= MIN_CELL_LENGTH and max(lengths) <= MAX_CELL_LENGTH):  # NaN fails, too
        return False
    volume = abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    bound = volume / math.prod(lengths) / 1.5
    return bound > 1e-6 and bound * min(lengths) > MIN_CELL_LENGTH


def _validate_cell(cell: np.ndarray, pbc: np.ndarray, refuse) -> None:
    if pbc.all() and _is_plain(cell):
        return
    if not np.isfinite(cell).all():
        refuse("cell holds NaN or inf")
    lengths = np.linalg.norm(cell, axis=1)
    for axis in np.flatnonzero(pbc):
        name = "abc"[axis]
        if lengths[axis] == 0:
            refuse(f"periodic along {name}, but that cell vector is zero: set the cell or pbc=False")
        if lengths[axis] < MIN_CELL_LENGTH:
            refuse(
                f"cell vector {name} is {lengths[axis]:.3g} Å, shorter than any bond: is the cell in nm or fractional?"
            )
        if lengths[axis] > MAX_CELL_LENGTH:
            refuse(f"cell vector {name} is {lengths[axis]:.3g} Å, beyond {MAX_CELL_LENGTH:g} Å: check the unit")
    given = lengths > 0
    if not pbc.any():
        return
    flatness = np.linalg.svd(cell[given] / lengths[given, None], compute_uv=False)[-1]
    if flatness < 1e-6:
        refuse("cell is singular (its vectors are linearly dependent): set a cell with a volume or pbc=False")
    if flatness * lengths[pbc].min() < MIN_CELL_LENGTH:  # long vectors may span a lattice with short ones
        shortest = np.linalg.norm(reduced_cell(cell, pbc)[0][pbc], axis=1).min()
        if shortest < MIN_CELL_LENGTH:
            refuse(
                f"cell repeats itself every {shortest:.3g} Å, shorter than any bond: its vectors are nearly dependent"
            )


def charge_and_spin(atoms: Atoms, *, source: str | None = None, frame: int | None = None) -> tuple[int, int]:
    """Total charge (e) and spin multiplicity from `atoms.info`, checked, never written back.

    `info["charge"]` defaults to 0, `info["spin"]` (2S+1) to the lowest multiplicity that the electron count allows.

    Raises:
        InvalidStructureError: not whole numbers, more charge than electrons, or a multiplicity of the wrong parity.
    """

    def refuse(reason: str):
        raise InvalidStructureError(reason, source=source, frame=frame)

    charge = _whole_number(atoms.info.get("charge", 0), "charge", refuse)
    given = atoms.info.get("spin")
    return check_totals(atoms, charge, None if given is None else _whole_number(given, "spin", refuse), refuse)


def check_totals(atoms: Atoms, charge: int, spin: int | None, refuse) -> tuple[int, int]:
    """(charge, spin) with the spin filled in where it is None; calls `refuse(reason)` where they are impossible."""
    protons = int(atoms.numbers.sum())
    electrons = protons - charge
    if electrons < 0:
        refuse(f"charge {charge:+d} removes more than all {protons} electrons")
    if abs(charge) > MAX_CHARGE:
        refuse(f"charge {charge:+d} is out of range")
    lowest = 1 + electrons % 2
    spin = lowest if spin is None else spin
    if spin < 1:
        refuse(f"spin multiplicity must be at least 1, not {spin} (give 2S+1, not S)")
    if (spin - lowest) % 2:
        refuse(f"spin multiplicity {spin} is impossible with {electrons} electrons (try {lowest} or {lowest + 2})")
    if spin - 1 > electrons:
        refuse(f"spin multiplicity {spin} needs more than {electrons} electrons")
    return charge, spin


def _whole_number(value: Any, name: str, refuse) -> int:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        shown = f"{value!r:.40}" if isinstance(value, (str, bool, type(None))) else f"a {type(value).__name__}"
        refuse(f"{name} must be a whole number, not {shown}")
    # Python's integers may be too large to convert or to print; NaN and inf fail the comparison too.
    if not abs(value) <= MAX_WHOLE_NUMBER:
        refuse(f"{name} must be a whole number within {MAX_WHOLE_NUMBER:g} of zero")
    if value != round(value):
        refuse(f"{name} must be a whole number, not {value!r}")
    return int(value)


class AtomicGraph(Data):
    """One structure and its edges, a torch_geometric `Data`.

    Tensors (n atoms, E edges): atomic_numbers [n], positions [n, 3] Å, cell [1, 3, 3] Å, pbc [1, 3], charge [1] e,
    spin [1] (2S+1), edge_index [2, E] (`[0]` source j, `[1]` target i), edge_cell_shift [E, 3].
    Levels, dtypes and units are in `gfm_calc.fields`.
    """

    @classmethod
    def build(
        cls, atoms: Atoms, cutoff: float, *, source: str | None = None, frame: int | None = None,
        edges: tuple[np.ndarray, np.ndarray] | None = None, totals: tuple[int, int] | None = None,
    ) -> AtomicGraph:  # fmt: skip
        """Validate `atoms`, find its neighbours within `cutoff` (Å) and pack both.

        Args:
            edges: (edge_index, edge_cell_shift) where the caller has them already (Verlet lists).
            totals: (charge, spin) where the caller has checked them already; else from `atoms.info`.

        Raises:
            InvalidStructureError: see `validate_atoms`, `charge_and_spin`; or two atoms closer than 0.1 Å.
        """
        validate_atoms(atoms, source=source, frame=frame)
        charge, spin = totals or charge_and_spin(atoms, source=source, frame=frame)
        positions = np.array(atoms.positions, dtype=np.float64)
        cell = np.array(atoms.cell.array, dtype=np.float64)
        if edges is None:
            try:
                edges = neighbor_list(positions, cell, atoms.pbc, cutoff)
                refuse_overlap(positions, cell, edges)
            except InvalidStructureError as error:
                raise error.at(source=source, frame=frame) from error
        return cls.from_arrays(
            atomic_numbers=atoms.numbers, positions=positions, cell=cell, pbc=atoms.pbc, charge=charge, spin=spin,
            edge_index=edges[0], edge_cell_shift=edges[1],
        )  # fmt: skip

    @classmethod
    @torch.inference_mode(False)  # tensors made in it cannot take part in a gradient
    def from_arrays(
        cls, *, atomic_numbers, positions, cell, pbc, charge, spin, edge_index, edge_cell_shift
    ) -> AtomicGraph:
        """Pack arrays that are known to be sound."""
        graph = cls()
        store = graph._store
        store["atomic_numbers"] = torch.as_tensor(np.asarray(atomic_numbers, dtype=np.int64))
        store["positions"] = torch.from_numpy(positions)
        store["cell"] = torch.from_numpy(cell).unsqueeze(0)
        store["pbc"] = torch.as_tensor(np.asarray(pbc, dtype=bool)).unsqueeze(0)
        store["charge"] = torch.tensor([float(charge)], dtype=torch.float64)
        store["spin"] = torch.tensor([int(spin)], dtype=torch.int64)
        store["edge_index"] = torch.from_numpy(np.ascontiguousarray(edge_index))
        store["edge_cell_shift"] = torch.from_numpy(np.ascontiguousarray(edge_cell_shift))
        store["num_nodes"] = len(positions)
        return graph

    def __inc__(self, key: str, value: Any, *args, **kwargs) -> Any:
        return self.num_nodes if key == "edge_index" else 0

    def __cat_dim__(self, key: str, value: Any, *args, **kwargs) -> Any:
        return 1 if key == "edge_index" else 0


class GraphArrays(NamedTuple):
    """A structure and its edges as NumPy arrays, sound ones: what `AtomicGraph` holds, with one axis less where that is 1.

    For many small structures, whose tensors would take longer to make than their predictions.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    charge: int
    spin: int
    edge_index: np.ndarray
    edge_cell_shift: np.ndarray

    @property
    def num_nodes(self) -> int:
        """Atoms."""
        return len(self.positions)


def refuse_overlap(positions, cell, edges) -> np.ndarray:
    """Raise InvalidStructureError where two atoms (or an atom and an image) are closer than `MIN_DISTANCE`.

    Returns:
        the squares of the lengths of the edges [E], Å².
    """
    edge_index, shift = edges
    if not edge_index.shape[1]:
        return np.zeros(0)
    vectors = edge_vectors(positions, cell, edge_index, shift)
    squared = np.einsum("ei,ei->e", vectors, vectors)
    closest = int(squared.argmin())
    if squared[closest] < MIN_DISTANCE**2:
        j, i = (int(a) for a in edge_index[:, closest])
        other = f"a periodic image of atom {j}" if shift[closest].any() else f"atom {j}"
        reason = f"{squared[closest] ** 0.5:.3g} Å from {other}: two atoms at one place; remove one or check the unit"
        raise InvalidStructureError(reason, atom=i)
    return squared


class GraphBatch(Data):
    """Several graphs as one, a torch_geometric `Data` laid out as `Batch.from_data_list` lays it out.

    The tensors of `AtomicGraph`, concatenated (edge_index offset), and batch [N] (the graph of each atom), ptr [B+1]
    (the first atom of each graph), num_graphs.
    """

    @classmethod
    @torch.inference_mode(False)
    def from_graphs(cls, graphs: Sequence[AtomicGraph] | Sequence[GraphArrays]) -> GraphBatch:
        """Concatenate `graphs`, all of one kind; the order is kept.

        Raises:
            ValueError: no graphs.
        """
        if not graphs:
            raise ValueError("a batch needs at least one graph")
        if isinstance(graphs[0], GraphArrays):
            return cls._from_arrays(graphs)  # type: ignore[arg-type]
        stores = [graph._store for graph in graphs]
        counts = torch.tensor([store["num_nodes"] for store in stores])
        merged = cls()
        target = merged._store
        for name in INPUT_FIELDS:
            tensors = [store[name] for store in stores]
            target[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        ptr = torch.zeros(len(graphs) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=ptr[1:])
        edge_index = [store["edge_index"] for store in stores]
        if len(graphs) == 1:
            target["edge_index"] = edge_index[0]
        else:
            edge_counts = torch.tensor([edges.shape[1] for edges in edge_index])
            target["edge_index"] = torch.cat(edge_index, dim=1) + torch.repeat_interleave(ptr[:-1], edge_counts)
        target["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), counts)
        target["ptr"] = ptr
        target["num_nodes"] = int(ptr[-1])
        return merged

    @classmethod
    def _from_arrays(cls, graphs: Sequence[GraphArrays]) -> GraphBatch:
        counts = np.array([graph.num_nodes for graph in graphs])
        ptr = np.concatenate([[0], np.cumsum(counts)])
        offsets = np.repeat(ptr[:-1], [graph.edge_index.shape[1] for graph in graphs])
        arrays = {
            "atomic_numbers": np.concatenate([graph.atomic_numbers for graph in graphs], dtype=np.int64),
            "positions": np.concatenate([graph.positions for graph in graphs], dtype=np.float64),
            "cell": np.stack([graph.cell for graph in graphs], dtype=np.float64),
            "pbc": np.stack([graph.pbc for graph in graphs], dtype=bool),
            "charge": np.array([graph.charge for graph in graphs], np.float64),
            "spin": np.array([graph.spin for graph in graphs], np.int64),
            "edge_index": np.concatenate([graph.edge_index for graph in graphs], axis=1) + offsets,
            "edge_cell_shift": np.concatenate([graph.edge_cell_shift for graph in graphs]),
            "batch": np.repeat(np.arange(len(graphs)), counts), "ptr": ptr,
        }  # fmt: skip
        merged = cls()
        for name, array in arrays.items():
            merged._store[name] = torch.from_numpy(array)
        merged._store["num_nodes"] = int(ptr[-1])
        return merged

    @property
    def num_graphs(self) -> int:
        """How many structures the batch holds."""
        return self._store["ptr"].shape[0] - 1
