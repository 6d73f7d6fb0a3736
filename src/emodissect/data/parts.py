"""Random stratified splits, by image or by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


def stratified_parts(
    labels: Int64[Tensor, " image"], shares: Sequence[float], seed: int
) -> list[Int64[Tensor, " part"]]:
    """Rows of each part, ascending: each class is shuffled by the seed and split in the given shares."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(shares)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = [round(sum(shares[: part + 1]) / total * len(rows)) for part in range(len(shares))]
        for part, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            parts[part].append(rows[start:end])
    return [torch.cat(rows).sort().values if rows else torch.empty(0, dtype=torch.int64) for rows in parts]


def grouped_parts(
    labels: Int64[Tensor, " image"], groups: Sequence[str], shares: Sequence[float], seed: int
) -> list[Int64[Tensor, " part"]]:
    """Rows of each part, ascending: no group is divided, and the classes are close to the given shares.

    Groups are assigned from the largest to the smallest, ties in a seeded order, each to the part that lacks the
    group's classes most: the one with the largest sum over classes of n (t - h) / t, where the group has n images of
    the class, and the part has h of its target of t.

    Args:
        shares: of the parts; they need not sum to 1.

    >>> [part.tolist() for part in grouped_parts(torch.tensor([0, 0, 0, 0]), ["a", "a", "b", "c"], (0.5, 0.5), seed=0)]
    [[0, 1], [2, 3]]
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    classes, class_of = np.unique(labels.numpy(), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group_of, class_of), 1)
    due = np.outer(np.asarray(shares) / sum(shares), counts.sum(axis=0))
    held = np.zeros_like(due)
    order = np.random.default_rng(seed).permutation(len(names))
    part_of = np.zeros(len(names), dtype=np.int64)
    for group in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:
        part = int(np.argmax(((due - held) / np.maximum(due, 1e-9)) @ counts[group]))
        part_of[group] = part
        held[part] += counts[group]
    return [torch.from_numpy(np.flatnonzero(part_of[group_of] == part)) for part in range(len(shares))]
