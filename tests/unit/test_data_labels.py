"""Which key, which unit, which sign: one result from files that say the same in different ways, or an error that asks."""

import numpy as np
import pytest
from ase.units import Bohr, GPa, Hartree
from data_files import FIXTURES, KCAL, methanol, stacked, write_ani1x, write_extxyz, write_npz, write_rmd17

from gfm_calc.data.readers import Labeller, ReadOptions, names, read, read_raw
from gfm_calc.data.readers.conventions import Convention
from gfm_calc.data.units import energy_unit, force_factor, forces_unit, length_unit, stress_factor, stress_unit
from gfm_calc.errors import ConfigError, InputFileError, InvalidStructureError


def write(path, comment, *, columns="species:S:1:pos:R:3:forces:R:3", atoms=("H 0 0 0 0.1 0 0", "H 0 0 0.8 -0.1 0 0")):
    path.write_text(f"{len(atoms)}\nProperties={columns} {comment}\n" + "".join(f"{line}\n" for line in atoms))
    return path


# ---- the promise of the issue ----


def test_kcal_npz_hartree_hdf5_and_ev_extxyz_are_one_dataset(tmp_path):
    """The same molecules as published npz (kcal/mol), HDF5 (Ha) and extxyz (eV) give the same records."""
    records = methanol()
    write_rmd17(tmp_path / "a.npz", records)
    write_ani1x(tmp_path / "a.h5", records)
    write_extxyz(tmp_path / "a.extxyz", records)
    options = {"a.h5": ReadOptions(energy_key="wb97x_dz.energy")}
    found = {
        name: list(read(tmp_path / name, options=options.get(name, ReadOptions())))
        for name in ("a.npz", "a.h5", "a.extxyz")
    }
    for k, record in enumerate(records):
        for name, several in found.items():
            assert several[k].energy == pytest.approx(record.energy, abs=1e-9), name
            np.testing.assert_allclose(several[k].forces, record.forces, rtol=0, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(several[k].positions, record.positions, rtol=0, atol=1e-12)


def test_files_that_do_not_say_their_unit_are_asked(tmp_path):
    write_npz(tmp_path / "a.npz", methanol())
    path = tmp_path / "a.npz"
    with pytest.raises(InputFileError, match="what unit the energies have: give --energy-unit"):
        list(read(path))
    with pytest.raises(InputFileError, match="what unit the positions have: give --length-unit"):
        list(read(path, options=ReadOptions(energy_unit="kcal/mol")))
    found = next(read(path, options=ReadOptions(energy_unit="kcal/mol", length_unit="A")))
    assert found.energy == pytest.approx(methanol()[0].energy, abs=1e-9)


def test_hartree_beside_angstrom_leaves_two_units_for_forces(tmp_path):
    numbers, positions, energies, forces = stacked(methanol())
    np.savez(tmp_path / "a.npz", z=numbers, R=positions, energy=energies / Hartree, forces=forces / Hartree * Bohr)
    options = {"energy_unit": "Ha", "length_unit": "A"}
    with pytest.raises(InputFileError, match="--forces-unit Ha/bohr or Ha/A"):
        list(read(tmp_path / "a.npz", options=ReadOptions(**options)))
    found = next(read(tmp_path / "a.npz", options=ReadOptions(**options, forces_unit="hartree/bohr")))
    np.testing.assert_allclose(found.forces, forces[0], rtol=0, atol=1e-12)


def test_a_stated_unit_is_not_overruled(tmp_path):
    path = write(tmp_path / "a.xyz", "energy=-1.0 energy_unit=hartree forces_unit=hartree/bohr")
    (record,) = read(path)
    assert record.energy == pytest.approx(-Hartree) and record.forces[0, 0] == pytest.approx(0.1 * Hartree / Bohr)
    with pytest.raises(InputFileError, match="says that its energies are in Ha, --energy-unit says eV"):
        list(read(path, options=ReadOptions(energy_unit="eV")))


# ---- keys ----


def test_two_energies_that_differ_are_asked_about(tmp_path):
    path = write(tmp_path / "a.xyz", "energy=-1.0 REF_energy=-2.0")
    with pytest.raises(InputFileError, match=r"energy -1, REF_energy -2.*--energy-key energy or REF_energy"):
        list(read(path))
    (record,) = read(path, options=ReadOptions(energy_key="REF_energy"))
    assert record.energy == -2.0


def test_two_energies_that_agree_are_one(tmp_path):
    (record,) = read(write(tmp_path / "a.xyz", "energy=-1.5 free_energy=-1.5"))
    assert record.energy == -1.5


def test_forces_of_the_level_of_the_energy_are_taken(tmp_path):
    columns = "species:S:1:pos:R:3:forces:R:3:REF_forces:R:3"
    path = write(tmp_path / "a.xyz", "REF_energy=-2.0", columns=columns, atoms=["H 0 0 0 9 9 9 0.1 0.2 0.3"])
    assert next(read(path)).forces.tolist() == [[0.1, 0.2, 0.3]]
    path = write(tmp_path / "b.xyz", "energy=-2.0", columns=columns, atoms=["H 0 0 0 9 9 9 0.1 0.2 0.3"])
    assert next(read(path)).forces.tolist() == [[9, 9, 9]]


def test_other_energies_are_not_taken_silently(tmp_path):
    path = write(tmp_path / "a.xyz", "formation_energy=-0.3 band_gap=1.2")
    with pytest.raises(InputFileError, match="no total energy, but formation_energy: --energy-key formation_energy"):
        list(read(path))
    assert next(read(path, options=ReadOptions(energy_key="formation_energy"))).energy == -0.3
    assert np.isnan(next(read(path, options=ReadOptions(energy_key="none"))).energy)


def test_gradients_are_turned_and_said_so(tmp_path):
    columns = "species:S:1:pos:R:3:gradient:R:3"
    path = write(tmp_path / "a.xyz", "energy=1", columns=columns, atoms=["H 0 0 0 0.5 0 0"])
    assert next(read(path)).forces[0, 0] == -0.5
    labeller = Labeller()
    labeller.record(next(read_raw(path)))
    (convention,) = labeller.conventions
    assert convention.gradients and convention.forces_keys == ("gradient",)
    path = write(tmp_path / "b.xyz", "energy=1")
    assert next(read(path, options=ReadOptions(forces_are_gradients=True))).forces[0, 0] == -0.1


@pytest.mark.parametrize("key", ["energy_key", "forces_key", "stress_key", "charge_key", "spin_key", "group_key"])
def test_keys_that_are_not_there(tmp_path, key):
    path = write(tmp_path / "a.xyz", "energy=1")
    with pytest.raises(InputFileError, match=f"no 'mine' .--{key.replace('_', '-')}"):
        list(read(path, options=ReadOptions(**{key: "mine"})))


def test_energy_per_atom(tmp_path):
    path = write(tmp_path / "a.xyz", "energy_per_atom=-3.0")
    assert next(read(path, options=ReadOptions(energy_key="energy_per_atom", energy_per_atom=True))).energy == -6.0


def test_charge_and_spin(tmp_path):
    path = write(tmp_path / "a.xyz", "energy=1 total_charge=1 multiplicity=2")
    record = next(read(path))
    assert (record.charge, record.spin) == (1, 2) and isinstance(record.charge, int)
    path = write(tmp_path / "b.xyz", "energy=1 spin=0.5 charge=-1.0")
    record = next(read(path, options=ReadOptions(spin_convention="S")))
    assert (record.charge, record.spin) == (-1, 2)
    path = write(tmp_path / "c.xyz", "energy=1 spin=2")
    assert next(read(path, options=ReadOptions(spin_convention="unpaired"))).spin == 3
    path = write(tmp_path / "d.xyz", "energy=1 charge=0 total_charge=1")
    with pytest.raises(
        InputFileError, match="charge, total_charge may all be the charge and differ: choose with --charge-key"
    ):
        list(read(path))
    path = write(tmp_path / "e.xyz", "energy=1 spin=0")
    with pytest.raises(InvalidStructureError, match="give 2S.1, not S"):
        list(read(path))


def test_each_frame_is_looked_at(tmp_path):
    """What the first one says of a key does not hold for the next: neither that it is no number, nor that two agree."""
    parts = [write(tmp_path / f"{k}.xyz", f"energy={text}") for k, text in enumerate(("failed", "-31.7", "-31.6"))]
    together = tmp_path / "all.xyz"
    together.write_text("".join(part.read_text() for part in parts))
    energies = [record.energy for record in read(together)]
    assert np.isnan(energies[0]) and energies[1:] == [-31.7, -31.6]
    parts = [write(tmp_path / f"{k}.xyz", f"energy=1 charge=0 total_charge={k}") for k in range(2)]
    together.write_text("".join(part.read_text() for part in parts))
    with pytest.raises(InputFileError, match="frame 1: charge, total_charge may all be the charge and differ"):
        list(read(together))


def test_what_is_no_label_may_have_any_shape(tmp_path):
    path = write(tmp_path / "a.xyz", 'energy=-31.7 mask="_JSON [[1, 2], [3]]" tags="_JSON [[1], [2, 3]]"')
    assert [record.energy for record in read(path)] == [-31.7]


def test_arrays_of_each_frame_are_looked_at(tmp_path):
    """One number an atom, in the first frame, is no force; three in the next are."""
    atoms = ("H 0 0 0 0.1", "H 0 0 0.8 0.2")
    parts = [
        write(tmp_path / "0.xyz", "energy=1", columns="species:S:1:pos:R:3:forces:R:1", atoms=atoms),
        write(tmp_path / "1.xyz", "energy=2"),
    ]
    together = tmp_path / "all.xyz"
    together.write_text("".join(part.read_text() for part in parts))
    first, second = read(together)
    assert first.forces is None and second.forces is not None


# ---- stress ----

CRYSTAL = 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T" energy=1'


def test_virials_are_divided_by_the_volume(tmp_path):
    path = write(tmp_path / "a.xyz", f'{CRYSTAL} virial="1 2 3 2 4 5 3 5 6"')
    np.testing.assert_allclose(next(read(path)).stress, -np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]]) / 64)
    options = ReadOptions(stress_unit="virial:Ha", stress_sign="tension")
    np.testing.assert_allclose(next(read(path, options=options)).stress[0, 0], Hartree / 64)


