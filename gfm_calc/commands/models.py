"""`gfm models` and `gfm heads`: what there is, and what each head promises."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import HeadError, did_you_mean
from .options import DEFAULT_MODEL, new_parser
from .tables import card, table


def add_parser(subparsers: Any) -> None:
    """Register both commands."""
    models = new_parser(subparsers, "models", run_models, summary="the packaged models", example="gfm models")
    models.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    heads = new_parser(
        subparsers, "heads", run_heads, summary="the heads of a model: level of theory, elements, errors",
        example="gfm heads gfm-small\n  gfm heads gfm-small gfn2-xtb",
    )  # fmt: skip
    heads.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)"
    )
    heads.add_argument("head", nargs="?", help="show everything about this one")
    heads.add_argument("--json", action="store_true", help="the cards as JSON")


def run_models(args: argparse.Namespace) -> None:
    """Print the packaged models."""
    from ..checkpoint import describe, list_models

    found = {name: describe(name) for name in list_models()}
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [
        (name, f"{about['bytes'] / 1e6:.1f} MB", len(about["heads"]), _encoder(about["config"]), about["model_id"])
        for name, about in found.items()
    ]
    if not found:
        print("no packaged models; every command takes a directory, too: --model DIR")
        return
    print(table(("model", "size", "heads", "encoder", "id"), rows, right=(1, 2)))


def run_heads(args: argparse.Namespace) -> None:
    """Print the heads of a model, or all about one."""
    from ..checkpoint import describe

    about = describe(args.model)
    cards = {entry["name"]: entry for entry in about["heads"]}
    if args.head is not None:
        if args.head not in cards:
            raise HeadError(f"no head {args.head!r}{did_you_mean(args.head, cards)}; heads: {', '.join(cards)}")
        cards = {args.head: cards[args.head]}
    if args.json:
        print(json.dumps(list(cards.values()), indent=2, ensure_ascii=False))
        return
    if args.head is not None:
        print(_details(cards[args.head], next((e for e in about["uncertainty"] if e["head"] == args.head), None)))
        return
    header = (
        "head",
        "predicts",
        "level of theory",
        "labels",
        "dispersion",
        "elements",
        "charges",
        "references",
        "test error",
    )
    print(table(header, [_row(entry) for entry in cards.values()]))
    print(f"\nmodel {args.model}, id {about['model_id']}; more of one head: gfm heads {args.model} HEAD")


def _row(head: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        head["name"], head["quantity"], _level(head), head["labels"], head["dispersion"], _elements(head["elements"]),
        _charges(head["charges"]), head["reference_kind"], _errors(head["test_errors"]),
    )  # fmt: skip


def _details(head: Mapping[str, Any], errors: Mapping[str, Any] | None) -> str:
    fields = [
        ("predicts", f"{head['quantity']} in {head['unit']}{', never negative' if head['nonnegative'] else ''}"),
        ("level of theory", _level(head)),
        ("labels", head["labels"]),
        ("dispersion", head["dispersion"]),
        ("elements", f"{len(head['elements'])}: {' '.join(head['elements'])}"),
        ("charges", _charges(head["charges"])),
        ("unpaired electrons", f"up to {head['max_excess_spin']} beyond the fewest possible"),
        ("periodicity", ", ".join(head["periodicity"])),
        ("references", head["reference_kind"]),
        ("reference energies", " ".join(f"{s} {e:.4f}" for s, e in head["reference_energies"].items())),
        ("uncertainty", f"learnt from {errors['structures']} structures" if errors else "none"),
        *((f"test {name.replace('_', ' ')}", _figure(value)) for name, value in head["test_errors"].items()),
        *(("data", _source(source)) for source in head["training_data"]),
    ]
    return f"{head['name']}: {head['description']}\n{card(fields)}"


def _source(source: Mapping[str, Any]) -> str:
    order = [key for key in ("name", "frames", "licence", "citation") if key in source]
    order += [key for key in source if key not in order]
    return "; ".join(f"{source[key]} frames" if key == "frames" else str(source[key]) for key in order)


def _level(head: Mapping[str, Any]) -> str:
    return f"{head['functional']}/{head['basis']} ({head['code']})"


def _encoder(config: Mapping[str, Any]) -> str:
    wider = f" (networks {config['expansion']}x)" if config.get("expansion", 1) > 1 else ""
    return f"{config['encoder']} {config['num_features']}x{config['num_layers']}{wider}, {config['cutoff']:g} Å"


def _elements(symbols: Sequence[str]) -> str:
    return " ".join(symbols) if len(symbols) <= 6 else f"{len(symbols)} elements"


def _charges(charges: Sequence[int]) -> str:
    low, high = charges
    return f"{low:+d} to {high:+d}" if low != high else f"{low:+d}" if low else "0"


def _errors(errors: Mapping[str, Any]) -> str:
    """The mean absolute errors of energy and forces where they were measured, else what there is."""
    chosen = {name: value for name, value in errors.items() if "mae" in name.lower()} or errors
    return ", ".join(f"{_plain(name)} {_figure(value)}" for name, value in chosen.items()) or "not measured"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
