"""Labels neurons on one half of the images and evaluates the labels on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.statistics import benjamini_hochberg
from emodissect.dissection.explanations import LinearExplainer
from emodissect.dissection.quality.calibration import calibrate, calibrated_presence, simulation_score
from emodissect.dissection.quality.explained import held_out_pearson, labelling_parts
from emodissect.dissection.quality.labelling import labelled, part_of
from emodissect.dissection.quality.metrics import ALPHA, METRICS, of_labels, pearson
from emodissect.dissection.quality.sanity import sanity_metrics, sanity_table
from emodissect.dissection.quality.stability import halves
from emodissect.dissection.quality.uncertainty import p_values, pearson_interval, pearson_p
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson, Similarity

LINEAR = LinearExplainer()

_SANE = 0.1
"""Pearson correlation on the labelling half above which a label is trusted enough for the sanity tests."""

_OF_SCORES = ("pearson", "auprc")
"""Metrics computed from raw scores: neither needs a threshold, and AUPRC depends only on their order."""


@dataclass(frozen=True)
class HeldOut:
    """A layer's labels from one part of the probe set, scored on the other.

    Attributes:
        neurons: one row per neuron: neuron, concept, each held-out metric with its p-value (``iou``, ``iou_p``), the
            intervals of Pearson and of the simulation (``pearson_low``), ``pearson_q`` (false discovery rate in the
            layer), ``true_pearson`` if the ground truth is known, ``explanation`` (a sum of concepts, as text) and
            ``explanation_pearson`` with its interval, the correlation of simulated and true activations. A neuron that
            is dead on either part has no label and no scores.
        sanity: one row per metric, see :func:`emodissect.dissection.quality.sanity.sanity_table`, with the column
            ``presence``: ``scorer``, and ``annotations`` if the ground truth is known; empty if no label is trusted.
        labels: index of each neuron's label from the first part.
        other: index of each neuron's label from the second part.
        live: mask of the neurons that are dead on neither part.
    """

    neurons: pd.DataFrame
    sanity: pd.DataFrame
    labels: Int64[Tensor, " neuron"]
    other: Int64[Tensor, " neuron"]
    live: Bool[Tensor, " neuron"]


def held_out(
    layer: LayerActivations,
    scores: Float[Tensor, "image concept"],
    names: Sequence[str],
    measure: Similarity,
    *,
    presence: bool = False,
    truth: Float[Tensor, "image concept"] | None = None,
    alphas: Sequence[float] = (ALPHA,),
    top_k: int = 100,
    seed: int = 0,
) -> HeldOut:
    """Label neurons on one half of the images and score the labels on the other.

    Everything that is fitted (labels, presences, simulations, explanations) is fitted on the first half.

    Args:
        layer: a layer with all its activations.
        scores: concept scores, rows in the order of ``layer.ids``.
        presence: whether the scores are already presences in [0, 1]; otherwise they are calibrated by concept, see
            :func:`emodissect.dissection.quality.calibration.calibrated_presence`.
        alphas: fractions of images that count as active; the sanity tests use all, the scores the first.
    """
    first, second = halves(layer.ids, seed)
    fit, held = part_of(layer, first, top_k), part_of(layer, second, top_k)
    assert fit.values is not None
    assert held.values is not None
    labels = labelled(fit, scores[first], measure).argmax(1)
    other = labelled(held, scores[second], measure).argmax(1)
    live = ~(layer.dead | fit.dead | held.dead)
    shown = scores[second] if presence else calibrated_presence(scores[first]).predict(scores[second]).float()

    of_scores = of_labels(held.values, scores[second], labels, _OF_SCORES, alphas[0])
    rest = tuple(name for name in METRICS if name not in _OF_SCORES)
    found = of_scores | of_labels(held.values, shown, labels, rest, alphas[0])
    sure = p_values(held.values, scores[second], shown, labels, alphas[0], seed=seed)
    calibration = calibrate(fit.values, scores[first][:, labels])
    found["simulation"] = simulation_score(calibration, held.values, scores[second][:, labels])
    simulated = calibration.predict(scores[second][:, labels])
    sure["simulation"] = pearson_p(held.values, simulated, seed=seed)
    pairs = {"pearson": scores[second][:, labels], "simulation": simulated}
    columns: dict[str, Tensor] = {}
    for name in (*METRICS, "simulation"):
        columns |= {name: found[name], f"{name}_p": sure[name]}
        if name in pairs:
            columns[f"{name}_low"], columns[f"{name}_high"] = pearson_interval(held.values, pairs[name], seed=seed)
    if truth is not None:
        columns["true_pearson"] = pearson(held.values, truth[second][:, labels])
    silent = ~live.numpy()
    frame = pd.DataFrame({"neuron": range(layer.neurons), "concept": [names[int(c)] for c in labels]})
    for name, values in columns.items():
        frame[name] = np.where(silent, np.nan, values.double().numpy())
    frame["pearson_q"] = benjamini_hochberg(frame["pearson_p"])
    parts = labelling_parts(layer, scores, seed)
    explained = LINEAR(parts.proposing, parts.deciding)
    frame["explanation"] = explained.words(names)
    for name, correlation in held_out_pearson(explained, parts.held_out).items():
        frame[f"explanation_{name}"] = np.where(silent, np.nan, correlation)
    frame.loc[silent, ["concept", "explanation"]] = ""

    tests = {"scorer": (pearson(fit.values, scores[first][:, labels]), shown[:, labels])}
    if truth is not None:
        right = labelled(fit, truth[first], Pearson())
        tests["annotations"] = (right.amax(1), truth[second][:, right.argmax(1)])
    sanity = [
        sane.assign(presence=source)
        for source, (trusted, c) in tests.items()
        if len(sane := _sanity(held.values, c, live & (trusted > _SANE), alphas, seed))
    ]
    return HeldOut(frame, pd.concat(sanity, ignore_index=True) if sanity else pd.DataFrame(), labels, other, live)


def _sanity(activations: Tensor, presence: Tensor, trusted: Tensor, alphas: Sequence[float], seed: int) -> pd.DataFrame:
    """The sanity tests of the trusted labels; empty if no label is present on some images and absent on others."""
    positives = (presence[:, trusted] >= 0.5).sum(0)
    if not bool(((positives >= 2) & (positives < len(presence))).any()):
        return pd.DataFrame()
    return sanity_table(activations[:, trusted], presence[:, trusted], sanity_metrics(alphas), seed=seed)
