"""From a scorer's scores to presence: how likely each concept is in each image, without anybody having told."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 200
_FLOOR = 1e-3


class Calibration(NamedTuple):
    """s = sigmoid(alpha (score + beta)), one pair a column."""

    alpha: Float[Tensor, " column"]
    beta: Float[Tensor, " column"]

    def predict(self, scores: Float[Tensor, "image column"]) -> Float[Tensor, "image column"]:
        """The calibrated scores, in [0, 1]."""
        return torch.sigmoid(self.alpha * (scores.double() + self.beta))


def calibrated_presence(scores: Float[Tensor, "image concept"]) -> Calibration:
    """alpha and beta of each concept, from its scores alone: neither neurons nor annotations are looked at.

    The scores of a concept are taken for a mixture of two normal distributions of one variance, of images without and
    with it, fitted by expectation maximisation from the quartiles. The chance that an image belongs to the upper one is
    a sigmoid, with alpha = (m1 - m0) / v and beta = log(w / (1 - w)) / alpha - (m0 + m1) / 2 for the means m0 < m1,
    the variance v and the upper one's share w. It passes 0.5 where both are as likely. Scores that do not vary, or do
    not fall apart at all, give alpha = 0: a presence of 0.5 everywhere.
    """
    scores = scores.double()
    middle, spread = scores.mean(0), scores.std(0, correction=0)
    spread = torch.where(spread > 1e-12, spread, 1.0)
    z = (scores - middle) / spread
    low, high = z.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    variance, share = torch.full_like(low, 0.5), torch.full_like(low, 0.5)
    for _ in range(_ROUNDS):
        upper = torch.sigmoid(_steepness(low, high, variance) * z + _offset(low, high, variance, share))
        weight = upper.sum(0).clamp(_FLOOR, len(z) - _FLOOR)
        high = (upper * z).sum(0) / weight
        low = ((1 - upper) * z).sum(0) / (len(z) - weight)
        variance = (upper * (z - high).square() + (1 - upper) * (z - low).square()).mean(0).clamp(min=_FLOOR)
        share = (weight / len(z)).clamp(_FLOOR, 1 - _FLOOR)
    alpha = _steepness(low, high, variance)
    apart = alpha > 1e-6
    shift = torch.where(apart, _offset(low, high, variance, share) / torch.where(apart, alpha, 1.0), 0.0)
    return Calibration(torch.where(apart, alpha / spread, 0.0), torch.where(apart, shift * spread, 0.0) - middle)


def _steepness(low: Tensor, high: Tensor, variance: Tensor) -> Tensor:
    return (high - low).clamp(min=0) / variance


def _offset(low: Tensor, high: Tensor, variance: Tensor, share: Tensor) -> Tensor:
    return torch.log(share / (1 - share)) - (high.square() - low.square()) / (2 * variance)
