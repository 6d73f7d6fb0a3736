"""Measures label stability under changes that should not matter: other images, top_k, prompt template or CLIP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.statistics import wilson


@dataclass(frozen=True)
class Agreement:
    """The share of neurons with the same label in two labellings, its Wilson interval, chance level and kappa."""

    neurons: int
    share: float
    low: float
    high: float
    chance: float
    kappa: float


def agreement(
    first: Int64[Tensor, " neuron"],
    second: Int64[Tensor, " neuron"],
    counted: Bool[Tensor, " neuron"] | None = None,
) -> Agreement:
    """Agreement of two labellings over the neurons in ``counted`` (e.g. live ones; None: all).

    Chance is the expected agreement of two independent labellings with these concept shares: the sum over concepts of
    the product of the shares. kappa = (share - chance) / (1 - chance) (Cohen 1960): 0 is chance, 1 is perfect.

    Raises:
        UserError: the labellings differ in their number of neurons, or no neuron is counted.
    """
    if first.shape != second.shape or (counted is not None and counted.shape != first.shape):
        raise UserError(
            f"There are labels for {len(first)} and {len(second)} neurons: both must be of the same neurons, in order."
        )
    if counted is not None:
        first, second = first[counted], second[counted]
    neurons = len(first)
    if not neurons:
        raise UserError("No neurons are counted: is the whole layer dead?")
    same = int((first == second).sum())
    low, high = wilson(same, neurons)
    concepts = int(torch.max(first.max(), second.max())) + 1
    shares = [torch.bincount(labels, minlength=concepts).double() / neurons for labels in (first, second)]
    chance = float(shares[0] @ shares[1])
    kappa = (same / neurons - chance) / (1 - chance) if chance < 1 else 1.0
    return Agreement(neurons, same / neurons, low, high, chance, kappa)


def halves(
    ids: Int64[Tensor, " image"], seed: int = 0, share: float = 0.5
) -> tuple[Bool[Tensor, " image"], Bool[Tensor, " image"]]:
    """Masks of a random split of the images into two parts; it depends on image ids, not on the order of the rows.

    ``share``: fraction of images in the first part, rounded down, with at least one image in each part if there are
    two.
    """
    if not 0 < share < 1:
        raise UserError(f"share={share} must be the first part's fraction of the images, between 0 and 1.")
    images = len(ids)
    taken = min(max(int(images * share), 1), max(images - 1, 1))
    rows = ids.argsort()[torch.from_numpy(np.random.default_rng(seed).permutation(images)[:taken])]
    first = torch.zeros(images, dtype=torch.bool)
    first[rows] = True
    return first, ~first
