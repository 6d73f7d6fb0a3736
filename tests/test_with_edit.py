"""The edit with a refitted head or recalibrated BatchNorm, and labels against the effects of neurons."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from test_baselines import kept
from test_study import GOOD, NOISE, TEST, VAL, faces, flat, labels, network
from torch import nn

from emodissect.concepts import ConceptScores
from emodissect.editing import Edit, Scale, Scaling, edited
from emodissect.editing.effects import Effects, estimate_effects
from emodissect.editing.recalibration import batchnorm_behind, recalibrated
from emodissect.editing.selection import Tau
from emodissect.models.inference import Inference, predict
from emodissect.studies import EditStudy, run_study
from emodissect.studies.baselines import Alternatives, RefittedHead, best_alternative
from emodissect.studies.label_effects import correlation, label_effects, neuron_effects

COUNT = GOOD + NOISE


def normalised() -> nn.Sequential:
    """BatchNorm before and after the layer `lin`; the first is never recomputed."""
    torch.manual_seed(0)
    net = nn.Sequential(
        OrderedDict(
            first=nn.BatchNorm1d(16),
            lin=nn.Linear(16, COUNT),
            bn=nn.BatchNorm1d(COUNT),
            relu=nn.ReLU(),
            drop=nn.Dropout(0.5),
            out=nn.Linear(COUNT, 3),
        )
    )
    with torch.no_grad():
        net.bn.running_mean.uniform_(-0.1, 0.1)
        net.bn.running_var.uniform_(0.5, 2)
    return net.eval()


def test_batchnorm_behind_the_layer_is_found() -> None:
    assert batchnorm_behind(Inference(flat, normalised()), "lin", VAL.images[:4]) == ["bn"]
    assert batchnorm_behind(Inference(flat, network()), "lin", VAL.images[:4]) == []


def test_statistics_are_those_of_the_images_and_every_bit_comes_back() -> None:
    net = normalised()
    net.out.train()
    state = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    edit = Edit("lin", Scaling(torch.linspace(0.1, 3, COUNT)))
    with edited(net, edit), recalibrated(Inference(flat, net), ["bn"], VAL.subset(range(256))):
        outputs = net.lin(net.first(flat(VAL.images[:256])))
        torch.testing.assert_close(net.bn.running_mean, outputs.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(net.bn.running_var, outputs.var(0), atol=1e-5, rtol=1e-4)
        assert not net.bn.training
        # What an edit of rows does before BatchNorm is undone by statistics of its own.
        ours = predict(Inference(flat, net), [batch(TEST)]).logits
    with recalibrated(Inference(flat, net), ["bn"], VAL.subset(range(256))):
        torch.testing.assert_close(ours, predict(Inference(flat, net), [batch(TEST)]).logits, atol=1e-2, rtol=1e-2)
    assert {name: value.numpy().tobytes() for name, value in net.state_dict().items()} == state
    assert [module.training for module in net.modules()] == modes


def batch(images):  # type: ignore[no-untyped-def]
    from emodissect.data.images import Batch

    return Batch(images.images, images.labels, images.ids)


def test_statistics_come_back_after_an_exception() -> None:
    net = normalised()
    before = net.bn.running_mean.clone()
    with pytest.raises(RuntimeError), recalibrated(Inference(flat, net), ["bn"], VAL):
        raise RuntimeError
    assert torch.equal(net.bn.running_mean, before)
    assert net.bn.momentum == 0.1


def study(net: nn.Module, **settings: object) -> EditStudy:
    arguments = {"selections": [Tau(0.0)], "rules": [Scale(factor=3.0)], "controls": 5, **settings}
    return run_study(Inference(flat, net), ["lin"], labels(), val=VAL, test=TEST, **arguments)  # type: ignore[arg-type]


def test_the_edit_with_a_refitted_head_stands_beside_the_head_alone(tmp_path: Path) -> None:
    found = study(network(), alternatives=Alternatives([RefittedHead()], refit_head=True))
    rows = found.ladder.set_index("name")
    both = rows.loc["edit_and_head"]
    on, test = kept(), kept(TEST)
    expected = RefittedHead().fit(on, found.edit.operation)[0](test).argmax(1)
    assert both["accuracy_after"] == pytest.approx(float((expected == test.before.labels).double().mean()))
    assert both["settled"].startswith("C = ")
    assert "points, p" in both["settled"]
    assert both["settled"].endswith("against the head alone")
    best = best_alternative(found.ladder.assign(delta=[0.0, 0.5, 0.0]))
    assert best is not None
    assert best["name"] == "head", "the edit itself is no alternative to it"
    found.save(tmp_path)
    pd.testing.assert_frame_equal(EditStudy.load(tmp_path).ladder, found.ladder, check_dtype=False)
    assert study(network(), alternatives=Alternatives(refit_head=True)).ladder["name"].tolist() == ["edit_and_head"]


def test_recalibration_with_the_edit_and_alone() -> None:
    net = normalised()
    state = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
    found = study(net, alternatives=Alternatives(train=faces(256, 3), recalibrate=True))
    rows = found.ladder.set_index("name")
    assert rows.index.tolist() == ["batchnorm", "edit_and_batchnorm"]
    assert rows.loc["edit_and_batchnorm", "settled"].endswith("against recalibration alone")
    assert {name: value.numpy().tobytes() for name, value in net.state_dict().items()} == state
    none = study(network(), alternatives=Alternatives(train=faces(50, 3), recalibrate=True)).ladder
    assert none["note"].tolist() == ["no BatchNorm with running statistics lies behind 'lin'"]


def test_correlation_and_its_interval() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=400)
    other = one + generator.normal(size=400)
    found = correlation(one, other)
    assert found["correlation"] == pytest.approx(spearmanr(one, other).statistic)
    assert found["low"] < found["correlation"] < found["high"]
    assert found["p_value"] < 1e-6
    assert np.isnan(correlation(one[:3], other[:3])["correlation"])
    assert np.isnan(correlation(np.ones(10), one[:10])["low"])
    perfect = correlation(np.arange(10.0), np.arange(10.0))
    assert [perfect["low"], perfect["correlation"], perfect["high"]] == pytest.approx([1, 1, 1])
    # The interval covers 0 about as often as it says where nothing is to be found.
    pairs = [correlation(generator.normal(size=60), generator.normal(size=60)) for _ in range(300)]
    assert 0.91 < np.mean([pair["low"] <= 0 <= pair["high"] for pair in pairs]) < 0.985


def test_labels_against_effects(tmp_path: Path) -> None:
    on, found = kept(), labels()
    effects = estimate_effects(on, draws=400)
    outputs = network().lin(flat(on.images.images)).detach()
    scores = ConceptScores(on.images.ids, ("Tears", "Frown"), outputs[:, [0, 20]].clone())
    frame = neuron_effects(found.assign(dead=[False] * (COUNT - 1) + [True]), effects, on, scores)
    np.testing.assert_allclose(frame["effect"].to_numpy()[:-1], effects.values[:-1], rtol=1e-6)
    assert np.isnan(frame["effect"].iloc[-1])
    assert frame["held_out"].iloc[0] == pytest.approx(1)
    expected = np.corrcoef(outputs[:, 3], outputs[:, 0])[0, 1]
    assert frame["held_out"].iloc[3] == pytest.approx(expected, abs=1e-5)

    table = label_effects(frame).set_index(["measure", "effect"])
    known = frame.dropna()
    assert table.loc[("similarity of the label", "signed"), "correlation"] == pytest.approx(
        spearmanr(known["similarity"], known["effect"]).statistic
    )
    assert table.loc[("similarity of the label", "signed"), "neurons"] == COUNT - 1
    assert ("held-out score of the label", "size") in table.index
    assert table.loc[("similarity of the label", "signed"), "low"] > 0, "good neurons have the better labels here"


def test_a_study_estimates_effects_and_keeps_them(tmp_path: Path) -> None:
    found = study(network(), effects=100)
    assert len(found.neuron_effects) == COUNT
    expected = estimate_effects(kept(), draws=100)
    np.testing.assert_allclose(found.neuron_effects["effect"], expected.values)
    found.save(tmp_path)
    pd.testing.assert_frame_equal(EditStudy.load(tmp_path).neuron_effects, found.neuron_effects)
    assert study(network()).neuron_effects.empty
    nothing = Effects(torch.zeros(COUNT), float("nan"), 1.5)
    assert label_effects(neuron_effects(labels(), nothing, kept()))["correlation"].isna().all()
