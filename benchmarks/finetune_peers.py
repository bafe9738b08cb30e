"""Other codes that learn the structures of a downstream task beside ours, in as many seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ase.io
import torch

from gfm_calc.benchmarks.contenders import Process
from gfm_calc.errors import GFMError
from gfm_calc.finetune.setup import Setup

PEERS = MappingProxyType({
    "chgnet": "CHGNet, fine-tuned as long", "schnetpack": "PaiNN of schnetpack, from scratch, as long",
})  # fmt: skip
_SCRIPT = Path(__file__).resolve().parent / "peers" / "learn.py"


def learn(name: str, python: str, setup: Setup, *, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """{errors, steps, version} of a peer on the structures of a fine-tuning.

    Args:
        name: one of `PEERS`.  python: of its environment.
        setup: of the fine-tuning, whose sides are given to it.
        seconds: to learn in, on as many threads as we have.
        folder: for the files.

    Raises:
        GFMError: its process ended, or could not do it.
    """
    job: dict[str, Any] = {"seconds": seconds, "seed": seed, "validation": None}
    for side, rows in setup.sides.as_mapping().items():
        if rows.size:
            job[side] = str(folder / f"{side}.extxyz")
            ase.io.write(job[side], [setup.dataset[int(k)] for k in rows], format="extxyz")
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
    return {"errors": answer, "steps": steps, "version": f"{described['name']} ({described['version']})"}
