"""`gfm bench` from the shell's side, and the promises that it counts."""

import json
import shutil
import subprocess
import sys

import pytest
from support import ROOT

from gfm_calc.benchmarks.reliability import read_promises, run_reliability
from gfm_calc.cli import main
from gfm_calc.errors import GFMError, InputFileError

COMMANDS = (
    "speed", "heads", "accuracy", "physics", "data", "scaling", "training", "multitask", "alone", "ablation",
    "reliability", "report", "card",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert main(["bench", command, "--help"]) == 0
    assert f"gfm bench {command}" in capsys.readouterr().out


def test_parsing_needs_no_torch():
    code = (
        "import sys; from gfm_calc.cli import build_parser; build_parser(['bench']).parse_args(['bench', 'heads']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_heads_are_measured_printed_and_written(tmp_path, saved_model, capsys):
    out = tmp_path / "heads.json"
    assert main(["bench", "heads", "--model", str(saved_model), "--batch", "1", "--repeats", "1", "-o", str(out)]) == 0
    assert "compare_heads" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["benchmark"] == "heads" and found["provenance"]["model_id"]
    assert found["provenance"]["command"] == "gfm bench heads --model model --batch 1 --repeats 1"
    assert str(tmp_path) not in out.read_text()
    assert main(["bench", "report", str(out)]) == 0
    assert "**All 3 heads against one, energies**" in capsys.readouterr().out


def test_a_mark_that_asks_for_more_than_is_given_is_noted(tmp_path, capsys):
    """The page is written all the same, with what there is."""
    page, speed = tmp_path / "page.md", str(ROOT / "benchmarks" / "results" / "speed.json")
    page.write_text("<!-- results of speed, labels, stability -->\n<!-- end of results -->\n")
    assert main(["bench", "report", speed, "--into", str(page)]) == 0
    noted = capsys.readouterr().err
    assert f"gfm: note: {page}: its result mark asks for labels, stability, of which no result was given" in noted
    assert "structures a second" in page.read_text()
    for mark in ("results of speed", "results"):
        page.write_text(f"<!-- {mark} -->\n<!-- end of results -->\n")
        assert main(["bench", "report", speed, "--into", str(page)]) == 0
        assert "note" not in capsys.readouterr().err


def test_what_is_there_is_kept_before_anything_is_measured(tmp_path, saved_model, capsys):
    out = tmp_path / "heads.json"
    out.write_text("mine")
    assert main(["bench", "heads", "--model", str(saved_model), "-o", str(out)]) == 1
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err


def test_card_of_a_saved_model(tmp_path, saved_model, capsys):
    assert main(["bench", "card", "--model", str(saved_model)]) == 0
    assert "# model" in capsys.readouterr().out
    assert main(["bench", "card", "--model", str(saved_model), "--results", str(tmp_path)]) == 1
    assert "no result files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["speed", "--peer", "chgnet"], ["speed", "--threads", "0"], ["physics", "--picoseconds", "nan"], ["speeed"]],
)
def test_wrong_usage_is_one_line(words, capsys):
    assert main(["bench", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_unknown_part_of_physics(saved_model, capsys):
    assert main(["bench", "physics", "--model", str(saved_model), "--parts", "nvee"]) == 1
    assert "nvee" in capsys.readouterr().err


# ---- promises ----

TESTS = """
import pytest

@pytest.mark.promise("R1", count=20)
def test_kept(): pass

@pytest.mark.promise("R1", count=5)
def test_broken(): assert False

@pytest.mark.promise("R2", count=7)
def test_not_here(): pytest.skip("no")

@pytest.mark.promise("R10")
def test_counted(tally):
    for k in range(30): tally.check(k != 3, k)

@pytest.mark.slow
@pytest.mark.promise("R3", count=200)
def test_long(): pass

def test_no_promise(): assert False
"""


@pytest.fixture
def checkout(tmp_path):
    """A small checkout with this project's own conftest."""
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("conftest.py", "support.py"):
        shutil.copy(ROOT / "tests" / name, tests / name)
    (tests / "test_promises.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: long\n    promise(id, count): a promise\n")
    return tests


def test_promises_are_run_and_counted(checkout, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = {row["promise"]: row for row in run_reliability(checkout)}
    assert rows == {
        "R1": {"promise": "R1", "tests": 2, "count": 25, "failed": 1, "skipped": 0},
        "R2": {"promise": "R2", "tests": 0, "count": 0, "failed": 0, "skipped": 1},
        "R10": {"promise": "R10", "tests": 1, "count": 30, "failed": 1, "skipped": 0},
    }


def test_a_checkout_without_long_promises_is_an_error(checkout, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (checkout / "test_promises.py").write_text(TESTS.replace("@pytest.mark.slow\n", ""))
    with pytest.raises(GFMError, match="no test carries a long promise"):
        run_reliability(checkout, long=True)
    with pytest.raises(InputFileError, match="nowhere"):
        run_reliability(checkout / "nowhere")


def test_cases_without_the_property_are_left_out():
    assert read_promises("<testsuites><testsuite><testcase name='a'/></testsuite></testsuites>") == []
