"""Learns a scale and shift for each neuron of the edited layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import STRENGTHS, learn_scale
from emodissect.studies.baselines.baseline import Predictor


@dataclass(frozen=True)
class LearnedScale:
    """A scale and shift per neuron, regularised towards no change; strength chosen by cross-validation.

    Source: SSF, Lian et al. 2022 (arXiv 2210.08823); see :func:`emodissect.editing.learned.learn_scale`.
    """

    name: ClassVar[str] = "learned_scale"
    words: ClassVar[str] = "a learned scale and shift per neuron"
    is_fitted: ClassVar[bool] = True
    shift: bool = True
    strengths: Sequence[float] = STRENGTHS
    iterations: int = 25
    seed: int = 0

    def fit(self, kept: EditedLogits) -> tuple[Predictor, str]:
        operation, strength = learn_scale(
            kept, shift=self.shift, strengths=tuple(self.strengths), iterations=self.iterations, seed=self.seed
        )
        settled = "no change is best" if math.isinf(strength) else f"strength {strength:g}"
        return lambda other: other.logits([operation])[0], settled
