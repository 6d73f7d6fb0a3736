"""Predict a neuron's activation from its label: a calibrated concept score, fitted on some images, scored on others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.quality.metrics import pearson
from emodissect.dissection.quality.presence import Calibration

_STEEPNESS = torch.logspace(-1, 1.5, 8, dtype=torch.float64)  # in standard deviations of the score
_THRESHOLD = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
_REFINEMENTS = 3
_NEURONS = 64  # fitted at a time


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
    parts = zip(activations.split(_NEURONS, dim=1), scores.split(_NEURONS, dim=1), strict=True)
    fitted = [_calibrated(a, c) for a, c in parts]
    return Calibration(*(torch.cat(values) for values in zip(*fitted, strict=True)))


def _calibrated(activations: Tensor, scores: Tensor) -> Calibration:
    middle, spread = scores.double().mean(0), scores.double().std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    standard = ((scores - middle) / spread).float()
    a = (activations - activations.mean(0)).float()

    def fit(k: Tensor, t: Tensor) -> Tensor:
        """The correlation up to the activations' norm, which is the same for every k and t."""
        simulated = torch.sigmoid(k.float() * (standard - t.float()))
        simulated -= simulated.mean(0)
        length = simulated.norm(dim=0)
        return torch.where(length > 0, (a * simulated).sum(0) / length.clamp(min=1e-30), 0.0).double()

    steepness = torch.ones_like(middle)
    threshold = torch.zeros_like(middle)
    best = torch.full_like(middle, -torch.inf)
    factors, shifts = _STEEPNESS, _THRESHOLD
    for _ in range(1 + _REFINEMENTS):
        around, beside = steepness.clone(), threshold.clone()
        for factor in factors:
            for shift in shifts:
                k, t = around * factor, beside + shift
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
    """Pearson between held-out activations and their simulation."""
    return pearson(activations, calibration.predict(scores))
