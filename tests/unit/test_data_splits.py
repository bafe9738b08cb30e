"""R14: no structure on two sides of a split; splits are reproducible and do not depend on what else there is."""

import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from data_files import FIXTURES

from gfm_calc.data import fingerprints
from gfm_calc.data.fingerprints import NEAR, SAME, clusters, describe, describe_all
from gfm_calc.data.frame_table import FrameTable
from gfm_calc.data.grouping import by_composition, by_molecule, by_prototype, keyer
from gfm_calc.data.readers import read
from gfm_calc.data.schema import Record
from gfm_calc.data.split_files import load_split, read_names, save_split
from gfm_calc.data.splits import SIDES, LeakError, Split, draw, fixed, fraction, join
from gfm_calc.errors import ConfigError, CorruptFileError, InputFileError, UnsupportedVersionError


def record(atoms: Atoms, *, group: str = "", source: str = "a.xyz", frame: int = 0, energy: float = math.nan) -> Record:
    return Record(
        atomic_numbers=np.asarray(atoms.numbers, np.int64), positions=atoms.positions.copy(), cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(), energy=energy, group=group, source=source, frame=frame,
    )  # fmt: skip


def table_of(*records: Record) -> FrameTable:
    table = FrameTable()
    for one in records:
        table.add(one, one.group)
    return table


def turned(atoms: Atoms, seed: int) -> Atoms:
    """The same structure, turned, shifted and renumbered."""
    random = np.random.default_rng(seed)
    copy = atoms.copy()
    copy.rotate(float(random.uniform(10, 170)), random.normal(size=3), rotate_cell=True)
    copy.translate(random.normal(size=3))
    if copy.pbc.any():
        copy.wrap()
    return copy[random.permutation(len(copy))]


def rattled(atoms: Atoms, size: float, seed: int = 0) -> Atoms:
    copy = atoms.copy()
    copy.rattle(size, seed=seed)
    return copy


STRUCTURES = {
    "molecule": rattled(molecule("CH3CH2OH"), 0.05), "crystal": rattled(bulk("NaCl", "rocksalt", a=5.6) * (2, 2, 1), 0.05),
    "ideal crystal": bulk("Si"), "pair": molecule("N2"), "atom": Atoms("Fe"), "metal": rattled(bulk("Cu") * 2, 0.1),
    "far pair": Atoms("ArKr", positions=[[0, 0, 0], [0, 0, 7.5]]),
}  # fmt: skip


# ---- fingerprints ----


@pytest.mark.promise("R14")
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_same_structure_has_the_same_fingerprint(name):
    atoms = STRUCTURES[name]
    one = describe(record(atoms))
    for seed in range(5):
        other = describe(record(turned(atoms, seed)))
        assert one.key == other.key and np.abs(one.values - other.values).max() < SAME / 100
    if atoms.pbc.all():
        larger = describe(record(atoms * (1, 2, 1)))
        assert one.key == larger.key and np.abs(one.values - larger.values).max() < SAME / 100


def test_descriptions_are_the_same_in_any_company():
    """Molecules, crystals, single atoms, surfaces and a molecule too large for all pairs: together, and one by one."""
    large = molecule("C60")
    large.extend(molecule("C60"))
    large.positions[60:] += 9.0
    pool = [molecule("H2O"), bulk("Cu"), molecule("C6H6"), Atoms("Ar"), large, bulk("NaCl", "rocksalt", a=5.6), Atoms("Ar"),
            Atoms("H2", [[0, 0, 0], [0, 0, 8]])]  # fmt: skip
    records = [record(atoms) for atoms in pool]
    for one, other in zip(map(describe, records), describe_all(records), strict=True):
        assert np.array_equal(one.values, other.values) and (one.key, one.closest_atom) == (
            other.key,
            other.closest_atom,
        )
        assert np.array_equal((one.closest, one.typical), (other.closest, other.typical), equal_nan=True)


