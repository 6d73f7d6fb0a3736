"""Are interpretable neurons the useful ones? Correlates the quality of labels with the effects of neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm, rankdata, spearmanr
from torch import Tensor

from emodissect.concepts import ConceptScores
from emodissect.editing.effects import Effects, pooled_outputs
from emodissect.editing.fast.edited_logits import EditedLogits

MEASURES: Mapping[str, str] = {
    "similarity": "similarity of the label",
    "z": "significance of the label (z)",
    "accuracy": "neuron accuracy",
    "held_out": "held-out score of the label",
}
"""Columns of a neuron table that measure the quality of a label, with their display names."""


def neuron_effects(
    labels: pd.DataFrame, effects: Effects, kept: EditedLogits, scores: ConceptScores | None = None
) -> pd.DataFrame:
    """One row per neuron: neuron, concept, the MEASURES of its label, and its effect.

    Args:
        kept: the network on the images that the effects were estimated on.
        scores: concept scores of those images; `held_out` is then the correlation of each neuron's output with its
            concept's score. They must not be the images that the labels were computed on.
    """
    known = [name for name in MEASURES if name in labels]
    frame = labels[["neuron", "concept", *known]].copy()
    frame["effect"] = effects.values.double().numpy()
    if scores is not None:
        frame["held_out"] = _held_out(labels, kept, scores)
    if "dead" in labels:
        frame.loc[labels["dead"].to_numpy(dtype=bool), ["effect", *known]] = np.nan
    return frame.reset_index(drop=True)


def label_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlation of each label measure with the neuron's effect, over the layer's living neurons.

    `signed`: do better labels go with neurons that help when scaled up? `size`: with larger effects in either
    direction? The interval uses Fisher's z with the standard error of Bonett & Wright (Psychometrika 2000),
    sqrt((1 + r^2 / 2) / (n - 3)).

    Returns:
        measure, effect (`signed` or `size`), neurons, correlation, low, high, p_value.
    """
    rows = []
    for name, words in MEASURES.items():
        if name not in frame:
            continue
        for kind, effects in (("signed", frame["effect"]), ("size", frame["effect"].abs())):
            both = frame[name].notna() & effects.notna()
            rows.append({"measure": words, "effect": kind} | correlation(frame[name][both], effects[both]))
    return pd.DataFrame(rows)


def correlation(one: Any, other: Any) -> dict[str, float]:
    """Spearman rank correlation with its interval; NaN where one side is constant or there are fewer than 4 pairs."""
    count = len(one)
    nothing = {"neurons": count, "correlation": np.nan, "low": np.nan, "high": np.nan, "p_value": np.nan}
    if count < 4 or np.ptp(rankdata(one)) == 0 or np.ptp(rankdata(other)) == 0:
        return nothing
    found = spearmanr(one, other)
    r = float(np.clip(found.statistic, -1, 1))
    reach = norm.ppf(0.975) * np.sqrt((1 + r**2 / 2) / (count - 3))
    with np.errstate(divide="ignore"):
        low, high = np.tanh(np.arctanh(r) + np.array([-reach, reach]))
    return {"neurons": count, "correlation": r, "low": float(low), "high": float(high), "p_value": float(found.pvalue)}


def _held_out(labels: pd.DataFrame, kept: EditedLogits, scores: ConceptScores) -> np.ndarray:
    outputs = pooled_outputs(kept).double()
    values = scores.at(kept.images.ids).double()
    place = {name: column for column, name in enumerate(scores.names)}
    found = np.full(len(labels), np.nan)
    for neuron, concept in enumerate(labels["concept"]):
        if concept in place:
            found[neuron] = _pearson(outputs[:, neuron], values[:, place[concept]])
    return found


def _pearson(one: Tensor, other: Tensor) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = one.norm() * other.norm()
    return float(torch.dot(one, other) / length) if length > 0 else float("nan")
