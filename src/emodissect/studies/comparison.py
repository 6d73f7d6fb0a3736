"""Compares the predictions of two networks on the same images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from emodissect.core.number_format import count, p_sentence, percent, points
from emodissect.core.statistics import delta_interval, mcnemar, wilson
from emodissect.models.predictions import Predictions


@dataclass(frozen=True, repr=False)
class Comparison:
    """A network before and after an edit on the same images. Accuracies, recalls and deltas are in [0, 1].

    `p_value`: exact McNemar; `low`, `high`: 95 % interval of `delta` that excludes 0 exactly where p_value < .05;
    `accuracy_*_low/high`: Wilson, 95 %; `gained`, `lost`: numbers of newly correct and newly wrong images; `changed`:
    number of images whose predicted class changed.
    """

    images: int
    accuracy_before: float
    accuracy_before_low: float
    accuracy_before_high: float
    accuracy_after: float
    accuracy_after_low: float
    accuracy_after_high: float
    delta: float
    low: float
    high: float
    gained: int
    lost: int
    changed: int
    p_value: float
    top2_before: float
    top2_after: float
    macro_f1_before: float
    macro_f1_after: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    recall_before: tuple[float, ...]
    recall_after: tuple[float, ...]
    gained_ids: tuple[int, ...]
    lost_ids: tuple[int, ...]

    def __repr__(self) -> str:
        return (
            f"Accuracy {percent(self.accuracy_before, 2)} before and {percent(self.accuracy_after, 2)} after: "
            f"{points(self.delta)} points (95 % interval {points(self.low)} to {points(self.high)}), {self.gained:,} "
            f"gained and {self.lost:,} lost of {count(self.images, 'image')}, exact McNemar {p_sentence(self.p_value)}."
        )

    def row(self) -> dict[str, Any]:
        """Plain JSON values; the recall of a class without images is null."""
        return {name: without_nan(value) for name, value in asdict(self).items()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Comparison:
        """The inverse of :meth:`row`."""
        return cls(**{name: with_nan(value) for name, value in row.items()})


def compare(before: Predictions, after: Predictions) -> Comparison:
    """Compare the predictions before and after an edit.

    Args:
        before: predictions of the unedited network.
        after: predictions of the edited network on the same images.

    Raises:
        ValueError: the two differ in images or labels, or hold no images.
    """
    if not torch.equal(before.ids, after.ids) or not torch.equal(before.labels, after.labels):
        raise ValueError("the predictions differ in their images or labels")
    if not len(before.ids):
        raise ValueError("there are no images to compare")
    right_before, right_after = before.predicted == before.labels, after.predicted == after.labels
    gained, lost = right_after & ~right_before, right_before & ~right_after
    images, gains, losses = len(before.ids), int(gained.sum()), int(lost.sum())
    was, now = before.measures(), after.measures()
    intervals = [wilson(int(right.sum()), images) for right in (right_before, right_after)]
    low, high = delta_interval(gains, losses, images)
    return Comparison(
        images=images,
        accuracy_before_low=intervals[0][0],
        accuracy_before_high=intervals[0][1],
        accuracy_after_low=intervals[1][0],
        accuracy_after_high=intervals[1][1],
        delta=(gains - losses) / images,
        low=low,
        high=high,
        gained=gains,
        lost=losses,
        changed=int((before.predicted != after.predicted).sum()),
        p_value=mcnemar(gains, losses),
        **{f"{name}_before": value for name, value in was.items()},
        **{f"{name}_after": value for name, value in now.items()},
        recall_before=tuple(before.recall().tolist()),
        recall_after=tuple(after.recall().tolist()),
        gained_ids=tuple(before.ids[gained].tolist()),
        lost_ids=tuple(before.ids[lost].tolist()),
    )


def without_nan(value: Any) -> Any:
    """The value for JSON: NaN becomes null and tuples become lists, at any depth."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def with_nan(value: Any) -> Any:
    """The inverse of :func:`without_nan`."""
    if isinstance(value, dict):
        return {name: with_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return tuple(with_nan(part) for part in value)
    return float("nan") if value is None else value
