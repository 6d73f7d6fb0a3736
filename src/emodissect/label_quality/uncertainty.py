"""How sure a held-out score is: resampled images for an interval, re-paired images for a p-value."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from emodissect.errors import UserError
from emodissect.label_quality.metrics import Metric


class Interval(NamedTuple):
    low: Float[Tensor, " neuron"]
    high: Float[Tensor, " neuron"]


def bootstrap_interval(
    metric: Metric,
    activations: Float[Tensor, "image neuron"],
    presence: Float[Tensor, "image neuron"],
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of ``metric`` over images drawn with replacement, the same images for all neurons."""
    _checked(draws, level)
    generator = np.random.default_rng(seed)
    images = len(activations)
    found = []
    for _ in range(draws):
        rows = torch.from_numpy(generator.integers(0, images, images))
        found.append(metric(activations[rows], presence[rows]))
    low, high = torch.stack(found).quantile(
        torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0
    )
    return Interval(low, high)


def pearson_interval(r: Float[Tensor, " neuron"], images: int, level: float = 0.95) -> Interval:
    """Fisher's interval of a correlation: tanh(atanh r ± z / sqrt(N - 3)). All of [-1, 1] below four images."""
    _checked(1, level)
    if images < 4:
        return Interval(torch.full_like(r, -1), torch.full_like(r, 1))
    width = float(stats.norm.ppf((1 + level) / 2)) / (images - 3) ** 0.5
    centre = r.clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    return Interval((centre - width).tanh(), (centre + width).tanh())


def pearson_p(r: Float[Tensor, " neuron"], images: int) -> Float[Tensor, " neuron"]:
    """One-sided p-value of a correlation above 0, by Student's t with N - 2 degrees of freedom."""
    if images < 3:
        return torch.ones_like(r)
    t = r * ((images - 2) / (1 - r.square()).clamp(min=1e-15)).sqrt()
    return torch.from_numpy(stats.t.sf(t.numpy(), images - 2)).to(r)


def permutation_p_value(
    metric: Metric,
    activations: Float[Tensor, "image neuron"],
    presence: Float[Tensor, "image neuron"],
    draws: int = 199,
    seed: int = 0,
) -> Float[Tensor, " neuron"]:
    """One-sided: (1 + how often re-paired images score at least as high) / (1 + draws)."""
    _checked(draws, 0.5)
    generator = np.random.default_rng(seed)
    observed = metric(activations, presence)
    reached = torch.zeros_like(observed)
    for _ in range(draws):
        order = torch.from_numpy(generator.permutation(len(presence)))
        reached += metric(activations, presence[order]) >= observed - 1e-12
    return (1 + reached) / (1 + draws)


def _checked(draws: int, level: float) -> None:
    if draws < 1 or not 0 < level < 1:
        raise UserError(f"draws={draws}, level={level}: at least one draw, and a level between 0 and 1 such as 0.95.")
