"""Explains neurons by weighted sums of concepts that predict their activations."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.number_format import MINUS
from emodissect.dissection.quality.metrics import pearson
from emodissect.similarity import Similarity, constant_neurons

NONE = -1
"""Padding in ``Explanation.concepts``: no concept."""

_NEURONS = 64  # neurons per block, which limits the memory for residuals
_RIDGE = 1e-6  # for standardised scores, so that identical concepts share their weight
WIDTH = 1.959964  # half-width of a 95 % interval, in standard errors


class Part(NamedTuple):
    """Activations and concept scores of a subset of the images, rows in the same order."""

    activations: Float[Tensor, "image neuron"]
    scores: Float[Tensor, "image concept"]


@dataclass(frozen=True)
class Explanation:
    """A weighted sum of concepts for each neuron of a layer.

    The simulated activation of an image is ``sum_k weight_k (score_k - mean_k) / spread_k`` over the neuron's concepts,
    in standard deviations of the neuron: a weight is the rise of the activation, in its standard deviations, when the
    concept's score rises by one of its own.

    Attributes:
        concepts: the concepts of each neuron, largest absolute weight first; padded with :data:`NONE`.
        weights: their weights, 0 for padding.
        low, high: 95 % interval of each weight, NaN where weights are not fitted.
        mean, spread: mean and standard deviation that standardise the scores; the spread of a constant score is 1.
    """

    concepts: Int64[Tensor, "neuron term"]
    weights: Float[Tensor, "neuron term"]
    low: Float[Tensor, "neuron term"]
    high: Float[Tensor, "neuron term"]
    mean: Float[Tensor, " concept"]
    spread: Float[Tensor, " concept"]

    @classmethod
    def of_weights(
        cls,
        concepts: Int64[Tensor, "neuron term"],
        weights: Float[Tensor, "neuron term"],
        scores: Float[Tensor, "image concept"],
    ) -> Explanation:
        """An explanation without intervals; scores are standardised by ``scores``, those of the labelling images."""
        unknown = torch.full_like(weights, torch.nan)
        return cls(concepts, weights, unknown, unknown, *_moments(scores))

    def matrix(self) -> Float[Tensor, "neuron concept"]:
        """Dense weights of all concepts, 0 for those that are not in a neuron's sum."""
        dense = torch.zeros(len(self.concepts), len(self.mean) + 1)  # the last column receives the padding
        return dense.scatter_(1, self.concepts % dense.shape[1], self.weights.float())[:, :-1]

    def simulate(self, scores: Float[Tensor, "image concept"]) -> Float[Tensor, "image neuron"]:
        """Predicted activations of images with these scores; 0 for neurons without a concept."""
        return ((scores - self.mean) / self.spread).float() @ self.matrix().t()

    def change(self, scores: Float[Tensor, "change concept"]) -> Float[Tensor, "change neuron"]:
        """Predicted change in activation for a change in the scores."""
        return (scores / self.spread).float() @ self.matrix().t()

    def correlation(self, held_out: Part) -> Float[Tensor, " neuron"]:
        """Pearson correlation of simulated and true activations on held-out images; 0 for neurons without a concept."""
        return pearson(held_out.activations, self.simulate(held_out.scores))

    def of(self, neurons: Bool[Tensor, " neuron"]) -> Explanation:
        """The explanation of a subset of the neurons."""
        concepts, weights, low, high = (x[neurons] for x in (self.concepts, self.weights, self.low, self.high))
        return Explanation(concepts, weights, low, high, self.mean, self.spread)

    def words(self, names: Sequence[str]) -> list[str]:
        """Each neuron's sum as text, e.g. ``0.61 Smile − 0.20 Frown``; for a single concept just its name or −name."""
        return [_text(row, own, names) for row, own in zip(self.concepts.tolist(), self.weights.tolist(), strict=True)]


class Explainer(Protocol):
    """The interface of a method that explains neurons, chosen by ``explanation=...``."""

    def __call__(self, proposing: Part, deciding: Part) -> Explanation:
        """Explains every neuron from two subsets of the images: one proposes concepts, the other may select them."""


