"""Which process of a distributed run this is."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only


def first_rank() -> bool:
    """Whether this process is the one that writes files and logs; always so outside a distributed run."""
    return getattr(rank_zero_only, "rank", 0) == 0
