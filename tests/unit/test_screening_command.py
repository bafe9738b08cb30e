"""`gfm screen`: what it leaves, that it goes on, and what it refuses."""

import csv
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from labelled import need_adios
from screenings import argv, chunks, column, need_pyarrow, random_candidates, rows

from gfm_calc import GFMCalculator
from gfm_calc.cli import main
from gfm_calc.data.store import open_dataset
from gfm_calc.screening.folder import Folder


@pytest.fixture(autouse=True)
def _pyarrow():
    need_pyarrow()


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    """A file of crystals and molecules, a bad frame, one of an element that no head knows."""
    folder = tmp_path_factory.mktemp("candidates")
    frames = []
    for k in range(20):
        atoms = bulk(("Cu", "Al", "Pt")[k % 3], cubic=True) if k % 2 else molecule(("H2O", "CH4")[k % 4 // 2])
        atoms.rattle(0.05, seed=k)
        frames.append(atoms)
    frames.insert(7, bulk("Xe", "fcc", a=6.2))
    ase.io.write(folder / "in.extxyz", frames)
    text = (folder / "in.extxyz").read_text().splitlines()
    text[2] = text[2].replace("O", "Q", 1)
    (folder / "in.extxyz").write_text("\n".join(text) + "\n")
    return folder / "in.extxyz"


def refused(words, capsys, *said: str) -> None:
    """A line that says all of `said`, and exit code 1."""
    assert main(words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gfm: error:") and all(text in error for text in said), error


def test_what_it_leaves(candidates, saved_model, tmp_path, capsys):
    run = tmp_path / "run"
    words = argv([candidates], run, saved_model, "--rank-by", "energy_per_atom", "--top", "4", "--where", "max_force < 100",
                 heads=("first", "second"))  # fmt: skip
    words.remove("--no-report")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "first: 19 ok, 1 invalid, 1 outside; 19 ranked; best: candidate" in said and "second: 19 ok" in said
    found = rows(run)
    assert len(found) == 42 and [row["head"] for row in found] == ["first", "second"] * 21
    assert "unknown element 'Q'" in found[0]["error"] and found[0]["source"] == "in.extxyz:0"
    assert "has not seen Xe" in found[14]["error"]
    with open(run / "ranking.csv") as handle:
        ranking = list(csv.DictReader(handle))
    assert [row["rank"] for row in ranking] == ["1", "2", "3", "4"] * 2
    own = sorted((r["energy_per_atom"], r["candidate"]) for r in found if r["head"] == "first" and r["status"] == "ok")
    assert [int(row["candidate"]) for row in ranking[:4]] == [number for _, number in own[:4]]
    best = ase.io.read(run / "best.extxyz", ":")
    given = ase.io.read(candidates, "1:")
    for atoms, row in zip(best, ranking, strict=True):
        assert atoms.info["candidate"] == int(row["candidate"]) and atoms.info["head"] == row["head"]
        assert np.allclose(atoms.positions, given[int(row["candidate"]) - 1].positions, atol=1e-7)
    counts = json.loads((run / "counts.json").read_text())
    assert counts["heads"]["first"]["rows"] == {"invalid": 1, "ok": 19, "outside": 1}
    page = (run / "summary.html").read_text()
    for text in (
        "Screening of 21 candidates",
        "lowest energy_per_atom",
        "max_force &lt; 100",
        "has not seen Xe",
        "data:image",
    ):
        assert text in page
    assert not list((run / "claims").iterdir())


def test_any_parquet_reader_reads_the_folder(candidates, saved_model, tmp_path):
    assert main(argv([candidates], tmp_path / "run", saved_model)) == 0
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(tmp_path / "run" / "chunks", format="parquet").to_table()
    assert table.num_rows == 21 and table.column("energy").null_count == 2
    assert sorted(table.column("candidate").to_pylist()) == list(range(21))


def test_the_same_command_again_goes_on_and_ranks_anew(candidates, saved_model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert main(argv([candidates], run, saved_model)) == 0
    before = chunks(run)
    (run / "chunks" / "00000002.parquet").unlink()
    assert main(argv([candidates], run, saved_model, "--rank-by", "max_force", "--highest", "--top", "3")) == 0
    assert chunks(run) == before
    forces = column(run, "max_force").astype(float)
    with open(run / "ranking.csv") as handle:
        first = next(csv.DictReader(handle))
    assert int(first["candidate"]) == int(np.nanargmax(forces))

    def nothing_to_do(*given):
        raise AssertionError("a chunk that is there was computed again")

    monkeypatch.setattr("gfm_calc.screening.engine.Engine.rows", nothing_to_do)
    assert main(argv([candidates], run, saved_model)) == 0


def test_worker_processes_and_a_thread_give_the_same_bytes(candidates, saved_model, tmp_path):
    assert main(argv([candidates], tmp_path / "a", saved_model)) == 0
    assert main(argv([candidates], tmp_path / "b", saved_model, "--workers", "2")) == 0
    assert chunks(tmp_path / "a") == chunks(tmp_path / "b")


def test_a_range_is_the_same_rows(candidates, saved_model, tmp_path):
    assert main(argv([candidates], tmp_path / "all", saved_model, "--dtype", "float64")) == 0
    assert main(argv([candidates], tmp_path / "part", saved_model, "--dtype", "float64", "--range", "4:17")) == 0
    part = {row["candidate"]: row for row in rows(tmp_path / "part")}
    assert sorted(part) == list(range(4, 17))
    for row in rows(tmp_path / "all"):
        if row["candidate"] in part and row["status"] == "ok":
            assert part[row["candidate"]]["energy"] == pytest.approx(row["energy"], abs=1e-9)


def test_other_settings_candidates_models_and_folders_are_refused(candidates, saved_model, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(argv([candidates], run, saved_model, "--where", "max_force < 9")) == 0
    before = chunks(run)
    refused(argv([candidates], run, saved_model, "--dtype", "float64"), capsys, "dtype = float32, not float64")
    refused(argv([candidates], run, saved_model, heads=("second",)), capsys, "heads = ['first'], not ['second']")
    other = random_candidates(tmp_path, 21)
    refused(argv([other], run, saved_model), capsys, "other candidates")
    refused(argv([candidates], run, "gfm-small", heads=("gfn2-xtb",)), capsys, "choose another folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused(argv([candidates], tmp_path / "full", saved_model), capsys, "holds other files")
    refused(argv([candidates], candidates, saved_model), capsys, "is a file; give a folder")
    assert chunks(run) == before and (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("more, said", [
    (("--range", "30:"), "--range begins at 30, but there are 21 candidates"),
    (("--range", "3:90"), "--range ends at 90"), (("--cell",), "add --relax"),
    (("--quantity", "heat"), "energies, forces, stress"),
    (("--rank-by", "energi"), "did you mean 'energy'?"), (("--where", "energy < x"), "is no number"),
    (("--keep", "forces", "--quantity", "energies"), "no forces to keep"), (("--keep", "everything"), "structures, forces"),
    (("--head", "gap"), "predicts gap"), (("--head", "fist"), "did you mean 'first'?"),
    (("--relax", "--optimizer", "CG"), "FIRE, LBFGS"), (("--relax", "--head", "second"), "relax with one head"),
    (("--elements", "none.xyz"), "no such file"), (("--phases", "none.xyz"), "no such file"),
    (("--domain", "nowhere"), "nowhere: no such directory"), (("--export", "data"), "add --keep forces --keep structures"),
    (("--export", "data", "--keep", "forces"), "add --keep structures"), (("--rank-by", "hull"), "no column 'hull'"),
])  # fmt: skip
def test_wrong_options(candidates, saved_model, tmp_path, capsys, more, said):
    refused(argv([candidates], tmp_path / "run", saved_model, *more), capsys, said)
    assert not (tmp_path / "run" / "screening.json").exists()


HOSTILE = {
    "missing.xyz": None, "empty.xyz": b"", "model.pkl": b"\x80\x04.", "weights.pt": b"PK\x03\x04",
    "noise.db": b"SQLite format 3\0" * 9,
    "noise.parquet": b"PAR1" + b"\xff" * 64 + b"PAR1", "noise.aselmdb": b"\0" * 5000, "noise.toml": b"\xff\xfe = [",
    "what.bin": b"\x00\x01\x02", "noise.npz": b"PK\x03\x04 broken", "noise.xyz.xz": b"\xfd7zXZ\0broken",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_cannot_be_read(saved_model, tmp_path, capsys, name):
    """Each is an error of one line, or, where a format has frames, a row."""
    if HOSTILE[name] is not None:
        (tmp_path / name).write_bytes(HOSTILE[name])
    run = tmp_path / "run"
    code = main(argv([tmp_path / name], run, saved_model))
    said = capsys.readouterr()
    if code == 0:
        assert all(row["status"] != "ok" and name in row["error"] for row in rows(run))
    else:
        line = said.err.strip().splitlines()[-1]
        assert code == 1 and line.startswith("gfm: error:") and name in line
        assert not (run / "chunks").exists()


def test_elements_of_the_user_count(saved_model, tmp_path, capsys):
    """A lower energy of an element raises formation energies; the file is part of what a folder holds."""
    ase.io.write(tmp_path / "in.extxyz", [bulk("CuPt", "cesiumchloride", a=3.0)])
    lowest = min((bulk("Cu", a=a) for a in np.linspace(3.0, 4.2, 40)), key=lambda atoms: energy_of(atoms, saved_model))
    ase.io.write(tmp_path / "elements.extxyz", [lowest])
    assert main(argv([tmp_path / "in.extxyz"], tmp_path / "a", saved_model)) == 0
    more = ("--elements", str(tmp_path / "elements.extxyz"))
    assert main(argv([tmp_path / "in.extxyz"], tmp_path / "b", saved_model, *more)) == 0
    ours, given = Folder(tmp_path / "a").meta["elements"]["first"], Folder(tmp_path / "b").meta["elements"]["first"]
    assert given["Cu"] == pytest.approx(min(ours["Cu"], energy_of(lowest, saved_model)), abs=1e-4)
    assert given["Pt"] == pytest.approx(ours["Pt"], abs=1e-6)
    refused(argv([tmp_path / "in.extxyz"], tmp_path / "b", saved_model), capsys, "other --elements")
    ase.io.write(tmp_path / "elements.extxyz", [bulk("NaCl", "rocksalt", a=5.6)])
    refused(argv([tmp_path / "in.extxyz"], tmp_path / "c", saved_model, *more), capsys, "give single elements")


def energy_of(atoms, model) -> float:
    atoms.calc = GFMCalculator(model, head="first")
    return atoms.get_potential_energy() / len(atoms)


def test_an_input_that_changes_meanwhile_is_noticed(saved_model, tmp_path, capsys):
    path = tmp_path / "in.extxyz"
    ase.io.write(path, [bulk("Cu"), bulk("Al")])
    assert main(argv([path], tmp_path / "run", saved_model)) == 0
    ase.io.write(path, [bulk("Cu"), bulk("Pt")])
    refused(argv([path], tmp_path / "run", saved_model), capsys, "other candidates")


def test_all_candidates_may_be_bad(saved_model, tmp_path):
    path = tmp_path / "in.extxyz"
    ase.io.write(path, [Atoms("Xe"), Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.01]])])
    assert main([word for word in argv([path], tmp_path / "run", saved_model) if word != "--no-report"]) == 0
    assert [row["status"] for row in rows(tmp_path / "run")] == ["outside", "invalid"]
    assert "No candidate passes the filters" in (tmp_path / "run" / "summary.html").read_text()
    assert (tmp_path / "run" / "best.extxyz").read_text() == ""


def test_nothing_to_rank_by_is_said(candidates, saved_model, tmp_path, capsys):
    assert main(argv([candidates], tmp_path / "run", saved_model, "--rank-by", "uncertainty")) == 0
    assert "0 ranked; none passes the filters and has a uncertainty: choose --rank-by" in capsys.readouterr().out


def test_the_manifest_says_what_there_is(candidates, saved_model, tmp_path):
    assert main(argv([candidates], tmp_path / "run", saved_model)) == 0
    folder = Folder(tmp_path / "run")
    assert (folder.first, folder.last, folder.candidates, folder.num_chunks) == (0, 21, 21, 5)
    assert folder.meta["model"]["weights"] and folder.meta["identity"]["parts"][0]["name"] == "in.extxyz"
    assert str(tmp_path) not in (tmp_path / "run" / "screening.json").read_text()
    assert set(folder.meta["elements"]) == {"first"}


def test_how_far_the_rows_are_from_float64(candidates, saved_model, tmp_path):
    """Measured on the run's own candidates: not nothing in float32, and not asked in float64."""
    run = tmp_path / "run"
    words = argv([candidates], run, saved_model, heads=("first", "second"))
    words.remove("--no-report")
    assert main(words) == 0
    about = json.loads((run / "counts.json").read_text())["heads"]["second"]["from_float64"]
    exact = {row["candidate"]: row for row in rows_in_float64(candidates, saved_model, tmp_path)}
    own = [row for row in rows(run) if row["head"] == "second" and row["status"] == "ok"]
    energies = [abs(row["energy"] - exact[row["candidate"]]["energy"]) / row["num_atoms"] for row in own]
    forces = [abs(row["max_force"] - exact[row["candidate"]]["max_force"]) for row in own]
    assert about["structures"] == 19
    assert about["energy_mev_per_atom"] == pytest.approx(1e3 * max(energies), rel=0.06)
    assert about["max_force_mev_per_a"] == pytest.approx(1e3 * max(forces), rel=0.06)
    assert f"second: at most {about['energy_mev_per_atom']:g} meV/atom" in (run / "summary.html").read_text()
    counts = json.loads((tmp_path / "exact" / "counts.json").read_text())
    assert counts["heads"]["second"]["from_float64"] == {}


def rows_in_float64(candidates, model, folder) -> list[dict]:
    assert main(argv([candidates], folder / "exact", model, "--dtype", "float64", heads=("second",))) == 0
    return rows(folder / "exact")


def test_rows_as_datasets(candidates, saved_model, tmp_path):
    """Whole forces in ADIOS2, bit for bit those of the rows; the same command again writes them anew."""
    need_adios()
    words = argv([candidates], tmp_path / "run", saved_model, "--quantity", "stress", "--keep", "structures", "--keep", "forces",
                 "--export", str(tmp_path / "data"), heads=("first", "second"))  # fmt: skip
    for _ in range(2):
        assert main(words) == 0
        for head in ("first", "second"):
            dataset = open_dataset(tmp_path / "data" / head)
            own = [row for row in rows(tmp_path / "run") if row["head"] == head and row["status"] == "ok"]
            assert len(dataset) == len(own) == 19 and dataset.head.labels == "distilled"
            for record, row in zip(dataset.records(), own, strict=True):
                assert record.energy == row["energy"]
                assert np.array_equal(record.forces.ravel(), row["forces"])
                assert np.array_equal(record.positions.ravel(), row["positions"])
                assert (record.stress is None) == (row["stress"] is None)
