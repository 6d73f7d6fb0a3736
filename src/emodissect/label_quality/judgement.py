"""One layer's labels judged: on images that did not choose them, against the truth, and under changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.errors import UserError
from emodissect.label_quality.composition import composite_labels
from emodissect.label_quality.metrics import METRICS
from emodissect.label_quality.metrics import pearson as held_out_pearson
from emodissect.label_quality.recovery import best_concepts, recovery
from emodissect.label_quality.sanity import sanity_table
from emodissect.label_quality.simulation import calibrate, simulation_score
from emodissect.label_quality.stability import halves
from emodissect.label_quality.uncertainty import pearson_interval, pearson_p
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson, Similarity

_SANE = 0.1
"""Held-out Pearson above which a label is believed enough to be part of the sanity tests."""


@dataclass(frozen=True)
class HeldOut:
    """A layer's labels from one part of the probe set, scored on the other.

    Attributes:
        neurons: one row a neuron: neuron, concept, held-out metrics, Pearson's interval and one-sided p, simulation,
            composite (the label with further concepts joined by " or "), composite_pearson.
        sanity: one row a metric, see :func:`emodissect.label_quality.sanity.sanity_table`; empty where no label is
            believed.
        labels: the concept of each neuron, by the first part.
        other: the concept of each neuron, by the second part.
    """

    neurons: pd.DataFrame
    sanity: pd.DataFrame
    labels: Int64[Tensor, " neuron"]
    other: Int64[Tensor, " neuron"]


def labelled(
    layer: LayerActivations, scores: Float[Tensor, "image concept"], measure: Similarity
) -> Float[Tensor, "neuron concept"]:
    """The similarity of a layer whose values are all kept, whatever top_k it was recorded with.

    Raises UserError where they are not kept.
    """
    if layer.values is None:
        raise UserError(f"Layer '{layer.layer}' kept only its top images; judging labels needs every activation.")
    wanted = getattr(measure, "top_k", None) or 0
    if len(layer.top_ids) < min(wanted, len(layer.ids)):
        layer = LayerActivations.of(layer.layer, layer.ids, torch.as_tensor(layer.values), wanted)
    return measure.of_layer(scores, layer)


def part_of(layer: LayerActivations, kept: Bool[Tensor, " image"], top_k: int = 100) -> LayerActivations:
    """The layer on some of its images."""
    assert layer.values is not None
    return LayerActivations.of(layer.layer, layer.ids[kept], torch.as_tensor(layer.values)[kept], top_k)


def held_out(
    layer: LayerActivations,
    scores: Float[Tensor, "image concept"],
    names: Sequence[str],
    measure: Similarity,
    *,
    presence: bool = False,
    top_k: int = 100,
    composite: bool = True,
    seed: int = 0,
) -> HeldOut:
    """Labels from one half of the images, scored on the other.

    Args:
        layer: with all its values.
        scores: rows in the order of ``layer.ids``.
        names: of the concepts.
        measure: what labels.
        presence: the scores are presences in [0, 1] already; else each label's score is calibrated to the neuron on the
            first half, s = sigmoid(alpha (score + beta)).
        top_k: images kept for each neuron of a half.
        composite: also join a second and third concept where held-out Pearson rises.
        seed: of the split.
    """
    first, second = halves(layer.ids, seed)
    fit, held = part_of(layer, first, top_k), part_of(layer, second, top_k)
    similarity = labelled(fit, scores[first], measure)
    labels = similarity.argmax(1)
    other = labelled(held, scores[second], measure).argmax(1)
    assert fit.values is not None
    assert held.values is not None
    chosen_fit, chosen_held = scores[first][:, labels], scores[second][:, labels]
    calibration = calibrate(fit.values, chosen_fit)
    shown = chosen_held if presence else calibration.predict(chosen_held).float()
    # Pearson and the cosine are of the score itself; what needs a threshold takes the calibrated one.
    found = {name: metric(held.values, shown) for name, metric in METRICS.items()}
    found["pearson"] = held_out_pearson(held.values, chosen_held)
    low, high = pearson_interval(found["pearson"], int(second.sum()))
    frame = pd.DataFrame({"neuron": range(layer.neurons), "concept": [names[int(c)] for c in labels]})
    for name, values in found.items():
        frame[name] = values.double().numpy()
    frame["pearson_low"], frame["pearson_high"] = low.double().numpy(), high.double().numpy()
    frame["pearson_p"] = pearson_p(found["pearson"].double(), int(second.sum())).numpy()
    frame["simulation"] = simulation_score(calibration, held.values, chosen_held).double().numpy()
    if composite:
        joined = composite_labels(fit.values, scores[first], held.values, scores[second], labels)
        frame["composite"] = [" or ".join(names[c] for c in label.concepts) for label in joined]
        frame["composite_pearson"] = [label.held_out[-1] for label in joined]
    frame.loc[layer.dead.numpy(), [c for c in frame.columns if c not in ("neuron", "concept", "composite")]] = float(
        "nan"
    )
    believed = (found["pearson"] > _SANE) & ~layer.dead
    sanity = (
        sanity_table(held.values[:, believed], shown[:, believed], seed=seed) if _varied(shown, believed) else _NONE
    )
    return HeldOut(frame, sanity, labels, other)


_NONE = pd.DataFrame()


def _varied(presence: Tensor, believed: Tensor) -> bool:
    positives = (presence[:, believed] >= 0.5).sum(0)
    return bool(((positives >= 2) & (positives < len(presence))).any())


def recovered(
    layer: LayerActivations,
    scores: Float[Tensor, "image concept"],
    truth_scores: Float[Tensor, "image concept"],
    measures: Mapping[str, Similarity],
    truth: Bool[Tensor, "neuron concept"] | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of the truth each similarity finds, from the scorer and, as a ceiling, from the truth itself.

    Args:
        layer: with all its values.
        scores: the scorer's, rows in the order of ``layer.ids``.
        truth_scores: each concept's true presence.
        measures: by name.
        truth: the true concepts of each neuron; None takes the concept whose true presence correlates most with the
            neuron, of the neurons where that is above 0.
        seed: of the bootstrap.

    Returns:
        One row a similarity and source (``scorer`` or ``annotations``): see
        :meth:`emodissect.label_quality.recovery.Recovery.row`.
    """
    if truth is None:
        truth = best_concepts(labelled(layer, truth_scores, Pearson()))
    live = ~layer.dead & truth.any(1)
    rows = []
    for name, measure in measures.items():
        for source, given in (("scorer", scores), ("annotations", truth_scores)):
            similarity = labelled(layer, given, measure)
            rows.append(
                {"similarity": name, "source": source, **recovery(similarity[live], truth[live], seed=seed).row()}
            )
    return pd.DataFrame(rows)
