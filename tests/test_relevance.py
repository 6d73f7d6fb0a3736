"""Relevance worked out by hand, for flat layers and feature maps, and the table of neurons' effects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.dissection.relevance import Relevance, relevance, relevance_table
from emodissect.recording import LayerActivations


class Small(nn.Module):
    """A convolution, its mean over positions, a ReLU, and two linear layers; one layer does not reach the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.fc1 = nn.Linear(3, 5)
        self.fc2 = nn.Linear(5, 4)
        self.unused = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        mean = maps.relu().mean((2, 3))
        self.unused(mean)
        return self.fc2(self.drop(self.fc1(mean)).relu())


def images(amount: int = 12) -> ImageSet:
    pixels = torch.randint(0, 256, (amount, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageSet(pixels, torch.zeros(amount, dtype=torch.int64), torch.arange(amount).flip(0) * 3)


def preprocess(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 128 - 1


def test_relevance_is_gradient_times_activation_of_the_predicted_class() -> None:
    network, probe = Small().train(), images()
    found = relevance(network, preprocess, probe, ["conv", "fc1", "fc2"], batch_size=5)
    assert network.training
    assert network.drop.training
    network.eval()
    order = probe.ids.argsort()
    with torch.no_grad():
        maps = network.conv(preprocess(probe.images[order]))
        hidden = network.fc1(maps.relu().mean((2, 3)))
        logits = network.fc2(hidden.relu())
        predicted = logits.argmax(1)
        gate = (hidden > 0).float()
        by_class = gate[:, None] * network.fc2.weight[None]  # image class neuron
        own = by_class[torch.arange(12), predicted]
    assert found["fc1"].ids.tolist() == sorted(probe.ids.tolist())
    assert torch.allclose(found["fc1"].values, own * hidden, atol=1e-5)
    assert torch.allclose(found["fc1"].gradients, by_class.mean(0).t(), atol=1e-5)
    chosen = torch.nn.functional.one_hot(predicted, 4)
    assert torch.allclose(found["fc2"].values, chosen * logits, atol=1e-5)
    assert torch.allclose(found["fc2"].gradients, torch.eye(4), atol=1e-6)
    # of a map: sum over positions of gradient x activation
    to_mean = own @ network.fc1.weight  # image channel
    expected = (to_mean[:, :, None, None] * (maps > 0) * maps / 36).sum((2, 3))
    assert torch.allclose(found["conv"].values, expected, atol=1e-5)


def test_a_gradient_is_what_the_logit_rises_by_where_the_neuron_is_raised() -> None:
    network, probe = Small().eval(), images()
    found = relevance(network, preprocess, probe, ["fc1"])["fc1"].gradients
    with torch.no_grad():
        before = network(preprocess(probe.images)).mean(0)
        network.fc1.bias[2] += 1e-3
        after = network(preprocess(probe.images)).mean(0)
    assert torch.allclose((after - before) / 1e-3, found[2], atol=2e-3)


def test_a_layer_that_no_logit_depends_on_is_an_error() -> None:
    with pytest.raises(UserError, match="do not depend on unused"):
        relevance(Small(), preprocess, images(), ["fc1", "unused"])


def test_the_table_says_what_a_neuron_drives_and_whether_both_labels_agree() -> None:
    activations = torch.tensor([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    layer = LayerActivations.of("fc", torch.arange(4), activations)
    values = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.2, 1.0], [0.3, 2.0]])
    gradients = torch.tensor([[0.5, -2.0], [0.0, 1.0]])
    found = Relevance(torch.arange(4), values, gradients)
    table = relevance_table(found, layer, ["smile", "tears"], ["smile", "frown"], ["happy", "sad"], top_images=2)
    spread = activations.std(0, correction=0)
    assert table["drives"].tolist() == ["−sad", "sad"]
    assert table["effect"].tolist() == pytest.approx([-2 * float(spread[0]), float(spread[1])])
    assert table["effect_happy"].tolist() == pytest.approx([0.5 * float(spread[0]), 0.0])
    assert table["same_label"].tolist() == [True, False]
    assert table["shared_top"].tolist() == [1.0, 0.0]
    assert table["relevance_top_ids"].tolist() == [[3, 2], [3, 2]]
