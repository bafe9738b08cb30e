"""DIR/summary.html: what was screened, what failed and why, distributions, a map of the elements, the best drawn."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from ase import Atoms

from gfm_calc.commands.pages import drawn, figure, numbers, page, periodic_table
from gfm_calc.commands.plots import COLOURS, draw_structures
from gfm_calc.screening.folder import Folder
from gfm_calc.screening.ranking import Ranking
from gfm_calc.screening.table import COLUMNS, DERIVED

if TYPE_CHECKING:
    from gfm_calc.screening.outcome import Overview

_COLUMNS = COLUMNS | DERIVED
_DRAWN = 5  # structures of a head
_FEW = 12  # atoms; smaller cells are shown repeated
_MOST = 80  # atoms in a drawing
_ERRORS = 8  # kinds shown
_LISTED = ("rank", "candidate", "source", "formula", "num_atoms", "energy_per_atom", "formation_energy_per_atom",
           "hull_distance", "max_force", "volume_per_atom", "uncertainty", "force_uncertainty", "force_spread",
           "domain_distance", "domain")  # fmt: skip


def summary(
    folder: Folder, ranking: Ranking, found: Overview, rows: Mapping[str, Sequence[Mapping[str, Any]]],
    structures: Mapping[str, Sequence[Atoms]],
) -> str:  # fmt: skip
    """The page.

    Args:
        rows: {head: the best rows}.  structures: {head: theirs}.
    """
    parts = [_facts(folder, ranking, found), "<h2>What became of the candidates</h2>", _statuses(found)]
    parts += ["<h2>Distributions</h2>", '<div class="pictures">', *_distributions(folder, found), "</div>"]
    parts += ["<h2>Elements</h2>", '<div class="pictures">', *_maps(ranking, found), "</div>"]
    for head, several in rows.items():
        parts.append(f"<h2>Best of {html.escape(head)}: {html.escape(str(ranking.objective))}</h2>")
        if not several:
            parts.append("<p>No candidate passes the filters.</p>")
            continue
        parts += [_drawings(several[:_DRAWN], structures[head][:_DRAWN]), _listing(several)]
    return page(f"Screening of {folder.last - folder.first:,} candidates", "\n".join(parts))


def _facts(folder: Folder, ranking: Ranking, found: Overview) -> str:
    settings, model = folder.settings, folder.meta["model"]
    relaxed = (
        "" if settings.relax is None else f", relaxed by {settings.relax.optimizer} to {settings.relax.fmax:g} eV/Å"
    )
    lines = [
        ("model", f"{model['name']}, weights {model['weights'][:12]}"),
        ("heads", ", ".join(settings.heads)),
        ("candidates", f"{folder.first:,} to {folder.last - 1:,} of {folder.candidates:,}"),
        ("predicted", f"{settings.quantity} in {settings.dtype}{relaxed}"),
        *[("off float64", text) for text in _off(found)],
        ("best is", str(ranking.objective)),
        ("where", "; ".join(str(kept) for kept in ranking.filters) or "the prediction is sound"),
    ]
    rows = "".join(f"<tr><th>{html.escape(what)}</th><td>{html.escape(value)}</td></tr>" for what, value in lines)
    return f"<table>{rows}</table>"


def _off(found: Overview) -> list[str]:
    """How far the rows of each head are from float64."""
    lines = []
    for head, about in found.precision.items():
        forces = f", {about['max_force_mev_per_a']:g} meV/Å" if "max_force_mev_per_a" in about else ""
        lines.append(
            f"{head}: at most {about['energy_mev_per_atom']:g} meV/atom{forces}, of {about['structures']:g} candidates"
        )
    return lines


def _statuses(found: Overview) -> str:
    names = sorted({status for counts in found.statuses.values() for status in counts}, key=lambda s: (s != "ok", s))
    rows = [
        [head, *(f"{counts.get(name, 0):,}" for name in names), f"{found.doubts[head]:,}"]
        for head, counts in found.statuses.items()
    ]
    parts = [numbers(["head", *names, "with a remark in domain"], rows)]
    errors = {(head, text): n for head, kinds in found.errors.items() for text, n in kinds.most_common(_ERRORS)}
    if errors:
        parts.append(
            numbers(["head", "why not", "rows"], [[h, text, f"{n:,}"] for (h, text), n in errors.items()], left=2)
        )
    return "".join(parts)


def _distributions(folder: Folder, found: Overview) -> list[str]:
    shown = []
    for name in next(iter(found.samples.values())):
        samples = {head: np.concatenate(parts[name]) for head, parts in found.samples.items() if parts[name]}
        samples = {head: values[np.isfinite(values)] for head, values in samples.items()}
        samples = {head: values for head, values in samples.items() if len(values)}
        if samples:
            caption = f"{_COLUMNS[name][1]}; the outermost 0.5 % on either side are not shown."
            shown.append(figure(name.replace("_", " "), caption, drawn(_histogram, samples, name)))
    return shown


def _histogram(axes: Any, samples: Mapping[str, np.ndarray], name: str) -> None:
    low, high = np.percentile(np.concatenate(list(samples.values())), [0.5, 99.5])
    edges = np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])
    for k, (head, values) in enumerate(samples.items()):
        axes.hist(values, bins=edges, color=COLOURS[k % len(COLOURS)], alpha=0.85 / len(samples) ** 0.5, label=head)
    if len(samples) > 1:
        axes.legend(fontsize=6)
    title = name.replace("_", " ")
    axes.set(xlabel=_COLUMNS[name][1].split(",")[0], ylabel="candidates", title=title[0].upper() + title[1:])


def _maps(ranking: Ranking, found: Overview) -> list[str]:
    shown = []
    for head, counts in found.elements.items():
        if counts.any():
            caption = f"{head}: candidates that hold an element."
            shown.append(figure("Candidates", caption, drawn(_counts, counts, head, width=6.4, height=3.5)))
        best = found.lowest[head]
        if np.isfinite(best).any():
            caption = f"{head}: the best candidate that holds an element ({ranking.objective}); dark is better."
            shown.append(figure("Best", caption, drawn(_lowest, best, ranking, head, width=6.4, height=3.5)))
        flagged = found.flagged[head]
        if flagged.any():
            caption = f"{head}: of the candidates that hold an element, those with a remark in domain, per cent."
            shown.append(figure("Flagged", caption, drawn(_flagged, flagged, counts, head, width=6.4, height=3.5)))
    return shown


def _counts(axes: Any, counts: np.ndarray, head: str) -> None:
    there = np.flatnonzero(counts)
    largest = np.log10(counts.max() + 1)
    shades = {int(z): float(np.log10(counts[z] + 1) / largest) for z in there}
    periodic_table(axes, shades, {int(z): _short(counts[z]) for z in there}, f"Candidates with an element ({head})")


def _lowest(axes: Any, best: np.ndarray, ranking: Ranking, head: str) -> None:
    there = np.flatnonzero(np.isfinite(best))
    order = np.argsort(np.argsort(-best[there], kind="stable"), kind="stable")
    shades = {int(z): float((rank + 1) / len(there)) for z, rank in zip(there, order)}
    texts = {int(z): f"{ranking.objective.shown(float(best[z])):.2g}" for z in there}
    periodic_table(axes, shades, texts, f"Best with an element ({head})", "Greens")


def _flagged(axes: Any, flagged: np.ndarray, counts: np.ndarray, head: str) -> None:
    shares = {int(z): float(flagged[z] / counts[z]) for z in np.flatnonzero(counts)}
    texts = {z: f"{100 * share:.0f}" for z, share in shares.items()}
    periodic_table(axes, shares, texts, f"Flagged, % of those with an element ({head})", "Oranges")


def _short(count: int) -> str:
    return f"{count}" if count < 1000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.0f}M"


def _drawings(rows: Sequence[Mapping[str, Any]], structures: Sequence[Atoms]) -> str:
    views = {f"{row['rank']}  {row['formula']}": _view(atoms) for row, atoms in zip(rows, structures)}
    image = BytesIO()
    draw_structures(cast(Any, image), views)
    caption = "The first, small cells repeated."
    return figure("Best", caption, base64.b64encode(image.getvalue()).decode("ascii"))


def _view(atoms: Atoms) -> Atoms:
    """Turned, so that depth shows."""
    shown = atoms.copy()
    shown.calc = None
    if shown.pbc.any() and len(shown) <= _FEW:
        shown = shown.repeat(np.where(shown.pbc, 2, 1))
    shown = shown[: min(len(shown), _MOST)]
    shown.set_pbc(False)
    shown.cell = None
    shown.rotate(-75, "x")
    shown.rotate(20, "y")
    return shown


def _listing(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in _LISTED if any(row.get(name) not in (None, "") for row in rows)]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return numbers([name.replace("_", " ") for name in names], cells, left=4 if "formula" in names else 3)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
