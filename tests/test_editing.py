"""Rules compared with results worked out by hand; edits restore every bit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.editing import Ablate, Edit, Proportional, Rule, Scale, ScaleChosen, Scaling, Shift, bake, edited
from emodissect.editing.editable import next_layer_of
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.operations import Target
from emodissect.models.inference import Inference

SELECTED = torch.tensor([True, False, True])
SIMILARITY = torch.tensor([2.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("rule", "scale"),
    [
        (Scale(factor=2.0), [2.0, 0.5, 2.0]),
        (ScaleChosen(factor=2.0), [2.0, 1.0, 2.0]),
        (Proportional(factor=3.0), [3.0, 1.0, 1.5]),
        (Ablate(), [0.0, 1.0, 0.0]),
    ],
)
def test_rules(rule: Rule, scale: list[float]) -> None:
    assert rule(SELECTED, SIMILARITY).values.tolist() == scale


def test_proportional_leaves_dead_neurons() -> None:
    scale = Proportional(factor=2.0)(torch.ones(3, dtype=torch.bool), torch.tensor([torch.nan, 0.0, 4.0]))
    assert scale.values.tolist() == [1.0, 0.0, 2.0]
    with pytest.raises(UserError, match="all are equal"):
        Proportional()(SELECTED, torch.ones(3))


def three_neurons() -> nn.Sequential:
    """x = (1, 1) -> z = (1, 2, -1) + b (0, 1, 2) = (1, 3, 1) -> relu -> out = (1 + 2*3 + 3*1, 1 - 1)."""
    network = nn.Sequential(
        OrderedDict(hidden=nn.Linear(2, 3), relu=nn.ReLU(inplace=True), drop=nn.Dropout(), out=nn.Linear(3, 2))
    )
    network.hidden.weight.data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 1.0]])
    network.hidden.bias.data = torch.tensor([0.0, 1.0, 2.0])
    network.out.weight.data = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, -1.0]])
    network.out.bias.data = torch.zeros(2)
    return network.eval()


@pytest.mark.parametrize(
    ("parameters", "logits"),
    [
        # s = (2, 1/2, 2): z = (2, 2 * .5 + 1, -1 * 2 + 2) = (2, 2, 0)
        ("weight", [2.0 + 4.0 + 0.0, 2.0]),
        # z = s * (1, 3, 1) = (2, 1.5, 2)
        ("weight_and_bias", [2.0 + 3.0 + 6.0, 0.0]),
        # columns of out x s: (2, 1, 6) and (2, 0, -2)
        ("outgoing", [2.0 + 3.0 + 6.0, 2.0 - 2.0]),
    ],
)
def test_hand_worked_network(parameters: str, logits: list[float]) -> None:
    network = three_neurons()
    edit = Edit("hidden", Scale(2.0, parameters)(SELECTED))
    images = torch.ones(1, 2)
    assert network(images).tolist() == [[10.0, 0.0]]
    with edited(network, edit) as same:
        assert same is network
        assert network(images).tolist() == [logits]
    assert network(images).tolist() == [[10.0, 0.0]]
    other = three_neurons()
    other.load_state_dict(bake(network, edit))
    assert other(images).tolist() == [logits]
    assert network(images).tolist() == [[10.0, 0.0]]


class Small(nn.Module):
    """conv -> bn -> relu -> pool -> flatten by view -> lin -> out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.pool, self.lin, self.out = nn.MaxPool2d(2), nn.Linear(12, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, 4, 4):
            raise UserError("wrong size")
        x = self.pool(self.relu(self.bn(self.conv(x))))
        x = x.view(x.size(0), -1)
        return self.out(torch.relu(self.lin(x)))


def bits(network: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in network.state_dict().items()}


NEURONS = {"conv": 3, "lin": 5, "out": 2}
NEXT = {"conv": "lin", "lin": "out", "out": None}


