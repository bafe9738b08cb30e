"""The pictures of an inspection, as PNG in base64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .pages import drawn, periodic_table
from .plots import BLUE, ORANGE, RED

if TYPE_CHECKING:
    from ..data.inspection import FileInspection


def pictures(file: FileInspection) -> Iterator[tuple[str, str, str]]:
    """(title, caption, base64) of each picture that the file has numbers for."""
    import numpy as np
    from ase.units import GPa

    columns = file.statistics
    yield "Elements", "Atoms of each element; white: none.", drawn(_elements, columns, width=6.4, height=3.5)
    if file.fit is not None:
        caption = "Energy per atom less the fitted reference energies, frame by frame: jumps and outliers show here."
        yield "Energies", caption, drawn(_energies, columns)
    if columns.force_histogram.any():
        yield "Forces", "Components of the forces, on a logarithmic scale.", drawn(_forces, columns)
    if np.isfinite(columns["closest"]).any():
        caption = "Shortest distance in each frame over the sum of the covalent radii; far below 1 atoms overlap."
        yield "Distances", caption, drawn(_histogram, columns["closest"], "shortest distance (of a bond)", "Distances")
    if np.isfinite(columns["pressure"]).any():
        caption = "Pressure from the trace of the stress."
        pressure = columns["pressure"] / GPa
        yield "Pressure", caption, drawn(_histogram, pressure, "pressure (GPa)", "Pressure")
    if columns["num_atoms"].min() < columns["num_atoms"].max():
        yield "Sizes", "Atoms in a frame.", drawn(_histogram, columns["num_atoms"], "atoms", "Sizes")


def _elements(axes: Any, columns: Any) -> None:
    import numpy as np

    counts = columns.element_atoms
    largest = np.log10(max(int(counts.max()), 2))
    shares = {z: float(np.log10(counts[z] + 1) / largest) for z in np.flatnonzero(counts).tolist()}
    periodic_table(axes, shares, {}, f"Elements ({len(columns.elements)})")


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
