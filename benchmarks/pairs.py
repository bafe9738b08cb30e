"""Curves of isolated pairs of atoms: is there one minimum, as by the method of the labels, and a wall before it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii

from gfm_calc.benchmarks.contenders import ProcessEndedError
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import one_line
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor

_POINTS = 120
_DEPTH = 0.02  # eV; shallower dips are not counted
_SHORTEST, _CLOSEST = 0.5, 0.3  # Å, and of the bonding distance (the sum of covalent radii): the smaller of the two
_BOX = 25.0  # Å, of a pair for models of crystals: no image is within their cutoffs

Pair = tuple[str, str]
LabelMethod = Callable[[Atoms], Calculator]  # see `data.calculators.make_calculator`


def run_pairs(
    model: GFMModel, heads: Sequence[str], references: Mapping[str, LabelMethod] | None = None, *, like: bool = False
) -> list[dict[str, Any]]:
    """E(r) of every pair of elements of each head, from 0.5 Å (0.3 of the bonding distance for small atoms) to the cutoff.

    Args:
        references: {head: what gives the calculator of its labels for a pair}, for the pairs with more than one minimum.
        like: pairs of the same element alone.

    Returns:
        Rows {head, elements: how many, pairs: how many, extra_minima {"H-F": distances in Å of the minima beyond the deepest
        one}, in_reference: those pairs of which the reference has as many minima (None without one), soft: pairs whose
        energy at the shortest distance is below that of the separated atoms (no wall)}.
    """
    found: dict[str, dict[Pair, np.ndarray]] = {head: {} for head in heads}
    of_pair: dict[tuple[str, ...], list[Pair]] = {}  # the heads that know both -> pairs
    known = {head: frozenset(model.spec(head).elements) for head in heads}
    symbols = sorted(frozenset[str]().union(*known.values()), key=lambda symbol: atomic_numbers[symbol])
    wanted = zip(symbols, symbols) if like else combinations_with_replacement(symbols, 2)
    for first, second in wanted:
        those = tuple(head for head in heads if known[head] >= {first, second})
        if those:
            of_pair.setdefault(those, []).append((first, second))
    with Progress("pair curves", "pairs", sum(map(len, of_pair.values()))) as progress:
        for those, pairs in of_pair.items():
            for pair, curves in _curves(model, those, pairs):
                progress.advance()
                for head, curve in curves.items():
                    found[head][pair] = curve
    return [_row(model, head, found[head], (references or {}).get(head)) for head in heads]


def run_like_pairs(model: GFMModel, head: str, others: Mapping[str, Calculator]) -> list[dict[str, Any]]:
    """Pairs of like atoms alone, by a head and by published models.

    Args:
        others: title -> calculator, for which each point is a structure of its own.

    Returns:
        Rows {model, pairs (those with a whole curve), extra_minima, soft (whose energy at the shortest distance is below that at
        our cutoff, where our atoms are separate)}, see `run_pairs`, or {model, error}; ours first.
    """
    (own,) = run_pairs(model, [head], like=True)
    first = {"model": head, **{key: own[key] for key in ("pairs", "extra_minima", "soft")}}
    symbols, cutoff = model.spec(head).elements, model.config.cutoff
    rows = [first]
    for title, calculator in others.items():
        try:
            rows.append(_like_row(title, calculator, symbols, cutoff))
        except ProcessEndedError as error:  # what the others have done is not lost
            rows.append({"model": title, "error": one_line(error)})
    return rows


def _like_row(title: str, calculator: Calculator, symbols: Sequence[str], cutoff: float) -> dict[str, Any]:
    row: dict[str, Any] = {"model": title, "pairs": 0, "extra_minima": {}, "soft": []}
    with Progress(f"pair curves of {title}", "pairs", len(symbols)) as progress:
        for symbol in symbols:
            distances, energies = _curve_of(lambda _: calculator, (symbol, symbol), cutoff, box=_BOX)
            progress.advance()
            if len(energies) < _POINTS:
                continue
            row["pairs"] += 1
            lowest = minima(distances, energies)
            if len(lowest) > 1:
                row["extra_minima"][f"{symbol}-{symbol}"] = [round(float(r), 2) for r in lowest[1:]]
            if energies[0] < energies[-1]:
                row["soft"].append(f"{symbol}-{symbol}")
    return row


def _row(
    model: GFMModel, head: str, curves: Mapping[Pair, np.ndarray], reference: LabelMethod | None
) -> dict[str, Any]:
    extra, soft, in_reference = {}, [], []
    for pair, energies in curves.items():
        name, distances = "-".join(pair), _distances(pair, model.config.cutoff)
        lowest = minima(distances, energies)
        if energies[0] < 0:
            soft.append(name)
        if len(lowest) > 1:
            extra[name] = [round(float(r), 2) for r in lowest[1:]]
            if reference is not None and len(_minima_of(reference, pair, model.config.cutoff)) >= len(lowest):
                in_reference.append(name)
    return {
        "head": head, "elements": len(model.spec(head).elements), "pairs": len(curves), "extra_minima": extra,
        "in_reference": None if reference is None else in_reference, "soft": soft,
    }  # fmt: skip


def _distances(pair: Pair, cutoff: float) -> np.ndarray:
    bonded = sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair)
    return np.linspace(min(_SHORTEST, _CLOSEST * bonded), cutoff, _POINTS)


def _frames(pair: Pair, distances: Iterable[float]) -> list[Atoms]:
    return [Atoms(list(pair), positions=[[0, 0, 0], [0, 0, r]]) for r in distances]


def _curves(
    model: GFMModel, heads: Sequence[str], pairs: Sequence[Pair]
) -> Iterator[tuple[Pair, dict[str, np.ndarray]]]:
    """Each pair with energies in eV over separated atoms, by every head; all in one stream, for large batches."""
    predictor = Predictor(model, list(heads), forces=False, strict=False)
    stream = (atoms for pair in pairs for atoms in _frames(pair, _distances(pair, model.config.cutoff)))
    predictions = iter(predictor.predict(stream))
    for pair in pairs:
        rows = [next(predictions) for _ in range(_POINTS)]
        yield (
            pair,
            {
                head: np.array([row[head].energy.item() for row in rows])
                - sum(model.spec(head).reference_energies[symbol] for symbol in pair)
                for head in heads
            },
        )


def _curve_of(
    method: LabelMethod, pair: Pair, cutoff: float, *, box: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in Å and energies in eV of another method, in a periodic box of this side where it needs one; where it fails
    there is no point."""
    distances, energies = _distances(pair, cutoff), []
    for atoms in _frames(pair, distances):
        if box is not None:
            atoms.cell, atoms.pbc = [box] * 3, True
        atoms.calc = method(atoms)
        try:
            energies.append(atoms.get_potential_energy())
        except ProcessEndedError:
            raise
        except Exception:  # calculators raise whatever comes
            energies.append(np.nan)
    values = np.array(energies)
    right = np.isfinite(values)
    return distances[right], values[right]


def _minima_of(reference: LabelMethod, pair: Pair, cutoff: float) -> list[float]:
    """Of the reference's own curve."""
    distances, energies = _curve_of(reference, pair, cutoff)
    return minima(distances, energies) if len(energies) > 2 else []


def minima(distances: np.ndarray, energies: np.ndarray) -> list[float]:
    """Distances of the local minima that lie `_DEPTH` below the highest point on either side before a deeper one, the
    deepest first.

    Args:
        distances: [m] Å.  energies: [m] eV.
    """
    inner = np.flatnonzero((energies[1:-1] < energies[:-2]) & (energies[1:-1] <= energies[2:])) + 1
    kept = []
    for k in inner:
        lower = np.flatnonzero(energies < energies[k])
        left, right = lower[lower < k], lower[lower > k]
        barriers = [energies[left[-1] : k].max()] if left.size else []
        barriers += [energies[k : right[0] + 1].max()] if right.size else []
        if min(barriers, default=np.inf) - energies[k] > _DEPTH:
            kept.append(k)
    return [float(distances[k]) for k in sorted(kept, key=lambda k: energies[k])]