@given(data=st.data(), wild=st.sampled_from([0.0, -0.0, 1e-42, float("inf"), float("-inf"), float("nan"), 1e38]))
@settings(max_examples=60, deadline=None)
def test_any_edit_any_exception_leaves_every_bit(data: st.DataObject, wild: float) -> None:
    torch.manual_seed(0)
    network = Small()
    network.lin.weight.data[0, 0] = wild
    before, addresses = bits(network), [p.data_ptr() for p in network.parameters()]
    edits = []
    for _ in range(data.draw(st.integers(1, 3))):
        layer = data.draw(st.sampled_from(["conv", "lin", "out"]))
        kinds = ["weight", "weight_and_bias", *(["outgoing"] if NEXT[layer] else [])]
        count = NEURONS[layer]
        scale = data.draw(st.lists(st.floats(-1e30, 1e30), min_size=count, max_size=count))
        edits.append(Edit(layer, Scaling(scale, data.draw(st.sampled_from(kinds)), NEXT[layer])))
    failure = data.draw(st.sampled_from([None, ValueError, KeyboardInterrupt, UserError]))
    try:
        with edited(network, *edits), edited(network, edits[0]):
            if failure:
                raise failure("stop")
    except (ValueError, KeyboardInterrupt, UserError):
        pass
    assert bits(network) == before
    assert [p.data_ptr() for p in network.parameters()] == addresses
    bake(network, *edits)
    assert bits(network) == before


def test_a_mistake_in_the_second_edit_changes_nothing() -> None:
    network = Small()
    before = bits(network)
    good, bad = Edit("conv", torch.full((3,), 2.0)), Edit("lin", torch.ones(4))
    with pytest.raises(UserError, match="has 5 neurons, but the edit has values for 4"), edited(network, good, bad):
        pass
    assert bits(network) == before


def test_gradients_still_flow_inside() -> None:
    network = three_neurons()
    with edited(network, Edit("hidden", torch.full((3,), 2.0))):
        network(torch.ones(1, 2)).sum().backward()
    assert network.out.weight.grad is not None
    with torch.inference_mode(), edited(network, Edit("hidden", torch.zeros(3))):
        pass
    assert network(torch.ones(1, 2)).tolist() == [[10.0, 0.0]]


def test_outgoing_of_a_map_repeats_over_positions() -> None:
    torch.manual_seed(0)
    network, images = Small().eval(), torch.rand(3, 1, 4, 4)
    scale = torch.tensor([2.0, 0.0, 0.5])
    assert next_layer_of(network, "conv", images) == "lin"
    maps = network.pool(network.relu(network.bn(network.conv(images)))) * scale[:, None, None]
    expected = network.out(torch.relu(network.lin(maps.flatten(1))))
    with edited(network, Edit("conv", Scaling(scale, "outgoing", next_layer="lin"))):
        torch.testing.assert_close(network(images), expected)
        assert torch.equal(network.lin.weight[:, 4:8], torch.zeros(5, 4))


def test_conv_before_batchnorm_keeps_the_running_statistics() -> None:
    torch.manual_seed(0)
    network, images = Small(), torch.rand(6, 1, 4, 4)
    scale = torch.full((3,), 2.0)
    network.eval()
    plain = network(images)
    with edited(network, Edit("conv", scale)):
        assert not torch.allclose(network(images), plain)
    network.train()
    network.bn.momentum = 0.0
    plain = network(images)
    with edited(network, Edit("conv", Scaling(scale, "weight_and_bias"))):
        torch.testing.assert_close(network(images), plain, atol=1e-3, rtol=1e-3)  # batch statistics undo the scale


def test_mistakes() -> None:
    network = Small()
    ones = torch.ones(3)
    cases = [
        (Edit("conv1", ones), r"no layer 'conv1'\. Did you mean 'conv'"),
        (Edit("bn", ones), r"'bn' is a BatchNorm2d.*Known: conv, lin, out"),
        (Edit("relu", ones), "is a ReLU"),
        (Edit("conv", torch.tensor([1.0, float("nan"), 1.0])), "NaN or infinity"),
        (Edit("out", Scaling(torch.ones(2), "outgoing")), "layer behind 'out' cannot be determined"),
        (Edit("conv", Scaling(ones, "outgoing", next_layer="out")), "do not fit the 3 neurons"),
    ]
    for edit, message in cases:
        with pytest.raises(UserError, match=message), edited(network, edit):
            pass
    with pytest.raises(UserError, match=r"edit\.parameters=weights.*Did you mean 'weight'"):
        Scaling(ones, "weights")
    with pytest.raises(UserError, match=r"edit\.parameters=row"):
        Ablate(parameters="row")
    for factor in (0.0, -1.0, float("inf")):
        with pytest.raises(UserError, match="factor="):
            Scale(factor=factor)


