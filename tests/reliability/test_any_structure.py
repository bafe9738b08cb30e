"""R5: any structure gives a finite prediction or a GFMError that names file, frame and atom."""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from support import random_model

from gfm_calc.calculator import GFMCalculator
from gfm_calc.errors import GFMError
from gfm_calc.predictor import Predictor

VALUES = [
    0, 1, -1, 2, 3, 4, 200, -200, 0.5, 1e308, -1e308, np.nan, np.inf, -np.inf, None, True, "1", "", b"1", [], [1], {}, 1j,
    10**30, 10**5000, np.array(1), np.array([1, 2]), np.zeros((3, 3)), np.float32(2), np.int8(-1), np.bool_(True), object(),
    "line\nbreak", np.array(["a"]), np.array([]), np.datetime64("2020-01-01"), torch.tensor(1), float,
]  # fmt: skip
LENGTHS = [
    0.0,
    1e-300,
    1e-12,
    1e-3,
    0.5,
    0.59,
    0.61,
    1.0,
    3.0,
    6.0,
    30.0,
    999.0,
    1e4,
    1e5,
    1e6,
    1e9,
    1e200,
    np.nan,
    np.inf,
]


def strange_structure(random: np.random.Generator) -> object:
    """Something that a user, a broken file or an attacker may hand over; often sound, often not."""
    if random.random() < 0.01:
        return random.choice(np.array([None, 3, "H2O", {}, molecule], dtype=object))
    count = int(random.choice([0, 1, 2, 2, 3, 5, 9, 20, 40]))
    heaviest = int(random.choice([10, 94, 118, 118, 119]))
    numbers = random.integers(0 if random.random() < 0.05 else 1, heaviest + 1, size=count)
    positions = random.normal(size=(count, 3)) * random.choice([1e-3, 2, 2, 3, 4, 50, 1e4, 1e6, 1e9])
    atoms = Atoms(numbers, positions=positions)
    if random.random() < 0.15:
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) if random.random() < 0.5 else molecule("CH3CH2OH")
    if random.random() < 0.6:
        atoms.set_cell(strange_cell(random))
        atoms.pbc = random.random(3) < random.choice([0.0, 0.5, 1.0])
    for spoil in random.choice(SPOILERS, size=random.choice([0, 0, 1, 2]), replace=False):
        if len(atoms):
            spoil(random, atoms)
    return atoms


def strange_cell(random: np.random.Generator) -> np.ndarray:
    cell = np.eye(3) + random.normal(size=(3, 3)) * random.choice([0, 0, 0.1, 0.5, 2])
    cell *= random.choice(LENGTHS[6:14], size=(3, 1)) if random.random() < 0.8 else random.choice(LENGTHS, size=(3, 1))
    kind = random.random()
    if kind < 0.1:
        cell[2] = cell[0] + cell[1] * random.choice([0, 1, 1 + 1e-9])  # singular, or nearly
    elif kind < 0.2:
        cell[1] += cell[0] * random.choice([10, -1000, 1e5])  # skewed
    elif kind < 0.3:
        cell[0] *= -1  # left-handed
    elif kind < 0.4:
        cell[random.integers(3)] = 0
    return cell


def spoil_position(random, atoms):
    index = random.integers(len(atoms)), random.integers(3)
    atoms.positions[index] = random.choice([np.nan, np.inf, -np.inf, 1e308, 1e8, -1e7, 1e6, 0.0])


def overlap(random, atoms):
    atoms.positions[random.integers(len(atoms))] = atoms.positions[0] + random.choice([0, 1e-9, 0.05, 0.11])


def overlap_through_the_boundary(random, atoms):
    atoms.positions[-1] = atoms.positions[0] + random.integers(-3, 4, size=3) @ atoms.cell.array


def spoil_number(random, atoms):
    atoms.numbers[random.integers(len(atoms))] = random.choice([0, -1, 119, 10**6, -(2**31)])


def spoil_info(random, atoms):
    for key in random.choice(["charge", "spin", "energy", "pbc", "cell"], size=2, replace=False):
        atoms.info[str(key)] = VALUES[random.integers(len(VALUES))]


