"""The similarities as values that a configuration names: parameters now, tensors or a recorded layer later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.errors import UserError
from emodissect.similarity.cosines import cos_similarity, cos_similarity_cubed, pearson, row_blocks, transformed
from emodissect.similarity.information import hard_log_likelihood, layer_average, relative_to_layer, soft_log_likelihood
from emodissect.similarity.ranks import random_error, rank_reorder, scaled, top_count
from emodissect.similarity.top import constant_neurons, top_rows

_PRODUCTS = 2**12  # permuted concepts multiplied at a time
_WEIGHTY = 0.01  # share of a concept's sum over the layer above which a neuron's own part is taken out exactly


class Layer(Protocol):
    """What a similarity reads of a recorded layer (``emodissect.recording.LayerActivations``)."""

    @property
    def ids(self) -> Int64[Tensor, " image"]: ...  # ascending
    @property
    def top_ids(self) -> Int64[Tensor, "rank neuron"]: ...
    @property
    def dead(self) -> Bool[Tensor, " neuron"]: ...
    @property
    def values(self) -> Float[Tensor, "image neuron"] | None: ...


class NullBlock(NamedTuple):
    """Similarities of some null draws with some concepts."""

    draws: slice
    concepts: slice
    similarity: Float[Tensor, "draw neuron concept"]


class Similarity(ABC):
    """A similarity with its parameters. ``needs_values``: whether it reads all activations or the top images only."""

    needs_values: ClassVar[bool]

    @abstractmethod
    def __call__(
        self, concept_scores: Float[Tensor, "image concept"], activations: Float[Tensor, "image neuron"]
    ) -> Float[Tensor, "neuron concept"]:
        """Similarity of every neuron with every concept."""

    @abstractmethod
    def of_layer(self, concept_scores: Float[Tensor, "image concept"], layer: Layer) -> Float[Tensor, "neuron concept"]:
        """The same of a recorded layer; the scores' rows are in the order of ``layer.ids``."""

    @abstractmethod
    def null_best(
        self, concept_scores: Float[Tensor, "image concept"], layer: Layer, draws: int, seed: int
    ) -> Float[Tensor, "draw neuron"]:
        """Each neuron's best similarity over the concepts under the null; the same seed gives the same draws again."""


class _FromTop(Similarity):
    """Similarities that need each neuron's top images and nothing else."""

    needs_values: ClassVar[bool] = False
    top_k: int
    lam: float

    @abstractmethod
    def log_likelihood(
        self, concept_scores: Float[Tensor, "image concept"], rows: Int64[Tensor, "rank set"]
    ) -> Float[Tensor, "set concept"]:
        """L of ordered sets of images, before the layer's average is taken off."""

    def __call__(self, concept_scores: Tensor, activations: Tensor) -> Tensor:
        _aligned(concept_scores, len(activations))
        return self.from_top(concept_scores, top_rows(activations, self.top_k), constant_neurons(activations))

    def from_top(
        self,
        concept_scores: Float[Tensor, "image concept"],
        top_rows: Int64[Tensor, "rank neuron"],
        constant: Bool[Tensor, " neuron"] | None = None,
    ) -> Float[Tensor, "neuron concept"]:
        """Similarity from the rows of the top images, most activating first; the first ``top_k`` ranks are read."""
        likelihood = self.log_likelihood(concept_scores, top_rows[: self.top_k])
        return relative_to_layer(likelihood, layer_average(likelihood, constant), self.lam, constant)

    def of_layer(self, concept_scores: Tensor, layer: Layer) -> Tensor:
        _aligned(concept_scores, len(layer.ids))
        return self.from_top(concept_scores, self._rows(layer), layer.dead)

    def null_best(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int) -> Tensor:
        """Of random image sets, each put in the place of each neuron among the layer's others.

        With the neuron itself left in the layer's average, a set would be measured against what the neuron is not: a
        concept that one neuron stands for would be out of every set's reach, and any other concept within it.
        """
        _aligned(concept_scores, len(layer.ids))
        rows = self._rows(layer)
        generator = np.random.default_rng(seed)
        sets = np.stack([generator.choice(len(layer.ids), len(rows), replace=False) for _ in range(draws)], axis=1)
        drawn = self.log_likelihood(concept_scores, torch.from_numpy(sets).to(rows.device))
        null = drawn.new_zeros(draws, len(layer.dead))
        live = (~layer.dead).nonzero()[:, 0]
        if len(live):
            null[:, live] = self._in_place(drawn, self.log_likelihood(concept_scores, rows[:, live])).t()
        return null

    def _in_place(
        self, drawn: Float[Tensor, "draw concept"], own: Float[Tensor, "neuron concept"]
    ) -> Float[Tensor, "neuron draw"]:
        """max_c L_rc - lam (log(sum_(j != m) exp L_jc + exp L_rc) - log M), for every neuron m and draw r.

        A neuron with less than a hundredth of a concept's sum hardly changes it by going: it is given the sum less a
        hundredth, which makes the null larger by at most lam / 100. So only few neurons a concept need their own sum.
        """
        neurons = len(own)
        best = own.new_full((neurons, len(drawn)), -torch.inf)
        of_all = own.new_full((len(drawn),), -torch.inf)
        for concept in range(own.shape[1]):
            ours, theirs = own[:, concept].double(), drawn[:, concept].double()

            def placed(others: Tensor, theirs: Tensor = theirs) -> Tensor:
                return (theirs - self.lam * (torch.logaddexp(others, theirs) - log(neurons))).float()

            total = ours.logsumexp(0)
            share = (ours - total).exp()
            of_all = torch.maximum(of_all, placed(total + log(1 - _WEIGHTY)))
            weighty = (share > _WEIGHTY).nonzero()[:, 0]
            others = total + torch.log1p(-share[weighty])
            first = ours.argmax()  # what is left beside a share near 1 is summed, not subtracted
            others[weighty == first] = torch.cat([ours[:first], ours[first + 1 :]]).logsumexp(0)
            best[weighty] = torch.maximum(best[weighty], placed(others[:, None]))
        return torch.maximum(best, of_all)

    def _rows(self, layer: Layer) -> Int64[Tensor, "rank neuron"]:
        needed = min(self.top_k, len(layer.ids))
        if len(layer.top_ids) < needed:
            raise UserError(
                f"The layer was recorded with its top {len(layer.top_ids)} images, top_k={self.top_k} needs {needed}. "
                f"Record it again with at least {needed}, or take a smaller similarity.top_k."
            )
        return torch.searchsorted(layer.ids, layer.top_ids[:needed].contiguous())


