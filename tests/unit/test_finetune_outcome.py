"""What `gfm finetune` gives where training makes nothing better, and how it says so."""

import json
from dataclasses import replace

import pytest
from finetuning import HEAD, molecules, relabelled, words, write

from gfm_calc.checkpoint import load_model
from gfm_calc.cli import main
from gfm_calc.config import HeadSpec
from gfm_calc.finetune.plan import Job
from gfm_calc.finetune.setup import look

LONG = ("--steps", "1", "--strategy", "full", "--keep-heads", HEAD)


def told(out):
    return json.loads((out / "errors.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labels of a head of the model: it begins without errors, and every step makes it worse."""
    return write(tmp_path_factory.mktemp("data") / "frames.extxyz", molecules(30))


@pytest.mark.parametrize("more", [["--steps", "1"], ["--steps", "12"], ["--max-minutes", "1e-3"]])
def test_the_model_is_never_worse_than_the_start_on_what_is_held_out(data, more, tmp_path, capsys):
    assert main(words(data, tmp_path / "out", *LONG[2:], *more, "--naive")) == 0
    found = told(tmp_path / "out")
    assert found["before"] == found["after"] and "the weights are those that it began with" in found["warning"]
    assert found["warning"] in capsys.readouterr().out
    model, start = load_model(tmp_path / "out" / "model"), load_model("gfm-small")
    assert (model.embedding.element.weight == start.embedding.element.weight).all()
    provenance = next((tmp_path / "out" / "model").glob("provenance-*.json"))
    assert json.loads(provenance.read_bytes())["step"] == 0
    assert not found["forgetting"]


def test_a_result_that_is_worse_than_the_start_says_so(data, tmp_path, capsys):
    """Where nothing is held out that could have told during the run."""
    more = [
        word for word in words(data, tmp_path / "out", *LONG, "--validation", "0", "--naive") if word != "--no-report"
    ]
    assert main(more) == 0
    found = told(tmp_path / "out")
    assert found["after"]["forces_mae_mev_per_a"] > found["before"]["forces_mae_mev_per_a"]
    assert "worse on the test structures than where it began" in capsys.readouterr().out
    assert "worse on the test structures than where it began" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_learns_keeps_what_it_has_learnt(tmp_path, capsys):
    frames = [relabelled(atoms, forces=lambda f: 1.3 * f, energy=lambda e: 1.3 * e) for atoms in molecules(30)]
    more = ["--accept", "force-scale", "--accept", "energy-unit", "--steps", "60"]
    assert main(words(write(tmp_path / "a.extxyz", frames), tmp_path / "out", *LONG[2:], *more)) == 0
    found = told(tmp_path / "out")
    assert not found["warning"] and found["before"] != found["after"]
    assert "warning: worse" not in capsys.readouterr().out


def test_energies_alone_leave_no_forces_to_rank_by(tmp_path, capsys):
    frames = [relabelled(atoms, forces=None) for atoms in molecules(20)]
    more = ("--steps", "2", "--strategy", "heads", "--keep-heads", "none", "--validation", "0", "--test", "0.01")
    assert main(words(write(tmp_path / "a.extxyz", frames), tmp_path / "out", *more)) == 0
    said = capsys.readouterr().out
    assert "nan" not in said and "meV/Å" not in said and "on 1 test structure\n" in said


def test_nothing_is_said_of_the_units_of_our_own_labels(tmp_path):
    """Which are right, whatever they look like; of a user's labels it is said also where it is accepted."""
    frames = [relabelled(atoms, energy=lambda e: e / 13.6) for atoms in molecules(20)]
    data = write(tmp_path / "a.extxyz", frames)
    job = Job(
        inputs=(data,), model="gfm-small", card=HeadSpec(name="mine"), output=tmp_path / "out", report=False,
        accepted=("energy-unit", "forces-unit", "force-scale"),
    )  # fmt: skip
    for own, expected in ((False, True), (True, False)):
        lines = []
        look(replace(job, own_labels=own, output=tmp_path / str(own)), load_model("gfm-small"), lines.append)
        assert any("look like" in line for line in lines) == expected, lines
