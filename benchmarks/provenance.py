"""Who measured what, where and with which versions: the part that every result file shares.

A result is one JSON object {"benchmark", "format_version", "provenance", ...}.  It names the command as a user would type
it, versions and the kind of machine; never a host, a user or a local path.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gfm_calc import __version__
from gfm_calc.artifacts import Artifact, canonical_json, parse_json, write_file
from gfm_calc.checkpoint import open_model
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError, InputFileError, one_line

FORMAT_VERSION = 1
_PACKAGES = ("torch", "torch_geometric", "ase", "numpy", "vesin")
_ABSOLUTE = re.compile(r"""(?:^|[\s="'(,])(?:/|~/|[A-Za-z]:\\)[\w.+-]+[/\\]""")


def provenance(
    command: Sequence[str],
    *,
    model: str | Path | None,
    threads: int | Sequence[int],
    extra_versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The "provenance" table of a result.

    Args:
        command: the words after `gfm bench`, as typed; absolute paths are cut to their last part.
        model: packaged name or directory of what was measured; None where no model was.
        threads: CPU threads of the measured processes.
        extra_versions: of peers and optional packages, name -> version.
    """
    return {
        "command": public_command(["gfm", "bench", *command]),
        "date": date.today().isoformat(),
        "machine": machine(),
        **(ids_of(model) if model is not None else {"model_id": "", "weights": ""}),
        "threads": threads if isinstance(threads, int) else list(threads),
        "versions": {**versions(), **(extra_versions or {})},
    }


def ids_of(model: str | Path) -> dict[str, str]:
    """What tells one saved model from another: `model_id`, which changes with the head cards that quote results, and `weights`,
    which does not."""
    artifact = open_model(model)
    return {"model_id": artifact.digest[:16], "weights": weights_id(artifact)}


def weights_id(artifact: Artifact) -> str:
    """The digest that stands for a saved model's weights alone."""
    return str(artifact.files["weights.safetensors"]["sha256"])[:16]


def public_command(words: Iterable[str]) -> str:
    """A command line without local paths: of an absolute or parent path, also behind `name=`, the last part stays."""
    shown = map(_public_word, words)
    return " ".join(shlex.quote(word) if " " in word else word for word in shown)


def _public_word(word: str) -> str:
    name, equals, value = word.partition("=") if "=" in word else ("", "", word)
    if value.startswith(("/", "~", "..")) or re.match(r"[A-Za-z]:\\", value):
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1] or "."
    return f"{name}{equals}{value}"


def versions() -> dict[str, str]:
    """Versions of Python, gfm-calc and what it computes with."""
    found = {"python": platform.python_version(), "gfm-calc": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The kind of machine: processor, cores this process may use, accelerator, operating system and load; no names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": cores,
        "system": f"{sys.platform} {platform.machine()}",
    }
    if hasattr(os, "getloadavg"):
        # A neighbour on the same cores spoils timings: let the reader see it.
        found["load_at_end"] = round(os.getloadavg()[0], 2)
    import torch

    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """Model name with family, model and vector extensions, since virtual machines give little else away."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = fields.get("model name", platform.machine())
    flags = set(fields.get("flags", "").split())
    widest = [label for flag, label in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_tile", "AMX")) if flag in flags]
    numbers = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return ", ".join(part for part in (name, numbers, " ".join(widest)) if part)


def write_result(path: Path | str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, atomically.

    Raises:
        GFMError: it names a local path (it would be published), holds NaN, or cannot be written.
    """
    for where, text in _strings(result, ""):
        if _ABSOLUTE.search(text):
            raise GFMError(
                f"{path}: result field {where} names a local path ({text!r}); results are published without them"
            )
    try:
        write_file(Path(path), canonical_json(dict(result)))
    except ValueError as error:
        raise GFMError(f"{path}: the result holds NaN or inf ({one_line(error)})") from error
    except OSError as error:
        raise GFMError(f"{path}: cannot be written ({error.strerror})") from error


def read_result(path: Path | str) -> dict[str, Any]:
    """A result file as a dict.

    Raises:
        InputFileError: missing or unreadable.  CorruptFileError: not JSON.  ConfigError: not a benchmark result.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror})") from error
    result = parse_json(data, path)
    if not isinstance(result, dict):
        raise CorruptFileError(f"{path}: not a benchmark result")
    missing = [key for key in ("benchmark", "format_version", "provenance") if key not in result]
    if missing:
        raise ConfigError(f"{path}: not a benchmark result (no {', '.join(missing)})")
    return result


def read_results(folder: Path | str) -> list[dict[str, Any]]:
    """Every result file of a folder, by name; InputFileError where there is none."""
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise InputFileError(f"{folder}: holds no result files (*.json)")
    return [read_result(path) for path in paths]


def result(benchmark: str, provenance_table: Mapping[str, Any], **content: Any) -> dict[str, Any]:
    """The frame of every result."""
    return {"benchmark": benchmark, "format_version": FORMAT_VERSION, "provenance": dict(provenance_table), **content}


def _strings(value: Any, where: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{where}.{key} (key)", str(key)
            yield from _strings(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, f"{where}[{index}]")
