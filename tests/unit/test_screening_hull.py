"""Distances from the convex hull: known hulls, scipy's linear programs, and hulls of whole screenings."""

import csv

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.data import covalent_radii
from scipy.optimize import linprog
from screenings import argv, chunks, need_pyarrow, rows
from test_screening_command import refused

from gfm_calc.cli import main
from gfm_calc.screening.elements import element_crystal
from gfm_calc.screening.formulas import composition_of, reduced_formula
from gfm_calc.screening.hull import Hull, lowest_mixture
from gfm_calc.screening.prototypes import STATES


def test_formulas_there_and_back():
    from ase import Atoms
    from ase.formula import Formula

    random = np.random.default_rng(0)
    for _ in range(300):
        numbers = np.repeat(random.choice(np.arange(1, 119), random.integers(1, 6)), random.integers(1, 5))
        wanted = Formula(Atoms(numbers).get_chemical_formula()).reduce()[0]
        assert reduced_formula(numbers) == wanted.format("metal")
        assert composition_of(reduced_formula(numbers)) == composition_of(str(wanted))
    assert reduced_formula(np.array([], int)) == ""


def test_the_simplex_method_finds_what_scipy_finds():
    """Random phases, many of them degenerate: on the lines between others, or doubled."""
    random = np.random.default_rng(1)
    for _ in range(400):
        elements, phases = random.integers(2, 7), random.integers(1, 30)
        fractions = random.integers(0, 4, (phases, elements)).astype(float)
        fractions = fractions[fractions.sum(axis=1) > 0]
        fractions /= fractions.sum(axis=1, keepdims=True)
        energies = np.round(random.normal(-1, 1, len(fractions)), 1)
        wanted = random.integers(1, 4, elements).astype(float)
        wanted /= wanted.sum()
        columns = np.vstack([np.eye(elements), fractions])
        costs = np.concatenate([np.zeros(elements), energies])
        exact = linprog(costs, A_eq=columns.T, b_eq=wanted, method="highs").fun
        assert lowest_mixture(fractions, energies, wanted) == pytest.approx(exact, abs=1e-9)


def test_a_hull_known_by_hand():
    """A-B: AB at -1 and A3B at -0.6 are on it, AB3 at -0.3 is 0.2 above the line from AB to B."""
    hull = Hull()
    for number, (formula, energy) in enumerate([("LiAl", -1.0), ("Li3Al", -0.6), ("LiAl3", -0.3), ("LiAl", -0.9)]):
        hull.add(formula, energy, number)
    assert hull.distance("LiAl3", -0.3, 2) == pytest.approx(0.2)
    assert hull.distance("LiAl", -0.9, 3) == pytest.approx(0.1)  # another of the same composition lies lower
    assert hull.distance("LiAl", -1.0, 0) == pytest.approx(-0.1)  # the next best is the other of its composition
    assert hull.distance("Li3Al", -0.6, 1) == pytest.approx(-0.1)  # Li + LiAl give -0.5
    assert hull.distance("LiMg", 0.05) == pytest.approx(0.05)  # nothing but elements
    assert hull.distance("Li2AlMg", -0.3) == pytest.approx(0.25)  # a quarter LiAl, half Li3Al, a quarter Mg
    hull.add("NaCl", np.nan)
    assert hull.distance("NaCl", -1.0) == pytest.approx(-1.0)


def test_many_elements_are_no_special_case():
    symbols = ["Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba", "Sc", "Ti", "V", "Cr"]
    hull = Hull()
    hull.add("LiNa", -1.0)
    assert hull.distance("".join(symbols), 0.0) == pytest.approx(2 / 14)


@pytest.fixture
def alloys(tmp_path):
    """Cu, CuPt, Cu3Pt, CuPt3 and copper and platinum, as candidates."""
    need_pyarrow()
    several = [bulk("CuPt", "cesiumchloride", a=3.0), bulk("CuPt", "rocksalt", a=5.6)]
    for mixed, host in (("Cu", "Pt"), ("Pt", "Cu")):
        atoms = bulk(host, cubic=True, a=3.8)
        atoms.symbols[0] = mixed
        several.append(atoms)
    ase.io.write(tmp_path / "in.extxyz", several)
    return tmp_path


