"""What a head's card, and the start of its training, need to know of its training structures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gfm_calc.config import HeadSpec
from gfm_calc.data.block import NO_CHARGE, NO_SPIN
from gfm_calc.data.store import Dataset
from gfm_calc.graph import AtomicGraph

_SAMPLE = 128  # structures of a head whose edges are counted
_SCALES = (0.3, 3.0)  # eV; least and largest scale of a head


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of the training structures of a head.

    Attributes: `scale`, eV; `charges`, lowest and highest; `excess`, unpaired electrons; `periodicity`; `neighbors` of an atom
    and `atoms` of a structure, on average; `frames` of each file, by its name without endings.
    """

    scale: float
    charges: tuple[int, int]
    excess: int
    periodicity: tuple[str, ...]
    neighbors: float
    atoms: float
    frames: Mapping[str, int]

    def on_card(self, card: HeadSpec, references: Mapping[str, float], **more: Any) -> HeadSpec:
        """The card of a head that knows the elements of `references` (symbol -> eV); more: other fields of it."""
        return replace(
            card, elements=tuple(references), reference_energies=dict(references), charges=self.charges,
            max_excess_spin=self.excess, periodicity=self.periodicity, **more,
        )  # fmt: skip

    def of_work(self) -> dict[str, float]:
        """How much work its structures are, as fields of `Head`."""
        return {"neighbors": self.neighbors, "atoms": self.atoms}


def statistics_of(dataset: Dataset, indices: np.ndarray, cutoff: float) -> Statistics:
    """Of some structures of a dataset."""
    squares, count, excess, atoms = 0.0, 0, 0, 0
    charges: list[int] = [0]
    axes = np.zeros(4, int)
    frames: Counter[str] = Counter()
    for first in range(0, len(indices), 4096):
        block = dataset.read(indices[first : first + 4096], names=True)
        frames.update(source.partition(".")[0] for source in block.source or ())
        atoms += len(block.atomic_numbers)
        if block.forces is not None:
            clipped = np.clip(block.forces[np.isfinite(block.forces)], -10, 10)
            squares, count = squares + float(np.square(clipped).sum()), count + clipped.size
        charge = np.where(block.charge == NO_CHARGE, 0, block.charge).astype(int)
        charges += [int(charge.min()), int(charge.max())]
        electrons = np.add.reduceat(block.atomic_numbers.astype(int), block.ptr[:-1]) - charge
        lowest = electrons % 2 + 1
        spin = np.where(block.spin == NO_SPIN, lowest, block.spin)
        excess = max(excess, int((spin - lowest).max()))
        axes += np.bincount(block.pbc.sum(axis=1), minlength=4)
    kinds = [kind for kind, seen in (("molecule", axes[:3].any()), ("bulk", axes[3])) if seen]
    sample = indices[np.linspace(0, len(indices) - 1, min(_SAMPLE, len(indices))).astype(int)]
    graphs = [AtomicGraph.build(record.structure(), cutoff) for record in dataset.read(sample).records()]
    edges, nodes = sum(g.edge_index.shape[1] for g in graphs), sum(int(g.num_nodes or 0) for g in graphs)
    scale = math.sqrt(squares / count) if count else 1.0
    return Statistics(
        scale=float(np.clip(scale, *_SCALES)), charges=(min(charges), max(charges)), excess=excess,
        periodicity=tuple(kinds), neighbors=edges / nodes, atoms=atoms / len(indices), frames=dict(frames),
    )  # fmt: skip
