"""Readers that rely on a library which a damaged file can crash or hang run in a process of their own.

The process gets a path and sends raw frames back as JSON and bytes; when it dies or falls silent, that is an error about
the file.  It is kept for the next file.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from ... import errors
from ...errors import GFMError, InputFileError, InvalidStructureError, one_line
from .options import Layout, ReadOptions, Units
from .raw import RawFrame

SILENCE = 120.0  # seconds; a file that gives no frame for so long is damaged
READERS = ("hdf5_groups",)  # modules that may run in the process
_HEAD = struct.Struct("<QQ")  # bytes of JSON, bytes of arrays
_MAX_MESSAGE = 1 << 34
_FLUSH = 64  # frames
_END = {"kind": "end"}
_PARTS = ("atomic_numbers", "positions", "cell", "pbc")
_idle: list[_Reader] = []


def frames(module: str, path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """What the reader `module` yields, read elsewhere.

    Raises:
        InputFileError: the process died or fell silent.
    """
    reader = _take()
    finished = False
    frame = 0
    try:
        reader.ask({"module": module, "path": str(path), "options": asdict(options)})
        layouts: dict[int, Layout] = {}
        while True:
            head, data = reader.message()
            if head == _END:
                finished = True
                return
            found = _unpacked(head, data, path, layouts)
            frame += 1
            yield found
            if head.get("last"):
                finished = True
                return
    except _Gone as gone:
        raise InputFileError(f"{path}, frame {frame}: its reader {gone}: damaged?") from None
    finally:
        if finished:
            _idle.append(reader)
        else:
            reader.kill()


class _Gone(Exception):
    """The process does not answer."""


class _Reader:
    """The process, as seen from this one."""

    def __init__(self) -> None:
        paths = os.pathsep.join(entry for entry in sys.path if entry)
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            # -P: a module lying in the working directory, beside the data, is not imported.
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request."""
        try:
            _pipe(self._process.stdin).write(json.dumps(request).encode() + b"\n")
            _pipe(self._process.stdin).flush()
        except OSError as error:
            raise _Gone(self._cause()) from error

    def message(self) -> tuple[dict[str, Any], bytes]:
        """The next message."""
        sizes = _HEAD.unpack(self._read(_HEAD.size))
        if max(sizes) > _MAX_MESSAGE:
            raise _Gone("sent nonsense")
        return json.loads(self._read(sizes[0])), self._read(sizes[1])

    def is_alive(self) -> bool:
        """Whether it can be asked again."""
        return self.owner == os.getpid() and self._process.poll() is None

    def kill(self) -> None:
        """End it."""
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
            _pipe(self._process.stdin).close()
            _pipe(self._process.stdout).close()

    def _read(self, size: int) -> bytes:
        pipe = _pipe(self._process.stdout)
        parts = []
        while size:
            if not select.select([pipe], [], [], SILENCE)[0]:
                raise _Gone(f"has been silent for {SILENCE:g} s")
            part = os.read(pipe.fileno(), min(size, 1 << 20))
            if not part:
                raise _Gone(self._cause())
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _cause(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"died of signal {-code}" if code < 0 else f"ended with code {code}"


def _take() -> _Reader:
    while _idle:
        reader = _idle.pop()
        if reader.is_alive():
            return reader
    return _Reader()


@atexit.register
def _close() -> None:
    while _idle:
        _idle.pop().kill()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


# ---- in the process ----


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        module = request["module"]
        if module not in READERS:
            return
        path, options = Path(request["path"]), ReadOptions(**request["options"])
        known: dict[int, Layout] = {}
        try:
            for number, found in enumerate(import_module(f".{module}", __package__).frames(path, options)):
                _send(answers, *_packed(found, known))
                if number % _FLUSH == 0:
                    answers.flush()
            _send(answers, _END, b"")
        except GFMError as error:
            _send(answers, *_packed(error, known, last=True))
        except Exception as error:  # a damaged file may make a reader raise whatever comes
            text = f"{path}: cannot be read ({type(error).__name__}: {one_line(error)}): damaged?"
            _send(answers, *_packed(InputFileError(text), known, last=True))
        answers.flush()


def _send(answers: IO[bytes], head: Mapping[str, Any], data: bytes) -> None:
    text = json.dumps(head).encode()
    answers.write(_HEAD.pack(len(text), len(data)) + text + data)


# ---- frames and errors as JSON and bytes ----


def _packed(
    found: RawFrame | GFMError, known: dict[int, Layout], *, last: bool = False
) -> tuple[dict[str, Any], bytes]:
    """A layout is described once and then named by its number; `known` are those that were."""
    if isinstance(found, InvalidStructureError):
        where = {"source": found.source, "frame": found.frame, "atom": found.atom}
        return {"kind": type(found).__name__, "text": found.reason, "where": where, "last": last}, b""
    if isinstance(found, GFMError):
        return {"kind": type(found).__name__, "text": str(found), "where": {}, "last": last}, b""
    arrays = {f"_{name}": getattr(found, name) for name in _PARTS} | dict(found.arrays)
    scalars: dict[str, Any] = {}
    for name, value in found.scalars.items():
        if isinstance(value, np.ndarray):
            arrays[f"@{name}"] = value
        else:
            scalars[name] = value.item() if isinstance(value, np.generic) else value
    described = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    head = {
        "kind": "frame", "arrays": described, "scalars": scalars, "layout": id(found.layout), "group": found.group,
        "frame": found.frame,
    }  # fmt: skip
    if id(found.layout) not in known:
        known[id(found.layout)] = found.layout  # held, so that its id stays its own
        head["is"] = asdict(found.layout)
    return head, b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())


def _unpacked(head: dict[str, Any], data: bytes, path: Path, layouts: dict[int, Layout]) -> RawFrame | GFMError:
    if head["kind"] != "frame":
        return getattr(errors, head["kind"])(head["text"], **head["where"])
    arrays, at = {}, 0
    for name, dtype, shape in head["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, np.dtype(dtype), count, at).reshape(shape)
        at += arrays[name].nbytes
    scalars = head["scalars"] | {name[1:]: arrays.pop(name) for name in list(arrays) if name.startswith("@")}
    parts = {name: arrays.pop(f"_{name}") for name in _PARTS}
    if "is" in head:
        layouts[head["layout"]] = _layout(head["is"])
    return RawFrame(
        **parts, scalars=scalars, arrays=arrays, layout=layouts[head["layout"]], group=head["group"],
        source=path.name, path=str(path), frame=head["frame"],
    )  # fmt: skip


def _layout(given: dict[str, Any]) -> Layout:
    keys = {name: None if given[name] is None else tuple(given[name]) for name in ("energy", "forces", "stress")}
    return Layout(name=given["name"], units=Units(**given["units"]), pairs=given["pairs"], **keys)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
