"""Plain tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """Aligned columns under a header; the columns `right` are set flush right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for row in cells:
        parts = [c.rjust(w) if k in right else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def card(fields: Iterable[tuple[str, object]], *, indent: int = 2) -> str:
    """'name  value' lines; empty values are left out."""
    kept = [(name, str(value)) for name, value in fields if value not in ("", None)]
    width = max((len(name) for name, _ in kept), default=0)
    return "\n".join(f"{' ' * indent}{name.ljust(width)}  {value}" for name, value in kept)
