"""The running top images and moments against a full sort and plain formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_similarity import ticket

from emodissect.core.errors import UserError
from emodissect.core.ranking import ids_of, tickets
from emodissect.recording import Moments, TopImages


def by_full_sort(values: torch.Tensor, ids: torch.Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """Each neuron's images as (activation, id) tuples, each id once with its largest activation, sorted in full."""
    top_values, top_ids = [], []
    for neuron in range(values.shape[1]):
        largest: dict[int, float] = {}
        for image, value in zip(ids.tolist(), values[:, neuron].tolist(), strict=True):
            largest[image] = max(value, largest.get(image, value))
        ranked = sorted((-value, ticket(image), image) for image, value in largest.items())[:k]
        top_values.append([-value + 0.0 for value, _, _ in ranked])
        top_ids.append([image for _, _, image in ranked])
    return [list(row) for row in zip(*top_values, strict=True)], [list(row) for row in zip(*top_ids, strict=True)]


def test_hand_worked_with_ties() -> None:
    assert sorted((4, 7, 9), key=ticket) == [7, 4, 9]
    top = TopImages(2)
    top.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([7, 9]))
    top.update(torch.tensor([[3.0, 0.0], [2.0, -1.0]]), torch.tensor([4, 1]))
    assert top.ids.tolist() == [[4, 7], [9, 4]]  # 3.0 twice: image 4 before 9; 0.0 three times: the lowest tickets
    assert top.values.tolist() == [[3.0, 0.0], [3.0, 0.0]]


def test_tickets_are_taken_back() -> None:
    ids = torch.cat([torch.arange(70_000), torch.tensor([2**31, 2**32 - 1])])
    assert torch.equal(ids_of(tickets(ids)), ids)
    assert tickets(ids[:1000]).tolist() == [ticket(image) for image in range(1000)]


def test_silent_neurons_are_not_filled_up_with_one_class() -> None:
    """1,000 images in one folder per class: the images that fill up a silent neuron's top images are of all classes."""
    labels = torch.arange(1000) // 200
    values = torch.zeros(1000, 1)
    values[500:510] = 1.0
    top = TopImages(110)
    top.update(values, torch.arange(1000))
    assert sorted(top.ids[:10, 0].tolist()) == list(range(500, 510))
    counts = torch.bincount(labels[top.ids[10:, 0]], minlength=5)
    assert counts.min() >= 10  # 20 each by chance; by id all hundred would be of the first class


def test_fewer_images_than_k_and_none() -> None:
    top = TopImages(5)
    assert top.ids.shape == (0, 0)
    top.update(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]))
    assert top.ids.tolist() == [[1], [0]]
    top.update(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    assert top.values.tolist() == [[2.0], [1.0]]


# few distinct numbers, so that ties and repeats are common
numbers = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1e-38, 1.0, 2.0, 3.4e38, -3.4e38])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_order_of_batches_equals_a_full_sort(data: st.DataObject) -> None:
    images = data.draw(st.integers(1, 40), "images")
    neurons = data.draw(st.integers(1, 3), "neurons")
    k, buffer = data.draw(st.integers(1, 12), "k"), data.draw(st.integers(1, 9), "buffer")
    flat = data.draw(st.lists(numbers, min_size=images * neurons, max_size=images * neurons))
    values = torch.tensor(flat).view(images, neurons)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 30), min_size=images, max_size=images), "ids"))
    cuts = sorted(data.draw(st.lists(st.integers(0, images), max_size=6), "cuts"))
    first, second = TopImages(k, buffer), TopImages(k, buffer)
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, images], strict=True)):
        part = first if number % 2 else second  # the batches are dealt to two processes
        part.update(values[start:stop], ids[start:stop])
        if data.draw(st.booleans()):
            assert part.ids.shape[0] <= k  # looking does not disturb
    first.merge(second)
    assert (first.values.tolist(), first.ids.tolist()) == by_full_sort(values, ids, k)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_a_larger_case_equals_topk(order: str) -> None:
    torch.manual_seed(0)
    values = torch.randn(3000, 37)
    values[:, 5] = 0.0  # dead
    values[:, 6] = values[:, 6].relu()  # half of its images tie
    ids = {"ascending": torch.arange(3000), "descending": torch.arange(3000).flip(0), "shuffled": torch.randperm(3000)}[
        order
    ]
    top = TopImages(100)
    for rows in torch.arange(3000).split(170):
        top.update(values[rows], ids[rows])
    expected = torch.topk(values, 100, dim=0)
    assert torch.equal(top.values, expected.values)
    distinct = [n for n in range(37) if n not in (5, 6)]
    assert torch.equal(top.ids[:, distinct], ids[expected.indices][:, distinct])
    assert top.ids[:, 5].tolist() == sorted(range(3000), key=ticket)[:100]
    assert by_full_sort(values[:, 6:7], ids, 100)[1] == top.ids[:, 6:7].tolist()


