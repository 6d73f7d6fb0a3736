"""Rank, barrier and shutdown of distributed runs."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist


def first_rank() -> bool:
    """Whether this process is rank 0, which writes files and logs; True outside a distributed run."""
    return rank() == 0


def rank() -> int:
    """The rank of this process; 0 outside a distributed run."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def run_alone() -> None:
    """Declare that this process does not belong to a process group.

    Before a group exists, Lightning takes ``RANK``, ``LOCAL_RANK`` and ``SLURM_PROCID`` for this process's rank. A
    scheduler's shell or another program may have set them, and a process with rank 1 would write nothing.
    """
    rank_zero_only.rank = 0  # type: ignore[attr-defined]


def wait_for_others() -> None:
    """Wait until every process of a distributed run has reached this call."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def leave_group() -> None:
    """Destroy the process group, if there is one: gloo's threads may otherwise abort Python's shutdown."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
