"""`gfm finetune` on input that must not be trained on: one line that says what and how to mend it, and nothing is lost."""

import fcntl
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from ase.io import write as ase_write
from finetuning import crystals, labelled, molecules, relabelled, words, write

import gfm_calc
from gfm_calc.checkpoint import load_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.data.readers.options import DEFAULTS
from gfm_calc.data.suspicion import all_electron_energy
from gfm_calc.finetune.preflight import CODES, FINAL, preflight


@pytest.fixture(scope="module")
def sound():
    return molecules(30)


@pytest.fixture(scope="module")
def solid():
    return crystals(60)


def scaled(frames, **factors):
    return [relabelled(a, **{k: (lambda v, f=f: v * f) for k, f in factors.items()}) for a in frames]


def refused(capsys, data, folder, *more, code=1):
    before = sorted(path.name for path in folder.rglob("*")) if folder.exists() else []
    assert main(words(data, folder, *more)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gfm: error:")]
    assert len(lines) == 1
    if before:
        assert sorted(path.name for path in folder.rglob("*")) == before
    return lines[0]


def of_slabs():
    random = np.random.default_rng(2)
    found = []
    for _ in range(30):
        atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True)
        atoms.positions += random.normal(scale=0.08, size=atoms.positions.shape)
        found.append(atoms)
    frames = labelled(found, "distilled-7net-l3i5")
    low = [k for k, z in enumerate(frames[0].positions[:, 2]) if z < frames[0].positions[:, 2].mean()]
    for atoms in frames:
        atoms.calc.results["forces"][low] = 0.0
        atoms.set_constraint(FixAtoms(low))
    return frames


def far_apart(count=40, **factors):
    """Ethanol rattled so far that no two frames can be compared, with labels times factors."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(count):
        atoms = molecule("CH3CH2OH")
        atoms.positions += random.normal(scale=0.12, size=atoms.positions.shape)
        found.append(atoms)
    return scaled(labelled(found, "pbe-def2svp"), **factors)


def of_interactions():
    random = np.random.default_rng(3)
    found = []
    for k in range(30):
        pair = molecule("H2O") + molecule("H2O")
        pair.positions[3:] += [3.0 + 0.1 * k, 0, 0]
        pair.positions += random.normal(scale=0.01, size=pair.positions.shape)
        found.append(pair)
    frames = labelled(found)
    lowest = min(a.calc.results["energy"] for a in frames)
    return [relabelled(a, energy=a.calc.results["energy"] - lowest) for a in frames]


def with_copies(frames):
    return [*frames, *(relabelled(a) for a in frames[:3])]


def contradicting(frames):
    return [*frames, *(relabelled(a, energy=a.calc.results["energy"] + 7.0) for a in frames[:3])]


def first_changed(frames, **changes):
    return [relabelled(frames[0], **changes), *frames[1:]]


# what is wrong -> (makes the frames, words of the message)
WRONG = {
    "energies in Ha": (lambda s: scaled(s, energy=1 / 27.2114), "--energy-unit Ha"),
    "energies in kcal/mol": (lambda s: scaled(s, energy=23.06), "--accept"),
    "forces in Ha/bohr": (lambda s: scaled(s, forces=1 / 51.422), "--accept force"),
    "gradients for forces": (lambda s: scaled(s, forces=-1.0), "--accept force"),
    "forces in Ha/bohr of far frames": (lambda s: far_apart(forces=1 / 51.422), "Ha/bohr: --forces-unit Ha/bohr"),
    "forces in kcal/mol/Å of far frames": (lambda s: far_apart(forces=23.06), "--forces-unit kcal/mol/A"),
    "gradients of far frames": (lambda s: far_apart(forces=-1.0), "--forces-are-gradients"),
    "energies in Ha of one molecule": (lambda s: far_apart(energy=1 / 27.2114), "as if in Ha: --energy-unit Ha"),
    "levels 0.5 eV apart": (
        lambda s: [relabelled(a, energy=a.calc.results["energy"] + 0.5 * (k % 2)) for k, a in enumerate(molecules(40))],
        "--accept mixed-levels",
    ),
    "no energies": (lambda s: [relabelled(a, energy=None) for a in s], "energies"),
    "an energy that is NaN": (lambda s: first_changed(s, energy=float("nan")), "frame 0"),
    "a force that is infinite": (lambda s: first_changed(s, forces=lambda f: f * np.inf), "frame 0"),
    "one frame": (lambda s: s[:1], "1 structure with energies beside free atoms: at least 5"),
    "four frames": (lambda s: s[:4], "4 structures with energies beside free atoms: at least 5"),
    "duplicates": (with_copies, "--accept duplicates"),
    "another energy for the same structure": (contradicting, "--accept contradictions"),
    "atoms that overlap": (lambda s: [*s, Atoms("H2", positions=[[0, 0, 0], [0, 0, 0]])], "[frames 30]"),
    "frozen atoms without forces": (lambda s: of_slabs(), "--accept zeroed-forces"),
    "interaction energies": (lambda s: of_interactions(), "--accept energy-kind"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_labels_are_refused(what, sound, tmp_path, capsys):
    make, said = WRONG[what]
    line = refused(capsys, write(tmp_path / "frames.extxyz", make(sound)), tmp_path / "out")
    assert said in line, line
    assert not (tmp_path / "out" / "job.json").exists()


def test_a_stress_in_kbar_is_refused(solid, tmp_path, capsys):
    frames = scaled(solid, stress=1602.18)
    line = refused(capsys, write(tmp_path / "frames.extxyz", frames), tmp_path / "out")
    assert "stress" in line and "--accept stress" in line


def test_a_stress_of_the_wrong_sign_is_refused_by_the_heads(tmp_path, capsys):
    """Cells of one volume, whose pressure tells nothing."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(20):
        atoms = bulk("Cu", cubic=True)
        shear = np.triu(random.normal(scale=0.04, size=(3, 3)), 1)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear + shear.T), scale_atoms=True)
        atoms.positions += random.normal(scale=0.3, size=atoms.positions.shape)
        found.append(atoms)
    frames = scaled(labelled(found, "distilled-7net-l3i5"), stress=-1.0)
    line = refused(capsys, write(tmp_path / "frames.extxyz", frames), tmp_path / "out", "--accept", "stress-scale")
    assert "times what head" in line and "--stress-sign compression" in line and "--accept stress-unit" in line


