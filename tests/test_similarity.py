from __future__ import annotations

import pickle
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import references_similarity as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from references_similarity import NAMES, assert_close, configured

import emodissect.similarity as sim
from emodissect.core import ranking
from emodissect.core.errors import UserError
from emodissect.recording import LayerActivations
from emodissect.similarity import cosines, information, rank_order, top

SHELLS = {name: configured(name) for name in NAMES}
FUNCTIONS = {name: getattr(sim, name) for name in NAMES}
TAKES_IDS = [name for name in NAMES if "ids" in signature(FUNCTIONS[name]).parameters]
every = pytest.mark.parametrize("name", NAMES)


def recorded(activations, top_k=100, ids=None):
    ids = torch.arange(len(activations)) if ids is None else ids
    return LayerActivations.of("layer", ids, activations, top_k)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "goldens" / "similarity.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(300, 7, generator=generator) * 0.3, torch.randn(300, 12, generator=generator)


LIVE = [m for m in range(64) if m not in (8, 9)]


def in_the_reference(function, top_k):
    """The reference lets topk pick images for dead neurons, and includes these neurons in the layer's mean."""
    return lambda P, A, **parameters: function(P, A.topk(top_k, dim=0).indices, **parameters)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("soft_wpmi", in_the_reference(sim.soft_wpmi_from_top, 100)),
        ("soft_wpmi_top50_a2_lam0.6", lambda P, A: in_the_reference(sim.soft_wpmi_from_top, 50)(P, A, a=2, lam=0.6)),
        ("wpmi", in_the_reference(sim.wpmi_from_top, 28)),
        ("cos_similarity", sim.cos_similarity),
        ("cos_similarity_cubed", sim.cos_similarity_cubed),
    ],
)
def test_equals_the_golden_figures_on_live_neurons(golden, name, found):
    similarity = found(golden["clip_feats"], golden["target_feats"])
    atol = 1e-4 if "wpmi" in name else 1e-7  # S near 0 is the difference of float32 numbers near 60
    assert_close(similarity[LIVE], golden[name][LIVE], rtol=1e-4, atol=atol)
    assert (similarity[LIVE].argmax(1) == golden[name][LIVE].argmax(1)).all()
    assert similarity.isfinite().all()


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi"])
def test_without_the_references_dead_neurons_live_ones_keep_their_golden_order(golden, name):
    similarity = FUNCTIONS[name](golden["clip_feats"], golden["target_feats"])
    shift = similarity[LIVE] - golden[name][LIVE]  # another average of the layer, the same for every neuron
    assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=2e-4)


def test_rank_reorder_equals_the_golden_figures_within_the_noise_of_its_random_baseline(golden):
    draws = torch.stack(
        [
            sim.rank_reorder(
                golden["clip_feats"], golden["target_feats"], generator=torch.Generator().manual_seed(seed)
            )[LIVE]
            for seed in range(8)
        ]
    )
    expected = golden["rank_reorder"][LIVE]
    # A baseline scales a whole row: each golden row is one of ours times a factor within the spread of the draws.
    factor = expected / draws[0]
    assert_close(factor, factor[:, :1].expand_as(factor), rtol=1e-4, atol=0)
    spread = (draws[:, :, 0].std(0) / draws[:, :, 0].mean(0).abs()).mean()
    noise = (expected[:, 0] / draws[:, :, 0].mean(0) - 1).abs()
    assert noise.max() < 5 * spread
    assert (draws[0].argmax(1) == expected.argmax(1)).all()


def test_a_hand_worked_soft_wpmi():
    # One top image a neuron: L = log(1 + p (Q - 1)), p = p_start. Q = softmax of log 3, 0 = (3/4, 1/4), and reversed.
    scores = torch.tensor([[np.log(3.0), 0.0], [0.0, np.log(3.0)]], dtype=torch.float32)
    similarity = sim.soft_wpmi(scores, torch.eye(2), top_k=1, a=1.0, p_start=0.8, p_end=0.8, min_prob=0.0)
    high, low = 1 + 0.8 * (0.75 - 1), 1 + 0.8 * (0.25 - 1)  # .8 and .4; their mean is .6
    expected = np.log(np.array([[high, low], [low, high]]) / 0.6)
    assert_close(similarity, torch.tensor(expected, dtype=torch.float32))


