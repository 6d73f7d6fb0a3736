from __future__ import annotations

import numpy as np
import pytest
import torch
from references_similarity import assert_close
from scipy import stats
from sklearn import metrics as sklearn

import emodissect.label_quality as quality
import emodissect.similarity as sim
from emodissect.errors import UserError
from emodissect.label_quality import metrics
from emodissect.label_quality.metrics import METRICS


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
    marked[np.argsort(-a, kind="stable")[: int(np.ceil(alpha * len(a)))]] = True
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
    with pytest.raises(UserError, match="each neuron needs one label"):
        quality.of_labels(activations, presence, labels[:2])


def test_intervals_cover_the_true_correlation_at_their_level():
    generator = torch.Generator().manual_seed(1)
    c = torch.randn(200, 300, generator=generator)
    a = 0.5 * c + (1 - 0.25) ** 0.5 * torch.randn(200, 300, generator=generator)
    r = metrics.pearson(a, c)
    for low, high in (quality.pearson_interval(r, 200), quality.bootstrap_interval(metrics.pearson, a, c)):
        covered = ((low <= 0.5) & (high >= 0.5)).double().mean()
        assert 0.9 <= covered <= 0.99
    expected = stats.pearsonr(a[:, 0].numpy(), c[:, 0].numpy()).confidence_interval()
    low, high = quality.pearson_interval(r, 200)
    assert_close([low[0], high[0]], [expected.low, expected.high], rtol=1e-4)


def test_p_values_of_a_correlation():
    generator = torch.Generator().manual_seed(2)
    c = torch.randn(60, 40, generator=generator)
    a = torch.randn(60, 40, generator=generator)
    r = metrics.pearson(a, c)
    expected = columns(lambda x, y: stats.pearsonr(x, y, alternative="greater").pvalue, a, c)
    assert_close(quality.pearson_p(r, 60), expected, rtol=1e-4)
    assert_close(quality.permutation_p_value(metrics.pearson, a, c, draws=999), expected, rtol=0, atol=0.07)
    assert (quality.permutation_p_value(metrics.pearson, c, c, draws=19) == 0.05).all()


def test_half_of_the_positives_go_missing_and_as_many_are_made_up():
    presence = (torch.rand(500, 4) > torch.tensor([0.9, 0.5, 0.3, 0.99])).float() * 0.9
    positive = presence >= 0.5
    missing, extra = quality.missing_labels(presence) >= 0.5, quality.extra_labels(presence) >= 0.5
    assert (missing & ~positive).sum() == 0
    assert (missing.sum(0) == positive.sum(0) // 2).all()
    assert (positive & ~extra).sum() == 0
    expected = torch.minimum(positive.sum(0) * 2, torch.tensor(500))
    assert (extra.sum(0) == expected).all()


def test_the_trusted_metrics_pass_both_sanity_tests_and_the_others_fail_one():
    """As published: correlation, cosine, AUPRC, F1 and IoU pass; inverse AUC and MAD do not see missing labels."""
    generator = torch.Generator().manual_seed(3)
    presence = (torch.rand(3000, 30, generator=generator) < 0.01).float()
    activations = 2.5 * presence + 0.5 * torch.randn(3000, 30, generator=generator)
    table = quality.sanity_table(activations, presence).set_index("metric")
    assert table.passed[["pearson", "cosine", "auprc", "f1", "iou"]].all()
    assert not table.passed[["inverse_auc", "mad"]].any()
    assert table.extra_passed[["inverse_auc", "mad"]].all()
    assert (table.neurons == 30).all()
    with pytest.raises(UserError, match="need both"):
        quality.sanity_table(activations, torch.zeros(3000, 30))


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
    assert set(found.row()) == {"neurons"} | {
        f"{name}{end}" for name in ("top1", "top3", "meta_auprc") for end in ("", "_low", "_high", "_chance")
    }
    with pytest.raises(UserError, match="no truth"):
        quality.recovery(similarity, torch.zeros_like(truth))


def test_the_best_concept_by_annotation_is_the_truth():
    assert quality.best_concepts(torch.tensor([[0.1, 0.9], [-0.5, -0.1]])).tolist() == [[False, True], [False, False]]


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


def test_a_planted_network_detects_its_concepts_on_new_images():
    generator = torch.Generator().manual_seed(7)
    presence = torch.rand(600, 5, generator=generator)
    patterns = torch.randn(5, 1, 8, 8, generator=generator)
    images = torch.einsum("ic,cxhw->ixhw", presence, patterns) + 0.5 * torch.randn(600, 1, 8, 8, generator=generator)
    network = quality.planted_network(images[:400], presence[:400])
    with torch.no_grad():
        found = network(images[400:])
    assert [name for name, _ in network.named_children()] == ["flatten", "detectors", "relu"]
    similarity = sim.pearson(presence[400:], found)
    assert (similarity.diagonal() > 0.8).all()
    assert quality.recovery(similarity, torch.eye(5, dtype=torch.bool), draws=50).top1.value == 1


def test_agreement_by_hand():
    first, second = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 2, 0])
    found = quality.agreement(first, second)
    assert found.share == 0.6
    assert found.chance == pytest.approx(0.4 * 0.6 + 0.4 * 0.2 + 0.2 * 0.2)
    assert found.kappa == pytest.approx(sklearn.cohen_kappa_score(first.numpy(), second.numpy()))
    assert found.low < 0.6 < found.high
    assert quality.agreement(first, second, torch.tensor([True] * 3 + [False] * 2)).share == 1
    assert quality.agreement(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)).kappa == 1
    table = quality.stability_table(first, {"half": second, "same": first})
    assert table.change.tolist() == ["half", "same"]
    assert table.share.tolist() == [0.6, 1.0]
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


def test_a_second_concept_joins_only_where_held_out_images_agree():
    scores = torch.randn(3000, 6, generator=torch.Generator().manual_seed(8))
    scores[:, 5] = 0.0
    activations = torch.stack([scores[:, 0], torch.maximum(scores[:, 1], scores[:, 2]), torch.randn(3000)], dim=1)
    activations += 0.1 * torch.randn(3000, 3)
    found = quality.composite_labels(
        activations[:1500], scores[:1500], activations[1500:], scores[1500:], torch.tensor([0, 2, 4])
    )
    assert found[0].concepts == (0,)
    assert found[1].concepts == (2, 1)
    assert found[2].concepts[0] == 4
    assert found[1].held_out[1] > found[1].held_out[0] + 0.1
    assert len(found[1].held_out) == 2


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