def test_labels_of_another_level_are_no_other_unit(tmp_path):
    """Of a semi-empirical head, beside those of density functionals."""
    paths = [write(tmp_path / "a.extxyz", far_apart()), write(tmp_path / "b.extxyz", crystals(20))]
    paths += [write(tmp_path / "c.extxyz", molecules(30, seed=3))]
    for path in paths:
        found = preflight(
            [path], load_model("gfm-small"), HeadSpec(name="mine"), options=DEFAULTS, format=None, accepted=()
        )
        assert not found.refused, path


def test_two_levels_of_theory_in_two_files_are_refused(sound, tmp_path, capsys):
    other = [relabelled(a, energy=a.calc.results["energy"] - 3000.0) for a in molecules(30)]
    files = [write(tmp_path / "a.extxyz", sound), write(tmp_path / "b.extxyz", other)]
    assert "--accept" in refused(capsys, files, tmp_path / "out")


def test_elements_that_the_model_has_never_seen_are_refused(sound, saved_model, tmp_path, capsys):
    frames = [a.copy() for a in sound]
    for atoms, old in zip(frames, sound):
        atoms.numbers[0] = 14 + 2  # sulphur, which the small model lacks
        atoms.calc = None
        atoms.calc = relabelled(old).calc
    path = write(tmp_path / "frames.extxyz", frames)
    line = refused(capsys, path, tmp_path / "out", "--from", str(saved_model), "--accept", "energy-unit")
    assert f"{path}: S: no head of the model has seen it: leave these" in line and "[frames 0]" in line


@pytest.mark.parametrize(
    "content, said", [(b"", "is empty"), (b"12\nnonsense\n", "frames.extxyz"), (b"\x00\xff" * 500, "frames.extxyz")]
)
def test_files_that_are_none_are_refused(content, said, tmp_path, capsys):
    path = tmp_path / "frames.extxyz"
    path.write_bytes(content)
    assert said in refused(capsys, path, tmp_path / "out")


