"""Computes similarities of a recorded layer on all or some of its images."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.recording import LayerActivations
from emodissect.similarity import Similarity


def for_measure(layer: LayerActivations, measure: Similarity) -> LayerActivations:
    """The layer with as many top images as the similarity needs, regardless of the top_k it was recorded with.

    Raises UserError if it did not keep all activations.
    """
    if layer.values is None:
        raise UserError(f"Layer '{layer.layer}' kept only its top images; evaluating labels needs all activations.")
    wanted = getattr(measure, "top_k", None) or 0
    if len(layer.top_ids) < min(wanted, len(layer.ids)):
        return LayerActivations.of(layer.layer, layer.ids, torch.as_tensor(layer.values), wanted)
    return layer


def labelled(
    layer: LayerActivations, scores: Float[Tensor, "image concept"], measure: Similarity
) -> Float[Tensor, "neuron concept"]:
    """The similarity of each neuron and concept, for a layer with all activations."""
    return measure.of_layer(scores, for_measure(layer, measure))


def part_of(layer: LayerActivations, kept: Bool[Tensor, " image"], top_k: int = 100) -> LayerActivations:
    """The layer restricted to the images ``kept``."""
    assert layer.values is not None
    return LayerActivations.of(layer.layer, layer.ids[kept], torch.as_tensor(layer.values)[kept], top_k)