def test_units_signs_and_orders_of_stress(tmp_path):
    path = write(tmp_path / "a.xyz", f'{CRYSTAL} stress="1 2 3 0 0 0"')
    assert np.diag(next(read(path)).stress).tolist() == [1, 2, 3]
    path = write(tmp_path / "b.xyz", f'{CRYSTAL} stress="1 2 3 4 5 6"')
    with pytest.raises(InputFileError, match="in which order: give --stress-order voigt .* or vasp"):
        list(read(path))
    assert next(read(path, options=ReadOptions(stress_order="voigt"))).stress[0, 1] == 6
    vasp = next(read(path, options=ReadOptions(stress_order="vasp"))).stress
    assert (vasp[0, 1], vasp[1, 2], vasp[0, 2]) == (4, 5, 6)
    with pytest.raises(InputFileError, match="--stress-sign tension .* or compression"):
        list(read(path, options=ReadOptions(stress_order="vasp", stress_unit="kBar")))
    options = ReadOptions(stress_order="vasp", stress_unit="kbar", stress_sign="compression")
    assert next(read(path, options=options)).stress[0, 0] == pytest.approx(-0.1 * GPa)


def test_zero_stress_of_molecules_is_no_label(tmp_path):
    path = write(tmp_path / "a.xyz", 'energy=1 stress="0 0 0 0 0 0 0 0 0"')
    assert next(read(path)).stress is None


