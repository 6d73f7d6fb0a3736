"""How much of a known truth a similarity recovers: top-1, top-3 and meta-AUPRC, with intervals, against chance."""

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
    """A figure in [0, 1] with its interval over neurons, and what guessing gives."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Recovery:
    """Recovery of the truth by a similarity over ``neurons`` neurons that have one."""

    neurons: int
    top1: Share
    top3: Share
    meta_auprc: Share

    def row(self) -> dict[str, float]:
        """Flat, for a table: ``top1``, ``top1_low``, ``top1_high``, ``top1_chance``, …"""
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
    """Of the neurons with at least one true concept:

    - top1, top3: the share with a true concept among the one or three most similar;
    - meta-AUPRC: average precision of the similarity as a score for the truth over the neuron x concept matrix of
      these neurons (it asks that similarities of different neurons compare).

    Intervals: Wilson's of the shares, a bootstrap over neurons of the meta-AUPRC. Chance: a random order of the
    concepts (hypergeometric), and the share of true entries.

    Raises:
        UserError: shapes differ, or no neuron has a truth.
    """
    if similarity.shape != truth.shape:
        raise UserError(f"Similarity {tuple(similarity.shape)}, truth {tuple(truth.shape)}: both are neuron x concept.")
    known = truth.any(1)
    if not known.any():
        raise UserError("No neuron has a known concept: there is no truth to recover.")
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
    """The truth by annotation: each neuron's most correlated true concept; none where no correlation is above 0."""
    best: Int64[Tensor, " neuron"] = presence_similarity.argmax(1)
    truth = torch.zeros(presence_similarity.shape, dtype=torch.bool)
    truth[torch.arange(len(best)), best] = presence_similarity.amax(1) > 0
    return truth


def _percentiles(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return float(low), float(high)
