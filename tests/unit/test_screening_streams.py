"""Candidate i is a pure function of i, whatever it comes from; what cannot be a candidate is an error in its place."""

import lzma
import pickle

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from labelled import need_adios
from training import make_datasets

from gfm_calc.errors import ConfigError, GFMError, InputFileError, InvalidStructureError
from gfm_calc.screening.files import Files, SingleFiles
from gfm_calc.screening.generators import Perturbations, RandomAtoms
from gfm_calc.screening.plan import open_streams
from gfm_calc.screening.prototypes import GROUPS, PROTOTYPES, STATES, prototype
from gfm_calc.screening.streams import Joined
from gfm_calc.screening.substitution import Substitutions

RANGES = ((290, 300), (300, 303), (0, 5), (255, 258), (599, 600), (0, 600))


def frames(count=600):
    found = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True) if k % 2 else molecule("CH3OH")
        atoms.rattle(0.05, seed=k)
        found.append(atoms)
    return found


def same(first, second) -> bool:
    if isinstance(first, GFMError) or isinstance(second, GFMError):
        return str(first) == str(second)
    equal = np.array_equal(first.numbers, second.numbers) and np.array_equal(first.pbc, second.pbc)
    return equal and np.allclose(first.positions, second.positions, atol=1e-7) and np.allclose(first.cell, second.cell)


def is_pure(stream, ranges=None) -> None:
    """Any range, in any order, also after a journey to another process, gives what reading all gives."""
    everything = list(stream.made(0, len(stream)))
    assert len(everything) == len(stream)
    last = len(stream)
    for start, stop in ranges or ((last // 2, last), (0, 1), (last // 3, last // 2), (last - 1, last)):
        for copy in (stream, pickle.loads(pickle.dumps(stream))):
            found = list(copy.made(start, stop))
            assert [source for source, _ in found] == [source for source, _ in everything[start:stop]]
            assert all(same(a, b) for (_, a), (_, b) in zip(found, everything[start:stop], strict=True))


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db", "a.extxyz.xz", "a.parquet"])
def test_frames_of_files_by_number(tmp_path, name):
    path = tmp_path / name
    given = frames()
    if name.endswith(".xz"):
        ase.io.write(tmp_path / "plain.extxyz", given)
        path.write_bytes(lzma.compress((tmp_path / "plain.extxyz").read_bytes(), preset=0))
    elif name.endswith(".parquet"):
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
        import pyarrow.parquet

        columns = {
            "numbers": [atoms.numbers.tolist() for atoms in given], "length_unit": ["A"] * len(given),
            "positions": [atoms.positions.tolist() for atoms in given],
            "cell": [atoms.cell.array.tolist() for atoms in given], "pbc": [atoms.pbc.tolist() for atoms in given],
        }  # fmt: skip
        pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=70)
    else:
        ase.io.write(path, given)
    stream = Files(path, length_unit="A" if name.endswith("parquet") else None)
    assert len(stream) == 600
    for (_, found), atoms in zip(stream.made(0, 600), given, strict=True):
        assert same(found, atoms)
    is_pure(stream, RANGES)


def test_a_bad_frame_is_an_error_in_its_place(tmp_path):
    path = tmp_path / "a.extxyz"
    ase.io.write(path, frames(400))
    lines = path.read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if k > 2500 and line.startswith("Cu"))
    lines[first] = "Cu 0.0 zero 0.0"
    path.write_text("\n".join([*lines, "6", "Properties=species:S:1:pos:R:3", "H 0 0 0", ""]))
    stream = Files(path)
    assert len(stream) == 401
    errors = {k: found for k, (_, found) in enumerate(stream.made(0, 401)) if isinstance(found, GFMError)}
    assert len(errors) == 2 and "truncated" in str(errors[400])
    assert "not a number" in str(errors[min(errors)]) and f"frame {min(errors)}" in str(errors[min(errors)])
    is_pure(stream, ((min(errors), min(errors) + 3), (390, 401)))


def test_labels_are_no_matter_and_units_are(tmp_path):
    """Labels that contradict each other are not looked at; lengths without a unit are refused."""
    np.savez(tmp_path / "a.npz", z=np.array([8, 1, 1]), R=np.zeros((4, 3, 3)) + np.eye(3), E=np.full(4, np.nan))
    stream = Files(tmp_path / "a.npz")
    (_, found) = next(stream.made(0, 1))
    assert isinstance(found, InputFileError) and "--length-unit" in str(found)
    (_, found) = next(Files(tmp_path / "a.npz", length_unit="bohr").made(0, 1))
    assert found.positions.max() == pytest.approx(0.529177, abs=1e-5)


