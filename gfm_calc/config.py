"""What a model is (`ModelConfig`) and what a head promises (`HeadSpec`): frozen, checked, JSON in and out.

Reading is strict: an unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ase.data import atomic_numbers as _NUMBER_OF
from ase.data import chemical_symbols as _SYMBOLS

from .errors import ConfigError, InputFileError, did_you_mean, one_line

MAX_ATOMIC_NUMBER = 118
MOST_LANDMARKS = 2000  # of a head
HEAD_KINDS = ("energy", "scalar", "vector", "class", "atom_scalar", "atom_vector")
_HEAD_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]{0,63}")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shared part of a model.

    Attributes:
        encoder: name of the encoder ("painn").
        num_features: width F of scalar and vector features.
        num_layers: interaction layers.
        num_radial: radial basis functions.
        cutoff: in Å.
        envelope_exponent: p of the polynomial envelope (>= 3), see `encoders.basis`.
        avg_num_neighbors: messages are divided by its square root; a property of the training data.
        repulsion: "zbl" or None.
        head_width: hidden width of the heads' per-atom MLP.
        expansion: hidden width of the encoder's networks within an atom, in num_features.
        norm: "soft", or None: whether what enters a layer is kept from growing without bound, see `encoders.base.soft_norm`.
    """

    encoder: str = "painn"
    num_features: int = 128
    num_layers: int = 3
    num_radial: int = 8
    cutoff: float = 5.0
    envelope_exponent: int = 6
    avg_num_neighbors: float = 20.0
    repulsion: str | None = "zbl"
    head_width: int = 64
    expansion: int = 1
    norm: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in _MODEL_RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"model.{name} must lie between {low} and {high}, not {value!r}")
        for name in ("num_features", "num_layers", "num_radial", "envelope_exponent", "head_width", "expansion"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"model.{name} must be a whole number, not {getattr(self, name)!r}")
        if self.num_features * self.expansion > _MOST_HIDDEN:
            units = self.num_features * self.expansion
            raise ConfigError(f"model.num_features times model.expansion must be {_MOST_HIDDEN} at most, not {units}")
        if self.repulsion not in (None, "zbl"):
            raise ConfigError(f"model.repulsion must be 'zbl' or absent, not {self.repulsion!r}")
        if self.norm not in (None, "soft"):
            raise ConfigError(f"model.norm must be 'soft' or absent, not {self.norm!r}")
        if not isinstance(self.encoder, str):
            raise ConfigError(f"model.encoder must be a name, not {self.encoder!r}")


