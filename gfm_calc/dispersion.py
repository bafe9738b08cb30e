"""Grimme's D3 dispersion on top of a head whose labels hold none, by the dftd3 package (optional)."""

from __future__ import annotations

from ase.calculators.calculator import Calculator

from .config import HeadSpec
from .errors import ConfigError, HeadError, MissingDependencyError

# Functional on the card -> name of its D3 parameters.
_PARAMETERS = {
    "PBE": "PBE",
    "PBE(+U)": "PBE",
    "PBEsol": "PBEsol",
    "RPBE": "RPBE",
    "B3LYP": "B3LYP",
    "B3LYP (VWN3)": "B3LYP",
}


def make_dispersion(method: str | None, spec: HeadSpec) -> Calculator | None:
    """The D3 calculator for a head, or None where `method` is None.

    Source: Grimme et al., DOI 10.1063/1.3382344 (D3), 10.1002/jcc.21759 (damping).

    Raises:
        ConfigError: an unknown method.
        HeadError: the head's labels hold dispersion already, may hold it, or its functional has no D3 parameters.
        MissingDependencyError: dftd3 is not installed.
    """
    if method is None:
        return None
    if method != "d3bj":
        raise ConfigError(f"dispersion must be None or 'd3bj', not {method!r}")
    if spec.dispersion != "none":
        what = "holds dispersion already" if spec.dispersion == "included" else "may hold dispersion already"
        raise HeadError(f"head {spec.name} ({spec.functional}) {what}: D3 would count it twice; use dispersion=None")
    if spec.functional not in _PARAMETERS:
        raise HeadError(f"head {spec.name}: no D3 parameters for {spec.functional}; known: {', '.join(_PARAMETERS)}")
    try:
        from dftd3.ase import DFTD3
    except ImportError as error:
        raise MissingDependencyError("dispersion='d3bj' needs dftd3: pip install 'gfm-calc[d3]'") from error
    return DFTD3(method=_PARAMETERS[spec.functional], damping="d3bj")
