"""Metrics for choosing an edit besides accuracy: recalls, the worst class or group, macro F1, likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from emodissect.core.errors import UserError, nearest
from emodissect.data.images import ImageSet
from emodissect.models.predictions import Predictions

METRICS = ("accuracy", "nll", "macro_f1", "balanced_accuracy", "worst_recall", "worst_group")

METRIC_WORDS = {
    "nll": "Negative log-likelihood",
    "macro_f1": "Macro F1",
    "balanced_accuracy": "Balanced accuracy",
    "worst_recall": "Recall of the worst class",
    "worst_group": "Accuracy of the worst group",
}

PRESENT = 0.5
"""Presence of an annotated concept at or above which an image counts as showing it."""

_DRAWS = 2000


@dataclass(frozen=True)
class MetricChange:
    """A metric before and after an edit on the same images; `nll` is negated, so that higher is always better.

    `low`, `high`: paired bootstrap interval (95 %) of the delta over images; `p_value`: two-sided permutation test that
    swaps an image's two predictions at random.
    """

    metric: str
    before: float
    after: float
    delta: float
    low: float
    high: float
    p_value: float

    def row(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def groups_of(images: ImageSet, concept: str) -> Int64[Tensor, " image"]:
    """Group of each image, in ascending order of id: 2 x class, plus 1 where the annotated concept is present.

    Raises:
        UserError: there is no annotation with this name.
    """
    known = {
        name: (kind, place) for kind, given in images.annotations.items() for place, name in enumerate(given.names)
    }
    if concept not in known:
        raise UserError(
            f"study.groups={concept} is not an annotation of these images. {nearest(concept, known)} Drawn faces are "
            "annotated with the presence of each concept (data=sketches) and of a planted mark (data.spurious=glasses)."
        )
    kind, place = known[concept]
    order = torch.argsort(images.ids)
    present = images.annotations[kind].values[order, place] >= PRESENT
    return 2 * images.labels[order] + present.long()


def check_metric(metric: str, groups: str | None = None) -> None:
    """Raises UserError for an unknown metric, and for a worst group without groups."""
    if metric not in METRICS:
        raise UserError(f"study.metric={metric} is not known. {nearest(metric, METRICS)}")
    if metric == "worst_group" and groups is None:
        raise UserError(
            "study.metric=worst_group needs groups: study.groups=<an annotated concept>, e.g. study.groups=Glasses "
            "with data.spurious=glasses."
        )


def metric_change(
    metric: str,
    before: Predictions,
    after: Predictions,
    groups: Int64[Tensor, " image"] | None = None,
    draws: int = _DRAWS,
    seed: int = 0,
) -> MetricChange:
    """Compare a metric of two networks on the same images, with an interval and a test.

    Every metric is a function of sums over images, so a bootstrap sample only needs a weight per image.

    Args:
        groups: group of each image; for `worst_group`.
        draws: number of bootstrap samples, and of random swaps.
    """
    first, value = _parts(metric, before.logits, before.labels, groups)
    last, _ = _parts(metric, after.logits, after.labels, groups)
    was, now = (float(value(part.sum(0))) for part in (first, last))
    generator = torch.Generator().manual_seed(seed)
    images = len(before.labels)
    deltas, exchanged = [], []
    for _ in range(draws):
        drawn = torch.randint(0, images, (images,), generator=generator).bincount(minlength=images).double()
        deltas.append(value(drawn @ last) - value(drawn @ first))
        kept = torch.randint(0, 2, (images,), generator=generator).double()
        sums = kept @ last + (1 - kept) @ first
        exchanged.append(value(sums) - value((last + first).sum(0) - sums))
    low, high = torch.stack(deltas).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    beyond = int((torch.stack(exchanged).abs() >= abs(now - was) - 1e-12).sum())
    return MetricChange(metric, was, now, now - was, low, high, (1 + beyond) / (1 + draws))


def group_table(before: Predictions, after: Predictions, groups: Int64[Tensor, " image"]) -> pd.DataFrame:
    """One row per group: class (index), present, images, accuracy_before, accuracy_after."""
    rows = []
    for group in groups.unique().tolist():
        member = groups == group
        rows.append(
            {
                "class": group // 2,
                "present": bool(group % 2),
                "images": int(member.sum()),
                "accuracy_before": float((before.predicted == before.labels)[member].double().mean()),
                "accuracy_after": float((after.predicted == after.labels)[member].double().mean()),
            }
        )
    return pd.DataFrame(rows)


def measured(
    metric: str,
    predicted: Int64[Tensor, " image"],
    labels: Int64[Tensor, " image"],
    classes: int,
    groups: Int64[Tensor, " image"] | None = None,
) -> float:
    """A metric computed from predicted classes (any but `nll`)."""
    parts, value = _parts(metric, one_hot(predicted, classes).float(), labels, groups)
    return float(value(parts.sum(0)))


def _parts(
    metric: str, logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"], groups: Tensor | None
) -> tuple[Float[Tensor, "image part"], Callable[[Tensor], Tensor]]:
    """The contribution of each image, and the metric as a function of the summed contributions."""
    predicted, classes = logits.argmax(1), logits.shape[1]
    right = (predicted == labels).double()
    if metric == "nll":
        losses = cross_entropy(logits.double(), labels, reduction="none")
        return torch.stack([-losses, torch.ones_like(losses)], 1), lambda sums: sums[0] / sums[1]
    if metric == "accuracy":
        return torch.stack([right, torch.ones_like(right)], 1), lambda sums: sums[0] / sums[1]
    if metric == "macro_f1":
        true, guessed = one_hot(labels, classes).double(), one_hot(predicted, classes).double()
        return torch.cat([true * right[:, None], true + guessed], 1), _f1
    if metric == "worst_group":
        assert groups is not None
        member = one_hot(groups, 2 * classes).double()
    else:
        member = one_hot(labels, classes).double()
    shares = torch.cat([member * right[:, None], member], 1)
    return shares, (_mean_share if metric == "balanced_accuracy" else _least_share)


def _f1(sums: Tensor) -> Tensor:
    right, either = sums.chunk(2)
    return (2 * right / either.clamp_min(1e-12))[either > 0].mean()


def _mean_share(sums: Tensor) -> Tensor:
    right, images = sums.chunk(2)
    return (right / images.clamp_min(1e-12))[images > 0].mean()


def _least_share(sums: Tensor) -> Tensor:
    right, images = sums.chunk(2)
    return (right / images.clamp_min(1e-12))[images > 0].min()
