"""Weighted sums of concepts: recovery on planted neurons; held-out images do not influence the fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

import emodissect.dissection.quality as quality
import emodissect.similarity as sim
from emodissect.core.errors import UserError
from emodissect.dissection.explanations import (
    NONE,
    BestConceptExplainer,
    ConstantExplainer,
    Explanation,
    LabelExplainer,
    LinearExplainer,
    Part,
    linear_explanation,
)
from emodissect.dissection.quality.explained import explained_neurons, explanation_table, labelling_parts
from emodissect.recording import LayerActivations

NAMES = list("abcdefghijkl")


def presences(images: int = 4000, concepts: int = 12, seed: int = 0) -> Tensor:
    """Correlated presences, as of facial expressions."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.rand(images, 3, generator=generator) @ torch.rand(3, concepts, generator=generator)
    return (0.4 * shared + torch.rand(images, concepts, generator=generator) ** 3).clamp(0, 1)


def parts_of(activations: Tensor, scores: Tensor, *sizes: int) -> list[Part]:
    return [Part(*rows) for rows in zip(activations.split(sizes), scores.split(sizes), strict=True)]


def layer_of(activations: Tensor) -> LayerActivations:
    return LayerActivations.of("own", torch.arange(len(activations)) * 2 + 5, activations)


def test_weights_of_signed_mixtures_lie_in_their_intervals() -> None:
    presence = presences()
    planted = quality.planted_mixtures(presence, neurons=100, concepts=3)
    found = linear_explanation(*parts_of(planted.activations, presence, 2000, 2000))
    true = planted.weights.gather(1, found.concepts.clamp(min=0))
    assert ((found.matrix() != 0) == planted.truth).all(1).double().mean() >= 0.97
    inside = (found.low <= true) & (true <= found.high)
    own = found.concepts != NONE
    assert inside[own].double().mean().item() == pytest.approx(0.95, abs=0.05)  # 300 weights: two standard errors .025
    assert (found.high - found.low)[own].max() < 0.15
    table = explanation_table(
        labelling_parts(layer_of(planted.activations), presence), {"linear": LinearExplainer()}, planted.weights
    )
    assert table["exact"][0] >= 0.97
    assert table["covered"][0] >= 0.9


def test_weights_of_either_or_in_a_planted_network_lie_in_their_intervals() -> None:
    """For a neuron that is not a sum, the truth is the best sum over many other images of the same network."""
    generator = torch.Generator().manual_seed(1)
    presence = torch.rand(9000, 5, generator=generator) ** 2
    patterns = torch.randn(5, 1, 24, 24, generator=generator)
    images = torch.einsum("ic,cxhw->ixhw", presence, patterns) + 0.5 * torch.randn(9000, 1, 24, 24, generator=generator)
    planted = quality.planted_neurons(presence[:2000], single=0, either_or=30, noise=10, dead=2)
    network = quality.planted_network(images[:2000], presence[:2000], planted)
    signed = nn.Linear(5, 20, bias=False)
    nn.init.uniform_(signed.weight, -1, 1)
    with torch.no_grad():
        detected = network.detectors(network.features(images))
        activations = torch.cat([network(images), signed(detected)], 1)
    found = linear_explanation(
        *parts_of(activations[:3000], presence[:3000], 1500, 1500), max_concepts=5, least_gain=0.0
    )
    one = explained_sum(activations[3000:], presence[3000:], found)
    inside = (found.low <= one) & (one <= found.high)
    own = found.concepts != NONE
    assert inside[own].double().mean() >= 0.85  # the many images' own error, and the choice of concepts, are not in it
    kind = planted.of_kind("either_or")
    clear = linear_explanation(*parts_of(activations[:3000, : len(kind)], presence[:3000], 1500, 1500))
    assert ((clear.matrix()[kind] > 0.1) == planted.truth[kind]).all(1).double().mean() >= 0.9
    assert clear.weights[planted.of_kind("noise")].abs().max() < 0.1  # .02 of 1,500 images is within chance
    assert (clear.concepts[planted.of_kind("dead")] == NONE).all()