def test_pairs_of_molecules_are_the_neighbour_list_s(monkeypatch):
    """The short way for molecules gives what the general way gives."""
    records = [record(rattled(molecule(name), 0.2, seed=k)) for k, name in enumerate(("H2O", "C6H6", "CH3CH2OH", "H2"))]
    short = describe_all(records)
    monkeypatch.setattr(fingerprints, "_SMALL", 0)
    for one, other in zip(short, describe_all(records), strict=True):
        assert np.allclose(one.values, other.values, rtol=0, atol=1e-12) and one.closest_atom == other.closest_atom
        assert np.isclose(one.typical, other.typical, rtol=1e-14) and np.isclose(one.closest, other.closest, rtol=1e-14)


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "atom"])
def test_fingerprints_follow_the_structure(name):
    atoms = STRUCTURES[name] if name != "ideal crystal" else STRUCTURES[name] * 2
    one = describe(record(atoms)).values
    moved = {
        size: np.abs(describe(record(rattled(atoms, size, seed=3))).values - one).max() for size in (1e-6, 3e-3, 0.3)
    }
    assert moved[1e-6] < SAME < moved[3e-3]
    assert NEAR < moved[0.3] or name == "far pair"  # what is far apart counts little


def test_moving_one_atom_of_a_perfect_crystal_is_seen():
    atoms = bulk("Cu", cubic=True) * 2
    moved = atoms.copy()
    moved.positions[0, 0] += 0.01
    assert np.abs(describe(record(atoms)).values - describe(record(moved)).values).max() > SAME


def test_close_pairs_are_those_of_a_double_loop():
    table = table_of(*(record(rattled(molecule("H2O"), 0.02, seed=k)) for k in range(120)))
    values = np.array(table._values).reshape(len(table), -1)
    tolerance = 5e-3
    close = (np.abs(values[:, None] - values[None]) <= tolerance).all(axis=2)
    expected = np.arange(len(table))
    for _ in range(len(table)):  # spread the lowest label
        expected = np.where(close, expected[None], len(table)).min(axis=1)
    assert np.array_equal(table.duplicates(tolerance), expected)
    assert 5 < len(np.unique(expected)) < 115, "a test of nothing"


def test_clusters():
    pairs = [(np.array([5, 1]), np.array([4, 4])), (np.array([0]), np.array([2]))]
    assert clusters(6, iter(pairs)).tolist() == [0, 1, 0, 3, 1, 1]


# ---- drawing ----

GROUPS = [f"group {k}" for k in range(2000)]


def test_a_group_is_where_its_name_puts_it():
    whole = draw({"a": GROUPS})
    for part in (GROUPS[:300], GROUPS[::-1], GROUPS[7::11]):
        again = draw({"b": part, "c": ["x", "y"]})
        assert all(again.side_of_group(name) == whole.side_of_group(name) for name in part)
    counts = [sum(whole.side_of_group(name) == side for name in GROUPS) for side in SIDES]
    assert counts[1] == pytest.approx(40, abs=20) and counts[2] == pytest.approx(100, abs=30)


def test_the_seed_draws_others():
    one, other = (draw({"a": GROUPS}, seed=seed) for seed in (0, 1))
    assert one.groups != other.groups and draw({"a": GROUPS}, seed=1).groups == other.groups
    assert fraction("a") == pytest.approx(0.79137, abs=1e-5)  # SHA-256 of "a" begins with ca978112
    assert all(0.0 <= fraction(name, 3) < 1.0 for name in GROUPS)


def test_it_is_the_split_of_the_first_training():
    """Released models were tested on the groups that their trainer held out: these, with seed 0."""
    groups = [f"g{k}" for k in range(150)] + ["h3o+", "a+b", "g1+g2", "g1+g9"]
    split = draw({str(h): [g for k, g in enumerate(groups) if k % 3 == h] for h in range(3)})
    held = {side: {g for g in groups if split.side_of_group(g) == side} for side in ("validation", "test")}
    assert held == {
        "validation": {"g123", "g40", "g79", "g8"},
        "test": {"g101", "g104", "g109", "g26", "g38", "g57", "g6", "g9", "g97", "g1+g9"},
    }
    few = draw({"few": ["x", "y", "z"], "two": ["p", "q"]})
    assert [few.side_of_group(name) for name in "xyzpq"] == ["test", "train", "validation", "train", "train"]


def test_a_pair_is_as_held_out_as_its_parts():
    split = Split(seed=0, by="group", fractions={}, groups={"a": "test", "b": "validation"})
    assert [split.side_of_group(g) for g in ("a+b", "b+c", "c+a", "c", "c+", "a+")] == [
        "test", "validation", "test", "train", "train", "test",
    ]  # fmt: skip


