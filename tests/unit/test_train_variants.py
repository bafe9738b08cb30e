"""Variants of molecules: what is changed, its charge and spin, and that files come out the same."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from gfm_calc.graph import charge_and_spin
from gfm_calc.train import variants
from gfm_calc.train.variants import KINDS, bonds, make, variant

ETHANOL = molecule("CH3CH2OH")
EXPECTED = {  # on ethanol: change of formula, charge, spin
    "sulphur": ({"O": -1, "S": 1}, 0, 1), "phosphorus": None, "radical": ({"H": -1}, 0, 2),
    "anion": ({"H": -1}, -1, 1), "carbanion": ({"H": -1}, -1, 1), "protonated": ({"H": 1}, 1, 1),
    "carbocation": ({"H": -1}, 1, 1), "ionised": ({}, 1, 2), "triplet": ({}, 0, 3),
}  # fmt: skip


def formula(atoms) -> dict[str, int]:
    return atoms.symbols.formula.count()


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_every_kind_changes_what_it_says(kind):
    found = KINDS[kind][1](ETHANOL.copy(), np.random.default_rng(0))
    if EXPECTED[kind] is None:
        assert found is None
        return
    change, charge, spin = EXPECTED[kind]
    counts = {k: formula(found).get(k, 0) - formula(ETHANOL).get(k, 0) for k in {*formula(found), *formula(ETHANOL)}}
    assert {k: n for k, n in counts.items() if n} == change
    assert charge_and_spin(found) == (charge, spin)
    distances = found.get_all_distances()[~np.eye(len(found), dtype=bool)]
    assert distances.min() > 0.9


def test_a_halogen_sits_at_its_bond_length():
    for seed in range(10):
        found = KINDS["halogen"][1](ETHANOL.copy(), np.random.default_rng(seed))
        (site,) = np.flatnonzero(np.isin(found.numbers, (9, 17, 35)))
        (near,) = np.flatnonzero(bonds(found)[site])
        assert found.numbers[near] == 6 and {9: 1.2, 17: 1.6, 35: 1.7}[int(found.numbers[site])] < found.get_distance(
            site, near
        )


def test_the_acidic_proton_is_that_of_the_oxygen():
    found = KINDS["anion"][1](ETHANOL.copy(), np.random.default_rng(0))
    oxygen = int(np.flatnonzero(found.numbers == 8)[0])
    assert bonds(found)[oxygen].sum() == 1  # carbon alone


def test_all_kinds_are_drawn_and_shares_are_whole():
    assert sum(share for share, _ in KINDS.values()) == pytest.approx(1.0)
    random = np.random.default_rng(1)
    amide = molecule("CH3CONH2")
    assert {found[0] for _ in range(400) if (found := variant(amide, random))} == set(KINDS)
    assert amide == molecule("CH3CONH2")


def test_the_same_file_twice_with_labels_of_the_method(tmp_path):
    pytest.importorskip("tblite", reason="tblite is not installed: pip install 'gfm-calc[xtb]'")
    molecules = [ETHANOL, molecule("CH3CONH2"), molecule("C2H6")]
    for k, atoms in enumerate(molecules):
        atoms.info["group"] = f"parent-{k}"
    ase.io.write(tmp_path / "in.extxyz", molecules, format="extxyz")
    found = make(tmp_path / "in.extxyz", tmp_path / "a.extxyz", count=3, processes=0, seed=3)
    make(tmp_path / "in.extxyz", tmp_path / "b.extxyz", count=3, processes=1, seed=3)
    assert (tmp_path / "a.extxyz").read_bytes() == (tmp_path / "b.extxyz").read_bytes()
    frames = ase.io.read(tmp_path / "a.extxyz", ":")
    assert found["failed"] == 0 and found["frames"] == len(frames) > 3
    assert {frame.info["group"] for frame in frames} <= {"parent-0", "parent-1", "parent-2"}
    one = frames[-1]
    assert np.abs(one.get_forces().sum(axis=0)).max() < 1e-5
    again = variants.make_calculator("tblite:GFN2-xTB")(one).get_property("energy", one)
    assert one.get_potential_energy() == pytest.approx(again, abs=1e-5)
    with pytest.raises(variants.GFMError, match="no-such"):
        make(tmp_path / "no-such.extxyz", tmp_path / "c.extxyz", count=3, processes=0)