def linear_explanation(
    proposing: Part,
    deciding: Part,
    max_concepts: int = 5,
    least_gain: float = 0.02,
    penalty: float = 0.1,
    candidates: int = 20,
) -> Explanation:
    """A sparse signed sum of concepts for each neuron.

    1. Lasso on the standardised scores and activations of ``proposing`` (scikit-learn's coordinate descent on the Gram
       matrix), at ``penalty`` times the smallest penalty that sets every weight to 0. The ``candidates`` concepts with
       the largest absolute weights are proposed.
    2. In that order, a concept is added if it raises the correlation of simulated and true activations on ``deciding``
       by at least ``least_gain``, with least-squares weights from ``proposing``. A neuron for which no concept does so
       has none.
    3. The final weights are least squares on both parts. Their intervals are robust to a misspecified model (White
       1980), e.g. a neuron that responds to either of two concepts; they do not account for the choice of concepts.

    After Oikarinen & Weng, *Linear Explanations for Individual Neurons* (ICML 2024), who propose with GLM-SAGA.

    Memory: two concept x concept and two concept x neuron matrices, and a copy of the scores.

    Args:
        penalty: fraction in (0, 1) of the smallest penalty that sets every weight to 0; smaller proposes more concepts.

    Raises:
        UserError: the parts differ in neurons or concepts, or a parameter is out of range.

    >>> scores = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    >>> activations = (scores[:, [1]] - 0.5 * scores[:, [3]]).float()
    >>> found = linear_explanation(Part(activations[:300], scores[:300]), Part(activations[300:], scores[300:]))
    >>> found.concepts[0, :2].tolist(), bool(found.weights[0, 0] > 0 > found.weights[0, 1])
    ([1, 3], True)
    """
    _check_parameters(max_concepts, least_gain, penalty, candidates)
    _check_parts(proposing, deciding)
    labelling = _both(proposing, deciding)
    mean, spread = _moments(labelling.scores)
    halves = [_Products.of(part, mean, spread) for part in (proposing, deciding)]
    proposed = _candidates(halves[0], penalty, candidates)
    grams = [half.gram[proposed[:, :, None], proposed[:, None, :]] for half in halves]
    cross = [half.cross.t().gather(1, proposed) for half in halves]
    chosen = _greedy(grams, cross, max_concepts, least_gain)
    first = chosen.byte().argsort(dim=1, descending=True, stable=True)[:, :max_concepts]
    concepts = torch.where(chosen.gather(1, first), proposed.gather(1, first), NONE)
    weights, error = _fitted(labelling, mean, spread, concepts)
    heaviest = torch.where(concepts == NONE, -1.0, weights.abs()).argsort(dim=1, descending=True, stable=True)
    concepts, weights, error = (values.gather(1, heaviest) for values in (concepts, weights, error))
    return Explanation(concepts, weights, weights - WIDTH * error, weights + WIDTH * error, mean, spread)


@dataclass(frozen=True)
class LabelExplainer:
    """``explanation=label``: the concept most similar to each neuron, with weight 1; none for constant neurons."""

    similarity: Similarity

    def __call__(self, proposing: Part, deciding: Part) -> Explanation:
        part = _both(proposing, deciding)
        best = self.similarity(part.scores, part.activations).argmax(1)
        concepts = torch.where(constant_neurons(part.activations), NONE, best)[:, None]
        return Explanation.of_weights(concepts, (concepts != NONE).float(), part.scores)


@dataclass(frozen=True)
class BestConceptExplainer:
    """``explanation=best_concept``: the concept with the largest absolute correlation, which is also its weight."""

    def __call__(self, proposing: Part, deciding: Part) -> Explanation:
        part = _both(proposing, deciding)
        correlation = _correlations(part)
        best = correlation.abs().argmax(0)
        concepts = torch.where(constant_neurons(part.activations), NONE, best)[:, None]
        return Explanation.of_weights(concepts, correlation.gather(0, best[None]).t(), part.scores)


@dataclass(frozen=True)
class ConstantExplainer:
    """``explanation=constant``: a baseline, the concept with the highest mean correlation for every neuron."""

    def __call__(self, proposing: Part, deciding: Part) -> Explanation:
        part = _both(proposing, deciding)
        concepts = _correlations(part).mean(1).argmax().expand(part.activations.shape[1], 1)
        return Explanation.of_weights(concepts, torch.ones(concepts.shape), part.scores)


