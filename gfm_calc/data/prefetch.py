"""An iterator whose items are made ahead, in a thread."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_END = object()


def worked_ahead(items: Iterable[T], device: torch.device, *, depth: int) -> Iterator[T]:
    """`prefetched` where a core is free for its thread, else the items as they are asked for.

    Args:
        device: on which the items are used.
    """
    yield from prefetched(items, depth=depth) if is_core_free(device) else items


def is_core_free(device: torch.device) -> bool:
    """Whether a thread can work beside torch's: on two cores, two threads that wait for each other at every product and a third
    make a training step take twice as long."""
    if device.type != "cpu":
        return True
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores > torch.get_num_threads()


def prefetched(items: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """The items of `items`, of which a thread keeps up to `depth` ready; an error of theirs is raised where it occurred.

    The thread ends when the iterator is closed, or forgotten.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
    stop = threading.Event()

    def hand_over(item: tuple[Any, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                hand_over((item, None))
                if stop.is_set():
                    return
            hand_over((_END, None))
        except BaseException as error:  # it is raised again where the items are used
            hand_over((_END, error))

    thread = threading.Thread(target=work, name="gfm-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()