def test_the_stress_of_three_atoms_is_not_taken_for_forces(tmp_path):
    import json

    row = {
        "numbers": [1, 1, 8], "positions": [[0, 0, 0], [1, 0, 0], [0, 1, 0]], "energy": -1.0, "cell": [4, 4, 4],
        "forces": np.ones((3, 3)).tolist(), "stress": (2 * np.eye(3)).tolist(),
        "energy_unit": "eV", "length_unit": "A", "stress_unit": "GPa",
    }  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    record = next(read(tmp_path / "a.jsonl"))
    assert record.stress[0, 0] == pytest.approx(2 * GPa) and record.forces.tolist() == np.ones((3, 3)).tolist()


# ---- names and units ----


@pytest.mark.parametrize(
    "name", ["energy", "Energy", "total_energy", "REF_energy", "dft energy", "E", "E_tot", "TotEnergy", "u0"]
)
def test_names_of_energies(name):
    assert names.energies({name: -1.0}) == ([name], [])


@pytest.mark.parametrize(
    "name", ["formation_energy", "energy_per_atom", "adsorption_energy", "e_above_hull_energy", "fermi_energy"]
)
def test_names_of_other_energies(name):
    assert names.energies({name: -1.0}) == ([], [name])


@pytest.mark.parametrize(
    "name", ["energy_unit", "energy_weight", "max_energy", "enthalpy", "group", "energy_std", "volume"]
)
def test_names_of_no_energies(name):
    assert names.energies({name: 1.0}) == ([], [])


@pytest.mark.parametrize("name", ["forces", "Force", "REF_forces", "dft_gradient", "F", "atomic_forces"])
def test_names_of_forces(name):
    assert names.forces({name: np.zeros((2, 3)), "velocities": np.zeros((2, 3)), "force_weight": np.zeros((2, 3))}) == [
        name
    ]


def test_units():
    assert energy_unit("hartree") == "Ha" and energy_unit("KCAL/MOL") == "kcal/mol" and length_unit("Angstrom") == "A"
    assert (
        forces_unit("hartree/bohr") == "Ha/bohr"
        and stress_unit("kB") == "kBar"
        and stress_unit("virial") == "virial:eV"
    )
    assert force_factor("kcal/mol/A") == KCAL and force_factor("Ha/bohr") == pytest.approx(51.4220675)
    assert stress_factor("GPa", 1.0) == pytest.approx(1 / 160.21766) and stress_factor("virial:eV", 8.0) == 0.125
    for wrong in (
        lambda: energy_unit("kcal/mole/atom"),
        lambda: length_unit("feet"),
        lambda: forces_unit("Ha"),
        lambda: stress_unit("psi"),
    ):
        with pytest.raises(ConfigError, match="unit"):
            wrong()
    with pytest.raises(ConfigError, match="--stress-sign must be tension or compression, not 'presure'"):
        ReadOptions(stress_sign="presure")


def test_what_was_understood_is_counted():
    labeller = Labeller()
    for raw in read_raw(FIXTURES / "methanol.extxyz"):
        labeller.record(raw)
    keys = {
        "energy_keys": ("energy",),
        "forces_keys": ("forces",),
        "group_key": "group",
        "energy_unit": "eV",
        "forces_unit": "eV/A",
    }
    assert labeller.conventions == {Convention(**keys): 12, Convention(**keys, spin_keys=("spin",)): 4}
