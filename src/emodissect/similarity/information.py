"""Weighted pointwise mutual information of neurons and concepts, soft and hard, as in CLIP-Dissect."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.similarity.measures import require_aligned
from emodissect.similarity.top import constant_neurons, top_rows

_PROBABILITIES = 2**21  # elements of the softmax in memory at a time: 8 MiB, for the last-level cache
_LANES = 16  # widths of concept blocks are multiples of this, to avoid slow remainders of vectors
_IN_CACHE = 2**18  # elements for several passes: 1 MiB, for a core's own cache
_SERIES_ERROR = 2e-5  # worst-case error in nats of a sum over all ranks
_MOST_DEGREE = 6  # highest degree of the polynomials; beyond it, a product is as fast
_LARGEST = 1e30  # the log of a product of ranks is taken before it could overflow float32
_LOG2_E = 1 / log(2)


def soft_wpmi(
    concept_scores: Float[Tensor, "image concept"],
    activations: Float[Tensor, "image neuron"],
    *,
    top_k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    min_prob: float = 1e-7,
    p_start: float = 0.998,
    p_end: float = 0.97,
    ids: Int64[Tensor, " image"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """Soft weighted pointwise mutual information of each neuron with each concept.

    With Q = softmax over concepts of a · P, B_m the k = min(top_k, N) images that activate neuron m most, descending,
    and p_i = p_start - (i/k)(p_start - p_end) for i = 0 .. k - 1::

        L_mc = sum_i log(1 + p_i (Q[B_m,i , c] - 1) + min_prob)
        S_mc = L_mc - lam (logsumexp_m L_mc - log M)

    The score is relative to the layer: with lam = 1 no score exceeds log M. With fewer images than top_k, all are used
    and the p_i are spread over them. Ties are ordered by the tickets of ``ids``, or of the rows, see ``top_rows``. A
    constant neuron does not order images: it is excluded from the sum and from M, and its L is the layer's average, so
    that S = 0 at lam = 1. (In the reference, ``torch.topk`` picks its images; see ``soft_wpmi_from_top``.)

    Shapes: concept_scores P ``[image concept]`` (cosines, no logit scale), activations ``[image neuron]`` -> S
    ``[neuron concept]`` in nats. Extra memory: 16 MiB of probabilities, 12 of products and the blocks of ``top_rows``.

    Example:
        >>> scores = torch.tensor([[0.2, 0.1], [0.1, 0.2], [0.1, 0.1]])
        >>> activations = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> soft_wpmi(scores, activations, top_k=1).argmax(1).tolist()
        [0, 1]

    Raises:
        UserError: image counts differ, a score or activation is not finite, or a parameter is out of its range.

    Source: CLIP-Dissect, Oikarinen & Weng, ICLR 2023, section 3; parameters as in its code.
    """
    rows, constant = _top(concept_scores, activations, top_k, ids)
    return soft_wpmi_from_top(
        concept_scores, rows, a=a, lam=lam, min_prob=min_prob, p_start=p_start, p_end=p_end, constant=constant
    )


def soft_wpmi_from_top(
    concept_scores: Float[Tensor, "image concept"],
    top_rows: Int64[Tensor, "rank neuron"],
    *,
    a: float = 10.0,
    lam: float = 1.0,
    min_prob: float = 1e-7,
    p_start: float = 0.998,
    p_end: float = 0.97,
    constant: Bool[Tensor, " neuron"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """``soft_wpmi`` from the rows of each neuron's top images, most activating first.

    ``constant`` marks constant neurons (see ``soft_wpmi``); none by default, as in the reference.
    """
    likelihood = soft_log_likelihood(
        concept_scores, top_rows, a=a, min_prob=min_prob, p_start=p_start, p_end=p_end, constant=lam != 1
    )
    return relative_to_layer(likelihood, layer_average(likelihood, constant), lam, constant)


def wpmi(
    concept_scores: Float[Tensor, "image concept"],
    activations: Float[Tensor, "image neuron"],
    *,
    top_k: int = 28,
    a: float = 2.0,
    lam: float = 0.6,
    min_prob: float = 1e-7,
    ids: Int64[Tensor, " image"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """Weighted pointwise mutual information: ``soft_wpmi`` with L_mc = sum_i log(Q[B_m,i , c] + min_prob).

    Every one of the top_k images counts in full. Shapes, edge cases and errors as ``soft_wpmi``.

    Source: CLIP-Dissect, Oikarinen & Weng, ICLR 2023, section 3.
    """
    rows, constant = _top(concept_scores, activations, top_k, ids)
    return wpmi_from_top(concept_scores, rows, a=a, lam=lam, min_prob=min_prob, constant=constant)


def wpmi_from_top(
    concept_scores: Float[Tensor, "image concept"],
    top_rows: Int64[Tensor, "rank neuron"],
    *,
    a: float = 2.0,
    lam: float = 0.6,
    min_prob: float = 1e-7,
    constant: Bool[Tensor, " neuron"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """``wpmi`` from the rows of each neuron's top images, most activating first."""
    likelihood = hard_log_likelihood(concept_scores, top_rows, a=a, min_prob=min_prob)
    return relative_to_layer(likelihood, layer_average(likelihood, constant), lam, constant)


