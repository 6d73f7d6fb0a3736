"""Which process of a distributed run this is, and how its process group ends."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist


def first_rank() -> bool:
    """Whether this process is the one that writes files and logs; always so outside a distributed run."""
    return rank() == 0


def rank() -> int:
    """Which process of a distributed run this is; 0 outside one."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def run_alone() -> None:
    """Declares that this process belongs to no group.

    Before a group exists, Lightning takes ``RANK``, ``LOCAL_RANK`` and ``SLURM_PROCID`` for this process's place in
    one. A scheduler's shell or another program may have set them: a process that believed it was rank 1 would
    write nothing.
    """
    rank_zero_only.rank = 0  # type: ignore[attr-defined]


def wait_for_others() -> None:
    """Returns once every process of a distributed run has reached this call."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def leave_group() -> None:
    """Ends this process's part in a distributed run, if it has one: gloo's threads may abort Python's shutdown."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
