"""Saliency compared with gradients worked out by hand; activation maps with the layer's own output."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.dissection.saliency import activation_maps, gradient_saliency, saliency_of, top_image_maps


def as_float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


class Weighted(nn.Module):
    """Two classes, each a weighted sum of the pixels."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.drop(inputs).flatten(1) @ self.weights.flatten(1).T


class Small(nn.Module):
    """Two convolutional neurons followed by an in-place ReLU, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.conv(inputs)).mean(dim=(2, 3)))


@pytest.fixture
def faces() -> ImageSet:
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.zeros(6, dtype=torch.int64), torch.arange(6) * 10)


def test_saliency_is_the_absolute_weight_of_the_predicted_class() -> None:
    weights = torch.zeros(2, 1, 2, 2)
    weights[0, 0] = torch.tensor([[-4.0, 2.0], [1.0, 0.0]])
    weights[1, 0] = torch.tensor([[1.0, 1.0], [3.0, 5.0]])
    network = Weighted(weights).train()
    images = torch.tensor([[[[0, 255], [0, 0]]], [[[0, 0], [0, 255]]]], dtype=torch.uint8)
    heat = gradient_saliency(network, as_float, images)
    first, second = torch.tensor([[4.0, 2.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, 5.0]])
    # The scale is each map's 99th percentile: 0.97 of the way from the second largest to the largest of four values.
    expected = torch.stack([first / (2 + 0.97 * 2), second / (3 + 0.97 * 2)]).clamp(max=1)
    torch.testing.assert_close(heat, expected)
    assert network.training
    assert network.drop.training
    assert network.weights.grad is None


def test_saliency_comes_back_in_the_size_of_the_images_and_smoothing_is_seeded(faces: ImageSet) -> None:
    network = Weighted(torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1)))

    def halved(images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(as_float(images), 2)

    state = torch.random.get_rng_state()
    first = saliency_of(network, halved, faces, [30, 10], samples=3, seed=5)
    again = saliency_of(network, halved, faces, [30, 10], samples=3, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(first) == [30, 10]
    assert first[30].shape == (4, 4)
    assert torch.equal(first[30], again[30])
    assert saliency_of(network, halved, faces, []) == {}


def test_a_network_that_looks_at_nothing_gives_zeros(faces: ImageSet) -> None:
    heat = gradient_saliency(Weighted(torch.zeros(2, 1, 4, 4)), as_float, faces.images)
    assert heat.eq(0).all()


def test_activation_maps_are_the_module_s_own_output_before_the_in_place_relu(faces: ImageSet) -> None:
    network = Small()
    maps = activation_maps(network, as_float, faces.images, "conv")
    assert maps is not None
    torch.testing.assert_close(maps[:, 0], as_float(faces.images)[:, 0])
    torch.testing.assert_close(maps[:, 1], -as_float(faces.images)[:, 0])
    assert not network.conv._forward_hooks
    assert activation_maps(network, as_float, faces.images, "head") is None
    with pytest.raises(UserError, match=r"no layer 'cnov'\. Did you mean 'conv'"):
        activation_maps(network, as_float, faces.images, "cnov")


def test_the_hook_is_taken_off_after_an_exception(faces: ImageSet) -> None:
    network = Small()

    def broken(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        activation_maps(network, broken, faces.images, "conv")
    assert not network.conv._forward_hooks


def test_maps_of_top_images_run_from_the_lowest_to_the_highest_value(faces: ImageSet) -> None:
    labels = pd.DataFrame(
        {"layer": ["conv", "conv", "head"], "neuron": [0, 1, 0], "top_ids": [[50, 0, 20], [0, 10], [10, 20]]}
    )
    maps = top_image_maps(Small(), as_float, faces, labels, batch_size=2)
    assert set(maps) == {("conv", 0), ("conv", 1)}
    pixels = as_float(faces.images[[5, 0, 2], 0])
    torch.testing.assert_close(maps["conv", 0], (pixels - pixels.min()) / (pixels.max() - pixels.min()))
    pixels = -as_float(faces.images[[0, 1], 0])
    torch.testing.assert_close(maps["conv", 1], (pixels - pixels.min()) / (pixels.max() - pixels.min()))


def test_maps_of_a_channels_last_layer_are_of_its_neurons(faces: ImageSet) -> None:
    class Last(nn.Module):
        """Like ConvNeXt's blocks: a linear layer over (image height width neuron)."""

        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(1, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x.movedim(1, -1)).mean((1, 2))

    network = Last()
    maps = activation_maps(network, as_float, faces.images, "mlp")
    assert maps is not None
    weight, bias = network.mlp.weight[7, 0].item(), network.mlp.bias[7].item()
    torch.testing.assert_close(maps[:, 7], weight * as_float(faces.images)[:, 0] + bias)
    labels = pd.DataFrame({"layer": ["mlp"], "neuron": [8], "top_ids": [[50, 0]]})
    assert top_image_maps(network, as_float, faces, labels)["mlp", 8].shape == (2, 4, 4)
    assert activation_maps(network, as_float, faces.images, "mlp", channels_last=False).shape[1] == 4  # type: ignore[union-attr]