def test_a_hand_worked_rank_reorder():
    # All three images count. The first concept orders them as the neuron does, the second in reverse.
    activations = torch.tensor([[1.0], [2.0], [4.0]])
    scores = torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    similarity = sim.rank_reorder(scores, activations, p=1.0, top_fraction=1.0, scale_p=1.0)
    baseline = rank_order.random_error(torch.tensor([[1.0, 2.0, 4.0]]), 1.0)
    assert similarity[0, 0] == 0
    assert_close(similarity[0, 1], -(2.0 / baseline[0]) / 0.2)  # |1-4|, |2-2|, |4-1|: mean 2


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi"])
@pytest.mark.parametrize("parameters", [{}, {"top_k": 1000}, {"top_k": 3, "a": 50.0, "lam": 0.5}])
def test_wpmi_equals_the_slow_reference(data, name, parameters):
    expected = getattr(slow, name)(data[0].numpy(), data[1].numpy(), **parameters)
    # atol: L of 300 images is a number of about -1,500 in float32
    assert_close(FUNCTIONS[name](*data, **parameters).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("name", "how"), [("cos_similarity", {}), ("pearson", {"centre": True})])
def test_cosines_equal_the_slow_reference(data, name, how):
    expected = torch.from_numpy(slow.cosine(*(part.numpy() for part in data), **how))
    assert_close(FUNCTIONS[name](*data).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("min_norm", [0.0, 1e-3, 50.0])
def test_cubed_equals_the_slow_reference(data, min_norm):
    expected = slow.cosine(*(part.numpy() for part in data), centre=True, power=3, min_norm=min_norm)
    found = sim.cos_similarity_cubed(*data, min_norm=min_norm).double()
    assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-6)


