"""Recomputes BatchNorm statistics behind an edited layer, since the stored ones are those of the unedited network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from emodissect.core.evaluation_mode import evaluating
from emodissect.data.images import ImageSet
from emodissect.models.inference import Inference

_IMAGES_AT_ONCE = 256


@torch.no_grad()
def batchnorm_behind(inference: Inference, layer: str, example: Tensor) -> list[str]:
    """Paths of the BatchNorm layers with running statistics whose input depends on the layer's output.

    Args:
        example: some uint8 images, to test the dependence on.
    """
    network = inference.network
    kept = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and name != layer
    }
    seen: list[dict[str, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: seen[-1].__setitem__(name, given[0].clone()))
        for name, module in kept.items()
    ]
    try:
        with evaluating(network):
            seen.append({})
            inference(example)
            handles.append(network.get_submodule(layer).register_forward_hook(lambda _, __, output: 2 * output + 1))
            seen.append({})
            inference(example)
    finally:
        for handle in handles:
            handle.remove()
    before, after = seen
    return [name for name in before if not torch.equal(before[name], after[name])]


@contextmanager
def recalibrated(inference: Inference, names: list[str], images: ImageSet) -> Iterator[Inference]:
    """Context manager that recomputes BatchNorm statistics on images and restores every bit on exit.

    Mean and variance are averaged over batches of 256 images, all layers at once, so that each layer sees the output of
    recalibrated layers before it; dropout stays off.
    """
    network = inference.network
    layers = [network.get_submodule(name) for name in names]
    state = [{name: value.clone() for name, value in layer.named_buffers()} for layer in layers]
    momentum = [layer.momentum for layer in layers]
    device = next(network.parameters()).device
    try:
        with evaluating(network), torch.no_grad():
            for layer in layers:
                assert isinstance(layer, _BatchNorm)
                layer.reset_running_stats()
                layer.momentum = None  # the plain average over batches
                layer.training = True
            for start in range(0, len(images), _IMAGES_AT_ONCE):
                inference(images.images[start : start + _IMAGES_AT_ONCE].to(device))
            for layer in layers:
                layer.training = False
        yield inference
    finally:
        with torch.no_grad():
            for layer, kept, was in zip(layers, state, momentum, strict=True):
                layer.momentum = was
                for name, value in layer.named_buffers():
                    value.copy_(kept[name])
