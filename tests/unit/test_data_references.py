"""Reference energies: exact where the data determine them, flagged where they do not, never from anything but what is given."""

import json
import math

import numpy as np
import pytest
from ase import Atoms
from data_files import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st

from gfm_calc.data.compositions import Compositions
from gfm_calc.data.readers import read
from gfm_calc.data.references import (
    ReferenceFitter,
    fit_reference_energies,
    isolated_atoms,
    read_reference_energies,
)
from gfm_calc.data.schema import Record
from gfm_calc.errors import ConfigError, InputFileError

TRUE = {"H": -13.6057, "C": -1029.4131, "N": -1484.8710, "O": -2041.8396, "Cu": -45_000.25}
NUMBER = {"H": 1, "C": 6, "N": 7, "O": 8, "Cu": 29}


def record(numbers, energy: float) -> Record:
    numbers = np.asarray(numbers, np.int64)
    return Record(
        atomic_numbers=numbers, positions=np.zeros((len(numbers), 3)), cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), energy=energy
    )  # fmt: skip


def total(numbers) -> float:
    return math.fsum(TRUE[symbol] for z in numbers for symbol in NUMBER if NUMBER[symbol] == z)


def random_numbers(random: np.random.Generator) -> np.ndarray:
    counts = random.integers(0, 9, len(NUMBER))
    counts[0] += 1
    return np.repeat(list(NUMBER.values()), counts)


def test_exact_sums_are_found_to_micro_electronvolts():
    """Totals of 1e5 eV, through several foldings."""
    random = np.random.default_rng(0)
    numbers = [random_numbers(random) for _ in range(5000)]
    fit = fit_reference_energies(record(z, total(z)) for z in numbers)
    for symbol, energy in TRUE.items():
        assert fit.energies[symbol] == pytest.approx(energy, abs=1e-4)
    assert fit.is_unique and fit.rank == 5 and fit.kind == "fitted" and fit.structures == 5000 and not fit.flagged
    assert fit.residual_rms < 1e-5 and 1.0 < fit.condition_number < 20.0
    assert fit.counts["H"] == 5000


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(6, 400))
def test_it_is_the_least_squares_solution(seed, count):
    random = np.random.default_rng(seed)
    numbers = [random_numbers(random) for _ in range(count)]
    energies = [total(z) + random.normal(0, 0.3) * len(z) for z in numbers]
    fit = fit_reference_energies(map(record, numbers, energies))
    matrix = np.array([[(z == n).mean() for n in NUMBER.values()] for z in numbers])
    target = np.array([e / len(z) for z, e in zip(numbers, energies)])
    expected, _, rank, singular = np.linalg.lstsq(matrix, target)
    assert fit.rank == rank
    if rank == 5:
        np.testing.assert_allclose(
            list(fit.energies.values()), expected, rtol=0, atol=1e-6 + 1e-7 * fit.condition_number**2
        )
        assert fit.condition_number == pytest.approx(singular[0] / singular[-1], rel=1e-6)
        assert fit.residual_rms == pytest.approx(np.sqrt(np.mean((target - matrix @ expected) ** 2)), rel=1e-4)


def test_what_the_compositions_leave_open_is_flagged():
    water = [1, 1, 8]
    fit = fit_reference_energies([record(water * k, -2068.0 * k) for k in range(1, 30)])
    assert fit.rank == 1 and not fit.is_unique
    assert fit.energies["H"] == pytest.approx(-2068.0 / 3) and fit.energies["O"] == pytest.approx(-2068.0 / 3)
    assert fit.flagged == {
        "H": "not determined singly: it only occurs in fixed proportion with O",
        "O": "not determined singly: it only occurs in fixed proportion with H",
    }
    assert fit.condition_number == 1.0 and fit.regularised_condition_number == pytest.approx(1e6, rel=1e-6)


def test_rare_elements_are_flagged():
    numbers = [[1, 6] * k + [1] for k in range(1, 20)] + [[1, 1, 7], [1, 7]]
    fit = fit_reference_energies(record(z, total(z)) for z in numbers)
    assert list(fit.flagged) == ["N"] and "in 2 structures only" in fit.flagged["N"]


def test_given_atoms_are_kept_exactly():
    random = np.random.default_rng(1)
    numbers = [[1, 1, 8] * k + [6] * int(random.integers(3)) for k in range(1, 30)]
    fit = fit_reference_energies((record(z, total(z)) for z in numbers), known={"H": TRUE["H"], "Pt": -1.0})
    assert fit.energies["H"] == TRUE["H"] and "Pt" not in fit.energies
    assert fit.energies["O"] == pytest.approx(TRUE["O"], abs=1e-4) and fit.is_unique
    fit = fit_reference_energies([record([1, 8], -1.0)], known={"H": -13.6, "O": -2041.0})
    assert fit.kind == "isolated-atom" and fit.energies == {"H": -13.6, "O": -2041.0}


