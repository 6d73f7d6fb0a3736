"""Deep-Emotion: names, shapes, the spatial transformer, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from emodissect.core.errors import UserError
from emodissect.models.deep_emotion import DeepEmotion

SHAPES = {
    "conv1.weight": (10, 3, 3, 3),
    "conv2.weight": (10, 10, 3, 3),
    "conv3.weight": (10, 10, 3, 3),
    "conv4.weight": (10, 10, 3, 3),
    "norm.weight": (10,),
    "fc1.weight": (50, 810),
    "fc2.weight": (7, 50),
    "localization.0.weight": (8, 3, 7, 7),
    "localization.3.weight": (10, 8, 5, 5),
    "fc_loc.0.weight": (32, 640),
    "fc_loc.2.weight": (6, 32),
}


def test_state_has_the_names_and_shapes_of_the_open_implementation() -> None:
    state = {name: tuple(value.shape) for name, value in DeepEmotion().state_dict().items()}
    assert {name: state[name] for name in SHAPES} == SHAPES
    assert {name.split(".")[0] for name in state} == {name.split(".")[0] for name in SHAPES}


def test_the_transformer_begins_as_the_identity() -> None:
    images = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(DeepEmotion().attend(images), images, rtol=0, atol=1e-5)


def test_the_transformer_moves_the_image_as_theta_says() -> None:
    network = DeepEmotion(channels=1)
    with torch.no_grad():  # x' = -x: a mirror image
        network.fc_loc[2].bias.copy_(torch.tensor([-1.0, 0, 0, 0, 1, 0]))
    images = torch.rand(2, 1, 48, 48)
    torch.testing.assert_close(network.attend(images), images.flip(-1), rtol=0, atol=1e-5)


def test_forward_equals_the_slow_reference() -> None:
    torch.manual_seed(0)
    network = DeepEmotion().eval()
    images = torch.rand(2, 3, 48, 48)
    s = network.state_dict()
    with torch.no_grad():
        x = network.attend(images)
        x = F.conv2d(x, s["conv1.weight"], s["conv1.bias"]).clamp(min=0)
        x = F.max_pool2d(F.conv2d(x, s["conv2.weight"], s["conv2.bias"]), 2).clamp(min=0)
        x = F.conv2d(x, s["conv3.weight"], s["conv3.bias"]).clamp(min=0)
        x = F.conv2d(x, s["conv4.weight"], s["conv4.bias"]) / (1 + 1e-5) ** 0.5
        x = F.max_pool2d(x, 2).clamp(min=0).reshape(2, 810)
        x = (x @ s["fc1.weight"].T + s["fc1.bias"]).clamp(min=0)
        expected = x @ s["fc2.weight"].T + s["fc2.bias"]
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_another_input_is_refused() -> None:
    with pytest.raises(UserError, match=r"1x48x48.*3x48x48.*model\.preprocess\.channels=3"):
        DeepEmotion()(torch.rand(2, 1, 48, 48))


def test_arguments_are_found_in_a_state_dict() -> None:
    arguments = {"num_classes": 8, "channels": 1, "maps": 12, "hidden": 20}
    assert DeepEmotion.arguments_of(DeepEmotion(**arguments).state_dict()) == arguments
    assert DeepEmotion.arguments_of({"conv1.weight": torch.zeros(64, 3, 7, 7)}) == {}
