"""Conversion of uint8 images to a network's input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from emodissect.core.errors import UserError, nearest

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as PIL's mode L


class Preprocess(nn.Module):
    """Batched, deterministic preprocessing on the images' device.

    Values to [0, 1], grey or RGB by `channels`, then resize or centre crop to `size` x `size`, then (x - mean) / std.
    Resizing is bilinear with antialiasing, as in PIL and torchvision, but in float, without rounding to 256 levels.

    Args:
        size: height and width of the network's input; None keeps the images' size.
        channels: 1 (grey) or 3 (RGB); grey images are repeated, RGB images weighted (.299, .587, .114).
        mean: subtracted: one number, or one per channel, in [0, 1].
        std: divided by: one number, or one per channel.
        how: "resize" or "crop" (the centre).
        views: "single", or "ten_crop": evaluation averages the logits of ten crops (`crops`).
        crop_from: images are resized to this size before cropping; None crops them without resizing.

    Raises:
        UserError: an option, size or number of channels that is not accepted.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | None = 40,
        channels: int = 1,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        how: str = "resize",
        views: str = "single",
        crop_from: int | None = None,
    ) -> None:
        super().__init__()
        for key, word, known in (("how", how, ("resize", "crop")), ("views", views, ("single", "ten_crop"))):
            if word not in known:
                raise UserError(f"model.preprocess.{key}={word} is not known. {nearest(word, known)}")
        if channels not in (1, 3):
            raise UserError(f"model.preprocess.channels={channels}: 1 (grey) and 3 (RGB) are accepted.")
        if size is not None and size < 1:
            raise UserError(f"model.preprocess.size={size}: give the height and width in pixels, or null.")
        if size is None and views == "ten_crop":
            raise UserError("model.preprocess.views=ten_crop needs model.preprocess.size, the size of a crop.")
        self.size, self.channels, self.how, self.views, self.crop_from = size, channels, how, views, crop_from
        # not persistent: they belong to the config, and a checkpoint only has the network's weights
        self.register_buffer("mean", _by_channel("mean", mean, channels), persistent=False)
        self.register_buffer("std", _by_channel("std", std, channels), persistent=False)
        if bool((self.std <= 0).any()):
            raise UserError(f"model.preprocess.std={std}: every value must be above 0 (values are in [0, 1] first).")
        self._plain = not bool(self.mean.any()) and bool((self.std == 1).all())

    def forward(
        self, images: UInt8[Tensor, "image c h w"] | Float[Tensor, "image c h w"]
    ) -> Float[Tensor, "image channel size size"]:
        """One view of each image. Float images must already be in [0, 1] (after an augmentation)."""
        x = self._values(images)
        if self.size is not None and tuple(x.shape[-2:]) != (self.size, self.size):
            if self.how == "resize":
                x = _resized(x, self.size)
            else:
                x = TF.center_crop(self._croppable(x), [self.size, self.size])
        return self._standardised(x)

    def crops(
        self, images: UInt8[Tensor, "image c h w"] | Float[Tensor, "image c h w"]
    ) -> Float[Tensor, "10 image channel size size"]:
        """Ten views of each image: the four corners and the centre, and the same five flipped."""
        if self.size is None:
            raise UserError("ten crops need model.preprocess.size, the size of a crop.")
        x = self._croppable(self._values(images))
        return self._standardised(torch.stack(TF.ten_crop(x, [self.size, self.size])))

    @contextmanager
    def single(self) -> Iterator[None]:
        """Context manager: one view of each image, so that each has one row of activations."""
        views, self.views = self.views, "single"
        try:
            yield
        finally:
            self.views = views

    def extra_repr(self) -> str:
        return f"size={self.size}, channels={self.channels}, how={self.how}, views={self.views}"

    def _values(self, images: Tensor) -> Tensor:
        x = images.float().div_(255) if images.dtype == torch.uint8 else images
        given = x.shape[1]
        if given == self.channels:
            return x
        if given == 1:
            return x.expand(-1, self.channels, -1, -1)
        if given == 3:
            weights = torch.tensor(_LUMA, device=x.device, dtype=x.dtype)
            return torch.einsum("nchw,c->nhw", x, weights).unsqueeze(1)
        raise UserError(f"images of {given} channels were given; 1 (grey) and 3 (RGB) are accepted.")

    def _croppable(self, x: Tensor) -> Tensor:
        if self.crop_from is not None and tuple(x.shape[-2:]) != (self.crop_from, self.crop_from):
            x = _resized(x, self.crop_from)
        height, width = x.shape[-2:]
        if self.size is not None and min(height, width) < self.size:
            raise UserError(
                f"a crop of {self.size}x{self.size} does not fit images of {height}x{width}. "
                f"Set model.preprocess.crop_from to {round(self.size * 1.2)} (they are resized to it first)."
            )
        return x

    def _standardised(self, x: Tensor) -> Tensor:
        return x if self._plain else (x - self.mean) / self.std


def _resized(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _by_channel(key: str, values: float | Sequence[float], channels: int) -> Float[Tensor, "channel 1 1"]:
    numbers = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
    if len(numbers) not in (1, channels):
        raise UserError(
            f"model.preprocess.{key} has {len(numbers)} values for {channels} channels: give one, or one per channel."
        )
    return torch.tensor(numbers * (channels // len(numbers))).reshape(channels, 1, 1)
