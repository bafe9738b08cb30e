"""gfm-calc: a multi-head graph foundation model for atoms, as an ASE calculator and as commands.

>>> from ase.build import molecule
>>> from gfm_calc import GFMCalculator
>>> atoms = molecule("CH3CH2OH")
>>> atoms.calc = GFMCalculator("gfm-small", head="gfn2-xtb")
>>> energy = atoms.get_potential_energy()  # eV

Importing this package is quick; torch is loaded when it is first needed.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

from ._version import __version__

_LAZY = {
    "GFMCalculator": "calculator",
    "GFMError": "errors",
    "HeadSpec": "config",
    "ModelConfig": "config",
    "Prediction": "model",
    "Predictor": "predictor",
    "describe": "checkpoint",
    "list_models": "checkpoint",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
}
__all__ = [*_LAZY, "__version__"]

# In a checkout the parts (train/, finetune/, screening/, benchmarks/) lie beside this package; installed, inside it.
_root = _Path(__file__).resolve().parent.parent
if (_root / "train" / "__init__.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return getattr(_import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
