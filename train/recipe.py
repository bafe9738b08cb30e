"""A recipe: everything that decides what a training run does, as data (TOML).

Reading is strict: an unknown key is an error that names the nearest valid one.  What is left out has the defaults below; "none"
takes away what may be absent (`model.repulsion`, `model.norm`, `objective.soften`).
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfm_calc.config import ModelConfig, from_mapping, read_toml, toml_value
from gfm_calc.data.grouping import KEYS
from gfm_calc.errors import ConfigError, did_you_mean

DTYPES = ("float64", "float32", "tf32", "bf16")
LOSSES = ("l1", "l2", "huber")
METHODS = ("adamw", "muon")
SCHEDULES = ("cosine", "plateau", "constant", "trapezoid")
MODES = ("data", "multitask")
SHARDINGS = ("none", "replica", "all")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the labelled structures are, and what is held out.

    Attributes:
        path: a dataset, or a folder of datasets (one a head), see `gfm data build`.
        heads: those to train; () stands for all.  The split is drawn over all datasets in either case.
        split: file of `gfm data split`; None draws one.
        by: what must stay on one side of a drawn split: "auto" (the group that the source names, else the composition, else
            blocks of consecutive frames), or a name of `data.grouping.KEYS`.
        validation, test: fractions of groups of a drawn split.
        shared: of groups on different sides that hold the same structure, in a drawn split: "join" holds them all out,
            "drop" leaves the held-out copies of that structure unused.
        seed: of the drawn split.
        tau: temperature of the sampling: a head with n structures gets a share ~ n^tau of the draws.
        loss_tau: temperature of the objective; each structure is weighted so that the expected gradient is that of draws
            with this temperature, however they are really drawn.  None: as drawn.
        workers: processes that make batches ahead; 0 makes them in a thread of this one.
        memory: hold the structures in memory; under mpirun the ranks share one copy.
    """

    path: str = ""
    heads: tuple[str, ...] = ()
    split: str | None = None
    by: str = "auto"
    validation: float = 0.02
    test: float = 0.05
    shared: str = "join"
    seed: int = 0
    tau: float = 0.5
    loss_tau: float | None = None
    workers: int = 0
    memory: bool = False

    def __post_init__(self) -> None:
        names = self.heads
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f'heads must be a list of names, such as ["pbe"], not {names!r}')
        object.__setattr__(self, "heads", tuple(names))


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """What differs for one head.

    Attributes:
        name: of a dataset's head.
        share: of the draws, instead of n^tau; all heads or none.
        weight: of its structures in the loss.
        reference_energies: symbol -> eV of isolated atoms, calculated; elements without are fitted.
        licence, citation: of its data, where the dataset does not say.
        start: head of the model that training starts from whose weights it takes (see `StartRecipe`); None: random ones.
    """

    name: str
    share: float | None = None
    weight: float = 1.0
    reference_energies: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    citation: str | None = None
    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """A saved model that training starts from instead of random weights, and how fast its parts may move.

    Attributes:
        model: packaged name or directory; "" stands for random weights.  It may be smaller than `[model]` (see `train.growth`).
        model_id: of that model; another one is refused.  "" takes any.
        encoder_rate: factor of the learning rate for embedding and encoder; 0 leaves them as they are.
        layer_decay: further factor for each layer between a part of the encoder and the heads.
        adapter_rank: of a low-rank term that is added to each matrix of the encoder and learnt in its place (LoRA, DOI
            10.48550/arXiv.2106.09685); saved models hold the sum.  0: the matrices themselves learn.
    """

    model: str = ""
    model_id: str = ""
    encoder_rate: float = 1.0
    layer_decay: float = 1.0
    adapter_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecipe:
    """The loss: of energies an atom (eV), of forces (eV/Å), of stress (eV/Å³) and of properties (in the scale of their head).

    Attributes:
        energy, forces, stress, property: weights of the four.
        loss: "l1" (absolute energy errors, lengths of force and stress errors), "l2" (squares) or "huber".
        delta: of the Huber loss, in the unit of each term.
        soften: eV/Å; the forces of an atom count by 1 / (1 + |F| / soften): violent frames do not drown the others.
            None: equally.
        uncertainty: learn a weight for each head and term (Kendall et al., DOI 10.1109/CVPR.2018.00781).
    """

    energy: float = 2.0
    forces: float = 1.0
    stress: float = 5.0
    property: float = 1.0
    loss: str = "l1"
    delta: float = 0.1
    soften: float | None = 10.0
    uncertainty: bool = False


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """The method, its schedule and the running average of the weights.

    Attributes:
        method: "adamw" (DOI 10.48550/arXiv.1711.05101), or "muon": orthogonal updates of the encoder's matrices
            (`gfm_calc.train.orthogonal`), AdamW for all else; it takes a learning rate some three times as high.
        learning_rate: at its highest.  final_learning_rate: at the end ("cosine", "trapezoid"), or the least ("plateau").
        schedule: "cosine", "plateau" (halved when validation has not improved `patience` times), "constant", or "trapezoid"
            (constant, then linear in the last `fall` steps, DOI 10.48550/arXiv.2405.18392: the length of the run can be
            decided late); all after a linear warm-up.
        warmup, fall: steps.
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        ema: decay a step of the running average of the weights, which is what is validated and saved; 0: the weights.
    """

    method: str = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    schedule: str = "cosine"
    warmup: int = 500
    fall: int = 1000
    patience: int = 5
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 5.0
    ema: float = 0.999


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """How long, how exactly, how often.

    Attributes:
        seed: of weights and sampling.
        steps: of the whole run.
        structures: in a step, of all processes together.
        max_atoms, max_edges: budget of what is computed at once; a step accumulates over as many batches as it needs.
        dtype: "float64", "float32", "tf32" (GPU) or "bf16" (matrix products; geometry and sums in float32 or better).
        compile: the whole step, by torch.compile.
        activation_checkpointing: compute each layer twice instead of keeping it: for models that do not fit.
        validate_every: steps; 0: only at the end.  max_validation: structures a head.
        stop_after: validations without improvement that end the run; 0: never.
        save_every: steps.
        keep_best: the model is that of the validation with the least error, not that of the last step.
        max_minutes: the run saves and ends after so long; it can be resumed.
        on_bad_batch: "stop" or "skip" a step whose loss or gradient is not finite.
        check_parameters_every: steps between comparisons of the weights across processes; 0: never.
        tensorboard: write event files, where tensorboard is installed.
    """

    seed: int = 0
    steps: int = 1000
    structures: int = 32
    max_atoms: int = 4096
    max_edges: int = 131072
    dtype: str = "float32"
    compile: bool = False
    activation_checkpointing: bool = False
    validate_every: int = 1000
    max_validation: int = 500
    stop_after: int = 0
    save_every: int = 500
    keep_best: bool = True
    max_minutes: float | None = None
    on_bad_batch: str = "stop"
    check_parameters_every: int = 0
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class ParallelRecipe:
    """What several processes do.

    Attributes:
        mode: "data" (every process has every head) or "multitask" (a head lives only where its data are trained).
        shard: whose memory holds optimiser state and running average: "none" (every process all of it), "replica" (divided
            among the processes of a machine), "all" (among all).
        patience: seconds after which a process that gives no sign of life ends the job.
    """

    mode: str = "data"
    shard: str = "none"
    patience: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole."""

    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelConfig = field(default_factory=ModelConfig)
    start: StartRecipe = field(default_factory=StartRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    heads: tuple[HeadRecipe, ...] = ()

    def head(self, name: str) -> HeadRecipe:
        """What the recipe says of a head."""
        return next((head for head in self.heads if head.name == name), HeadRecipe(name=name))

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        for name in names:
            _require(names.count(name) == 1, f"heads: {name} occurs twice")
        shares = [head.share is not None for head in self.heads]
        _require(all(shares) or not any(shares), "heads: give a share to all of them or to none")
        for where, name, low, high in _RANGES:
            value = getattr(getattr(self, where), name)
            if value is None and name in _OPTIONAL:
                continue
            whole = isinstance(getattr(_DEFAULTS[where], name), int)
            right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            kind = "a whole number" if whole else "a number"
            _require(
                right and low <= value <= high, f"{where}.{name} must be {kind} from {low:g} to {high:g}, not {value!r}"
            )
        for where, name, allowed in _CHOICES:
            value = getattr(getattr(self, where), name)
            hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
            _require(value in allowed, f"{where}.{name} must be one of {', '.join(allowed)}, not {value!r}{hint}")
        for where, name in _SWITCHES:
            value = getattr(getattr(self, where), name)
            _require(isinstance(value, bool), f"{where}.{name} must be true or false, not {value!r}")
        _require(isinstance(self.data.path, str), f"data.path must be a text, not {self.data.path!r}")
        split = self.data.split
        _require(split is None or isinstance(split, str), f"data.split must be a text, not {split!r}")
        waits = self.run.stop_after or self.optimizer.schedule == "plateau"
        _require(
            not waits or self.run.validate_every > 0,
            "run.stop_after and the schedule plateau need validations: set run.validate_every",
        )
        for name in ("model", "model_id"):
            value = getattr(self.start, name)
            _require(isinstance(value, str), f"start.{name} must be a text, not {value!r}")
        for head in self.heads:
            _require(not head.start or bool(self.start.model), f"head {head.name}: start needs start.model")
            for name, value in (("share", head.share), ("weight", head.weight)):
                right = value is None or (isinstance(value, int | float) and 0 < value < math.inf)
                _require(right, f"head {head.name}: {name} must be positive, not {value!r}")


_DEFAULTS: Mapping[str, Any] = {
    "data": DataRecipe(), "start": StartRecipe(), "objective": ObjectiveRecipe(), "optimizer": OptimizerRecipe(),
    "run": RunRecipe(), "parallel": ParallelRecipe(),
}  # fmt: skip
_OPTIONAL = ("loss_tau", "soften", "max_minutes")
_RANGES = (
    ("data", "validation", 0, 0.5), ("data", "test", 0, 0.5), ("data", "seed", 0, 2**62), ("data", "tau", 0, 4),
    ("data", "loss_tau", 0, 4), ("data", "workers", 0, 256),
    ("start", "encoder_rate", 0, 100), ("start", "layer_decay", 0, 1), ("start", "adapter_rank", 0, 4096),
    ("objective", "energy", 0, 1e6), ("objective", "forces", 0, 1e6), ("objective", "stress", 0, 1e6),
    ("objective", "property", 0, 1e6),
    ("objective", "delta", 1e-9, 1e6), ("objective", "soften", 1e-6, 1e9),
    ("optimizer", "learning_rate", 0, 10), ("optimizer", "final_learning_rate", 0, 10), ("optimizer", "warmup", 0, 1e9),
    ("optimizer", "fall", 0, 1e9),
    ("optimizer", "patience", 1, 1e6), ("optimizer", "weight_decay", 0, 10), ("optimizer", "beta1", 0, 0.99999),
    ("optimizer", "beta2", 0, 0.9999999), ("optimizer", "clip", 1e-9, 1e12), ("optimizer", "ema", 0, 0.9999999),
    ("run", "seed", 0, 2**62), ("run", "steps", 1, 1e12), ("run", "structures", 1, 1e9), ("run", "max_atoms", 1, 1e9),
    ("run", "max_edges", 1, 1e12), ("run", "validate_every", 0, 1e12), ("run", "max_validation", 1, 1e12),
    ("run", "stop_after", 0, 1e9), ("run", "save_every", 1, 1e12), ("run", "max_minutes", 0, 1e9),
    ("run", "check_parameters_every", 0, 1e12), ("parallel", "patience", 1, 1e6),
)  # fmt: skip
_CHOICES = (
    ("data", "by", ("auto", *KEYS)), ("data", "shared", ("join", "drop")),
    ("objective", "loss", LOSSES), ("optimizer", "method", METHODS), ("optimizer", "schedule", SCHEDULES),
    ("run", "dtype", DTYPES), ("run", "on_bad_batch", ("stop", "skip")), ("parallel", "mode", MODES),
    ("parallel", "shard", SHARDINGS),
)  # fmt: skip
_SWITCHES = (
    ("data", "memory"), ("objective", "uncertainty"), ("run", "compile"), ("run", "activation_checkpointing"),
    ("run", "tensorboard"), ("run", "keep_best"),
)  # fmt: skip


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def read_recipe(path: Path | str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe from a TOML file.

    Args:
        settings: "a.b=c" each, which go before what the file says; c is a TOML value, or text.

    Raises:
        InputFileError: missing, or not TOML.
        ConfigError: an unknown key (with the nearest valid one), or a value that is refused.
    """
    return recipe_of(read_toml(path), settings, str(path))


