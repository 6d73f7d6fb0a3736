"""The published VGG: names, shapes, parameters, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from emodissect.core.errors import UserError
from emodissect.models.vgg import VGG

CONVS = [f"conv{stage}{half}" for stage in "1234" for half in "ab"]


def test_full_width_has_the_published_parameters_and_names() -> None:
    with torch.device("meta"):
        network = VGG(width=1.0)
    assert sum(p.numel() for p in network.parameters()) == 29_890_759
    heads = {name.split(".")[0] for name in network.state_dict()}
    assert heads == {*CONVS, *(name.replace("conv", "bn") for name in CONVS), "lin1", "lin2", "lin3"}
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["conv1a.weight"] == (64, 1, 3, 3)
    assert shapes["conv4b.weight"] == (512, 512, 3, 3)
    assert shapes["lin1.weight"] == (4096, 2048)
    assert shapes["lin2.weight"] == (4096, 4096)
    assert shapes["lin3.weight"] == (7, 4096)


@pytest.mark.parametrize(("width", "channels", "hidden"), [(0.25, 16, 1024), (0.5, 32, 2048), (0.015625, 1, 64)])
def test_width_scales_every_layer(width: float, channels: int, hidden: int) -> None:
    network = VGG(width=width)
    assert network.conv1a.weight.shape[0] == channels
    assert network.conv4b.weight.shape[0] == 8 * channels
    assert network.lin1.weight.shape == (hidden, 8 * channels * 4)


def by_hand(network: VGG, images: torch.Tensor) -> torch.Tensor:
    """The network written again in functional form, from its state dict alone."""
    state = network.state_dict()
    x = images
    for conv in CONVS:
        bn = conv.replace("conv", "bn")
        x = F.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        mean, variance = (state[f"{bn}.running_{part}"][:, None, None] for part in ("mean", "var"))
        gain, shift = (state[f"{bn}.{part}"][:, None, None] for part in ("weight", "bias"))
        x = ((x - mean) / (variance + 1e-5).sqrt() * gain + shift).clamp(min=0)
        if conv.endswith("b"):
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    x = x.reshape(len(x), -1)
    for lin in ("lin1", "lin2"):
        x = (x @ state[f"{lin}.weight"].T + state[f"{lin}.bias"]).clamp(min=0)
    return x @ state["lin3.weight"].T + state["lin3.bias"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_forward_equals_the_slow_reference(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = VGG(width=0.0625).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
    network.to(memory_format=memory_format)
    images = torch.rand(3, 1, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(network(images), by_hand(network, images), rtol=1e-4, atol=1e-5)


def test_nothing_is_in_place_and_every_relu_is_named() -> None:
    network = VGG(width=0.0625)
    relus = {name: m for name, m in network.named_modules() if isinstance(m, nn.ReLU)}
    assert set(relus) == {*(c.replace("conv", "relu") for c in CONVS), "relu_lin1", "relu_lin2"}
    assert not any(getattr(m, "inplace", False) for m in network.modules())


@pytest.mark.parametrize("shape", [(2, 1, 48, 48), (2, 3, 40, 40), (2, 1, 40, 41), (1, 40, 40)])
def test_another_input_is_refused_before_anything_is_mixed(shape: tuple[int, ...]) -> None:
    given = "x".join(map(str, shape[1:]))
    with pytest.raises(UserError, match=rf"{given}.*1x40x40.*model\.preprocess\.size=40"):
        VGG(width=0.0625)(torch.rand(shape))


def test_a_width_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.width=0 "):
        VGG(width=0)


@pytest.mark.parametrize("width", [1.0, 0.25, 0.3, 0.0625])
def test_arguments_are_found_in_a_state_dict(width: float) -> None:
    with torch.device("meta"):
        state = VGG(num_classes=5, width=width, channels=3).state_dict()
        found = VGG.arguments_of(state)
        again = VGG(**found).state_dict()
    assert (found["num_classes"], found["channels"]) == (5, 3)
    assert found["width"] == pytest.approx(width, abs=1e-3)
    assert {n: v.shape for n, v in again.items()} == {n: v.shape for n, v in state.items()}


def test_arguments_of_another_network_are_none() -> None:
    assert VGG.arguments_of({"fc.weight": torch.zeros(7, 3)}) == {}
    assert VGG.arguments_of({}) == {}


def test_the_first_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    logits = VGG(width=0.25)(torch.rand(16, 1, 40, 40))
    assert F.cross_entropy(logits, torch.arange(16) % 7).item() == pytest.approx(1.946, abs=0.15)


def test_it_can_be_traced() -> None:
    network = VGG(width=0.0625).eval()
    images = torch.rand(2, 1, 40, 40)
    traced = torch.fx.symbolic_trace(network)
    torch.testing.assert_close(traced(images), network(images))
    with pytest.raises(UserError, match="40x40"):
        traced(torch.rand(2, 1, 48, 48))