def test_small_datasets_have_every_side():
    split = draw({"few": ["x", "y", "z"], "two": ["p", "q"]})
    assert {split.side_of_group(g) for g in ("x", "y", "z")} == set(SIDES)
    assert draw({"few": ["x", "y", "z"]}, validation=0.0, test=0.0).groups == {}


def test_an_earlier_split_holds():
    early = draw({"a": GROUPS[:50]})
    late = draw({"a": GROUPS}, like=early, test=0.3)
    assert early.groups.items() <= late.groups.items()


def test_fractions_are_checked():
    for wrong in ({"test": 1.0}, {"test": 0.6, "validation": 0.5}, {"validation": -0.1}):
        with pytest.raises(ConfigError, match="fraction"):
            draw({"a": GROUPS}, **wrong)


# ---- keys ----


def test_keys():
    ethanol = rattled(molecule("CH3CH2OH"), 0.05)
    assert (
        by_composition(record(ethanol)) == "C2H6O"
        and by_composition(record(bulk("NaCl", "rocksalt", a=5.6) * 2)) == "ClNa"
    )
    assert keyer("frame")(record(ethanol, frame=3)) == "a.xyz:3" and keyer("file")(record(ethanol)) == "a.xyz"
    with pytest.raises(InputFileError, match=r"a\.xyz, frame 0: no group: .* --group-key, or choose --by"):
        keyer("group")(record(ethanol))
    with pytest.raises(ConfigError, match="did you mean 'composition'"):
        keyer("compositions")


def test_molecules_are_told_by_their_bonds():
    ethanol, ether = molecule("CH3CH2OH"), molecule("CH3OCH3")
    assert by_composition(record(ethanol)) == by_composition(record(ether))
    assert by_molecule(record(ethanol)) != by_molecule(record(ether))
    for seed in range(5):
        assert by_molecule(record(turned(rattled(ethanol, 0.05, seed), seed))) == by_molecule(record(ethanol))


def test_prototypes():
    pytest.importorskip("spglib", reason="spglib is not installed: pip install 'gfm-calc[phonons]'")
    salts = [
        bulk("NaCl", "rocksalt", a=5.6),
        bulk("MgO", "rocksalt", a=4.2, cubic=True),
        bulk("KBr", "rocksalt", a=6.6) * 2,
    ]
    assert {by_prototype(record(atoms)) for atoms in salts} == {"AB-225-ab"}
    assert by_prototype(record(bulk("CsCl", "cesiumchloride", a=4.1))) != "AB-225-ab"
    assert by_prototype(record(molecule("H2O"))) == "H2O"


# ---- leaks ----


def sides_of(table: FrameTable, **of_group: str) -> tuple[Split, np.ndarray]:
    split = Split(seed=0, by="group", fractions={}, groups={g: s for g, s in of_group.items() if s != "train"})
    return split, table.sides(split)


@pytest.mark.promise("R14", count=7)
@pytest.mark.parametrize("name", STRUCTURES)
def test_leaks_are_found_within_and_across_files(name):
    atoms = STRUCTURES[name]
    others = [rattled(molecule("CH3COOH"), 0.1, seed=k) for k in range(20)]
    records = [record(other, group=f"o{k}", frame=k) for k, other in enumerate(others)]
    records.append(record(atoms, group="here", frame=20))
    records.append(record(turned(atoms, 4), group="there", source="b.xyz", frame=5))
    table = table_of(*records)
    split, sides = sides_of(table, there="test")
    assert table.leaks(sides) == [(20, 21)]
    with pytest.raises(
        LeakError, match=r"1 structure is on two sides of the split .a\.xyz frame 20 = b\.xyz frame 5.: --join"
    ):
        table.refuse_leaks(sides)
    joined = join(split, table.groups_that_share())
    table.refuse_leaks(table.sides(joined))
    assert joined.side_of_group("here") == "test"


def test_joining_goes_on_from_group_to_group():
    split = Split(seed=0, by="group", fractions={}, groups={"d": "validation", "z": "test"})
    joined = join(split, [{"a", "b"}, {"c", "d"}, {"b", "c"}, {"x", "y"}])
    assert {name: joined.side_of_group(name) for name in "abcdxyz"} == {
        **dict.fromkeys("abcd", "validation"), "x": "train", "y": "train", "z": "test",
    }  # fmt: skip


