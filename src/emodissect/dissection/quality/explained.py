"""Evaluates explanations, fitted on one half of the images, on the other half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.explanations import NONE, WIDTH, Explainer, Explanation, Part
from emodissect.dissection.quality.metrics import cosine
from emodissect.dissection.quality.stability import halves
from emodissect.dissection.quality.uncertainty import pearson_interval
from emodissect.recording import LayerActivations

BASELINE = "label"
"""The baseline for the other explanations: the label from the run's similarity."""


class Parts(NamedTuple):
    """A layer's images, split: two quarters to fit explanations, and a half to score them."""

    proposing: Part
    deciding: Part
    held_out: Part


def labelling_parts(layer: LayerActivations, scores: Float[Tensor, "image concept"], seed: int = 0) -> Parts:
    """The split for all held-out scores: two halves by image id, the first split again into two quarters.

    Args:
        layer: a layer with all its activations.
        scores: concept scores, rows in the order of ``layer.ids``.

    Raises:
        UserError: the layer kept only its top images.
    """
    if layer.values is None:
        raise UserError(f"Layer '{layer.layer}' kept only its top images; explaining neurons needs all activations.")
    first, second = halves(layer.ids, seed)
    labelling = first.nonzero()[:, 0]
    proposing, deciding = halves(layer.ids[labelling], seed + 1)
    values = torch.as_tensor(layer.values)
    rows = (labelling[proposing], labelling[deciding], second.nonzero()[:, 0])
    return Parts(*(Part(values[part].float(), scores[part].float()) for part in rows))


def held_out_pearson(explained: Explanation, held_out: Part) -> dict[str, np.ndarray]:
    """``pearson``, the correlation of simulated and true activations, and its 95 % interval (``pearson_low``, ...)."""
    found = explained.correlation(held_out).double()
    low, high = pearson_interval(held_out.activations, explained.simulate(held_out.scores))
    return {"pearson": found.numpy(), "pearson_low": low.numpy(), "pearson_high": high.numpy()}


def explained_neurons(
    parts: Parts, names: Sequence[str], explainer: Explainer, beside: Mapping[str, Explainer]
) -> pd.DataFrame:
    """Explains each neuron and scores the explanation, and others for comparison, on held-out images.

    Returns:
        One row per neuron: neuron, explanation (as text), concepts, weights, weights_low, weights_high (lists), pearson
        with its interval, and ``pearson_NAME`` for each explainer in ``beside``. For a neuron that is constant on the
        labelling or the held-out images, the explanation is empty and the scores are NaN.
    """
    found = explainer(parts.proposing, parts.deciding)
    kept = [row[row != NONE] for row in found.concepts]
    frame = pd.DataFrame({"neuron": range(len(kept)), "explanation": found.words(names)})
    frame["concepts"] = [[names[int(c)] for c in row] for row in kept]
    for name, values in {"weights": found.weights, "weights_low": found.low, "weights_high": found.high}.items():
        frame[name] = [row[: len(own)].tolist() for row, own in zip(values, kept, strict=True)]
    scored = held_out_pearson(found, parts.held_out)
    for name, other in beside.items():
        scored[f"pearson_{name}"] = other(parts.proposing, parts.deciding).correlation(parts.held_out).double().numpy()
    silent = ~live(parts).numpy()
    for name, score in scored.items():
        frame[name] = np.where(silent, np.nan, score)
    frame.loc[silent, "explanation"] = ""
    return frame


def explanation_table(
    parts: Parts,
    explainers: Mapping[str, Explainer],
    truth: Float[Tensor, "neuron concept"] | None = None,
    changes: Part | None = None,
) -> pd.DataFrame:
    """How well each kind of explanation predicts held-out activations.

    Args:
        truth: the true weight of every concept, if known.
        changes: changes in activations and scores under interventions, if the data can draw them.

    Returns:
        One row per explainer: explanation, neurons (number of live ones), concepts (their mean number), pearson (mean
        over neurons of the held-out correlation of simulated and true activations) with its 95 % interval over neurons,
        ratio (to :data:`BASELINE`, if that is included). With ``changes``, ``moved`` (mean over neurons of the cosine
        of predicted and true changes) with its interval. Over the neurons with known true weights, ``top1`` (share
        whose concept of largest absolute weight is true and has the true sign), ``exact`` (share with exactly the true
        concepts) and, for fitted weights, ``covered`` (share of the true weights inside their 95 % interval; a missing
        concept is not covered).
    """
    counted = live(parts)
    rows = []
    for name, explainer in explainers.items():
        found = explainer(parts.proposing, parts.deciding)
        r = found.correlation(parts.held_out)[counted]
        row: dict[str, object] = {
            "explanation": name,
            "neurons": len(r),
            "concepts": float((found.concepts[counted] != NONE).sum(1).double().mean()),
            **mean_interval("pearson", r),
        }
        if changes is not None:
            row |= mean_interval("moved", cosine(changes.activations, found.change(changes.scores))[counted])
        if truth is not None and (known := counted & (truth != 0).any(1)).any():
            row |= _recovered(found.of(known), truth[known])
        rows.append(row)
    frame = pd.DataFrame(rows)
    if BASELINE in explainers and len(frame):
        baseline = frame.loc[frame["explanation"] == BASELINE, "pearson"].iloc[0]
        frame.insert(6, "ratio", frame["pearson"] / baseline)
    return frame


def mean_interval(name: str, values: Float[Tensor, " neuron"]) -> dict[str, float]:
    """The mean over neurons with its 95 % interval; NaN without neurons."""
    if not len(values):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    mean = float(values.double().mean())
    width = WIDTH * float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return {name: mean, f"{name}_low": mean - width, f"{name}_high": mean + width}


def _recovered(found: Explanation, truth: Float[Tensor, "neuron concept"]) -> dict[str, float]:
    weights = found.matrix()
    heaviest = weights.abs().argmax(1, keepdim=True)
    hit = (weights.gather(1, heaviest) * truth.gather(1, heaviest) > 0)[:, 0]
    exact = ((weights != 0) == (truth != 0)).all(1)
    true = truth.gather(1, found.concepts.clamp(min=0))
    inside = (found.low <= true) & (true <= found.high) & (true != 0) & (found.concepts != NONE)
    covered = inside.sum() / (truth != 0).sum() if found.low.isfinite().any() else torch.tensor(torch.nan)
    return {"top1": float(hit.double().mean()), "exact": float(exact.double().mean()), "covered": float(covered)}


def live(parts: Parts) -> Bool[Tensor, " neuron"]:
    """Mask of the neurons that vary on both the labelling and the held-out images."""
    labelling = torch.cat([parts.proposing.activations, parts.deciding.activations])
    return (labelling != labelling[:1]).any(0) & (parts.held_out.activations != parts.held_out.activations[:1]).any(0)
