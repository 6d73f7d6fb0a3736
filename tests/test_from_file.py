"""Edits made elsewhere: the edit of neurons is derived from the file, and evaluated like any other edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_study import GOOD, NOISE, TEST, VAL, flat, labels, network
from torch import nn

from emodissect.core.errors import UserError
from emodissect.editing import Edit, Operation, Scaling, bake, edited
from emodissect.editing.from_file import FromCheckpoint, operation_in
from emodissect.editing.operations import ScalingAndShifting
from emodissect.editing.other_weights import OtherWeights, row_scale
from emodissect.editing.selection import AllNeurons, Tau
from emodissect.models.inference import Inference
from emodissect.studies import EditStudy, run_study
from emodissect.studies.baselines import Alternatives, RefittedHead

COUNT = GOOD + NOISE
SCALE = torch.cat([torch.full((GOOD,), 3.0), torch.full((NOISE,), 1 / 3)])


def saved(path: Path, *edits: Edit) -> str:
    torch.save({f"network.{name}": value for name, value in bake(network(), *edits).items()}, path)
    return str(path)


def study(paths: list[str], **settings: object) -> EditStudy:
    rules = [FromCheckpoint(path) for path in paths]
    arguments = {"selections": [AllNeurons()], "controls": 20, **settings}
    return run_study(Inference(flat, network()), ["lin"], labels(), rules=rules, val=VAL, test=TEST, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "operation",
    [
        Scaling(SCALE),
        Scaling(torch.where(torch.arange(COUNT) < 3, 0.0, SCALE), "weight_and_bias"),
        ScalingAndShifting(torch.stack([SCALE, torch.linspace(-1, 1, COUNT)], 1)),
    ],
    ids=["rows", "rows and biases", "scale and shift"],
)
def test_a_checkpoint_of_scaled_neurons_is_that_edit(operation: Operation, tmp_path: Path) -> None:
    found = operation_in(saved(tmp_path / "edited.pt", Edit("lin", operation)), network(), "lin")
    assert found.kind == operation.kind
    torch.testing.assert_close(found.values, operation.values)


def test_a_table_of_scales(tmp_path: Path) -> None:
    pd.DataFrame({"neuron": range(COUNT), "scale": SCALE.numpy()}).to_csv(tmp_path / "named.csv", index=False)
    np.savetxt(tmp_path / "plain.csv", SCALE.numpy())
    for name in ("named.csv", "plain.csv"):
        found = operation_in(tmp_path / name, network(), "lin")
        assert isinstance(found, Scaling)
        torch.testing.assert_close(found.values, SCALE)
    (tmp_path / "few.csv").write_text("scale\n1\n2\n")
    with pytest.raises(UserError, match="has 2 numbers, but layer 'lin' has 24 neurons"):
        operation_in(tmp_path / "few.csv", network(), "lin")
    (tmp_path / "words.csv").write_text("scale\nmuch\n")
    with pytest.raises(UserError, match="contains no scales"):
        operation_in(tmp_path / "words.csv", network(), "lin")


def test_what_cannot_be_an_edit_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"edit.path=.*none.pt does not exist"):
        FromCheckpoint(str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match="same weights as this network"):
        operation_in(saved(tmp_path / "same.pt"), network(), "lin")
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        UserError,
        match=r"does not match this network: 4 of 4 weights are missing or have a different shape, e.g. 'lin.weight'",
    ):
        operation_in(tmp_path / "other.pt", network(), "lin")


def test_rows_that_changed_otherwise_are_no_scale() -> None:
    weight = torch.randn(4, 3)
    assert row_scale(weight, 2 * weight).tolist() == [2, 2, 2, 2]  # type: ignore[union-attr]
    assert row_scale(weight, weight + 0.1) is None
    assert row_scale(torch.zeros(1, 3), torch.ones(1, 3)) is None
    assert row_scale(torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [1]  # type: ignore[union-attr]


def test_a_scaled_checkpoint_has_controls_and_the_ladder(tmp_path: Path) -> None:
    rule = saved(tmp_path / "edited.pt", Edit("lin", Scaling(SCALE)))
    found = study([rule], alternatives=Alternatives([RefittedHead()]))
    assert found.claims_gain
    assert found.identical_predictions
    assert (found.controls["control"] == "random").sum() == 20
    assert "head" in set(found.ladder["name"])


def test_other_weights_are_compared_without_controls(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.out.weight[:, GOOD:] = 0
        net.lin.bias.add_(0.01)
    torch.save(net.state_dict(), tmp_path / "other.pt")
    assert isinstance(operation_in(tmp_path / "other.pt", network(), "lin"), OtherWeights)
    mine = network()
    before = {name: value.numpy().tobytes() for name, value in mine.state_dict().items()}
    with edited(mine, Edit("lin", OtherWeights(torch.zeros(COUNT), path=str(tmp_path / "other.pt")))):
        torch.testing.assert_close(mine.out.weight, net.out.weight)
    assert {name: value.numpy().tobytes() for name, value in mine.state_dict().items()} == before

    found = study([str(tmp_path / "other.pt")], selections=[Tau(0.0)])
    with torch.no_grad():
        exact = (net(flat(TEST.images)).argmax(1) == TEST.labels).double().mean()
    assert found.test.accuracy_after == pytest.approx(float(exact))
    assert found.controls.empty
    assert np.isnan(found.p_random)
    assert np.isnan(found.optimism)
    assert not found.claims_gain
    assert found.verdict.startswith("Better than the unedited network: +")
    assert found.verdict.endswith("so it has no controls.")
    found.save(tmp_path / "study")
    assert EditStudy.load(tmp_path / "study").row() == found.row()


def test_several_checkpoints_are_a_table(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{factor}.pt", Edit("lin", Scaling(SCALE**factor))) for factor in (0.1, 1.0)]
    found = study(paths, controls=3)
    assert found.grid["path"].tolist() == paths
    assert found.settings["path"] == paths[1]