@pytest.mark.promise("R14", count=200)
def test_no_drawn_split_leaks_after_joining(tally):
    """Structures repeated at random over groups and files: after --join no two sides share one."""
    random = np.random.default_rng(5)
    pool = [rattled(molecule(name), 0.05, seed=k) for k, name in enumerate(["H2O", "NH3", "CH4", "CO2", "HCN"] * 8)]
    described = [describe(record(atoms)) for atoms in pool]
    for seed in range(200):
        table = FrameTable()
        for frame in range(60):
            chosen = int(random.integers(len(pool)))
            source = f"{'ab'[frame % 2]}.xyz"
            one = record(pool[chosen], group=f"g{random.integers(25)}", source=source, frame=frame)
            table.add(one, one.group, described[chosen])
        split = join(draw(table.groups_by_file(), seed=seed, test=0.2, validation=0.1), table.groups_that_share())
        tally.check(not table.leaks(table.sides(split)), seed)


def test_near_twins_are_counted():
    atoms = molecule("C6H6")
    table = table_of(
        record(atoms, group="a"),
        record(rattled(atoms, 1e-3), group="b", frame=1),
        record(rattled(atoms, 0.2), group="c"),
    )
    _, sides = sides_of(table, b="test", c="validation")
    assert not table.leaks(sides) and table.num_close(sides) == 2


# ---- official lists and files ----


def test_official_lists_of_frames():
    split = fixed({"train": ["a.xyz:0", "a.xyz:2"], "test": ["a.xyz:1"]}, by="frame")
    given = [split.side(record(molecule("H2O"), frame=k)) for k in range(4)]
    assert given == ["train", "test", "train", "unused"]
    with pytest.raises(LeakError, match=r"a\.xyz:1 is on the lists of train and of test"):
        fixed({"train": ["a.xyz:1"], "test": ["a.xyz:1"]})
    groups = fixed({"test": ["g1"], "validation": ["g2"]}, unlisted="train")
    assert [groups.side_of_group(g) for g in ("g1", "g2", "g3")] == ["test", "validation", "train"]


def test_lists_are_read(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# official\n3\n5\nb.xyz:7\ngroup 1\n")
    assert read_names(path, ["a.xyz"]) == ["a.xyz:3", "a.xyz:5", "b.xyz:7", "group 1"]
    with pytest.raises(InputFileError, match="single input file"):
        read_names(path, ["a.xyz", "b.xyz"])
    (tmp_path / "list.json").write_text("[1, 2]")
    assert read_names(tmp_path / "list.json", ["a.xyz"]) == ["a.xyz:1", "a.xyz:2"]
    for name, content in (("bad.json", '{"a": 1}'), ("empty.txt", "\n"), ("broken.json", "[1")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputFileError):
            read_names(tmp_path / name, ["a.xyz"])


def test_a_split_survives_the_disk(tmp_path):
    table = table_of(*read(FIXTURES / "nbmotaw.extxyz.xz"))
    split = draw(table.groups_by_file(), test=0.3)
    sides = table.sides(split)
    save_split(tmp_path / "split.json", split, table.census(sides))
    again = load_split(tmp_path / "split.json")
    assert again == split
    for k, one in enumerate(read(FIXTURES / "nbmotaw.extxyz.xz")):
        assert again.side(one) == SIDES[sides[k]]


def test_ids_do_not_depend_on_the_order():
    records = list(read(FIXTURES / "nbmotaw.extxyz.xz"))
    one, other = table_of(*records), table_of(*records[::-1])
    split = draw(one.groups_by_file(), test=0.3)
    assert one.census(one.sides(split))["ids"] == other.census(other.sides(split))["ids"]


def test_damaged_splits_are_refused(tmp_path):
    path = tmp_path / "split.json"
    save_split(path, draw({"a": GROUPS[:50]}), {})
    content = path.read_text()
    for damaged in (content.replace('"seed": 0', '"seed": 1'), content[:-20], content.replace("group 1", "group 7", 1)):
        path.write_text(damaged)
        with pytest.raises(CorruptFileError):
            load_split(path)
    path.write_text(content.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        load_split(path)
    path.write_text("{}")
    with pytest.raises(InputFileError, match="no split of gfm-calc"):
        load_split(path)
