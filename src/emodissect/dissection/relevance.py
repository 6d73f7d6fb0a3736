"""Measures what neurons contribute: relevance for the predicted class, and effects on every class's logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from emodissect.core.errors import UserError, listed
from emodissect.core.progress import tracked
from emodissect.data.images import ImageSet
from emodissect.dissection.responses import layer_gradients
from emodissect.dissection.saliency import Preprocessing
from emodissect.recording import LayerActivations
from emodissect.recording.pooling import ChannelsLast


@dataclass(frozen=True)
class Relevance:
    """Contributions of a layer's neurons to the logits.

    Attributes:
        ids: the images' ids, ascending.
        values: gradient x activation of the predicted class's logit, summed over positions: the neuron's contribution
            to the logit, to first order.
        gradients: mean over images of the gradient of each logit, summed over positions: the first-order change in the
            logit when the neuron is raised by 1 at every position.
    """

    ids: Int64[Tensor, " image"]
    values: Float[Tensor, "image neuron"]
    gradients: Float[Tensor, "neuron class"]


def relevance(
    network: nn.Module,
    preprocess: Preprocessing,
    images: ImageSet,
    layers: Sequence[str],
    batch_size: int = 128,
    channels_last: ChannelsLast = "auto",
    finish: Callable[[Any], Tensor] = lambda output: output,
    progress: str = "",
) -> dict[str, Relevance]:
    """Gradient x activation of layers (Shrikumar et al. 2016), at the modules' own outputs.

    Takes one forward pass per batch and one backward pass per class, for all layers together.

    Args:
        network: returns logits; run in eval mode, its state restored.
        preprocess: maps uint8 images to the network's input.
        channels_last: where the neurons are in a module's output, see
            :func:`emodissect.recording.pooling.neuron_axis`.
        finish: maps the network's output to logits (image, class), if it is not the logits itself.

    Raises:
        UserError: a layer whose output no logit depends on.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in layers}
    sums: dict[str, Tensor] = {}
    rows = torch.arange(len(images)).split(batch_size)
    batches = (preprocess(images.images[batch]) for batch in tracked(rows, progress))
    for logits, found in layer_gradients(network, batches, layers, finish, channels_last):
        if unused := [name for name in layers if name not in found]:
            raise UserError(
                f"The logits do not depend on {listed(unused)}. Relevance needs layers that the logits are computed "
                "from."
            )
        predicted, every = logits.argmax(1), torch.arange(len(logits))
        for name, (product, gradient) in found.items():
            values[name].append(product[predicted, every])
            sums[name] = sums.get(name, torch.zeros(())) + gradient.double().sum(1).T
    ids, order = images.ids.sort()
    return {name: Relevance(ids, torch.cat(values[name])[order], (sums[name] / len(images)).float()) for name in layers}


def relevance_table(
    found: Relevance,
    layer: LayerActivations,
    labels: Sequence[str],
    relevance_labels: Sequence[str],
    class_names: Sequence[str],
    top_images: int = 10,
) -> pd.DataFrame:
    """Compares neurons' labels by relevance with those by activation, and lists their effects on the logits.

    Args:
        layer: the layer's activations on the same images.
        labels: labels by activation.
        relevance_labels: labels by relevance, with the same similarity.

    Returns:
        One row per neuron: neuron, concept, relevance_concept, same_label, shared_top (share of the top images by
        relevance that are also top images by activation), top_ids, relevance_top_ids, drives (the class whose logit
        the neuron changes most; "−CLASS" if it lowers it), effect (that change), and ``effect_CLASS`` for every class:
        the first-order change in the logit per standard deviation of the neuron, mean over the images.
    """
    by_relevance = LayerActivations.of(layer.layer, found.ids, found.values, top_images)
    tops, own = by_relevance.top_ids.t(), layer.top_ids[:top_images].t()
    shared = (tops[:, :, None] == own[:, None, :]).any(2).double().mean(1)
    effects = (found.gradients * layer.std[:, None]).double()
    strongest = effects.abs().argmax(1)
    effect = effects.gather(1, strongest[:, None])[:, 0]
    drives = [
        "" if e == 0 else f"{'−' if e < 0 else ''}{class_names[c]}"
        for e, c in zip(effect.tolist(), strongest.tolist(), strict=True)
    ]
    frame = pd.DataFrame(
        {
            "neuron": np.arange(layer.neurons),
            "concept": list(labels),
            "relevance_concept": list(relevance_labels),
            "same_label": [a == b for a, b in zip(labels, relevance_labels, strict=True)],
            "shared_top": shared.numpy(),
            "top_ids": own.tolist(),
            "relevance_top_ids": tops.tolist(),
            "drives": drives,
            "effect": effect.numpy(),
        }
    )
    return frame.assign(**{f"effect_{name}": effects[:, c].numpy() for c, name in enumerate(class_names)})
