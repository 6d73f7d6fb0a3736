"""Every cheap baseline on networks for which the right fit is known, and the baselines within a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from composing import CONF, composed
from hydra.utils import instantiate
from test_study import CLASSES, GOOD, NOISE, TEST, VAL, faces, flat, labels, network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from emodissect.app.stages.edit_study import baselines_of
from emodissect.core.errors import UserError
from emodissect.core.statistics import mcnemar
from emodissect.data.images import ImageSet
from emodissect.editing import Edit, Scaling, edited
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import learn_scale, minimum
from emodissect.editing.operations import ScalingAndShifting
from emodissect.editing.rules import Scale
from emodissect.editing.selection import Tau
from emodissect.models.classifier import Classifier
from emodissect.models.inference import Inference
from emodissect.models.preprocessing import Preprocess
from emodissect.studies import EditStudy, run_study
from emodissect.studies.baselines import (
    LADDER,
    Alternatives,
    Baseline,
    LearnedScale,
    MirrorView,
    NotAvailable,
    RefittedHead,
    TemperatureAndBiases,
    TenCrops,
    best_alternative,
    climb,
)

ENTRIES = sorted(path.stem for path in (CONF / "baseline").glob("*.yaml"))


def kept(images: ImageSet = VAL, net: nn.Module | None = None, layer: str = "lin", cut: bool = True) -> EditedLogits:
    return EditedLogits(Inference(flat, net or network()), layer, images, batch_size=128, cut=cut)


def convolutional() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, CLASSES)).eval()


class Tokens(nn.Module):
    """A linear layer of four tokens, whose neurons are on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lin(x.squeeze(1)).tanh().mean(1))


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize(("net", "layer"), [(convolutional, "0"), (Tokens, "lin"), (network, "lin")])
def test_changed_outputs_give_the_logits_of_edited_weights_and_gradients(net, layer, cut) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(2)
    model = net().eval()
    prepare = flat if net is network else lambda images: images.float() / 128 - 1
    on = EditedLogits(Inference(prepare, model), layer, VAL, cut=cut)
    values = torch.rand(on.neurons, 2) + 0.5
    rows = torch.tensor([4, 0, 250])
    operation = ScalingAndShifting(values)
    scale = values[:, 0].clone().requires_grad_()

    def changed(outputs: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (outputs.ndim - 2))
        return outputs * scale.reshape(shape) + values[:, 1].reshape(shape)

    found = on.differentiable(rows)(changed)
    torch.testing.assert_close(found.detach(), on.logits([operation])[0][rows], atol=1e-5, rtol=1e-4)
    with edited(model, Edit(layer, operation)), torch.no_grad():
        exact = model(prepare(on.images.images[rows]))
    torch.testing.assert_close(found.detach(), exact, atol=1e-5, rtol=1e-4)

    (gradient,) = torch.autograd.grad(found.sum(), scale)
    step = torch.zeros_like(values)
    step[1, 0] = 1e-2
    higher, lower = (on.logits([ScalingAndShifting(values + sign * step)])[0][rows].sum() for sign in (1, -1))
    assert float(gradient[1]) == pytest.approx(float(higher - lower) / 2e-2, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("layer", ["lin", "out"])
def test_what_the_head_is_given(layer: str) -> None:
    net = network()
    on = kept(net=net, layer=layer)
    features = net.relu(net.lin(flat(on.images.images))).detach()
    torch.testing.assert_close(on.inputs_of("out"), features)
    if layer == "lin":
        double = Scaling(torch.full((GOOD + NOISE,), 2.0), "weight_and_bias")
        torch.testing.assert_close(on.inputs_of("out", double), 2 * features)


def test_a_temperature_that_was_lost_is_found_again() -> None:
    on = kept()
    torch.manual_seed(0)
    on.before = on.before._replace(labels=torch.distributions.Categorical(logits=on.before.logits / 3).sample())
    predictor, settled = TemperatureAndBiases().fit(on)
    assert float(settled.removeprefix("T = ")) == pytest.approx(3, rel=0.2)
    assert cross_entropy(predictor(on), on.before.labels) < cross_entropy(on.before.logits, on.before.labels)


def test_a_learned_scale_lowers_noise_and_is_better_on_other_images() -> None:
    on, other = kept(), kept(TEST)
    operation, strength = learn_scale(on)
    assert strength <= 0.1
    scale = operation.values[:, 0]
    assert scale[:GOOD].mean() > 1 > scale[GOOD:].mean()
    after = other.logits([operation])[0]
    before = (other.before.predicted == other.before.labels).double().mean()
    assert (after.argmax(1) == other.before.labels).double().mean() > before + 0.1
    alone, _ = learn_scale(on, shift=False)
    assert (alone.values[:, 1] == 0).all()
    assert torch.equal(learn_scale(on).operation.values, operation.values), "the same again"


def test_labels_that_say_nothing_teach_next_to_nothing() -> None:
    on = kept()
    on.before = on.before._replace(labels=on.before.labels[torch.randperm(len(VAL))])
    # Probabilities that are right on average, so that only chance is left to be learned.
    with torch.no_grad():
        on.inference.network.out.weight.zero_()
    on = EditedLogits(on.inference, "lin", replace(VAL, labels=on.before.labels))
    operation, strength = learn_scale(on)
    assert np.isinf(strength)
    assert operation.is_identity


def test_minimum_of_a_parabola() -> None:
    found = minimum([lambda x: ((x - torch.tensor([1.0, -2.0])) ** 2).sum()], torch.zeros(2), iterations=20)
    torch.testing.assert_close(found, torch.tensor([1.0, -2.0]), atol=1e-4, rtol=0)


def test_a_head_that_was_lost_is_found_again() -> None:
    net = network()
    with torch.no_grad():
        net.out.weight.copy_(net.out.weight.flip(0))
    on, other = kept(net=net), kept(TEST, net=net)
    predictor, settled = RefittedHead().fit(on)
    assert settled.startswith("C = ")
    accuracy = (predictor(other).argmax(1) == other.before.labels).double().mean()
    assert other.before.accuracy < 0.4
    assert accuracy > 0.8


def test_a_head_without_images_of_a_class_never_names_it() -> None:
    seen = VAL.subset((VAL.labels != 1).nonzero().flatten())
    predictor, _ = RefittedHead().fit(kept(seen))
    assert set(predictor(kept(TEST)).argmax(1).tolist()) == {0, 2}


def test_a_network_that_does_not_end_in_its_last_linear_layer_has_no_head() -> None:
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES), nn.Tanh()).eval()
    with pytest.raises(NotAvailable, match="does not output its logits"):
        RefittedHead().fit(kept(net=net, layer="0"))
    with pytest.raises(NotAvailable, match="no linear layer"):
        RefittedHead().fit(
            EditedLogits(
                Inference(lambda x: x.float() / 255, nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()).eval()), "0", VAL
            )
        )


