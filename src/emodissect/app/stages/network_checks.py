"""Checks of a network's outputs before they are used: logits, class order, determinism."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from emodissect.app.session import Session
from emodissect.core.errors import UserError
from emodissect.core.evaluation_mode import evaluating
from emodissect.core.number_format import percent
from emodissect.data.datamodule import stratified_rows
from emodissect.data.images import image_loader
from emodissect.models.class_order import better_order
from emodissect.models.classifier import Classifier
from emodissect.models.inference import predict
from emodissect.models.network_output import probabilities_in, unsteady

log = logging.getLogger(__name__)

_CHECKED_IMAGES = 16
_ORDER_IMAGES = 256


def some_images(run: Session, count: int) -> Tensor:
    """A few evenly spaced images of the first split that is not empty."""
    splits = run.data.splits
    images = next(split.images for split in (splits.val, splits.train, splits.test) if len(split))
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


def check_answers(classifier: Classifier, run: Session) -> None:
    """Warn about outputs that are not logits, are random, or depend on the batch.

    Raises:
        UserError: NaN among the outputs; in an edit study, outputs that differ from pass to pass or batch to batch.
    """
    images, name = some_images(run, _CHECKED_IMAGES), type(classifier.network).__name__
    if not classifier.knows_classes or len(images) < 2:
        return
    with evaluating(classifier), torch.no_grad():
        wrong, kind = unsteady(classifier, images), probabilities_in(classifier(images))
    if wrong is not None and ("NaN" in wrong or run.cfg.task_name == "edit"):
        raise UserError(
            f"{name} cannot be evaluated: {wrong}. Results would be meaningless: check the network and its weights."
        )
    if wrong is not None:
        log.warning("%s: %s. Its metrics change from run to run, or with data.eval_batch_size.", name, wrong)
    if kind is not None:
        log.warning(
            "%s gives probabilities, not logits: %s. Accuracy is unaffected; loss, NLL, calibration and edits of the "
            "last layer need logits. Remove the softmax or sigmoid from the end of its forward pass.",
            *(name, kind),
        )


def report_class_order(classifier: Classifier, run: Session) -> None:
    """Warn if a sample of the validation images suggests another class order than the config's."""
    val = run.data.splits.val
    if not classifier.knows_classes or not val.labelled:
        return
    val = val.subset(stratified_rows(val.labels, min(_ORDER_IMAGES, len(val)), seed=0))
    found = predict(classifier, image_loader(val, run.data.eval_batch_size))
    better = better_order(found.logits, found.labels, classifier.class_names, classifier.hparams["class_order"])
    if better is not None:
        log.warning(
            "The outputs seem to be in another class order: on %d validation images the accuracy is %s in the given "
            "order and %s in another. If the network was trained on that order, set 'model.class_order=[%s]'.",
            *(len(val), percent(better.accuracy, 1), percent(better.best, 1), ", ".join(better.class_order)),
        )