def test_the_largest_ids_and_ids_that_cannot_be_ranked() -> None:
    top = TopImages(3)
    top.update(torch.tensor([[1.0], [1.0]]), torch.tensor([2**32 - 1, 0]))
    top.update(torch.tensor([[2.0]]), torch.tensor([2**32 - 1]))
    assert top.ids.tolist() == [[2**32 - 1], [0]]  # the repeat counts with its larger activation
    assert top.values.tolist() == [[2.0], [1.0]]
    for bad in (-1, 2**32):
        with pytest.raises(UserError, match="must be from 0 to 4294967295"):
            top.update(torch.tensor([[1.0]]), torch.tensor([bad]))


def test_mismatches() -> None:
    top = TopImages(3)
    top.update(torch.zeros(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="5 neurons after 4"):
        top.update(torch.zeros(1, 5), torch.arange(1))
    with pytest.raises(ValueError, match="for 3 ids"):
        top.update(torch.zeros(2, 4), torch.arange(3))
    with pytest.raises(ValueError, match="the top 4 cannot be merged"):
        top.merge(TopImages(4))
    with pytest.raises(UserError, match="top_k=0: must be an integer >= 1"):
        TopImages(0)


def test_started_in_inference_mode_and_continued_outside() -> None:
    top = TopImages(1)
    with torch.inference_mode():
        top.update(torch.ones(1, 1), torch.arange(1))
    top.update(torch.full((1, 1), 2.0), torch.tensor([1]))
    assert top.ids.tolist() == [[1]]


def test_state_does_not_grow_with_images() -> None:
    top = TopImages(10, buffer=16)
    for start in range(0, 5000, 50):
        top.update(torch.rand(50, 8), torch.arange(start, start + 50))
    assert top._keys.shape == (8, 26)


def test_moments_by_hand() -> None:
    moments = Moments.of(torch.tensor([[1.0], [3.0]])).merge(Moments.of(torch.tensor([[8.0]])))
    assert moments.count == 3
    assert moments.mean.item() == 4.0
    assert moments.deviation.item() == 9 + 1 + 16
    assert moments.std.item() == pytest.approx((26 / 3) ** 0.5, rel=1e-15)
    assert (moments.minimum.item(), moments.maximum.item()) == (1.0, 8.0)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 99), max_size=8, unique=True), shift=st.sampled_from([0.0, 1e4]))
def test_moments_of_parts_are_the_moments_of_the_whole(cuts: list[int], shift: float) -> None:
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(1)) + shift
    bounds = [0, *sorted(cuts), 100]
    parts = [Moments.of(values[a:b]) for a, b in pairwise(bounds)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.merge(part)
    wide = values.double()
    torch.testing.assert_close(joined.mean, wide.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(joined.std, wide.std(0, correction=0), rtol=1e-9, atol=0.0)
    assert torch.equal(joined.minimum, values.amin(0))
    assert torch.equal(joined.maximum, values.amax(0))
