from __future__ import annotations

import numpy as np
import pytest
import torch
from references_similarity import NAMES, assert_close, configured
from scipy import stats
from statsmodels.stats.multitest import multipletests

import emodissect.similarity as sim
from emodissect.core.errors import UserError
from emodissect.recording import LayerActivations
from emodissect.similarity import top_measures, value_measures

MEASURES = [sim.SoftWPMI(top_k=20), sim.WPMI(top_k=20), sim.Pearson(), sim.CosSimilarity(), sim.CosSimilarityCubed()]
every = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: type(m).__name__)


def recorded(activations, ids=None):
    ids = torch.arange(len(activations)) if ids is None else ids
    return LayerActivations.of("layer", ids, activations, 100)


def concept_scores(images=1000, concepts=8, seed=0):
    """Skewed scores with concepts of very different frequency, like real ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, concepts, generator=generator) ** torch.linspace(1, 12, concepts)


def p_values(measure, scores, layer, draws=1000):
    similarity = measure.of_layer(scores, layer)
    return sim.permutation_p(similarity.amax(1), sim.best_similarity_null(measure, scores, layer, draws, seed=1))


@every
def test_random_neurons_are_called_interpretable_at_most_at_the_nominal_rate(measure):
    scores = concept_scores()
    layer = recorded(torch.randn(1000, 400, generator=torch.Generator().manual_seed(5)).relu())
    p = p_values(measure, scores, layer)
    # The null's own 5 % point is uncertain too: two binomial errors in one.
    assert (p <= 0.05).float().mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 * (1 / 400 + 1 / 1000))
    assert multipletests(p.numpy(), 0.05, method="fdr_bh")[0].mean() <= 0.05
    assert p.mean() > 0.45


@every
def test_under_the_null_p_is_uniform_over_fresh_layers(measure):
    """One neuron's p-value from each of many independent layers, so that Kolmogorov-Smirnov applies."""
    p = []
    for world in range(60):
        generator = torch.Generator().manual_seed(world)
        layer = recorded(torch.randn(120, 12, generator=generator))
        p.append(float(p_values(measure, concept_scores(120, 4, world), layer, draws=99)[0]))
    assert stats.kstest(p, "uniform", alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(
    "measure",
    # the plain cosine is not centred: the commonest concept wins everywhere, and its null with it
    [m for m in MEASURES if not isinstance(m, sim.CosSimilarity)],
    ids=lambda value: type(value).__name__,
)
def test_planted_detectors_are_found(measure):
    scores = concept_scores()
    generator = torch.Generator().manual_seed(6)
    activations = torch.randn(1000, 60, generator=generator)
    standard = (scores - scores.mean(0)) / scores.std(0)
    activations[:, :8] = standard + 0.3 * activations[:, :8]
    layer = recorded(activations)
    p = p_values(measure, scores, layer)
    assert (p[:8] <= 0.01).sum() >= 7
    assert (p[8:] <= 0.05).float().mean() <= 0.2


@pytest.mark.parametrize("concepts", [1, 3, 1500, 5000])  # many draws a block, two, and several blocks a draw
def test_permuted_cosines_are_the_cosines_of_permuted_scores(concepts):
    scores, activations = torch.rand(40, concepts), torch.randn(40, 4)
    for measure in (sim.Pearson(), sim.CosSimilarity(), sim.CosSimilarityCubed()):
        null = sim.best_similarity_null(measure, scores, recorded(activations), draws=5, seed=9)
        generator = np.random.default_rng(9)
        for draw in range(5):
            order = torch.from_numpy(generator.permutation(40))
            assert_close(null[draw], measure(scores[order], activations).amax(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "measure",
    [sim.SoftWPMI(top_k=10), sim.WPMI(top_k=10), sim.RankReorder(top_fraction=0.05)],
    ids=lambda measure: type(measure).__name__,
)
def test_a_random_set_is_scored_as_the_neuron_whose_place_it_takes(measure, monkeypatch):
    """Against a layer where the neuron actually has its activations on the set's images, its minimum elsewhere."""
    monkeypatch.setattr(value_measures, "_REORDERED", 64)  # several blocks of neurons and concepts
    monkeypatch.setattr(value_measures, "_SORTED", 20)
    generator = torch.Generator().manual_seed(2)
    scores, activations = torch.rand(200, 3, generator=generator), torch.randn(200, 40, generator=generator)
    scores[:, 0] = scores[:, 0].round()  # ties of scores
    activations[:, 2] = scores[:, 1]  # one neuron stands for nearly all of a concept's sum
    activations[:, 5] = 0.5  # dead
    activations[:, 6:] = activations[:, 6:].relu()
    for neuron, active in ((7, 3), (8, 8)):  # fewer active images than count
        activations[:, neuron] *= torch.arange(200).flip(0) < active
        activations[-active:, neuron] += torch.arange(active) + 0.1
    layer = recorded(activations)
    null = sim.best_similarity_null(measure, scores, layer, draws=4, seed=3)
    assert null.shape == (4, 40)
    sets, top = np.random.default_rng(3), activations.sort(dim=0, descending=True).values[:10]
    room = 0.01 * getattr(measure, "lam", 0.0)
    for draw in range(4):
        images = torch.from_numpy(sets.choice(200, 10, replace=False))
        for neuron in (0, 1, 2, 6, 7, 8, 39):
            placed = activations.clone()
            placed[:, neuron] = activations[:, neuron].min()
            placed[images, neuron] = top[:, neuron]
            expected = measure(scores, placed)[neuron].max()
            assert expected - 1e-4 <= null[draw, neuron] <= expected + room + 1e-4


NOISE = 6  # layers of noise, each with its own scores


def layers_of_noise(active, scores_are, images=240, neurons=40, concepts=6):
    """Activations unrelated to the images; images and scores ordered by class, as from folders."""
    for world in range(NOISE):
        generator = torch.Generator().manual_seed(world)
        classes = torch.arange(images) * concepts // images
        mean = torch.nn.functional.one_hot(classes, concepts) * 0.4 + 0.3
        continuous = mean + 0.1 * torch.randn(images, concepts, generator=generator)
        votes = (torch.rand(10, images, concepts, generator=generator) < mean).float().mean(0)
        scores = {
            "continuous": continuous,
            "rounded": continuous.round(decimals=1),
            "votes": votes,
            "0 or 1": torch.nn.functional.one_hot(classes, concepts).float(),
        }[scores_are]
        noise = torch.randn(images, neurons, generator=generator)
        yield scores, recorded((noise - noise.quantile(1 - active)).relu() if active < 1 else noise)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("active", "scores_are"),
    [
        *((1.0, scores_are) for scores_are in ("continuous", "rounded", "votes", "0 or 1")),
        *((0.16, scores_are) for scores_are in ("continuous", "votes")),
        *((0.02, scores_are) for scores_are in ("rounded", "0 or 1")),
    ],
)
def test_noise_is_significant_at_the_nominal_rate_however_scores_and_activations_tie(name, active, scores_are):
    measure, p, z = configured(name), [], []
    for scores, layer in layers_of_noise(active, scores_are):
        best = measure.of_layer(scores, layer).amax(1)[~layer.dead]
        null = sim.best_similarity_null(measure, scores, layer, 99, seed=1)[:, ~layer.dead]
        p.append(sim.permutation_p(best, null))
        z.append(sim.standardised(best, null))
    p, z = torch.cat(p), torch.cat(z)
    # Neurons of a layer share its null: the binomial errors of both, as in the test above.
    assert (p <= 0.05).float().mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 * (1 / len(p) + 1 / (99 * NOISE)))
    assert p.mean() > 0.45
    assert z.mean().abs() < 0.3, "z compares across layers, however sparse"