def test_other_things_that_cannot_be_done(sound, tmp_path, capsys):
    data = write(tmp_path / "frames.extxyz", sound)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("dear to me")
    assert "no such file" in refused(capsys, tmp_path / "gone.extxyz", tmp_path / "out")
    assert "holds other files" in refused(capsys, data, other)
    assert "is a file" in refused(capsys, data, data)
    assert "has a head of that name" in refused(capsys, data, tmp_path / "out", "--head", "gfn2-xtb")
    assert "did you mean 'heads'" in refused(capsys, data, tmp_path / "out", "--strategy", "head")
    assert "no such head" in refused(capsys, data, tmp_path / "out", "--keep-heads", "pbe")
    assert "no model 'gfm-smal'" in refused(capsys, data, tmp_path / "out", "--from", "gfm-smal")
    assert "fraction" in refused(capsys, data, tmp_path / "out", "--test", "1.5")
    assert (other / "thesis.txt").read_text() == "dear to me"


@pytest.mark.parametrize(
    "more, said",
    [
        (["emtt"], "did you mean 'emt'"),
        (["gfm:gfm-small:gfn2-xtb", "--cheap-options", "{"], "must be a JSON object"),
        (["emt", "--strategy", "heads"], "not with --strategy heads"),
        (
            ["gfm:gfm-small:pbe-vasp"],
            "--cheap-labels gfm:gfm-small:pbe-vasp: frames.extxyz, frame 0: head pbe-vasp has not seen H",
        ),
        (["emt", "--property", "gap", "--kind", "intensive"], "not for properties"),
        (["emt", "--cheap-structures", "5"], "--cheap-structures 5: 20 at least"),
    ],
)
def test_cheap_labels_that_cannot_be_had(more, said, sound, tmp_path, capsys):
    frames = [atoms.copy() for atoms in sound] if "--property" in more else sound
    for k, atoms in enumerate(frames):
        atoms.info |= {"gap": float(k)} if "--property" in more else {}
    data = write(tmp_path / "frames.extxyz", frames)
    assert said in refused(capsys, data, tmp_path / "out", "--cheap-labels", *more)


def test_details_of_cheap_labels_that_nobody_asked_for(sound, tmp_path, capsys):
    data = write(tmp_path / "frames.extxyz", sound)
    assert "are for --cheap-labels" in refused(capsys, data, tmp_path / "out", "--cheap-steps", "5")