def test_foundation_mode_fits_what_the_head_misses():
    """A new level of theory whose atoms differ from those of the existing head, which predicts its own level exactly."""
    random = np.random.default_rng(2)
    shift = {"H": 0.3, "C": -1.2, "O": 2.5}
    base = {"H": -13.0, "C": -1030.0, "O": -2040.0, "N": -1480.0}
    fitter = ReferenceFitter(base=base)
    for _ in range(300):
        counts = random.integers(1, 6, 3)
        numbers = np.repeat([1, 6, 8], counts)
        predicted = sum(base[s] * int(n) for s, n in zip(shift, counts)) - 4.0 * len(numbers)
        fitter.add(numbers, predicted + sum(shift[s] * int(n) for s, n in zip(shift, counts)), predicted)
    fit = fitter.fit()
    assert list(fit.energies) == ["H", "C", "O"]
    for symbol, change in shift.items():
        assert fit.energies[symbol] == pytest.approx(base[symbol] + change, abs=1e-6)


def test_foundation_mode_changes_nothing_that_the_data_leave_open():
    fitter = ReferenceFitter(base={"H": -13.0, "O": -2040.0})
    for k in range(1, 20):
        fitter.add(np.array([1, 1, 8] * k), -100.0 * k + 0.3 * k, -100.0 * k)  # 0.3 eV a molecule
    fit = fitter.fit()
    # the least change: in proportion to how often an element occurs
    assert fit.energies["H"] == pytest.approx(-13.0 + 0.3 * 2 / 5) and fit.energies["O"] == pytest.approx(
        -2040.0 + 0.3 / 5
    )
    with pytest.raises(ConfigError, match="no reference energy for N"):
        other = ReferenceFitter(base={"H": -13.0})
        other.add(np.array([1, 7]), -1.0, -1.0)
        other.fit()
    with pytest.raises(ConfigError, match="predicted energy of every structure"):
        fitter.add(np.array([1]), 1.0)


def test_the_ridge_settles_what_is_open_without_moving_the_rest():
    random = np.random.default_rng(4)
    numbers = [random_numbers(random) for _ in range(300)]
    energies = [total(z) + 0.05 * random.normal() * len(z) for z in numbers]
    exact = fit_reference_energies(map(record, numbers, energies), ridge=0.0)
    weak = fit_reference_energies(map(record, numbers, energies))
    strong = fit_reference_energies(map(record, numbers, energies), ridge=1.0)
    for symbol in TRUE:
        assert weak.energies[symbol] == pytest.approx(exact.energies[symbol], abs=1e-3)
    assert abs(strong.energies["H"] - TRUE["H"]) > 1000.0
    assert strong.regularised_condition_number < exact.regularised_condition_number


def test_frames_without_energies_are_passed_over():
    fit = fit_reference_energies([record([1, 1], math.nan), record([1], -13.0)])
    assert fit.energies == {"H": -13.0} and fit.structures == 1
    with pytest.raises(InputFileError, match="no structure with an energy"):
        fit_reference_energies([record([1, 1], math.nan)])


def test_single_atoms_are_found():
    found = isolated_atoms(read(FIXTURES / "methanol.extxyz"))
    assert found == {"H": -13.568422, "C": -1025.277095, "N": -1479.066559, "O": -2035.570981}
    crystal = Record.from_atoms(Atoms("Fe", cell=[2.4] * 3, pbc=True))
    assert isolated_atoms([crystal]) == {}


def test_compositions_fit_as_records_do():
    records = list(read(FIXTURES / "nbmotaw.extxyz.xz"))
    table = Compositions()
    for one in records:
        table.add(one)
    chosen = np.arange(len(records)) % 3 > 0
    fit = table.fit(chosen)
    expected = fit_reference_energies([r for r, taken in zip(records, chosen) if taken])
    assert fit == expected


def test_it_can_take_the_place_of_the_fit_of_the_first_training():
    """Released models were trained with a fit that gave these numbers; it had a ridge that did not scale with the data."""
    first = {"H": -13.60570012, "C": -1029.41310011, "N": -1484.8710001, "O": -2041.83960011, "Cu": -45000.24999953}
    random = np.random.default_rng(3)
    several = [random_numbers(random) for _ in range(4000)]
    found = fit_reference_energies(record(z, total(z)) for z in several).energies
    assert list(found) == list(first)
    for symbol, energy in first.items():
        assert found[symbol] == pytest.approx(energy, abs=1e-5)


def test_files_of_reference_energies(tmp_path):
    path = tmp_path / "atoms.json"
    for content in ({"H": -13.6, "O": -2041}, {"energies": {"H": -13.6, "O": -2041}, "kind": "fitted"}):
        path.write_text(json.dumps(content))
        assert read_reference_energies(path) == {"H": -13.6, "O": -2041.0}
    for content in ("[]", "{}", '{"Xx": 1}', '{"H": "x"}', '{"H": NaN}', "{", '{"H": true}'):
        path.write_text(content)
        with pytest.raises(InputFileError, match=r"atoms\.json"):
            read_reference_energies(path)
