"""Do labels survive a change that should not matter: another half of the images, top_k, template or CLIP?"""

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
    """The share of neurons with the same label both times: Wilson interval, chance, and kappa (0 chance, 1 perfect)."""

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
    """How many neurons keep their label, over those ``counted`` (live ones, say; None: all).

    Chance is what two labellings with these concept shares would agree on if they knew nothing of each other:
    sum over concepts of the product of the shares; kappa = (share - chance) / (1 - chance) (Cohen 1960).

    Raises:
        UserError: the labellings are of different neurons, or none is counted.
    """
    if first.shape != second.shape or (counted is not None and counted.shape != first.shape):
        raise UserError(f"Labels of {len(first)} and {len(second)} neurons: both must be of the same neurons in order.")
    if counted is not None:
        first, second = first[counted], second[counted]
    neurons = len(first)
    if not neurons:
        raise UserError("No neuron is counted: is the whole layer dead?")
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
    """Two disjoint parts that together are all images; by image id, so the order of the rows does not matter.

    ``share``: of the first part, rounded down but leaving at least one image on either side where there are two.
    """
    if not 0 < share < 1:
        raise UserError(f"share={share}: the first part's share of the images, between 0 and 1.")
    images = len(ids)
    taken = min(max(int(images * share), 1), max(images - 1, 1))
    rows = ids.argsort()[torch.from_numpy(np.random.default_rng(seed).permutation(images)[:taken])]
    first = torch.zeros(images, dtype=torch.bool)
    first[rows] = True
    return first, ~first
