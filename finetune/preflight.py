"""What must be right before anything is trained: the findings of an inspection, and what a model can learn from.

A finding is refused or shown.  What is refused can be accepted by its code, one by one, by somebody who knows better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gfm_calc.config import HeadSpec
from gfm_calc.data.findings import Finding, kind_of_energies
from gfm_calc.data.inspection import Inspection, inspect
from gfm_calc.data.readers import ReadOptions
from gfm_calc.errors import ConfigError, GFMError, InputFileError, did_you_mean
from gfm_calc.finetune.against import against_heads
from gfm_calc.model import GFMModel

MIN_FRAMES = 5
_TELLING = 20  # frames that tell what kind of energies a file holds
_OVERLAP = 0.17  # of the sum of the covalent radii: that of two H is more than `graph.MIN_DISTANCE`, below which none is learnt
# Warnings of an inspection that make labels unusable for one head: beside the errors, these are refused.
_GRAVE = (
    "contradictions", "duplicates", "energy-kind", "force-scale", "forces-unit", "mixed-energy-keys",
    "mixed-forces-keys", "stress-scale", "stress-unit", "zeroed-forces", "no-forces-written", "mixed-levels", "no-energies",
)  # fmt: skip
# What nothing can be done with, whoever knows better.
FINAL = {
    "damaged": "mend the file",
    "kind": "choose another --kind",
    "too-few": "give more of them",
    "unusable-frames": "mend these frames, or leave them out",
}
# What can be accepted; notes are never in the way, but saying so is no mistake.
CODES = (
    "classes", "close-atoms", "constant", "contradictions", "duplicates", "energies-only", "energy-kind", "energy-outliers",
    "energy-unit", "extensive", "force-scale", "forces-noise", "forces-unit", "large-forces", "length-unit",
    "mixed-energy-keys", "mixed-energy-kinds", "mixed-forces-keys", "mixed-levels", "near-duplicates", "net-force",
    "no-energies", "no-forces", "no-forces-written", "no-groups", "no-spin", "overlap", "rare-elements", "reference-rank",
    "several-conventions", "several-units", "shared-structures", "some-energies", "some-forces", "stress-noise",
    "stress-scale", "stress-unit", "unseen-elements", "zero-forces", "zeroed-forces",
)  # fmt: skip
_OF_ENERGIES = ("no-energies", "no-forces")  # where a property is what is to be learnt


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found: `inspection` of all files; `findings`, its own and ours; `refused`, those that stop the run."""

    inspection: Inspection
    findings: tuple[Finding, ...]
    refused: tuple[Finding, ...]

    def require(self) -> None:
        """GFMError with the first finding that stops the run, and how to go on."""
        if not self.refused:
            return
        first, more = self.refused[0], len(self.refused) - 1
        where = f" [frames {', '.join(map(str, first.frames[:5]))}]" if first.frames else ""
        others = f"; and {more} more: {', '.join(sorted({f.code for f in self.refused[1:]}))}" if more else ""
        mend = FINAL.get(first.code, f"mend it, or go on with --accept {first.code}")
        raise GFMError(f"not fine-tuned: {first.text}{where}; {mend}{others}")


def preflight(
    paths: Sequence[Path],
    model: GFMModel,
    card: HeadSpec,
    *,
    options: ReadOptions,
    format: str | None,
    accepted: Collection[str],
) -> Preflight:
    """Inspect the files.

    Args:
        model: that the head will be added to.  card: of that head.
        accepted: codes of findings that shall not stop the run.

    Raises:
        GFMError: a file that cannot be read, or whose labels leave a question open.
    """
    check_codes(accepted)
    for path in paths:
        _refuse_tables(path)
    inspection = inspect(paths, format=format, options=options)
    seen = [*_with_files(inspection), *inspection.findings]
    if card.kind == "energy":
        found = [finding for file in inspection.files for finding in against_heads(model, file)]
        found += [*seen, *_of_energies(inspection), *_of_learning(inspection, model)]
    else:
        found = [finding for finding in seen if finding.code not in _OF_ENERGIES]
        found += [*_of_property(inspection, card), *_of_learning(inspection, model)]
    grave = [f for f in found if f.level == "error" or (f.code in _GRAVE and f.level != "note")]
    refused = [f for f in grave if f.code not in accepted]
    refused.sort(key=lambda finding: finding.level != "error")
    return Preflight(inspection=inspection, findings=tuple(found), refused=tuple(refused))


def check_codes(accepted: Collection[str]) -> None:
    """ConfigError for a code that no finding has, or that cannot be accepted."""
    for code in accepted:
        if code in FINAL:
            raise ConfigError(f"--accept {code}: that cannot be accepted: {FINAL[code]}")
        if code not in CODES:
            raise ConfigError(
                f"--accept {code}: no finding has that code{did_you_mean(code, CODES)}; a finding shows its own"
            )


def _with_files(inspection: Inspection) -> list[Finding]:
    """The findings of single files, each with the name of its file."""
    return [
        finding if file.path in finding.text else replace(finding, text=f"{file.path}: {finding.text}")
        for file in inspection.files
        for finding in file.findings
    ]


def _named(inspection: Inspection) -> str:
    """'a.extxyz, b.extxyz'."""
    shown = [file.path for file in inspection.files[:3]]
    return ", ".join(shown) + (", ..." if len(inspection.files) > 3 else "")


