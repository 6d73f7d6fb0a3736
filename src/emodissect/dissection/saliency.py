"""Where in an image: gradients of the predicted class, and the maps of convolutional neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from captum.attr import NoiseTunnel, Saliency
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from emodissect.core.errors import UserError, nearest
from emodissect.core.evaluation_mode import evaluating
from emodissect.data.images import ImageSet
from emodissect.recording.pooling import ChannelsLast, first_tensor, neuron_axis

#: uint8 images -> the network's input, one view an image.
Preprocessing = Callable[[Tensor], Tensor]


def gradient_saliency(
    network: nn.Module,
    preprocess: Preprocessing,
    images: UInt8[Tensor, "image channel height width"],
    samples: int = 0,
    noise: float = 0.1,
    seed: int = 0,
) -> Float[Tensor, "image height width"]:
    """How much a small change of each pixel changes the score of the class that the network predicts.

    The absolute gradient of the highest logit with respect to the input (Simonyan et al. 2014), the largest over
    channels, divided by its 99th percentile in each image and cut at 1; by captum. With ``samples`` it is the mean over
    noisy copies of the input (SmoothGrad, Smilkov et al. 2017), which is easier on the eye.

    Args:
        network: gives logits; evaluated as it is used in a test, its state restored.
        preprocess: uint8 images -> the network's input; the map is scaled back to the images' size.
        samples: noisy copies; 0 takes the plain gradient.
        noise: standard deviation of the noise, as a share of the input's range.
        seed: of the noise; the global random state is left as it was.

    Returns:
        Values in [0, 1]; all 0 where no pixel matters.
    """
    inputs = preprocess(images).detach()
    with evaluating(network), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.no_grad():
            target = network(inputs).argmax(dim=1)
        method: Any = Saliency(network)
        options: dict[str, Any] = {"target": target}
        if samples:
            method = NoiseTunnel(method)
            options |= {
                "nt_type": "smoothgrad",
                "nt_samples": samples,
                "nt_samples_batch_size": 1,
                "stdevs": noise * float(inputs.max() - inputs.min()),
            }
        gradient = method.attribute(inputs.clone().requires_grad_(), **options).detach()
    strength = gradient.abs().amax(dim=1)
    if strength.shape[-2:] != images.shape[-2:]:
        strength = functional.interpolate(strength[:, None], tuple(images.shape[-2:]), mode="bilinear")[:, 0]
    top = strength.flatten(1).quantile(0.99, dim=1).clamp(min=torch.finfo(strength.dtype).tiny)
    return (strength / top[:, None, None]).clamp(0, 1)


def saliency_of(
    network: nn.Module, preprocess: Preprocessing, images: ImageSet, ids: Sequence[int], **options: Any
) -> dict[int, Float[Tensor, "height width"]]:
    """:func:`gradient_saliency` of the images with these ids, by id."""
    if not len(ids):
        return {}
    rows = images.rows_of(torch.tensor([int(i) for i in ids], dtype=torch.int64))
    maps = gradient_saliency(network, preprocess, images.images[rows], **options)
    return {int(i): heat for i, heat in zip(ids, maps, strict=True)}


def activation_maps(
    network: nn.Module,
    preprocess: Preprocessing,
    images: UInt8[Tensor, "image channel height width"],
    layer: str,
    channels_last: ChannelsLast = "auto",
) -> Float[Tensor, "image neuron height width"] | None:
    """The output of a layer before pooling, at the module's own output; None where it is not a map over the image.

    Args:
        network: run as in a test, its state and hooks restored.
        preprocess: uint8 images -> the network's input.
        channels_last: where the neurons are in the module's output, see
            :func:`emodissect.recording.pooling.neuron_axis`.

    Raises:
        UserError: the network has no such layer.
    """
    modules = dict(network.named_modules())
    if layer not in modules or not layer:
        raise UserError(f"The network has no layer '{layer}'. {nearest(layer, [name for name in modules if name])}")
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        first = first_tensor(output)
        if first is not None and first.ndim == 4:
            if neuron_axis(network, layer, first.shape, channels_last) == -1:
                first = first.movedim(-1, 1)
            seen.append(first.detach().clone())  # a copy: an in-place ReLU behind would overwrite it

    handle = modules[layer].register_forward_hook(keep)
    try:
        with evaluating(network), torch.no_grad():
            network(preprocess(images))
    finally:
        handle.remove()
    return seen[-1] if seen else None


def top_image_maps(
    network: nn.Module,
    preprocess: Preprocessing,
    images: ImageSet,
    neurons: pd.DataFrame,
    batch_size: int = 128,
    channels_last: ChannelsLast = "auto",
) -> dict[tuple[str, int], Float[Tensor, "rank height width"]]:
    """The activation map of each neuron over each of its top images, for the neuron cards.

    One pass a layer over the distinct top images. A map runs from 0 at the neuron's lowest to 1 at its highest value
    over its top images; of a neuron that is constant there it is 0.

    Args:
        network, preprocess: as in :func:`activation_maps`.
        neurons: rows of the neuron labels (columns layer, neuron, top_ids); choose those worth showing, e.g. the 200 of
            highest z, since each takes ten maps. Layers without maps over the image are left out.
        channels_last: as in :func:`activation_maps`.
    """
    found: dict[tuple[str, int], Tensor] = {}
    for layer, rows in neurons.groupby("layer", sort=False):
        wanted: dict[int, list[tuple[int, int]]] = {}
        for neuron, top in zip(rows["neuron"], rows["top_ids"], strict=True):
            for rank, image_id in enumerate(top):
                wanted.setdefault(int(image_id), []).append((int(neuron), rank))
        ranks = {int(neuron): len(top) for neuron, top in zip(rows["neuron"], rows["top_ids"], strict=True)}
        maps: Mapping[int, Tensor] = {}
        for part in torch.tensor(sorted(wanted)).split(batch_size) if wanted else ():
            pixels = images.images[images.rows_of(part)]
            output = activation_maps(network, preprocess, pixels, str(layer), channels_last)
            if output is None or output.shape[-2:] == (1, 1):
                break
            if not maps:
                maps = {neuron: output.new_zeros(amount, *output.shape[-2:]) for neuron, amount in ranks.items()}
            for at, image_id in enumerate(part.tolist()):
                for neuron, rank in wanted[image_id]:
                    maps[neuron][rank] = output[at, neuron]
        for neuron, stack in maps.items():
            low, high = stack.min(), stack.max()
            found[str(layer), neuron] = (stack - low) / (high - low) if high > low else torch.zeros_like(stack)
    return found
