"""What a neuron does, not only when it fires: its share in the predicted class, and its effect on every class."""

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
    """What a layer's neurons do to the logits.

    Attributes:
        ids: the images, ascending.
        values: gradient x activation of the predicted class's logit, summed over positions: to first order, how much
            of the logit would be missing without the neuron.
        gradients: mean over images of the gradient of each logit, summed over positions: how much a logit rises where
            the neuron is raised by 1 at every position.
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

    One forward pass and a backward pass for each class, for all layers together.

    Args:
        network: gives logits; run as in a test, its state restored.
        preprocess: uint8 images -> the network's input.
        channels_last: where the neurons are in a module's output, see
            :func:`emodissect.recording.pooling.neuron_axis`.
        finish: the network's output -> logits (image, class), where they are not the output itself.

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
                f"The logits do not depend on {listed(unused)}: relevance needs layers that the network's output is "
                "computed from."
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
    """What each neuron does beside when it fires.

    Args:
        layer: its activations on the same images.
        labels: by activation.
        relevance_labels: by relevance, of the same similarity.

    Returns:
        One row a neuron: neuron, concept, relevance_concept, same_label, shared_top (share of the top images by
        relevance that are among those by activation), top_ids, relevance_top_ids, drives (the class whose logit the
        neuron moves most; "−CLASS" where it lowers it), effect (by how much), and ``effect_CLASS`` of every class: the
        change of the logit per standard deviation of the neuron, to first order, mean over the images.
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
