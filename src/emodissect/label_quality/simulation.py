"""Predict a neuron's activation from its label: a calibrated concept score, fitted on some images, scored on others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.errors import UserError
from emodissect.label_quality.metrics import pearson

_STEEPNESS = torch.logspace(-1, 1.5, 8, dtype=torch.float64)  # in standard deviations of the score
_THRESHOLD = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
_REFINEMENTS = 3


class Calibration(NamedTuple):
    """s = sigmoid(alpha (score + beta))."""

    alpha: Float[Tensor, " neuron"]
    beta: Float[Tensor, " neuron"]

    def predict(self, scores: Float[Tensor, "image neuron"]) -> Float[Tensor, "image neuron"]:
        """The simulated activations, up to the affine map that a correlation does not see."""
        return torch.sigmoid(self.alpha * (scores.double() + self.beta))


def calibrate(activations: Float[Tensor, "image neuron"], scores: Float[Tensor, "image neuron"]) -> Calibration:
    """alpha > 0 and beta of each neuron that make the simulated activations correlate best with the real ones.

    A grid over steepness and threshold in the score's own standard deviations, refined three times around its best
    cell: two parameters a neuron, no gradient, the same answer everywhere. alpha > 0: a label may not be inverted.
    """
    if len(activations) < 3 or activations.shape != scores.shape:
        raise UserError(
            f"Activations {tuple(activations.shape)}, scores {tuple(scores.shape)}: a calibration needs at least three "
            "images and the label's score beside each neuron."
        )
    scores = scores.double()
    middle, spread = scores.mean(0), scores.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    standard = (scores - middle) / spread
    steepness = torch.ones_like(middle)
    threshold = torch.zeros_like(middle)
    best = torch.full_like(middle, -torch.inf)
    factors, shifts = _STEEPNESS, _THRESHOLD
    for _ in range(1 + _REFINEMENTS):
        around, beside = steepness.clone(), threshold.clone()
        for factor in factors:
            for shift in shifts:
                k, t = around * factor, beside + shift
                fit = pearson(activations, torch.sigmoid(k * (standard - t)))
                better = fit > best + 1e-12
                best = torch.where(better, fit, best)
                steepness = torch.where(better, k, steepness)
                threshold = torch.where(better, t, threshold)
        width = 0.25 if len(shifts) == len(_THRESHOLD) else float(shifts[-1]) / 2
        shifts = torch.tensor([-width, 0.0, width], dtype=torch.float64)
        factors = torch.tensor([2.0**-width, 1.0, 2.0**width], dtype=torch.float64) ** 2
    return Calibration(steepness / spread, -(middle + threshold * spread))


def simulation_score(
    calibration: Calibration, activations: Float[Tensor, "image neuron"], scores: Float[Tensor, "image neuron"]
) -> Float[Tensor, " neuron"]:
    """Pearson between held-out activations and their simulation."""
    return pearson(activations, calibration.predict(scores))