def explained_sum(activations: Tensor, scores: Tensor, found: Explanation) -> Tensor:
    """The best weights of each neuron's explaining concepts on these images."""
    z = (scores - scores.mean(0)) / scores.std(0, correction=0)
    a = (activations - activations.mean(0)) / activations.std(0, correction=0).clamp(min=1e-9)
    weights = torch.zeros_like(found.weights)
    for neuron, row in enumerate(found.concepts):
        own = row[row != NONE]
        if len(own):
            fit = LinearRegression().fit(z[:, own].numpy(), a[:, neuron].numpy())
            weights[neuron, : len(own)] = torch.from_numpy(fit.coef_)
    return weights


def test_weights_are_least_squares_and_errors_those_of_a_bootstrap() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(1000, 2, generator=generator) * 3 + 1
    activations = (scores[:, [0]] - 2 * scores[:, [1]]).abs() + torch.randn(1000, 1, generator=generator)
    activations += scores[:, [0]] + scores[:, [1]]
    found = linear_explanation(*parts_of(activations, scores, 500, 500), least_gain=0.0)

    def weights(rows: np.ndarray) -> np.ndarray:
        z, a = stats.zscore(scores.numpy()[rows]), stats.zscore(activations.numpy()[rows])
        return LinearRegression().fit(z[:, found.concepts[0, :2].numpy()], a[:, 0]).coef_

    assert found.weights[0, :2].numpy() == pytest.approx(weights(np.arange(1000)), abs=1e-4)
    draws = np.random.default_rng(0).integers(0, 1000, (400, 1000))
    spread = np.std([weights(rows) for rows in draws], axis=0)
    assert ((found.high - found.low)[0, :2] / (2 * 1.96)).numpy() == pytest.approx(spread, rel=0.12)


def test_a_concept_joins_only_where_it_adds_correlation_on_other_images() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2000, 6, generator=generator)
    activations = scores[:, [0]] + 0.1 * scores[:, [1]]
    half = parts_of(activations, scores, 1000, 1000)
    assert linear_explanation(*half).concepts.tolist() == [[0, NONE, NONE, NONE, NONE]]  # .1 adds .005
    assert linear_explanation(*half, least_gain=0.001, penalty=0.01).concepts[0, :2].tolist() == [0, 1]
    assert linear_explanation(*half, least_gain=0.0, max_concepts=1).concepts.tolist() == [[0]]
    proposing, deciding = half
    against = Part(-activations[1000:], deciding.scores)  # what was proposed does not hold there
    assert (linear_explanation(proposing, against).concepts == NONE).all()


def test_held_out_images_choose_nothing_and_noise_is_not_explained_there() -> None:
    generator = torch.Generator().manual_seed(4)
    scores, activations = torch.randn(400, 30, generator=generator), torch.randn(400, 60, generator=generator)
    layer = layer_of(activations)
    parts = labelling_parts(layer, scores)
    assert [len(part.scores) for part in parts] == [100, 100, 200]
    changed = activations.clone()
    rows = quality.halves(layer.ids)[1].nonzero()[:, 0]
    changed[rows] = activations[rows.roll(1)]
    other = labelling_parts(layer_of(changed), scores)
    for explainer in (LinearExplainer(), LabelExplainer(sim.Pearson()), BestConceptExplainer(), ConstantExplainer()):
        found = [explainer(own.proposing, own.deciding) for own in (parts, other)]
        assert (found[0].matrix() == found[1].matrix()).all()
        correlation = found[0].correlation(parts.held_out)
        assert abs(correlation.mean()) < 3 / (60 * 200) ** 0.5


