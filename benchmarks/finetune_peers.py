"""Other codes that learn the structures of a downstream task beside ours, in as many seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms

from gfm_calc.benchmarks.contenders import Process
from gfm_calc.data.store import Dataset
from gfm_calc.errors import GFMError
from gfm_calc.finetune.setup import Setup
from gfm_calc.ranks import roc_auc

PEERS = MappingProxyType({
    "chgnet": "CHGNet, fine-tuned as long", "schnetpack": "PaiNN of schnetpack, from scratch, as long",
})  # fmt: skip
# What a peer has learnt of a task before.
SEEN = MappingProxyType({
    ("chgnet", "matbench_mp_e_form"): "energies of the Materials Project",
})  # fmt: skip
_SCRIPT = Path(__file__).resolve().parent / "peers" / "learn.py"


def learn(name: str, python: str, setup: Setup, *, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """{errors, steps, version} of a peer on the structures of a fine-tuning, of energies and forces or of a property of
    structures.

    Args:
        name: one of `PEERS`.  python: of its environment.
        setup: of the fine-tuning, whose sides are given to it.
        seconds: to learn in, on as many threads as we have.
        folder: for the files.

    Raises:
        GFMError: its process ended, or could not do it.
    """
    spec = setup.dataset.head
    job: dict[str, Any] = {"seconds": seconds, "seed": seed, "validation": None}
    if spec.kind != "energy":
        job["property"] = "class" if spec.kind == "class" else "extensive" if spec.extensive else "intensive"
    for side, rows in setup.sides.as_mapping().items():
        if rows.size:
            job[side] = str(folder / f"{side}.extxyz")
            ase.io.write(job[side], _frames(setup.dataset, rows), format="extxyz")
    threads = torch.get_num_threads()
    process = Process(name, [python, str(_SCRIPT), "--model", name, "--threads", str(threads)], threads)
    try:
        answer = process.ask(job)
        described: Mapping[str, Any] = process.description
    finally:
        process.close()
    if "error" in answer:
        raise GFMError(f"--peer {name}: {answer['error']}")
    steps = answer.pop("steps")
    if "values" in answer:
        answer |= _errors(setup.dataset, setup.sides.test, np.array(answer.pop("values")))
    return {"errors": answer, "steps": steps, "version": f"{described['name']} ({described['version']})"}


def _frames(dataset: Dataset, rows: np.ndarray) -> list[Atoms]:
    """With labels; a property is called `value`."""
    if dataset.head.kind == "energy":
        return [dataset[int(k)] for k in rows]
    block = dataset.read(rows)
    found = []
    for record in block.records():
        atoms = record.structure()
        assert record.value is not None
        atoms.info = {"value": float(np.ravel(record.value)[0])}
        found.append(atoms)
    return found


def _errors(dataset: Dataset, rows: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Of predicted values, in the words of `evaluation.figures`."""
    labels = dataset.read(rows).value
    assert labels is not None
    truth = labels[:, 0]
    if dataset.head.kind == "class":
        return {"accuracy": float(((found > 0.5) == (truth > 0.5)).mean()), "roc_auc": roc_auc(truth, found)}
    off = np.abs(found - truth)
    return {"value_mae": float(off.mean()), "value_rmse": float(np.sqrt(np.square(off).mean()))}