def soft_log_likelihood(
    concept_scores: Float[Tensor, "image concept"],
    top_rows: Int64[Tensor, "rank set"],
    *,
    a: float,
    min_prob: float,
    p_start: float,
    p_end: float,
    constant: bool = True,
) -> Float[Tensor, "set concept"]:
    """L of ordered sets of images: sum_i log(1 + p_i (Q[B_i , c] - 1) + min_prob).

    With q_i = 1 - p_i + min_prob each term is log q_i + log(1 + r_i Q), r_i = p_i / q_i. If r_i Q is small for all
    images and concepts, the second part is approximated by a polynomial in Q of low degree, lower for later ranks: the
    sums are weighted sums of powers, one fused gather and sum each. For ranks that would need many powers, factors are
    multiplied, and the log of the product is taken before it could overflow float32. ``constant=False`` omits
    sum_i log q_i, about -430, which cancels at lam = 1 and would cost two digits of float32 precision.
    """
    ranks, sets = top_rows.shape
    weights = [p_start - i / max(ranks, 1) * (p_start - p_end) for i in range(ranks)]
    floors = [1 - p + min_prob for p in weights]
    if min([*weights, p_start]) < 0 or min([*floors, 1.0]) <= 0:
        raise UserError(
            f"p_start={p_start}, p_end={p_end}, min_prob={min_prob}: the weights p_i must be in [0, 1], and below "
            "1 + min_prob, e.g. p_start=0.998, p_end=0.97, min_prob=1e-7."
        )
    ratios = np.array([p / q for p, q in zip(weights, floors, strict=True)])
    offset = sum(log(q) for q in floors) if constant else 0.0
    used = _used(concept_scores, top_rows, a)
    softmax = _Softmax(used.scores, a)
    reach = ratios * softmax.largest
    degrees, coefficients = _polynomials(reach)
    factors = np.flatnonzero(degrees == 0)
    powers = _weighted_rows(used.rows, degrees, coefficients)
    power = torch.empty(0, device=concept_scores.device)
    result = torch.empty(sets, concept_scores.shape[1], device=concept_scores.device)
    for concepts, y in softmax.blocks(1 / softmax.largest):
        total = result[:, concepts].fill_(offset + coefficients[0].sum())
        if factors.size:
            _add_log_products(total, y, used.rows[factors], reach[factors])
        table = y
        for degree, (rows, of_ranks) in enumerate(powers, start=1):
            if degree > 1:
                power = power if power.shape == y.shape else torch.empty_like(y)
                table = torch.mul(table, y, out=power)
            total += torch.nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=of_ranks)
    return _finite(result)


def hard_log_likelihood(
    concept_scores: Float[Tensor, "image concept"], top_rows: Int64[Tensor, "rank set"], *, a: float, min_prob: float
) -> Float[Tensor, "set concept"]:
    """L of sets of images: sum_i log(Q[B_i , c] + min_prob), with one log per image and concept."""
    if min_prob <= 0:
        raise UserError(f"min_prob={min_prob}: must be above 0, since log 0 is undefined; 1e-7 is usual.")
    used = _used(concept_scores, top_rows, a)
    bags = used.rows.t().contiguous()
    result = torch.empty(len(bags), concept_scores.shape[1], device=concept_scores.device)
    for concepts, probabilities in _Softmax(used.scores, a).blocks():
        logs = probabilities.add_(min_prob).log_()
        result[:, concepts] = torch.nn.functional.embedding_bag(bags, logs, mode="sum")
    return _finite(result)


