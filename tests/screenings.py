"""Small screenings for the tests: candidates, command lines, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gfm_calc.screening.table import unsealed

ELEMENTS = ("H", "C", "N", "O", "Na", "Al", "Si", "Cl", "Cu", "Pt")  # of the saved model
CHUNK = 5  # candidates in a file
RANDOM = """
[[candidates]]
kind = "random"
count = {count}
max_atoms = 12
box = 5.0
distance = 0.0
elements = ["H", "C", "O", "Cu", "Xe"]
"""


def need_pyarrow() -> None:
    """Skip where result files cannot be written."""
    pytest.importorskip("pyarrow", reason="results are Parquet files")


def random_candidates(folder: Path, count: int = 60) -> Path:
    """A TOML file of random structures, some of which have an element that the model has not seen."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "random.toml"
    path.write_text(RANDOM.format(count=count))
    return path


def argv(inputs, output: Path, model: Path | str, *more: str, heads=("first",)) -> list[str]:
    """The command line of a small screening."""
    words = ["screen", *map(str, inputs), "-o", str(output), "--model", str(model), "--device", "cpu", "--threads", "1"]
    words += ["--patience", "3", "--no-report", "--chunk", str(CHUNK)]
    for head in heads:
        words += ["--head", head]
    return [*words, *more]


def chunks(folder: Path) -> dict[str, bytes]:
    """{name: bytes} of every file among the chunks, whatever it is."""
    return {path.name: path.read_bytes() for path in sorted((folder / "chunks").iterdir())}


def rows(folder: Path) -> list[dict]:
    """All rows in order."""
    return [row for path in sorted((folder / "chunks").glob("*.parquet")) for row in unsealed(path).read().to_pylist()]


def column(folder: Path, name: str) -> np.ndarray:
    """A column of all rows."""
    return np.array([row[name] for row in rows(folder)])
