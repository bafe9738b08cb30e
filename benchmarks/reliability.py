"""`gfm bench reliability`: run the tests that carry a promise of the design, and count what was tried and what failed.

A test says `@pytest.mark.promise("R3", count=200)`, or counts for itself with the `tally` fixture of `tests/conftest.py`; both
end up as properties in pytest's JUnit file, which is read here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gfm_calc.errors import GFMError, InputFileError, MissingDependencyError

_PROMISE = re.compile(r"\[['\"](\w+)['\"], (\d+)\]")


def run_reliability(tests: Path, *, long: bool = False) -> list[dict[str, Any]]:
    """Run the promise tests of a checkout; pytest's own output goes to stderr.

    Args:
        tests: the tests folder, or one test file.
        long: those marked slow instead of the others.

    Returns:
        rows {promise, tests, count, failed, skipped}: tests run, cases that they tried, cases that failed, tests that
        could not run here.

    Raises:
        GFMError: no such tests, none that carries a promise, or pytest could not run them.
    """
    if find_spec("pytest") is None:
        raise MissingDependencyError("the promises need pytest: pip install 'gfm-calc[dev]'")
    if not tests.exists():
        raise InputFileError(f"{tests}: no such tests; run this in a checkout or give --tests")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        marked = "promise and slow" if long else "promise and not slow"
        command = [sys.executable, "-m", "pytest", str(tests.resolve()), "-m", marked, f"--junitxml={report}"]
        code = subprocess.run(command, stdout=sys.stderr, cwd=tests.resolve().parent).returncode
        if code == 5:
            raise GFMError(f"{tests}: no test carries a {'long ' if long else ''}promise")
        if code not in (0, 1) or not report.exists():
            raise GFMError(f"{tests}: pytest could not run the tests (exit code {code}); its output is above")
        return read_promises(report.read_text(encoding="utf-8"))


def read_promises(junit: str) -> list[dict[str, Any]]:
    """The rows of `run_reliability` from a JUnit file's text."""
    rows: dict[str, dict[str, Any]] = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        found = _PROMISE.fullmatch(properties.get("promise", ""))
        if found is None:
            continue
        promise, count = found[1], int(found[2])
        row = rows.setdefault(promise, {"promise": promise, "tests": 0, "count": 0, "failed": 0, "skipped": 0})
        if case.find("skipped") is not None:
            row["skipped"] += 1
            continue
        broken = case.find("failure") is not None or case.find("error") is not None
        row["tests"] += 1
        row["count"] += int(properties.get("promise_cases", count))
        row["failed"] += max(int(properties.get("promise_failures", 0)), int(broken))
    return sorted(rows.values(), key=lambda row: (len(row["promise"]), row["promise"]))
