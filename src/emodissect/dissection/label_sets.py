"""Confidence sets of labels: the concepts that remain plausible when the probe images are resampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.progress import tracked
from emodissect.core.statistics import wilson
from emodissect.similarity import Similarity, constant_neurons

LEVELS = (0.5, 0.8, 0.95)
"""Levels at which coverage is reported."""


def label_shares(
    activations: Float[Tensor, "image neuron"],
    scores: Float[Tensor, "image concept"],
    similarity: Similarity,
    resamples: int = 200,
    seed: int = 0,
    progress: str = "",
) -> Float[Tensor, "neuron concept"]:
    """The share of resamples in which each concept is a neuron's label; 0 for constant neurons.

    A resample draws as many images as there are, with replacement (Efron's bootstrap), the same for all neurons of the
    layer. This captures variation over images, but no systematic errors of the scores.

    Args:
        activations, scores: of the probe images, rows in the same order.
        resamples: number of resamples; each takes as long as one labelling.

    >>> from emodissect.similarity import Pearson
    >>> scores = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    >>> label_shares(scores[:, [1]], scores, Pearson(), resamples=20).tolist()
    [[0.0, 1.0, 0.0]]
    """
    if resamples < 1:
        raise UserError(f"resamples={resamples} must be an integer >= 1, e.g. 200.")
    generator = np.random.default_rng(seed)
    images, neurons = activations.shape
    counts = torch.zeros(neurons, scores.shape[1])
    every = torch.arange(neurons)
    for _ in tracked(range(resamples), progress):
        rows = torch.from_numpy(generator.integers(0, images, images))
        counts[every, similarity(scores[rows], activations[rows]).argmax(1)] += 1
    counts[constant_neurons(activations)] = 0
    return counts / resamples


def label_sets(shares: Float[Tensor, "neuron concept"], level: float = 0.95) -> Bool[Tensor, "neuron concept"]:
    """The smallest set of concepts that contains a neuron's label in at least ``level`` of the resamples.

    Ties go to the lower column.

    >>> label_sets(torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.96, 0.04]])).tolist()
    [[True, True, True], [False, True, False]]
    """
    if not 0 < level <= 1:
        raise UserError(f"level={level} must be in (0, 1], e.g. 0.95.")
    order = shares.argsort(dim=1, descending=True, stable=True)
    ranked = shares.gather(1, order).double()
    before = ranked.cumsum(1) - ranked
    kept = (before < level - 1e-6) & (ranked > 0)  # tolerance for rounding in sums of shares
    return torch.zeros_like(kept).scatter_(1, order, kept)


def set_words(shares: Float[Tensor, "neuron concept"], names: Sequence[str], level: float = 0.95) -> list[str]:
    """Each neuron's set as text, the most frequent concept first, e.g. ``Smile, Twinkling or Crinkled Eyes``."""
    sets = label_sets(shares, level)
    order = shares.argsort(dim=1, descending=True, stable=True)
    return [", ".join(names[c] for c in row.tolist() if held[c]) for row, held in zip(order, sets, strict=True)]


def coverage_table(
    shares: Float[Tensor, "neuron concept"],
    truth: Bool[Tensor, "neuron concept"],
    kinds: Sequence[str],
) -> pd.DataFrame:
    """How often a set contains a true concept, for neurons with ground truth.

    Returns:
        One row per kind and level: kind, level, neurons, covered (share whose set contains a true concept) with its
        Wilson interval (low, high), size (mean number of concepts in the set). Kinds without ground truth have no row.
    """
    rows = []
    for kind in dict.fromkeys(kinds):
        own = torch.tensor([k == kind for k in kinds]) & truth.any(1)
        if not own.any():
            continue
        for level in LEVELS:
            sets = label_sets(shares[own], level)
            hits, neurons = int((sets & truth[own]).any(1).sum()), int(own.sum())
            low, high = wilson(hits, neurons)
            size = float(sets.sum(1).double().mean())
            rows.append(
                {"kind": kind, "level": level, "neurons": neurons, "covered": hits / neurons, "low": low, "high": high,
                 "size": size}
            )  # fmt: skip
    return pd.DataFrame(rows)
