"""Measures how much of a known ground truth a similarity recovers: top-1, top-3 and meta-AUPRC."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.statistics import wilson
from emodissect.dissection.quality.metrics import average_precision


@dataclass(frozen=True)
class Share:
    """A figure in [0, 1] with its interval over neurons and its chance level."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Recovery:
    """How much of the ground truth a similarity recovers, over ``neurons`` neurons that have one."""

    neurons: int
    top1: Share
    top3: Share
    meta_auprc: Share

    def row(self) -> dict[str, float]:
        """A flat table row: ``top1``, ``top1_low``, ``top1_high``, ``top1_chance``, …"""
        flat: dict[str, float] = {"neurons": self.neurons}
        for name in ("top1", "top3", "meta_auprc"):
            share: Share = getattr(self, name)
            flat |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
            flat[f"{name}_chance"] = share.chance
        return flat


def recovery(
    similarity: Float[Tensor, "neuron concept"],
    truth: Bool[Tensor, "neuron concept"],
    draws: int = 200,
    seed: int = 0,
) -> Recovery:
    """Recovery of the ground truth, over the neurons with at least one true concept.

    - top1, top3: the share of neurons with a true concept among the one or three most similar;
    - meta-AUPRC: average precision of the similarity as a score for the truth over the neuron x concept matrix (so
      similarities must be comparable across neurons).

    Intervals: Wilson for the shares, a bootstrap over neurons for the meta-AUPRC. Chance: a random order of the
    concepts (hypergeometric), and the share of true entries.

    Raises:
        UserError: the shapes differ, or no neuron has a true concept.
    """
    if similarity.shape != truth.shape:
        raise UserError(
            f"Similarity has shape {tuple(similarity.shape)} and truth {tuple(truth.shape)}: both must be (neuron, "
            "concept)."
        )
    known = truth.any(1)
    if not known.any():
        raise UserError("No neuron has a true concept, so there is nothing to recover.")
    similarity, truth = similarity[known], truth[known]
    neurons, concepts = truth.shape
    ranked = truth.gather(1, similarity.argsort(dim=1, descending=True, stable=True))
    generator = np.random.default_rng(seed)
    drawn = torch.from_numpy(generator.integers(0, neurons, (draws, neurons)))
    per_neuron = truth.sum(1)

    def share(hit: Bool[Tensor, " neuron"], guesses: int) -> Share:
        low, high = wilson(int(hit.sum()), neurons)
        missed = [comb(concepts - int(n), min(guesses, concepts)) for n in per_neuron]
        chance = 1 - float(np.mean(missed)) / comb(concepts, min(guesses, concepts))
        return Share(float(hit.double().mean()), low, high, chance)

    def precision(rows: Tensor) -> float:
        return float(average_precision(similarity[rows].flatten()[:, None], truth[rows].flatten()[:, None]))

    low, high = _percentiles(torch.tensor([precision(rows) for rows in drawn], dtype=torch.float64))
    meta = Share(precision(torch.arange(neurons)), low, high, float(truth.double().mean()))
    return Recovery(neurons, share(ranked[:, 0], 1), share(ranked[:, :3].any(1), 3), meta)


def best_concepts(presence_similarity: Float[Tensor, "neuron concept"]) -> Bool[Tensor, "neuron concept"]:
    """Ground truth from annotations: each neuron's most similar true concept; none if no similarity is above 0."""
    best: Int64[Tensor, " neuron"] = presence_similarity.argmax(1)
    truth = torch.zeros(presence_similarity.shape, dtype=torch.bool)
    truth[torch.arange(len(best)), best] = presence_similarity.amax(1) > 0
    return truth


def _percentiles(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return float(low), float(high)