def plausible_info(random, atoms):
    atoms.info.update(charge=int(random.integers(-4, 5)), spin=int(random.integers(0, 8)))


def shrink(random, atoms):
    atoms.positions *= random.choice([0.0, 1e-6, 0.1, 0.3])


def far_away(random, atoms):
    atoms.translate(random.normal(size=3) * random.choice([1e3, 1e6, 9e6]))


SPOILERS = np.array(
    [
        spoil_position, overlap, overlap_through_the_boundary, spoil_number, spoil_info, plausible_info, shrink, far_away,
    ],
    dtype=object,
)  # fmt: skip


def try_structures(seeds: range, dtype: torch.dtype, tally) -> None:
    model = random_model(dtype=dtype)
    predictor = Predictor(model, ["first", "second"], strict=False, max_atoms=64)
    calc = GFMCalculator(model, head="first", strict=False)
    # numpy warns of the overflows that the structures hold; what counts is what comes out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        stream = [strange_structure(np.random.default_rng(seed)) for seed in seeds]
        try:
            outcomes = list(predictor.predict(stream, source="strange.xyz", on_error="yield"))
        except Exception as error:
            tally.check(False, f"seeds {seeds}: the stream stopped with {error!r}")
            return
        for seed, atoms, outcome in zip(seeds, stream, outcomes):
            tally.check(*judge(seed, seed - seeds.start, atoms, outcome))
            if isinstance(atoms, Atoms) and len(atoms) and seed % 4 == 0:
                tally.check(*same_by_calculator(seed, calc, atoms, outcome))


def judge(seed, frame, atoms, outcome) -> tuple[bool, str]:
    if isinstance(outcome, GFMError):
        text = str(outcome)
        named = text.startswith(f"strange.xyz, frame {frame}")
        return named and "\n" not in text and len(text) < 400, f"seed {seed}: {outcome!r} says {text!r}"
    for prediction in outcome.values():
        finite = torch.isfinite(prediction.energy).all() and torch.isfinite(prediction.forces).all()
        finite = finite and torch.isfinite(prediction.virial).all()
        finite = finite and (torch.isfinite(prediction.stress).all() or not atoms.pbc.all())
        if not finite or prediction.forces.shape != (len(atoms), 3):
            return False, f"seed {seed}: {prediction}"
    return True, ""


def same_by_calculator(seed, calc, atoms, outcome) -> tuple[bool, str]:
    """The calculator refuses what the stream refuses, and nothing else leaks from it."""
    try:
        energy = calc.get_property("energy", atoms)
    except GFMError as error:
        return isinstance(outcome, GFMError), f"seed {seed}: only the calculator refuses: {error}"
    except Exception as error:
        return False, f"seed {seed}: {error!r} from the calculator"
    agree = not isinstance(outcome, GFMError) and np.isfinite(energy)
    return agree, f"seed {seed}: the calculator says {energy}, the stream {outcome}"


@pytest.mark.promise("R5")
@pytest.mark.parametrize(("dtype", "seeds"), [(torch.float32, range(600)), (torch.float64, range(600, 1000))])
def test_strange_structures(dtype, seeds, tally):
    try_structures(seeds, dtype, tally)
    assert tally.cases > len(seeds)


@pytest.mark.slow
@pytest.mark.promise("R5")
def test_many_strange_structures(tally):
    for start in range(10_000, 110_000, 1000):
        try_structures(range(start, start + 1000), torch.float32 if start % 2000 else torch.float64, tally)


def test_the_fuzz_finds_both_sides():
    """A generator whose structures are all refused, or all sound, would test little."""
    predictor = Predictor(random_model(), ["first"], strict=False)
    stream = [strange_structure(np.random.default_rng(seed)) for seed in range(200)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        outcomes = list(predictor.predict(stream, on_error="yield"))
    refused = [str(outcome) for outcome in outcomes if isinstance(outcome, GFMError)]
    assert 40 < len(refused) < 160
    kinds = (
        "NaN",
        "no atoms",
        "two atoms at one",
        "no element",
        "singular",
        "shorter than any bond",
        "whole number",
        "unit",
    )
    missing = [kind for kind in kinds if not any(kind in text for text in refused)]
    assert not missing
