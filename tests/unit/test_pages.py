"""The pages people read: their commands are commands of ours, and their links lead somewhere."""

import re
import shlex

import pytest
from support import ROOT

from gfm_calc.benchmarks.provenance import read_result
from gfm_calc.cli import build_parser

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md")])
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
# An indented line of a page, without a remark: one after #, or set off by blanks.
_COMMAND = re.compile(r" {4}(?P<command>gfm (?:'[^']*'|(?! {2}|#).)+)")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def commands(page):
    """The `gfm` commands that a page shows, those that go over several lines in one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = (_COMMAND.match(re.sub(r"(?<=\S) {2,}(?=--|-o )", " ", line)) for line in text.splitlines())
    return [match["command"].strip() for match in found if match and " | " not in match["command"]]


def parses(command):
    """Whether the command line knows its words and options; no file is looked at."""
    _, *words = shlex.split(command)
    try:
        build_parser(words).parse_args(words)
    except SystemExit as stop:
        return stop.code == 0
    return True


def test_commands_are_found():
    found = commands(ROOT / "README.md")
    assert len(found) > 20
    assert any(command.startswith("gfm finetune ") for command in found)
    assert not parses("gfm finetune frames.extxyz --nonsense")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_parse(page, capsys):
    wrong = [command for command in commands(page) if not parses(command)]
    assert not wrong, capsys.readouterr().err


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_of_a_result_parses(path, capsys):
    command = read_result(path)["provenance"]["command"]
    assert parses(command), capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    gone = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not gone