_MOST_HIDDEN = 8192
_MODEL_RANGES = (
    ("num_features", 4, 4096),
    ("num_layers", 1, 32),
    ("num_radial", 1, 128),
    ("cutoff", 0.5, 20.0),
    ("envelope_exponent", 3, 16),
    ("avg_num_neighbors", 0.1, 1000.0),
    ("head_width", 1, 4096),
    ("expansion", 1, 16),
)


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The card of one head: what it predicts, at which level of theory, for what, and how well.

    Attributes:
        name: lower-case identifier.
        kind: "energy" (per-atom energies, forces, stress); of a structure: "scalar" (a number), "vector" (a sum over atoms)
            or "class" (the probability of yes); of its atoms: "atom_scalar" or "atom_vector".
        extensive: for "scalar": a sum over atoms (True) or a mean (False).
        quantity: what a property head predicts ("band gap"); "energy" for energy heads.
        unit: of the value.
        code, functional, basis: the level of theory of the labels.
        dispersion: "none", "included" (a dispersion term is part of the labels) or "unknown".
        labels: "calculated" (first principles), "semi-empirical", or "distilled" (predictions of another model).
        reference_energies: symbol -> energy in eV of the isolated atom, float64; an isolated atom returns it exactly.  Of a
            scalar property: what an atom of the element adds on average, in the unit of the head.
        reference_kind: "isolated-atom" (calculated) or "fitted" (least squares on the training split).
        elements: symbols seen in training, by atomic number.
        charges: (lowest, highest) total charge seen, e.
        max_excess_spin: largest number of unpaired electrons beyond the lowest possible that was seen.
        periodicity: subset of ("molecule", "bulk"): what kinds of boundary conditions were seen.
        training_data: one mapping a source: name, licence, citation, frames.
        landmarks: of a scalar or a class: structures of its training data that others are compared with, see `landmarks`.
        stiffness: of a scalar property: the head of energies that said how stiff its crystals are and how
            they vibrate, see `stiffness`; "": none.
        nonnegative: of a scalar that is no sum: it is never negative and often zero, so what would be negative is zero.
        test_errors: figures measured on group-held-out data.
        description: a sentence for users.
    """

    name: str
    kind: str = "energy"
    extensive: bool = True
    quantity: str = "energy"
    unit: str = "eV"
    code: str = "unknown"
    functional: str = "unknown"
    basis: str = "unknown"
    dispersion: str = "unknown"
    labels: str = "calculated"
    reference_energies: Mapping[str, float] = field(default_factory=dict)
    reference_kind: str = "fitted"
    elements: tuple[str, ...] = ()
    charges: tuple[int, int] = (0, 0)
    max_excess_spin: int = 0
    periodicity: tuple[str, ...] = ()
    training_data: tuple[Mapping[str, Any], ...] = ()
    landmarks: int = 0
    stiffness: str = ""
    nonnegative: bool = False
    test_errors: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        for names, kind, what in _HEAD_TYPES:
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise ConfigError(f"head {self.name!r}: {name} must be {what}, not {getattr(self, name)!r:.40}")
        for name in ("elements", "charges", "periodicity", "training_data"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.name, str) or not _HEAD_NAME.fullmatch(self.name):
            raise ConfigError(f"head name {self.name!r}: use lower-case letters, digits and . _ + - (64 at most)")
        for key, allowed in _HEAD_CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"head {self.name}: {key} must be one of {', '.join(allowed)}, not {getattr(self, key)!r}"
                )
        for symbol in (*self.elements, *self.reference_energies):
            if symbol not in _NUMBER_OF or symbol == "X":
                raise ConfigError(f"head {self.name}: {symbol!r} is no element")
        for symbol, energy in self.reference_energies.items():
            if isinstance(energy, bool) or not isinstance(energy, (int, float)) or not math.isfinite(energy):
                raise ConfigError(
                    f"head {self.name}: reference energy of {symbol} must be a finite number, not {energy!r}"
                )
        missing = [s for s in self.elements if s not in self.reference_energies]
        if self.kind == "energy" and missing:
            raise ConfigError(f"head {self.name}: no reference energy for {', '.join(missing)}")
        if isinstance(self.landmarks, bool) or not 0 <= self.landmarks <= (
            MOST_LANDMARKS if self.kind in ("scalar", "class") else 0
        ):
            raise ConfigError(
                f"head {self.name}: landmarks must lie between 0 and {MOST_LANDMARKS}, and be 0 but for scalars and "
                f"classes of structures, not {self.landmarks!r}"
            )
        if self.stiffness and (self.kind != "scalar" or not _HEAD_NAME.fullmatch(self.stiffness)):
            raise ConfigError(f"head {self.name}: stiffness must be a head's name, of a scalar, not {self.stiffness!r}")
        if self.nonnegative and (self.kind != "scalar" or self.is_sum or self.stiffness):
            raise ConfigError(f"head {self.name}: nonnegative must be false but for means without a stiffness")
        if (
            len(self.charges) != 2
            or not all(isinstance(q, int) for q in self.charges)
            or self.charges[0] > self.charges[1]
        ):
            raise ConfigError(f"head {self.name}: charges must be (lowest, highest), not {self.charges!r}")

    @property
    def is_of_atoms(self) -> bool:
        """Whether it is a property of the atoms, not of the structure."""
        return self.kind.startswith("atom_")

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum over the atoms of a structure."""
        return self.kind in ("energy", "vector") or (self.kind == "scalar" and self.extensive)

    @property
    def level_of_theory(self) -> str:
        """'functional/basis (code)' for people."""
        return f"{self.functional}/{self.basis} ({self.code})"

    def unseen(self, atomic_numbers) -> list[str]:
        """Symbols among `atomic_numbers` that this head was not trained on, by atomic number."""
        return [_SYMBOLS[z] for z in sorted(set(map(int, atomic_numbers)) - self._seen)]

    @cached_property
    def _seen(self) -> frozenset[int]:
        return frozenset(_NUMBER_OF[symbol] for symbol in self.elements)

    def reference_energy(self, atomic_numbers) -> float:
        """Sum of the reference energies of `atomic_numbers`, eV; elements without one count as zero."""
        return math.fsum(self.reference_energies.get(_SYMBOLS[int(z)], 0.0) for z in atomic_numbers)


_HEAD_TYPES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("elements", "charges", "periodicity", "training_data"), (list, tuple), "a list"),
    (("reference_energies", "test_errors"), Mapping, "a table"),
    (("quantity", "unit", "code", "functional", "basis", "stiffness", "description"), str, "text"),
    (("extensive", "nonnegative"), bool, "true or false"),
    (("max_excess_spin", "landmarks"), int, "a whole number"),
)
_HEAD_CHOICES = {
    "kind": HEAD_KINDS,
    "dispersion": ("none", "included", "unknown"),
    "labels": ("calculated", "semi-empirical", "distilled"),
    "reference_kind": ("isolated-atom", "fitted"),
}


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """Build the frozen dataclass `cls` from a mapping, strictly.

    Raises:
        ConfigError: not a mapping, an unknown key (with the nearest valid one), a missing key, or a value that the
            class refuses.  `where` says in the message where the mapping came from.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table, found {type(values).__name__}")
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {one_line(error)}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of `from_mapping`: plain JSON values."""
    return dataclasses.asdict(config)


def read_toml(path: Path | str) -> dict[str, Any]:
    """A TOML file as a dict; InputFileError where it is missing or not TOML."""
    try:
        with open(path, "rb") as handle:
            return tomllib.load(handle)
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: not valid TOML ({one_line(error)})") from error


def toml_value(value: Any) -> str:
    """A text, number, switch, list or table as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)  # numbers and booleans are written alike in TOML
