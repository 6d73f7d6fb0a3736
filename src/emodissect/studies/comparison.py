"""What changed between two predictions on the same images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from emodissect.core.statistics import delta_interval, mcnemar, wilson
from emodissect.models.predictions import Predictions


@dataclass(frozen=True)
class Comparison:
    """A network before and after an edit on the same images. Accuracies, recalls and deltas are in [0, 1].

    `delta_low`, `delta_high`: paired bootstrap interval; `accuracy_*_low/high`: Wilson; `p_value`: exact McNemar;
    `gained`, `lost`: images that became right, wrong; `changed`: images whose predicted class is another one.
    """

    images: int
    accuracy_before: float
    accuracy_before_low: float
    accuracy_before_high: float
    accuracy_after: float
    accuracy_after_low: float
    accuracy_after_high: float
    delta: float
    delta_low: float
    delta_high: float
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

    def row(self) -> dict[str, Any]:
        """Plain JSON values; an unknown recall (class without images) is null."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Comparison:
        """The inverse of :meth:`row`."""
        return cls(**{name: _kept(value) for name, value in row.items()})


def compare(
    before: Predictions, after: Predictions, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """What an edit did to the predictions.

    Args:
        before: of the unedited network.
        after: of the edited one, on the same images.
        draws: bootstrap samples behind the interval of the delta.
        level: coverage of every interval.

    Raises:
        ValueError: the two do not hold the same images with the same labels, or none.
    """
    if not torch.equal(before.ids, after.ids) or not torch.equal(before.labels, after.labels):
        raise ValueError("the predictions are of different images or labels")
    if not len(before.ids):
        raise ValueError("no images to compare on")
    right_before, right_after = before.predicted == before.labels, after.predicted == after.labels
    gained, lost = right_after & ~right_before, right_before & ~right_after
    images, gains, losses = len(before.ids), int(gained.sum()), int(lost.sum())
    was, now = before.measures(), after.measures()
    intervals = [wilson(int(right.sum()), images, level) for right in (right_before, right_after)]
    delta_low, delta_high = delta_interval(gains, losses, images, level, draws, seed)
    return Comparison(
        images=images,
        accuracy_before_low=intervals[0][0],
        accuracy_before_high=intervals[0][1],
        accuracy_after_low=intervals[1][0],
        accuracy_after_high=intervals[1][1],
        delta=(gains - losses) / images,
        delta_low=delta_low,
        delta_high=delta_high,
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


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _kept(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_kept(part) for part in value)
    return float("nan") if value is None else value