def test_rank_reorder_equals_the_slow_reference(data):
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(60, generator=generator).numpy() for _ in range(5)]
    expected = slow.rank_reorder(data[0].numpy(), data[1].numpy(), orders, top_fraction=0.2)
    assert_close(sim.rank_reorder(*data, top_fraction=0.2).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@every
def test_blocks_change_nothing(data, name, monkeypatch):
    whole = FUNCTIONS[name](*data)
    monkeypatch.setattr(top, "_COLUMNS", 5)
    monkeypatch.setattr(top, "_BLOCK", 2)
    monkeypatch.setattr(top, "_GROUP", 2)
    monkeypatch.setattr(information, "_PROBABILITIES", 900)
    monkeypatch.setattr(information, "_IN_CACHE", 11)
    monkeypatch.setattr(cosines, "_BLOCK", 100)
    monkeypatch.setattr(rank_order, "_BLOCK", 40)
    assert_close(FUNCTIONS[name](*data), whole, rtol=1e-5, atol=2e-4)


@every
def test_order_of_neurons_and_concepts_does_not_matter(data, name):
    scores, activations = data
    neurons, concepts = torch.randperm(12), torch.randperm(7)
    shuffled = FUNCTIONS[name](scores[:, concepts], activations[:, neurons])
    assert_close(shuffled, FUNCTIONS[name](scores, activations)[neurons][:, concepts], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cos_similarity", "cos_similarity_cubed", "pearson"])
def test_order_of_images_does_not_matter_to_cosines(data, name):
    order = torch.randperm(300)
    found = FUNCTIONS[name](*(part[order] for part in data))
    assert_close(found, FUNCTIONS[name](*data), rtol=1e-4, atol=1e-6)


@every
@pytest.mark.parametrize("images", [1, 2, 30])
def test_dead_constant_and_duplicate_neurons_and_few_images_give_numbers(name, images):
    generator = torch.Generator().manual_seed(1)
    live = torch.randn(images, 1, generator=generator)
    activations = torch.cat([torch.zeros(images, 1), torch.full((images, 1), 0.1), live, live], dim=1)
    scores = torch.randn(images, 4, generator=generator)
    scores[:, 2] = 0.0
    scores[:, 3] = scores[:, 1]
    similarity = FUNCTIONS[name](scores, activations)
    assert similarity.isfinite().all()
    assert (similarity[2] == similarity[3]).all()
    assert (similarity[:, 1] == similarity[:, 3]).all()
    if name not in ("rank_reorder", "wpmi", "cos_similarity"):
        assert_close(similarity[:2], torch.zeros(2, 4))


def test_a_layer_of_copies_of_one_neuron_scores_zero():
    scores, activations = torch.randn(200, 5), torch.randn(200, 1)
    assert_close(sim.soft_wpmi(scores, activations.expand(-1, 9)), torch.zeros(9, 5), rtol=0, atol=1e-5)
    assert_close(sim.soft_wpmi(scores, activations), torch.zeros(1, 5), rtol=0, atol=1e-5)


def test_no_soft_wpmi_exceeds_the_log_of_the_number_of_neurons(data):
    assert sim.soft_wpmi(*data, a=100.0).max() <= np.log(12) + 1e-4


def test_marked_neurons_are_left_out_of_the_layer(data):
    scores, activations = data
    with_dead = torch.cat([activations, torch.zeros(300, 5)], dim=1)
    found = sim.SoftWPMI()(scores, with_dead)
    assert_close(found[:12], sim.soft_wpmi(scores, activations))
    assert (found[12:] == 0).all()
    wpmi = sim.WPMI()(scores, with_dead)
    rows = sim.top_rows(activations, 28)
    likelihood = torch.from_numpy(slow.likelihood(scores.numpy(), activations.numpy(), 28, 2.0, 1e-7))
    assert_close(wpmi[12].double(), 0.4 * (likelihood.logsumexp(0) - np.log(12)), rtol=1e-5, atol=1e-4)
    assert_close(wpmi[:12], sim.wpmi_from_top(scores, rows))


def test_a_layer_of_dead_neurons_gives_zeros():
    assert (sim.SoftWPMI()(torch.randn(9, 3), torch.zeros(9, 4)) == 0).all()


@pytest.mark.parametrize("p_start", [1.0, 0.999999])
def test_products_of_many_ranks_do_not_overflow(p_start):
    scores = torch.zeros(200, 2)
    scores[:, 0] = 10.0
    activations = torch.randn(200, 3)
    got = information.soft_log_likelihood(
        scores, sim.top_rows(activations, 100), a=10.0, min_prob=1e-7, p_start=p_start, p_end=p_start
    )
    expected = slow.likelihood(scores.numpy(), activations.numpy(), 100, 10.0, 1e-7, p_start, p_start)
    assert_close(got.double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


def test_large_activations_do_not_overflow_the_cubes():
    scores, activations = torch.randn(50, 3), torch.randn(50, 2)
    assert_close(
        sim.cos_similarity_cubed(scores, activations * 1e9),
        sim.cos_similarity_cubed(scores, activations, min_norm=0.0),
        rtol=1e-3,
        atol=1e-5,
    )


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 90), st.integers(1, 9)), elements=st.integers(-3, 3)),
    st.integers(1, 40),
)
def test_top_rows_equal_a_stable_sort(values, k):
    found = sim.top_rows(torch.from_numpy(values), k)
    expected = np.stack([slow.top(column, k) for column in values.T], axis=1)
    assert (found.numpy() == expected).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_top_rows_of_many_images_in_groups(dtype):
    values = (torch.randn(5003, 140, generator=torch.Generator().manual_seed(2)) * 20).round().to(dtype)
    values[:, 3] = values[:, 3].relu() * (torch.arange(5003) % 97 == 0)
    values[:, 4] = -0.0
    order = torch.tensor(sorted(range(5003), key=slow.ticket))
    expected = order[torch.sort(values[order].float(), dim=0, descending=True, stable=True).indices[:100]]
    assert (sim.top_rows(values, 100) == expected).all()
    assert (sim.top_rows(values.t().contiguous().t(), 100) == expected).all()


