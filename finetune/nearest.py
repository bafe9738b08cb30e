"""Which of a model's heads is nearest to new labels: measured on the labels themselves, references fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gfm_calc.data.references import ReferenceFit, ReferenceFitter
from gfm_calc.data.sampling import spread_indices
from gfm_calc.data.schema import Record
from gfm_calc.errors import GFMError
from gfm_calc.model import GFMModel, Prediction
from gfm_calc.predictor import Predictor

_ATOMS, _STRUCTURES = 4000, 200  # of the comparison, at most
_FOREIGN = 10.0  # factor for a head that has not seen all elements


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How a head does on the new labels.

    Attributes:
        head: its name.  unseen: elements of the new labels that it was not trained on.
        energy: root mean square that is left of the energies after new reference energies are fitted, eV/atom; NaN without
            energies.
        forces: mean absolute error of a component, eV/Å; NaN without forces.
    """

    head: str
    unseen: tuple[str, ...]
    energy: float
    forces: float

    @property
    def score(self) -> float:
        """Smaller is nearer: the errors in eV and Å, energies counting twice as in training."""
        parts = [factor * value for factor, value in ((2.0, self.energy), (1.0, self.forces)) if np.isfinite(value)]
        return sum(parts) * (_FOREIGN if self.unseen else 1.0)


def rank_heads(model: GFMModel, records: Sequence[Record]) -> list[Nearness]:
    """All heads of energies, the nearest first.

    Args:
        records: training structures; a spread of them is used.
    """
    chosen = spread(records, _ATOMS, _STRUCTURES)
    numbers = np.unique(np.concatenate([record.atomic_numbers for record in records]))
    rows = list(predictions(model, model.energy_heads, chosen))
    found = []
    for head in model.energy_heads:
        own = [(record, row[head]) for record, row in rows]
        fit = fit_references(own, model.specs[head].reference_energies)
        wrong = [np.abs(one.forces.numpy() - record.forces).ravel() for record, one in own if record.forces is not None]
        found.append(
            Nearness(
                head=head, unseen=tuple(model.specs[head].unseen(numbers)),
                energy=np.nan if fit is None else fit.residual_rms,
                forces=float(np.concatenate(wrong).mean()) if wrong else np.nan,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: one.score)


def predictions(
    model: GFMModel, heads: Sequence[str], records: Sequence[Record], *, forces: bool = True
) -> Iterator[tuple[Record, Mapping[str, Prediction]]]:
    """(record, {head: prediction}) of those that the model can be asked about."""
    forces = forces and any(record.forces is not None for record in records)
    stream = Predictor(model, heads, forces=forces, strict=False).predict(
        (record.structure() for record in records), on_error="yield"
    )
    for record, found in zip(records, stream):
        if not isinstance(found, GFMError):
            yield record, found


def fit_references(pairs: Sequence[tuple[Record, Prediction]], base: Mapping[str, float]) -> ReferenceFit | None:
    """Reference energies that bring a head's predictions to new labels; None without energies.

    Args:
        base: the head's own; elements that it lacks begin at zero.
    """
    known = [(record, one) for record, one in pairs if np.isfinite(record.energy)]
    if not known:
        return None
    symbols = {s for record, _ in known for s in record.structure().symbols.species()}
    fitter = ReferenceFitter(base={symbol: 0.0 for symbol in symbols} | dict(base))
    for record, one in known:
        assert one.energy is not None
        fitter.add(record.atomic_numbers, record.energy, one.energy.item())
    return fitter.fit()


def spread(records: Sequence[Record], atoms: int, structures: int) -> list[Record]:
    """At most so many of the records (at least one), evenly spaced."""
    size = max(1, sum(len(record) for record in records) // max(1, len(records)))
    count = max(1, min(len(records), structures, atoms // size))
    return [records[k] for k in spread_indices(len(records), count)]
