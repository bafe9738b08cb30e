"""`gfm bench card`: a model card in Markdown from head cards and result files; every figure in it comes from one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gfm_calc.benchmarks.report import markdown, markdown_table
from gfm_calc.errors import ConfigError

# What no head card says, because it holds for the architecture whatever it was trained on.
_LIMITS = (
    "The energy is a sum of contributions of atomic neighbourhoods. Electrostatics and dispersion act only as far as the "
    "cutoff and the number of layers carry them ({reach:g} Å at most); nothing binds or repels fragments farther apart.",
    "No magnetic moments: a spin state of a molecule is one number for the whole structure, and crystals are predicted in "
    "the state that their labels have, whichever that is.",
    "No excited states, no electric fields, no charges or dipoles as results, no reaction energies between heads.",
    "Total energies of different heads have different zeros. Compare atomisation energies (only of heads whose reference "
    "energies are isolated atoms), energy differences within a head, or forces; never total energies.",
)
_UNSURE = (
    "No estimate of its own error comes with a prediction of {heads}. Far from the training data (unlike coordination, pressure, "
    "chemistry) it is wrong without saying so; elements, charges and spin states that a head has not seen are refused."
)
_SURE = (
    "Expected errors (`uncertainty=True`) are learnt from errors on training data: they tell frames of the kinds that a head "
    "knows apart, and say little about structures far from all of them. Of elements, charges and spin states that a head has "
    "not seen, which are refused unless asked for, they say nothing."
)
_LABELS = {
    "semi-empirical": "semi-empirical calculations, not first principles",
    "distilled": "predictions of another machine-learned model, not calculations: its errors come on top",
}

_TITLES = {
    "accuracy": "## Errors on held-out data\n\nGroups (one molecule or crystal with all its distortions) lie on one side of "
    "the split in all files and heads; where a head has fewer than three, blocks of consecutive frames take their place, and "
    "its test frames are of molecules or materials that it has learnt from. `mean` predicts the training split's mean energy "
    "per atom, `references` the sum of the reference energies, both with zero forces and stress. Where `formulas` is 1, the "
    "test is a single molecule or material. Published models stand beside heads of PBE and PBE(+U), with energies only where "
    "the zero is the same. CHGNet and the SevenNet models were trained on relaxations of Materials Project crystals (MPtrj); "
    "compounds of such heads may be among those. Labels of a distilled head are predictions of the model that it names.",
    "alone": "## Beside one network a head",
    "uncertainty": "## Expected errors\n\n`GFMCalculator(..., uncertainty=True)` gives the mean absolute error to expect of "
    "the energy and of the force on each atom (the length of its error, not a component). Spearman: rank correlation of guess "
    "and error. AUROC: the chance that of a large error (the largest fifth of the held-out ones) and another the guess for "
    "the large one is larger; 0.5 is chance. "
    "The networks' inputs and settings were chosen with figures of some of these structures in view, beside those of "
    "validation: they are a little too good.",
    "physics": "## Physics",
    "crystals": "## Crystals\n\nCompounds are of the Materials Project, as is what the published models were trained on; some "
    "are among those whose strained and rattled cells the distilled heads learnt from, too. It is no test of unseen chemistry, "
    "but of what a fit to forces makes of volumes, moduli and phonons.",
    "phonons": "## Phonons\n\nForce sets are examples and tests of phonopy (VASP; which functional is said of few): models give "
    "forces on the same displaced supercells, at the geometry of DFT.",
    "torsions": "## Torsions",
    "conformers": "## Conformers",
    "stability": "## Dynamics",
    "heads": "## Cost of many heads",
    "speed": "## Speed",
    "reliability": "## Promises",
}
# Weights of the same shapes take as long; such results say where they were measured on earlier ones.
_OF_ANY_WEIGHTS = ("heads", "speed")


def model_card(about: Mapping[str, Any], results: Iterable[Mapping[str, Any]], *, name: str, weights: str) -> str:
    """The card's text.

    Args:
        about: what `checkpoint.describe` says.
        results: benchmark results to quote.
        name: of the model, for the title and the example.
        weights: digest of the weights, as in the results' provenance.

    Raises:
        ConfigError: a result that the card quotes was measured on other weights, and would differ.
    """
    quoted = [result for result in results if result["benchmark"] in _TITLES]
    for result in quoted:
        measured = result["provenance"].get("weights", "")
        if measured and measured != weights and result["benchmark"] not in _OF_ANY_WEIGHTS:
            raise ConfigError(
                f"the {result['benchmark']} result was measured on weights {measured}, the model has {weights}: measure again"
            )
    heads = about["heads"]
    parts = [
        _introduction(about, name), _heads(heads), *_figures(quoted, weights), _limits(about, quoted), _sources(heads),
        _making(about, weights),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(about: Mapping[str, Any], name: str) -> str:
    config, heads = about["config"], about["heads"]
    head = heads[0]["name"]
    expansion = config.get("expansion", 1)
    wider = f" with networks {expansion} times as wide" if expansion > 1 else ""
    return f"""# {name}

A machine-learned interatomic potential with {len(heads)} heads, one a level of theory, on one shared encoder \
({config["encoder"]}, {config["num_layers"]} layers of {config["num_features"]} features{wider}, cutoff {config["cutoff"]:g} Å, \
{about["bytes"] / 1e6:.1f} MB). Written by `gfm bench card`; do not edit by hand.

