"""The tiny CLIP's image tower: a plain convolutional network for 48 x 48 faces, registered with timm for open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn

IMAGE_SIZE = 48


class FaceTower(nn.Module):
    """Stages of [convolution 3x3 -> BatchNorm -> ReLU], with 2x2 max pooling between stages; the output is flattened.

    The last map is flattened instead of averaged, because positions within a face matter. The first convolution has
    stride 2, which halves the cost and is still fine enough for the drawings.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 192), depths: Sequence[int] = (2, 2, 2, 1)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for place in range(depth):
                stride = 2 if stage == place == 0 else 1
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                before = width
        self.layers = nn.Sequential(*layers)
        side = IMAGE_SIZE // 2 ** len(widths)
        self.num_features = widths[-1] * side * side
        self.default_cfg: dict[str, Any] = {"pool_size": (side, side)}

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """Does nothing, since the tower has no classifier; called by open_clip's timm adapter."""

    def forward(self, images: Float[Tensor, "image 3 48 48"]) -> Float[Tensor, "image feature"]:
        return torch.flatten(self.layers(images), 1)


@register_model
def face_tower(pretrained: bool = False, **ignored: Any) -> FaceTower:
    """Creates the tower, under the name used in ``tiny-face-clip.json``; weights are loaded with those of the CLIP."""
    return FaceTower()