def test_folders_of_cifs(tmp_path):
    for number, atoms in enumerate((bulk("NaCl", "rocksalt", a=5.6), bulk("Cu"))):
        ase.io.write(tmp_path / f"{number}.cif", atoms)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "2.cif").write_text("data_x\n_cell_length_a 1\n")
    ase.io.write(tmp_path / "3.cif", [bulk("Cu"), bulk("Al")])
    (tmp_path / "notes.txt").write_text("not a structure")
    stream = SingleFiles(tmp_path)
    found = dict(stream.made(0, len(stream)))
    assert list(found) == ["0.cif", "1.cif", "3.cif", "deep/2.cif"]
    assert found["0.cif"].get_chemical_formula() == "ClNa"
    assert "holds 2 structures" in str(found["3.cif"]) and isinstance(found["deep/2.cif"], GFMError)
    is_pure(stream)
    with pytest.raises(InputFileError, match="without files of one structure each"):
        SingleFiles(tmp_path / "deep" / "..").__class__(tmp_path / "nothing") if (
            tmp_path / "nothing"
        ).mkdir() is None else None


def test_datasets(tmp_path):
    need_adios()
    folder = make_datasets(tmp_path / "data", (8, 4, 4))
    stream = open_streams([folder / "crystals", folder / "molecules"])
    assert len(stream) == 12 and stream.identity()["parts"][0]["kind"] == "dataset"
    is_pure(stream)


def test_substitution_balances_charges():
    lists = {"Sr": ["Na", "Ca", "La"], "Ti": ["Ti", "Nb"], "O": ["O", "F"]}
    stream = Substitutions("perovskite", prototype("perovskite"), lists)
    found = [atoms.get_chemical_formula("metal") for _, atoms in stream.made(0, len(stream))]
    # By hand: Na Nb O3 (1 5), Ca Ti O3 (2 4), Ca Nb O3 (2 4), La Ti O3 (3 3), Na Ti F3 (1 2); La Nb O3 would need Nb 3.
    assert sorted(found) == sorted(["NaNbO3", "CaTiO3", "CaNbO3", "LaTiO3", "NaTiF3"])
    is_pure(stream)
    everything = Substitutions("perovskite", prototype("perovskite"), lists, balance=False)
    assert len(everything) == 12


def test_substitution_guesses_volumes():
    """Within 12 % for compounds whose lattice constants are known (Å, CRC Handbook)."""
    known = {"MgO": 4.213, "LiF": 4.027, "KCl": 6.293, "CaS": 5.695, "NaBr": 5.973}
    for formula, a in known.items():
        first, second = Atoms(formula).get_chemical_symbols()
        stream = Substitutions("rocksalt", prototype("rocksalt"), {"Na": [first], "Cl": [second]})
        ((_, atoms),) = stream.made(0, 1)
        assert atoms.get_volume() == pytest.approx(a**3 / 4, rel=0.12), formula
    for formula, a in {"CaTiO3": 3.84, "KZnF3": 4.055, "CsCaCl3": 5.396, "BaZrO3": 4.193}.items():
        first, second, third = dict.fromkeys(Atoms(formula).get_chemical_symbols())
        lists = {"Sr": [first], "Ti": [second], "O": [third]}
        ((_, atoms),) = Substitutions("perovskite", prototype("perovskite"), lists).made(0, 1)
        assert atoms.get_volume() == pytest.approx(a**3, rel=0.12), formula
    kept = Substitutions("rocksalt", prototype("rocksalt"), {"Na": ["K"]}, volume="prototype")
    assert next(kept.made(0, 1))[1].get_volume() == pytest.approx(5.64**3 / 4)


@pytest.mark.parametrize("name", PROTOTYPES)
def test_prototypes_are_sound_and_balanced(name):
    atoms = prototype(name)
    lengths = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
    assert lengths.min() > 1.5
    if "heusler" not in name:
        symbols = dict.fromkeys(atoms.get_chemical_symbols())
        assert len(Substitutions(name, atoms, {symbol: [symbol] for symbol in symbols})) == 1


def test_oxidation_states_are_of_elements():
    assert all(symbol in STATES for group in GROUPS.values() for symbol in group)
    assert all(-4 <= state <= 7 and state for states in STATES.values() for state in states)