# Activations as they tie: a ReLU that is active on 1 % of the images (the zeros fill the top), values of few bits, a
# neuron that saturates, votes, and none that tie.
def activations_that(tie, images=900, neurons=64):
    values = torch.randn(images, neurons, generator=torch.Generator().manual_seed(11))
    return {
        "fill up with zeros": (values - 2.33).relu(),
        "are rounded": values.round(decimals=1),
        "saturate": values.clamp(max=0.5),
        "are 0 or 1": (values > 1).float(),
        "do not tie": values,
    }[tie]


def scores_that(tie, images=900, concepts=7):
    values = torch.rand(images, concepts, generator=torch.Generator().manual_seed(12))
    return {"are 0 or 1": (values > 0.7).float(), "do not tie": values}[tie]


TIES = ["fill up with zeros", "are rounded", "saturate", "are 0 or 1", "do not tie"]


@every
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("scores_tie", ["are 0 or 1", "do not tie"])
def test_function_class_and_recorded_layer_agree_also_on_ties(name, tie, scores_tie):
    scores, activations = scores_that(scores_tie), activations_that(tie)
    assert torch.equal(FUNCTIONS[name](scores, activations), SHELLS[name](scores, activations))
    assert torch.equal(SHELLS[name](scores, activations), SHELLS[name].of_layer(scores, recorded(activations)))
    ids = torch.arange(len(scores)) * 3 + 11
    own = {"ids": ids} if name in TAKES_IDS else {}
    with_ids = FUNCTIONS[name](scores, activations, **own)
    assert torch.equal(with_ids, SHELLS[name](scores, activations, ids))
    assert torch.equal(with_ids, SHELLS[name].of_layer(scores, recorded(activations, ids=ids)))


@every
@pytest.mark.parametrize("tie", TIES)
def test_no_tie_depends_on_the_order_of_the_rows(name, tie):
    scores, activations = scores_that("are 0 or 1"), activations_that(tie)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(13))
    found = SHELLS[name](scores[order], activations[order], order)
    assert_close(found, SHELLS[name](scores, activations), rtol=1e-4, atol=1e-4)


@every
@pytest.mark.parametrize("tie", TIES)
def test_a_saved_layer_gives_the_same(name, tie, tmp_path):
    scores, layer = scores_that("are 0 or 1"), recorded(activations_that(tie))
    layer.save(tmp_path)
    measure = pickle.loads(pickle.dumps(SHELLS[name]))
    assert measure == SHELLS[name]
    assert torch.equal(measure.of_layer(scores, LayerActivations.load(tmp_path)), SHELLS[name].of_layer(scores, layer))


def test_ids_that_cannot_be_ranked_are_refused():
    with pytest.raises(UserError, match=f"must be from 0 to {ranking.MOST}"):
        sim.top_rows(torch.rand(3, 2), 2, torch.tensor([0, 1, 2**32]))
    with pytest.raises(UserError, match="2 ids for 3 images"):
        sim.top_rows(torch.rand(3, 2), 2, torch.tensor([0, 1]))


@every
def test_a_recorded_layer_needs_what_its_similarity_reads(data, name):
    scores, activations = data
    if SHELLS[name].needs_values:
        with pytest.raises(UserError, match="keep_values=True"):
            SHELLS[name].of_layer(scores, replace(recorded(activations), values=None))
    else:
        assert torch.equal(SHELLS[name].of_layer(scores, recorded(activations, 200)), SHELLS[name](scores, activations))
        with pytest.raises(UserError, match=r"top 5 images, top_k=\d+ needs"):
            SHELLS[name].of_layer(scores, recorded(activations, 5))


@every
def test_its_configuration_holds_the_defaults(name):
    assert SHELLS[name] == type(SHELLS[name])()


@every
def test_mismatched_images_are_refused(name):
    with pytest.raises(UserError, match="images"):
        FUNCTIONS[name](torch.rand(5, 2), torch.rand(6, 2))
    with pytest.raises(UserError, match="images"):
        SHELLS[name].of_layer(torch.rand(5, 2), recorded(torch.rand(6, 2)))


