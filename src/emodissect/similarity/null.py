"""What a neuron's best similarity would be if its activations had nothing to do with the images."""

from __future__ import annotations

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
