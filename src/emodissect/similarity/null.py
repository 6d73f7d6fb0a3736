"""What a neuron's best similarity would be if its activations had nothing to do with the images."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.similarity.measures import Layer, Similarity

_LAST_DIGITS = 1e-6  # of a float32, relative


def best_similarity_null(
    measure: Similarity,
    scores: Float[Tensor, "image concept"],
    layer: Layer,
    draws: int = 1000,
    seed: int = 0,
    progress: str = "",
) -> Float[Tensor, "draw neuron"]:
    """The best similarity over the concepts that each neuron would have if chance had chosen its images.

    Similarities from top images (``soft_wpmi``, ``wpmi``): each draw is an ordered set of top_k images drawn without
    replacement, put in the neuron's place among the layer's others, so that it is scored exactly as the neuron is.
    Similarities from all values: each draw re-pairs activations and images, the same permutation for all neurons.
    ``progress``: the label of a bar with the time left; None shows no bar. Memory: the result and blocks of tens of
    MiB; the cosines also take a copy of the scores.
    """
    _enough(draws)
    return measure.null_best(scores, layer, draws, seed, progress)


def permutation_p(best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"]) -> Float[Tensor, " neuron"]:
    """``(1 + #{null >= best}) / (1 + draws)``: never 0, and at most alpha with probability alpha under the null."""
    return (1 + reached(best, null)) / (1 + len(null))


def reached(best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"]) -> Int64[Tensor, " neuron"]:
    """How many draws are at least as good.

    A draw that is below ``best`` only by rounding counts as equal: where few values are possible (a neuron that
    one image activates, scores of 0 and 1) a tie that the order of summation breaks would look like a finding.
    Differences within what float32 sums lose count as none, but never more than a hundredth of the null's spread.
    """
    largest = null.abs().amax(0)
    lost = torch.minimum(1e-4 * largest, 1e-2 * null.std(0, correction=0))
    return (null >= best - torch.maximum(lost, _LAST_DIGITS * largest)).sum(0)


def standardised(best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"]) -> Float[Tensor, " neuron"]:
    """``(best - mean null) / std null``: the distance from the null in its standard deviations; 0 without spread."""
    _enough(len(null), least=2)
    spread = null.std(0)
    return torch.where(spread > _LAST_DIGITS * null.abs().amax(0), (best - null.mean(0)) / spread, 0.0)


def draws_to_pass(p_value: Float[Tensor, " neuron"], draws: int, level: float) -> int:
    """How many draws let the neurons that lie beyond all of ``draws`` pass Benjamini-Hochberg; ``draws`` if they do.

    No p-value is below 1 / (1 + draws), so of M neurons fewer than M / (level (1 + draws)) can never pass, however far
    from the null they lie: 82 of 4,096 with 1,000 draws. One of M passes alone with M / level draws.
    """
    beyond = int((p_value <= 1.5 / (1 + draws)).sum())
    if not beyond or beyond * level * (1 + draws) >= len(p_value):
        return draws
    return math.ceil(len(p_value) / level)


def _enough(draws: int, least: int = 1) -> None:
    if draws < least:
        raise UserError(f"draws={draws}: at least {least}; the smallest p-value is 1 / (1 + draws), 1000 is usual.")