@dataclass(frozen=True)
class SoftWPMI(_FromTop):
    """``soft_wpmi`` with its parameters; constant neurons are left out of the layer's average."""

    top_k: int = 100
    a: float = 10.0
    lam: float = 1.0
    min_prob: float = 1e-7
    p_start: float = 0.998
    p_end: float = 0.97

    def __post_init__(self) -> None:
        _at_least_one(self.top_k)

    def log_likelihood(self, concept_scores: Tensor, rows: Tensor) -> Tensor:
        return soft_log_likelihood(
            concept_scores, rows, a=self.a, min_prob=self.min_prob, p_start=self.p_start, p_end=self.p_end
        )


@dataclass(frozen=True)
class WPMI(_FromTop):
    """``wpmi`` with its parameters; constant neurons are left out of the layer's average."""

    top_k: int = 28
    a: float = 2.0
    lam: float = 0.6
    min_prob: float = 1e-7

    def __post_init__(self) -> None:
        _at_least_one(self.top_k)

    def log_likelihood(self, concept_scores: Tensor, rows: Tensor) -> Tensor:
        return hard_log_likelihood(concept_scores, rows, a=self.a, min_prob=self.min_prob)


class _OfValues(Similarity):
    """Similarities that read every activation."""

    needs_values: ClassVar[bool] = True
    top_k: ClassVar[int | None] = None

    def of_layer(self, concept_scores: Tensor, layer: Layer) -> Tensor:
        _aligned(concept_scores, len(layer.ids))
        return self(concept_scores, _values(layer, self))

    def null_best(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int) -> Tensor:
        """Of activations that are paired with the images anew in each draw, the same way for all neurons."""
        best = torch.full((draws, len(layer.dead)), -torch.inf)
        for block in self.null_blocks(concept_scores, layer, draws, seed):
            best[block.draws] = torch.maximum(best[block.draws], block.similarity.amax(2))
        return best

    @abstractmethod
    def null_blocks(
        self, concept_scores: Float[Tensor, "image concept"], layer: Layer, draws: int, seed: int
    ) -> Iterator[NullBlock]:
        """Similarities under the null, block by block."""


