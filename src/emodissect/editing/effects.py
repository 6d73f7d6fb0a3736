"""Estimates each neuron's effect on the network's predictions, and selects neurons by such scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor, nn

from emodissect.core.errors import UserError, require_number
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.operations import Scaling

_CELLS_AT_ONCE = 250
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Effects:
    """The effect of each neuron of a layer on the network's predictions.

    Attributes:
        values: first-order change in the mean correct-class margin when the neuron's weights are scaled by `step`.
        predicts: correlation between predicted and actual margins of held-out random edits.
        step: scaling factor.
    """

    values: Float[Tensor, " neuron"]
    predicts: float
    step: float


def estimate_effects(kept: EditedLogits, *, draws: int = 2000, step: float = 1.5, seed: int = 0) -> Effects:
    """Regress the correct-class margin on random scalings of all neurons.

    Edits come in pairs: every neuron is scaled by `step` or its inverse at random, then by the reciprocal. With
    m = mean over images of log p(true) - log (1 - p(true)), half the difference within a pair cancels all terms that
    are even in log scale; ridge regression (regularisation by leave-one-out) splits it into one effect per neuron.

    Args:
        draws: number of random edits, 20 or more.
        step: scaling factor, above 1.

    Source: COAR, Shah et al. 2024 (arXiv 2404.11534), with scalings in place of ablations.
    """
    if draws < 20:
        raise UserError(f"{draws} random edits are too few to distinguish neurons: use at least 20, better 2,000.")
    if not step > 1:
        raise UserError(f"selection.step={step:g} must be a factor above 1, e.g. 1.5.")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (draws // 2, kept.neurons), generator=generator).double() * 2 - 1
    both = torch.cat([signs, -signs])
    margins = torch.cat(
        [margins_of(kept, [Scaling(step ** row.float()) for row in part]) for part in both.split(_CELLS_AT_ONCE)]
    )
    halves = ((margins[: len(signs)] - margins[len(signs) :]) / 2).numpy()
    # Standardised, so that the same regularisation strengths suit every layer.
    scale = max(float(halves.std()), 1e-12)
    # imported here because scikit-learn takes a second to import
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    model = RidgeCV(alphas=len(signs) * np.logspace(-3, 3, 13), fit_intercept=False)
    model.fit(signs.numpy(), halves / scale)
    ridge = RidgeCV(alphas=[model.alpha_], fit_intercept=False)
    predicted = cross_val_predict(ridge, signs.numpy(), halves / scale, cv=KFold(5))
    known = halves.std() > 0 and predicted.std() > 0
    predicts = float(np.corrcoef(predicted, halves)[0, 1]) if known else float("nan")
    return Effects(torch.from_numpy(model.coef_ * scale).float(), predicts, step)


def margins_of(kept: EditedLogits, operations: list[Scaling]) -> Float[Tensor, " cell"]:
    """Mean over images of log p(true) - log (1 - p(true)) under each operation."""
    labels = kept.before.labels
    found = []
    for logits in kept.logits(operations):
        true = logits.double().gather(1, labels[:, None])
        others = logits.double().scatter(1, labels[:, None], -torch.inf)
        found.append((true.squeeze(1) - others.logsumexp(1)).mean())
    return torch.stack(found)


def error_separation(kept: EditedLogits) -> Float[Tensor, " neuron"]:
    """How well each neuron's output (mean over positions and views) separates errors from correct images: ROC AUC.

    0.5 is chance; 1 is a neuron that is always more active on images that the network gets wrong.

    Raises:
        UserError: all predictions are correct, or all are wrong.

    Source: after NeuronTune (arXiv 2505.24048).
    """
    wrong = (kept.before.predicted != kept.before.labels).numpy()
    errors, hits = int(wrong.sum()), int((~wrong).sum())
    if not errors or not hits:
        raise UserError(
            f"selection=error needs both errors and correct predictions; the network gets {hits} of {len(wrong)} "
            "images right."
        )
    ranks = rankdata(pooled_outputs(kept).double().numpy(), axis=0)
    return torch.from_numpy((ranks[wrong].sum(0) - errors * (errors + 1) / 2) / (errors * hits))


def pooled_outputs(kept: EditedLogits) -> Float[Tensor, "image neuron"]:
    """The layer's output, averaged over positions and views."""
    return torch.cat([_pooled(kept, rows) for rows in torch.arange(len(kept.before.labels)).split(_ROWS_AT_ONCE)])


def _pooled(kept: EditedLogits, rows: Tensor) -> Float[Tensor, "image neuron"]:
    outputs = kept.outputs(rows).detach().cpu()
    return outputs.reshape(len(rows), -1, kept.neurons, outputs[0, 0].numel()).mean((1, 3))


@dataclass(frozen=True)
class _ByScore:
    """The `share` of the layer with the highest scores, without dead neurons."""

    needs_images: ClassVar[bool] = True
    share: float = 0.5
    scores: Tensor | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        require_number("selection.share", self.share)
        if not 0 <= self.share <= 1:
            raise UserError(f"selection.share={self.share:g} must be a fraction of the layer, in [0, 1].")

    @property
    def uses_labels(self) -> bool:
        return False

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        name = type(self).__name__
        if self.scores is None:
            raise UserError(f"selection={name.lower()} needs images: call {name}().fitted(EditedLogits(...)) first.")
        if len(self.scores) != len(neurons):
            raise UserError(f"There are scores for {len(self.scores)} neurons, but the layer has {len(neurons)}.")
        chosen = torch.zeros(len(neurons), dtype=torch.bool)
        chosen[self.scores.argsort(descending=True, stable=True)[: round(self.share * len(neurons))]] = True
        if "dead" in neurons:
            chosen &= ~torch.from_numpy(neurons["dead"].to_numpy(dtype=bool, copy=True))
        return chosen


@dataclass(frozen=True)
class Effect(_ByScore):
    """The `share` of the layer whose upscaling raises the correct-class margin most, see :func:`estimate_effects`."""

    name: ClassVar[str] = "effect"
    draws: int = 2000
    step: float = 1.5
    seed: int = 0

    def fitted(self, kept: EditedLogits) -> Effect:
        found = estimate_effects(kept, draws=self.draws, step=self.step, seed=self.seed)
        return replace(self, scores=found.values)


@dataclass(frozen=True)
class Error(_ByScore):
    """The `share` of the layer that is most active on images the network gets wrong, see :func:`error_separation`."""

    name: ClassVar[str] = "error"
    share: float = 0.1

    def fitted(self, kept: EditedLogits) -> Error:
        return replace(self, scores=error_separation(kept))
