"""Pictures of errors, for the pages of training and of fine-tuning."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.sampling import spread_indices
from .pages import drawn, figure, periodic_table
from .plots import GREY

_MOST_POINTS = 4000


def draw_parity(axes: Any, label: np.ndarray, found: np.ndarray, what: str, colour: str, title: str = "") -> None:
    """Predictions over labels, both [n], labels that are NaN left out; what: they are, with the unit."""
    kept = np.flatnonzero(np.isfinite(label))
    kept = kept[spread_indices(len(kept), _MOST_POINTS)]
    ends = [min(label[kept].min(), found[kept].min()), max(label[kept].max(), found[kept].max())]
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    axes.plot(label[kept], found[kept], ".", color=colour, markersize=2.5, rasterized=True)
    axes.set(xlabel=f"label: {what}", ylabel="prediction", title=title)
    axes.locator_params(axis="x", nbins=4)


def errors_by_element(numbers: np.ndarray, errors: np.ndarray, caption: str) -> str:
    """A section of a page: the mean error of each element, in a periodic table.

    Args:
        numbers: [n], of the atoms.  errors: [n], lengths of those of their forces, eV/Å.
    """
    means = {z: float(errors[numbers == z].mean()) for z in np.unique(numbers).astype(int).tolist()}
    image = drawn(_draw_elements, means, width=6.6, height=3.7)
    return "<h2>Errors by element</h2>" + figure("Force errors", f"{caption}, meV/Å.", image)


def _draw_elements(axes: Any, means: dict[int, float]) -> None:
    largest = max([*means.values(), 1e-9])
    texts = {z: f"{1000 * mean:.0f}" for z, mean in means.items()}
    periodic_table(axes, {z: mean / largest for z, mean in means.items()}, texts, "Force errors (meV/Å)", "Oranges")