class _Cosine(_OfValues):
    """Cosines of transformed columns: the null pairs each image's activations with another image's scores."""

    _centred: ClassVar[bool]
    _power: ClassVar[int]

    @property
    def _floor(self) -> float:
        return 0.0

    def null_blocks(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int) -> Iterator[NullBlock]:
        _aligned(concept_scores, len(layer.ids))
        values = _values(layer, self)
        images, neurons = values.shape
        constant = constant_neurons(values)
        columns = transformed(concept_scores, self._centred, self._power, self._floor).float()
        squares = torch.zeros(neurons, dtype=torch.float64)
        for _, block in row_blocks(values, self._centred, self._power):
            squares += block.double().square().sum(0)
        norms = squares.sqrt().clamp(min=self._floor)
        scale = torch.where(norms > 0, 1 / norms, 0.0).float()
        if self._centred:
            scale[constant] = 0.0
        generator = np.random.default_rng(seed)
        width = min(columns.shape[1], _PRODUCTS)
        batch = max(_PRODUCTS // columns.shape[1], 1)
        for start in range(0, draws, batch):
            count = min(batch, draws - start)
            orders = torch.from_numpy(np.stack([generator.permutation(images) for _ in range(count)], axis=1))
            for left in range(0, columns.shape[1], width):
                part = columns[:, left : left + width]
                product = torch.zeros(neurons, count * part.shape[1])
                for rows, block in row_blocks(values, self._centred, self._power):
                    product.addmm_(block.t(), part[orders[rows]].flatten(1))
                product *= scale[:, None]
                similarity = product.unflatten(1, (count, -1)).transpose(0, 1)
                yield NullBlock(slice(start, start + count), slice(left, left + part.shape[1]), similarity)


@dataclass(frozen=True)
class CosSimilarity(_Cosine):
    """``cos_similarity``."""

    _centred: ClassVar[bool] = False
    _power: ClassVar[int] = 1

    def __call__(self, concept_scores: Tensor, activations: Tensor) -> Tensor:
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

    def __call__(self, concept_scores: Tensor, activations: Tensor) -> Tensor:
        return cos_similarity_cubed(concept_scores, activations, min_norm=self.min_norm)


@dataclass(frozen=True)
class Pearson(_Cosine):
    """``pearson``."""

    _centred: ClassVar[bool] = True
    _power: ClassVar[int] = 1

    def __call__(self, concept_scores: Tensor, activations: Tensor) -> Tensor:
        return pearson(concept_scores, activations)


@dataclass(frozen=True)
class RankReorder(_OfValues):
    """``rank_reorder`` with its parameters and the seed of its random baseline."""

    p: float = 3.0
    top_fraction: float = 0.05
    scale_p: float = 0.5
    seed: int = 0

    def __call__(self, concept_scores: Tensor, activations: Tensor) -> Tensor:
        return rank_reorder(
            concept_scores,
            activations,
            p=self.p,
            top_fraction=self.top_fraction,
            scale_p=self.scale_p,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def null_blocks(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int) -> Iterator[NullBlock]:
        _aligned(concept_scores, len(layer.ids))
        values = _values(layer, self)
        n = top_count(len(values), self.top_fraction)
        top = values.gather(0, top_rows(values, n)).float().t().contiguous()
        ascending = top.flip(1)
        baseline = random_error(ascending, self.p, torch.Generator().manual_seed(self.seed))
        generator = np.random.default_rng(seed)
        for draw in range(draws):
            rows = torch.from_numpy(generator.choice(len(values), n, replace=False))
            for concept in range(concept_scores.shape[1]):
                scores = concept_scores[rows, concept].float()
                error = (top[:, scores.argsort()] - ascending).abs_().pow_(self.p).mean(1)
                similarity = scaled(error, baseline, scores.mean(), self.scale_p)
                yield NullBlock(slice(draw, draw + 1), slice(concept, concept + 1), similarity[None, :, None])


def _values(layer: Layer, similarity: Similarity) -> Float[Tensor, "image neuron"]:
    if layer.values is None:
        raise UserError(
            f"{type(similarity).__name__} reads every activation, and the layer was recorded with its top images only. "
            "Record it with keep_values=True."
        )
    return layer.values


def _aligned(concept_scores: Tensor, images: int) -> None:
    if len(concept_scores) != images:
        raise UserError(
            f"Concept scores of {len(concept_scores)} images, activations of {images}: both must be of the same images "
            "in the same order."
        )


def _at_least_one(top_k: int) -> None:
    if top_k < 1:
        raise UserError(f"top_k={top_k}: at least one image. The usual values: soft_wpmi 100, wpmi 28.")