@every
def test_scores_that_are_not_numbers_are_refused(name):
    scores = torch.rand(50, 3)
    scores[:, 1] = torch.nan
    with pytest.raises(UserError, match="finite"):
        FUNCTIONS[name](scores, torch.rand(50, 2))


@every
@pytest.mark.parametrize("images", [50, 5000])
@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000, 0x7F800000], ids=["nan", "the nan of 0/0 on x86", "inf"])
def test_activations_that_are_not_numbers_are_refused(name, images, bits):
    activations = torch.rand(images, 2)
    activations[images // 2, 1] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    with pytest.raises(UserError, match="NaN or infinite"):
        FUNCTIONS[name](torch.rand(images, 3), activations)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_scored_in_float32(name, dtype):
    scores, activations = torch.rand(300, 4).to(dtype), torch.randn(300, 5).to(dtype)
    found = FUNCTIONS[name](scores, activations)
    assert found.dtype == torch.float32
    assert_close(found, FUNCTIONS[name](scores.float(), activations.float()))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"top_k": 0}, "top_k=0"), ({"p_start": 1.5}, "p_start=1.5"), ({"a": 0.0}, "a=0.0"), ({"p_end": -1}, "p_end=-1")],
)
def test_parameters_out_of_range_are_refused(parameters, words):
    with pytest.raises(UserError, match=words):
        sim.soft_wpmi(torch.rand(50, 3), torch.rand(50, 2), **parameters)


def test_twenty_thousand_concepts_never_hold_the_softmax():
    scores, activations = torch.rand(850, 20_000), torch.randn(850, 3)
    largest = []
    original = information._Softmax.blocks

    def watched(*arguments):
        for concepts, probabilities in original(*arguments):
            largest.append(probabilities.numel())
            yield concepts, probabilities

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(information._Softmax, "blocks", watched)
        found = sim.soft_wpmi(scores, activations)
    assert max(largest) <= 2**24
    assert len(largest) > 1
    expected = slow.soft_wpmi(scores.numpy(), activations.numpy())
    assert_close(found.double(), torch.from_numpy(expected), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("concepts", "ways"), [(25, {0}), (400, {0, 6}), (8000, {2, 3, 4})])
def test_sums_of_powers_are_the_logarithms_of_products(concepts, ways, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    scores = 0.2 + 0.03 * torch.randn(500, concepts, generator=generator)
    activations = torch.randn(500, 6, generator=generator)
    degrees = set()
    found = information._polynomials
    monkeypatch.setattr(information, "_polynomials", lambda reach: degrees.update(found(reach)[0]) or found(reach))
    by_powers = sim.soft_wpmi(scores, activations)
    assert degrees >= ways, "many concepts, small probabilities, few powers; 0 stands for a product"
    exact = torch.from_numpy(slow.soft_wpmi(scores.numpy(), activations.numpy()))
    assert (by_powers.double() - exact).abs().max() < 1e-4 * exact.abs().max()
    monkeypatch.setattr(information, "_MOST_DEGREE", 0)
    assert_close(sim.soft_wpmi(scores, activations), by_powers, rtol=0, atol=2e-4)


@pytest.mark.parametrize("largest", [1e-6, 3e-4, 1e-3])
def test_polynomials_are_logarithms(largest):
    reach = np.array([499.0, 100.0, 30.0]) * largest
    degrees, coefficients = information._polynomials(reach)
    assert list(degrees) == sorted(degrees, reverse=True)
    assert degrees.min() > 0
    assert all((coefficients[degree + 1 :, rank] == 0).all() for rank, degree in enumerate(degrees))
    y = np.linspace(0, 1, 101)
    values = np.vander(y, len(coefficients), increasing=True) @ coefficients
    error = np.abs(values - np.log1p(np.outer(y, reach))).max(0)
    assert error.sum() < 2 * information._SERIES_ERROR


def test_ranks_beyond_the_reach_of_powers_are_multiplied():
    degrees, coefficients = information._polynomials(np.array([200.0, 1e-3, 0.0]))
    assert list(degrees) == [0, 1, 1]
    assert (coefficients[:, 0] == 0).all()
    assert list(information._polynomials(np.array([np.nan, 1e-3]))[0]) == [0, 0]
