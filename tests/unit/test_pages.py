"""The pages people read: their commands are commands of ours, their examples run, and what they point to is there."""

import argparse
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support import ROOT

from gfm_calc.benchmarks.digests import labels
from gfm_calc.benchmarks.finetune_tasks import load_task
from gfm_calc.benchmarks.provenance import read_result, weights_id
from gfm_calc.benchmarks.report import with_results
from gfm_calc.checkpoint import describe, open_model
from gfm_calc.cli import build_parser
from gfm_calc.screening.plan import open_streams

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md")])
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
HEADS = {card["name"] for card in describe("gfm-small")["heads"]}
# An indented line of a page, without a remark: one after #, or set off by blanks.
_COMMAND = re.compile(r" {4}(?P<command>gfm (?:'[^']*'|(?! {2}|#).)+)")
_LAUNCHED = re.compile(r" {4}(?:torchrun|mpirun|srun) .*-m gfm_calc\.(train|screening) (.*)")
_MODULE = re.compile(r"-m (gfm_calc[\w.]+)")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
_PATH = re.compile(r"`([\w.-]+/[\w./-]+\.(?:md|toml|json|py))`")
_MADE = ("mine", "run", "gaps", "oxides")  # folders that commands of the pages leave
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page):
    """The `gfm` commands that a page shows, those that go over several lines in one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = (_COMMAND.match(re.sub(r"(?<=\S) {2,}(?=--|-o )", " ", line)) for line in text.splitlines())
    launched = [(match[1].replace("screening", "screen"), match[2]) for match in _LAUNCHED.finditer(text)]
    alone = [match["command"].strip() for match in found if match and " | " not in match["command"]]
    return [*alone, *(f"gfm {name} {words}" for name, words in launched)]


def parsed(command):
    """What the command line makes of its words, options in full; no file is looked at.  None where it does not know them."""
    _, *words = shlex.split(command)
    parser = build_parser(words)
    _without_abbreviations(parser)
    try:
        return parser.parse_args(words)
    except SystemExit as stop:
        return argparse.Namespace() if stop.code == 0 else None


def _without_abbreviations(parser):
    parser.allow_abbrev = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _without_abbreviations(one)


def blocks(page, language):
    """What stands between fences of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page, least", [("README.md", 25), ("finetune/README.md", 5), ("screening/README.md", 5),
                                         ("train/README.md", 8), ("benchmarks/README.md", 10)])  # fmt: skip
def test_commands_are_found(page, least):
    assert len(commands(ROOT / page)) >= least


@pytest.mark.parametrize(
    "command", ["finetune a.xyz --head x -o y --nonsense", "finetune a.xyz --hea x -o y", "nonsense"]
)
def test_what_is_no_command_is_told(command):
    assert parsed(f"gfm {command}") is None


@each_page
def test_commands_of_a_page_parse(page, capsys):
    for command in commands(page):
        found = parsed(command)
        assert found is not None, f"{command}: {capsys.readouterr().err}"
        if found.command not in ("finetune", "data"):  # whose heads are the user's own
            named = getattr(found, "head", None) or []
            assert {"gap", *HEADS}.issuperset([named] if isinstance(named, str) else named), command
        if found.command == "bench" and getattr(found, "task", None):
            load_task(found.task)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_of_a_result_parses(path, capsys):
    command = read_result(path)["provenance"]["command"]
    assert parsed(command) is not None, capsys.readouterr().err


@each_page
def test_what_a_page_points_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    gone = [link for link in _LINK.findall(text) if not (page.parent / link).exists()]
    gone += [path for path in _PATH.findall(text) if path.split("/")[0] not in _MADE and not (ROOT / path).exists()]
    gone += [module for module in _MODULE.findall(text) if find_spec(module) is None]
    assert not gone


@each_page
def test_headings_occur_once(page):
    lines = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL).splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert len(set(headings)) == len(headings) > 0


def test_the_python_of_the_readme_runs(tmp_path):
    (snippet,) = blocks(ROOT / "README.md", "python")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert " eV\n" in done.stdout and "gfn2-xtb" in done.stdout and "distilled" not in done.stdout


@pytest.mark.parametrize("page", ["README.md", "screening/README.md"])
def test_the_candidates_of_a_page_can_be_made(page, tmp_path):
    (plan,) = blocks(ROOT / page, "toml")
    (tmp_path / "oxides.toml").write_text(plan, encoding="utf-8")
    assert len(open_streams([tmp_path / "oxides.toml"])) > 100


@pytest.mark.parametrize("page", ["README.md", "finetune/README.md", "benchmarks/RESULTS.md"])
def test_tables_of_a_page_are_those_of_the_results(page):
    """Whoever changes a result makes the tables again: `gfm bench report`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    weights = weights_id(open_model("gfm-small"))
    assert with_results(text, [read_result(path) for path in RESULTS], weights=weights) == text
    filled = re.findall("^<!-- [^e].* -->\n\n[|*]", text, re.MULTILINE)
    assert len(filled) == text.count("<!-- end of ") > 0


def test_the_labels_that_the_readme_counts_are_those_of_the_results():
    fewest, more = (row[1] for row in labels(map(read_result, RESULTS)).rows[:2])
    wanted = f"saves four of five labels in {fewest} cases with 10 to 40 labels, and in {more.split()[0]} of"
    assert wanted in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