def recipe_of(values: Mapping[str, Any], settings: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """A recipe from plain values; see `read_recipe`."""
    tables: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    for setting in settings:
        _set(tables, setting)
    parts: dict[str, Any] = {}
    kinds: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(Recipe)}
    for key, value in tables.items():
        if key not in kinds:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, kinds)}")
        if key == "heads":
            if not isinstance(value, list | tuple):
                raise ConfigError(f"{where}: heads: write [[heads]] for each")
            parts[key] = tuple(from_mapping(HeadRecipe, head, f"{where}: heads {k}") for k, head in enumerate(value))
        else:
            parts[key] = from_mapping(kinds[key], _without(kinds[key], value), f"{where}: {key}")
    return from_mapping(Recipe, parts, where)


def _without(cls: Any, values: Any) -> Any:
    """Values of a table, where "none" stands for None in what may be absent: TOML has no word for it."""
    if not isinstance(values, Mapping):
        return values
    optional = {f.name for f in dataclasses.fields(cls) if "None" in str(f.type)}
    return {key: None if key in optional and value == "none" else value for key, value in values.items()}


def _set(tables: dict[str, Any], setting: str) -> None:
    name, equals, text = setting.partition("=")
    path = name.strip().split(".")
    if not equals or len(path) != 2 or not all(path):
        raise ConfigError(f"--set {setting}: write TABLE.KEY=VALUE, such as run.steps=2000")
    if path[0] == "heads":
        raise ConfigError(f"--set {setting}: heads are set in the recipe")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # text without quotation marks
    table = tables.setdefault(path[0], {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path[0]}: expected a table")
    table[path[1]] = value


def to_toml(recipe: Recipe) -> str:
    """The recipe with all its values as TOML, which `read_recipe` reads back."""
    lines: list[str] = []
    for f in dataclasses.fields(Recipe):
        if f.name != "heads":
            lines += [f"[{f.name}]", *_assignments(getattr(recipe, f.name)), ""]
    for head in recipe.heads:
        lines += ["[[heads]]", *_assignments(head), ""]
    return "\n".join(lines)


def _assignments(table: Any) -> list[str]:
    found = []
    for f in dataclasses.fields(table):
        value = getattr(table, f.name)
        if value is not None or f.default is not None:
            found.append(f"{f.name} = {toml_value('none' if value is None else value)}")
    return found
