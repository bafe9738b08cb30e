"""What an inspection says: nothing of sound data, the right thing and the mend of each kind of unsound data."""

import html.parser
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, GPa, Hartree, kcal, mol
from data_files import FIXTURES, methanol

from gfm_calc.commands.inspection_report import page, text
from gfm_calc.data.consistency import ConsistencyCheck, Slope
from gfm_calc.data.force_findings import consistency
from gfm_calc.data.inspection import FileInspection, inspect
from gfm_calc.data.readers import ReadOptions, read
from gfm_calc.data.report import mapping
from gfm_calc.data.schema import Record
from gfm_calc.data.suspicion import all_electron_energy, bulk_modulus, stress_suspicion
from gfm_calc.errors import InputFileError


def labelled(atoms: Atoms) -> Atoms:
    """With energy, forces and stress of EMT: a potential whose derivatives are exact; free atoms are the zero, not crystals."""
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy() - 3.5 * len(atoms),
        "forces": atoms.get_forces(apply_constraint=False),
    }
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress(apply_constraint=False)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="module")
def crystals() -> list[Atoms]:
    """A trajectory of small steps, then one of strains; Cu and CuAu."""
    random = np.random.default_rng(0)
    found = []
    for base in (
        bulk("Cu", cubic=True),
        Atoms("Cu2Au2", bulk("Cu", cubic=True).positions * 1.06, cell=[3.83] * 3, pbc=True),
    ):
        base.rattle(0.1, seed=1)
        base.info["group"] = str(base.symbols)
        for _ in range(60):
            base.positions += random.normal(scale=0.02, size=base.positions.shape)
            found.append(labelled(base.copy()))
        for _ in range(60):
            strain = random.normal(scale=0.008, size=(3, 3))
            base.set_cell(base.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
            found.append(labelled(base.copy()))
    return found


def changed(frames, path, *, energy=1.0, forces=1.0, stress=1.0, length=1.0):
    """The frames with their labels multiplied, as a file."""
    several = []
    for atoms in frames:
        copy = atoms.copy()
        copy.set_cell(copy.cell * length)
        copy.positions *= length
        given = atoms.calc.results
        results = {"energy": given["energy"] * energy, "forces": given["forces"] * forces}
        if "stress" in given:
            results["stress"] = given["stress"] * stress
        copy.calc = SinglePointCalculator(copy, **results)
        several.append(copy)
    ase.io.write(path, several, format="extxyz")
    return path


def codes(path, **options) -> dict[str, str]:
    """{code: text} of the findings of a file that are no mere notes."""
    found = inspect([path], options=ReadOptions(**options))
    return {finding.code: finding.text for finding in found.all_findings() if finding.level != "note"}


# ---- sound data ----


def test_sound_data_give_no_warning(crystals, tmp_path):
    path = changed(crystals, tmp_path / "a.extxyz")
    assert codes(path) == {}
    (file,) = inspect([path]).files
    assert file.forces_check.is_right and file.forces_check.median == pytest.approx(1.0, abs=0.02)
    assert file.stress_check.is_right and file.stress_check.median == pytest.approx(1.0, abs=0.02)
    assert file.fit.rank == 2 and file.fit.is_unique and file.statistics.elements == ["Cu", "Au"]


def test_the_fixtures():
    (file,) = inspect([FIXTURES / "methanol.extxyz"]).files
    report = mapping(inspect([FIXTURES / "methanol.extxyz"]))["files"][0]
    assert report["frames"] == 16 and report["atoms"] == 76 and report["elements"]["O"] == {"atoms": 13, "frames": 13}
    assert report["energy_kind"]["kind"] == "all-electron total" and report["energy_kind"]["unit"] is None
    assert report["isolated_atoms"]["H"] == -13.568422 and report["other_keys"] == {
        "head": 16,
        "source": 16,
        "split": 12,
    }
    assert report["conventions"][0]["energy_keys"] == ["energy"] or report["conventions"][0]["energy_keys"] == (
        "energy",
    )
    assert [finding.code for finding in file.findings] == ["several-conventions", "rare-elements"]


def test_all_electron_energies_are_near_the_exact_ones():
    """Non-relativistic exact or Hartree-Fock energies of atoms, in Ha."""
    for z, energy in (
        (1, -0.5),
        (2, -2.9037),
        (6, -37.845),
        (8, -75.067),
        (10, -128.94),
        (18, -527.54),
        (36, -2752.05),
    ):
        assert float(all_electron_energy(np.array([z]))[0]) == pytest.approx(energy * Hartree, rel=0.03)


# ---- units and signs ----


def test_forces_of_the_wrong_sign(crystals, tmp_path):
    assert "--forces-are-gradients" in codes(changed(crystals, tmp_path / "a.extxyz", forces=-1.0))["forces-unit"]


@pytest.mark.parametrize(
    "factors, hint",
    [
        ({"forces": Bohr / Hartree}, "--forces-unit Ha/bohr"),
        ({"forces": 1 / Hartree}, "--forces-unit Ha/A"),
        ({"energy": 1 / Hartree}, "--energy-unit Ha"),
        ({"energy": mol / kcal}, "--energy-unit kcal/mol"),
        ({"forces": mol / kcal}, "--forces-unit kcal/mol/A"),
        ({"energy": 0.25}, "--energy-per-atom"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_units_of_forces_and_energies_that_do_not_match(crystals, tmp_path, factors, hint):
    assert hint in codes(changed(crystals, tmp_path / "a.extxyz", **factors))["forces-unit"]


@pytest.mark.parametrize(
    "factor, hint",
    [
        (1 / GPa, "GPa: --stress-unit GPa --stress-sign tension"),
        (-10 / GPa, "--stress-unit kBar --stress-sign compression"),
        (-1.0, "--stress-sign compression"),
        (-1 / GPa, "--stress-unit GPa --stress-sign compression"),
    ],
)
def test_units_and_signs_of_stress(crystals, tmp_path, factor, hint):
    found = codes(changed(crystals, tmp_path / "a.extxyz", stress=factor))
    assert hint in found["stress-unit"] and "forces-unit" not in found


def test_the_hint_mends_it(crystals, tmp_path):
    """Read as the findings say, the files are sound again."""
    stress = changed(crystals, tmp_path / "a.extxyz", stress=-10 / GPa)
    assert codes(stress, stress_unit="kBar", stress_sign="compression") == {}
    forces = changed(crystals, tmp_path / "b.extxyz", forces=-Bohr / Hartree)
    assert codes(forces, forces_unit="Ha/bohr", forces_are_gradients=True) == {}
    assert codes(changed(crystals, tmp_path / "c.extxyz", energy=0.25), energy_per_atom=True) == {}


def test_positions_in_bohr(crystals, tmp_path):
    path = changed(crystals, tmp_path / "a.extxyz", length=1 / Bohr)
    assert "--length-unit bohr" in codes(path)["length-unit"]
    assert "length-unit" not in codes(path, length_unit="bohr")


@pytest.mark.parametrize("unit, factor", [("Ha", 1 / Hartree), ("kcal/mol", mol / kcal)])
def test_molecular_totals_in_another_unit(tmp_path, unit, factor):
    """All labels in the wrong unit agree with each other: only the size of the energies tells."""
    frames = [record.to_atoms() for record in methanol()]
    found = codes(changed(frames, tmp_path / "a.extxyz", energy=factor, forces=factor))
    assert f"--energy-unit {unit}" in found["energy-unit"]
    assert codes(changed(frames, tmp_path / "b.extxyz")) == {}


def test_shuffled_frames_are_compared_too(tmp_path):
    random = np.random.default_rng(3)
    frames = []
    for name in ("H2O", "CH4"):
        for _ in range(60):
            atoms = molecule(name)
            atoms.positions += random.normal(scale=0.04, size=atoms.positions.shape)
            frames.append(labelled(atoms))
    order = random.permutation(len(frames))
    path = changed([frames[k] for k in order], tmp_path / "a.extxyz", forces=-1.0)
    assert "--forces-are-gradients" in codes(path)["forces-unit"]


@pytest.mark.parametrize("median, close, said", [(0.55, False, False), (0.55, True, True), (51.4, False, True)])
def test_long_steps_alone_do_not_condemn_forces(median, close, said):
    """Frames that are far apart: the mean of two forces is not that of the way, and the slope need not be 1."""
    check = Slope(pairs=40, median=median, spread=0.05 * median, close=close, recognised=True, verdict="another unit")
    file = FileInspection(path="a.extxyz", forces_check=check, stress_check=Slope(pairs=0))
    assert [finding.code for finding in consistency(file)] == ["forces-unit"] * said


def test_steps_through_the_cell_wall(crystals):
    """Wrapped positions jump by a cell vector: the work must not."""
    check = ConsistencyCheck()
    for atoms in crystals[:60]:
        copy = atoms.copy()
        copy.positions += 0.02
        copy.wrap()
        copy.calc = atoms.calc
        copy.calc.atoms = copy
        from gfm_calc.data.schema import Record

        check.add(Record.from_atoms(copy))
    assert check.forces().is_right


# ---- kinds of energies ----


def test_formation_and_relative_energies(crystals, tmp_path):
    mixed = []
    for k, atoms in enumerate(crystals):
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(copy, energy=0.1 * len(atoms) * (-1) ** k)
        mixed.append(copy)
    ase.io.write(tmp_path / "a.extxyz", mixed)
    assert "formation" in codes(tmp_path / "a.extxyz")["energy-kind"]
    records = methanol()
    lowest = min(record.energy for record in records)
    frames = []
    for record in records:
        atoms = record.structure()
        atoms.calc = SinglePointCalculator(atoms, energy=record.energy - lowest)
        frames.append(atoms)
    ase.io.write(tmp_path / "b.extxyz", frames)
    assert "relative" in codes(tmp_path / "b.extxyz")["energy-kind"]


# ---- constraints, duplicates, outliers ----


def test_forces_that_a_constraint_set_to_zero(tmp_path):
    random = np.random.default_rng(0)
    frames = []
    for _ in range(20):
        slab = fcc111("Cu", (2, 2, 4), vacuum=6.0)
        slab.pbc = True
        slab.positions += random.normal(scale=0.05, size=slab.positions.shape)
        slab = labelled(slab)
        slab.calc.results["forces"] = np.where(slab.positions[:, 2:] < 10.0, 0.0, slab.calc.results["forces"])
        frames.append(slab)
    path = tmp_path / "a.extxyz"
    ase.io.write(path, frames)
    found = codes(path)
    assert "20 frames" in found["zeroed-forces"] and "net-force" in found


def test_forces_that_vanish_by_symmetry_are_not_taken_for_frozen(tmp_path):
    """A row of three: the one at the end of an axis has no force, and the others balance."""
    atoms = Atoms("Cu3", [[0, 0, 0], [0, 2.0, 1.0], [0, -2.0, 1.0]])
    forces = [[0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]]
    frames = []
    for shift in range(5):
        atoms.positions[1:, 1] *= 1.01
        atoms.calc = SinglePointCalculator(atoms, energy=-9.0 - shift, forces=np.array(forces))
        frames.append(atoms.copy())
        frames[-1].calc = atoms.calc
    ase.io.write(tmp_path / "a.extxyz", frames)
    assert "zeroed-forces" not in codes(tmp_path / "a.extxyz")
    for frame in frames:
        frame.calc.results["forces"] = np.array(forces) + [[0, 0, 0], [0, 0, 0.5], [0, 0, 0.5]]
    ase.io.write(tmp_path / "b.extxyz", frames)
    assert "zeroed-forces" in codes(tmp_path / "b.extxyz")


def with_energies(frames, change):
    """The frames with the energy change(k, energy, atoms), and their forces."""
    found = []
    for k, atoms in enumerate(frames):
        copy = atoms.copy()
        energy = change(k, atoms.calc.results["energy"], atoms)
        copy.calc = SinglePointCalculator(copy, energy=energy, forces=atoms.calc.results["forces"])
        found.append(copy)
    return found


def test_two_levels_of_energies_of_one_molecule(tmp_path):
    """As totals beside atomisation energies, and as two functionals some eV apart."""
    frames = rattled(molecule("CH3OH"), 40, 0.02)
    for shift in (-3115.0, 3.1):
        mixed = with_energies(frames, lambda k, energy, atoms, shift=shift: energy + shift * (k % 2))
        ase.io.write(tmp_path / "a.extxyz", mixed)
        (finding,) = [
            f
            for f in inspect([tmp_path / "a.extxyz"]).all_findings()
            if f.code in ("mixed-levels", "mixed-energy-kinds")
        ]
        assert finding.num_frames == 20 and {f % 2 for f in finding.frames} == {int(shift > 0)}, finding
        assert "(CH4O: 3." in finding.text or "totals of all electrons" in finding.text


def test_energies_that_the_geometry_explains_are_one_level(tmp_path):
    """Two conformers some eV apart, each with its geometries."""
    one, two = molecule("CH3CH2OH"), molecule("CH3OCH3")
    frames = rattled(one, 25, 0.02) + with_energies(rattled(two, 25, 0.02), lambda k, energy, atoms: energy + 5.0)
    ase.io.write(tmp_path / "a.extxyz", frames)
    assert not codes(tmp_path / "a.extxyz").keys() & {"mixed-levels", "mixed-energy-kinds"}


def test_all_electrons_beside_pseudopotentials(crystals, tmp_path):
    frames = []
    for atoms in rattled(molecule("CH3OH"), 30, 0.02):
        atoms.calc.results["energy"] += float(all_electron_energy(atoms.numbers).sum())
        frames.append(atoms)
    ase.io.write(tmp_path / "a.extxyz", frames + crystals[:30])
    assert "one head needs one kind" in codes(tmp_path / "a.extxyz")["mixed-energy-kinds"]


def test_levels_of_theory_that_frames_name(tmp_path):
    frames = rattled(molecule("CH3OH"))
    for k, atoms in enumerate(frames):
        atoms.info |= {"functional": ("PBE", "B3LYP")[k >= 10], "comment": f"number {k}"}
    ase.io.write(tmp_path / "a.extxyz", frames)
    assert "'pbe' (frame 0), 'b3lyp' (frame 10)" in codes(tmp_path / "a.extxyz")["mixed-levels"]
    for atoms in frames:
        atoms.info["functional"] = "PBE"
    ase.io.write(tmp_path / "b.extxyz", frames)
    assert "mixed-levels" not in codes(tmp_path / "b.extxyz")


def rattled(base, count=20, size=0.05):
    """Copies with every atom moved, labelled by EMT."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(count):
        atoms = base.copy()
        atoms.positions += random.normal(scale=size, size=atoms.positions.shape)
        found.append(labelled(atoms))
    return found


def without_forces(frames, chosen, every=1):
    """The frames, of each `every`-th the forces of the chosen atoms set to zero."""
    found = []
    for k, atoms in enumerate(frames):
        forces = atoms.calc.results["forces"].copy()
        forces[chosen] = 0.0 if k % every == 0 else forces[chosen]
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(copy, **(atoms.calc.results | {"forces": forces}))
        found.append(copy)
    return found


@pytest.mark.parametrize(
    "base, chosen, every",
    [
        (molecule("CH3CH2OH"), [0, 1, 2], 1),
        (molecule("CH3CH2OH"), [0], 1),
        (molecule("CH3CH2OH"), [0, 1, 2], 4),
        (bulk("Cu", cubic=True).repeat((2, 2, 3)), list(range(16)), 1),
    ],
    ids=["three of a molecule", "one", "in a quarter of the frames", "the lowest third of a crystal"],
)
def test_zeroed_forces_need_no_layer(base, chosen, every, tmp_path):
    lowest = np.argsort(base.positions[:, 2], kind="stable")[chosen] if base.pbc.any() else chosen
    frames = rattled(base)
    ase.io.write(tmp_path / "a.extxyz", without_forces(frames, lowest, every))
    found = codes(tmp_path / "a.extxyz")
    assert f"{20 // every} frames" in found["zeroed-forces"] and "apply_constraint=False" in found["zeroed-forces"]
    ase.io.write(tmp_path / "b.extxyz", frames)
    assert codes(tmp_path / "b.extxyz").keys() <= {"forces-noise"}


def test_forces_that_were_never_written(tmp_path):
    frames = rattled(molecule("CH3OH"))
    ase.io.write(tmp_path / "a.extxyz", without_forces(frames, slice(None)))
    (finding,) = [f for f in inspect([tmp_path / "a.extxyz"]).all_findings() if f.code == "no-forces-written"]
    assert finding.level == "error" and finding.num_frames == 20 and "--forces-key none" in finding.text
    ase.io.write(tmp_path / "b.extxyz", without_forces(frames, slice(None), every=2))
    assert "no-forces-written" in codes(tmp_path / "b.extxyz")


def test_crystals_without_forces_by_symmetry(tmp_path):
    """Strained and compressed ideal cells, as elastic constants and equations of state are made of."""
    random = np.random.default_rng(1)
    frames = []
    for base in (bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6), bulk("Si"), bulk("Cu").repeat(2)):
        for _ in range(8):
            atoms = base.copy()
            strain = np.diag(random.normal(scale=0.03, size=3))
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            zero = np.zeros((len(atoms), 3))
            atoms.calc = SinglePointCalculator(atoms, energy=-3.5 * len(atoms) + strain.trace() ** 2, forces=zero)
            frames.append(atoms)
    ase.io.write(tmp_path / "a.extxyz", frames)
    assert not codes(tmp_path / "a.extxyz").keys() & {"no-forces-written", "zeroed-forces"}


def test_valence_energies_of_a_molecule_are_not_taken_for_rydberg(tmp_path):
    """GFN2-xTB energies of methanol in eV are 0.97 of all-electron energies in Ry; forces and their change tell."""
    random = np.random.default_rng(0)
    base = molecule("CH3OH")
    frames = []
    for _ in range(40):
        atoms = base.copy()
        moved = random.normal(scale=0.02, size=base.positions.shape)
        atoms.positions += moved
        results = {"energy": -223.7 + 6.0 * float((moved**2).sum()), "forces": -12.0 * moved}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(tmp_path / "a.extxyz", frames)
    assert "energy-unit" not in codes(tmp_path / "a.extxyz")
    for atoms in frames:
        del atoms.calc.results["forces"]
    ase.io.write(tmp_path / "b.extxyz", frames)
    (finding,) = [f for f in inspect([tmp_path / "b.extxyz"]).all_findings() if f.code == "energy-unit"]
    assert finding.level == "warning" and "or valence energies in eV" in finding.text


def test_the_nearest_mistake_is_named_and_right_energies_are_not_blamed():
    """A slope of 0.040 lies between forces in kcal/mol/Å (0.043) and energies in Ha (0.037)."""
    check = ConsistencyCheck()
    random = np.random.default_rng(0)
    check._forces = [(w, w * 0.0395 * random.uniform(0.85, 1.15), 6) for w in random.uniform(1, 9, 200)]
    assert "kcal/mol/Å" in check.forces().verdict and "look like Ha" in check.forces().verdict
    assert (
        check.forces(True).verdict == "the forces look like kcal/mol/Å beside energies in eV: --forces-unit kcal/mol/A"
    )


def test_energies_per_atom_in_frames_of_many_sizes():
    check = ConsistencyCheck()
    random = np.random.default_rng(0)
    sizes = random.integers(2, 40, 200)
    check._forces = [(w, w / n, int(n)) for w, n in zip(random.uniform(1, 9, 200), sizes)]
    assert check.forces().verdict == "the energies look like energies per atom: --energy-per-atom"


@pytest.mark.parametrize(
    "factor, hint",
    [(-1.0, "--stress-sign compression"), (1 / GPa, "stress in GPa"), (10 / GPa, "stress in kBar"), (1.0, None)],
)
def test_stress_where_no_two_frames_can_be_compared(factor, hint):
    """Volumes and pressures of single structures still tell sign and unit: a solid resists compression."""
    random = np.random.default_rng(0)
    volumes = 12.0 * random.uniform(0.9, 1.1, 60)
    pressures = -100 * GPa * np.log(volumes / 12.0) * factor
    found = stress_suspicion(pressures, bulk_modulus(volumes, pressures, np.zeros(60)))
    assert found is None if hint is None else hint in str(found)


def test_tension_that_no_solid_bears():
    assert "no solid bears" in str(stress_suspicion(np.linspace(-1.0, 0.1, 50)))
    assert stress_suspicion(np.linspace(-0.1, 1.0, 50)) is None


@pytest.mark.parametrize("unit, factor", [("Ha", Hartree), ("kcal/mol", kcal / mol)])
def test_hydrogen_tells_the_unit_of_valence_energies(tmp_path, unit, factor):
    valence = {"H": -13.6, "C": -155.0, "N": -265.0, "O": -430.0, "F": -655.0}
    frames = []
    for name in ("CH4", "NH3", "H2O", "CH3OH", "C2H6", "C6H6", "CH3F", "HCN", "N2H4", "H2O2", "CO2", "C2H4") * 2:
        atoms = molecule(name) if name != "CH3F" else molecule("CH3Cl")
        atoms.symbols = [symbol.replace("Cl", "F") for symbol in atoms.symbols]
        atoms.calc = SinglePointCalculator(atoms, energy=sum(valence[s] for s in atoms.symbols) / factor)
        frames.append(atoms)
    ase.io.write(tmp_path / "a.extxyz", frames)
    assert f"hydrogen counts {-13.6 / factor:.3g}, as it does in {unit}" in codes(tmp_path / "a.extxyz")["energy-unit"]
    assert "energy-unit" not in codes(tmp_path / "a.extxyz", energy_unit=unit)


def test_energies_under_several_names(tmp_path):
    lines = [f'1\n{key}=-13.{k} pbc="F F F"\nH 0 0 0\n' for k, key in enumerate(("energy", "REF_energy", "energy"))]
    (tmp_path / "a.xyz").write_text("".join(lines))
    assert "energy (2), REF_energy (1)" in codes(tmp_path / "a.xyz")["mixed-energy-keys"]


def test_duplicates_and_contradictions(crystals, tmp_path):
    frames = [atoms.copy() for atoms in crystals[:30]]
    for atoms, original in zip(frames, crystals):
        atoms.calc = SinglePointCalculator(atoms, energy=original.calc.results["energy"])
    again = frames[3].copy()
    again.rotate(90, "z", rotate_cell=True)
    again.calc = SinglePointCalculator(again, energy=frames[3].calc.results["energy"])
    other = frames[5].copy()
    other.calc = SinglePointCalculator(other, energy=frames[5].calc.results["energy"] + 0.5)
    ase.io.write(tmp_path / "a.extxyz", [*frames, again, other])
    (file,) = inspect([tmp_path / "a.extxyz"]).files
    found = {finding.code: finding for finding in file.findings}
    assert found["duplicates"].frames == (3, 5, 30, 31) and "(2 could go)" in found["duplicates"].text
    assert found["contradictions"].frames == (5, 31) and found["contradictions"].level == "error"
    assert "near-duplicates" not in found


def test_the_same_structure_in_two_files(crystals, tmp_path):
    one, two = changed(crystals[:20], tmp_path / "a.extxyz"), changed(crystals[15:40], tmp_path / "b.extxyz")
    (finding,) = [finding for finding in inspect([one, two]).findings if finding.code == "shared-structures"]
    assert finding.num_frames == 5 and str(two) in finding.text and str(one) in finding.text


def test_outliers_are_named_by_frame(crystals, tmp_path):
    frames = [atoms.copy() for atoms in crystals]
    for k, (atoms, original) in enumerate(zip(frames, crystals)):
        energy, forces = original.calc.results["energy"], original.calc.results["forces"].copy()
        energy += 60.0 if k == 17 else 0.0
        forces[0] += 80.0 if k == 42 else 0.0
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    frames[99].positions[1] = frames[99].positions[0] + 0.6
    ase.io.write(tmp_path / "a.extxyz", frames)
    (file,) = inspect([tmp_path / "a.extxyz"]).files
    found = {finding.code: finding.frames for finding in file.findings}
    assert found["energy-outliers"] == (17,) and found["large-forces"] == (42,) and found["close-atoms"] == (99,)


def test_frames_without_labels_and_unusable_frames(tmp_path):
    path = tmp_path / "a.xyz"
    body = "".join(f"2\nenergy={-30 - k} charge=1\nH 0 0 0\nH 0 0 {0.7 + 0.01 * k}\n" for k in range(8))
    path.write_text(body + "2\nhere=none\nH 0 0 0\nH 0 0 1\n" + "2\nenergy=-1\nH 0 0 0\nQ 0 0 1\n")
    (file,) = inspect([path]).files
    found = {finding.code: finding for finding in file.findings}
    assert found["some-energies"].frames == (8,) and found["unusable-frames"].num_frames == 1
    assert "unknown element 'Q'" in found["unusable-frames"].text and found["no-spin"].num_frames == 8
    assert {"no-forces", "no-groups"} <= found.keys()


def test_a_file_that_ends_too_soon_is_judged_as_far_as_it_goes(tmp_path):
    content = (FIXTURES / "methanol.extxyz").read_text()
    (tmp_path / "a.extxyz").write_text(content[:2000])
    (file,) = inspect([tmp_path / "a.extxyz"]).files
    assert file.findings[0].code == "damaged" and "truncated" in file.findings[0].text and len(file.statistics) == 4


def test_questions_come_first(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nenergy=1 dft_energy=2\nH 0 0 0\n")
    with pytest.raises(InputFileError, match="--energy-key"):
        inspect([tmp_path / "a.xyz"])
    (tmp_path / "b.xyz").write_text("what\n")
    with pytest.raises(InputFileError, match="damaged"):
        inspect([tmp_path / "b.xyz"])


# ---- reports ----


def test_the_reports_say_the_same(crystals, tmp_path):
    path = changed(crystals, tmp_path / "a <&> b.extxyz", forces=-1.0)
    found = inspect([path, FIXTURES / "methanol.extxyz"])
    said, shown, stored = text(found), page(found), json.dumps(mapping(found), allow_nan=False)
    for words in ("--forces-are-gradients", "isolated"):
        assert words in said and words in shown
    assert "--forces-are-gradients" in stored and "a &lt;&amp;&gt; b.extxyz" in shown and "a <&> b" not in shown
    assert shown.count("data:image/png;base64,") >= 8 and "http" not in shown
    for count in json.loads(stored)["files"][0]["ranges"].values():
        assert sum(count["histogram"]["counts"]) == count["count"]


def test_the_page_is_well_formed():
    open_tags = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(page(inspect([FIXTURES / "nbmotaw.extxyz.xz"])))
    assert not open_tags


def test_reading_is_not_changed_by_inspecting():
    before = [record.energy for record in read(FIXTURES / "nbmotaw.extxyz.xz")]
    inspect([FIXTURES / "nbmotaw.extxyz.xz"])
    assert [record.energy for record in read(FIXTURES / "nbmotaw.extxyz.xz")] == before


@pytest.mark.parametrize("seed", range(6))
def test_few_frames_far_apart_are_not_condemned(seed, tmp_path):
    # Energies and forces of one potential: whatever slope chance makes of twelve frames, and wherever their energies lie.
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(12):
        atoms = molecule(("CH3CHO", "isobutane", "CH3CH2OH", "C6H6", "C2H6", "butadiene")[seed])
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        frames.append(labelled(atoms))
    ase.io.write(tmp_path / "few.extxyz", frames)
    assert {"forces-unit", "mixed-levels", "contradictions"}.isdisjoint(codes(tmp_path / "few.extxyz"))


@pytest.mark.parametrize(
    "pairs, median, said", [(38, 0.71, []), (86, 0.82, ["forces-noise"]), (40, 3.1, ["forces-unit"])]
)
def test_a_slope_near_one_that_no_unit_explains_is_no_error(pairs, median, said):
    check = Slope(pairs=pairs, median=median, spread=0.05, close=True, verdict="other")
    file = FileInspection(path="a.extxyz", forces_check=check, stress_check=Slope(pairs=0))
    assert [finding.code for finding in consistency(file)] == said


def test_one_atom_moved_in_many_directions_is_many_structures(tmp_path):
    random, frames = np.random.default_rng(0), []
    for _ in range(12):
        atoms = bulk("Cu", cubic=True).repeat(2)
        step = random.normal(size=3)
        atoms.positions[5] += 0.01 * step / np.linalg.norm(step)
        frames.append(labelled(atoms))
    ase.io.write(tmp_path / "phonons.extxyz", frames)
    assert {"duplicates", "contradictions"}.isdisjoint(codes(tmp_path / "phonons.extxyz"))
    ase.io.write(tmp_path / "twice.extxyz", [*frames, *frames[:2]])
    assert "duplicates" in codes(tmp_path / "twice.extxyz")


def test_charges_and_spins_are_different_systems(tmp_path):
    frames = []
    for k in range(6):
        for charge, spin in ((0, 1), (1, 2)):
            atoms = molecule("CH3OH")
            atoms.rattle(0.05, seed=k)
            atoms = labelled(atoms)
            atoms.calc.results["energy"] += 9.0 * charge
            atoms.info |= {"charge": charge, "spin": spin}
            frames.append(atoms)
    ase.io.write(tmp_path / "ions.extxyz", frames)
    assert {"duplicates", "contradictions"}.isdisjoint(codes(tmp_path / "ions.extxyz"))


def test_energies_that_forces_follow_may_have_any_zero(crystals, tmp_path):
    path = tmp_path / "formation.extxyz"
    shifted = []
    for atoms in crystals:
        copy = atoms.copy()
        results = atoms.calc.results
        copy.calc = SinglePointCalculator(copy, energy=results["energy"] + 3.4 * len(atoms), forces=results["forces"])
        shifted.append(copy)
    ase.io.write(path, shifted)
    levels = {finding.code: finding.level for finding in inspect([path]).files[0].findings}
    assert levels["energy-kind"] == "note"


def test_an_atom_in_a_large_box_is_a_free_one():
    def record(size, pbc):
        return Record.from_atoms(Atoms("Cu", cell=[size] * 3, pbc=pbc))

    assert record(15.0, True).is_free_atom and record(0.0, False).is_free_atom
    assert record(4.0, [False, False, False]).is_free_atom and record(4.0, True).is_free_atom is False
    assert not Record.from_atoms(bulk("Cu")).is_free_atom and not Record.from_atoms(molecule("H2")).is_free_atom
    flat = Atoms("C", cell=[[2.5, 0, 0], [20.0, 20.0, 0], [0, 0, 20.0]], pbc=[True, True, False])
    assert not Record.from_atoms(flat).is_free_atom
