"""`gfm predict`: energy, forces and stress of every frame of any number of files."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError, GFMError, InvalidStructureError
from .options import add_machine, add_model, choose_heads, in_shell_words, load, new_parser
from .outputs import EXTXYZ, add_output, refuse_existing, write_extxyz, written_aside
from .progress import Progress

if TYPE_CHECKING:
    from ase import Atoms

    from ..model import Prediction
    from ..predictor import Predictor

JSON_LINES = (".jsonl", ".ndjson")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "predict", run, summary="energies, forces and stresses of all frames of files",
        example="gfm predict molecules.xyz crystals.cif -o predictions.extxyz --head gfn2-xtb",
    )  # fmt: skip
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="any file that ASE reads; .xyz.xz too")
    add_output(parser, "OUT", ".extxyz (or .xyz), or .jsonl for a JSON object a line; several heads prefix their keys")
    parser.add_argument("--skip-invalid", action="store_true", help="leave bad frames out, and say which, on stderr")
    parser.add_argument("--uncertainty", action="store_true",
                        help="energy_uncertainty (eV) and forces_uncertainty (eV/Å, one an atom) too, or value_uncertainty of a "
                        "property: the errors to expect, of heads that know them")  # fmt: skip
    add_model(parser, several=True)
    add_machine(parser)


def run(args: argparse.Namespace) -> None:
    """Write the predictions of every frame.

    Raises:
        GFMError: a bad frame (without --skip-invalid), or no good one at all; nothing is written then.
    """
    from ..predictor import Predictor

    suffix = args.output.suffix.lower()
    if suffix not in EXTXYZ + JSON_LINES:
        raise ConfigError(f"{args.output}: give it one of the suffixes {', '.join(EXTXYZ + JSON_LINES)}")
    refuse_existing(args.output, args.overwrite)
    model = load(args)
    predictor = Predictor(model, choose_heads(model, args.head), strict=args.strict, uncertainty=args.uncertainty)
    write = _write_json_line if suffix in JSON_LINES else _write_frame
    good = bad = 0
    with ExitStack() as stack:
        aside = stack.enter_context(written_aside(args.output, args.overwrite))
        handle = stack.enter_context(open(aside, "w", encoding="utf-8"))
        progress = stack.enter_context(Progress("predict", "structures"))
        for path in args.input:
            for frame, atoms, outcome in _predictions(predictor, path):
                if not isinstance(outcome, GFMError):
                    write(handle, atoms, outcome, str(path), frame)
                    good += 1
                elif args.skip_invalid:
                    print(f"gfm: left out: {in_shell_words(outcome)}", file=sys.stderr)
                    bad += 1
                else:
                    raise outcome
                progress.advance()
        if not good:
            raise GFMError(f"none of the {bad} structures could be predicted; nothing was written")
    left_out = f"; {bad} left out" if args.skip_invalid else ""
    print(f"{args.output}: {good} structures, {', '.join(predictor.heads)}{left_out}")


Outcome = Mapping[str, "Prediction"] | GFMError


def _predictions(predictor: Predictor, path: Path) -> Iterator[tuple[int, Any, Outcome]]:
    """(frame, structure or None, predictions or error) in the order of the file."""
    from ..structures import read_frames

    waiting: deque[tuple[int, Atoms | None, GFMError | None]] = deque()

    def sound() -> Iterator[Atoms]:
        for frame, found in enumerate(read_frames(path)):
            if isinstance(found, GFMError):
                waiting.append((frame, None, found))
            else:
                waiting.append((frame, found, None))
                yield found

    def unreadable() -> Iterator[tuple[int, None, GFMError]]:
        while waiting and waiting[0][2] is not None:
            frame, _, error = waiting.popleft()
            yield frame, None, error

    for outcome in predictor.predict(sound(), source=str(path), on_error="yield"):
        yield from unreadable()
        frame, atoms, _ = waiting.popleft()
        if isinstance(outcome, InvalidStructureError):
            outcome.frame = frame  # the predictor counted only the frames that could be read
        yield frame, atoms, outcome
    yield from unreadable()


def _write_frame(handle: TextIO, atoms: Atoms, found: Mapping[str, Prediction], source: str, frame: int) -> None:
    results: dict[str, Any] = {}
    for head, prediction in found.items():
        prefix = f"{head}_" if len(found) > 1 else ""
        results |= {f"{prefix}{name}": value for name, value in _values(prediction).items()}
    results |= {"head": " ".join(found), "model_id": next(iter(found.values())).model_id}
    write_extxyz(handle, atoms, results)


def _write_json_line(handle: TextIO, atoms: Atoms, found: Mapping[str, Prediction], source: str, frame: int) -> None:
    record: dict[str, Any] = {"source": source, "frame": frame, "formula": str(atoms.symbols)}
    record["model_id"] = next(iter(found.values())).model_id
    for head, prediction in found.items():
        prefix = f"{head}_" if len(found) > 1 else ""
        record |= {f"{prefix}{name}": _plain(value) for name, value in _values(prediction).items()}
    record["head"] = " ".join(found)
    handle.write(json.dumps(record, allow_nan=False) + "\n")


def _values(prediction: Prediction) -> dict[str, Any]:
    """The numbers of one structure and head: floats and arrays, in the units of `Prediction`; no stress without a cell."""
    import numpy as np

    if prediction.energy is None:
        parts = {"value": prediction.value, "value_uncertainty": prediction.value_uncertainty}
        known = {name: part.numpy() for name, part in parts.items() if part is not None}
        known = {
            name: part[0] if len(part) == 1 and part.ndim == 2 else part for name, part in known.items()
        }  # a vector
        return {name: float(part[0]) if part.shape == (1,) else part for name, part in known.items()}
    values: dict[str, Any] = {"energy": float(prediction.energy[0]), "forces": prediction.forces.numpy()}
    if prediction.energy_uncertainty is not None:
        values["energy_uncertainty"] = float(prediction.energy_uncertainty[0])
        values["forces_uncertainty"] = prediction.forces_uncertainty.numpy()
    stress = prediction.stress[0].numpy()
    return values | ({"stress": stress} if np.isfinite(stress).all() else {})


def _plain(value: Any) -> Any:
    return value if isinstance(value, float) else value.tolist()
