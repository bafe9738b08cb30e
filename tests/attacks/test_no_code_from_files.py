"""R4: the shipped tree holds nothing that can run what a file says, reach the network or change torch for everybody."""

import ast

import pytest
from support import ROOT

PARTS = ("gfm_calc", "train", "finetune", "screening", "benchmarks", "examples")
SOURCES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "torch.load", "np.fromregex", "marshal.loads",
    "shelve.open", "yaml.load", "os.system", "joblib.load", "dill.loads", "cloudpickle.loads", "dcp.load",
    "torch.distributed.checkpoint.load", "torch.hub.load", "torch.jit.load", "urllib.request.urlopen", "requests.get",
    "torch.set_default_dtype", "torch.set_default_device", "torch.set_num_threads", "torch.use_deterministic_algorithms",
    "torch.set_grad_enabled_globally", "torch.set_float32_matmul_precision", "np.random.seed", "random.seed",
    "torch.autograd.set_detect_anomaly", "torch.set_num_interop_threads", "torch.set_flush_denormal",
}  # fmt: skip
FORBIDDEN_IMPORTS = (
    "pickle.", "marshal.", "shelve.", "dill.", "cloudpickle.", "joblib.", "requests.", "urllib.request.", "socket.", "http.",
    "ftplib.", "torch.distributed.checkpoint.",
)  # fmt: skip
# Programs with a process of their own may set up torch in it.
OWN_PROCESS = ("benchmarks/", "gfm_calc/commands/", "train/cli.py")


def called(node: ast.Call) -> str:
    parts = []
    target = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return ".".join([target.id, *reversed(parts)]) if isinstance(target, ast.Name) else ""


@pytest.mark.promise("R4")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source(path):
    name = str(path.relative_to(ROOT))
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            call = called(node)
            setting = call.startswith(("torch.set_", "torch.use_", "np.random.", "random."))
            if call in FORBIDDEN_CALLS and not (setting and name.startswith(OWN_PROCESS)):
                found.append(f"line {node.lineno}: {call}()")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", None) is not False:
                    found.append(f"line {node.lineno}: allow_pickle")
                if keyword.arg == "weights_only":
                    found.append(f"line {node.lineno}: weights_only")
                if keyword.arg == "shell" and getattr(keyword.value, "value", None) is not False:
                    found.append(f"line {node.lineno}: shell=")
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found += [f"line {node.lineno}: import {n}" for n in names if f"{n}.".startswith(FORBIDDEN_IMPORTS)]
    assert not found


def test_there_are_sources():
    assert len(SOURCES) > 30