@pytest.mark.parametrize("neurons", [32, 300])
def test_a_lone_detector_is_found_in_a_layer_of_noise(neurons):
    """Its score is at most log M; random sets outside the layer exceed that, but not in the neuron's place."""
    generator = torch.Generator().manual_seed(0)
    scores = 0.2 + 0.06 * torch.randn(3000, 25, generator=generator)  # as CLIP's cosines
    activations = torch.randn(3000, neurons, generator=generator)
    activations[:, 0] += 3 * (scores[:, 0] - 0.2) / 0.06
    p = p_values(sim.SoftWPMI(), scores, recorded(activations))
    assert p[0] <= 2.1 / 1001
    assert (p[1:] <= 0.01).float().mean() <= 0.04


def test_rank_reorder_has_a_null_too():
    scores = concept_scores(200, 3) + 0.05
    activations = torch.randn(200, 40, generator=torch.Generator().manual_seed(10))
    activations[:, 0] = scores[:, 0]
    measure, layer = sim.RankReorder(top_fraction=0.3), recorded(activations)
    p = sim.permutation_p(measure.of_layer(scores, layer).amax(1), sim.best_similarity_null(measure, scores, layer, 99))
    assert p[0] == pytest.approx(0.01)
    assert (p[1:] <= 0.05).float().mean() <= 0.16


