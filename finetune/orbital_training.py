"""Makes what `orbitals` packages, from molecules: labels of GFN2-xTB by tblite, and a layer that is trained on them.

    python -m gfm_calc.finetune.orbital_training qm9_train40k.extxyz gfn2_molecules.extxyz --most 30000 -o orbitals.safetensors

The encoder stays what it is.  Structures that GFN2-xTB does not converge for, and charged or open-shell ones, are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.units import Bohr, Hartree
from torch import Tensor, nn

from gfm_calc.artifacts import write_file
from gfm_calc.checkpoint import load_model
from gfm_calc.commands.modules import write_new
from gfm_calc.data.sampling import spread_indices
from gfm_calc.encoders.base import scatter_sum
from gfm_calc.errors import GFMError, MissingDependencyError
from gfm_calc.finetune.orbitals import NAMES, encoder_digest, written
from gfm_calc.graph import AtomicGraph, GraphBatch, charge_and_spin
from gfm_calc.model import GFMModel
from gfm_calc.structures import read_structures

_UNITS, _STEPS, _BATCH, _RATE, _DECAY = 64, 12_000, 256, 3e-3, 1e-4
_HELD = 10  # one group of so many is held out: its errors are written down
_AT_ONCE = 200  # molecules that are encoded together


class Molecules(NamedTuple):
    """Of M molecules with N atoms: features [N, L F], float16; first [M + 1], the first atom of each; labels [M, 2], eV; groups,
    names of them."""

    features: Tensor
    first: Tensor
    labels: Tensor
    groups: np.ndarray

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Features, which molecule of the batch each atom belongs to, and labels."""
        spans = [torch.arange(int(self.first[k]), int(self.first[k + 1])) for k in rows]
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(span) for span in spans]))
        return self.features[torch.cat(spans)].float(), owner, self.labels[rows].float()


def frontier(atoms: Atoms) -> tuple[float, float] | None:
    """Energies in eV of the highest occupied and the lowest unoccupied orbital by GFN2-xTB; None of what is charged, has an open
    shell, or does not converge."""
    try:
        from tblite.interface import Calculator
    except ModuleNotFoundError as error:
        raise MissingDependencyError("GFN2-xTB needs tblite: pip install 'gfm-calc[xtb]'") from error
    if charge_and_spin(atoms) != (0, 1) or atoms.pbc.any():
        return None
    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr)
    calculator.set("verbosity", 0)
    try:
        found = calculator.singlepoint()
    except RuntimeError:
        return None
    energies = np.sort(found.get("orbital-energies")) * Hartree
    pairs = round(float(found.get("orbital-occupations").sum()) / 2)
    return (float(energies[pairs - 1]), float(energies[pairs])) if pairs < len(energies) else None


def molecules_of(model: GFMModel, labelled: Sequence[tuple[Atoms, tuple[float, float]]]) -> Molecules:
    """What the layer is trained on."""
    features = []
    for start in range(0, len(labelled), _AT_ONCE):
        part = [AtomicGraph.build(atoms, model.config.cutoff) for atoms, _ in labelled[start : start + _AT_ONCE]]
        with torch.no_grad():
            encoded = model.encode(model.inputs(GraphBatch.from_graphs(part)))
        features.append(torch.cat(encoded.layers, dim=1).half())
    first = torch.tensor([0, *np.cumsum([len(atoms) for atoms, _ in labelled]).tolist()])
    groups = np.array([atoms.info.get("group") or str(atoms.symbols) for atoms, _ in labelled])
    return Molecules(
        torch.cat(features), first, torch.tensor([label for _, label in labelled], dtype=torch.float64), groups
    )


def train(molecules: Molecules, *, steps: int, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights of the layer, as fields of `Orbitals`, and mean absolute errors in eV of the groups that are held out."""
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    names = np.unique(molecules.groups)
    if len(names) < 2:
        raise GFMError("all molecules are of one group, and none could be held out: more are needed")
    held = np.isin(molecules.groups, random.choice(names, max(1, len(names) // _HELD), replace=False))
    own, others = np.flatnonzero(~held), np.flatnonzero(held)
    sample = molecules.features[:: max(1, len(molecules.features) // 20_000)].float()
    mean, spread = sample.mean(dim=0), sample.std(dim=0) + 1e-6
    middle, size = molecules.labels[own].float().mean(dim=0), molecules.labels[own].float().std(dim=0)
    width = (molecules.labels[own, 1] - molecules.labels[own, 0]).std().float()  # of the gap
    with torch.random.fork_rng(devices=[]):  # the layers draw weights when they are made; ours come from the seed
        inner, outer = nn.Linear(len(mean), _UNITS), nn.Linear(_UNITS, len(NAMES))
    net = nn.Sequential(inner, nn.SiLU(), outer)
    for tensor in net.parameters():
        bound = tensor.shape[-1] ** -0.5
        nn.init.uniform_(tensor, -bound, bound, generator=generator)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)

    def errors(rows: np.ndarray) -> Tensor:
        features, owner, labels = molecules.batch(rows)
        total = scatter_sum(net((features - mean) / spread), owner, len(rows))
        wrong = total / torch.bincount(owner).unsqueeze(1) * size + middle - labels
        return torch.cat([wrong, wrong[:, 1:] - wrong[:, :1]], dim=1)  # the gap, too

    scales = torch.cat([size, width.reshape(1)])
    for _ in range(steps):
        loss = (errors(random.choice(own, _BATCH)) / scales).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        wrong = torch.cat([errors(part) for part in np.array_split(others, max(1, len(others) // _BATCH))])
        hidden = inner.weight / spread
        weights = {
            "hidden": hidden, "hidden_bias": inner.bias - hidden @ mean,
            "output": outer.weight * size.unsqueeze(1), "constant": outer.bias * size + middle,
        }  # fmt: skip
    return weights, dict(zip((*NAMES, "gap"), wrong.abs().mean(dim=0).tolist()))


def _labelled(path: Path, most: int) -> Iterator[tuple[Atoms, tuple[float, float]]]:
    structures = list(read_structures(path))
    for number, row in enumerate(spread_indices(len(structures), most)):
        found = frontier(structures[row])
        if found is not None:
            yield structures[row], found
        if number % 1000 == 999:
            print(f"{path.name}: {number + 1} molecules", file=sys.stderr)


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m gfm_calc.finetune.orbital_training", description="Frontier orbitals of molecules, learnt."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of molecules")
    parser.add_argument("--model", default="gfm-small", help="whose encoder sees them; default: %(default)s")
    parser.add_argument(
        "--most", type=int, default=30_000, help="molecules of each file, evenly spaced; default: %(default)s"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="new .safetensors")
    args = parser.parse_args(words)

    def made() -> str:
        model = load_model(args.model)
        labelled = [one for path in args.files for one in _labelled(path, args.most)]
        if not labelled:
            raise GFMError(f"{args.files[0]}: no neutral molecule with closed shells")
        weights, errors = train(molecules_of(model, labelled), steps=_STEPS)
        elements = {symbol for atoms, _ in labelled for symbol in atoms.symbols.species()}
        content = written(
            weights, encoder_digest(model), elements, molecules=str(len(labelled)),
            method="GFN2-xTB, DOI 10.1021/acs.jctc.8b01176, by tblite",
            **{f"mae_ev_{name}": f"{error:.3f}" for name, error in errors.items()},
        )  # fmt: skip
        write_file(args.output, content)
        wrong = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        return f"{len(labelled)} molecules of {len(elements)} elements; eV off those that were held out: {wrong}"

    return write_new(args.output, made)


if __name__ == "__main__":
    sys.exit(main())
