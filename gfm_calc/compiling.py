"""torch.compile as this package uses it: dynamic sizes, one graph, and code that computes what is written.

The compiler of torch 2.13 forgets, when it joins loops on the CPU, that a loop reads what a sum into the same memory leaves
there, and may put it before the sum: gradients through gathered rows (`index_select`, whose derivative is such a sum) are then
silently wrong, from a size on (pytorch/pytorch issue 185509, mended after 2.13 by pull request 185873).  Until such a version
is the oldest that we support, each compilation runs with the forgotten step put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_TAG = "gfm-calc: names of mutated buffers"  # what was compiled and kept on disk without it may be wrong
_turn = threading.RLock()  # the compiler's class is one for all threads


def compiled(function: Callable[..., Any]) -> Any:
    """The same function, compiled when it is first called, and again for inputs of another kind."""
    return torch.compile(function, dynamic=True, fullgraph=True, backend=_backend)


@contextmanager
def gradients_inside() -> Iterator[None]:
    """Within it, functions that are compiled may take gradients themselves."""
    from torch._dynamo import config

    with config.patch(trace_autograd_ops=True):
        yield


def _backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
    from torch._inductor.compile_fx import compile_fx

    with _mended():  # here for the key by which backward passes are kept on disk
        return compile_fx(graph, inputs, inner_compile=_inner)


def _inner(*args: Any, **kwargs: Any) -> Any:
    """Compile one graph; that of a backward pass comes later than `_backend`, when it is first needed."""
    from torch._inductor.compile_fx import compile_fx_inner

    with _mended():
        return compile_fx_inner(*args, **kwargs)


@contextmanager
def _mended() -> Iterator[None]:
    from torch._inductor.scheduler import SchedulerNode

    tag = torch.compiler.config.cache_key_tag.removesuffix(_TAG) + _TAG
    with _turn, torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        forgetful = SchedulerNode.recompute_size_and_body

        def recompute(self: SchedulerNode, *args: Any, **kwargs: Any) -> None:
            forgetful(self, *args, **kwargs)
            self.set_read_writes(self.read_writes.rename(self.mutation_renames))

        SchedulerNode.recompute_size_and_body = recompute  # type: ignore[method-assign]
        try:
            yield
        finally:
            SchedulerNode.recompute_size_and_body = forgetful  # type: ignore[method-assign]