def test_what_is_told_from_the_command_line_alone_is_told_first(tmp_path, capsys, monkeypatch):
    """Before the files are looked at, which may take minutes."""
    gone = tmp_path / "gone.extxyz"
    for more, said in (
        (["--strategy", "foo"], "one of heads, adapters, full"),
        (["--naive", "--strategy", "heads"], "--naive moves all weights"),
        (["--drop-shared"], "give --test-file"),
        (["--device", "cuda:x"], "device"),
    ):
        assert said in refused(capsys, gone, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_for_one_job_at_a_time(sound, tmp_path, capsys):
    """From before what another one left there is removed."""
    data, out = write(tmp_path / "frames.extxyz", sound), tmp_path / "out"
    out.mkdir()
    with open(out / "job.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another fine-tuning is at work in this folder" in refused(capsys, data, out)


def test_a_folder_that_cannot_be_made_is_no_full_disk(sound, tmp_path, capsys):
    line = refused(capsys, write(tmp_path / "frames.extxyz", sound), Path("/proc/foo"))
    assert "choose another folder" in line and "--resume" not in line


def test_there_is_nothing_to_go_on_with(sound, tmp_path, capsys):
    data = write(tmp_path / "frames.extxyz", sound)
    assert main(words(data, tmp_path / "out", "--resume", "--steps", "2", "--strategy", "heads")) == 0
    assert "holds no job to go on with; a new one begins" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, said",
    [
        ('{"C": -37.8, "H": -0.5, "O": -75.0}', "they look like Ha: give eV, 27.2114 times"),
        ('{"C": -5000}', "would lose"),
        ('{"C": -5000}', "and of H, O too"),
        ('{"C": 1e300}', "C is 1e+300 eV: no atom has that"),
    ],
)
def test_free_atoms_that_do_not_belong_to_the_energies(given, said, sound, tmp_path, capsys):
    totals = [relabelled(a, energy=lambda e, a=a: e + 223 + float(all_electron_energy(a.numbers).sum())) for a in sound]
    (tmp_path / "atoms.json").write_text(given)
    data = write(tmp_path / "frames.extxyz", totals)
    more = ["--isolated-atoms", str(tmp_path / "atoms.json"), "--accept", "energy-unit"]
    assert main(words(data, tmp_path / "out", *more)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gfm: error:" in line]
    assert said in line, line


def test_free_atoms_that_are_missing_are_named(sound, tmp_path, capsys):
    (tmp_path / "atoms.json").write_text('{"H": -13.6, "O": -103.0}')
    data = write(tmp_path / "frames.extxyz", sound)
    more = ["--isolated-atoms", str(tmp_path / "atoms.json"), "--steps", "2", "--strategy", "heads"]
    assert main(words(data, tmp_path / "out", *more)) == 0
    assert "of C, without a free atom, fitted" in capsys.readouterr().out


def test_codes_that_cannot_be_accepted(sound, tmp_path, capsys):
    data = write(tmp_path / "frames.extxyz", sound)
    assert "did you mean 'duplicates'" in refused(capsys, data, tmp_path / "out", "--accept", "duplicate")
    assert "cannot be accepted: give more" in refused(capsys, data, tmp_path / "out", "--accept", "too-few")
    line = refused(capsys, write(tmp_path / "few.extxyz", sound[:4]), tmp_path / "out")
    assert "--accept" not in line and "give more of them" in line and "few.extxyz" in line
    ase_write(tmp_path / "bad.extxyz", [*sound, relabelled(sound[0], energy=float("nan"))])
    line = refused(capsys, tmp_path / "bad.extxyz", tmp_path / "out")
    assert "--accept" not in line and "mend these frames, or leave them out" in line


def test_every_code_is_known():
    """Those that the sources write, beside those that are final."""
    root = Path(gfm_calc.__file__).parent.parent
    sources = [*(root / "gfm_calc" / "data").glob("*.py"), *(root / "finetune").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    pattern = r'code="([a-z-]+)"|(?:"(?:error|warning|note)"(?: if [^"]*"warning")?|level), "([a-z-]+)"'
    written = {one or two for one, two in re.findall(pattern, text)} - {"warning"}
    assert len(written) > 30 and written <= {*CODES, *FINAL}


def test_the_file_of_a_finding_is_named(sound, tmp_path, capsys):
    files = [write(tmp_path / "a.extxyz", sound), write(tmp_path / "b.extxyz", with_copies(molecules(20, seed=4)))]
    assert f"{files[1]}: 6 frames" in refused(capsys, files, tmp_path / "out")


def test_a_charge_in_words_is_refused(sound, tmp_path, capsys):
    frames = [a.copy() for a in sound]
    for atoms, old in zip(frames, sound):
        atoms.calc = relabelled(old).calc
        atoms.info["charge"] = "plus one"
    line = refused(capsys, write(tmp_path / "frames.extxyz", frames), tmp_path / "out")
    assert "frame 0: charge is 'plus one', no number" in line and "--charge-key none" in line


def test_a_test_file_that_shares_structures_is_refused(sound, tmp_path, capsys):
    data, test = write(tmp_path / "a.extxyz", sound), write(tmp_path / "b.extxyz", sound[:5])
    line = refused(capsys, data, tmp_path / "out", "--test-file", str(test), "--accept", "duplicates")
    assert "on two sides" in line


def test_what_was_refused_can_be_mended_in_the_same_folder(sound, tmp_path, capsys):
    path = tmp_path / "frames.extxyz"
    refused(capsys, write(path, with_copies(sound)), tmp_path / "out")
    assert main(words(write(path, sound), tmp_path / "out", "--steps", "2", "--strategy", "heads")) == 0
    shutil.rmtree(tmp_path / "out")
    ase_write(path, with_copies(sound))
    assert main(words(path, tmp_path / "out", "--steps", "2", "--strategy", "heads", "--accept", "duplicates")) == 0


def test_a_head_that_agrees_is_believed_before_one_that_does_not(tmp_path):
    # In a diatomic molecule all forces lie on one line: heads that know nothing of it correlate as well, with any slope.
    random, frames = np.random.default_rng(7), []
    for _ in range(12):
        atoms = molecule("Li2")
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        frames.append(atoms)
    path = tmp_path / "li2.extxyz"
    ase_write(path, labelled(frames, "gfn1-xtb"))
    found = preflight([path], load_model("gfm-small"), HeadSpec(name="x"), options=DEFAULTS, format=None, accepted=())
    assert not {finding.code for finding in found.refused} & {"forces-unit", "energy-unit"}
