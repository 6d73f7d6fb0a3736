"""Calibrates logits with one temperature and a bias for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import minimum
from emodissect.studies.baselines.baseline import Predictor


@dataclass(frozen=True)
class TemperatureAndBiases:
    """Logits / T + b, fitted by maximum likelihood, with a unit Gaussian prior on each bias.

    Source: Guo et al. 2017 (vector scaling with one temperature).
    """

    name: ClassVar[str] = "temperature"
    words: ClassVar[str] = "a temperature and class biases"
    is_fitted: ClassVar[bool] = True

    def fit(self, kept: EditedLogits) -> tuple[Predictor, str]:
        logits, labels = kept.before.logits.double(), kept.before.labels
        classes = logits.shape[1]

        def loss(parameters: Tensor) -> Tensor:
            prior = (parameters[1:] ** 2).sum() / (2 * len(labels))
            return cross_entropy(changed(logits, parameters), labels) + prior

        found = minimum([loss], torch.zeros(1 + classes, dtype=torch.float64), iterations=100)
        return lambda other: changed(other.before.logits.double(), found).float(), f"T = {float(found[0].exp()):.2f}"


def changed(logits: Float[Tensor, "image class"], parameters: Float[Tensor, " number"]) -> Tensor:
    """Logits / T + b, from (log T, b)."""
    return logits / parameters[0].exp() + parameters[1:]
