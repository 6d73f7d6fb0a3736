"""Deep-Emotion: a small attentional convolutional network for 48 x 48 faces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from emodissect.core.errors import UserError
from emodissect.models.network_input import require_input

torch.fx.wrap("require_input")  # one opaque call in a traced graph


class DeepEmotion(nn.Module):
    """A spatial transformer that attends to a part of the face, then four convolutions and two linear layers.

    `localization` and `fc_loc` give an affine map theta of the image; the image is sampled at theta. Then
    `conv1` -> relu -> `conv2` -> pool -> relu -> `conv3` -> relu -> `conv4` -> `norm` -> pool -> relu -> dropout ->
    `fc1` (9 * 9 * maps in) -> relu -> `fc2` gives the logits. Submodule names and shapes are those of the widely used
    open implementation, so its state dicts fit; pools and ReLUs are named modules without state.

    Args:
        channels: input channels: 3 in the study's variant, 1 in the paper.
        maps: feature maps of each convolution.

    Source: Minaee, Minaei & Abdolrashidi, "Deep-Emotion: Facial Expression Recognition Using Attentional Convolutional
    Network", 2019, section 3; the spatial transformer: Jaderberg et al. 2015.
    """

    size = 48

    def __init__(
        self, num_classes: int = 7, channels: int = 3, maps: int = 10, hidden: int = 50, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if maps < 1 or hidden < 1:
            raise UserError(f"model.maps={maps} model.hidden={hidden}: both must be at least 1.")
        self.channels, self.num_classes = channels, num_classes
        self.conv1, self.relu1 = nn.Conv2d(channels, maps, 3), nn.ReLU()
        self.conv2, self.pool2, self.relu2 = nn.Conv2d(maps, maps, 3), nn.MaxPool2d(2), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(maps, maps, 3), nn.ReLU()
        self.conv4, self.norm = nn.Conv2d(maps, maps, 3), nn.BatchNorm2d(maps)
        self.pool4, self.relu4 = nn.MaxPool2d(2), nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc1, self.relu_fc1 = nn.Linear(9 * 9 * maps, hidden), nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)
        self.localization = nn.Sequential(
            nn.Conv2d(channels, 8, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 5), nn.MaxPool2d(2), nn.ReLU()
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 6))
        # Training starts with the identity transform: the whole image.
        last = self.fc_loc[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))

    def attend(self, images: Float[Tensor, "image channel 48 48"]) -> Float[Tensor, "image channel 48 48"]:
        """The images after the spatial transformer."""
        theta = self.fc_loc(torch.flatten(self.localization(images), 1)).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    def forward(self, images: Float[Tensor, "image channel 48 48"]) -> Float[Tensor, "image class"]:
        """Logits of the images.

        Raises:
            UserError: images of another size or number of channels.
        """
        x = self.attend(require_input(images, "DeepEmotion", self.channels, self.size))
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.pool2(self.conv2(x)))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.pool4(self.norm(self.conv4(x))))
        x = torch.flatten(self.dropout(x), 1)
        return self.fc2(self.relu_fc1(self.fc1(x)))

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments that fit a state dict, or {} if it is not a state dict of this network."""
        wanted = ("conv1.weight", "conv4.weight", "fc1.weight", "fc2.weight", "fc_loc.0.weight")
        if any(name not in state for name in wanted) or state["conv1.weight"].ndim != 4:
            return {}
        return {
            "num_classes": int(state["fc2.weight"].shape[0]),
            "channels": int(state["conv1.weight"].shape[1]),
            "maps": int(state["conv1.weight"].shape[0]),
            "hidden": int(state["fc1.weight"].shape[0]),
        }
