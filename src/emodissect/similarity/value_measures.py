"""Similarities that need all activations, and their null distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.core import ranking
from emodissect.core.errors import UserError
from emodissect.core.progress import tracked
from emodissect.similarity.cosines import cos_similarity, cos_similarity_cubed, pearson, row_blocks, transformed
from emodissect.similarity.measures import Layer, Similarity, require_aligned
from emodissect.similarity.rank_order import random_error, rank_reorder, scaled, top_count
from emodissect.similarity.top import alike, by_ticket, constant_neurons, filled, images_ordered, top_rows

_PRODUCTS = 2**12  # permuted concepts multiplied at a time
_SORTED = 2**22  # scores sorted at a time: 16 MiB, and 32 MiB of order
_REORDERED = 2**19  # re-ordered activations at a time: 2 MiB, which fit in cache


class ValueSimilarity(Similarity):
    """Base of the similarities that need all activations; your own only has to define ``__call__``.

    Each draw of the null permutes the images of the concept scores, in the same way for all neurons.
    """

    needs_values: ClassVar[bool] = True
    top_k: ClassVar[int | None] = None

    def of_layer(self, concept_scores: Tensor, layer: Layer) -> Tensor:
        require_aligned(concept_scores, len(layer.ids))
        return self(concept_scores, _values(layer, self), layer.ids)

    def null_best(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int, progress: str = "") -> Tensor:
        generator, values = np.random.default_rng(seed), _values(layer, self)
        best = torch.empty(draws, values.shape[1])
        for draw in tracked(range(draws), progress):
            order = torch.from_numpy(generator.permutation(len(concept_scores)))
            best[draw] = self(concept_scores[order], values, layer.ids).amax(1)
        return best


class _Cosine(ValueSimilarity):
    """Base of the cosines of transformed columns, with a faster null by permuted matrix products."""

    _centred: ClassVar[bool]
    _power: ClassVar[int]

    @property
    def _floor(self) -> float:
        return 0.0

    def null_best(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int, progress: str = "") -> Tensor:
        require_aligned(concept_scores, len(layer.ids))
        values = _values(layer, self)
        images, neurons = values.shape
        constant = constant_neurons(values)
        columns = torch.empty(concept_scores.shape)  # in blocks: 20,000 concepts in float64 would take gigabytes
        for part, scores in zip(columns.split(_PRODUCTS, 1), concept_scores.split(_PRODUCTS, 1), strict=True):
            part.copy_(transformed(scores, self._centred, self._power, self._floor))
        squares = torch.zeros(neurons, dtype=torch.float64)
        for _, block in row_blocks(values, self._centred, self._power):
            squares += block.double().square().sum(0)
        norms = squares.sqrt().clamp(min=self._floor)
        scale = torch.where(norms > 0, 1 / norms, 0.0).float()
        if self._centred:
            scale[constant] = 0.0
        generator = np.random.default_rng(seed)
        batch = max(_PRODUCTS // columns.shape[1], 1)
        best = torch.full((draws, neurons), -torch.inf)
        for start in tracked(range(0, draws, batch), progress):
            drawn = best[start : start + batch]
            orders = torch.from_numpy(np.stack([generator.permutation(images) for _ in drawn], axis=1))
            for part in columns.split(_PRODUCTS, dim=1):
                product = torch.zeros(neurons, len(drawn) * part.shape[1])
                for rows, block in row_blocks(values, self._centred, self._power):
                    product.addmm_(block.t(), part[orders[rows]].flatten(1))
                similarity = (product * scale[:, None]).unflatten(1, (len(drawn), -1))
                torch.maximum(drawn, similarity.amax(2).t(), out=drawn)
        return best


@dataclass(frozen=True)
class CosSimilarity(_Cosine):
    """``cos_similarity``."""

    _centred: ClassVar[bool] = False
    _power: ClassVar[int] = 1

    def __call__(self, concept_scores: Tensor, activations: Tensor, ids: Tensor | None = None) -> Tensor:
        return cos_similarity(concept_scores, activations)


@dataclass(frozen=True)
class CosSimilarityCubed(_Cosine):
    """``cos_similarity_cubed`` with its parameter."""

    min_norm: float = 1e-3
    _centred: ClassVar[bool] = True
    _power: ClassVar[int] = 3

    @property
    def _floor(self) -> float:
        return self.min_norm

    def __call__(self, concept_scores: Tensor, activations: Tensor, ids: Tensor | None = None) -> Tensor:
        return cos_similarity_cubed(concept_scores, activations, min_norm=self.min_norm)


@dataclass(frozen=True)
class Pearson(_Cosine):
    """``pearson``."""

    _centred: ClassVar[bool] = True
    _power: ClassVar[int] = 1

    def __call__(self, concept_scores: Tensor, activations: Tensor, ids: Tensor | None = None) -> Tensor:
        return pearson(concept_scores, activations)


@dataclass(frozen=True)
class RankReorder(ValueSimilarity):
    """``rank_reorder`` with its parameters and the seed of its random baseline."""

    p: float = 3.0
    top_fraction: float = 0.05
    scale_p: float = 0.5
    seed: int = 0

    def __call__(self, concept_scores: Tensor, activations: Tensor, ids: Tensor | None = None) -> Tensor:
        return rank_reorder(
            concept_scores,
            activations,
            p=self.p,
            top_fraction=self.top_fraction,
            scale_p=self.scale_p,
            generator=torch.Generator().manual_seed(self.seed),
            ids=ids,
        )

    def null_best(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int, progress: str = "") -> Tensor:
        require_aligned(concept_scores, len(layer.ids))
        values = _values(layer, self)
        n = top_count(len(values), self.top_fraction)
        top = values.gather(0, top_rows(values, n, layer.ids)).float()
        ascending = top.flip(0)
        baseline = random_error(ascending.t().contiguous(), self.p, torch.Generator().manual_seed(self.seed))
        groups = alike(images_ordered(top, layer.minimum))
        order = by_ticket(len(values), layer.ids)
        place = order.argsort()
        generator = np.random.default_rng(seed)
        best = torch.full((draws, top.shape[1]), -torch.inf)
        for draw in tracked(range(draws), progress):
            images = torch.from_numpy(generator.choice(len(values), n, replace=False))
            for ordered, neurons in groups.items():
                rows = filled(images[:, None], ordered, order)[:, 0]
                ranks = place[rows].argsort()  # images in the order of their tickets, like the neuron's own
                drawn = _Reordered(top[ranks][:, neurons], ascending[:, neurons], baseline[neurons])
                for part in concept_scores.split(max(_SORTED // n, 1), dim=1):
                    similarity = drawn.best(part[rows[ranks]].t().float().contiguous(), self.p, self.scale_p)
                    best[draw, neurons] = torch.maximum(best[draw, neurons], similarity)
        return best


class _Reordered(NamedTuple):
    """Top activations of some neurons assigned to images; the same in ascending order; their random-order error."""

    given: Float[Tensor, "image neuron"]
    ascending: Float[Tensor, "image neuron"]
    baseline: Float[Tensor, " neuron"]

    def best(self, scores: Float[Tensor, "concept image"], p: float, scale_p: float) -> Float[Tensor, " neuron"]:
        """The best similarity over the concepts."""
        orders, means = ranking.stable_order(scores), scores.mean(1)
        ranks, neurons = self.given.shape
        best = torch.full((neurons,), -torch.inf)
        wide = min(neurons, max(_REORDERED // ranks, 16))
        for left in range(0, neurons, wide):
            columns = slice(left, left + wide)
            given, ascending = self.given[:, columns].contiguous(), self.ascending[:, columns].contiguous()
            step = max(_REORDERED // (ranks * wide), 1)
            for start in range(0, len(orders), step):
                some = orders[start : start + step]
                reordered = given.index_select(0, some.flatten()).unflatten(0, (len(some), ranks))
                error = reordered.sub_(ascending).abs_().pow_(p).mean(1)
                similarity = scaled(error, self.baseline[columns], means[start : start + step, None], scale_p).amax(0)
                torch.maximum(best[columns], similarity, out=best[columns])
        return best


def _values(layer: Layer, similarity: Similarity) -> Float[Tensor, "image neuron"]:
    if layer.values is None:
        raise UserError(
            f"{type(similarity).__name__} needs all activations, and the layer was recorded with its top images only. "
            "Record it with keep_values=True."
        )
    return layer.values