@dataclass(frozen=True)
class LinearExplainer:
    """``explanation=linear``: :func:`linear_explanation` with its parameters."""

    max_concepts: int = 5
    least_gain: float = 0.02
    penalty: float = 0.1
    candidates: int = 20

    def __post_init__(self) -> None:
        _check_parameters(self.max_concepts, self.least_gain, self.penalty, self.candidates)

    def __call__(self, proposing: Part, deciding: Part) -> Explanation:
        return linear_explanation(
            proposing, deciding, self.max_concepts, self.least_gain, self.penalty, self.candidates
        )


class _Products(NamedTuple):
    """Gram and cross-product matrices of standardised columns (float32, divided by N), and the number of images N."""

    gram: Float[Tensor, "concept concept"]
    cross: Float[Tensor, "concept neuron"]
    images: int

    @classmethod
    def of(cls, part: Part, mean: Tensor, spread: Tensor) -> _Products:
        """Products of scores, standardised with the given moments and centred, and of standardised activations."""
        z = ((part.scores - mean) / spread).float()
        z -= z.mean(0)
        images = len(z)
        cross = torch.cat([z.t() @ _standard(block) for block in part.activations.split(1024, 1)], 1)
        return cls(z.t() @ z / images, cross / images, images)


def _candidates(products: _Products, penalty: float, most: int) -> Int64[Tensor, "neuron candidate"]:
    """The concepts with the largest absolute lasso weights of each neuron, in descending order; ties by index."""
    from sklearn.linear_model import lasso_path  # imported here because it takes most of a second

    gram, cross, images = products
    concepts, neurons = cross.shape
    most = min(most, concepts)
    # scikit-learn expects sums over images; given the Gram matrix, it only uses the shape of the data
    dense = np.ascontiguousarray(gram.double().numpy()) * images
    shape, target = np.broadcast_to(np.zeros(1), (images, concepts)), np.zeros(images)
    target[0] = images**0.5  # the norm of a standardised activation; scikit-learn's tolerance is relative to it

    def heaviest(neuron: int) -> Tensor:
        own = cross[:, neuron].double().numpy()
        first = float(np.abs(own).max())
        if first == 0:
            return torch.arange(most)
        _, weights, _ = lasso_path(
            *(shape, target), alphas=[penalty * first], precompute=dense, Xy=own * images, check_input=False, tol=1e-3
        )
        return torch.from_numpy(weights[:, 0]).abs().argsort(descending=True, stable=True)[:most]

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # coordinate descent releases the GIL
        return torch.stack(list(threads.map(heaviest, range(neurons))))


def _greedy(
    grams: Sequence[Float[Tensor, "neuron candidate candidate"]],
    cross: Sequence[Float[Tensor, "neuron candidate"]],
    most: int,
    least_gain: float,
) -> Tensor:
    """Greedy forward selection of candidates, in their order: fitted on the first products, scored on the second."""
    neurons, candidates = cross[0].shape
    chosen = torch.zeros(neurons, candidates, dtype=torch.bool)
    reached = torch.zeros(neurons)
    for candidate in range(candidates):
        tried = chosen.clone()
        tried[:, candidate] = True
        weights = _least_squares(grams[0], cross[0], tried)
        power = torch.einsum("mi,mij,mj->m", weights, grams[1], weights)
        found = torch.where(power > 0, (weights * cross[1]).sum(1) / power.clamp(min=1e-12).sqrt(), 0.0)
        joins = (found >= reached + least_gain) & (chosen.sum(1) < most)
        chosen[joins], reached[joins] = tried[joins], found[joins]
    return chosen


def _least_squares(gram: Tensor, cross: Tensor, chosen: Tensor) -> Float[Tensor, "neuron candidate"]:
    """Least-squares weights of the chosen candidates, 0 for the others."""
    inside = chosen[:, :, None] & chosen[:, None, :]
    eye = torch.eye(gram.shape[1])
    system = torch.where(inside, gram, 0.0) + torch.where(chosen, _RIDGE, 1.0)[:, None, :] * eye
    return torch.linalg.solve(system, torch.where(chosen, cross, 0.0))


