"""The pictures of an inspection, as PNG in base64."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from .plots import BLUE, GREY, INK, ORANGE, RED, picture

if TYPE_CHECKING:
    from ..data.inspection import FileInspection

# Rows and columns of the elements: groups 1 to 18, then the two rows of f elements below.
_PERIODS = ((1, 2), (3, 10), (11, 18), (19, 36), (37, 54), (55, 86), (87, 118))


def pictures(file: FileInspection) -> Iterator[tuple[str, str, str]]:
    """(title, caption, base64) of each picture that the file has numbers for."""
    import numpy as np

    columns = file.statistics
    yield "Elements", "Atoms of each element; white: none.", _drawn(_elements, columns, width=6.4, height=3.5)
    if file.fit is not None:
        caption = "Energy per atom less the fitted reference energies, frame by frame: jumps and outliers show here."
        yield "Energies", caption, _drawn(_energies, columns)
    if columns.force_histogram.any():
        yield "Forces", "Components of the forces, on a logarithmic scale.", _drawn(_forces, columns)
    if np.isfinite(columns["closest"]).any():
        caption = "Shortest distance in each frame over the sum of the covalent radii; far below 1 atoms overlap."
        yield "Distances", caption, _drawn(_histogram, columns["closest"], "shortest distance (of a bond)", "Distances")
    if np.isfinite(columns["pressure"]).any():
        caption = "Pressure from the trace of the stress."
        pressure = columns["pressure"] * 160.21766
        yield "Pressure", caption, _drawn(_histogram, pressure, "pressure (GPa)", "Pressure")
    if columns["num_atoms"].min() < columns["num_atoms"].max():
        yield "Sizes", "Atoms in a frame.", _drawn(_histogram, columns["num_atoms"], "atoms", "Sizes")


def _drawn(draw: Callable[..., None], *values: Any, width: float = 5.6, height: float = 3.2) -> str:
    image = BytesIO()
    with picture(cast(Any, image), width=width, height=height) as axes:
        draw(axes, *values)
    return base64.b64encode(image.getvalue()).decode("ascii")


def _elements(axes: Any, columns: Any) -> None:
    import numpy as np
    from ase.data import chemical_symbols
    from matplotlib import colormaps

    counts = columns.element_atoms
    largest = np.log10(max(int(counts.max()), 2))
    shades = colormaps["Blues"]
    for z in range(1, 119):
        row, column = _place(z)
        share = np.log10(counts[z] + 1) / largest if counts[z] else 0.0
        face = shades(0.15 + 0.75 * min(share, 1.0)) if counts[z] else "white"
        box = {"facecolor": face, "edgecolor": "#cccccc", "linewidth": 0.5}
        axes.add_patch(_rectangle((column - 0.48, -row - 0.48), 0.96, 0.96, **box))
        colour = "white" if share > 0.6 else INK if counts[z] else GREY
        axes.text(column, -row, chemical_symbols[z], ha="center", va="center", fontsize=6.5, color=colour)
    axes.set(xlim=(0.4, 18.6), ylim=(-9.7, -0.4), title=f"Elements ({len(columns.elements)})")
    axes.set_aspect("equal")
    axes.axis("off")


def _rectangle(*args: Any, **kwargs: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(*args, **kwargs)


def _place(z: int) -> tuple[float, int]:
    """(row, column) in the periodic table."""
    period = next(k for k, (_, last) in enumerate(_PERIODS, 1) if z <= last)
    first, last = _PERIODS[period - 1]
    if period >= 6 and 2 <= z - first <= 15:
        return period + 2.2, z - first + 2
    if z - first < 2 and z != 2:
        return period, z - first + 1
    return period, 18 - (last - z)


def _energies(axes: Any, columns: Any) -> None:
    import numpy as np

    frame, rest = columns["frame"], columns["residual"]
    known = np.isfinite(rest)
    low, high = np.percentile(rest[known], [0.5, 99.5])
    margin = max(0.35 * (high - low), 1e-6)
    inside = known & (rest >= low - margin) & (rest <= high + margin)
    axes.plot(frame[inside], rest[inside], ".", color=BLUE, markersize=3, rasterized=True)
    outside = known & ~inside
    if outside.any():
        axes.plot(frame[outside], np.clip(rest[outside], low - margin, high + margin), "x", color=RED, markersize=5,
                  label=f"{int(outside.sum())} beyond the picture")  # fmt: skip
        axes.legend(loc="best")
    axes.set(xlabel="frame", ylabel="energy above references (eV/atom)", title="Energies")


def _forces(axes: Any, columns: Any) -> None:
    import numpy as np

    from ..data.file_statistics import FORCE_BINS

    counts = columns.force_histogram[1:-1]
    axes.stairs(counts, FORCE_BINS, fill=True, color=ORANGE, alpha=0.85)
    shown = np.flatnonzero(counts)
    if len(shown):
        axes.set_xlim(FORCE_BINS[shown[0]] / 2, FORCE_BINS[shown[-1] + 1] * 2)
    small = int(columns.force_histogram[0])
    total = max(int(columns.force_histogram.sum()), 1)
    title = "Forces" + (f" ({small / total:.0%} below 1e-5)" if small else "")
    axes.set(xscale="log", xlabel="|component| (eV/Å)", ylabel="components", title=title)


def _histogram(axes: Any, values: Any, label: str, title: str) -> None:
    import numpy as np

    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [0.1, 99.9])
    edges = np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])
    axes.hist(np.clip(known, edges[0], edges[-1]), bins=edges, color=BLUE, alpha=0.85)
    axes.set(xlabel=label, ylabel="frames", title=title)
