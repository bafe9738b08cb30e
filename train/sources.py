"""What a process draws its training structures from: datasets on the disk, or memory."""

from __future__ import annotations

from collections.abc import Sequence

from gfm_calc.data.distributed import DistributedStore
from gfm_calc.data.loader import Source
from gfm_calc.train.parallel import Ranks
from gfm_calc.train.placement import Placement
from gfm_calc.train.preparation import Head


def training_sources(heads: Sequence[Head], ranks: Ranks, placement: Placement, *, memory: bool) -> list[Source]:
    """The training structures of all heads of the run, in their order; to be called by all processes.

    Args:
        memory: read those of the heads that live here into memory now.  Under mpirun the ranks of a head's group share
            one copy; otherwise, and where a head has fewer structures than ranks, each has its own.
    """
    found: list[Source] = [head.select("train") for head in heads]
    if not memory:
        return found
    group = placement.group_of(ranks.rank)
    comm = ranks.communicator(placement.groups[group])
    for number in placement.heads[group]:
        dataset, indices = heads[number].dataset, heads[number].sides["train"]
        shared = comm if comm is not None and comm.size <= len(indices) else None
        found[number] = DistributedStore(dataset, shared, indices=indices)
    return found
