"""Labelled data: readers of every format, what is in a file, datasets on disk and in memory, splits, reference energies.

>>> from gfm_calc.data import read, open_dataset
>>> for record in read("water.extxyz.xz"):
...     record.energy, record.forces  # eV, eV/Å
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import Any as _Any

_LAZY = {
    "ReadOptions": "readers",
    "Record": "schema",
    "SOURCES": "registry",
    "fit_reference_energies": "references",
    "inspect": "inspection",
    "open_dataset": "store",
    "read": "readers",
    "split": "splits",
}
__all__ = [*_LAZY]


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return getattr(_import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
