"""How sure a held-out score is: p-values against images paired anew, and the interval of a correlation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy import stats
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.dissection.quality.metrics import ALPHA, mid_ranks, pearson, tie_ends, top_fraction


class Interval(NamedTuple):
    low: Float[Tensor, " neuron"]
    high: Float[Tensor, " neuron"]


def pearson_interval(r: Float[Tensor, " neuron"], images: int, level: float = 0.95) -> Interval:
    """Fisher's interval of a correlation: tanh(atanh r ± z / sqrt(N - 3)). All of [-1, 1] below four images."""
    if not 0 < level < 1:
        raise UserError(f"level={level}: a level between 0 and 1 such as 0.95.")
    if images < 4:
        return Interval(torch.full_like(r, -1), torch.full_like(r, 1))
    width = float(stats.norm.ppf((1 + level) / 2)) / (images - 3) ** 0.5
    centre = r.clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    return Interval((centre - width).tanh(), (centre + width).tanh())


def pearson_p(r: Float[Tensor, " neuron"], images: int) -> Float[Tensor, " neuron"]:
    """One-sided p-value of a correlation above 0, by Student's t with N - 2 degrees of freedom."""
    if images < 3:
        return torch.ones_like(r)
    t = r * ((images - 2) / (1 - r.square()).clamp(min=1e-15)).sqrt()
    return torch.from_numpy(stats.t.sf(t.numpy(), images - 2)).to(r)


def p_values(
    activations: Float[Tensor, "image neuron"],
    scores: Float[Tensor, "image concept"],
    presence: Float[Tensor, "image concept"],
    labels: Int64[Tensor, " neuron"],
    alpha: float = ALPHA,
    draws: int = 999,
    seed: int = 0,
) -> dict[str, Float[Tensor, " neuron"]]:
    """One-sided p-value of each metric: how likely images paired anew with activations score as high.

    - pearson: Student's t. cosine, mad: likewise, of the correlation with c and with c~: paired anew, the cosine
      rises with the correlation alone, and the mean difference with that of c~.
    - auprc: ``draws`` random sets of |B| images.
    - f1, iou: both rise with TP alone, which is hypergeometric (Fisher's exact test).
    - inverse_auc: the normal approximation of the rank sum, its variance that of the ranks with their ties.

    Args:
        activations: of the held-out images.
        scores: what Pearson and AUPRC are of.
        presence: the scores as presence c in [0, 1]; c~ = c >= 0.5.
        labels: the concept of each neuron.
        alpha: share of the images called active, B.
        draws, seed: of the AUPRC's null.
    """
    images = len(activations)
    c, present = presence[:, labels], presence[:, labels] >= 0.5
    top = top_fraction(activations, alpha)
    overlap = torch.from_numpy(
        stats.hypergeom.sf((top & present).sum(0).numpy() - 1, images, present.sum(0).numpy(), top.sum(0).numpy())
    )
    return {
        "pearson": pearson_p(pearson(activations, scores[:, labels]), images),
        "cosine": pearson_p(pearson(activations, c), images),
        "auprc": _auprc_p(scores, top, labels, draws, seed),
        "f1": overlap,
        "iou": overlap,
        "inverse_auc": _rank_sum_p(activations, present),
        "mad": pearson_p(pearson(activations, present.float()), images),
    }


def _rank_sum_p(activations: Float[Tensor, "image neuron"], present: Bool[Tensor, "image neuron"]) -> Tensor:
    """Mann and Whitney's test; 1 where either group is empty."""
    images = len(activations)
    inside = present.sum(0).double()
    ranks = mid_ranks(activations)
    above = (ranks * present).sum(0) - inside * (images + 1) / 2
    squares = (ranks - (images + 1) / 2).square().sum(0)
    spread = (inside * (images - inside) / (images * max(images - 1, 1)) * squares).sqrt()
    p = torch.from_numpy(stats.norm.sf(((above - 0.5) / spread.clamp(min=1e-12)).numpy()))
    return torch.where(spread > 0, p, 1.0)


def _auprc_p(
    scores: Float[Tensor, "image concept"],
    top: Bool[Tensor, "image neuron"],
    labels: Int64[Tensor, " neuron"],
    draws: int,
    seed: int,
) -> Float[Tensor, " neuron"]:
    """(1 + draws that reach it) / (1 + draws), against average precisions of random sets as large as B."""
    if draws < 1:
        raise UserError(f"draws={draws}: at least one; the smallest p-value is 1 / (1 + draws).")
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
    """Average precision of sets of images from where they stand in the order (tied images at the last of them)."""
    places = places.sort(dim=1).values
    hits = torch.searchsorted(places, places, right=True)
    return (hits.double() / (places + 1)).mean(1)
