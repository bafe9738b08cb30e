"""Functions run in processes of their own, which may die, or be ended, without taking us along."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import GFMError, one_line

_READY = None  # a worker's first word
_LOOK_EVERY = 1.0  # s, whether the process that started a worker is still there


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that are started in the block do not import from the working directory, where a file of the user's data
    may be called pickle.py."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


class WorkerDiedError(GFMError):
    """A call whose process died, or took too long and was ended."""


def run_in_processes(
    function: Callable[..., Any], calls: Iterable[tuple], processes: int, *, timeout: float | None = None
) -> Iterator[tuple[int, Any]]:
    """`function(*call)` for every call of a module's function; (number of the call, result) in the order in which they come.

    A call that raised gives its exception as the result; one whose process died twice, or that took longer than `timeout`
    seconds, a `WorkerDiedError`, and another process takes over.  (A process may be ended for the sake of another: a
    call is tried once more before it gets the blame.)  Processes are started afresh, not forked, so that threads and MPI
    of this one do not matter; they end with the iterator.  `calls` is read as processes become free.
    With `processes` 0 the calls are made in this process, which is not safe from them.
    """
    if not processes:
        yield from ((number, _called(function, call)) for number, call in enumerate(calls))
        return
    again: deque[tuple[int, tuple]] = deque()
    tried: set[int] = set()
    numbered = enumerate(calls)
    workers: list[_Worker] = []

    def following() -> tuple[int, tuple] | None:
        return again.popleft() if again else next(numbered, None)

    try:
        while True:
            for worker in [worker for worker in workers if worker.call is None]:
                if (item := following()) is not None:
                    worker.give(*item)
            while len(workers) < max(1, processes) and (item := following()) is not None:
                workers.append(_Worker(function, timeout))
                workers[-1].give(*item)
            busy = [worker for worker in workers if worker.call is not None]
            if not busy:
                return
            wait([worker.connection for worker in busy], min(worker.patience() for worker in busy))
            for worker in busy:
                call = worker.call
                if (answer := worker.answer()) is None:
                    continue
                if isinstance(answer[1], _Died) and call is not None and call[0] not in tried:
                    tried.add(call[0])
                    again.append(call)
                    continue
                tried.discard(answer[0])
                yield answer
            workers = [worker for worker in workers if not worker.ended]
    finally:
        for worker in workers:
            worker.end()


class _Died(WorkerDiedError):
    """The process ended by itself, or by somebody else."""


class _Worker:
    """One process, and the call (its number and arguments) that it works on."""

    def __init__(self, function: Callable[..., Any], timeout: float | None):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = (function.__module__, function.__qualname__)
        self._process = context.Process(target=_serve, args=(*name, theirs, os.getpid()), daemon=True)
        with safe_path():
            self._process.start()
        theirs.close()
        self._timeout = timeout
        self._ready, self._since = False, 0.0
        self.call: tuple[int, tuple] | None = None
        self.ended = False

    def give(self, number: int, call: tuple) -> None:
        """Hand over a call."""
        self.call, self._since = (number, call), time.monotonic()
        try:
            self.connection.send(call)
        except OSError:
            pass  # it has died: `answer` will notice

    def patience(self) -> float:
        """Seconds until its call has taken too long; the time that the process needs to start is not counted."""
        if self._timeout is None or not self._ready:
            return 60.0
        return max(0.0, self._since + self._timeout - time.monotonic())

    def answer(self) -> tuple[int, Any] | None:
        """(number, result) of its call, if that is over."""
        outcome = (
            WorkerDiedError(f"took longer than {self._timeout:g} s") if self._timeout and not self.patience() else None
        )
        try:
            while self.connection.poll():
                found = self.connection.recv()
                if found is not _READY:
                    return self._finish(found[0])
                self._ready, self._since = True, time.monotonic()
        except (EOFError, OSError):
            self._process.join(60)
            outcome = _Died(f"its process died ({_cause(self._process.exitcode)})")
        if outcome is None:
            return None
        self.end()
        return self._finish(outcome)

    def _finish(self, result: Any) -> tuple[int, Any]:
        assert self.call is not None  # only workers with a call are asked
        (number, _), self.call = self.call, None
        return number, result

    def end(self) -> None:
        """End the process at once."""
        self.ended = True
        self._process.kill()
        self._process.join()
        self.connection.close()


def _cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _called(function: Callable[..., Any], call: tuple) -> Any:
    try:
        return function(*call)
    except Exception as error:
        return error


def _end_with(parent: int) -> None:
    """End this process soon after the one that started it, which may have been killed in the middle of a call of ours."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def _serve(module: str, name: str, connection: Connection, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True, name="gfm-parent").start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process, before anything that reads it: we are many
    function = getattr(import_module(module), name)
    connection.send(_READY)
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        answer = _called(function, call)
        try:
            connection.send((answer,))
        except BrokenPipeError:
            return  # nobody is there to hear it
        except Exception as error:  # an answer that cannot be sent
            connection.send((GFMError(one_line(error)),))
