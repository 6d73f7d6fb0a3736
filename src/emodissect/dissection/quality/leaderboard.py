"""Ranks all labelling methods, similarities and explanations alike, on every kind of ground truth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emodissect.core.statistics import wilson
from emodissect.dissection.explanations import Explainer, Explanation, Part
from emodissect.dissection.quality.explained import Parts, live, mean_interval
from emodissect.dissection.quality.metrics import cosine

PREDICTS, MOVED = "predicts", "predicts changes"
"""The tests without ground truth: predicting activations of held-out images, and changes under interventions."""


@dataclass(frozen=True)
class Case:
    """A layer of neurons that methods are tested on.

    Attributes:
        parts: activations and scores on the split images.
        truths: by test name, the true concepts of each neuron; neurons without any are left out of the test.
        changes: changes in activations and scores under interventions, if available.
        predicts: whether the prediction of held-out activations is also a test.
    """

    parts: Parts
    truths: Mapping[str, Bool[Tensor, "neuron concept"]] = field(default_factory=dict)
    changes: Part | None = None
    predicts: bool = False


def leaderboard(cases: Sequence[Case], explainers: Mapping[str, Explainer]) -> pd.DataFrame:
    """Ranks methods by their mean rank over the tests; a test pools the live neurons of all cases that have it.

    Every method gets the same images, two quarters of the probe set.

    Returns:
        One row per method, best first: method, rank (mean over tests, 1 is best, ties averaged), for each test TEST,
        TEST_low, TEST_high, and seconds (CPU time over all cases). Tests with ground truth give the share of neurons
        whose top concept (largest absolute weight) is true and has a positive weight, with Wilson's 95 % interval; the
        others are means over neurons of the correlation of predicted and true activations (``predicts``) or of the
        cosine of their changes (``predicts changes``).
    """
    rows = []
    for name, explainer in explainers.items():
        hits: dict[str, list[Tensor]] = {}
        scores: dict[str, list[Tensor]] = {}
        began = time.process_time()
        for case in cases:
            found = explainer(case.parts.proposing, case.parts.deciding)
            counted = live(case.parts)
            for test, truth in case.truths.items():
                known = counted & truth.any(1)
                hits.setdefault(test, []).append(names_truth(found, truth)[known])
            if case.predicts:
                scores.setdefault(PREDICTS, []).append(found.correlation(case.parts.held_out)[counted])
            if case.changes is not None:
                predicted = found.change(case.changes.scores)
                scores.setdefault(MOVED, []).append(cosine(case.changes.activations, predicted)[counted])
        row: dict[str, object] = {"method": name}
        for test, parts in hits.items():
            right, neurons = int(torch.cat(parts).sum()), len(torch.cat(parts))
            low, high = wilson(right, neurons) if neurons else (np.nan, np.nan)
            row |= {test: right / max(neurons, 1), f"{test}_low": low, f"{test}_high": high}
        for test, parts in scores.items():
            row |= mean_interval(test, torch.cat(parts))
        rows.append({**row, "seconds": time.process_time() - began})
    frame = pd.DataFrame(rows)
    ranks = frame[compared_by(frame)].rank(ascending=False).mean(axis=1)
    frame.insert(1, "rank", ranks)
    return frame.sort_values("rank", kind="stable").reset_index(drop=True)


def compared_by(frame: pd.DataFrame) -> list[str]:
    """The names of a leaderboard's tests."""
    return [str(name) for name in frame if f"{name}_low" in frame]


def names_truth(found: Explanation, truth: Bool[Tensor, "neuron concept"]) -> Bool[Tensor, " neuron"]:
    """Whether each neuron's concept with the largest absolute weight is true and has a positive weight."""
    weights: Float[Tensor, "neuron concept"] = found.matrix()
    heaviest = weights.abs().argmax(1, keepdim=True)
    return (truth.gather(1, heaviest) & (weights.gather(1, heaviest) > 0))[:, 0]
