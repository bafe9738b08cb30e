"""The tables of `gfm bench crystals | phonons | torsions | conformers | stability`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gfm_calc.benchmarks.tables import Table, figure


def crystals(result: Mapping[str, Any]) -> Iterator[Table]:
    """Means of every model; then crystal by crystal."""
    names = result["models"]
    header = ["model", "relaxed", "volume, %", "bulk modulus, %", "phonons of", "frequencies, THz",
              "heat capacity, J/mol/K", "with imaginary modes"]  # fmt: skip
    rows = []
    for row in result["means"]:
        volumes, phonons = row["crystals"], row["phonons"]
        rows.append([
            names[row["model"]], f"{volumes['done']} of {volumes['of']}", _error(volumes.get("volume")),
            _error(volumes.get("bulk_modulus")), f"{phonons['done']} of {phonons['of']}",
            figure(phonons.get("mean_difference")), _error(phonons.get("heat_capacity")), str(phonons["imaginary"]),
        ])  # fmt: skip
    of_elements = bool(result.get("elements"))
    title = "frequencies against SevenNet-l3i5's"
    if of_elements:
        title = "of elements in fcc, bcc, hcp and diamond against experiments at room temperature"
    shown = 3 if of_elements and not result["phonons"] else len(header)  # without moduli and phonons
    compared = [result["means"][0][part]["compared"] for part in ("crystals", "phonons")] if result["means"] else [0, 0]
    over = " and ".join(f"{count} {what}" for count, what in zip(compared, ("for volumes", "for phonons")) if count)
    title += f"; over those that all models did ({over})"
    yield Table(f"Crystals: mean absolute errors (mean errors), {title}", header[:shown], [row[:shown] for row in rows])
    for part, labels in (("crystals", ("volume", "bulk_modulus")), ("phonons", ("heat_capacity", "highest"))):
        header = ["crystal", "id", "", *(label.replace("_", " ") for label in labels)]
        rows = []
        for row in result[part]:
            about = [row["name"], row["id"]]
            rows.append([*about, "reference", *(figure(row["reference"].get(label)) for label in labels)])
            for key, found in row["models"].items():
                values = [figure(found[label]) if label in found else found["error"] for label in labels]
                rows.append([*about, names[key], *values])
        titles = {
            "crystals": "Volumes (Å³ an atom) and bulk moduli (GPa)",
            "phonons": "Heat capacities and highest frequencies",
        }
        yield Table(titles[part], header, rows, detail=True)


def phonons(result: Mapping[str, Any]) -> Iterator[Table]:
    """Means of every model; then crystal by crystal."""
    names, means = result["models"], result["means"]
    header = ["model", "crystals", "frequencies, THz", "median crystal", "highest frequency, %", "with imaginary modes"]
    rows = []
    for one in means:
        error = f"{figure(one['mean_absolute'])} ({one['mean']:+.3g})"
        done = f"{one['done']} of {len(result['rows'])}"
        ends = figure(one["median_absolute"]), figure(one["highest"]), str(one["imaginary"])
        rows.append([names[one["model"]], done, error, *ends])
    over = (
        f"; over {means[0]['compared']} crystals, {means[0]['reference_imaginary']} with imaginary modes by DFT"
        if means
        else ""
    )
    title = f"Phonons at the geometry of calculated force sets (DFT): mean absolute errors (mean errors){over}"
    yield Table(title, header, rows)
    header = ["crystal", "file", "displacements", "atoms", "model", "mean error, THz", "highest, THz", "imaginary"]
    rows = []
    for row in result["rows"]:
        about = [row["formula"], row["name"], str(row["displacements"]), str(row["atoms"])]
        for key, found in {"DFT": row["reference"], **row["models"]}.items():
            if "error" in found:
                rows.append([*about, names[key], found["error"], "-", "-"])
                continue
            apart = figure(found["mean_absolute"]) if "mean_absolute" in found else "-"
            rows.append(
                [*about, names.get(key, key), apart, figure(found["highest"]), "yes" if found["imaginary"] else "no"]
            )
    yield Table("Phonons beside force sets, crystal by crystal", header, rows, detail=True)


def torsions(result: Mapping[str, Any]) -> Iterator[Table]:
    """Torsion scans."""
    return _relative_energies(result, "Torsion scans")


def conformers(result: Mapping[str, Any]) -> Iterator[Table]:
    """Conformers of molecules."""
    return _relative_energies(result, "Conformers")


def _relative_energies(result: Mapping[str, Any], what: str) -> Iterator[Table]:
    """Mean errors of the methods; then molecule by molecule."""
    head, reference, own = result["head"], result["reference"], result["own_level"]
    new = result.get("unseen")
    header = ["method", "molecules", "error", "rank correlation"]
    header += [f"error of the {new['count']} whose composition is not in the head's data"] if new else []
    rows = []
    for method, value in sorted(result["means"].items(), key=lambda item: item[1]):
        row = [method, str(len(result["rows"])), figure(value), figure(result["mean_ranks"][method])]
        rows.append([*row, figure(new["means"][method])] if new else row)
    row = [f"{head} against {own}", str(len(result["rows"])), figure(result["mean_against_own_level"]), "-"]
    rows.append([*row, figure(new["mean_against_own_level"])] if new else row)
    title = f"{what}: {result['error']} of relative energies against {reference}, kcal/mol, mean over molecules"
    yield Table(title, header, rows)
    rows = [
        [row["name"], row["formula"], str(row["points"]), figure(row["errors"][head]), figure(row["against"])]
        for row in result["rows"]
    ]
    header = ["", "molecule", "geometries", f"{head} against {reference}", f"against {own}"]
    yield Table(f"{what}, one by one", header, rows, detail=True)


def stability(result: Mapping[str, Any]) -> Iterator[Table]:
    """A row a system."""
    header = ["system", "head or model", "atoms", "K", "mean K", "ps", "closest, of covalent", "stable"]
    rows = [
        [
            row["name"], row["head"], str(row["atoms"]), f"{row['kelvin']:g}", figure(row["mean_kelvin"]),
            f"{row['picoseconds']:g}", figure(row["closest"]), "yes" if row["stable"] else f"no: {row['why']}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    yield Table("Langevin dynamics", header, rows)


def _error(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{figure(found['mean_absolute'])} ({found['mean']:+.3g})"