def test_tied_and_computed_weights_are_refused() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with (
        pytest.raises(UserError, match=r"'0\.weight' is shared with 1\.weight"),
        edited(tied, Edit("0", torch.ones(3))),
    ):
        pass
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UserError, match="parametrization"), edited(computed, Edit("0", torch.ones(3))):
        pass


def test_a_residual_branch_has_no_single_next_layer() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x + self.first(x))

    with pytest.raises(UserError, match="may mix neurons"):
        next_layer_of(Residual(), "first")
    with pytest.raises(UserError, match="read by 0 operations"):
        next_layer_of(Residual(), "second")


@pytest.mark.parametrize(
    "selected",
    [SELECTED, SELECTED.numpy(), SELECTED.tolist(), pd.Series([2.0, -1.0, 1.0]) > 0,
     pd.Series([True, False, True], dtype="boolean", index=[7, 8, 9])],
)  # fmt: skip
def test_a_rule_takes_what_people_have(selected: Any) -> None:
    edit = Edit("hidden", Scale(2.0)(selected))
    assert edit.operation.values.tolist() == [2.0, 0.5, 2.0]
    assert Edit("hidden", pd.Series([2, 1, 0])).operation.values.tolist() == [2.0, 1.0, 0.0]
    assert Edit("hidden", np.array([2, 1, 0])).operation.is_identity is False


def test_what_a_rule_does_not_take() -> None:
    with pytest.raises(UserError, match=r"Compare it with a threshold first"):
        Scale(2.0)(pd.Series([0.1, 0.2]))
    with pytest.raises(UserError, match="Compare it with a threshold"):
        Scale(2.0)(pd.Series([True, None], dtype="boolean"))
    with pytest.raises(UserError, match=r"needs similarities: call the rule as rule\(selected, similarity\)"):
        Proportional(2.0)(SELECTED)
    with pytest.raises(UserError, match="The mask has 3 neurons, but there are 2 similarities"):
        Proportional(2.0)(SELECTED, [0.1, 0.2])
    with pytest.raises(UserError, match="a single number; an edit takes one per neuron"):
        Edit("hidden", 2.0)


def test_a_shift_by_hand() -> None:
    network = three_neurons()  # z = (1, 3, 1) + (-2, 0, -2) = (-1, 3, -1) -> relu -> (0, 3, 0)
    with edited(network, Edit("hidden", Shift(-2.0)(SELECTED))):
        assert network(torch.ones(1, 2)).tolist() == [[6.0, 0.0]]
    without = nn.Sequential(OrderedDict(hidden=nn.Linear(2, 3, bias=False), out=nn.Linear(3, 2)))
    with pytest.raises(UserError, match="'hidden' has no bias"), edited(without, Edit("hidden", Shift()(SELECTED))):
        pass


class Wrong(Scaling):
    """The fast path rounds the scale; the weights are scaled exactly."""

    def on_output(self, output: Tensor, target: Target) -> Tensor:
        return replace(self, values=self.values.round()).as_scaling().on_output(output, target)

    def as_scaling(self) -> Scaling:
        return Scaling(self.values, self.parameters)


def test_an_operation_that_does_two_things_is_refused_before_any_result() -> None:
    images = ImageSet(torch.randint(0, 256, (9, 1, 1, 2), dtype=torch.uint8), torch.arange(9) % 2, torch.arange(9))
    logits = EditedLogits(Inference(lambda pixels: pixels.flatten(1).float() / 255, three_neurons()), "hidden", images)
    logits.logits([Wrong([2.0, 1.0, 3.0])])
    with pytest.raises(UserError, match=r"disagree for Wrong on layer 'hidden': logits differ by"):
        EditedLogits(logits.inference, "hidden", images).logits([Wrong([2.4, 1.0, 3.0])])
