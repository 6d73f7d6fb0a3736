"""What a neuron's best similarity would be if its activations had nothing to do with the images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.errors import UserError
from emodissect.similarity.measures import Layer, Similarity


def best_similarity_null(
    measure: Similarity, scores: Float[Tensor, "image concept"], layer: Layer, draws: int = 1000, seed: int = 0
) -> Float[Tensor, "draw neuron"] | Float[Tensor, "draw 1"]:
    """The best similarity over the concepts of random image sets, scored against the same layer.

    Similarities from top images (``soft_wpmi``, ``wpmi``): each draw is an ordered set of top_k images drawn without
    replacement; the layer's average per concept is that of the real neurons. Any neuron could have drawn it, so one
    column serves all: ``[draw 1]``. Similarities from all values: each draw pairs activations and images anew, the
    same permutation for all neurons: ``[draw neuron]``. Memory: the result and blocks of tens of MiB.
    """
    _enough(draws)
    best: Tensor | None = None
    for block in measure.null_blocks(scores, layer, draws, seed):
        found = block.similarity.amax(2)
        if best is None:
            best = found.new_full((draws, found.shape[1]), -torch.inf)
        best[block.draws] = torch.maximum(best[block.draws], found)
    assert best is not None  # draws >= 1
    return best


class ConceptNull(NamedTuple):
    """Similarities in standard deviations of each concept's own null, and the null of a neuron's best one.

    z: ``(S_mc - mean_c) / std_c`` over the null of concept c; the layer's average cancels, so z depends neither on
    the layer's other neurons nor on how common the concept is, and compares across layers.
    null: the largest z over the concepts, per draw.
    """

    z: Float[Tensor, "neuron concept"]
    null: Float[Tensor, "draw neuron"] | Float[Tensor, "draw 1"]


def concept_null(
    measure: Similarity,
    scores: Float[Tensor, "image concept"],
    layer: Layer,
    draws: int = 1000,
    seed: int = 0,
    similarity: Float[Tensor, "neuron concept"] | None = None,
) -> ConceptNull:
    """Each similarity against the null of its own concept.

    The moments come from one set of ``draws``, the null of the best z from another, so that a random neuron and a
    draw are alike, and the p-value holds for any number of draws.

    ``permutation_p(z of the label, null)`` is a p-value that holds for whichever concept was chosen as the label. A
    concept whose null has no spread gets z = 0. A dead neuron's z is 0 everywhere.

    Args:
        similarity: ``measure.of_layer(scores, layer)`` where it is at hand.
    """
    _enough(draws, least=2)
    similarity = measure.of_layer(scores, layer) if similarity is None else similarity
    shift: Tensor | None = None
    for block in measure.null_blocks(
        scores, layer, draws, seed + 1
    ):  # other draws: their own moments would flatter them
        drawn = block.similarity.double()
        if shift is None:
            shift = torch.zeros(drawn.shape[1], scores.shape[1], dtype=torch.float64, device=drawn.device)
            total, square = torch.zeros_like(shift), torch.zeros_like(shift)
        if block.draws.start == 0:
            shift[:, block.concepts] = drawn[0]  # sums of differences from a drawn value lose no digits
        drawn = drawn - shift[:, block.concepts]
        total[:, block.concepts] += drawn.sum(0)
        square[:, block.concepts] += drawn.square().sum(0)
    assert shift is not None  # draws >= 2
    mean = shift + total / draws
    variance = (square - total.square() / draws) / (draws - 1)
    faint = variance.sqrt() <= 1e-6 * mean.abs() + 1e-12
    inverse = torch.where(faint, 0.0, variance.clamp(min=1e-300).rsqrt())
    z = ((similarity - mean) * inverse).float()
    z[layer.dead] = 0
    null: Tensor | None = None
    for block in measure.null_blocks(scores, layer, draws, seed):
        standard = (block.similarity - mean[:, block.concepts]) * inverse[:, block.concepts]
        found = standard.amax(2).float()
        if null is None:
            null = found.new_full((draws, found.shape[1]), -torch.inf)
        null[block.draws] = torch.maximum(null[block.draws], found)
    assert null is not None
    return ConceptNull(z, null)


def permutation_p(
    best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"] | Float[Tensor, "draw 1"]
) -> Float[Tensor, " neuron"]:
    """``(1 + #{null >= best}) / (1 + draws)``: never 0, and at most alpha with probability alpha under the null."""
    draws = len(null)
    if null.shape[1] == 1:
        ordered = null[:, 0].contiguous().sort().values
        reached = draws - torch.searchsorted(ordered, best.to(ordered.dtype).contiguous())
    else:
        reached = (null >= best).sum(0)
    return (1 + reached) / (1 + draws)


def standardised(
    best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"] | Float[Tensor, "draw 1"]
) -> Float[Tensor, " neuron"]:
    """``(best - mean null) / std null``: the distance from the null in its standard deviations; 0 without spread."""
    _enough(len(null), least=2)
    spread = null.std(0)
    return torch.where(spread > 0, (best - null.mean(0)) / spread, 0.0)


def _enough(draws: int, least: int = 1) -> None:
    if draws < least:
        raise UserError(f"draws={draws}: at least {least}; the smallest p-value is 1 / (1 + draws), 1000 is usual.")
