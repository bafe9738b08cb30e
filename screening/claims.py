"""Who works on which chunk: claims in a folder, which any number of processes on any machines may share.

A claim is a file, made exclusively, whose time its owner moves on now and then.  It is a hint that saves double work, not
a lock: what is right does not depend on it, since a chunk is written once by whoever comes first (`artifacts.write_once`),
and a claim without signs of life is taken over.  No clocks are compared: a claim is dead when an observer has seen no
sign of life for `patience` seconds of its own, or when its process has ended on the observer's machine.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

BEAT = 2.0  # seconds between signs of life
_POLL = 0.5  # seconds between looks at chunks that others work on


class Claims:
    """The claims of this process, and its view of those of others.

    Args:
        folder: made where it is not there.
        patience: seconds without a sign of life after which a claim is dead.
    """

    def __init__(self, folder: Path, *, patience: float = 20.0):
        self.folder, self.patience = folder, patience
        folder.mkdir(parents=True, exist_ok=True)
        self._me = f"{platform.node()} {os.getpid()} {_start_of(os.getpid())}"
        self._held: set[str] = set()
        self._seen: dict[str, tuple[float, float]] = {}  # name -> (time of the file, when this process first saw it)
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="gfm-claims", daemon=True)
        self._thread.start()

    def take(self, name: str) -> bool:
        """Claim `name`: True where nobody alive has it."""
        path = self.folder / name
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                if not self._is_dead(path):
                    return False
                path.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w") as handle:
                handle.write(self._me)
            with self._guard:
                self._held.add(name)
            return True
        return False

    def release(self, name: str) -> None:
        """Give a claim back, done or not."""
        with self._guard:
            self._held.discard(name)
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Give back all claims, and end."""
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._guard:
                held = list(self._held)
            for name in held:
                try:
                    os.utime(self.folder / name)
                except OSError:
                    pass  # taken over while we were stopped: what we write then comes second

    def _is_dead(self, path: Path) -> bool:
        try:
            changed, owner = path.stat().st_mtime, path.read_text()
        except OSError:
            return False  # released this moment: the next look tells
        host, _, process = owner.partition(" ")
        if host == platform.node() and process.count(" ") == 1:
            number, start = process.split(" ")
            if start and _start_of(int(number)) != start:
                return True
        seen, since = self._seen.get(path.name, (None, 0.0))
        if seen != changed:
            self._seen[path.name] = (changed, time.monotonic())
            return False
        return time.monotonic() - since > self.patience


def shared_out(
    total: int, claims: Claims, is_done: Callable[[int], bool], *, rank: int = 0, world: int = 1
) -> Iterator[Iterator[int]]:
    """Waves of numbers below `total` for this process to do, each claimed, until all are done by somebody.

    A process begins with every `world`-th, so that processes rarely meet, then takes what others have not begun, from the
    end.  The next waves, after the work of the one before has been done, hold what others have left: they wait for those
    at work, and take over from the dead.  The caller releases each claim.

    Args:
        is_done: whether the work of a number is there.
    """

    def claimed(number: int) -> bool:
        if is_done(number) or not claims.take(str(number)):
            return False
        if is_done(number):  # done between the two looks
            claims.release(str(number))
            return False
        return True

    yield filter(claimed, chain(range(rank, total, world), range(total - 1, -1, -1)))
    missing = [number for number in range(total - 1, -1, -1) if not is_done(number)]
    while missing:
        time.sleep(_POLL)
        yield filter(claimed, missing)
        missing = [number for number in missing if not is_done(number)]


def _start_of(process: int) -> str:
    """When a process of this machine began, "" where there is none or the system does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
