"""Metrics of how well a label predicts when its neuron is active, for images that were not used to choose the label.

Every metric is ``f(activations, presence) -> Float["neuron"]``, with activations a ``[image neuron]`` and, for each
neuron, the presence c in [0, 1] of its label ``[image neuron]``. B marks the top ``alpha`` fraction of a neuron's
activations (at least one image), c~ = c >= 0.5. Definitions after Oikarinen et al. 2025, "Evaluating Neuron
Explanations: a unified framework with sanity checks". Undefined cases get the value of an uninformative label: 0, or
0.5 for the inverse AUC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata
from torch import Tensor

from emodissect.core.errors import UserError, nearest
from emodissect.similarity.top import top_rows

Metric = Callable[[Float[Tensor, "image neuron"], Float[Tensor, "image neuron"]], Float[Tensor, " neuron"]]

ALPHA = 0.005
_BLOCK = 2**23  # activations per block


def pearson(activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"]) -> Tensor:
    """Pearson correlation of a and c."""
    a = centred(activations)
    c = centred(presence)
    return _ratio((a * c).sum(0), a.norm(dim=0) * c.norm(dim=0))


def cosine(activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"]) -> Tensor:
    """Cosine similarity of a and c, not centred."""
    a, c = activations.double(), presence.double()
    return _ratio((a * c).sum(0), a.norm(dim=0) * c.norm(dim=0))


def auprc(
    activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"], alpha: float = ALPHA
) -> Tensor:
    """Average precision of c as a score for B; tied scores share one threshold, as in scikit-learn."""
    return average_precision(presence, top_fraction(activations, alpha))


def f1(
    activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"], alpha: float = ALPHA
) -> Tensor:
    """F1 of c~ against B: 2 TP / (|B| + |c~|)."""
    top, present = top_fraction(activations, alpha), presence >= 0.5
    return _ratio(2.0 * (top & present).sum(0), (top.sum(0) + present.sum(0)).double())


def iou(
    activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"], alpha: float = ALPHA
) -> Tensor:
    """Intersection over union of B and c~."""
    top, present = top_fraction(activations, alpha), presence >= 0.5
    return _ratio((top & present).sum(0).double(), (top | present).sum(0).double())


def inverse_auc(activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"]) -> Tensor:
    """Area under the ROC curve of a as a score for c~ (CoSy's AUC); ties count half."""
    present = presence >= 0.5
    positives = present.sum(0).double()
    negatives = len(present) - positives
    ranks = mid_ranks(activations)
    above = (ranks * present).sum(0) - positives * (positives + 1) / 2
    return torch.where((positives > 0) & (negatives > 0), above / (positives * negatives).clamp(min=1), 0.5)


def mad(activations: Float[Tensor, "image neuron"], presence: Float[Tensor, "image neuron"]) -> Tensor:
    """CoSy's mean activation difference: (mean a | c~ - mean a | not c~) / standard deviation of a | not c~."""
    present = presence >= 0.5
    a = activations.double()
    inside, outside = present.sum(0), (~present).sum(0)
    mean_in = (a * present).sum(0) / inside.clamp(min=1)
    mean_out = (a * ~present).sum(0) / outside.clamp(min=1)
    spread = (((a - mean_out) * ~present).square().sum(0) / outside.clamp(min=1)).sqrt()
    return torch.where((inside > 0) & (outside > 0), _ratio(mean_in - mean_out, spread), 0.0)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "pearson": pearson,
        "cosine": cosine,
        "auprc": auprc,
        "f1": f1,
        "iou": iou,
        "inverse_auc": inverse_auc,
        "mad": mad,
    }
)
"""All metrics, the most reliable first."""

OF_TOP = frozenset({"auprc", "f1", "iou"})
"""Metrics that use the top ``alpha`` fraction of the activations."""

COMPARISON_ONLY = frozenset({"inverse_auc", "mad"})
"""Metrics that fail one of the two sanity tests; for comparison with CoSy."""


def at_alpha(alpha: float) -> dict[str, Metric]:
    """All metrics, with ``alpha`` set for those of the top images."""
    of_top: dict[str, Metric] = {
        "auprc": partial(auprc, alpha=alpha),
        "f1": partial(f1, alpha=alpha),
        "iou": partial(iou, alpha=alpha),
    }
    return {**METRICS, **of_top}


def of_labels(
    activations: Float[Tensor, "image neuron"],
    presence: Float[Tensor, "image concept"],
    labels: Int64[Tensor, " neuron"],
    names: tuple[str, ...] = tuple(METRICS),
    alpha: float = ALPHA,
) -> dict[str, Float[Tensor, " neuron"]]:
    """Each metric of each neuron with its label, by name; ``alpha`` is the fraction of images that count as active.

    Raises:
        UserError: an unknown metric, or shapes that do not match.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"The metric '{name}' is unknown. {nearest(name, METRICS)}")
    if len(activations) != len(presence) or len(labels) != activations.shape[1]:
        raise UserError(
            f"Activations have shape {tuple(activations.shape)}, presence {tuple(presence.shape)}, and there are "
            f"{len(labels)} labels: both need the same images, and each neuron one label."
        )
    step = max(_BLOCK // max(len(activations), 1), 1)
    metrics = at_alpha(alpha)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(labels), step):
        block = slice(start, start + step)
        a, c = activations[:, block], presence[:, labels[block]]
        for name in names:
            parts[name].append(metrics[name](a, c))
    return {name: torch.cat(part) for name, part in parts.items()}


def top_fraction(activations: Float[Tensor, "image neuron"], alpha: float) -> Bool[Tensor, "image neuron"]:
    """B: the ceil(alpha · N) most activating images of each neuron; ties as in ``top_rows``."""
    if not 0 < alpha <= 1:
        raise UserError(f"alpha={alpha} must be a fraction of the images in (0, 1]; recent papers use 0.005.")
    marked = torch.zeros(activations.shape, dtype=torch.bool, device=activations.device)
    return marked.scatter_(0, top_rows(activations, max(1, ceil(alpha * len(activations) - 1e-9))), True)


def average_precision(
    scores: Float[Tensor, "image column"], relevant: Bool[Tensor, "image column"]
) -> Float[Tensor, " column"]:
    """Sum over distinct scores of (recall gained) · precision; 0 if nothing is relevant."""
    ordered, order = scores.sort(dim=0, descending=True)
    hits = relevant.gather(0, order).double()
    end = tie_ends(ordered)
    precision = (hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)[:, None]).gather(0, end)
    return _ratio((hits * precision).sum(0), hits.sum(0))


def mid_ranks(values: Tensor) -> Tensor:
    """Ranks starting at 1; tied values get their mean rank."""
    return torch.from_numpy(rankdata(values.cpu().numpy(), axis=0)).to(values.device)


def tie_ends(ordered: Tensor) -> Tensor:
    """For each position in sorted columns, the last position with the same value."""
    places = torch.arange(len(ordered), device=ordered.device)[:, None].expand(ordered.shape)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    beyond = torch.where(last, places, len(ordered))
    return beyond.flip(0).cummin(0).values.flip(0)


def centred(columns: Tensor) -> Tensor:
    """Columns minus their mean, in float64."""
    shifted = columns.double() - columns[:1].double()  # a constant column becomes exactly zero
    return shifted - shifted.mean(0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 0.0)