def _refuse_tables(path: Path) -> None:
    """InputFileError for tables without structures."""
    name = path.name.lower()
    if any(name.endswith(f".{kind}{packed}") for kind in ("csv", "tsv") for packed in ("", ".gz", ".xz", ".bz2")):
        raise InputFileError(
            f"{path}: a table, no structures: where the composition alone is known, use a model of compositions (CrabNet, "
            "Roost, a random forest on matminer's features); where structures are, give them as extxyz or jsonl"
        )


def _of_property(inspection: Inspection, card: HeadSpec) -> list[Finding]:
    """What is wrong with the labels of a property."""
    found = []
    values = np.concatenate([file.statistics["value"] for file in inspection.files])
    sizes = np.concatenate([file.statistics["num_atoms"] for file in inspection.files])
    known = values[np.isfinite(values)]
    if len(known) < MIN_FRAMES:
        count = f"{len(known)} structure{'s' * (len(known) != 1)} with the property"
        text = f"{_named(inspection)}: {count}: at least {MIN_FRAMES} are needed"
        return [Finding(level="error", code="too-few", text=text)]
    shapes = {
        (bool(row[0]), int(row[1]))
        for file in inspection.files
        for row in zip(file.statistics["of_atoms"], file.statistics["width"])
        if row[1]
    }
    if shapes != {(card.is_of_atoms, 3 if card.kind.endswith("vector") else 1)}:
        texts = [f"{width} number{'s' * (width > 1)} {('a structure', 'an atom')[atoms]}" for atoms, width in shapes]
        kinds = " or ".join(kind for shape in sorted(shapes) for kind in _KINDS[shape])
        text = f"the label has {' or '.join(texts)}: --kind must be {kinds}"
        return [Finding(level="error", code="kind", text=text)]
    varies = any(file.statistics["varies"].any() for file in inspection.files)
    if np.ptp(known) <= 1e-12 * np.abs(known).max() and not varies:
        text = f"{_named(inspection)}: every structure has the same label, {known[0]:g}: there is nothing to learn"
        found.append(Finding(level="error", code="constant", text=text))
    if card.kind == "class" and not np.isin(known, (0.0, 1.0)).all():
        text = f"a class is 0 or 1 (or false and true), and there is {known[~np.isin(known, (0.0, 1.0))][0]:g}"
        found.append(Finding(level="error", code="classes", text=text))
    if card.kind == "scalar" and len(known) >= _TELLING and len(np.unique(sizes)) > 3:
        grows = float(np.corrcoef(sizes[np.isfinite(values)], known)[0, 1])
        if (card.extensive and abs(grows) < 0.2) or (not card.extensive and abs(grows) > 0.95):
            other = "intensive" if card.extensive else "extensive"
            text = f"the label's correlation with the number of atoms is {grows:.2f}: is it {other}?"
            found.append(Finding(level="warning", code="extensive", text=text))
    return found


_KINDS = {
    (False, 1): ("extensive", "intensive", "class"), (False, 3): ("vector",), (True, 1): ("atom-scalar",),
    (True, 3): ("atom-vector",),
}  # fmt: skip


def _of_energies(inspection: Inspection) -> list[Finding]:
    """What an inspection does not judge of energies and forces, since it does not know that they are to be learnt."""
    found = []
    free, energies = (
        np.concatenate([file.statistics[name] for file in inspection.files]) for name in ("free_atom", "energy")
    )
    usable = int(((free == 0) & np.isfinite(energies)).sum())
    if usable < MIN_FRAMES:
        count = f"{usable} structure{'s' * (usable != 1)} with energies beside free atoms"
        text = f"{_named(inspection)}: {count}: at least {MIN_FRAMES} are needed"
        found.append(Finding(level="error", code="too-few", text=text))
    if all(np.isnan(file.statistics["max_force"]).all() for file in inspection.files):
        text = "no forces: the head learns from energies alone; expect forces several times worse than with them"
        found.append(Finding(level="warning", code="energies-only", text=text))
    large = [file for file in inspection.files if len(file.statistics) >= _TELLING]
    judged = [kind_of_energies(file) for file in large]
    kinds = {kind.kind for kind in judged if kind is not None and kind.is_sure and kind.kind != "unclear"}
    if len(kinds) > 1:
        text = f"the files hold different kinds of energies ({', '.join(sorted(kinds))}): one head needs one kind"
        found.append(Finding(level="error", code="mixed-energy-kinds", text=text))
    return found


def seen_elements(model: GFMModel) -> set[str]:
    """Symbols that any head has seen: structures of others are refused."""
    return {symbol for spec in model.specs.values() for symbol in spec.elements}


def _of_learning(inspection: Inspection, model: GFMModel) -> list[Finding]:
    """What an inspection does not judge, since it knows of no model."""
    found = []
    for file in inspection.files:
        overlapping = np.flatnonzero(file.statistics["closest"] < _OVERLAP)
        if len(overlapping):
            frames = tuple(file.statistics["frame"][overlapping[:5]].astype(int).tolist())
            many = f"{len(overlapping)} frame{'s' * (len(overlapping) != 1)}"
            text = f"{file.path}: {many} with two atoms closer than a sixth of a bond"
            found.append(Finding(level="error", code="overlap", text=text, frames=frames, num_frames=len(overlapping)))
    known = seen_elements(model)
    for file in inspection.files:
        strange = [symbol for symbol in file.statistics.elements if symbol not in known]
        if strange:
            frames = tuple(sorted({file.first_frames[symbol] for symbol in strange}))
            text = (
                f"{file.path}: {', '.join(strange)}: no head of the model has seen {'it' if len(strange) == 1 else 'them'}: "
                "leave these structures out, or choose another model (--from)"
            )
            found.append(Finding(level="error", code="unseen-elements", text=text, frames=frames))
    return found
