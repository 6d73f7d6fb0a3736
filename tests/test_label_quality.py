from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import references_similarity as slow
import torch
from references_similarity import assert_close
from scipy import stats
from sklearn import metrics as sklearn

import emodissect.dissection.quality as quality
import emodissect.similarity as sim
from emodissect.core.errors import UserError
from emodissect.core.statistics import benjamini_hochberg
from emodissect.dissection.quality import metrics, uncertainty
from emodissect.dissection.quality.held_out import held_out
from emodissect.dissection.quality.metrics import METRICS
from emodissect.dissection.quality.truth import planted_table, recovered, true_concepts
from emodissect.recording import ActivationCollector, LayerActivations


@pytest.fixture
def scored():
    """Activations and the presence of their labels, with ties, over 400 images and 6 neurons."""
    generator = torch.Generator().manual_seed(0)
    presence = (torch.rand(400, 6, generator=generator) * 10).round() / 10
    presence[:, 5] = (presence[:, 5] > 0.8).float()
    activations = presence + 0.5 * torch.randn(400, 6, generator=generator)
    activations[:, 4] = (activations[:, 4] * 4).round()
    return activations, presence


def columns(function, activations, presence):
    return [function(a, c) for a, c in zip(activations.double().numpy().T, presence.numpy().T, strict=True)]


def top(a, alpha=0.005):
    marked = np.zeros(len(a), dtype=bool)
    marked[slow.top(a, int(np.ceil(alpha * len(a))))] = True
    return marked


REFERENCES = {
    "pearson": lambda a, c: stats.pearsonr(a, c).statistic,
    "cosine": lambda a, c: a @ c / np.linalg.norm(a) / np.linalg.norm(c),
    "auprc": lambda a, c: sklearn.average_precision_score(top(a), c),
    "f1": lambda a, c: sklearn.f1_score(top(a), c >= 0.5),
    "iou": lambda a, c: sklearn.jaccard_score(top(a), c >= 0.5),
    "inverse_auc": lambda a, c: sklearn.roc_auc_score(c >= 0.5, a),
    "mad": lambda a, c: (a[c >= 0.5].mean() - a[c < 0.5].mean()) / a[c < 0.5].std(),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_equal_scipy_and_scikit_learn(scored, name):
    assert_close(METRICS[name](*scored), columns(REFERENCES[name], *scored), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.005, 0.1, 1.0])
def test_alpha_is_the_share_of_images_called_active(scored, alpha):
    expected = columns(lambda a, c: sklearn.jaccard_score(top(a, alpha), c >= 0.5), *scored)
    assert_close(metrics.iou(*scored, alpha=alpha), expected)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("presence", [0.0, 1.0])
def test_a_label_or_a_neuron_that_never_varies_has_a_number(name, presence):
    dead = METRICS[name](torch.full((50, 2), 0.1), torch.full((50, 2), presence))
    assert dead.isfinite().all()
    if name in ("pearson", "mad", "inverse_auc"):
        assert (dead == (0.5 if name == "inverse_auc" else 0.0)).all()
    assert METRICS[name](torch.randn(1, 2), torch.full((1, 2), presence)).isfinite().all()


def test_metrics_by_hand():
    # Five images, one active (alpha .2); the concept is on two of them, one the active one.
    a = torch.tensor([[5.0], [1.0], [2.0], [0.0], [2.0]])
    c = torch.tensor([[0.8], [0.9], [0.1], [0.0], [0.2]])
    assert metrics.iou(a, c, alpha=0.2).item() == 0.5  # 1 / (1 + 2 - 1)
    assert metrics.f1(a, c, alpha=0.2).item() == pytest.approx(2 / 3)
    assert metrics.auprc(a, c, alpha=0.2).item() == 0.5  # the active image comes second
    assert metrics.inverse_auc(a, c).item() == pytest.approx(4 / 6)  # 5 beats 2, 0, 2; 1 beats 0 only
    assert metrics.mad(a, c).item() == pytest.approx((3 - 4 / 3) / np.sqrt(8 / 9))


