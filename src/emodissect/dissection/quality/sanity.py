"""Two sanity tests of label metrics: a metric must fall when labels go missing and when labels are added at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.quality.metrics import COMPARISON_ONLY, METRICS, OF_TOP, Metric, at_alpha, cosine

RECTIFIED = "cosine, rectified"


def missing_labels(presence: Float[Tensor, "image neuron"], seed: int = 0) -> Float[Tensor, "image neuron"]:
    """Sets a random half (rounded up) of each concept's positives (c >= 0.5) to 0."""
    positive = presence >= 0.5
    return torch.where(_drawn(positive, (positive.sum(0) + 1) // 2, seed), 0.0, presence)


def extra_labels(presence: Float[Tensor, "image neuron"], seed: int = 0) -> Float[Tensor, "image neuron"]:
    """Sets as many random negatives as there are positives to 1 (all negatives if there are fewer)."""
    positive = presence >= 0.5
    return torch.where(_drawn(~positive, positive.sum(0), seed), 1.0, presence)


def sanity_metrics(alphas: Sequence[float]) -> dict[str, Metric]:
    """The metrics to test: all, with those of the top images at each fraction in ``alphas``, the first as plain name.

    The cosine also appears for rectified activations: it is not centred, so activations recorded before a ReLU have
    signs and an offset that it was not designed for.
    """
    first, *others = alphas
    tested: dict[str, Metric] = {}
    for name, metric in at_alpha(first).items():
        tested[name] = metric
        if name == "cosine":
            tested[RECTIFIED] = _rectified_cosine
    for alpha in others:
        tested |= {f"{name}, alpha {alpha:g}": metric for name, metric in at_alpha(alpha).items() if name in OF_TOP}
    return tested


def _rectified_cosine(activations: Tensor, presence: Tensor) -> Tensor:
    return cosine(activations.clamp(min=0), presence)


def sanity_table(
    activations: Float[Tensor, "image neuron"],
    presence: Float[Tensor, "image neuron"],
    metrics: Mapping[str, Metric] = METRICS,
    pass_mark: float = 0.9,
    least_fall: float = 1e-3,
    draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Runs both sanity tests for every metric, on activations and the presence of each neuron's label.

    A neuron's metric falls if its mean over ``draws`` random corruptions is lower by more than ``least_fall`` of the
    metric's range (over neurons with their own, corrupted and each other's labels), as in Oikarinen et al. 2025. A
    metric passes a test if it falls for at least a share ``pass_mark`` of the neurons. Neurons whose concept has fewer
    than two positives or no negatives are left out. Use neurons with trusted labels: the score of a wrong label cannot
    fall.

    Returns:
        One row per metric: metric, neurons, score, missing_score, missing_lowered (share), missing_p (exact sign test
        that more than half are lowered), missing_passed, the same for ``extra``, passed (both), fails_in_literature
        (fails in Oikarinen et al. 2025; for comparison only).

    Raises:
        UserError: no neuron has a concept with at least two positives and one negative.
    """
    positives = (presence >= 0.5).sum(0)
    usable = (positives >= 2) & (positives < len(presence))
    if not usable.any():
        raise UserError(
            "The sanity tests need a labelled concept that is present (>= 0.5) on at least two images and absent on "
            "at least one."
        )
    activations, presence = activations[:, usable], presence[:, usable]
    rows = []
    for name, metric in metrics.items():
        score = metric(activations, presence)
        corrupted = {
            test: torch.stack([metric(activations, corrupt(presence, seed + draw)) for draw in range(draws)]).mean(0)
            for test, corrupt in (("missing", missing_labels), ("extra", extra_labels))
        }
        of_others = metric(activations, presence.roll(1, dims=1))
        found = torch.stack([score, of_others, *corrupted.values()])
        least = least_fall * float(found.max() - found.min())
        row: dict[str, object] = {"metric": name, "neurons": int(usable.sum()), "score": float(score.mean())}
        for test, values in corrupted.items():
            lowered = int((score - values > least).sum())
            row[f"{test}_score"] = float(values.mean())
            row[f"{test}_lowered"] = lowered / len(score)
            row[f"{test}_p"] = float(stats.binomtest(lowered, len(score), 0.5, alternative="greater").pvalue)
            row[f"{test}_passed"] = lowered >= pass_mark * len(score)
        row["passed"] = row["missing_passed"] and row["extra_passed"]
        row["fails_in_literature"] = name in COMPARISON_ONLY
        rows.append(row)
    return pd.DataFrame(rows)


def _drawn(candidates: Tensor, counts: Tensor, seed: int) -> Tensor:
    """``counts`` random candidates of each column."""
    noise = torch.from_numpy(np.random.default_rng(seed).random(candidates.shape)).to(candidates.device)
    ranks = noise.masked_fill(~candidates, 2.0).argsort(0).argsort(0)
    return candidates & (ranks < counts)
