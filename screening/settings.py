"""What decides the rows of a screening: a folder holds those of one setting."""

from __future__ import annotations

from dataclasses import dataclass

from gfm_calc.errors import ConfigError, did_you_mean
from gfm_calc.predictor import DTYPES, MIXED

QUANTITIES = ("energies", "forces", "stress")
KEEP = ("structures", "forces")
OPTIMIZERS = ("FIRE", "LBFGS")


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """How candidates are relaxed before they are rows.

    Attributes: `optimizer`, one of OPTIMIZERS; `fmax`, eV/Å; `steps` at most; `cell`, whether it moves too (of candidates
    with three periodic axes); `active`, structures that are relaxed at a time.
    """

    optimizer: str = "FIRE"
    fmax: float = 0.05
    steps: int = 200
    cell: bool = False
    active: int = 64

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
        if not self.fmax > 0 or self.steps < 0 or self.active < 1:
            raise ConfigError("a relaxation needs fmax > 0, steps >= 0 and active >= 1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See the module.

    Attributes:
        heads: names, in the order of the rows.
        quantity: "energies", "forces" (and stress where there is a cell), or "stress": the same, all six components kept.
        dtype: see `Predictor`.  compile: the networks.
        strict: refuse elements, charges and spins that a head has not seen.
        chunk: candidates in a result file.
        max_atoms, max_edges: budget of a batch.
        keep: more columns, of KEEP.
        relax: None for single points.
        first, last: the range of candidates; last None is the end of the stream.
    """

    heads: tuple[str, ...]
    quantity: str = "forces"
    dtype: str = "float32"
    compile: bool = False
    strict: bool = True
    chunk: int = 1000
    max_atoms: int = 1024
    max_edges: int = 8192
    keep: tuple[str, ...] = ()
    relax: Relaxation | None = None
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "keep", tuple(sorted(self.keep)))
        if isinstance(self.relax, dict):
            object.__setattr__(self, "relax", Relaxation(**self.relax))
        choices = (("quantity", (self.quantity,), QUANTITIES), ("dtype", (self.dtype,), (*DTYPES, MIXED)),
                   ("keep", self.keep, KEEP))  # fmt: skip
        for name, values, allowed in choices:
            for value in values:
                if value not in allowed:
                    raise ConfigError(
                        f"{name} must be one of {', '.join(allowed)}, not {value!r}{did_you_mean(value, allowed)}"
                    )
        if not self.heads or len(set(self.heads)) != len(self.heads):
            raise ConfigError("name each head once, and at least one")
        if min(self.chunk, self.max_atoms, self.max_edges) < 1:
            raise ConfigError("chunk, max_atoms and max_edges must be at least 1")
        if self.relax is not None and self.quantity == "energies":
            raise ConfigError("a relaxation needs forces: leave quantity = energies out")
        if self.relax is not None and len(self.heads) > 1:
            raise ConfigError("relax with one head; screen the relaxed structures with the others")
        if "forces" in self.keep and self.quantity == "energies":
            raise ConfigError("there are no forces to keep: leave quantity = energies out")
        if self.first < 0 or (self.last is not None and self.last <= self.first):
            raise ConfigError(f"the range {self.first}:{self.last} holds no candidates")