def _fitted(
    part: Part, mean: Tensor, spread: Tensor, concepts: Int64[Tensor, "neuron term"]
) -> tuple[Float[Tensor, "neuron term"], Float[Tensor, "neuron term"]]:
    """Least-squares weights and their standard errors; 0 and NaN where there is no concept.

    With z the standardised scores, a the standardised activation, w = (z'z)^-1 z'a and e = a - z w, the influence of
    image i on weight k is ((z'z / N)^-1 z_i)_k e_i + w_k (z_ik² - a_i²) / 2; the second term accounts for standardising
    z and a on the same images. The variance is the mean square of the influence, divided by N.
    """
    images = len(part.scores)
    weights, errors = [], []
    z = (part.scores - mean) / spread
    for start in range(0, len(concepts), _NEURONS):
        picked = concepts[start : start + _NEURONS]
        own = picked != NONE
        x = z[:, picked.clamp(min=0).flatten()].unflatten(1, picked.shape) * own
        a = _standard(part.activations[:, start : start + _NEURONS])
        gram = torch.einsum("nmi,nmj->mij", x, x) / images
        inverse = torch.linalg.inv(gram + torch.where(own, _RIDGE, 1.0)[:, None, :] * torch.eye(x.shape[2]))
        w = torch.einsum("mij,nmj,nm->mi", inverse, x, a) / images
        residual = a - (x * w).sum(2)
        moved = torch.einsum("mij,nmj->nmi", inverse, x) * residual[:, :, None]
        moved += w * (x.square() - a.square()[:, :, None]) / 2
        weights.append(w)
        errors.append(torch.where(own, moved.square().mean(0).div(images).sqrt(), torch.nan))
    return torch.cat(weights), torch.cat(errors)


def _correlations(part: Part) -> Float[Tensor, "concept neuron"]:
    return _Products.of(part, *_moments(part.scores)).cross


def _both(first: Part, second: Part) -> Part:
    return Part(*(torch.cat(pair) for pair in zip(first, second, strict=True)))


def _moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (dividing by N) of each column; the latter is 1 for constant columns."""
    first = columns[0].float()
    spread, mean = torch.std_mean(columns.float() - first, 0, correction=0)  # a constant column becomes exactly zero
    return mean + first, torch.where(spread > 0, spread, 1.0)


def _standard(columns: Tensor) -> Tensor:
    shifted = columns.float() - columns[0].float()
    spread, mean = torch.std_mean(shifted, 0, correction=0)
    return (shifted - mean) / torch.where(spread > 0, spread, 1.0)


def _text(concepts: Sequence[int], weights: Sequence[float], names: Sequence[str]) -> str:
    terms = [(names[c], w) for c, w in zip(concepts, weights, strict=True) if c != NONE]
    if len(terms) == 1:
        return f"{MINUS if terms[0][1] < 0 else ''}{terms[0][0]}"
    text = " ".join(f"{MINUS if w < 0 else '+'} {abs(w):.2f} {name}" for name, w in terms)
    return text.removeprefix("+ ").replace(f"{MINUS} ", MINUS, 1) if text.startswith(MINUS) else text.removeprefix("+ ")


def _check_parameters(max_concepts: int, least_gain: float, penalty: float, candidates: int) -> None:
    if max_concepts < 1 or candidates < 1:
        raise UserError(f"max_concepts={max_concepts}, candidates={candidates}: both must be integers >= 1.")
    if not 0 < penalty < 1:
        raise UserError(f"penalty={penalty} must be between 0 and 1, e.g. 0.1.")
    if not 0 <= least_gain < 1:
        raise UserError(f"least_gain={least_gain} must be a gain in correlation in [0, 1), e.g. 0.02.")


def _check_parts(proposing: Part, deciding: Part) -> None:
    shapes = [(part.activations.shape[1], part.scores.shape[1]) for part in (proposing, deciding)]
    rows = [(len(part.activations), len(part.scores)) for part in (proposing, deciding)]
    if shapes[0] != shapes[1] or any(a != s or a < 3 for a, s in rows):
        raise UserError(
            f"The parts have {rows[0]} and {rows[1]} rows (activations, scores), {shapes[0]} and {shapes[1]} columns "
            "(neurons, concepts). Both need the same columns, and at least 3 images with a row in each matrix."
        )
