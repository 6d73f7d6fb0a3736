"""Locates evidence in images: gradient saliency of the predicted class, and activation maps of neurons."""

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

#: maps uint8 images to the network's input, one view per image
Preprocessing = Callable[[Tensor], Tensor]


def gradient_saliency(
    network: nn.Module,
    preprocess: Preprocessing,
    images: UInt8[Tensor, "image channel height width"],
    samples: int = 0,
    noise: float = 0.1,
    seed: int = 0,
) -> Float[Tensor, "image height width"]:
    """Gradient saliency maps of the predicted class.

    The absolute gradient of the highest logit with respect to the input (Simonyan et al. 2014), maximum over channels,
    divided by its 99th percentile in each image and clipped at 1; computed by captum. With ``samples``, the mean over
    noisy copies of the input (SmoothGrad, Smilkov et al. 2017), which gives smoother maps.

    Args:
        network: returns logits; run in eval mode, its state restored.
        preprocess: maps uint8 images to the network's input; the map is resized to the images' size.
        samples: number of noisy copies; 0 takes the plain gradient.
        noise: standard deviation of the noise, as a fraction of the input's range.
        seed: random seed of the noise; the global random state is unchanged.

    Returns:
        Values in [0, 1]; all 0 if no pixel has a gradient.
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
    """A layer's unpooled output; None if it is not a spatial map.

    Args:
        network: run in eval mode, its state and hooks restored.
        preprocess: maps uint8 images to the network's input.
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
            seen.append(first.detach().clone())  # a clone, since a following in-place ReLU would overwrite it

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
    """The activation map of each neuron on each of its top images, for the neuron cards.

    Takes one forward pass per layer over the distinct top images. Maps are scaled from the neuron's minimum (0) to its
    maximum (1) over its top images; the maps of a neuron that is constant there are 0.

    Args:
        network, preprocess: as in :func:`activation_maps`.
        neurons: rows of the neuron labels (columns layer, neuron, top_ids), e.g. the 200 neurons with the highest z;
            each needs as many maps as it has top images. Layers without spatial maps are left out.
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
