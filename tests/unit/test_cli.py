"""The command line as a program: start-up, exit codes, streams.  Each case is a process of its own, so there are few."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from ase.build import molecule
from ase.io import write
from support import ROOT

from gfm_calc import __version__
from gfm_calc.cli import COMMANDS, main


def gfm(*arguments, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gfm_calc.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)


def test_help_is_light():
    """`gfm --help`, and that of every command, load neither torch nor ASE nor numpy."""
    names = [name for module in COMMANDS for name in (["models", "heads"] if module == "models" else [module])]
    lines = "; ".join(f"main([{name!r}, '--help'])" for name in names)
    code = f"import sys; from gfm_calc.cli import main; main(['--help']); {lines}; print(sorted(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0 and not done.stderr
    assert all(done.stdout.count(f"usage: gfm {name} ") == 1 for name in names)
    assert done.stdout.count("example:\n  gfm ") == len(names)
    modules = done.stdout.splitlines()[-1]
    assert "'gfm_calc.commands.phonons'" in modules
    assert not any(f"'{heavy}'" in modules for heavy in ("torch", "ase", "numpy", "phonopy", "matplotlib"))


def test_predict_in_a_process(tmp_path, saved_model):
    write(tmp_path / "in.xyz", [molecule("H2O"), molecule("CH3OH")])
    arguments = (
        "predict",
        tmp_path / "in.xyz",
        "-o",
        tmp_path / "out.extxyz",
        "--model",
        saved_model,
        "--head",
        "first",
    )
    done = gfm(*arguments, "--threads", 1)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1) and "2 structures" in done.stdout
    assert "\r" not in done.stderr  # no bar where there is no terminal
    done = gfm(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gfm: error: {tmp_path}/out.extxyz: exists; add --overwrite to replace it\n"


def test_a_closed_pipe_is_quiet(saved_model):
    """Whoever reads our output goes away before there is any: no complaint, and the code that shells give for it."""
    command = [sys.executable, "-m", "gfm_calc.cli", "heads", str(saved_model), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    process.stdout.close()
    assert process.wait(timeout=120) == 141 and process.stderr.read() == ""


def test_an_interrupt_leaves_nothing_behind(tmp_path, saved_model):
    """Ctrl-C in the middle of a long prediction: one line, code 130, the old file as it was, no leftovers."""
    write(tmp_path / "in.xyz", [molecule("C6H6")] * 20_000)
    (tmp_path / "out.extxyz").write_text("what was there")
    arguments = ("predict", tmp_path / "in.xyz", "-o", tmp_path / "out.extxyz", "--overwrite", "--model", saved_model)
    command = [sys.executable, "-m", "gfm_calc.cli", *map(str, arguments), "--head", "first"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not list(tmp_path.glob(".out.extxyz.*.tmp")):
        assert process.poll() is None, process.communicate()
    while process.poll() is None:  # Python drops an interrupt that comes while an object is being destroyed
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)  # a busy machine takes its time to end it, and a second one would end it otherwise
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "gfm: error: interrupted\n")
    assert (tmp_path / "out.extxyz").read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.xyz", "out.extxyz"]


def test_names_that_the_terminal_cannot_show(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gfm_calc.cli", "predict", b"caf\xe9.xyz", "-o", "o.xyz", "--model", "Å"],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr and "\\xc5" in done.stderr


# ---- in process ----


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"gfm-calc {__version__}\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["predict", "in.xyz"], "the following arguments are required: -o/--output"),
        (["predict", "in.xyz", "-o", "out.xyz", "--dtype", "bf16"], "invalid choice: 'bf16'"),
        (["predict", "in.xyz", "-o", "out.xyz", "--threads", "0"], "must be a whole number above zero, not '0'"),
        (["relax", "in.xyz", "-o", "out.xyz", "--fmax", "-1"], "must be above zero, not '-1'"),
        (["relax", "in.xyz", "-o", "out.xyz", "--fmax", "nan"], "must be a number, not 'nan'"),
        (["relax", "in.xyz", "-o", "out.xyz", "--optimizer", "fire2"], "invalid choice: 'fire2'"),
        (["md", "in.xyz", "-o", "out.traj"], "required: --temperature"),
        (["md", "in.xyz", "-o", "out.traj", "--temperature", "300", "--steps", "1e3"], "whole number"),
        (["phonons", "in.xyz", "-o", "out", "--supercell", "2", "2"], "expected 3 arguments"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(capsys, arguments, words):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("gfm: error: ") and words in err and err.rstrip().endswith("--help")


def test_bench_is_loaded_only_when_called(capsys):
    assert main(["bench", "--help"]) == 0
    assert "usage: gfm bench" in capsys.readouterr().out
