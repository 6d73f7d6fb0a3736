"""CLIP's image preprocessing, batched from uint8 tensors instead of one PIL image at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

_INTERPOLATION = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True)
class ClipImages:
    """open_clip's evaluation transform for a whole batch.

    Resizes with antialiasing (in uint8, as PIL does), crops or pads to the model's size, expands grey to three
    channels, subtracts the mean and divides by the standard deviation. Pixels differ from open_clip's PIL transform by
    at most one grey level of 255, by .1 on average (tests/test_scorers.py).

    Attributes:
        height: height of the model's input.
        width: width of the model's input.
        mean: mean per channel, for values in [0, 1].
        std: standard deviation per channel.
        interpolation: ``bicubic`` or ``bilinear``.
        resize_mode: ``shortest`` (fill and crop), ``longest`` (fit and pad) or ``squash``.
        fill_color: grey level of the padding.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> ClipImages:
        """Creates the transform from open_clip's preprocessing config (``size``, ``mean``, ``std``, ...)."""
        size = cfg["size"]
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return cls(
            int(height),
            int(width),
            tuple(float(value) for value in cfg["mean"]),
            tuple(float(value) for value in cfg["std"]),
            cfg["interpolation"] if cfg["interpolation"] in _INTERPOLATION else "bicubic",
            cfg["resize_mode"],
            int(cfg.get("fill_color", 0)),
        )

    def __call__(
        self, images: UInt8[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image 3 clip_height clip_width"]:
        """The model's input for a batch of grey or RGB images."""
        height, width = images.shape[-2:]
        target = [self.height, self.width]
        if self.resize_mode != "squash":
            fit = max if self.resize_mode == "shortest" else min
            ratio = fit(self.height / height, self.width / width)
            # torchvision rounds the dependent side down, open_clip's own resizing to the nearest integer.
            whole = (lambda side: int(side + 1e-6)) if self.resize_mode == "shortest" else round
            target = [max(1, whole(height * ratio)), max(1, whole(width * ratio))]
        if target != [height, width]:
            # Resized before the expansion to three channels, which is cheaper.
            images = tv.resize(images, target, interpolation=_INTERPOLATION[self.interpolation], antialias=True)
        short = (max(0, self.height - target[0]), max(0, self.width - target[1]))
        if any(short):
            top, left = short[0] // 2, short[1] // 2
            images = F.pad(images, (left, short[1] - left, top, short[0] - top), value=self.fill_color)
        images = tv.center_crop(images, [self.height, self.width])
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)