def test_a_screening_ranked_by_its_own_hull(alloys, saved_model, capsys):
    run = alloys / "run"
    words = argv([alloys / "in.extxyz"], run, saved_model, "--rank-by", "hull_distance", "--dtype", "float64")
    words.remove("--no-report")
    assert main(words) == 0
    found = {row["candidate"]: row for row in rows(run)}
    energies = {number: row["formation_energy_per_atom"] for number, row in found.items()}
    with open(run / "ranking.csv") as handle:
        ranking = {int(row["candidate"]): row for row in csv.DictReader(handle)}
    assert len(ranking) == 4
    for number, row in ranking.items():
        others = [(composition_of(found[k]["formula"]), energies[k]) for k in found if k != number]
        points = [(c.get(78, 0) / sum(c.values()), e) for c, e in others] + [(0.0, 0.0), (1.0, 0.0)]
        own = composition_of(found[number]["formula"])
        x = own.get(78, 0) / sum(own.values())
        lines = [e1 if x1 == x2 else e1 + (e2 - e1) * (x - x1) / (x2 - x1)
                 for x1, e1 in points for x2, e2 in points if x1 <= x <= x2 and (x1 != x2 or x1 == x)]  # fmt: skip
        assert float(row["hull_distance"]) == pytest.approx(energies[number] - min(lines), abs=1e-9)
    order = [float(row["hull_distance"]) for row in ranking.values()]
    assert order == sorted(order)
    assert "hull distance" in (run / "summary.html").read_text()
    assert "formation_energy_per_atom" in capsys.readouterr().err  # what the progress line shows meanwhile


def test_phases_of_the_user_and_filters(alloys, saved_model, capsys):
    """A candidate that is also a phase is at zero; filters by distance leave what is near the hull."""
    run = alloys / "run"
    phase = bulk("CuPt", "cesiumchloride", a=3.0)
    ase.io.write(alloys / "phases.extxyz", [phase])
    more = ("--rank-by", "hull_distance", "--phases", str(alloys / "phases.extxyz"), "--dtype", "float64")
    assert main(argv([alloys / "in.extxyz"], run, saved_model, *more)) == 0
    before = chunks(run)
    with open(run / "ranking.csv") as handle:
        ranking = {int(row["candidate"]): float(row["hull_distance"]) for row in csv.DictReader(handle)}
    assert ranking[0] == pytest.approx(0.0, abs=1e-9) or ranking[0] > 0
    assert main(argv([alloys / "in.extxyz"], run, saved_model, *more, "--where", "hull_distance < -1e9")) == 0
    assert "0 ranked" in capsys.readouterr().out and chunks(run) == before
    refused(
        argv([alloys / "in.extxyz"], run, saved_model, "--phases", str(alloys / "no.xyz")),
        capsys,
        "no.xyz: no such file",
    )
    ase.io.write(alloys / "xenon.extxyz", [bulk("Xe", "fcc", a=6.2)])
    words = argv([alloys / "in.extxyz"], alloys / "other", saved_model, "--phases", str(alloys / "xenon.extxyz"))
    refused(words, capsys, "phases", "has not seen Xe")
    assert not list((alloys / "other" / "chunks").iterdir())  # told before the work, not after


def test_crystals_of_elements_are_as_dense_as_they_are():
    """Spheres of covalent radii fill what they fill in crystals: a wrong cell would give wrong formation energies."""
    filled = {}
    for symbol in STATES:
        atoms = element_crystal(symbol)
        if atoms is not None:
            sphere = 4 / 3 * np.pi * covalent_radii[atoms.numbers[0]] ** 3
            filled[symbol] = sphere * len(atoms) / atoms.get_volume()
    molecules = ("Cl", "Br", "I")  # their crystals are mostly empty
    assert len(filled) > 75 and all(0.26 < x < 1.6 for symbol, x in filled.items() if symbol not in molecules), filled
    for symbol, volume in {"U": 20.8, "Np": 19.2, "Th": 32.9, "Ga": 19.6, "B": 7.3, "Fe": 11.8}.items():  # Å³ an atom
        atoms = element_crystal(symbol)
        assert atoms.get_volume() / len(atoms) == pytest.approx(volume, rel=0.03), symbol
