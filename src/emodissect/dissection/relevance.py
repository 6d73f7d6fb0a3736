"""What a neuron does, not only when it fires: its share in the predicted class, and its effect on every class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradientXActivation
from jaxtyping import Float, Int64
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.core.evaluation_mode import evaluating
from emodissect.core.progress import tracked
from emodissect.data.images import ImageSet
from emodissect.dissection.saliency import Preprocessing
from emodissect.recording import LayerActivations
from emodissect.recording.pooling import ChannelsLast, first_tensor, neuron_axis


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
    classes: int,
    batch_size: int = 128,
    channels_last: ChannelsLast = "auto",
    finish: Callable[[Any], Tensor] = lambda output: output,
    progress: str = "",
) -> dict[str, Relevance]:
    """Gradient x activation of layers, by captum (Shrikumar et al. 2016), at the modules' own outputs.

    ``1 + classes`` backward passes, each with its forward pass, for all layers together.

    Args:
        network: gives logits; run as in a test, its state restored.
        preprocess: uint8 images -> the network's input.
        images: the probe set.
        layers: module paths.
        classes: how many logits.
        batch_size: images at a time.
        channels_last: where the neurons are in a module's output, see
            :func:`emodissect.recording.pooling.neuron_axis`.
        finish: the network's output -> logits (image, class), where they are not the output itself.
        progress: words beside a bar; none without.

    Raises:
        UserError: a layer whose output no logit depends on.
    """
    modules = dict(network.named_modules())
    chosen = [modules[name] for name in layers]

    def logits(inputs: Tensor) -> Tensor:
        return finish(network(inputs))

    product: Any = LayerGradientXActivation(logits, chosen)
    gradient: Any = LayerGradientXActivation(logits, chosen, multiply_by_inputs=False)
    values: dict[str, list[Tensor]] = {name: [] for name in layers}
    sums: dict[str, Tensor] = {}

    def by_neuron(name: str, found: Any) -> Float[Tensor, "image neuron"]:
        tensor = first_tensor(found)
        assert tensor is not None
        axis = neuron_axis(network, name, tensor.shape, channels_last)
        return tensor.detach().movedim(axis, 1).flatten(2).sum(2) if tensor.ndim > 2 else tensor.detach()

    try:
        with evaluating(network), torch.enable_grad():
            rows = torch.arange(len(images)).split(batch_size)
            for batch in tracked(rows, progress):
                inputs = preprocess(images.images[batch]).detach()
                with torch.no_grad():
                    predicted = logits(inputs).argmax(1)
                for name, part in zip(layers, _listed(product.attribute(inputs, target=predicted)), strict=True):
                    values[name].append(by_neuron(name, part))
                for c in range(classes):
                    for name, part in zip(layers, _listed(gradient.attribute(inputs, target=c)), strict=True):
                        of_class = by_neuron(name, part).double().sum(0)
                        total = sums.setdefault(name, torch.zeros(len(of_class), classes, dtype=torch.float64))
                        total[:, c] += of_class
    except RuntimeError as error:
        if "not have been used" in str(error):
            raise UserError(
                f"The logits do not depend on every layer of {', '.join(layers)}: relevance needs layers that the "
                "network's output is computed from."
            ) from error
        raise
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
        found: of the layer.
        layer: its activations on the same images.
        labels: by activation.
        relevance_labels: by relevance, of the same similarity.
        class_names: of the logits.
        top_images: compared.

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


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list) else [found]
