"""Refits the last layer, e.g. on images held out from training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from emodissect.data.datamodule import stratified_rows
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.learned import folds_of
from emodissect.editing.operations import Operation
from emodissect.studies.baselines.baseline import NotAvailable, Predictor

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_ABSENT = -100.0  # minimum log-probability; also that of classes without an image in the fit


@dataclass(frozen=True)
class RefittedHead:
    """Logistic regression on the inputs of the last linear layer, its regularisation chosen by cross-validation.

    Source: DFR, Kirichenko et al. 2023 (arXiv 2204.02937).

    Args:
        strengths: inverse regularisation strengths C to try, on standardised features.
        folds: number of cross-validation folds.
        most: maximum number of images to fit on, stratified by class.
    """

    name: ClassVar[str] = "head"
    words: ClassVar[str] = "refitting the head"
    is_fitted: ClassVar[bool] = True
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    folds: int = 3
    most: int = 10_000
    seed: int = 0

    def fit(self, kept: EditedLogits, operation: Operation | None = None) -> tuple[Predictor, str]:
        """As :meth:`Baseline.fit`; with an operation, the head is fitted behind the edited layer."""
        head = head_of(kept)
        features, labels = kept.inputs_of(head, operation), kept.before.labels
        rows = torch.arange(len(labels))
        if len(labels) > self.most:
            rows = stratified_rows(labels, self.most, self.seed)
        model, strength = self._chosen(features[rows], labels[rows])
        classes = kept.before.logits.shape[1]

        def logits(other: EditedLogits) -> Float[Tensor, "image class"]:
            return _log_probabilities(model, other.inputs_of(head, operation), classes)

        return logits, f"C = {strength:g}"

    def _chosen(
        self, features: Float[Tensor, "image feature"], labels: Int64[Tensor, " image"]
    ) -> tuple[Pipeline, float]:
        from sklearn.metrics import log_loss

        losses = dict.fromkeys(self.strengths, 0.0)
        known = labels.unique().numpy()
        if len(self.strengths) > 1:
            for train, held_out in folds_of(labels, self.folds, self.seed):
                for strength in self.strengths:
                    model = _fitted(features[train], labels[train], strength)
                    found = _log_probabilities(model, features[held_out], int(known.max()) + 1)[:, known]
                    losses[strength] += log_loss(labels[held_out].numpy(), found.softmax(1).numpy(), labels=known)
        strength = min(losses, key=lambda tried: losses[tried])
        return _fitted(features, labels, strength), strength


def head_of(kept: EditedLogits) -> str:
    """Path of the network's last linear layer.

    Raises:
        NotAvailable: the network's logits are not that layer's output.
    """
    modules = kept.inference.network.named_modules()
    linear = [(name, module) for name, module in modules if isinstance(module, nn.Linear)]
    if not linear:
        raise NotAvailable("the network has no linear layer")
    name, head = linear[-1]
    features = kept.inputs_of(name)
    if features.ndim != 2:
        raise NotAvailable("the network's last linear layer is not its head")
    with torch.no_grad():
        logits = head(features.to(head.weight)).float().cpu()
    before = kept.before.logits
    # Views are averaged already and classes may be in a different order, so the rows are sorted before comparing.
    same = logits.shape == before.shape and torch.allclose(logits.sort(1).values, before.sort(1).values, atol=1e-3)
    if not same:
        raise NotAvailable("the network's last linear layer does not output its logits")
    return name


def _fitted(features: Tensor, labels: Tensor, strength: float) -> Pipeline:
    # imported here because scikit-learn takes a second to import, and cached studies do not need it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100))
    # Many small matrix products: on a busy machine, several threads took twenty times as long as one.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the fits that matter are strongly regularised
        return model.fit(features.numpy(), labels.numpy())


def _log_probabilities(model: Pipeline, features: Tensor, classes: int) -> Float[Tensor, "image class"]:
    logits = torch.full((len(features), classes), _ABSENT)
    with np.errstate(divide="ignore"):  # log 0 = -inf
        found = torch.from_numpy(model.predict_log_proba(features.numpy())).float()
    logits[:, torch.from_numpy(model.classes_)] = found.clamp_min(_ABSENT)
    return logits
