"""Edits by a user's function: the edit of neurons is derived from its result, and evaluated like any other edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_from_file import SCALE
from test_study import GOOD, TEST, VAL, flat, labels, network
from torch import nn

import emodissect as emo
from emodissect.core.errors import UserError
from emodissect.dissection.labels import Dissection
from emodissect.editing import Edit, Scaling, edited
from emodissect.editing.from_function import FromFunction
from emodissect.editing.selection import AllNeurons
from emodissect.models.inference import Inference
from emodissect.studies import EditStudy, run_study
from emodissect.studies.baselines import Alternatives, RefittedHead


def scaled(net: nn.Module) -> None:
    """In place."""
    with torch.no_grad():
        net.lin.weight.mul_(SCALE[:, None])


def without_noise(net: nn.Module) -> nn.Module:
    """Returns a different network, whose change is not a scale of a layer's neurons."""
    other = network()
    with torch.no_grad():
        other.out.weight[:, GOOD:] = 0
        other.lin.bias.add_(0.01)
    return other


def study(*functions: object) -> EditStudy:
    rules = [FromFunction(function) for function in functions]  # type: ignore[arg-type]
    given = {"alternatives": Alternatives([RefittedHead()]), "controls": 20}
    return run_study(Inference(flat, network()), ["lin"], labels(), [AllNeurons()], rules, VAL, TEST, **given)  # type: ignore[arg-type]


def test_a_function_that_scales_neurons_is_that_edit_with_controls_and_the_ladder() -> None:
    found = study(scaled)
    torch.testing.assert_close(found.edit.operation.values, SCALE)
    assert isinstance(found.edit.operation, Scaling)
    assert found.claims_gain
    assert (found.controls["control"] == "random").sum() == 20
    assert "head" in set(found.ladder["name"])


def test_another_change_replaces_all_weights_and_has_no_controls(tmp_path: Path) -> None:
    found = study(without_noise)
    net = without_noise(network())
    with torch.no_grad():
        exact = (net(flat(TEST.images)).argmax(1) == TEST.labels).double().mean()
    assert found.test.accuracy_after == pytest.approx(float(exact))
    assert found.controls.empty
    assert not found.claims_gain
    found.save(tmp_path)
    loaded = EditStudy.load(tmp_path)
    assert loaded.row() == found.row()
    with (
        pytest.raises(UserError, match="are not stored with the study"),
        edited(network(), Edit("lin", loaded.edit.operation)),
    ):
        pass


def test_several_functions_are_a_table_that_validation_chooses_from() -> None:
    found = study(without_noise, scaled)
    assert found.grid["function"].tolist() == ["without_noise", "scaled"]
    assert found.settings["function"] == found.grid["function"][int(np.argmax(found.grid["delta"]))]


def test_what_is_no_edit_is_reported_and_the_network_is_left_alone() -> None:
    mine = network()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    for function, words in (
        (lambda net: None, "'<lambda>' has the same weights as this network"),
        (lambda net: "network", "returned a str"),
        (lambda net: nn.Linear(2, 2), "does not match this network: 4 of 4 weights are missing"),
    ):
        with pytest.raises(UserError, match=words):
            study(function)
    study(scaled)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


def test_emo_study_takes_functions_and_shows_the_ladder() -> None:
    net = network()
    wrapped = nn.Sequential(nn.Flatten(), net).eval()
    neurons = labels().assign(layer="1.lin", q_value=0.01, accuracy=0.5, accuracy_chance=0.3, z=1.0)
    dissection = Dissection.of_neurons(neurons, {})
    images = [((images.images.float() / 128 - 1), images.labels) for images in (VAL, TEST)]
    val, test = (torch.utils.data.TensorDataset(*pair) for pair in images)
    found = emo.study(
        wrapped, dissection, val, test, layers="1.lin", rules=lambda net: scaled(net[1]), controls=20, progress=False
    )
    assert found.claims_gain
    assert found.selection == "all"
    assert {"head", "mirror", "learned_scale", "temperature"} <= set(found.ladder["name"])
