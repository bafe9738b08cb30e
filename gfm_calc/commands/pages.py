"""Reports as one HTML page that needs nothing else: its frame, its pictures, a periodic table to paint."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, cast

from .plots import GREY, INK, picture

# First and last element of each row.
_PERIODS = ((1, 2), (3, 10), (11, 18), (19, 36), (37, 54), (55, 86), (87, 118))


def page(title: str, body: str, *, style: str = "") -> str:
    """A whole page; `style` is more CSS."""
    return _PAGE.format(title=html.escape(title), style=_STYLE + style, body=body)


def drawn(draw: Callable[..., None], *values: Any, columns: int = 1, width: float = 5.6, height: float = 3.2) -> str:
    """What `draw(axes, *values)` draws, as PNG in base64."""
    image = BytesIO()
    with picture(cast(Any, image), columns, width=width, height=height) as axes:
        draw(axes, *values)
    return encoded(image)


def encoded(image: BytesIO) -> str:
    """A picture as base64."""
    return base64.b64encode(image.getvalue()).decode("ascii")


def shown(text: str) -> str:
    """Text for a page."""
    return html.escape(text)


def figure(title: str, caption: str, image: str) -> str:
    """A picture of `drawn` with its caption."""
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="{html.escape(title)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def numbers(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table; all but the first `left` columns are numbers."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<th>{html.escape(cell)}</th>" if k < left else f'<td class="number">{html.escape(cell)}</td>'
            for k, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="numbers"><tr>{head}</tr>{body}</table>'


def periodic_table(
    axes: Any, values: Mapping[int, float], texts: Mapping[int, str], title: str, shades: str = "Blues"
) -> None:
    """Elements shaded by a value from 0 to 1; those without one are white.

    Args:
        values: atomic number -> shade.
        texts: atomic number -> a few characters below the symbol.
    """
    from ase.data import chemical_symbols
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for z in range(1, 119):
        row, column = place_of(z)
        share = values.get(z)
        face = "white" if share is None else colormaps[shades](0.15 + 0.75 * min(max(share, 0.0), 1.0))
        axes.add_patch(
            Rectangle((column - 0.48, -row - 0.48), 0.96, 0.96, facecolor=face, edgecolor="#cccccc", linewidth=0.5)
        )
        colour = GREY if share is None else "white" if share > 0.6 else INK
        lift = 0.15 if z in texts else 0.0
        axes.text(column, -row + lift, chemical_symbols[z], ha="center", va="center", fontsize=6.5, color=colour)
        if z in texts:
            axes.text(column, -row - 0.25, texts[z], ha="center", va="center", fontsize=4.2, color=colour)
    axes.set(xlim=(0.4, 18.6), ylim=(-9.7, -0.4), title=title)
    axes.set_aspect("equal")
    axes.axis("off")


def place_of(z: int) -> tuple[float, int]:
    """(row, column) of an element; f elements stand in two rows below."""
    period = next(k for k, (_, last) in enumerate(_PERIODS, 1) if z <= last)
    first, last = _PERIODS[period - 1]
    if period >= 6 and 2 <= z - first <= 15:
        return period + 2.2, z - first + 2
    if z - first < 2 and z != 2:
        return period, z - first + 1
    return period, 18 - (last - z)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92em; }
th { text-align: left; font-weight: 600; padding: 0.15rem 1rem 0.15rem 0; vertical-align: top; white-space: nowrap; }
td { padding: 0.15rem 1rem 0.15rem 0; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 27rem; }
figure img { width: 100%; } figcaption { color: #555; font-size: 0.88em; }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""
