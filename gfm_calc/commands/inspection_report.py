"""An inspection for people: as text, and as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .pages import figure, numbers
from .pages import page as whole_page
from .tables import card, table

if TYPE_CHECKING:
    from ..data.inspection import FileInspection, Inspection

_MARK = {"error": "ERROR", "warning": "warning", "note": "note"}
_SHOWN_FRAMES = 10


def text(inspection: Inspection) -> str:
    """The report on a terminal."""
    parts = [_file_text(file) for file in inspection.files]
    if inspection.findings:
        parts.append("\n".join(["all files", *_finding_lines(inspection.findings)]))
    return "\n\n".join(parts)


def page(inspection: Inspection) -> str:
    """The report as HTML, pictures inside."""
    parts = [_file_page(file) for file in inspection.files]
    if inspection.findings:
        parts.insert(0, f"<section><h2>All files</h2>{finding_list(inspection.findings)}</section>")
    files = ", ".join(_name(file) for file in inspection.files)
    return whole_page(f"Inspection of {files}", "\n".join(parts), style=FINDINGS_STYLE)


# ---- what both say ----


def facts(file: FileInspection) -> list[tuple[str, str]]:
    """(what, value) pairs of one file."""
    from ..data.findings import kind_of_energies
    from ..data.report import periodicity

    columns = file.statistics
    kind = kind_of_energies(file)
    sizes = columns["num_atoms"]
    lines = [
        ("format", file.format),
        ("frames", f"{len(columns)}" + (f" and {file.num_errors} that cannot be used" if file.num_errors else "")),
        ("atoms", f"{int(sizes.sum())}; {int(sizes.min())} to {int(sizes.max())} a frame"),
        ("elements", f"{len(columns.elements)}: {' '.join(columns.elements)}"),
        ("formulas", f"{columns.num_compositions}"),
        ("boundaries", ", ".join(f"{count} {name}" for name, count in periodicity(file).items())),
        *_conventions(file),
        ("energies are", "" if kind is None else f"{kind.kind} ({kind.reason})"),
        ("forces check", _slope_text(file.forces_check)),
        ("stress check", _slope_text(file.stress_check)),
        ("isolated atoms", " ".join(f"{symbol} {energy:.4f}" for symbol, energy in file.isolated.items())),
        ("reference fit", _fit_text(file.fit)),
        ("other keys", _names(file.other_keys)),
    ]
    return [(what, value) for what, value in lines if value]


def range_rows(file: FileInspection) -> list[tuple[str, str, str, str, str, str]]:
    """Rows (quantity, unit, frames, lowest, median, highest)."""
    from ..data.report import ranges

    return [
        (name.replace("_", " "), found["unit"], str(found["count"]), *(f"{found[key]:.5g}" for key in ("min", "median", "max")))
        for name, found in ranges(file).items()
    ]  # fmt: skip


def _conventions(file: FileInspection) -> list[tuple[str, str]]:
    lines = []
    for convention, frames in list(file.conventions.items())[:5]:
        said = [
            ("energy", convention.energy_keys, convention.energy_unit),
            ("gradients" if convention.gradients else "forces", convention.forces_keys, convention.forces_unit),
            ("stress", convention.stress_keys, f"{convention.stress_unit}, positive in {convention.stress_sign}"),
            ("charge", convention.charge_keys, "e"),
            ("spin", convention.spin_keys, "2S+1"),
            ("group", convention.group_key, None),
        ]
        words = [
            f"{what} from {keys if isinstance(keys, str) else ' = '.join(keys)}" + (f" ({unit})" if unit else "")
            for what, keys, unit in said
            if keys
        ]
        lines.append((f"labels ({frames})", "; ".join(words) or "none"))
    return lines


def _slope_text(slope: Any) -> str:
    if not slope.pairs:
        return ""
    judged = slope.verdict or "no clear answer"
    return f"{judged} (slope {slope.median:.3g} ± {slope.spread:.2g}, {slope.pairs} pairs of frames)"


def _fit_text(fit: Any) -> str:
    if fit is None:
        return ""
    return (
        f"rank {fit.rank} of {len(fit.energies)}, condition number {fit.condition_number:.3g}, leaves "
        f"{fit.residual_rms:.3g} eV/atom (root mean square)"
    )


def _names(keys: dict[str, int]) -> str:
    names = sorted(keys, key=lambda name: (-keys[name], name))
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _frames_text(frames: Sequence[int], count: int) -> str:
    if not frames:
        return ""
    shown = ", ".join(str(frame) for frame in frames[:_SHOWN_FRAMES])
    return f"frame{'s' * (count != 1)} {shown}" + (", ..." if count > _SHOWN_FRAMES else "")


# ---- text ----


def _file_text(file: FileInspection) -> str:
    rows = range_rows(file)
    blocks = [file.path, card(facts(file))]
    if rows:
        blocks.append(table(("quantity", "unit", "frames", "lowest", "median", "highest"), rows, right=(2, 3, 4, 5)))
    blocks.append("\n".join(_finding_lines(file.findings) or ["  nothing suspicious"]))
    return "\n".join(blocks)


def _finding_lines(findings: Sequence[Any]) -> list[str]:
    lines = []
    for finding in findings:
        where = _frames_text(finding.frames, finding.num_frames)
        lines.append(f"  {_MARK[finding.level]}: {finding.text}" + (f" [{where}]" if where else ""))
    return lines


# ---- HTML ----


def _file_page(file: FileInspection) -> str:
    from .inspection_pictures import pictures

    rows = "".join(f"<tr><th>{html.escape(what)}</th><td>{html.escape(value)}</td></tr>" for what, value in facts(file))
    shown = "".join(figure(title, caption, data) for title, caption, data in pictures(file))
    header = ("quantity", "unit", "frames", "lowest", "median", "highest")
    return (
        f"<section><h2>{html.escape(_name(file))}</h2>{finding_list(file.findings)}"
        f'<table class="facts">{rows}</table><div class="pictures">{shown}</div>'
        f"{numbers(header, range_rows(file), left=2)}</section>"
    )


def finding_list(findings: Sequence[Any]) -> str:
    """Findings as a list of HTML."""
    if not findings:
        return '<p class="fine">Nothing suspicious.</p>'
    items = []
    for finding in findings:
        where = _frames_text(finding.frames, finding.num_frames)
        shown = f' <span class="frames">{html.escape(where)}</span>' if where else ""
        items.append(
            f'<li class="{finding.level}"><b>{_MARK[finding.level].lower()}</b> {html.escape(finding.text)}{shown}</li>'
        )
    return f'<ul class="findings">{"".join(items)}</ul>'


def _name(file: FileInspection) -> str:
    return file.path.replace("\\", "/").rpartition("/")[2]


FINDINGS_STYLE = """
ul.findings { list-style: none; padding: 0; } ul.findings li { padding: 0.35rem 0.7rem; margin: 0.3rem 0; border-left: 4px solid }
li.error { border-color: #b3262a; background: #fbeeee; } li.warning { border-color: #d9691e; background: #fdf4ec; }
li.note { border-color: #8a8a8a; background: #f6f6f6; } .frames { color: #666; font-size: 0.9em; }
.fine { border-left: 4px solid #2e8b57; background: #eef7f1; padding: 0.35rem 0.7rem; }
"""
