"""Similarities that only need each neuron's top images, and their null distribution."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import log
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.progress import tracked
from emodissect.similarity.information import hard_log_likelihood, layer_average, relative_to_layer, soft_log_likelihood
from emodissect.similarity.measures import Layer, Similarity, require_aligned
from emodissect.similarity.top import alike, by_ticket, constant_neurons, filled, images_ordered, top_rows

_CONCEPTS = 64  # concepts summed in float64 at a time
_WEIGHTY = 0.01  # share of a concept's sum over the layer above which a neuron's own term is removed exactly


class _FromTop(Similarity):
    """Base of the similarities that only need each neuron's top images."""

    needs_values: ClassVar[bool] = False
    top_k: int
    lam: float

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UserError(f"top_k={self.top_k}: must be an integer >= 1; usual values: soft_wpmi 100, wpmi 28.")

    @abstractmethod
    def log_likelihood(
        self, concept_scores: Float[Tensor, "image concept"], rows: Int64[Tensor, "rank set"]
    ) -> Float[Tensor, "set concept"]:
        """L of ordered sets of images, before subtracting the layer's average; may omit a constant that cancels."""

    def __call__(self, concept_scores: Tensor, activations: Tensor, ids: Tensor | None = None) -> Tensor:
        require_aligned(concept_scores, len(activations))
        return self.from_top(concept_scores, top_rows(activations, self.top_k, ids), constant_neurons(activations))

    def from_top(
        self,
        concept_scores: Float[Tensor, "image concept"],
        top_rows: Int64[Tensor, "rank neuron"],
        constant: Bool[Tensor, " neuron"] | None = None,
    ) -> Float[Tensor, "neuron concept"]:
        """Similarity from the rows of the top images, most activating first; uses the first ``top_k`` ranks."""
        likelihood = self.log_likelihood(concept_scores, top_rows[: self.top_k])
        return relative_to_layer(likelihood, layer_average(likelihood, constant), self.lam, constant)

    def of_layer(self, concept_scores: Tensor, layer: Layer) -> Tensor:
        require_aligned(concept_scores, len(layer.ids))
        return self.from_top(concept_scores, self._rows(layer), layer.dead)

    def null_best(self, concept_scores: Tensor, layer: Layer, draws: int, seed: int, progress: str = "") -> Tensor:
        """The best similarities of random image sets, each of which replaces each neuron in the layer.

        If the neuron itself were kept in the layer's average, the comparison would be unfair: no set could reach a
        concept that only this neuron detects. For a neuron that is above its minimum on fewer than top_k images, the
        remaining ranks of the sets are filled like its own.
        """
        require_aligned(concept_scores, len(layer.ids))
        rows = self._rows(layer)
        generator = np.random.default_rng(seed)
        sets = torch.from_numpy(
            np.stack([generator.choice(len(layer.ids), len(rows), replace=False) for _ in range(draws)], axis=1)
        ).to(rows.device)
        order = by_ticket(len(layer.ids), layer.ids).to(rows.device)
        live = (~layer.dead).nonzero()[:, 0]
        own = self.log_likelihood(concept_scores, rows[:, live]) if len(live) else concept_scores.new_zeros(0, 1)
        total = torch.cat([part.double().logsumexp(0) for part in own.split(_CONCEPTS, dim=1)])
        null = own.new_zeros(draws, len(layer.dead))
        groups = alike(images_ordered(layer.top_values[: len(rows), live], layer.minimum[live]))
        for ordered, members in tracked(list(groups.items()), progress):
            drawn = self.log_likelihood(concept_scores, filled(sets, ordered, order))
            null[:, live[members]] = self._in_place(drawn, own, total, members).t()
        return null

    def _in_place(
        self,
        drawn: Float[Tensor, "draw concept"],
        own: Float[Tensor, "neuron concept"],
        total: Float[Tensor, " concept"],
        members: Int64[Tensor, " member"],
    ) -> Float[Tensor, "member draw"]:
        """max_c L_rc - lam (log(sum_(j != m) exp L_jc + exp L_rc) - log M), for every member m and draw r.

        Removing a neuron with less than a hundredth of a concept's sum hardly changes it: the sum minus a hundredth is
        used instead, which increases the null by at most about lam / 100. So only a few neurons per concept need their
        own sum.

        Args:
            own: L of the layer's live neurons.
            total: log sum_j exp L_jc.
            members: the neurons to score.
        """
        neurons = len(own)

        def placed(others: Tensor, theirs: Tensor) -> Tensor:
            return (theirs - self.lam * (torch.logaddexp(others, theirs) - log(neurons))).float()

        of_all = torch.cat(
            [
                placed(sums + log(1 - _WEIGHTY), theirs.double()).amax(1, keepdim=True)
                for sums, theirs in zip(total.split(_CONCEPTS), drawn.split(_CONCEPTS, dim=1), strict=True)
            ],
            dim=1,
        ).amax(1)
        best = of_all.repeat(len(members), 1)
        share = (own[members] - total.to(own)).exp()
        for concept in (share > _WEIGHTY).any(0).nonzero()[:, 0].tolist():
            ours = own[:, concept].double()
            weighty = (share[:, concept] > _WEIGHTY).nonzero()[:, 0]
            others = total[concept] + torch.log1p(-(ours[members[weighty]] - total[concept]).exp())
            first = int(ours.argmax())  # for a share near 1, sum the others instead of subtracting
            others[members[weighty] == first] = torch.cat([ours[:first], ours[first + 1 :]]).logsumexp(0)
            best[weighty] = torch.maximum(best[weighty], placed(others[:, None], drawn[:, concept].double()))
        return best

    def _rows(self, layer: Layer) -> Int64[Tensor, "rank neuron"]:
        needed = min(self.top_k, len(layer.ids))
        if len(layer.top_ids) < needed:
            raise UserError(
                f"The layer was recorded with its top {len(layer.top_ids)} images, top_k={self.top_k} needs {needed}. "
                f"Record it again with at least {needed}, or use a smaller similarity.top_k."
            )
        return torch.searchsorted(layer.ids, layer.top_ids[:needed].contiguous())


@dataclass(frozen=True)
class SoftWPMI(_FromTop):
    """``soft_wpmi`` with its parameters; constant neurons are excluded from the layer's average."""

    top_k: int = 100
    a: float = 10.0
    lam: float = 1.0
    min_prob: float = 1e-7
    p_start: float = 0.998
    p_end: float = 0.97

    def log_likelihood(self, concept_scores: Tensor, rows: Tensor) -> Tensor:
        return soft_log_likelihood(
            *(concept_scores, rows),
            a=self.a,
            min_prob=self.min_prob,
            p_start=self.p_start,
            p_end=self.p_end,
            constant=self.lam != 1,
        )


@dataclass(frozen=True)
class WPMI(_FromTop):
    """``wpmi`` with its parameters; constant neurons are excluded from the layer's average."""

    top_k: int = 28
    a: float = 2.0
    lam: float = 0.6
    min_prob: float = 1e-7

    def log_likelihood(self, concept_scores: Tensor, rows: Tensor) -> Tensor:
        return hard_log_likelihood(concept_scores, rows, a=self.a, min_prob=self.min_prob)