def test_the_mirror_view_is_the_mean_of_both() -> None:
    on = kept(TEST)
    predictor, _ = MirrorView().fit(kept())
    net = network()
    with torch.no_grad():
        both = (net(flat(on.images.images)) + net(flat(on.images.images.flip(-1)))) / 2
    torch.testing.assert_close(predictor(on), both)


def test_ten_crops_where_the_network_takes_crops() -> None:
    torch.manual_seed(0)

    def classifier(how: str, views: str = "single") -> Classifier:
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, CLASSES))
        return Classifier(net, Preprocess(size=3, how=how, views=views), class_names=["a", "b", "c"])

    crops = classifier("crop")
    on = EditedLogits(Inference.of(crops), "1", TEST)
    predictor, _ = TenCrops().fit(on)
    averaged = classifier("crop", "ten_crop")
    averaged.load_state_dict(crops.state_dict())
    averaged.eval()
    with torch.no_grad():
        torch.testing.assert_close(predictor(on), averaged(on.images.images))
    several = EditedLogits(Inference.of(averaged), "1", TEST)
    for other in (EditedLogits(Inference.of(classifier("resize")), "1", TEST), several):
        with pytest.raises(NotAvailable, match="takes whole images, or already averages ten crops"):
            TenCrops().fit(other)
    with pytest.raises(NotAvailable, match="already averages several views"):
        MirrorView().fit(several)
    # The head of a network of ten views is fitted on the mean of what they give it.
    logits = RefittedHead().fit(several)[0](several)
    assert logits.shape == (len(TEST), CLASSES)