def layer_average(
    likelihood: Float[Tensor, "neuron concept"], constant: Bool[Tensor, " neuron"] | None = None
) -> Float[Tensor, " concept"]:
    """The layer's average per concept: the log of the mean of exp(L) over the neurons not marked constant."""
    live = likelihood if constant is None or not constant.any() else likelihood[~constant]
    if not live.numel():
        return likelihood.new_zeros(likelihood.shape[1])
    averages = []
    for part in live.split(max(_IN_CACHE // len(live), 1), dim=1):
        largest = part.amax(0)
        mean = ((part - largest).mul_(_LOG2_E).exp2_()).sum(0) / len(live)
        averages.append(largest + mean.log_())
    return torch.cat(averages)


def relative_to_layer(
    likelihood: Float[Tensor, "neuron concept"],
    average: Float[Tensor, " concept"],
    lam: float,
    constant: Bool[Tensor, " neuron"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """S = L - lam · average, in place; the L of a constant neuron is set to the average."""
    similarity = likelihood.sub_(lam * average)
    if constant is not None:
        similarity[constant] = (1 - lam) * average
    return similarity


def _top(
    concept_scores: Tensor, activations: Tensor, k: int, ids: Tensor | None
) -> tuple[Int64[Tensor, "rank neuron"], Bool[Tensor, " neuron"]]:
    """The top rows, and the mask of constant neurons."""
    require_aligned(concept_scores, len(activations))
    if k < 1:
        raise UserError(f"top_k={k}: must be an integer >= 1; usual values: soft_wpmi 100, wpmi 28.")
    if not activations.numel():
        raise UserError(f"Activations of shape {tuple(activations.shape)}: at least one image and neuron are needed.")
    return top_rows(activations, k, ids), constant_neurons(activations)


class _Used(NamedTuple):
    scores: Tensor
    rows: Tensor


def _used(concept_scores: Tensor, rows: Tensor, a: float) -> _Used:
    """The scores of the images in any set, and rows into them; copied only if that drops most images."""
    if not rows.numel():
        raise UserError("No images: top_k and the size of the probe set must each be at least 1.")
    if not a > 0:
        raise UserError(f"a={a}: the softmax's inverse temperature must be above 0 (soft_wpmi 10, wpmi 2).")
    if 4 * rows.numel() < len(concept_scores):
        named, rows = rows.unique(return_inverse=True)
        concept_scores = concept_scores[named]
    return _Used(concept_scores, rows.contiguous())


class _Softmax:
    """Q = softmax over concepts of a · scores, in blocks of concepts, so that the whole is never in memory."""

    def __init__(self, scores: Float[Tensor, "image concept"], a: float) -> None:
        self._scores, self._scale = scores, a * _LOG2_E  # exp2 is several times as fast as exp
        images, concepts = scores.shape
        self._log2_norms = torch.empty(images, 1, device=scores.device)
        largest_sum = torch.full((), torch.inf, device=scores.device)
        step = max(_IN_CACHE // concepts, 1)
        buffer = torch.empty(min(step, images), concepts, device=scores.device)
        for start in range(0, images, step):
            part = scores[start : start + step].float()
            negative = part.amax(1, keepdim=True).mul_(-self._scale)
            sums = torch.add(negative, part, alpha=self._scale, out=buffer[: len(part)]).exp2_().sum(1, keepdim=True)
            largest_sum = torch.minimum(largest_sum, sums.min())
            torch.sub(negative, sums.log2_(), out=self._log2_norms[start : start + step])
        self.largest = float(1 / largest_sum)
        """The largest Q of any image and concept; NaN if a score is."""

    def blocks(self, factor: float = 1.0) -> Iterator[tuple[slice, Float[Tensor, "image width"]]]:
        """(slice of concepts, factor · Q for them); each block is overwritten by the next."""
        images, concepts = self._scores.shape
        width = max(_PROBABILITIES // images, 1)
        width -= width % _LANES if width > _LANES else 0
        norms = self._log2_norms + np.log2(factor)
        whole = torch.empty(images * min(width, concepts), device=norms.device)
        for start in range(0, concepts, width):
            part = self._scores[:, start : start + width].float()
            block = whole[: part.numel()].view(part.shape)
            step = max(_IN_CACHE // part.shape[1], 1)
            for rows in range(0, images, step):  # both passes while the rows are in cache
                here = slice(rows, rows + step)
                torch.add(norms[here], part[here], alpha=self._scale, out=block[here]).exp2_()
            yield slice(start, start + width), block


def _polynomials(reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Polynomial approximations of log(1 + reach_i y) for y in [0, 1]: each rank's degree, and coefficients by power.

    They interpolate at Chebyshev nodes, so that the error at degree d is about 2 / (d + 1) rho^-(d + 1), with rho the
    size of the ellipse around [0, 1] that reaches the logarithm's singularity. Each rank has the lowest degree that
    keeps its share of the allowed error; 0, without coefficients, if that exceeds the highest degree.

    Shapes: reach ``[rank]`` -> degrees ``[rank]``, coefficients ``[power rank]``, those above a rank's degree 0.
    """
    degrees = np.zeros(len(reach), dtype=int)
    coefficients = np.zeros((_MOST_DEGREE + 1, len(reach)))
    if not np.isfinite(reach).all():
        return degrees, coefficients
    singular = 1 + 2 / np.maximum(reach, 1e-100)
    rho = singular + np.sqrt(singular**2 - 1)
    for degree in range(1, _MOST_DEGREE + 1):
        exact_enough = 2 / (degree + 1) * rho ** -(degree + 1) < _SERIES_ERROR / len(reach)
        ranks = np.flatnonzero(exact_enough & (degrees == 0))
        nodes = (1 + np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))) / 2
        values = np.log1p(nodes[:, None] * reach[ranks])
        coefficients[: degree + 1, ranks] = np.linalg.solve(np.vander(nodes, increasing=True), values)
        degrees[ranks] = degree
    return degrees, coefficients


def _weighted_rows(
    rows: Int64[Tensor, "rank set"], degrees: np.ndarray, coefficients: np.ndarray
) -> list[tuple[Int64[Tensor, "set some"], Float[Tensor, "set some"]]]:
    """For each power from 1: the rows of the ranks that need it, and their coefficients."""
    found = []
    for degree in range(1, degrees.max(initial=0) + 1):
        ranks = np.flatnonzero(degrees >= degree)
        weights = torch.from_numpy(coefficients[degree, ranks]).to(rows.device, torch.float32)
        found.append((rows[ranks].t().contiguous(), weights.expand(rows.shape[1], -1).contiguous()))
    return found


def _add_log_products(
    total: Float[Tensor, "set concept"],
    y: Float[Tensor, "image concept"],
    rows: Int64[Tensor, "rank set"],
    reach: np.ndarray,
) -> None:
    """Add the log of the product over ranks i of 1 + reach[i] y[rows[i]], some sets at a time."""
    flushes = _flushes(reach)
    step = max(_IN_CACHE // y.shape[1], 1)
    product, gathered = torch.empty(2, min(step, len(total)), y.shape[1], device=y.device)
    for start in range(0, len(total), step):
        here = total[start : start + step]
        chosen, running = gathered[: len(here)], product[: len(here)].fill_(1.0)
        for rank, ratio in enumerate(reach.tolist()):
            if flushes[rank]:
                here += running.log_()
                running.fill_(1.0)
            torch.index_select(y, 0, rows[rank, start : start + step], out=chosen)
            running.addcmul_(running, chosen, value=ratio)
        here += running.log_()


def _flushes(reach: np.ndarray) -> list[bool]:
    """Before which ranks the log of the running product must be taken, to avoid overflow of float32."""
    bound, flushes = 1.0, []
    for growth in (1 + reach).tolist():
        flushes.append(bound * growth > _LARGEST)
        bound = growth if flushes[-1] else bound * growth
    return flushes


def _finite(result: Tensor) -> Tensor:
    if result.numel() and not torch.stack(result.aminmax()).isfinite().all():  # minimum and maximum propagate NaN
        raise UserError("The concept scores have NaN or infinite values; all must be finite.")
    return result
