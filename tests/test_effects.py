"""Effects of neurons, selections by effect, the ceiling and the optimism of choosing on test, against brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_baselines import convolutional, kept
from test_study import GOOD, NOISE, RULES, SELECTIONS, TEST, VAL, flat, labels, network
from torch.nn.functional import log_softmax

from emodissect.core.errors import UserError
from emodissect.editing import Scale, ScaleChosen, Scaling
from emodissect.editing.effects import Effect, Error, error_separation, estimate_effects, margins_of
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import Learned
from emodissect.editing.selection import AllNeurons, Inverse, RandomNeurons, Tau, fitted
from emodissect.models.inference import Inference
from emodissect.studies import EditStudy, run_study
from emodissect.studies.baselines import Alternatives, LearnedScale, best_alternative

COUNT = GOOD + NOISE


def study(**changes: object) -> EditStudy:
    arguments = {"selections": SELECTIONS, "rules": RULES, "controls": 40, "batch_size": 128, **changes}
    return run_study(Inference(flat, network()), ["lin"], labels(), val=VAL, test=TEST, **arguments)  # type: ignore[arg-type]


def test_the_margin_is_the_log_odds_of_the_true_class() -> None:
    on = kept()
    chance = log_softmax(on.before.logits.double(), 1).exp().gather(1, on.before.labels[:, None])
    expected = (chance / (1 - chance)).log().mean()
    torch.testing.assert_close(margins_of(on, [Scaling(torch.ones(COUNT))])[0], expected)


def test_effects_are_what_scaling_each_neuron_does() -> None:
    on = kept()
    found = estimate_effects(on, draws=4000, step=1.05)
    alone = []
    for neuron in range(COUNT):
        step = torch.zeros(COUNT)
        step[neuron] = 1
        more, less = margins_of(on, [Scaling(1.05**step), Scaling(1.05**-step)])
        alone.append(float(more - less) / 2)
    assert np.corrcoef(found.values, alone)[0, 1] > 0.99
    assert found.predicts > 0.95
    assert found.values[:GOOD].mean() > 0 > found.values[GOOD:].mean()
    again = estimate_effects(on, draws=4000, step=1.05)
    assert torch.equal(again.values, found.values)


def test_a_layer_that_does_nothing_has_no_effects() -> None:
    net = network()
    torch.nn.init.zeros_(net.out.weight)
    found = estimate_effects(kept(net=net), draws=40)
    assert not found.values.any()
    assert np.isnan(found.predicts)


def test_few_random_edits_are_refused() -> None:
    with pytest.raises(UserError, match="19 random edits are too few"):
        estimate_effects(kept(), draws=19)
    with pytest.raises(UserError, match="a factor above 1"):
        estimate_effects(kept(), step=1.0)


@pytest.mark.parametrize("layer", ["lin", "0"])
def test_error_separation_is_the_area_under_the_roc(layer: str) -> None:
    if layer == "lin":
        on = kept()
        outputs = network().lin(flat(on.images.images)).detach()
    else:
        net = convolutional()
        on = EditedLogits(Inference(lambda images: images.float() / 128 - 1, net), "0", VAL)
        outputs = net[0](on.images.images.float() / 128 - 1).detach().mean((2, 3))
    wrong = on.before.predicted != on.before.labels
    expected = [roc_auc_score(wrong, outputs[:, neuron]) for neuron in range(on.neurons)]
    np.testing.assert_allclose(error_separation(on), expected, atol=1e-9)


def test_errors_are_needed() -> None:
    on = kept()
    on.before = on.before._replace(labels=on.before.predicted)
    with pytest.raises(UserError, match="the network gets 300 of 300 images right"):
        error_separation(on)


def test_selections_by_effect_find_the_good_neurons_and_never_a_dead_one() -> None:
    on, found = kept(), labels()
    chosen = fitted(Effect(share=0.5, draws=400), on)(found, network().lin)
    assert chosen.sum() == 12
    assert chosen[:GOOD].sum() >= 9
    dead = found.assign(dead=[True] + [False] * (COUNT - 1))
    assert not fitted(Effect(share=1.0, draws=40), on)(dead, network().lin)[0]
    assert fitted(Error(share=0.25), on)(found, network().lin).sum() == 6
    inverse = fitted(Inverse(Effect(share=0.5, draws=400)), on)
    assert torch.equal(inverse(found, network().lin), ~chosen)
    assert fitted(RandomNeurons(like=Effect(share=0.25, draws=40)), on)(found, network().lin).sum() == 6
    with pytest.raises(UserError, match=r"selection.share=2 must be a fraction of the layer"):
        Effect(share=2)
    with pytest.raises(UserError, match="scores for 24 neurons"):
        fitted(Error(), on)(found.head(3), network().lin)


def test_a_study_by_effect_gains_without_labels() -> None:
    found = study(selections=[Effect(share=0.5, draws=400)], rules=[Scale(factor=3.0)])
    assert found.claims_gain
    assert np.isnan(found.p_shuffled)
    assert found.settings["share"] == 0.5
    assert found.identical_predictions


def test_a_learned_edit_is_baked_controlled_and_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    really = Learned.fitted
    monkeypatch.setattr(Learned, "fitted", lambda rule, on: calls.append(len(on.before.labels)) or really(rule, on))
    found = study(selections=[Tau(0.0), AllNeurons()], rules=[Learned(), ScaleChosen(factor=1.1)])
    assert calls == [len(VAL)], "once, on the images that the edit is chosen on"
    assert (found.selection, found.rule) == ("all", "learned")
    assert found.claims_gain
    assert found.test.delta > 0.1
    assert found.edit.operation.values.shape == (COUNT, 2)


def test_the_ceiling_is_fitted_on_test_and_never_an_alternative() -> None:
    found = study(alternatives=Alternatives([LearnedScale()]))
    rows = found.ladder.set_index("name")
    assert rows.loc["ceiling", "fitted_on"] == "test"
    assert rows.loc["ceiling", "note"] == "not a result: fitted on the images that it is compared on"
    assert rows.loc["ceiling", "nll_after"] < rows.loc["learned_scale", "nll_after"]
    assert rows.loc["ceiling", "delta"] >= max(rows.loc["learned_scale", "delta"], found.test.delta)
    best = best_alternative(found.ladder)
    assert best is not None
    assert best["name"] == "learned_scale"


def test_the_optimism_of_choosing_on_test_is_the_best_of_random_edits() -> None:
    found = study()
    generator = np.random.default_rng([0, 5])
    on = kept(TEST)
    right = on.before.predicted == on.before.labels
    best = []
    for _ in range(40):
        deltas = []
        for selection in SELECTIONS:
            for rule in RULES:
                operation = rule(selection(labels(), network().lin))
                moved = operation.permuted(torch.from_numpy(generator.permutation(COUNT)))
                after = on.logits([moved])[0].argmax(1) == on.before.labels
                deltas.append(float(after.double().mean() - right.double().mean()))
        best.append(max(deltas))
    assert found.optimism == pytest.approx(np.mean(best))
    assert found.optimism > 0
    single = study(selections=[Tau(0.0)], rules=[Scale(factor=3.0)])
    random = single.controls[single.controls["control"] == "random"]
    assert single.optimism == pytest.approx(random["delta_test"].mean())
    assert np.isnan(study(controls=0).optimism)
    assert pd.notna(study(select_on_test=True, controls=5).optimism)
