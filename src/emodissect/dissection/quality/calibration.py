"""Calibrates concept scores: to presence, from the scores alone, or to a neuron's activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.quality.metrics import pearson

_ROUNDS = 200
_FLOOR = 1e-3
_STEEPNESS = torch.logspace(-1, 1.5, 8, dtype=torch.float64)  # per standard deviation of the score
_THRESHOLD = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
_REFINEMENTS = 3
_NEURONS = 64  # neurons per block


class Calibration(NamedTuple):
    """s = sigmoid(alpha (score + beta)), with one alpha and beta per column."""

    alpha: Float[Tensor, " column"]
    beta: Float[Tensor, " column"]

    def predict(self, scores: Float[Tensor, "image column"]) -> Float[Tensor, "image column"]:
        """The calibrated scores, in [0, 1]."""
        return torch.sigmoid(self.alpha * (scores.double() + self.beta))


def calibrated_presence(scores: Float[Tensor, "image concept"]) -> Calibration:
    """alpha and beta of each concept, from its scores alone, without neurons or annotations.

    A concept's scores are modelled as a mixture of two normal distributions with equal variance, for images without and
    with the concept, fitted by expectation maximisation starting from the quartiles. The posterior probability of the
    upper component is a sigmoid with alpha = (m1 - m0) / v and beta = log(w / (1 - w)) / alpha - (m0 + m1) / 2, for
    means m0 < m1, variance v and weight w of the upper component; it is 0.5 where both components are equally likely.
    Scores that are constant or do not separate get alpha = 0: a presence of 0.5 everywhere.
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


def calibrate(activations: Float[Tensor, "image neuron"], scores: Float[Tensor, "image neuron"]) -> Calibration:
    """alpha > 0 and beta of each neuron that maximise the correlation of simulated and real activations.

    A grid search over steepness and threshold, in standard deviations of the score, refined three times around the best
    cell: two parameters per neuron, no gradients, deterministic. alpha > 0, so that labels cannot be inverted.
    """
    if len(activations) < 3 or activations.shape != scores.shape:
        raise UserError(
            f"Activations have shape {tuple(activations.shape)} and scores {tuple(scores.shape)}: a calibration needs "
            "at least three images, and the score of each neuron's label."
        )
    parts = zip(activations.split(_NEURONS, dim=1), scores.split(_NEURONS, dim=1), strict=True)
    fitted = [_calibrated(a, c) for a, c in parts]
    return Calibration(*(torch.cat(values) for values in zip(*fitted, strict=True)))


def _calibrated(activations: Tensor, scores: Tensor) -> Calibration:
    middle, spread = scores.double().mean(0), scores.double().std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    standard = ((scores - middle) / spread).float()
    a = (activations - activations.mean(0)).float()

    def fit(k: Tensor, t: Tensor) -> Tensor:
        """The correlation times the activations' norm, which is the same for every k and t."""
        simulated = torch.sigmoid(k.float() * (standard - t.float()))
        simulated -= simulated.mean(0)
        length = simulated.norm(dim=0)
        return torch.where(length > 0, (a * simulated).sum(0) / length.clamp(min=1e-30), 0.0).double()

    steepness = torch.ones_like(middle)
    threshold = torch.zeros_like(middle)
    best = torch.full_like(middle, -torch.inf)
    factors, shifts = _STEEPNESS, _THRESHOLD
    for _ in range(1 + _REFINEMENTS):
        k_centre, t_centre = steepness.clone(), threshold.clone()
        for factor in factors:
            for shift in shifts:
                k, t = k_centre * factor, t_centre + shift
                found = fit(k, t)
                better = found > best + 1e-12
                best = torch.where(better, found, best)
                steepness = torch.where(better, k, steepness)
                threshold = torch.where(better, t, threshold)
        width = 0.25 if len(shifts) == len(_THRESHOLD) else float(shifts[-1]) / 2
        shifts = torch.tensor([-width, 0.0, width], dtype=torch.float64)
        factors = torch.tensor([2.0**-width, 1.0, 2.0**width], dtype=torch.float64) ** 2
    return Calibration(steepness / spread, -(middle + threshold * spread))


def simulation_score(
    calibration: Calibration, activations: Float[Tensor, "image neuron"], scores: Float[Tensor, "image neuron"]
) -> Float[Tensor, " neuron"]:
    """Pearson correlation of held-out activations and their simulation."""
    return pearson(activations, calibration.predict(scores))
