"""Rank reorder: how well ordering a neuron's top images by a concept's scores reproduces their activations."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.core import ranking
from emodissect.core.errors import UserError
from emodissect.similarity.top import by_ticket, top_rows

_BLOCK = 2**19  # elements sorted at a time: 2 MiB of scores, 4 MiB of order
_CONCEPTS = 64  # concepts whose scores are copied at a time
_PERMUTATIONS = 5
_LEAST_MEAN = 1e-6


def rank_reorder(
    concept_scores: Float[Tensor, "image concept"],
    activations: Float[Tensor, "image neuron"],
    *,
    p: float = 3.0,
    top_fraction: float = 0.05,
    scale_p: float = 0.5,
    generator: torch.Generator | None = None,
    ids: Int64[Tensor, " image"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """Rank reorder of each neuron and concept; never above 0.

    With t the top n = max(1, int(top_fraction · N)) activations of a neuron and r the same values re-ordered by the
    ranks of the concept's scores on those images::

        S_mc = -(mean |t - r|^p / baseline_m) / (mean P_c on those images)^scale_p

    baseline_m is the same error under random orders: the mean over five permutations, the same for all neurons, drawn
    from ``generator`` (None: seed 0), so the result depends on neither block size nor the order of neurons. If all n
    activations are equal, no order is better than another and the ratio is 1. A mean score below 1e-6 counts as 1e-6,
    which makes the concept score very low, as an absent one should. Ties of activations and of scores are ordered by
    the tickets of ``ids``, or of the rows, see ``top_rows``, so that tied scores carry no information on activations.

    Shapes: ``[image concept]``, ``[image neuron]`` -> ``[neuron concept]``. Extra memory: 64 N scores and the top rows.
    Raises ``UserError`` on unequal image counts, parameters out of range or numbers that are not finite.

    Source: CLIP-Dissect, ICLR 2023, "rank reorder".
    """
    images, neurons = activations.shape
    concepts = concept_scores.shape[1]
    if len(concept_scores) != images or not images:
        raise UserError(
            f"Concept scores of {len(concept_scores)} images, activations of {images}: both must be "
            f"of the same number of images."
        )
    if not 0 < top_fraction <= 1 or p <= 0:
        raise UserError(f"top_fraction={top_fraction} must be in (0, 1] and p={p} above 0; the reference: 0.05 and 3.")
    if not concept_scores.isfinite().all():
        raise UserError("The concept scores have NaN or infinite values; all must be finite.")
    n = top_count(images, top_fraction)
    ranked = top_rows(activations, n, ids)
    ascending = activations.gather(0, ranked).flip(0).t().float().contiguous()
    order = by_ticket(images, ids).to(activations.device)
    rows = order[ranking.ascending(order.argsort()[ranked].t().contiguous())]  # neuron rank: in the tickets' order
    top = activations.gather(0, rows.t()).t().float().contiguous()
    baseline = random_error(ascending, p, generator)
    result = torch.empty(neurons, concepts, device=activations.device)
    for c in range(0, concepts, _CONCEPTS):
        columns = concept_scores[:, c : c + _CONCEPTS].t().float().contiguous()
        step = max(_BLOCK // (n * len(columns)), 1)
        for m in range(0, neurons, step):
            block = slice(m, m + step)
            scores = columns.index_select(1, rows[block].flatten()).unflatten(1, (-1, n))
            by_score = ranking.stable_order(scores)
            reordered = top[block].expand(len(columns), -1, -1).gather(2, by_score)
            error = reordered.sub_(ascending[block]).abs_().pow_(p).mean(2)
            result[block, c : c + len(columns)] = scaled(error, baseline[block], scores.mean(2), scale_p).t()
    if not result.isfinite().all():
        raise UserError("The concept scores or activations have NaN or infinite values; all must be finite.")
    return result


def top_count(images: int, top_fraction: float) -> int:
    """Number of top images: int(top_fraction · N), at least one."""
    return max(1, int(images * top_fraction))


def random_error(
    ascending: Float[Tensor, "neuron rank"], p: float, generator: torch.Generator | None = None
) -> Float[Tensor, " neuron"]:
    """mean |t - t in random order|^p, averaged over five orders."""
    generator = generator or torch.Generator().manual_seed(0)
    orders: Int64[Tensor, "draw rank"] = torch.stack(
        [torch.randperm(ascending.shape[1], generator=generator) for _ in range(_PERMUTATIONS)]
    ).to(ascending.device)
    return torch.stack([(ascending[:, order] - ascending).abs_().pow_(p).mean(1) for order in orders]).mean(0)


def scaled(error: Tensor, baseline: Tensor, mean_score: Tensor, scale_p: float) -> Tensor:
    """-(error / baseline) / mean^scale_p, with ratio 1 if all activations are equal."""
    ratio = torch.where(baseline > 0, error / baseline, 1.0)
    return -ratio / mean_score.clamp(min=_LEAST_MEAN) ** scale_p
