"""Predictions placed by id; comparisons by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from emodissect.data.images import ImageSet, image_loader
from emodissect.models.inference import Inference, predict
from emodissect.models.predictions import Predictions
from emodissect.studies.comparison import Comparison, compare


def of(predicted: list[int], labels: list[int], classes: int = 3) -> Predictions:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted, dtype=torch.int64), classes).float() * 2
    return Predictions(torch.arange(len(labels)) + 10, torch.tensor(labels, dtype=torch.int64), logits)


def test_compare_by_hand() -> None:
    labels = [0, 0, 0, 1, 1, 1, 1, 0]
    before, after = of([0, 0, 1, 1, 0, 0, 0, 0], labels), of([0, 1, 0, 1, 1, 1, 2, 0], labels)
    found = compare(before, after)
    assert (found.images, found.gained, found.lost, found.changed) == (8, 3, 1, 5)
    assert found.gained_ids == (12, 14, 15)
    assert found.lost_ids == (11,)
    assert (found.accuracy_before, found.accuracy_after, found.delta) == (0.5, 0.75, 0.25)
    assert found.p_value == pytest.approx(2 * 5 / 16)
    assert found.low <= 0.0 < 0.25 < found.high
    assert found.accuracy_before_low < 0.5 < found.accuracy_before_high
    assert found.recall_before[:2] == (0.75, 0.25)
    assert found.recall_after[:2] == (0.75, 0.75)
    assert math.isnan(found.recall_after[2])
    right, wrong = math.log(math.e**2 + 2) - 2, math.log(math.e**2 + 2)
    assert found.nll_before == pytest.approx((4 * right + 4 * wrong) / 8)
    assert found.nll_after == pytest.approx((6 * right + 2 * wrong) / 8)
    sure = math.e**2 / (math.e**2 + 2)
    assert found.ece_before == pytest.approx(abs(sure - 0.5), abs=1e-6)
    assert found.ece_after == pytest.approx(abs(sure - 0.75), abs=1e-6)
    # Before: precision 3/6 and 1/2, recall 3/4 and 1/4; class 2 is neither there nor predicted.
    assert found.macro_f1_before == pytest.approx((0.6 + 1 / 3) / 2)
    again = Comparison.from_row(json.loads(json.dumps(found.row())))
    assert again.row() == found.row()


def test_nothing_changed() -> None:
    same = of([0, 1, 2], [0, 1, 1])
    found = compare(same, same)
    assert (found.delta, found.p_value) == (0.0, 1.0)
    # Without a flip in three images the rate of flips is below 1 - .025^(1/3).
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert found.low == -found.high


def test_a_comparison_reads_as_one_sentence() -> None:
    labels = [0, 0, 0, 1, 1, 1, 1, 0]
    found = compare(of([0, 0, 1, 1, 0, 0, 0, 0], labels), of([0, 1, 0, 1, 1, 1, 2, 0], labels))
    assert repr(found) == (
        "Accuracy 50.00 % before and 75.00 % after: +25.00 points (95 % interval −35.85 to +71.71), 3 gained and "
        "1 lost of 8 images, exact McNemar p = .62."
    )


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in their images"):
        compare(of([0], [0]), of([0], [1]))
    with pytest.raises(ValueError, match="no images"):
        compare(of([], []), of([], []))


def test_predictions_are_placed_by_id_and_padding_is_dropped(tmp_path: Path) -> None:
    ids = torch.tensor([5, 2, 9, 2])
    placed = Predictions.placed(ids, ids % 3, ids[:, None].float() * torch.tensor([1.0, 2.0]))
    assert placed.ids.tolist() == [2, 5, 9]
    assert placed.labels.tolist() == [2, 2, 0]
    assert placed.logits.tolist() == [[2, 4], [5, 10], [9, 18]]
    placed.save(tmp_path / "predictions.safetensors")
    assert torch.equal(Predictions.load(tmp_path / "predictions.safetensors").logits, placed.logits)


def test_predict_does_not_care_for_order_and_restores_the_mode() -> None:
    torch.manual_seed(0)
    images = ImageSet(
        torch.randint(0, 256, (11, 1, 2, 2), dtype=torch.uint8), torch.arange(11) % 3, torch.randperm(11) + 3
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9))
    forward = Inference(lambda pixels: pixels.float() / 255, network)
    plain = predict(forward, image_loader(images, 4))
    shuffled = predict(forward, image_loader(images, 3, shuffle=True))
    assert plain.ids.tolist() == sorted(images.ids.tolist())
    torch.testing.assert_close(plain.logits, shuffled.logits)
    assert network.training
    assert network[2].training
    rows = images.rows_of(plain.ids)
    assert torch.equal(plain.labels, images.labels[rows])
    torch.testing.assert_close(plain.logits, network[1](images.images[rows].flatten(1).float() / 255))
    assert int(plain.confusion().sum()) == 11
    assert not plain.logits.is_inference()