def test_what_explanations_are_compared_with_by_hand() -> None:
    scores = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]).repeat(4, 1)
    activations = torch.stack([scores[:, 0], -scores[:, 1], scores[:, 1], torch.full((16,), 0.1)], 1)
    part = Part(activations, scores)
    best = BestConceptExplainer()(part, part)
    assert best.words(NAMES) == ["a", "−b", "b", ""]
    assert best.correlation(part).tolist() == pytest.approx([1, 1, 1, 0], abs=1e-6)
    label = LabelExplainer(sim.Pearson())(part, part)
    assert label.words(NAMES)[0] == "a"
    assert label.words(NAMES)[3] == ""
    constant = ConstantExplainer()(part, part)
    assert constant.words(NAMES) == ["a"] * 4
    linear = linear_explanation(part, part)
    assert linear.words(NAMES) == ["a", "−b", "b", ""]
    assert linear.simulate(scores)[:, 3].tolist() == [0.0] * 16
    two = Explanation(
        torch.tensor([[1, 0]]), torch.tensor([[-0.5, 0.25]]), *torch.zeros(2, 1, 2), torch.zeros(3), torch.ones(3)
    )
    assert two.words(NAMES) == ["−0.50 b + 0.25 a"]
    assert two.simulate(torch.tensor([[1.0, 2.0, 9.0]])).tolist() == [[-0.75]]


def test_a_table_row_for_each_neuron_and_each_explainer() -> None:
    presence = presences(3000)
    planted = quality.planted_mixtures(presence, neurons=30)
    activations = torch.cat([planted.activations, torch.ones(3000, 1)], 1)
    parts = labelling_parts(layer_of(activations), presence)
    label = LabelExplainer(sim.SoftWPMI())
    rows = explained_neurons(parts, NAMES, LinearExplainer(), {"label": label})
    assert rows["neuron"].tolist() == list(range(31))
    assert rows["concepts"][0] == [word for word in rows["explanation"][0].split() if word in NAMES]
    assert rows.loc[30, ["explanation"]].tolist() == [""]
    assert pd.isna(rows.loc[30, ["pearson", "pearson_low", "pearson_label"]]).all()
    assert (rows["pearson"][:30] > rows["pearson_label"][:30]).mean() > 0.9
    truth = torch.cat([planted.weights, torch.zeros(1, 12)])
    explainers = {"label": label, "linear": LinearExplainer(), "constant": ConstantExplainer()}
    table = explanation_table(parts, explainers, truth).set_index("explanation")
    assert (table["neurons"] == 30).all()
    assert table["pearson"]["linear"] == pytest.approx(rows["pearson"].mean())
    assert table["ratio"]["linear"] == pytest.approx(table["pearson"]["linear"] / table["pearson"]["label"])
    assert table["ratio"]["linear"] > 1.5
    assert table["concepts"].round(1).to_dict() == {"label": 1.0, "linear": 3.0, "constant": 1.0}
    assert table["covered"].isna().tolist() == [True, False, True]
    assert table["exact"]["label"] == 0


def test_many_concepts_of_which_some_are_copies() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(600, 200, generator=generator)
    scores[:, 100:] = scores[:, :100]
    scores[:, 7] = 0.5
    activations = scores[:, [3, 20]] + 0.5 * scores[:, [60, 60]]
    found = linear_explanation(*parts_of(activations, scores, 300, 300))
    assert [set(row[row != NONE].tolist()) for row in found.concepts] == [{3, 60}, {20, 60}]
    assert found.weights.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_concepts": 0}, "max_concepts=0"),
        ({"penalty": 1.0}, "penalty=1"),
        ({"least_gain": -0.1}, "least_gain"),
        ({"candidates": 0}, "candidates=0"),
    ],
)
def test_impossible_parameters(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LinearExplainer(**arguments)  # type: ignore[arg-type]


def test_parts_that_do_not_fit() -> None:
    part = Part(torch.randn(9, 2), torch.randn(9, 3))
    with pytest.raises(UserError, match="need the same columns"):
        linear_explanation(part, Part(torch.randn(9, 2), torch.randn(9, 4)))
    top_only = LayerActivations.of("own", torch.arange(9), torch.randn(9, 2))
    with pytest.raises(UserError, match="all activations"):
        labelling_parts(LayerActivations(**{**vars(top_only), "values": None}), torch.randn(9, 3))