```python
from ase.build import molecule
from gfm_calc import GFMCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = GFMCalculator("{name}", head="{head}")
atoms.get_forces()  # eV/Å
```"""


def _heads(heads: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"`{h['name']}`", f"{h['functional']} / {h['basis']} ({h['code']})", h["labels"], h["dispersion"],
            _elements(h["elements"]), ", ".join(h["periodicity"]), _charges(h), h["reference_kind"],
            f"{sum(source.get('frames', 0) for source in h['training_data']):,}",
        ]
        for h in heads
    ]  # fmt: skip
    header = [
        "head",
        "level of theory",
        "labels",
        "dispersion",
        "elements",
        "kinds",
        "charges",
        "references",
        "training frames",
    ]
    described = "\n".join(f"* `{h['name']}`: {h['description']}" for h in heads if h["description"])
    return f"## Heads\n\n{described}\n\n{markdown_table('What each head knows', header, rows)}"


def _figures(results: Sequence[Mapping[str, Any]], weights: str) -> list[str]:
    sections = []
    for name, title in _TITLES.items():
        found = [markdown(result, weights=weights) for result in results if result["benchmark"] == name]
        sections += ["\n\n".join([title, *found])] if found else []
    return sections


def _limits(about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    config = about["config"]
    points = [text.format(reach=config["cutoff"] * config["num_layers"]) for text in _LIMITS]
    sure = [entry["head"] for entry in about["uncertainty"]]
    unsure = [f"`{h['name']}`" for h in about["heads"] if h["kind"] == "energy" and h["name"] not in sure]
    points += [_UNSURE.format(heads=", ".join(unsure) if sure else "this model")] if unsure else []
    points += [_SURE] if sure else []
    for labels, meaning in _LABELS.items():
        named = [f"`{h['name']}`" for h in about["heads"] if h["labels"] == labels]
        if named:
            points.append(f"{', '.join(named)}: labels are {meaning}.")
    untested = [
        f"`{h['name']}`" for h in about["heads"] if h["kind"] == "energy" and not h.get("test_errors", {}).get("frames")
    ]
    points += [
        f"{name}: no held-out structures of elements that it was trained on; how wrong it is on others is not known."
        for name in untested
    ]
    points += [point for result in results for point in _measured_limits(result)]
    return "## Limits\n\n" + "\n".join(f"* {point}" for point in points)


def _measured_limits(result: Mapping[str, Any]) -> list[str]:
    """What a result itself warns of."""
    points = []
    for entry in result["heads"] if result["benchmark"] == "accuracy" else ():
        for key, what, baseline in (
            ("energy_mae_mev_per_atom", "energies", "composition"), ("forces_mae_mev_per_a", "forces", "mean"),
            ("stress_mae_mev_per_a3", "stresses", "mean"),
        ):  # fmt: skip
            found, trivial = entry["model"].get(key), entry[baseline].get(key)
            if found is not None and found >= 0.8 * trivial:
                than = "a fit to the composition alone" if baseline == "composition" else "predicting zero"
                points.append(f"`{entry['head']}`: {what} of held-out groups are hardly better than {than}, or worse.")
    for row in result.get("relaxations", ()):
        if not row["converged"]:
            points.append(f"The relaxation of {row['name']} with `{row['head']}` did not converge.")
    curves = [row for row in result.get("pairs", ()) if row["extra_minima"]]
    spurious = [
        f"`{row['head']}` ({len(row['extra_minima']):,} of {row['pairs']:,}"
        + ("" if row["in_reference"] is None else f", {len(row['in_reference']):,} of them by its labels' method, too")
        + ")"
        for row in curves
    ]
    if spurious:
        points.append(f"Isolated pairs of atoms have more than one minimum for some elements: {', '.join(spurious)}.")
    return points


def _sources(heads: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [source["name"], f"`{h['name']}`", f"{source.get('frames', 0):,}", source["licence"], source["citation"]]
        for h in heads
        for source in h["training_data"]
    ]
    table = markdown_table("Sources", ["data", "head", "training frames", "licence", "citation"], rows)
    return (
        "## Training data and attribution\n\nThe weights were trained on the data below. Where the licence asks for "
        f"attribution (CC-BY), this table is it; please cite the works whose heads you use.\n\n{table}"
    )


def _making(about: Mapping[str, Any], weights: str) -> str:
    provenance = about["provenance"]
    training = ", ".join(f"{key} {value}" for key, value in provenance.get("training", {}).items())
    versions = ", ".join(f"{key} {value}" for key, value in provenance.get("versions", {}).items())
    history = "; ".join(provenance.get("history", ()))
    recipe = f"Recipe `{provenance['recipe']}`" if "recipe" in provenance else ""
    lines = [recipe, training, history, provenance.get("hardware", ""), versions]
    told = "; ".join(line for line in lines if line)
    return f"## How it was made\n\n{told or 'Not recorded'}. Weights {weights}, file format {about['format_version']}."


def _elements(symbols: Sequence[str]) -> str:
    return " ".join(symbols) if len(symbols) <= 10 else f"{len(symbols)}: {symbols[0]} to {symbols[-1]}"


def _charges(head: Mapping[str, Any]) -> str:
    low, high = head["charges"]
    return str(low) if low == high else f"{low:+d} to {high:+d}"
