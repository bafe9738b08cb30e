"""The pictures of the commands: one look, no display, no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK, BLUE, ORANGE, GREEN, RED, GREY = "#222222", "#1f6fb4", "#d9691e", "#2e8b57", "#b3262a", "#8a8a8a"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#7a4fa3", "#8a6d1f", GREY)
_METALLIC = 1.2  # Å; larger covalent radii are drawn as touching balls
_STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
}


@contextmanager
def picture(path: Path, columns: int = 1, *, width: float = 6.0, height: float = 3.8, **grid: Any) -> Iterator[Any]:
    """Axes (one, or an array of `columns`) to draw on; saved as PNG at `path` when the block ends well."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(1, columns, **grid)
        figure.savefig(path, format="png")


def draw_eos(path: Path, volumes: Any, energies: Any, fit: Any, title: str) -> None:
    """Energies [n] (eV) at volumes [n] (Å³) and the Birch-Murnaghan curve through them."""
    import numpy as np

    zero = fit.energy
    with picture(path) as axes:
        fine = np.linspace(min(volumes), max(volumes), 200)
        axes.plot(fine, 1e3 * (fit(fine) - zero), color=BLUE, label="Birch-Murnaghan")
        axes.plot(volumes, 1e3 * (np.asarray(energies) - zero), "o", color=INK, markersize=4.5, label="calculated")
        axes.axvline(fit.volume, color=GREY, linewidth=0.8, linestyle="--")
        axes.set(xlabel="volume (Å³)", ylabel="energy above the minimum (meV)", title=title)
        text = f"$V_0$ = {fit.volume:.3f} Å³\n$B_0$ = {fit.bulk_modulus:.1f} GPa\n$B_0'$ = {fit.derivative:.2f}"
        paper = {"facecolor": "white", "edgecolor": "none"}
        axes.text(0.5, 0.94, text, transform=axes.transAxes, ha="center", va="top", bbox=paper)
        axes.legend(loc="upper right")


def draw_phonons(path: Path, bands: Any, dos: Any, title: str) -> None:
    """Band structure beside the density of states.

    Args:
        bands: [(distances [q], frequencies [q, modes] THz, (label at the start, label at the end))] a path segment.
        dos: (frequencies [f] THz, density [f] states/THz).
    """
    shape = {"sharey": True, "gridspec_kw": {"width_ratios": (3.2, 1)}}
    with picture(path, 2, width=7.2, height=4.2, **shape) as (left, right):
        lowest = 0.0
        for distances, frequencies, _ in bands:
            left.plot(distances, frequencies, color=BLUE, linewidth=1.1)
            lowest = min(lowest, float(frequencies.min()))
        ticks = _band_ticks(bands)
        left.set_xticks(list(ticks), list(ticks.values()))
        for position in ticks:
            left.axvline(position, color=GREY, linewidth=0.6)
        left.set(xlim=(min(ticks), max(ticks)), ylabel="frequency (THz)", title=title)
        right.plot(dos[1], dos[0], color=BLUE)
        right.fill_betweenx(dos[0], 0, dos[1], color=BLUE, alpha=0.2, linewidth=0)
        right.set(xlabel="DOS (1/THz)", xlim=(0, None))
        for axes in (left, right):
            axes.axhline(0, color=INK, linewidth=0.8)
            if lowest < -0.05:
                axes.axhspan(1.1 * lowest, 0, color=RED, alpha=0.08, linewidth=0)
        left.set_ylim(1.1 * lowest if lowest < -0.05 else 0.0, None)


def _band_ticks(bands: Any) -> dict[float, str]:
    """{distance: label}; where the path jumps, both labels with a bar between."""
    ticks: dict[float, str] = {}
    for distances, _, labels in bands:
        for distance, label in zip((distances[0], distances[-1]), labels):
            key = next((known for known in ticks if abs(known - distance) < 1e-6), float(distance))
            if ticks.get(key, label) != label:
                label = f"{ticks[key]}|{label}"
            ticks[key] = label
    return ticks


