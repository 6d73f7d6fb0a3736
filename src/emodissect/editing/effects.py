"""What each neuron does to the network's answers, estimated from many random edits at once; selections by it."""

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
    """The effect of each neuron of a layer on the network's answers.

    Attributes:
        values: change of the mean correct-class margin when the neuron's weights are scaled by `step`, its first order.
        predicts: correlation of the margins that the effects predict with those of random edits that were held out.
        step: of the scaling.
    """

    values: Float[Tensor, " neuron"]
    predicts: float
    step: float


def estimate_effects(kept: EditedLogits, *, draws: int = 2000, step: float = 1.5, seed: int = 0) -> Effects:
    """Regress the correct-class margin on random scalings of all neurons.

    Edits come in pairs: every neuron is scaled by `step` or its inverse at random, then the other way round. With
    m = mean over images of log p(true) - log (1 - p(true)), half of the difference of a pair is free of what is
    symmetric in log scale, and ridge regression (strength by leave-one-out) gives the neurons' parts of it.

    Args:
        draws: random edits, 20 or more.
        step: above 1.

    Source: COAR, Shah et al. 2024 (arXiv 2404.11534), with scalings in place of ablations.
    """
    if draws < 20:
        raise UserError(
            f"{draws} random edits are too few to distinguish neurons: 20 or more are needed, better 2,000."
        )
    if not step > 1:
        raise UserError(f"selection.step={step:g}: a factor above 1 is needed, e.g. 1.5.")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (draws // 2, kept.neurons), generator=generator).double() * 2 - 1
    both = torch.cat([signs, -signs])
    margins = torch.cat(
        [margins_of(kept, [Scaling(step ** row.float()) for row in part]) for part in both.split(_CELLS_AT_ONCE)]
    )
    halves = ((margins[: len(signs)] - margins[len(signs) :]) / 2).numpy()
    # In units of what one neuron could explain alone, so that the same strengths fit every layer.
    scale = max(float(halves.std()), 1e-12)
    # scikit-learn takes a second to import: only what fits something waits for it
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    model = RidgeCV(alphas=len(signs) * np.logspace(-3, 3, 13), fit_intercept=False)
    model.fit(signs.numpy(), halves / scale)
    ridge = RidgeCV(alphas=[model.alpha_], fit_intercept=False)
    foretold = cross_val_predict(ridge, signs.numpy(), halves / scale, cv=KFold(5))
    known = halves.std() > 0 and foretold.std() > 0
    predicts = float(np.corrcoef(foretold, halves)[0, 1]) if known else float("nan")
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
    """How well each neuron's output (mean over positions and views) tells errors from hits: the area under the ROC.

    0.5 is chance, 1 a neuron that is always more active in images that the network gets wrong.

    Raises:
        UserError: the network makes no error, or nothing but errors.

    Source: after NeuronTune (arXiv 2505.24048).
    """
    wrong = (kept.before.predicted != kept.before.labels).numpy()
    errors, hits = int(wrong.sum()), int((~wrong).sum())
    if not errors or not hits:
        raise UserError(f"selection=error needs errors and hits; of {len(wrong)} images the network gets {hits} right.")
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
    """Living neurons of the highest score."""

    needs_images: ClassVar[bool] = True
    share: float = 0.5
    scores: Tensor | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        require_number("selection.share", self.share)
        if not 0 <= self.share <= 1:
            raise UserError(f"selection.share={self.share:g}: a share of the layer in [0, 1] is accepted.")

    @property
    def uses_labels(self) -> bool:
        return False

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        name = type(self).__name__
        if self.scores is None:
            raise UserError(f"selection={name.lower()} looks at images: call {name}().fitted(EditedLogits(...)) first.")
        if len(self.scores) != len(neurons):
            raise UserError(f"The scores are of {len(self.scores)} neurons, and the layer has {len(neurons)}.")
        chosen = torch.zeros(len(neurons), dtype=torch.bool)
        chosen[self.scores.argsort(descending=True, stable=True)[: round(self.share * len(neurons))]] = True
        if "dead" in neurons:
            chosen &= ~torch.from_numpy(neurons["dead"].to_numpy(dtype=bool, copy=True))
        return chosen


@dataclass(frozen=True)
class Effect(_ByScore):
    """The `share` of the layer whose scaling up raises the correct-class margin most, see :func:`estimate_effects`."""

    name: ClassVar[str] = "effect"
    draws: int = 2000
    step: float = 1.5
    seed: int = 0

    def fitted(self, kept: EditedLogits) -> Effect:
        found = estimate_effects(kept, draws=self.draws, step=self.step, seed=self.seed)
        return replace(self, scores=found.values)


@dataclass(frozen=True)
class Error(_ByScore):
    """The `share` of the layer that is most active in images the network gets wrong, see :func:`error_separation`."""

    name: ClassVar[str] = "error"
    share: float = 0.1

    def fitted(self, kept: EditedLogits) -> Error:
        return replace(self, scores=error_separation(kept))
