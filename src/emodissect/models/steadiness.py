"""Whether a network's answer to an image is one answer: the same again, and whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_AGAIN = 1e-4  # of the largest output; parallel sums may differ in their last bits
_ALONE = {torch.float32: 2e-3, torch.float64: 1e-6}  # other kernels for other batch sizes; TF32 on GPUs
_ALONE_HALF = 5e-2


def unsteady(forward: Callable[[Tensor], Tensor], images: Tensor) -> str | None:
    """Why results of a network would not hold; None where its answers depend on each image alone.

    The images go through as a batch, again, and in two halves. Random layers (dropout that is always on, a sampled
    latent) answer differently the second time; norms over the batch answer differently in halves.

    Args:
        forward: images to outputs, in evaluation mode.
        images: two or more, not all equal.

    >>> unsteady(lambda x: x.flatten(1) - x.mean(), torch.arange(8.0).reshape(4, 2))
    'its answer to an image depends on the other images of the batch (outputs differ by up to 57.1 % in half batches)'
    """
    with torch.inference_mode():
        whole, again = forward(images), forward(images)
        half = len(images) // 2
        halves = torch.cat([forward(images[:half]), forward(images[half:])])
    scale = float(whole.abs().max().clamp(min=1e-12))
    if not bool(whole.isfinite().all()):
        bad = int((~whole.flatten(1).isfinite()).any(1).sum())
        return f"it gives NaN or infinite outputs for {bad} of {len(images)} images"
    if (apart := float((whole - again).abs().max()) / scale) > _AGAIN:
        return f"it answers differently each time (outputs differ by up to {100 * apart:.1f} % on the same images)"
    if (apart := float((whole - halves).abs().max()) / scale) > _ALONE.get(whole.dtype, _ALONE_HALF):
        return (
            "its answer to an image depends on the other images of the batch (outputs differ by up to "
            f"{100 * apart:.1f} % in half batches)"
        )
    return None
