"""Label sets: the words that resampling cannot exclude, and how often they contain the true concept."""

from __future__ import annotations

import pytest
import torch

import emodissect.dissection.quality as quality
import emodissect.similarity as sim
from emodissect.core.errors import UserError
from emodissect.dissection.label_sets import coverage_table, label_sets, label_shares, set_words


def test_the_smallest_set_by_hand() -> None:
    shares = torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 0.0]])
    assert label_sets(shares, 0.5).sum(1).tolist() == [1, 1, 2, 0]
    assert label_sets(shares, 0.8).tolist()[0] == [True, False, True]
    assert label_sets(shares, 0.81).sum(1).tolist() == [3, 1, 3, 0]
    assert label_sets(shares, 1.0).sum(1).tolist() == [3, 1, 3, 0]
    assert set_words(shares, ["a", "b", "c"], 0.8) == ["a, c", "b", "a, b, c", ""]


def test_sets_hold_at_least_their_level_and_no_smaller_set_does() -> None:
    shares = torch.distributions.Dirichlet(torch.full((8,), 0.4)).sample((200,))
    for level in (0.5, 0.8, 0.95):
        sets = label_sets(shares, level)
        held = (shares * sets).sum(1)
        assert (held >= level - 1e-5).all()
        least = torch.where(sets, shares, 2.0).amin(1)
        assert (held - least < level).all()


@pytest.mark.parametrize("similarity", [sim.SoftWPMI(), sim.WPMI(), sim.Pearson()], ids=lambda s: type(s).__name__)
def test_sets_from_few_images_hold_the_label_that_many_give_and_the_truth(similarity: sim.Similarity) -> None:
    generator = torch.Generator().manual_seed(1)
    presence = torch.rand(6000, 10, generator=generator) ** 4
    planted = quality.planted_neurons(presence, single=100, either_or=0, noise=0, dead=2, noise_scale=3.0)
    few = slice(0, 600)
    shares = label_shares(planted.activations[few], presence[few], similarity, resamples=100)
    assert shares[:100].sum(1).allclose(torch.ones(100))
    assert (shares[100:] == 0).all()
    table = coverage_table(shares, planted.truth, planted.kind).set_index("level")
    assert table.index.tolist() == [0.5, 0.8, 0.95]
    assert (table["neurons"] == 100).all()
    assert (table["high"] >= table.index).all(), "a set holds the truth as often as it says"
    assert table["covered"][0.95] >= 0.95
    assert table["size"].is_monotonic_increasing
    assert table["size"][0.95] < 5
    whole = similarity(presence, planted.activations).argmax(1)[:100]
    assert label_sets(shares[:100]).gather(1, whole[:, None]).double().mean() >= 0.9


def test_resamples_are_drawn_from_the_seed() -> None:
    generator = torch.Generator().manual_seed(2)
    scores, activations = torch.randn(60, 5, generator=generator), torch.randn(60, 9, generator=generator)
    first, again, other = (label_shares(activations, scores, sim.Pearson(), 30, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert label_sets(first).sum(1).double().mean() > 2  # of noise nearly every word is possible


def test_impossible_parameters() -> None:
    with pytest.raises(UserError, match="resamples=0"):
        label_shares(torch.zeros(3, 1), torch.zeros(3, 1), sim.Pearson(), resamples=0)
    with pytest.raises(UserError, match="level="):
        label_sets(torch.ones(1, 1), 1.5)
