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

_PROBABILITIES = 2**21  # elements of the softmax held at a time: 8 MiB, which the last cache holds beside the products
_IN_CACHE = 2**20  # elements of a block of (neuron, concept) products: 4 MiB
_SERIES_ERROR = 5e-6  # in nats, of a sum over all ranks
_MOST_DEGREE = 5  # a weighted sum of powers for each degree; beyond, products are as fast
_LARGEST = 1e30  # a product of ranks is turned into a log before it could leave float32


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

    The score is relative to the layer: with lam = 1 no score exceeds log M. Fewer images than top_k: all of them, the
    p_i spread over the shorter list. Ties: by the tickets of ``ids``, or of the rows, see ``top_rows``. A constant
    neuron orders no images: it is left out of the sum and of M, and its own row is "as likely as the layer on average",
    S = 0 at lam = 1. (The reference lets ``torch.topk`` pick its images; see ``soft_wpmi_from_top``.)

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
    """``soft_wpmi`` of neurons of which only the rows of the top images are known, most activating first.

    ``constant`` marks neurons that order no images (see ``soft_wpmi``); none by default, as in the reference.
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
    """``wpmi`` of neurons of which only the rows of the top images are known, most activating first."""
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

    With q_i = 1 - p_i + min_prob each term is log q_i + log(1 + r_i Q), r_i = p_i / q_i. Where the concepts are many, Q
    is small and the second parts are polynomials of Q of low degree: their sums are weighted sums of powers, one fused
    gather and sum each. Elsewhere they are multiplied, rank by rank, and one log is taken of the product, whenever it
    could otherwise leave float32. ``constant=False`` leaves out sum_i log q_i, about -430, which cancels at lam = 1 and
    would cost float32 two digits.
    """
    ranks, sets = top_rows.shape
    weights = [p_start - i / max(ranks, 1) * (p_start - p_end) for i in range(ranks)]
    floors = [1 - p + min_prob for p in weights]
    if min([*weights, p_start]) < 0 or min([*floors, 1.0]) <= 0:
        raise UserError(
            f"p_start={p_start}, p_end={p_end}, min_prob={min_prob}: the weights p_i must lie in [0, 1], and below "
            "1 + min_prob. Take e.g. p_start=0.998, p_end=0.97, min_prob=1e-7."
        )
    ratios = [p / q for p, q in zip(weights, floors, strict=True)]
    offset = sum(log(q) for q in floors) if constant else 0.0
    used = _used(concept_scores, top_rows, a)
    bags = used.rows.t().contiguous()
    power = torch.empty(0, device=concept_scores.device)
    result = torch.empty(sets, concept_scores.shape[1], device=concept_scores.device)
    for concepts, probabilities in _probabilities(used.scores, a):
        largest = float(probabilities.max()) if probabilities.numel() else 0.0
        if coefficients := _polynomials(ratios, largest):
            if power.shape != probabilities.shape:
                power = torch.empty_like(probabilities)
            sums = _weighted_powers(probabilities.div_(largest), bags, coefficients[1:], power)
            result[:, concepts] = sums.add_(offset + sum(coefficients[0]))
            continue
        flushes = _flushes(ratios, largest)
        width = probabilities.shape[1]
        step = max(_IN_CACHE // width, 1)
        for start in range(0, sets, step):
            rows = used.rows[:, start : start + step]
            product = torch.ones(rows.shape[1], width, device=probabilities.device)
            gathered = torch.empty_like(product)
            total = torch.full_like(product, offset)
            for rank, ratio in enumerate(ratios):
                if flushes[rank]:
                    total += product.log_()
                    product.fill_(1.0)
                torch.index_select(probabilities, 0, rows[rank], out=gathered)
                product.addcmul_(product, gathered, value=ratio)
            result[start : start + step, concepts] = total.add_(product.log_())
    return _finite(result)


def hard_log_likelihood(
    concept_scores: Float[Tensor, "image concept"], top_rows: Int64[Tensor, "rank set"], *, a: float, min_prob: float
) -> Float[Tensor, "set concept"]:
    """L of sets of images: sum_i log(Q[B_i , c] + min_prob), the log taken once per image and concept."""
    if min_prob <= 0:
        raise UserError(f"min_prob={min_prob}: must be above 0, or a concept of probability 0 has no log. Take 1e-7.")
    used = _used(concept_scores, top_rows, a)
    bags = used.rows.t().contiguous()
    result = torch.empty(len(bags), concept_scores.shape[1], device=concept_scores.device)
    for concepts, probabilities in _probabilities(used.scores, a):
        logs = probabilities.add_(min_prob).log_()
        result[:, concepts] = torch.nn.functional.embedding_bag(bags, logs, mode="sum")
    return _finite(result)


def layer_average(
    likelihood: Float[Tensor, "neuron concept"], constant: Bool[Tensor, " neuron"] | None = None
) -> Float[Tensor, " concept"]:
    """The layer's normaliser per concept: the log of the mean of exp(L) over the neurons not marked constant."""
    live = likelihood if constant is None or not constant.any() else likelihood[~constant]
    if not len(live):
        return likelihood.new_zeros(likelihood.shape[1])
    return live.logsumexp(0) - log(len(live))


def relative_to_layer(
    likelihood: Float[Tensor, "neuron concept"],
    average: Float[Tensor, " concept"],
    lam: float,
    constant: Bool[Tensor, " neuron"] | None = None,
) -> Float[Tensor, "neuron concept"]:
    """S = L - lam · average; a constant neuron's L is taken to be the average."""
    similarity = likelihood - lam * average
    if constant is not None:
        similarity[constant] = (1 - lam) * average
    return similarity


def _top(
    concept_scores: Tensor, activations: Tensor, k: int, ids: Tensor | None
) -> tuple[Int64[Tensor, "rank neuron"], Bool[Tensor, " neuron"]]:
    """The top rows, and which neurons are constant."""
    require_aligned(concept_scores, len(activations))
    if k < 1:
        raise UserError(f"top_k={k}: at least one image. The usual values: soft_wpmi 100, wpmi 28.")
    if not activations.numel():
        raise UserError(f"Activations of shape {tuple(activations.shape)}: at least one image and one neuron.")
    return top_rows(activations, k, ids), constant_neurons(activations)


class _Used(NamedTuple):
    scores: Tensor
    rows: Tensor


def _used(concept_scores: Tensor, rows: Tensor, a: float) -> _Used:
    """The scores of the images that any set names; a copy only where that leaves most images out."""
    if not rows.numel():
        raise UserError("No images: top_k and the probe set must each hold at least one image.")
    if not a > 0:
        raise UserError(f"a={a}: the softmax's inverse temperature must be above 0 (soft_wpmi 10, wpmi 2).")
    if 4 * rows.numel() < len(concept_scores):
        named, rows = rows.unique(return_inverse=True)
        concept_scores = concept_scores[named]
    return _Used(concept_scores, rows.contiguous())


def _probabilities(scores: Tensor, a: float) -> Iterator[tuple[slice, Tensor]]:
    """The softmax over concepts of a · scores, a block of concepts at a time, so that it never exists as a whole."""
    images, concepts = scores.shape
    if images * concepts <= _PROBABILITIES:
        whole = torch.empty(images, concepts, device=scores.device)
        step = max(_IN_CACHE // concepts, 1)
        for start in range(0, images, step):
            torch.softmax(scores[start : start + step].float() * a, 1, out=whole[start : start + step])
        yield slice(0, concepts), whole
        return
    step = max(_IN_CACHE // concepts, 1)
    norms = torch.cat([(part * a).float().logsumexp(1, keepdim=True) for part in scores.split(step)]).neg_()
    width = max(_PROBABILITIES // images, 1)
    whole = torch.empty(images * width, device=scores.device)
    for start in range(0, concepts, width):
        part = scores[:, start : start + width].to(whole.dtype)
        block = whole[: part.numel()].view(part.shape)
        step = max(_IN_CACHE // part.shape[1], 1)
        for rows in range(0, images, step):  # both passes while the rows are in cache
            here = slice(rows, rows + step)
            torch.add(norms[here], part[here], alpha=a, out=block[here]).exp_()
        yield slice(start, start + width), block


def _polynomials(ratios: list[float], largest: float) -> list[list[float]]:
    """Polynomials of y = Q / largest in [0, 1] that are log(1 + r_i Q): for each power the coefficients of all ranks.

    They agree at Chebyshev's nodes, so that the error of a term of degree d is about 2 / (d + 1) rho^-(d + 1), with rho
    the size of the ellipse around [0, 1] that reaches the logarithm's singularity. Empty where d would be high.
    """
    reach = np.array(ratios) * largest
    if not 0 < largest < np.inf or not (reach > 0).all():
        return []
    singular = 1 + 2 / reach
    rho = singular + np.sqrt(singular**2 - 1)
    for degree in range(1, _MOST_DEGREE + 1):
        if (2 / (degree + 1) * rho ** -(degree + 1)).sum() < _SERIES_ERROR:
            nodes = (1 + np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))) / 2
            values = np.log1p(nodes[:, None] * reach)
            return np.linalg.solve(np.vander(nodes, increasing=True), values).tolist()
    return []


def _weighted_powers(
    y: Float[Tensor, "image concept"],
    bags: Int64[Tensor, "set rank"],
    coefficients: list[list[float]],
    power: Float[Tensor, "image concept"],
) -> Float[Tensor, "set concept"]:
    """sum over ranks i and powers k of coefficients[k - 1][i] · y[bags[:, i]]^k; ``power`` is overwritten."""
    total = torch.zeros(len(bags), y.shape[1], device=y.device)
    table = y
    for weights in coefficients:
        expanded = torch.tensor(weights, dtype=y.dtype, device=y.device).repeat(len(bags), 1)
        total += torch.nn.functional.embedding_bag(bags, table, mode="sum", per_sample_weights=expanded)
        table = torch.mul(table, y, out=power)
    return total


def _flushes(ratios: list[float], largest: float) -> list[bool]:
    """Before which ranks the running product must be turned into a log to stay inside float32."""
    bound, flushes = 1.0, []
    for ratio in ratios:
        growth = 1 + ratio * largest
        flushes.append(bound * growth > _LARGEST)
        bound = growth if flushes[-1] else bound * growth
    return flushes


def _finite(result: Tensor) -> Tensor:
    if result.numel() and not torch.stack(result.aminmax()).isfinite().all():  # NaN comes through minimum and maximum
        raise UserError("The concept scores hold NaN or infinite values; each must be a finite number.")
    return result
