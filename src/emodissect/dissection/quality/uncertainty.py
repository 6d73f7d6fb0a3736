"""Uncertainty of held-out scores: permutation p-values, and intervals of correlations.

No distributions are assumed, since after a ReLU most activations are zero, and the scores of rare concepts are skewed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy import stats
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.quality.metrics import ALPHA, centred, mid_ranks, pearson, tie_ends, top_fraction

_BLOCK = 2**22  # activations per block: 32 MiB in float64
_DRAWS = 64  # draws per block
_LEVEL = 1e-9  # tolerance for rounding errors in correlations


class Interval(NamedTuple):
    """Bounds of an interval, per neuron."""

    low: Float[Tensor, " neuron"]
    high: Float[Tensor, " neuron"]


def pearson_interval(
    activations: Float[Tensor, "image neuron"],
    values: Float[Tensor, "image neuron"],
    level: float = 0.95,
    draws: int = 499,
    seed: int = 0,
) -> Interval:
    """Interval of the correlation of each neuron's activations with its column of values.

    The union of two intervals: Fisher's, tanh(atanh r ± z / sqrt(N - 3)), which is valid for independent variables of
    any distribution, and the bootstrap percentiles over images, which are valid for dependent ones. [-1, 1] for fewer
    than four images.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level} must be between 0 and 1, e.g. 0.95.")
    images = len(activations)
    r = pearson(activations, values)
    if images < 4:
        return Interval(torch.full_like(r, -1), torch.full_like(r, 1))
    width = float(stats.norm.ppf((1 + level) / 2)) / (images - 3) ** 0.5
    centre = r.clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    drawn = [
        _resampled(centred(activations[:, block]), centred(values[:, block]), draws, seed).quantile(tails, dim=0)
        for block in _blocks(activations)
    ]
    low, high = torch.cat(drawn, dim=1)
    return Interval(torch.minimum((centre - width).tanh(), low), torch.maximum((centre + width).tanh(), high))


def _resampled(
    x: Float[Tensor, "image neuron"], y: Float[Tensor, "image neuron"], draws: int, seed: int
) -> Float[Tensor, "draw neuron"]:
    """Correlations over bootstrap samples of the images."""
    images = len(x)
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    weights = torch.from_numpy(counts / images)
    mean_x, mean_y = weights @ x, weights @ y
    spread = (weights @ x.square() - mean_x.square()).clamp(min=0) * (weights @ y.square() - mean_y.square()).clamp(
        min=0
    )
    r = (weights @ (x * y) - mean_x * mean_y) / spread.sqrt().clamp(min=1e-300)
    return torch.where(spread > 0, r, 0.0).clamp(-1, 1)


def pearson_p(
    activations: Float[Tensor, "image neuron"], values: Float[Tensor, "image neuron"], draws: int = 999, seed: int = 0
) -> Float[Tensor, " neuron"]:
    """One-sided permutation p-value for a positive correlation of each neuron with its column of values."""
    parts = []
    for block in _blocks(activations):
        x, y = (_unit(part[:, block]) for part in (activations, values))
        observed = (x * y).sum(0)
        reached = torch.zeros_like(observed)
        for orders in _orders(len(x), draws, seed):
            for order in orders.t():
                reached += torch.linalg.vecdot(x[order], y, dim=0) >= observed - _LEVEL
        parts.append((1 + reached) / (1 + draws))
    return torch.cat(parts)


def p_values(
    activations: Float[Tensor, "image neuron"],
    scores: Float[Tensor, "image concept"],
    presence: Float[Tensor, "image concept"],
    labels: Int64[Tensor, " neuron"],
    alpha: float = ALPHA,
    draws: int = 999,
    seed: int = 0,
) -> dict[str, Float[Tensor, " neuron"]]:
    """One-sided p-value of each metric: how often activations with permuted images score as high.

    - pearson, cosine, inverse_auc, mad: ``draws`` permutations, (1 + number as high) / (1 + draws). Under permutation,
      the cosine increases with the correlation, and the inverse AUC with the sum of the ranks.
    - auprc: ``draws`` random sets of |B| images.
    - f1, iou: both increase with TP, which is hypergeometric (Fisher's exact test).

    Args:
        scores: concept scores, for Pearson and AUPRC.
        presence: the scores as presence c in [0, 1], for the other metrics; c~ = c >= 0.5.
        alpha: fraction of images that count as active, B.
    """
    if draws < 1:
        raise UserError(f"draws={draws} must be an integer >= 1; the smallest p-value is 1 / (1 + draws).")
    parts = []
    for block in _blocks(activations):
        values, own = activations[:, block], labels[block]
        present, top = presence[:, own] >= 0.5, top_fraction(values, alpha)
        overlap = torch.from_numpy(
            stats.hypergeom.sf(
                *((top & present).sum(0).numpy() - 1, len(values), present.sum(0).numpy(), top.sum(0).numpy())
            )
        )
        found = _paired_p(values, scores, presence, own, draws, seed)
        parts.append({**found, "auprc": _auprc_p(scores, top, own, draws, seed), "f1": overlap, "iou": overlap})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _paired_p(
    activations: Float[Tensor, "image neuron"],
    scores: Float[Tensor, "image concept"],
    presence: Float[Tensor, "image concept"],
    labels: Int64[Tensor, " neuron"],
    draws: int,
    seed: int,
) -> dict[str, Float[Tensor, " neuron"]]:
    """p-values of the metrics that are functions of sums over images, with one matrix product per concept."""
    concepts = {int(concept): (labels == concept).nonzero()[:, 0] for concept in labels.unique()}
    statistics = {concept: _Sums(activations[:, own], scores[:, concept], presence[:, concept])
                  for concept, own in concepts.items()}  # fmt: skip
    itself = torch.arange(len(activations))[:, None]
    observed = {concept: sums.paired(itself) for concept, sums in statistics.items()}
    reached: dict[str, Tensor] = {}
    for orders in _orders(len(activations), draws, seed):
        for concept, own in concepts.items():
            for name, drawn in statistics[concept].paired(orders).items():
                seen = observed[concept][name]
                count = (drawn >= seen - _LEVEL * seen.abs().clamp(min=1)).sum(0)
                reached.setdefault(name, torch.zeros(len(labels), dtype=torch.float64))[own] += count
    return {name: (1 + count) / (1 + draws) for name, count in reached.items()}