def test_a_null_may_show_a_bar(monkeypatch):
    seen = []

    def bar(items, what):
        if what:  # no words, no bar
            seen.append((len(items), what))
        return items

    monkeypatch.setattr(value_measures, "tracked", bar)
    monkeypatch.setattr(top_measures, "tracked", bar)
    scores, layer = torch.rand(50, 3), recorded(torch.randn(50, 4))
    for measure in (sim.Pearson(), sim.RankReorder(), sim.SoftWPMI(top_k=5)):
        plain = sim.best_similarity_null(measure, scores, layer, 20)
        assert torch.equal(sim.best_similarity_null(measure, scores, layer, 20, progress="null of lin2"), plain)
    assert seen == [(1, "null of lin2"), (20, "null of lin2"), (1, "null of lin2")]


def test_p_values_and_distances_by_hand():
    null = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    best = torch.tensor([0.0, 2.0, 2.5, 9.0])
    expected = torch.tensor([1.0, 4 / 5, 3 / 5, 1 / 5])
    assert_close(sim.permutation_p(best, null), expected)
    assert_close(sim.permutation_p(best, null.expand(-1, 4)), expected)
    assert_close(sim.standardised(best, null), (best - 2.5) / np.sqrt(5 / 3))
    assert (sim.standardised(best, torch.ones(4, 1)) == 0).all()


def test_ties_that_rounding_tears_apart_are_ties():
    """With neurons that one image activates and classes as scores, a correlation takes one of seven values."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.nn.functional.one_hot(torch.randint(7, (1500,), generator=generator)).float()
    activations = torch.zeros(1500, 300)
    activations[torch.randint(1500, (300,), generator=generator), torch.arange(300)] = torch.rand(300) * 10 + 0.1
    for measure in (sim.Pearson(), sim.CosSimilarity(), sim.CosSimilarityCubed()):
        p = p_values(measure, scores, recorded(activations))
        assert p.min() > 0.05, measure  # the rarest class has a share of an eighth


def test_a_null_of_one_value_finds_nothing():
    flat = torch.full((200, 1), 1e-6) + torch.tensor([0.0, 1e-13]).repeat(100)[:, None]
    best = torch.tensor([1e-6, 1e-6 + 1e-13])
    assert (sim.permutation_p(best, flat) == 1).all()
    assert (sim.standardised(best, flat) == 0).all()


def test_few_detectors_in_a_wide_layer_need_finer_p_values():
    p = torch.cat([torch.full((10,), 1 / 1001), torch.linspace(0.01, 1, 4086)])
    assert multipletests(p.numpy(), 0.05, method="fdr_bh")[0].sum() == 0
    needed = sim.draws_to_pass(p, 1000, 0.05)
    assert needed == 81_920
    p[0] = 1 / (1 + needed)
    assert multipletests(p.numpy(), 0.05, method="fdr_bh")[0].sum() == 1
    assert sim.draws_to_pass(torch.cat([torch.full((90,), 1 / 1001), p[90:]]), 1000, 0.05) == 1000
    assert sim.draws_to_pass(p[10:], 1000, 0.05) == 1000


def test_too_few_draws_are_refused():
    with pytest.raises(UserError, match="draws=0"):
        sim.best_similarity_null(sim.Pearson(), torch.rand(9, 2), recorded(torch.rand(9, 2)), draws=0)
    with pytest.raises(UserError, match="draws=1: must be >= 2"):
        sim.standardised(torch.ones(1), torch.ones(1, 1))
