"""Null distribution of a neuron's best similarity, p-values and z-scores."""

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
    """The null distribution of each neuron's best similarity over the concepts.

    Similarities from top images (``soft_wpmi``, ``wpmi``): each draw is an ordered set of top_k images drawn without
    replacement, which replaces the neuron in the layer, so that it is scored exactly as the neuron is.
    Similarities from all values: each draw permutes the images, with the same permutation for all neurons.
    ``progress``: label of a progress bar; empty for no bar. Memory: the result and blocks of tens of MiB; for cosines
    also a copy of the scores.
    """
    _enough(draws)
    return measure.null_best(scores, layer, draws, seed, progress)


def permutation_p(best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"]) -> Float[Tensor, " neuron"]:
    """``(1 + #{null >= best}) / (1 + draws)``: never 0, and at most alpha with probability alpha under the null."""
    return (1 + reached(best, null)) / (1 + len(null))


def reached(best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"]) -> Int64[Tensor, " neuron"]:
    """Number of draws that are at least as large as ``best``.

    A draw that is below ``best`` only by rounding counts as equal: if few values are possible (a neuron that only one
    image activates, scores of 0 and 1), a tie broken by the order of summation would look like a finding. The tolerance
    is the rounding error of float32 sums, but at most a hundredth of the null's standard deviation.
    """
    largest = null.abs().amax(0)
    lost = torch.minimum(1e-4 * largest, 1e-2 * null.std(0, correction=0))
    return (null >= best - torch.maximum(lost, _LAST_DIGITS * largest)).sum(0)


def standardised(best: Float[Tensor, " neuron"], null: Float[Tensor, "draw neuron"]) -> Float[Tensor, " neuron"]:
    """``(best - mean null) / std null``: the z-score relative to the null; 0 if the null has no spread."""
    _enough(len(null), least=2)
    spread = null.std(0)
    return torch.where(spread > _LAST_DIGITS * null.abs().amax(0), (best - null.mean(0)) / spread, 0.0)


def draws_to_pass(p_value: Float[Tensor, " neuron"], draws: int, level: float) -> int:
    """Number of draws with which neurons beyond all of ``draws`` can pass Benjamini-Hochberg; ``draws`` if they can.

    No p-value is below 1 / (1 + draws), so of M neurons fewer than M / (level (1 + draws)) can never pass, however far
    they are from the null: 82 of 4,096 with 1,000 draws. A single one of M can pass with M / level draws.
    """
    beyond = int((p_value <= 1.5 / (1 + draws)).sum())
    if not beyond or beyond * level * (1 + draws) >= len(p_value):
        return draws
    return math.ceil(len(p_value) / level)


def _enough(draws: int, least: int = 1) -> None:
    if draws < least:
        raise UserError(f"draws={draws}: must be >= {least}; the smallest p-value is 1 / (1 + draws), 1000 is usual.")