def test_the_library_has_every_entry_of_the_group() -> None:
    assert sorted(baseline.name for baseline in LADDER) == ENTRIES


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_of_the_group(name: str, tmp_path: Path) -> None:
    baseline = instantiate(composed("edit", f"baseline={name}", run_dir=tmp_path).baseline[name])
    assert isinstance(baseline, Baseline)
    assert baseline.name == name
    assert repr(baseline).startswith(type(baseline).__name__)
    net = network()
    state = {key: value.numpy().tobytes() for key, value in net.state_dict().items()}
    ladder = climb(
        [baseline], {"val": lambda: kept(net=net)}, kept(TEST, net=net), kept(TEST).before, kept(TEST).before
    )
    (row,) = ladder.to_dict("records")
    assert row["name"] == name
    assert row["fitted_on"] == ("val" if baseline.is_fitted else "")
    if name == "ten_crop":
        assert np.isnan(row["delta"])
        assert "ten crops" in row["note"]
    else:
        assert row["p_value"] == mcnemar(row["gained"], row["lost"]) == row["p_against_edit"]
        assert row["delta"] == pytest.approx((row["gained"] - row["lost"]) / len(TEST))
        assert row["low"] <= row["delta"] <= row["high"]
    assert {key: value.numpy().tobytes() for key, value in net.state_dict().items()} == state


def test_the_config_chooses_by_name(tmp_path: Path) -> None:
    cfg = composed("edit", run_dir=tmp_path)
    assert [baseline.name for baseline in baselines_of(cfg)] == list(cfg.baseline)
    assert baselines_of(composed("edit", "study.baselines=[]", run_dir=tmp_path)) == []
    chosen = baselines_of(composed("edit", "study.baselines=[head,mirror]", run_dir=tmp_path))
    assert [baseline.name for baseline in chosen] == ["head", "mirror"]
    with pytest.raises(UserError, match=r"study.baselines has the unknown entry 'haed'. Did you mean 'head'"):
        baselines_of(composed("edit", "study.baselines=[haed]", run_dir=tmp_path))


@pytest.fixture(scope="module")
def found() -> EditStudy:
    return run_study(
        *(Inference(flat, network()), ["lin"], labels(), [Tau(0.0)], [Scale(factor=3.0)], VAL, TEST),
        controls=20,
        alternatives=Alternatives([LearnedScale(), RefittedHead(), MirrorView(), TenCrops()], faces(200, 3)),
    )


def test_the_study_has_the_ladder(found: EditStudy, tmp_path: Path) -> None:
    rows = list(zip(found.ladder["name"], found.ladder["fitted_on"], strict=True))
    fitted = [(name, images) for name in ("learned_scale", "head") for images in ("val", "train")]
    assert rows == [*fitted, ("mirror", ""), ("ten_crop", ""), ("ceiling", "test")]
    known = found.ladder.dropna(subset="delta").set_index(["name", "fitted_on"])
    assert (known["accuracy_before"] == found.test.accuracy_before).all()
    assert known.loc[("head", "val"), "delta"] > 0.1 > known.loc[("mirror", ""), "delta"]
    found.save(tmp_path)
    again = EditStudy.load(tmp_path)
    pd.testing.assert_frame_equal(again.ladder, found.ladder, check_dtype=False)
    assert again.verdict == found.verdict


def test_the_verdict_names_the_best_cheap_alternative(found: EditStudy) -> None:
    def said(delta: float, p_value: float = 0.001, best: float = 0.006) -> str:
        ladder = found.ladder.copy()
        ladder["delta"] = [best, -0.01, 0.0, 0.0, 0.0, np.nan, 0.5]
        ladder["p_value"] = 0.03
        study = replace(found, test=replace(found.test, delta=delta, p_value=p_value), ladder=ladder, p_random=0.01)
        return replace(study, p_shuffled=0.01).verdict

    learned = "a learned scale and shift per neuron"
    assert said(0.004).endswith(f"give; less than {learned} gives (+0.60).")
    assert said(0.006).endswith(f"give; as much as the best cheap alternative, {learned} gives (+0.60).")
    assert said(0.02).endswith(f"give; more than the best cheap alternative, {learned} gives (+0.60).")
    assert said(0.004, p_value=0.5).endswith(f"A{learned[1:]} gives +0.60 (p = .030).")
    assert best_alternative(pd.DataFrame()) is None
    only_on_test = found.ladder.assign(fitted_on="test")
    assert best_alternative(only_on_test) is None
    assert replace(found, ladder=pd.DataFrame()).verdict.endswith("give.")