class _Sums:
    """Precomputed activations, scores and presence for all neurons labelled with one concept."""

    def __init__(
        self,
        activations: Float[Tensor, "image neuron"],
        scores: Float[Tensor, " image"],
        presence: Float[Tensor, " image"],
    ) -> None:
        present = presence >= 0.5
        self.inside, self.outside = int(present.sum()), int((~present).sum())
        a = centred(activations)
        self.norms = a.norm(dim=0)
        self.unit, self.ranks = _unit(activations), _unit(mid_ranks(activations))
        self.squares = a.square()
        self.present = present.double()
        columns = torch.stack([scores.double(), presence.double(), self.present], dim=1)
        self.columns = _unit(columns)

    def paired(self, orders: Int64[Tensor, "image draw"]) -> dict[str, Float[Tensor, "draw neuron"]]:
        """The metrics, up to increasing functions, for permuted images."""
        scores, presence, present = (column[orders].t() for column in self.columns.t())
        return {
            "pearson": scores @ self.unit,
            "cosine": presence @ self.unit,
            "inverse_auc": present @ self.ranks,
            "mad": self._mad(self.present[orders].t()),
        }

    def _mad(self, present: Float[Tensor, "draw image"]) -> Float[Tensor, "draw neuron"]:
        """(mean a | c~ - mean a | not c~) / standard deviation of a | not c~."""
        if not self.inside or not self.outside:
            return present.new_zeros(len(present), self.unit.shape[1])
        inside = present @ self.unit * self.norms  # centred, so the sum over the other images is its negative
        mean_out = -inside / self.outside
        variance = (self.squares.sum(0) - present @ self.squares) / self.outside - mean_out.square()
        known = variance > 1e-12 * self.squares.mean(0)
        return torch.where(known, (inside / self.inside - mean_out) / variance.clamp(min=1e-300).sqrt(), 0.0)


def _unit(columns: Float[Tensor, "image column"]) -> Float[Tensor, "image column"]:
    """Centred columns of length 1; 0 where a column is constant."""
    columns = centred(columns)
    length = columns.norm(dim=0)
    return columns / torch.where(length > 0, length, 1.0)


def _orders(images: int, draws: int, seed: int) -> Iterator[Int64[Tensor, "image draw"]]:
    """Yields permutations of the images in blocks; deterministic for a seed."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, _DRAWS):
        many = min(_DRAWS, draws - start)
        yield torch.from_numpy(np.stack([generator.permutation(images) for _ in range(many)], axis=1))


def _blocks(activations: Float[Tensor, "image neuron"]) -> list[slice]:
    step = max(_BLOCK // max(len(activations), 1), 1)
    return [slice(start, start + step) for start in range(0, max(activations.shape[1], 1), step)]


def _auprc_p(
    scores: Float[Tensor, "image concept"],
    top: Bool[Tensor, "image neuron"],
    labels: Int64[Tensor, " neuron"],
    draws: int,
    seed: int,
) -> Float[Tensor, " neuron"]:
    """(1 + number of draws as high) / (1 + draws), with average precisions of random sets of the size of B."""
    images, size = len(top), int(top[:, 0].sum()) if top.shape[1] else 0
    generator = np.random.default_rng(seed)
    random = torch.from_numpy(np.stack([generator.choice(images, size, replace=False) for _ in range(draws)]))
    found = torch.ones(len(labels), dtype=torch.float64)
    for concept in labels.unique().tolist():
        ordered, order = scores[:, concept].sort(descending=True)
        place = torch.empty_like(order).scatter_(0, order, tie_ends(ordered[:, None])[:, 0])
        null = _average_precision_at(place[random])
        own = (labels == concept).nonzero()[:, 0]
        members = top[:, own].t().nonzero()[:, 1].view(len(own), size)
        value = _average_precision_at(place[members])
        found[own] = (1.0 + (null >= value[:, None] - 1e-12).sum(1).double()) / (1 + draws)
    return found


def _average_precision_at(places: Int64[Tensor, "set member"]) -> Float[Tensor, " set"]:
    """Average precision of sets of images from their ranks (tied images share the last of their ranks)."""
    places = places.sort(dim=1).values
    hits = torch.searchsorted(places, places, right=True)
    return (hits.double() / (places + 1)).mean(1)
