"""Cosines between activations and concept scores over all images: plain, cubed and centred (Pearson)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.similarity.measures import require_aligned
from emodissect.similarity.top import constant_neurons

_BLOCK = 2**19  # elements of a block of activations: 2 MiB, three of which stay in cache


def cos_similarity(
    concept_scores: Float[Tensor, "image concept"], activations: Float[Tensor, "image neuron"]
) -> Float[Tensor, "neuron concept"]:
    """Cosine of each neuron's activations and each concept's scores over the images, without centring.

    ``S_mc = sum_n A_nm P_nc / (|A_m| |P_c|)``; 0 if a column is all zero.

    Shapes: ``[image concept]``, ``[image neuron]`` -> ``[neuron concept]`` in [-1, 1]. Extra memory: a few MiB and
    the result. Raises ``UserError`` on unequal image counts or numbers that are not finite.

    Source: CLIP-Dissect, ICLR 2023, "cos similarity".
    """
    return _product(concept_scores, activations, centred=False, power=1)


def cos_similarity_cubed(
    concept_scores: Float[Tensor, "image concept"],
    activations: Float[Tensor, "image neuron"],
    *,
    min_norm: float = 1e-3,
) -> Float[Tensor, "neuron concept"]:
    """Cosine of the cubes of the centred columns.

    With x = (A_m - mean)^3 and y = (P_c - mean)^3: ``S_mc = x · y / (max(|x|, min_norm) max(|y|, min_norm))``. The
    floor ``min_norm`` makes columns with tiny norms score low, so the score depends on the activations' scale if |x| is
    below it. A constant column gives 0.

    Shapes, memory and errors as ``cos_similarity``. Source: CLIP-Dissect, ICLR 2023, "cos similarity cubed".
    """
    if min_norm < 0:
        raise UserError(f"min_norm={min_norm}: must be >= 0; the reference uses 1e-3.")
    return _product(concept_scores, activations, centred=True, power=3, min_norm=min_norm)


def pearson(
    concept_scores: Float[Tensor, "image concept"], activations: Float[Tensor, "image neuron"]
) -> Float[Tensor, "neuron concept"]:
    """Pearson correlation of each neuron's activations with each concept's scores; 0 if a column is constant.

    Shapes, memory and errors as ``cos_similarity``. Passes both sanity tests of Oikarinen et al. 2025.
    """
    return _product(concept_scores, activations, centred=True, power=1)


def transformed(
    columns: Float[Tensor, "image column"], centred: bool, power: int, min_norm: float = 0.0
) -> Float[Tensor, "image column"]:
    """Columns centred, raised to ``power`` and divided by their norms, so that cosines are matrix products."""
    columns = columns.double()
    if centred:
        columns = (columns - columns.mean(0)).masked_fill_(constant_neurons(columns), 0.0)
    columns = columns**power
    return columns / _floored(columns.norm(dim=0), min_norm)


def row_blocks(
    activations: Float[Tensor, "image neuron"], centred: bool, power: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[slice, Float[Tensor, "row neuron"]]]:
    """Centred powers of the activations, a few rows at a time; each block is overwritten by the next."""
    images, neurons = activations.shape
    step = block_rows(activations.shape)
    middle = activations.mean(0, dtype=dtype) if centred else None
    powers = torch.empty(step, neurons, dtype=dtype, device=activations.device)
    base = torch.empty_like(powers)
    for start in range(0, images, step):
        rows = activations[start : start + step]
        block, plain = powers[: len(rows)], base[: len(rows)]
        if middle is None:
            plain.copy_(rows)
        else:
            torch.sub(rows, middle, out=plain)
        if power == 1:
            yield slice(start, start + len(rows)), plain
            continue
        torch.mul(plain, plain, out=block)
        for _ in range(power - 2):
            block.mul_(plain)
        yield slice(start, start + len(rows)), block


def block_rows(shape: torch.Size) -> int:
    """Number of rows per block for activations of this shape."""
    images, neurons = shape
    return min(max(_BLOCK // max(neurons, 1), 1), images)


def _product(
    concept_scores: Tensor, activations: Tensor, *, centred: bool, power: int, min_norm: float = 0.0
) -> Tensor:
    require_aligned(concept_scores, len(activations))
    if not len(activations):
        raise UserError("No images: a similarity needs at least one.")
    result = _accumulated(concept_scores, activations, centred, power, min_norm, torch.float32)
    if not result.isfinite().all():  # sixth powers of large activations overflow float32
        result = _accumulated(concept_scores, activations, centred, power, min_norm, torch.float64)
    if not result.isfinite().all():
        raise UserError("The concept scores or activations have NaN or infinite values; all must be finite.")
    return result


def _accumulated(
    concept_scores: Tensor, activations: Tensor, centred: bool, power: int, min_norm: float, dtype: torch.dtype
) -> Tensor:
    """The similarity, with product and norms summed over blocks of rows, without copying a whole input."""
    neurons, concepts = activations.shape[1], concept_scores.shape[1]
    product = torch.zeros(concepts, neurons, dtype=dtype, device=activations.device)
    squares = torch.zeros(block_rows(activations.shape), neurons, dtype=dtype, device=activations.device)
    concept_squares = torch.zeros(concepts, dtype=dtype, device=activations.device)
    concept_middle = concept_scores.mean(0, dtype=dtype) if centred else None
    for rows, block in row_blocks(activations, centred, power, dtype):
        scores = concept_scores[rows].to(dtype)
        if concept_middle is not None:
            scores = scores - concept_middle
        if power > 1:
            scores = scores**power
        product.addmm_(scores.t(), block)
        concept_squares += (scores * scores).sum(0)
        squares[: len(block)].addcmul_(block, block)
    product = product.t().contiguous()
    norms = squares.sum(0).sqrt()
    if not (norms.isfinite().all() and concept_squares.isfinite().all()):
        return torch.full_like(product, torch.nan)
    product /= _floored(norms, min_norm)[:, None]
    product /= _floored(concept_squares.sqrt(), min_norm)
    if centred:  # after rounding of the mean, constant columns are not exactly zero
        product[constant_neurons(activations)] = 0
        product[:, constant_neurons(concept_scores)] = 0
    return product.float()


def _floored(norms: Tensor, min_norm: float) -> Tensor:
    """Norms of at least ``min_norm``; 1 for a norm of zero, whose column is zero too."""
    norms = norms.clamp(min=min_norm)
    return torch.where(norms > 0, norms, torch.ones_like(norms))