def draw_thermal(path: Path, temperatures: Any, columns: Any, title: str) -> None:
    """Free energy, entropy and heat capacity against the temperature.

    Args:
        columns: {label with unit: values [t]}.
    """
    with picture(path, len(columns), width=9.0, height=3.2) as panels:
        for axes, (label, values), colour in zip(panels, columns.items(), COLOURS):
            axes.plot(temperatures, values, color=colour)
            axes.set(xlabel="temperature (K)", ylabel=label, xlim=(min(temperatures), max(temperatures)))
        panels[0].set_title(title)


def draw_md(path: Path, log: Any, title: str) -> None:
    """Potential and total energy, and the temperature, against time.

    Args:
        log: {column of the log file: values [t]}.
    """
    time = log["time_fs"]
    with picture(path, 2, width=8.6, height=3.4) as (left, right):
        start = log["total_eV"][0]
        left.plot(time, log["total_eV"] - start, color=INK, label="total")
        left.plot(time, log["potential_eV"] - log["potential_eV"][0], color=BLUE, label="potential")
        left.set(xlabel="time (fs)", ylabel="energy above the start (eV)", title=title)
        left.legend()
        right.plot(time, log["temperature_K"], color=ORANGE)
        right.axhline(log["temperature_K"][len(time) // 4 :].mean(), color=GREY, linewidth=0.8, linestyle="--")
        right.set(xlabel="time (fs)", ylabel="temperature (K)", ylim=(0, None))


def draw_structures(path: Path, views: Any) -> None:
    """Structures side by side as balls and sticks.

    Args:
        views: {title: atoms [n], turned so that z points at the reader}; all are drawn to one scale.
    """
    import numpy as np

    spans = [np.ptp(atoms.positions[:, :2], axis=0) + 3.2 for atoms in views.values()]
    tall = max(span[1] for span in spans) + 1.0
    ratios = [span[0] for span in spans]
    height = 3.2
    shape = {"gridspec_kw": {"width_ratios": ratios}, "squeeze": False}
    with picture(path, len(views), width=height * sum(ratios) / tall + 0.6, height=height + 0.4, **shape) as panels:
        for axes, (title, atoms), span in zip(panels[0], views.items(), spans):
            _balls_and_sticks(axes, atoms)
            low, high = atoms.positions.min(axis=0), atoms.positions.max(axis=0)
            middle = 0.5 * (low + high)
            axes.set_xlim(middle[0] - span[0] / 2, middle[0] + span[0] / 2)
            axes.set_ylim(middle[1] - tall / 2, middle[1] + tall / 2)
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.text(0.5, 1.0, title, transform=axes.transAxes, ha="center", va="top", weight="bold")


def _balls_and_sticks(axes: Any, atoms: Any) -> None:
    """From back to front; what lies deeper is paler."""
    import numpy as np
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from ase.neighborlist import natural_cutoffs, neighbor_list
    from matplotlib.patches import Circle

    flat = atoms.copy()
    flat.pbc = False
    depth = flat.positions[:, 2]
    fog = 0.55 * (depth.max() - depth) / max(np.ptp(depth), 3.0)
    colours = jmol_colors[flat.numbers] * (1 - fog[:, None]) + fog[:, None]
    for i, j in zip(*neighbor_list("ij", flat, natural_cutoffs(flat, mult=1.1))):
        if i < j and min(covalent_radii[flat.numbers[[i, j]]]) < _METALLIC:
            ends, order = flat.positions[[i, j]], min(depth[i], depth[j])
            axes.plot(ends[:, 0], ends[:, 1], color=INK, linewidth=5.2, solid_capstyle="round", zorder=order)
            axes.plot(ends[:, 0], ends[:, 1], color="#d6d6d6", linewidth=3.4, solid_capstyle="round", zorder=order)
    for place, number, colour in zip(flat.positions, flat.numbers, colours):
        radius = 0.5 * covalent_radii[number] + 0.08 if covalent_radii[number] < _METALLIC else covalent_radii[number]
        axes.add_patch(
            Circle(place[:2], radius, facecolor=colour, edgecolor=INK, linewidth=0.9, zorder=place[2] + 0.01)
        )
        shine = place[:2] + 0.33 * radius * np.array([-1, 1])
        axes.add_patch(Circle(shine, 0.22 * radius, facecolor="white", alpha=0.65, linewidth=0, zorder=place[2] + 0.02))