def test_of_labels_takes_each_neurons_concept_block_by_block(scored, monkeypatch):
    activations, presence = scored
    labels = torch.tensor([3, 0, 0, 5, 2, 1])
    monkeypatch.setattr(metrics, "_BLOCK", 800)
    found = quality.of_labels(activations, presence, labels)
    assert list(found) == list(METRICS)
    for name, values in found.items():
        assert_close(values, METRICS[name](activations, presence[:, labels]))
    with pytest.raises(UserError, match="Did you mean 'pearson'"):
        quality.of_labels(activations, presence, labels, names=("pearsn",))
    with pytest.raises(UserError, match="each neuron one label"):
        quality.of_labels(activations, presence, labels[:2])


def sparse(values, active):
    """Output of a ReLU that is active on a share of the images."""
    return (values - float(stats.norm.ppf(1 - active))).relu() if active < 1 else values


@pytest.mark.parametrize("active", [1.0, 0.16, 0.02])
@pytest.mark.parametrize("scores_are", ["normal", "of a rare concept"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_intervals_cover_the_true_correlation(active, scores_are, strength):
    """Fisher's interval alone covers only .55 of the correlations of sparse neurons with rare concepts."""
    generator = torch.Generator().manual_seed(1)

    def drawn(images, neurons):
        z = torch.randn(2, images, neurons, generator=generator)
        a, c = z[0], strength * z[0] + (1 - strength**2) ** 0.5 * z[1]
        noise = 0.1 * torch.randn(images, neurons, generator=generator)
        return sparse(a, active), c if scores_are == "normal" else (c > 1.88).float() + noise

    true = float(metrics.pearson(*drawn(3_000_000, 1)))
    low, high = quality.pearson_interval(*drawn(750, 300))
    covered = ((low <= true) & (high >= true)).double().mean()
    assert covered >= (0.93 if active == 1 else 0.85)
    assert ((low > -1) & (high < 1)).all()


def test_a_dense_interval_is_fishers_or_a_little_wider():
    generator = torch.Generator().manual_seed(1)
    a, c = torch.randn(2, 2000, 4, generator=generator)
    low, high = quality.pearson_interval(a, a + c)
    for neuron in range(4):
        expected = stats.pearsonr(a[:, neuron].numpy(), (a + c)[:, neuron].numpy()).confidence_interval()
        assert low[neuron] == pytest.approx(expected.low, abs=0.01)
        assert high[neuron] == pytest.approx(expected.high, abs=0.01)
    assert [float(bound[0]) for bound in quality.pearson_interval(a[:3], c[:3])] == [-1, 1]


def paired_anew(metric, activations, presence, draws=999):
    """The slow way to compute every p-value: pair images and activations at random and score again."""
    generator = np.random.default_rng(0)
    observed = metric(activations, presence)
    reached = torch.zeros_like(observed)
    for _ in range(draws):
        reached += metric(activations, presence[generator.permutation(len(presence))]) >= observed - 1e-12
    return (1 + reached) / (1 + draws)


@pytest.mark.parametrize("name", METRICS)
def test_p_values_are_those_of_images_paired_anew(name):
    generator = torch.Generator().manual_seed(2)
    presence = (torch.rand(120, 3, generator=generator) * 8).round() / 8
    labels = torch.arange(30) % 3
    activations = 0.25 * presence[:, labels] + torch.randn(120, 30, generator=generator) - 0.5
    found = quality.p_values(activations, presence, presence, labels, alpha=0.1)[name]
    expected = paired_anew(metrics.at_alpha(0.1)[name], activations, presence[:, labels])
    assert found.min() < 0.05 < 0.5 < found.max()
    assert_close(found, expected, rtol=0, atol=0.12 if name == "mad" else 0.06)


def test_p_values_of_noise_are_uniform_and_of_a_detector_small():
    generator = torch.Generator().manual_seed(12)
    scores = torch.randn(1000, 4, generator=generator)
    presence = torch.sigmoid(3 * (scores - 1))
    labels = torch.arange(400) % 4
    noise = torch.randn(1000, 400, generator=generator)
    for name, p in quality.p_values(noise, scores, presence, labels).items():
        assert (p <= 0.05).double().mean() < 0.09, name
        assert 0.4 < p.mean() < 0.75, name  # few top images make the exact test's p-values coarse, and never too small
    for name, p in quality.p_values(noise[:, :4] + 5 * scores, scores, presence, labels[:4]).items():
        assert (p <= 0.001).all(), name


@pytest.mark.parametrize("active", [1.0, 0.16, 0.02])
@pytest.mark.parametrize("scores_are", ["normal", "of a rare concept", "0 or 1"])
def test_held_out_p_values_of_noise_are_never_too_small(active, scores_are):
    """Images and scores ordered by class, as from folders: neither skew nor ties make noise significant."""
    found, images, worlds = {}, 420, 8
    for world in range(worlds):
        generator = torch.Generator().manual_seed(world)
        classes = torch.nn.functional.one_hot(torch.arange(images) * 6 // images, 6).float()
        classes[images // 6 + 14 : images // 3, 1] = 0  # a rare class
        noise = torch.randn(images, 6, generator=generator)
        scores = {"normal": noise, "of a rare concept": (noise / 2 + classes).exp(), "0 or 1": classes}[scores_are]
        presence = classes if scores_are == "0 or 1" else torch.sigmoid(scores - 1)
        labels = torch.arange(48) % 6
        activations = sparse(torch.randn(images, 48, generator=generator), active)
        p = quality.p_values(activations, scores, presence, labels, draws=199, seed=world)
        p["simulation"] = quality.pearson_p(activations, scores[:, labels], draws=199, seed=world)
        for name, values in p.items():
            found.setdefault(name, []).append(values)
    assert set(found) == {*METRICS, "simulation"}
    for name, values in found.items():
        p = torch.cat(values)
        # Neurons of a concept share its draws: the binomial errors of both.
        assert (p <= 0.05).double().mean() <= 0.05 + 3 * (0.05 * 0.95 * (1 / len(p) + 1 / (199 * worlds))) ** 0.5, name
        assert p.mean() > 0.45, name
        layers = sum(bool((benjamini_hochberg(layer.numpy()) < 0.05).any()) for layer in values)
        assert layers <= 2, f"{name}: {layers} of {worlds} layers of noise have a significant neuron"


def test_p_values_of_a_correlation():
    generator = torch.Generator().manual_seed(2)
    c = torch.randn(60, 40, generator=generator)
    a = torch.randn(60, 40, generator=generator)
    expected = columns(lambda x, y: stats.pearsonr(x, y, alternative="greater").pvalue, a, c)
    assert_close(quality.pearson_p(a, c), expected, rtol=0, atol=0.06)  # of normal values Student's t is right


def test_p_values_do_not_depend_on_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    activations, scores = torch.randn(80, 9, generator=generator), torch.rand(80, 3, generator=generator)
    labels = torch.arange(9) % 3
    whole = quality.p_values(activations, scores, scores, labels, draws=150)
    pairs = (activations, scores[:, labels])
    alone, interval = quality.pearson_p(*pairs, draws=150), quality.pearson_interval(*pairs)
    monkeypatch.setattr(uncertainty, "_BLOCK", 160)
    for name, p in quality.p_values(activations, scores, scores, labels, draws=150).items():
        assert_close(p, whole[name], rtol=0, atol=1e-9)
    assert torch.equal(quality.pearson_p(*pairs, draws=150), alone)
    assert_close(torch.stack(quality.pearson_interval(*pairs)), torch.stack(interval), rtol=1e-9)


@pytest.mark.parametrize("constant", ["activations", "presence"])
def test_what_never_varies_is_not_significant(constant):
    values = {"activations": torch.randn(50, 2), "presence": torch.rand(50, 2)}
    values[constant][:] = 0.7
    found = quality.p_values(values["activations"], values["presence"], values["presence"], torch.tensor([0, 1]))
    for name, p in found.items():
        assert p.isfinite().all(), name
        assert (p > 0.2).all() or name in ("f1", "iou", "auprc"), name


def test_presence_is_where_the_scores_fall_apart():
    generator = torch.Generator().manual_seed(13)
    truth = torch.rand(4000, 3, generator=generator) < torch.tensor([0.2, 0.5, 0.7])
    scores = 0.2 + 0.05 * truth + 0.01 * torch.randn(4000, 3, generator=generator)
    found = quality.calibrated_presence(scores)
    presence = found.predict(scores)
    assert ((presence >= 0.5) == truth).double().mean() > 0.985
    assert_close(presence.mean(0), truth.double().mean(0), rtol=0, atol=0.02)
    # between the means, shifted by v log((1 - w) / w) / (m1 - m0) towards the rarer one
    assert_close(-found.beta, torch.tensor([0.2278, 0.2250, 0.2233]), rtol=0, atol=0.002)
    assert ((found.predict(scores[:5]) - presence[:5]).abs() == 0).all()


def test_presence_of_scores_that_say_nothing():
    scores = torch.stack([torch.full((100,), 0.3), torch.linspace(-1, 1, 100)], dim=1)
    presence = quality.calibrated_presence(scores).predict(scores)
    assert (presence[:, 0] == 0.5).all()
    assert presence.isfinite().all()
    assert (presence[1:, 1] >= presence[:-1, 1]).all()


def test_half_of_the_positives_go_missing_and_as_many_are_made_up():
    presence = (torch.rand(500, 4) > torch.tensor([0.9, 0.5, 0.3, 0.99])).float() * 0.9
    positive = presence >= 0.5
    missing, extra = quality.missing_labels(presence) >= 0.5, quality.extra_labels(presence) >= 0.5
    assert (missing & ~positive).sum() == 0
    assert (missing.sum(0) == positive.sum(0) // 2).all()
    assert (positive & ~extra).sum() == 0
    expected = torch.minimum(positive.sum(0) * 2, torch.tensor(500))
    assert (extra.sum(0) == expected).all()


@pytest.fixture
def rare():
    """Detectors of rare concepts, like those for which the sanity tests were published."""
    generator = torch.Generator().manual_seed(3)
    presence = (torch.rand(5000, 60, generator=generator) < 0.003).float()
    return 3 * presence + torch.randn(5000, 60, generator=generator), presence


def test_the_trusted_metrics_pass_both_sanity_tests_and_the_others_fail_one(rare):
    """As published: correlation, cosine, AUPRC, F1 and IoU pass; inverse AUC and MAD do not detect missing labels."""
    table = quality.sanity_table(*rare).set_index("metric")
    assert table.passed[["pearson", "cosine", "auprc", "f1", "iou"]].all()
    assert not table.passed[["inverse_auc", "mad"]].any()
    assert table.extra_passed[["inverse_auc", "mad"]].all()
    assert (table.neurons == 60).all()
    with pytest.raises(UserError, match="at least two images"):
        quality.sanity_table(rare[0], torch.zeros(5000, 60))


@pytest.mark.slow
def test_an_offset_makes_the_cosine_fail_and_nothing_else(rare):
    """Oikarinen et al., appendix E.2: the cosine is not centred."""
    activations, presence = rare
    plain = quality.sanity_table(activations, presence).set_index("metric")
    for offset in (-3, 30):
        moved = quality.sanity_table(activations + offset, presence).set_index("metric")
        assert not moved.passed["cosine"]
        assert (moved.passed.drop("cosine") == plain.passed.drop("cosine")).all()


@pytest.mark.slow
def test_rectified_activations_are_what_the_cosine_was_made_for(rare):
    activations, presence = rare
    table = quality.sanity_table(activations - 1, presence, quality.sanity_metrics([0.005])).set_index("metric")
    assert table.passed["cosine, rectified"]


def test_frequent_concepts_need_more_active_images():
    """If a concept is on 40 % of the images, F1 and IoU of the top .5 % do not notice that half of it is missing."""
    generator = torch.Generator().manual_seed(14)
    presence = (torch.rand(3000, 40, generator=generator) < 0.4).float()
    activations = presence + torch.randn(3000, 40, generator=generator)
    table = quality.sanity_table(activations, presence, quality.sanity_metrics([0.005, 0.2])).set_index("metric")
    assert not table.missing_passed[["f1", "iou"]].any()
    assert table.passed[["pearson", "f1, alpha 0.2", "iou, alpha 0.2", "auprc, alpha 0.2"]].all()


def test_simulation_finds_steepness_and_threshold():
    generator = torch.Generator().manual_seed(4)
    scores = 0.2 + 0.03 * torch.randn(2000, 3, generator=generator)
    alpha, beta = torch.tensor([100.0, 200.0, 50.0]), torch.tensor([-0.25, -0.2, -0.15])
    activations = 7 * torch.sigmoid(alpha * (scores + beta)) - 2
    noisy = activations + 0.5 * torch.randn(2000, 3, generator=generator)
    found = quality.calibrate(noisy[:1000], scores[:1000])
    assert_close(found.beta, beta, rtol=0, atol=0.02)
    assert (found.alpha > 0).all()
    held_out = quality.simulation_score(found, activations[1000:], scores[1000:])
    assert (held_out > 0.99).all()
    assert (held_out[0] > metrics.pearson(activations[1000:], scores[1000:])[0] + 0.02).all()
    with pytest.raises(UserError, match="three images"):
        quality.calibrate(noisy[:2], scores[:2])


def test_recovery_by_hand():
    truth = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    similarity = torch.tensor(
        [[0.9, 0.1, 0.0, 0.0, 0.0], [0.8, 0.7, 0.0, 0.0, 0.0], [0.5, 0.4, 0.1, 0.2, 0.3], [9.0, 9, 9, 9, 9]]
    )
    found = quality.recovery(similarity, truth, draws=200)
    assert found.neurons == 3
    assert found.top1.value == pytest.approx(1 / 3)
    assert found.top3.value == pytest.approx(2 / 3)
    assert found.top1.chance == pytest.approx((0.2 + 0.2 + 0.4) / 3)
    assert found.top3.chance == pytest.approx(1 - (4 + 4 + 1) / 3 / 10)
    expected = sklearn.average_precision_score(truth[:3].flatten().numpy(), similarity[:3].flatten().numpy())
    assert found.meta_auprc.value == pytest.approx(expected)
    assert found.meta_auprc.chance == pytest.approx(4 / 15)
    assert found.top1.low <= found.top1.value <= found.top1.high
    perfect = quality.recovery(truth[:3].float(), truth[:3]).top1
    assert (perfect.value, perfect.high) == (1, pytest.approx(1))
    assert perfect.low == pytest.approx(0.4385, abs=1e-3)  # Wilson: three of three are not certainty
    assert set(found.row()) == {"neurons"} | {
        f"{name}{end}" for name in ("top1", "top3", "meta_auprc") for end in ("", "_low", "_high", "_chance")
    }
    with pytest.raises(UserError, match="nothing to recover"):
        quality.recovery(similarity, torch.zeros_like(truth))


def test_the_best_concept_by_annotation_is_the_truth():
    assert quality.best_concepts(torch.tensor([[0.1, 0.9], [-0.5, -0.1]])).tolist() == [[False, True], [False, False]]


def test_two_truths_of_a_trained_neuron():
    """Neuron 0 follows concept 0 overall, and concept 1 on its top images; neuron 1 is unrelated to both."""
    generator = torch.Generator().manual_seed(15)
    presence = torch.rand(1000, 3, generator=generator)
    presence[:, 1] = (torch.rand(1000, generator=generator) < 0.05).float()
    activations = torch.stack([presence[:, 0] + 5 * presence[:, 1] * (presence[:, 0] > 0.9), -presence.sum(1)], dim=1)
    layer = of_layer(activations)
    truths = true_concepts(layer, presence, top=5)
    assert truths["correlation"].tolist() == [[True, False, False], [False] * 3]
    assert truths["top images"].tolist()[0] == [False, True, False]
    table = recovered(layer, {"scorer": presence}, {"pearson": sim.Pearson()}, truths).set_index("truth")
    assert table.top1.tolist() == [1.0, 0.0]
    assert recovered(of_layer(torch.ones(1000, 2)), {"scorer": presence}, {"pearson": sim.Pearson()}, truths).empty


MEASURES = [
    sim.SoftWPMI(),
    sim.WPMI(),
    sim.RankReorder(),
    sim.CosSimilarity(),
    sim.CosSimilarityCubed(),
    sim.Pearson(),
]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: type(m).__name__)
def test_every_similarity_recovers_planted_neurons_better_than_chance(measure):
    presence = torch.rand(1500, 10, generator=torch.Generator().manual_seed(5)) ** 4
    planted = quality.planted_neurons(presence, single=40, either_or=20, noise=10, dead=5)
    similarity = measure(presence, planted.activations)
    for kind, least in (("single", 0.95), ("either_or", 0.8)):
        own = planted.of_kind(kind)
        found = quality.recovery(similarity[own], planted.truth[own], draws=200)
        if isinstance(measure, sim.CosSimilarity):  # not centred: offsets drown it
            continue
        assert found.top1.value >= least
        assert found.top1.low > found.top1.chance
    assert quality.recovery(similarity, planted.truth, draws=50).neurons == 60


def test_planted_neurons_are_what_they_say():
    presence = torch.rand(800, 4, generator=torch.Generator().manual_seed(6))
    presence[:, 2] = 0.3
    planted = quality.planted_neurons(presence, single=6, either_or=4, noise=3, dead=2, noise_scale=0.0)
    assert planted.activations.shape == (800, 15)
    assert planted.truth.sum(1).tolist() == [1] * 6 + [2] * 4 + [0] * 5
    assert not planted.truth[:, 2].any()
    assert (planted.activations[:, -2:] == 0).all()
    for neuron in range(6):
        concept = int(planted.truth[neuron].nonzero())
        r = metrics.pearson(planted.activations[:, [neuron]], presence[:, [concept]])
        assert r.item() == pytest.approx(1, abs=1e-6)
    again = quality.planted_neurons(presence, single=6, either_or=4, noise=3, dead=2, noise_scale=0.0)
    assert (again.activations == planted.activations).all()
    with pytest.raises(UserError, match="two concepts"):
        quality.planted_neurons(torch.ones(9, 3))


@pytest.fixture
def drawn():
    """Images with five patterns of strength ``presence``, the planted neurons, and a network that has them."""
    generator = torch.Generator().manual_seed(7)
    presence = torch.rand(1200, 5, generator=generator) ** 3
    patterns = torch.randn(5, 1, 24, 24, generator=generator)
    noise = 0.5 * torch.randn(1200, 1, 24, 24, generator=generator)
    images = torch.einsum("ic,cxhw->ixhw", presence, patterns) + noise
    planted = quality.planted_neurons(presence, single=20, either_or=10, noise=60, dead=4)
    return images, presence, planted, quality.planted_network(images, presence, planted)


def recorded_neurons(network, images, ids):
    """The planted layer, recorded like any network's layer, with batches in any order."""
    collector = ActivationCollector("neurons", top_k=100, keep_values=True)
    with torch.inference_mode(), collector.on(network):
        for rows in torch.randperm(len(ids)).split(256):
            network(images[rows])
            collector.update(ids[rows])
    return collector.result()["neurons"]


@pytest.mark.parametrize(
    "measure",
    [sim.SoftWPMI(), sim.SoftWPMI(top_k=150), sim.WPMI(), sim.CosSimilarityCubed(), sim.Pearson()],
    ids=lambda m: f"{type(m).__name__} {m.top_k}",
)
def test_a_planted_network_is_labelled_as_it_was_built(drawn, measure):
    images, presence, planted, network = drawn
    ids = torch.arange(1200) * 3 + 1
    layer = recorded_neurons(network, images, ids)
    assert layer.dead.tolist() == [kind == "dead" for kind in planted.kind]
    table = planted_table(layer, presence, {"own": measure}, planted, draws=200).set_index("kind")
    assert list(table.index) == ["single", "either_or", "noise", "dead"]
    assert table.neurons.tolist() == [20, 10, 60, 4]
    assert table.top1["single"] >= 0.95
    assert table.top1["either_or"] >= 0.9
    assert table.top1[["noise", "dead"]].isna().all()
    assert table.labelled["single"] == 1
    assert table.labelled["noise"] <= 0.15  # 5 % expected, of 60
    assert table.labelled["dead"] == 0


def test_planted_noise_knows_nothing_of_the_concepts(drawn):
    images, presence, planted, network = drawn
    with torch.no_grad():
        found = network(images)[:, planted.of_kind("noise")]
    correlations = torch.corrcoef(torch.cat([found, presence], dim=1).T)[:60, 60:]
    assert correlations.abs().max() < 0.13  # of 300 at 1,200 images, one of random ones reaches .1
    assert correlations.square().mean() * 1200 == pytest.approx(1, abs=0.35)


def test_agreement_by_hand():
    first, second = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 2, 0])
    found = quality.agreement(first, second)
    assert found.share == 0.6
    assert found.chance == pytest.approx(0.4 * 0.6 + 0.4 * 0.2 + 0.2 * 0.2)
    assert found.kappa == pytest.approx(sklearn.cohen_kappa_score(first.numpy(), second.numpy()))
    assert found.low < 0.6 < found.high
    assert quality.agreement(first, second, torch.tensor([True] * 3 + [False] * 2)).share == 1
    assert quality.agreement(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)).kappa == 1
    assert quality.agreement(first, first).share == 1
    with pytest.raises(UserError, match="same neurons"):
        quality.agreement(first, second[:2])
    with pytest.raises(UserError, match="dead"):
        quality.agreement(first, second, torch.zeros(5, dtype=torch.bool))


def test_halves_are_by_id_disjoint_and_whole():
    ids = torch.randperm(101) * 3
    first, second = quality.halves(ids, seed=1)
    assert (first ^ second).all()
    assert first.sum() == 50
    order = torch.randperm(101)
    assert (quality.halves(ids[order], seed=1)[0] == first[order]).all()
    assert (quality.halves(ids, seed=2)[0] != first).any()
    assert [int(part.sum()) for part in quality.halves(torch.tensor([5, 6]), share=0.01)] == [1, 1]


def of_layer(activations):
    return LayerActivations.of("own", torch.arange(len(activations)) + 5, activations, 100)


def test_held_out_scores_of_right_wrong_and_dead_neurons():
    generator = torch.Generator().manual_seed(10)
    present = torch.rand(2000, 5, generator=generator) < 0.3
    scores = 0.2 + 0.05 * present + 0.01 * torch.randn(2000, 5, generator=generator)
    activations = torch.randn(2000, 8, generator=generator)
    activations[:, :3] += 80 * scores[:, :3]
    activations[:, 6] = 1.5
    layer = of_layer(activations)
    activations[:, 7] = (activations[:, 7] > 9).float()
    activations[int(quality.halves(layer.ids)[0].nonzero()[0, 0]), 7] = 1.0  # alive on one labelling image only
    found = held_out(of_layer(activations), scores, list("abcde"), sim.Pearson(), truth=present.float())
    rows = found.neurons.set_index("neuron")
    assert rows.concept[:3].tolist() == ["a", "b", "c"]
    assert (rows.pearson[:3] > 0.85).all()
    assert (rows.filter(regex="_p$|_q$").loc[:2] < 0.05).all(axis=None)
    assert (rows.pearson_low[:3] < rows.pearson[:3]).all()
    assert (rows.pearson[:3] < rows.pearson_high[:3]).all()
    assert (rows.pearson_q[3:6] > 0.05).all()
    assert found.live.tolist() == [True] * 6 + [False] * 2
    assert rows.concept[6:].tolist() == rows.explanation[6:].tolist() == ["", ""]
    assert rows.loc[6:, rows.columns.difference(["concept", "explanation"])].isna().all(axis=None)
    assert (rows.true_pearson[:3] > 0.8).all()
    assert set(found.sanity.presence) == {"scorer", "annotations"}


def test_the_scoring_half_decides_nothing_that_is_fitted():
    """With another scoring half, labels, explanations, presence and simulation are the same."""
    generator = torch.Generator().manual_seed(11)
    scores = torch.randn(600, 4, generator=generator)
    activations = scores[:, [0, 1, 2, 3, 0]] + torch.randn(600, 5, generator=generator)
    _, second = quality.halves(of_layer(activations).ids)
    changed, moved = activations.clone(), scores.clone()
    rows = second.nonzero()[:, 0]
    changed[rows], moved[rows] = activations[rows.flip(0)], scores[rows.flip(0)]
    plain = held_out(of_layer(activations), scores, list("abcd"), sim.SoftWPMI(top_k=50)).neurons
    other = held_out(of_layer(changed), moved, list("abcd"), sim.SoftWPMI(top_k=50)).neurons
    # the pairs are the same, in another order, which only what is drawn at random knows of
    drawn = [name for name in plain if name.endswith(("_p", "_q", "_low", "_high"))]
    pd.testing.assert_frame_equal(plain.drop(columns=drawn), other.drop(columns=drawn), rtol=1e-6)
    changed[rows] = activations[rows.roll(1)]
    broken = held_out(of_layer(changed), scores, list("abcd"), sim.SoftWPMI(top_k=50)).neurons
    assert broken.concept.tolist() == plain.concept.tolist()
    assert broken.explanation.tolist() == plain.explanation.tolist()
    assert (broken.pearson.abs() < 0.2).all()


def test_clarity_is_the_mean_pairwise_cosine_of_the_exemplars():
    embeddings = torch.randn(50, 8)
    rows = torch.stack([torch.randperm(50)[:10] for _ in range(3)], dim=1)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    for neuron, found in enumerate(quality.clarity(embeddings, rows)):
        cosines = unit[rows[:, neuron]] @ unit[rows[:, neuron]].T
        assert float(found) == pytest.approx(float((cosines.sum() - 10) / 90), abs=1e-5)
    assert quality.clarity(torch.ones(4, 3), torch.tensor([[0], [1]]))[0] == pytest.approx(1)
    assert (quality.clarity(embeddings, rows[:1]) == 0).all()


def test_random_sets_are_as_alike_as_all_images_are() -> None:
    generator = torch.Generator().manual_seed(4)
    embeddings = torch.randn(400, 16, generator=generator) + 1
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    cosines = unit @ unit.T
    overall = float((cosines.sum() - 400) / (400 * 399))
    drawn = quality.random_clarity(embeddings, 10, draws=500)
    assert drawn.shape == (500,)
    assert float(drawn.mean()) == pytest.approx(overall, abs=0.01)
