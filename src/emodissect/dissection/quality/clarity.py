"""Clarity: the similarity of a neuron's exemplars to each other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def clarity(
    embeddings: Float[Tensor, "image dimension"], top_rows: Int64[Tensor, "rank neuron"]
) -> Float[Tensor, " neuron"]:
    """Mean pairwise cosine of a neuron's exemplars: (|mean v|^2 - 1/n) n / (n - 1) over n unit embeddings v.

    1: all exemplars are the same; the mean cosine of the probe set: no more similar than random images (polysemantic,
    or noise). 0 for a single exemplar.
    """
    n = len(top_rows)
    if n < 2:
        return torch.zeros(top_rows.shape[1])
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    centre = torch.nn.functional.embedding_bag(top_rows.t().contiguous(), unit, mode="mean")
    return (centre.square().sum(1) - 1 / n) * n / (n - 1)


def random_clarity(
    embeddings: Float[Tensor, "image dimension"], exemplars: int, draws: int = 1000, seed: int = 0
) -> Float[Tensor, " draw"]:
    """The clarity of random image sets of the same size: the null for a neuron's clarity."""
    generator = torch.Generator().manual_seed(seed)
    size = min(exemplars, len(embeddings))
    rows = torch.stack([torch.randperm(len(embeddings), generator=generator)[:size] for _ in range(draws)], 1)
    return clarity(embeddings, rows)
