"""How processes of a job notice that one of them is lost: signs of life, and last words, in a store."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

BEAT = 0.5  # seconds between signs of life
FAILED = "rank {} failed: {}"  # what a process leaves for the others
_SILENT = "rank {} has given no sign of life for {:g} s: stopped, or its machine is lost"


class Watch:
    """Signs of life: each process gives its own, and looks for that of the next one.

    Silence of the next process for `patience` seconds ends this one, hence (by its launcher or by its closed
    connections) the job.
    """

    def __init__(self, rank: int, world: int, connect: Callable[[], dist.Store], patience: float):
        self._rank, self._world, self._patience = rank, world, patience
        self._store = connect()
        self._own = connect()  # the thread's: a store's client serves one caller at a time
        self._ended = threading.Event()
        self._round = time.monotonic()  # when the store answered last
        self._first = ""  # host and number of the process that has the store
        self.giving_up = False  # this thread is about to end the process, and says why
        self._threads = [
            threading.Thread(target=work, name="gfm-watch", daemon=True) for work in (self._run, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        """Give signs of life, and look for those of the next process."""
        other, seen, since, count = (self._rank + 1) % self._world, b"", time.monotonic(), 0
        try:
            self._own.set(f"process{self._rank}", f"{platform.node()} {os.getpid()}")
            self._first = self._own.get("process0").decode()
            while not self._ended.wait(BEAT):
                count += 1
                self._own.set(f"beat{self._rank}", str(count))
                self._end_with_the_others()
                found = self._own.get(f"beat{other}") if self._own.check([f"beat{other}"]) else b""
                self._round = time.monotonic()
                if found != seen:
                    seen, since = found, time.monotonic()
                elif time.monotonic() - since > self._patience:
                    process = self._own.get(f"process{other}").decode() if self._own.check([f"process{other}"]) else ""
                    self._give_up(_SILENT.format(other, self._patience), process)
        except RuntimeError:
            if not self._ended.wait(2 * BEAT):
                self._give_up("rank 0 died without a word: killed, or out of memory", tell=False)

    def _end_with_the_others(self) -> None:
        """Another process has said why the job fails: this one may wait for it in a collective."""
        said = self._own.get("failed").decode() if self._own.check(["failed"]) else ""
        if said and not said.startswith(FAILED.format(self._rank, "")) and not self._ended.wait(BEAT):
            self.giving_up = True
            os._exit(1)

    def _guard(self) -> None:
        """The store is in the process of rank 0: if that one is stopped, questions to it are never answered."""
        while not self._ended.wait(BEAT):
            if time.monotonic() - self._round > self._patience + 2 * BEAT:
                self._give_up(_SILENT.format(0, self._patience), self._first, tell=False)

    def _give_up(self, reason: str, process: str = "", *, tell: bool = True) -> None:
        """End this process, and a stopped one of this machine, which would keep its launcher waiting."""
        if self._ended.is_set() or self.giving_up:
            return
        self.giving_up = True
        said = (self._posted() or reason) if tell else reason
        if tell:
            self.post(said)
        print(f"gfm: error: rank {self._rank}: {said}", file=sys.stderr, flush=True)
        host, _, number = process.partition(" ")
        if host == platform.node() and int(number) != os.getpid():
            try:
                os.kill(int(number), signal.SIGKILL)
            except OSError:
                pass  # it is gone
        os._exit(1)

    def post(self, message: str) -> None:
        """Leave a message for the other processes; the first one stays."""
        try:
            self._store.compare_set("failed", "", message)
        except RuntimeError:
            pass  # there is nobody to tell

    def is_said(self, message: str) -> bool:
        """Whether another process has said the same, and this one need not repeat it."""
        said = self._posted() or ""
        return said.endswith(message) and not said.startswith(FAILED.format(self._rank, ""))

    def _posted(self) -> str | None:
        try:
            return self._store.get("failed").decode() if self._store.check(["failed"]) else None
        except RuntimeError:
            return None

    def diagnosis(self) -> str | None:
        """Why a collective failed: what another process said, or whose signs of life have ended."""
        try:
            before: list[bytes] = []
            for attempt in range(2):
                if said := self._posted():
                    return said
                beats = [
                    self._store.get(f"beat{k}") if self._store.check([f"beat{k}"]) else b"" for k in range(self._world)
                ]
                if attempt:
                    silent = [str(k) for k in range(self._world) if beats[k] == before[k] and k != self._rank]
                    if said := self._posted():
                        return said
                    return f"rank {', '.join(silent)} died without a word: killed, or out of memory" if silent else None
                before = beats
                time.sleep(4 * BEAT)
        except RuntimeError:
            return "rank 0 died without a word: killed, or out of memory"
        return None

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
