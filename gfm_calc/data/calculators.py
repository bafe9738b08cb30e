"""Calculators by name, for labelling: any ASE calculator that can be imported, and short names for the usual ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols as SYMBOLS

from ..errors import ConfigError, MissingDependencyError, did_you_mean, one_line
from ..graph import charge_and_spin

NAMES = {
    "tblite:METHOD": "GFN1-xTB, GFN2-xTB or IPEA1-xTB by the tblite package; charge and spin of each structure",
    "emt": "ASE's effective medium theory, for Al Ni Cu Pd Ag Pt Au (and rough H C N O)",
    "dftd3:FUNCTIONAL[/DAMPING]": "Grimme's D3 by the dftd3 package, dispersion alone; damping d3bj or d3zero",
    "gfm:MODEL[:HEAD]": "a packaged or saved model of ours",
    "MODULE:CLASS": "any ASE calculator class that can be imported, with --options for its arguments",
}
_TBLITE = ("GFN1-xTB", "GFN2-xTB", "IPEA1-xTB")
_HEAVIEST = 86  # atomic number, Rn, that these methods know
_DAMPINGS = ("d3bj", "d3zero")


@lru_cache(maxsize=2)
def make_calculator(name: str, options: str = "{}") -> Callable[[Atoms], Calculator]:
    """What gives a calculator for a structure, by a name of `NAMES`.

    Args:
        options: keyword arguments for it, a JSON object.

    Raises:
        ConfigError: no such calculator, or one that refuses its options.
        MissingDependencyError: its package is not installed.
    """
    kind, _, rest = name.partition(":")
    values = _options(options)
    makers: Mapping[str, Callable[..., Callable[[Atoms], Calculator]]] = {
        "tblite": _tblite, "emt": _emt, "dftd3": _dftd3, "gfm": _gfm
    }  # fmt: skip
    if kind in makers:
        return makers[kind](rest, values)
    if not rest:
        raise ConfigError(f"no calculator {name!r}{did_you_mean(name, makers)}: one of {', '.join(NAMES)}")
    return _imported(kind, rest, values)


def unknown_elements(name: str, atomic_numbers: Collection[int]) -> list[str]:
    """Symbols of those that a calculator is known to refuse, where its name tells; the lightest first."""
    heaviest = _HEAVIEST if name.startswith("tblite:") else len(SYMBOLS)
    return [SYMBOLS[z] for z in sorted(set(atomic_numbers)) if z > heaviest]


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"calculator options must be a JSON object, such as '{{\"accuracy\": 0.1}}': {error}"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"calculator options must be a JSON object, not {text[:40]}")
    return found


def _tblite(method: str, options: Mapping[str, Any]) -> Callable[[Atoms], Calculator]:
    if method not in _TBLITE:
        raise ConfigError(
            f"tblite has no method {method!r}{did_you_mean(method, _TBLITE)}: one of {', '.join(_TBLITE)}"
        )
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingDependencyError("GFN-xTB needs tblite: pip install 'gfm-calc[xtb]'") from error
    kept: dict[tuple[int, int], Calculator] = {}

    def calculator(atoms: Atoms) -> Calculator:
        totals = charge_and_spin(atoms)
        if totals not in kept:
            values = {"charge": totals[0], "multiplicity": totals[1], "verbosity": 0, **options}
            kept[totals] = _built(TBLite, f"tblite:{method}", {"method": method, **values})
        return kept[totals]

    return calculator


def _emt(rest: str, options: Mapping[str, Any]) -> Callable[[Atoms], Calculator]:
    from ase.calculators.emt import EMT

    if rest:
        raise ConfigError(f"emt takes no {rest!r}")
    return _one(_built(EMT, "emt", options))


def _dftd3(rest: str, options: Mapping[str, Any]) -> Callable[[Atoms], Calculator]:
    functional, _, damping = rest.partition("/")
    damping = damping or "d3bj"
    if not functional or damping not in _DAMPINGS:
        raise ConfigError(
            f"give dftd3:FUNCTIONAL or dftd3:FUNCTIONAL/DAMPING (one of {', '.join(_DAMPINGS)}), not {rest!r}"
        )
    try:
        from dftd3.ase import DFTD3
    except ImportError as error:
        raise MissingDependencyError("D3 needs dftd3: pip install 'gfm-calc[d3]'") from error
    return _one(_built(DFTD3, f"dftd3:{rest}", {"method": functional, "damping": damping, **options}))


def _gfm(rest: str, options: Mapping[str, Any]) -> Callable[[Atoms], Calculator]:
    model, _, head = rest.rpartition(":") if ":" in rest else (rest, "", "")
    return _imported(
        "gfm_calc.calculator", "GFMCalculator", {"model": model, "head": head or None, "skin": 0.0, **options}
    )


def _imported(module: str, name: str, options: Mapping[str, Any]) -> Callable[[Atoms], Calculator]:
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"calculator {module}:{name} cannot be imported ({one_line(error)})") from error
    if not callable(found):
        raise ConfigError(f"{module}:{name} is no class of calculators")
    calculator = _built(found, f"{module}:{name}", options)
    if not hasattr(calculator, "get_property"):
        raise ConfigError(f"{module}:{name} gives no ASE calculator")
    return _one(calculator)


def _built(cls: Callable[..., Calculator], name: str, options: Mapping[str, Any]) -> Calculator:
    try:
        return cls(**options)
    except Exception as error:  # whatever the class makes of wrong arguments
        raise ConfigError(f"calculator {name} cannot be made ({type(error).__name__}: {one_line(error)})") from error


def _one(calculator: Calculator) -> Callable[[Atoms], Calculator]:
    return lambda atoms: calculator