def test_perturbations_and_random_atoms(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", frames(6))
    seeds = Files(tmp_path / "a.extxyz")
    stream = Perturbations(seeds, copies=3, rattle=0.1, strain=0.05, seed=4)
    assert len(stream) == 18 and stream.identity() != Perturbations(seeds, copies=3, rattle=0.1, seed=4).identity()
    is_pure(stream)
    made = [atoms for _, atoms in stream.made(0, 18)]
    assert not np.array_equal(made[0].positions, made[1].positions)
    box = RandomAtoms(count=30, max_atoms=200, distance=1.0, box=10.0, periodic=True, seed=1)
    is_pure(box)
    for _, atoms in box.made(0, 30):
        assert 2 <= len(atoms) <= 200
        distances = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
        assert distances.min() >= 1.0
    joined = Joined([stream, box, seeds])
    is_pure(joined, ((10, 25), (17, 54), (0, 54)))


_MADE = "[[candidates]]\nkind = 'substitution'\nprototypes = ['perovskite']"
WRONG = {
    "": "says nothing to make",
    "[candidates]\nkind = 'random'": "says nothing to make",
    "[[candidate]]\nkind = 'random'": "unknown key 'candidate' (did you mean 'candidates'?)",
    "[[candidates]]\nkind = 'randon'": "(did you mean 'random'?)",
    "[[candidates]]\nkind = 'random'": "how many? give a count",
    "[[candidates]]\nkind = 'random'\ncount = 0": "count >= 1",
    "[[candidates]]\nkind = 'random'\ncount = 'many'": "candidates 0",
    "[[candidates]]\nkind = 'random'\ncount = 5\nelements = ['Xx']": "'Xx' is no element and no group",
    "[[candidates]]\nkind = 'random'\ncount = 5\nmax_atoms = 5000": "do not fit into a box",
    "[[candidates]]\nkind = 'random'\ncount = 5\nbox = -1": "do not fit into a box",
    "[[candidates]]\nkind = 'files'\ninputs = ['nothing.xyz']": "no such file",
    "[[candidates]]\nkind = 'files'\ninputs = []": "give inputs = [names, ...]",
    "[[candidates]]\nkind = 'perturbation'\ninputs = ['a.xyz']": "a rattle (Å) or a strain",
    "[[candidates]]\nkind = 'substitution'\nprototypes = ['perowskite']\nreplace = { Sr = ['Ca'] }": "did you mean 'perovskite'",
    _MADE: "give replace",
    f"{_MADE}\nreplace = {{ Ca = ['Sr'] }}": "has no Ca; it has Sr, Ti, O",
    f"{_MADE}\nreplace = {{ Sr = ['Na'], Ti = ['Mg'] }}": "no combination is left",
    f"{_MADE}\nreplace = {{ Sr = ['Ca'] }}\nvolume = 'big'": "ionic, covalent or prototype",
    "not toml": "not valid TOML",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_made_is_said_in_a_line(tmp_path, text):
    ase.io.write(tmp_path / "a.xyz", molecule("H2O"))
    (tmp_path / "what.toml").write_text(text)
    with pytest.raises((ConfigError, InputFileError)) as caught:
        open_streams([tmp_path / "what.toml"])
    assert WRONG[text] in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_atoms_at_one_place_are_told_by_the_seed(tmp_path):
    ase.io.write(tmp_path / "a.xyz", Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.01]]))
    (_, found) = next(Perturbations(Files(tmp_path / "a.xyz"), rattle=1e-6).made(0, 1))
    assert isinstance(found, Atoms | InvalidStructureError)


def test_groups_of_the_user(tmp_path):
    """Names for lists of elements, of groups and of symbols; what is none is told."""
    text = '[groups]\nmine = ["alkali", "Ag"]\n[[candidates]]\nkind = "substitution"\nprototypes = ["rocksalt"]\n'
    (tmp_path / "a.toml").write_text(text + 'replace = { Na = ["mine", "Tl"], Cl = "halogens" }\n')
    (tmp_path / "b.toml").write_text(
        '[[candidates]]\nkind = "substitution"\nprototypes = ["rocksalt"]\n'
        'replace = { Na = ["alkali", "Ag", "Tl"], Cl = ["halogens"] }\n'
    )
    first, second = (open_streams([tmp_path / name]) for name in ("a.toml", "b.toml"))
    assert len(first) == len(second) > 20 and first.identity() == second.identity()
    (tmp_path / "c.toml").write_text(text.replace("Ag", "Agg") + "replace = { Na = ['mine'] }\n")
    with pytest.raises(ConfigError, match="groups.mine: 'Agg' is no element"):
        open_streams([tmp_path / "c.toml"])
    (tmp_path / "d.toml").write_text("groups = 3\n" + '[[candidates]]\nkind = "random"\ncount = 3\n')
    with pytest.raises(ConfigError, match=r"write groups as \[groups\]"):
        open_streams([tmp_path / "d.toml"])


def test_charges_balance_as_by_trying_all_states():
    """Against every combination of states of every combination of elements."""
    from itertools import product

    from ase.data import atomic_numbers

    lists = {"Sr": ["Na", "Ca", "La", "Eu", "W"], "Ti": ["Ti", "Mn", "Nb", "Xe"], "O": ["O", "F", "P", "Te"]}
    stream = Substitutions("perovskite", prototype("perovskite"), lists)
    found = {tuple(sorted(atoms.numbers.tolist())) for _, atoms in stream.made(0, len(stream))}
    wanted = set()
    for a, b, x in product(*lists.values()):
        states = product(STATES.get(a, ()), STATES.get(b, ()), STATES.get(x, ()))
        if len({a, b, x}) == 3 and any(p + q + 3 * r == 0 for p, q, r in states):
            wanted.add(tuple(sorted(atomic_numbers[s] for s in (a, b, x, x, x))))
    assert found == wanted and len(wanted) > 5
