"""Which process of a distributed run this is, and how its group of processes ends."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist


def first_rank() -> bool:
    """Whether this process is the one that writes files and logs; always so outside a distributed run."""
    return getattr(rank_zero_only, "rank", 0) == 0


def leave_group() -> None:
    """Ends this process's part in a distributed run, if it has one: gloo's threads may abort Python's own end."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
