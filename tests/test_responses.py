"""Activations by class, and neurons' contributions to the logits, on networks worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from emodissect.app.stages.neuron_facts import edited_neurons
from emodissect.dissection.responses import Responses, by_class, logit_effects
from emodissect.editing.edit import Edit


def test_a_neuron_before_the_logits_adds_its_mean_activation_times_its_weight() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).train()
    inputs = torch.randn(20, 4)
    with torch.no_grad():
        active = network[:2](inputs)
    effects = logit_effects(network, inputs, ["1", "0"], batch_size=7)
    torch.testing.assert_close(effects["1"], active.mean(0)[:, None] * network[2].weight.T)
    torch.testing.assert_close(effects["0"], effects["1"])  # through a ReLU: activation x gradient is the same
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network[0]._forward_hooks


def test_positions_of_a_map_are_summed_and_logits_are_put_in_order() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2, bias=False))
    inputs = torch.randn(6, 1, 2, 2)
    with torch.no_grad():
        maps = network[0](inputs).flatten(2)  # image neuron position
    weight = network[2].weight.view(2, 2, 4)  # class neuron position
    expected = torch.einsum("inp,cnp->nc", maps, weight) / 6
    torch.testing.assert_close(logit_effects(network, inputs, ["0"])["0"], expected)
    flipped = logit_effects(network, inputs, ["0"], lambda output: output.flip(1))["0"]
    torch.testing.assert_close(flipped, expected.flip(1))


def test_activations_by_class_and_a_class_without_images(tmp_path: Path) -> None:
    activations = torch.arange(10.0)[:, None] * torch.tensor([1.0, -1.0])
    labels = torch.tensor([0] * 5 + [2] * 5)
    quantiles, mean = by_class(activations, labels, 3)
    assert quantiles[0, 0, 2] == 2
    assert quantiles[1, 2, 2] == -7
    assert mean[0, [0, 2]].tolist() == [2, 7]
    assert bool(quantiles[:, 1].isnan().all())
    found = Responses(quantiles, mean, activations.std(0))
    found.save(tmp_path / "fc.safetensors")
    again = Responses.load(tmp_path / "fc.safetensors")
    torch.testing.assert_close(again.quantiles, quantiles, equal_nan=True)
    assert again.effects is None


@pytest.mark.parametrize(("values", "said"), [([1.0, 1.5, 0.0], {1: "× 1.5", 2: "× 0"}), ([1.0, 1.0, 1.0], {})])
def test_only_changed_neurons_count_as_edited(values: list[float], said: dict[int, str]) -> None:
    assert edited_neurons(Edit("fc", values)) == {("fc", neuron): text for neuron, text in said.items()}
