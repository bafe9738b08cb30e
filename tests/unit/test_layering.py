"""The shape of the code: floors, sizes, packages, and what importing costs."""

import ast
import subprocess
import sys
import tomllib

import pytest
from support import ROOT

FLOORS = {
    "_version": 0, "errors": 0, "native": 0, "compiling": 0, "artifacts": 0, "fields": 0, "config": 0, "ranks": 0,
    "neighbors": 1, "graph": 1, "verlet": 1,
    "encoders": 2, "repulsion": 2, "landmarks": 2, "vibrations": 2, "stiffness": 2, "heads": 2,
    "uncertainty": 2, "model": 2, "derivatives": 2, "mechanics": 2,
    "checkpoint": 3, "predictor": 3, "selfcheck": 3, "structures": 3, "dispersion": 3, "comparison": 3, "data": 3,
    "calculator": 4, "commands": 5, "cli": 5,
}  # fmt: skip
PARTS = ("train", "finetune", "screening", "benchmarks")
PACKAGE = ROOT / "gfm_calc"
MODULES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = MODULES + sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def shown(path) -> str:
    return str(path.relative_to(ROOT))


def room(path) -> str:
    """The first name below the package: what has a floor."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path) -> dict[str, int]:
    """{room: line} of the imports of our own package in a module, also those inside functions."""
    found = {}
    package = ("gfm_calc", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        for name in names:
            if name[0] == "gfm_calc" and len(name) > 1:
                found[name[1]] = node.lineno
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=shown)
def test_a_lower_floor_never_imports_a_higher_one(path):
    own = room(path)
    assert own in FLOORS, f"{own} has no floor yet: enter it in FLOORS"
    for other, line in rooms_imported(path).items():
        if other in PARTS:
            assert own in ("cli", "commands"), f"line {line}: the core imports {other}"
        elif other in FLOORS:
            lazy_save = (own, other) == (
                "checkpoint",
                "selfcheck",
            )  # saving asks the finished model for its golden numbers
            assert FLOORS[other] <= FLOORS[own] or lazy_save, f"line {line}: floor {FLOORS[own]} imports {other}"


def test_floors_are_of_modules_that_exist():
    assert set(FLOORS) == {room(path) for path in MODULES} - {"__init__"}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("path", EVERYTHING, ids=shown)
def test_a_reader_can_hold_it_in_the_head(path):
    text = path.read_text()
    assert text.count("\n") < 400, "400 lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    for function in functions(tree):
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{function.name}: {length} lines"
        arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        count = len([a for a in arguments if a not in ("self", "cls")])
        assert count <= 8 or function.name in PUBLIC_DOORS or is_operation(function), (
            f"{function.name}: {count} arguments"
        )


# What a user calls has a named option for each choice; the inside has at most eight arguments.
PUBLIC_DOORS = ("__init__",)


def is_operation(function) -> bool:
    """An operation of torch, whose arguments are tensors in a row."""
    return any("custom_op" in ast.unparse(decorator) for decorator in function.decorator_list)


def public_names(tree):
    """Top-level functions and classes and their methods; the setter of a property is described by its getter."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
                yield from (n for n in methods if not any(isinstance(d, ast.Attribute) for d in n.decorator_list))


OVERRIDES = {"forward", "reset"}  # described by what they override


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_public_names_have_docstrings(path):
    bare = [
        n.name
        for n in public_names(ast.parse(path.read_text()))
        if not ast.get_docstring(n) and n.name not in OVERRIDES
    ]
    assert not bare


def test_the_list_of_packages_is_the_tree():
    listed = set(CONFIG["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    for part in PARTS:
        found |= {"gfm_calc." + ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / part).rglob("__init__.py")}
    assert listed == found


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_importing_is_light():
    ran = run(
        "import sys, gfm_calc; print([m for m in ('torch', 'ase', 'numpy', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_process_that_reads_files_does_without_torch():
    ran = run("import sys, gfm_calc.data.readers.isolated; print('torch' in sys.modules)")
    assert ran.stdout.strip() == "False", ran.stderr


def test_lazy_names_are_there():
    ran = run(
        "import gfm_calc; print(len([getattr(gfm_calc, name) for name in gfm_calc.__all__]), gfm_calc.__version__)"
    )
    assert ran.returncode == 0, ran.stderr
    assert "no attribute 'Calculator'" in run("from gfm_calc import __getattr__ as g; g('Calculator')").stderr


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_imported_under_our_name(part):
    assert run(f"import gfm_calc.{part}").returncode == 0
    refused = run(f"import {part}")
    assert refused.returncode != 0
    assert f"import this package as gfm_calc.{part}" in refused.stderr
