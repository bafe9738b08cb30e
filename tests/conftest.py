"""Fixtures that all tests share, and the table of promises at the end of a run.

A test marked `@pytest.mark.promise("R3", count=200)` says which promise of the design it keeps and how many cases it
tries; one that counts for itself (and can go on after a failure) uses the `tally` fixture instead of `count`.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

import pytest
import torch
from support import random_model

from gfm_calc.checkpoint import list_models, load_model, save_model

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background of a shell: children would inherit it,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and tests of interrupts interrupt nothing


@pytest.fixture(scope="session")
def model():
    """A small random model in float64, never saved."""
    return random_model()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """The directory of a small random model for a handful of elements (float32, as models are shipped)."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    elements = ("H", "C", "N", "O", "Na", "Al", "Si", "Cl", "Cu", "Pt")
    save_model(random_model(dtype=torch.float32, properties=True, elements=elements), directory)
    return directory


@pytest.fixture(scope="session")
def packaged_model() -> str:
    """The name of the packaged model."""
    if "gfm-small" not in list_models():
        pytest.skip("gfm-small is not in the tree yet")
    load_model("gfm-small")
    return "gfm-small"


@dataclass
class Tally:
    """Counts the cases of one test and keeps what failed, so that one failure does not hide the others."""

    cases: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: object) -> None:
        """One more case."""
        self.cases += 1
        if not holds:
            self.failures.append(str(what))

    def verdict(self) -> None:
        """Fail the test where a case failed, or where there were none."""
        assert self.cases, "no case was tried"
        shown = "\n".join(self.failures[:10])
        assert not self.failures, f"{len(self.failures)} of {self.cases} cases failed:\n{shown}"


@pytest.fixture
def tally(record_property, request):
    """A `Tally`; its verdict is passed when the test ends, unless the test was skipped."""
    counted = Tally()
    yield counted
    if getattr(request.node, "was_skipped", False):
        return
    record_property("promise_cases", counted.cases)
    record_property("promise_failures", len(counted.failures))
    counted.verdict()


# ---- the table of promises ----


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when != "teardown" and call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        item.was_skipped = True
    marker = item.get_closest_marker("promise")
    if marker is not None:
        report = outcome.get_result()
        count = marker.kwargs.get("count", marker.args[1] if len(marker.args) > 1 else 1)
        report.user_properties.append(("promise", [marker.args[0], count]))


def pytest_terminal_summary(terminalreporter):
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            _enter(rows, report)
    for report in terminalreporter.stats.get("", []):  # set-ups and tear-downs that passed
        _enter(rows, report)
    if not rows:
        return
    terminalreporter.section("promises")
    terminalreporter.line(f"{'promise':<9}{'tests':>6}{'cases':>9}{'failures':>10}")
    for promise in sorted(rows, key=lambda name: (len(name), name)):
        entries = rows[promise].values()
        cases, failures = sum(c for c, _ in entries), sum(f for _, f in entries)
        terminalreporter.line(f"{promise:<9}{len(entries):>6}{cases:>9}{failures:>10}")


def _enter(rows, report) -> None:
    properties = dict(getattr(report, "user_properties", ()))
    if "promise" not in properties or (report.when == "setup" and report.passed):
        return
    promise, count = properties["promise"]
    tests = rows.setdefault(promise, {})
    cases, failures = tests.get(report.nodeid, (count, 0))
    cases = properties.get("promise_cases", cases)
    tests[report.nodeid] = (cases, max(failures, properties.get("promise_failures", 0), int(report.failed)))
