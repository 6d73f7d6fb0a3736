"""Combines the edit with a refitted head or recalibrated BatchNorm, and compares with that step alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from emodissect.core.number_format import p_sentence, points
from emodissect.core.statistics import mcnemar
from emodissect.data.images import ImageSet, image_loader
from emodissect.editing.edit import Edit, edited
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.recalibration import batchnorm_behind, recalibrated
from emodissect.models.inference import predict
from emodissect.studies.baselines.baseline import NotAvailable
from emodissect.studies.baselines.head import RefittedHead

WITH_EDIT = "edit_and_"
"""Prefix of the rows that include the edit itself: they are not alternatives to it."""

Row = Callable[[Tensor], dict[str, Any]]
"""Computes the figures of a row of the ladder from logits on test."""


def refitted_head_rows(
    edit: Edit, fitted_on: EditedLogits, on: str, test: EditedLogits, row: Row
) -> list[dict[str, Any]]:
    """The ladder's row for the head refitted behind the edit, compared with the refitted head alone."""
    named = {"name": f"{WITH_EDIT}head", "words": "the edit, then the head refitted", "fitted_on": on, "note": ""}
    try:
        alone, _ = RefittedHead().fit(fitted_on)
        behind, settled = RefittedHead().fit(fitted_on, edit.operation)
    except NotAvailable as reason:
        return [named | {"settled": "", "note": str(reason)}]
    logits = behind(test)
    difference = against(logits, alone(test), test.before.labels)
    return [named | {"settled": f"{settled}; {difference} against the head alone"} | row(logits)]


def recalibrated_rows(edit: Edit, images: ImageSet, test: EditedLogits, row: Row) -> list[dict[str, Any]]:
    """The ladder's rows for BatchNorm behind the layer recalibrated on training images: alone, and after the edit."""
    inference = test.inference
    device = next(inference.network.parameters()).device
    names = batchnorm_behind(inference, test.layer, test.images.images[:4].to(device))
    alone = {"name": "batchnorm", "words": "recalibrating BatchNorm", "fitted_on": "train", "settled": "", "note": ""}
    both = alone | {"name": f"{WITH_EDIT}batchnorm", "words": "the edit, then BatchNorm recalibrated"}
    if not names:
        return [both | {"note": f"no BatchNorm with running statistics lies behind '{test.layer}'"}]
    found = []
    for context in (nullcontext(), edited(inference.network, edit)):
        with context, recalibrated(inference, names, images):
            found.append(predict(inference, image_loader(test.images, 64), device).logits)
    difference = against(found[1], found[0], test.before.labels)
    return [alone | row(found[0]), both | {"settled": f"{difference} against recalibration alone"} | row(found[1])]


def against(logits: Tensor, other: Tensor, labels: Tensor) -> str:
    """The change in accuracy from the other logits with its exact McNemar p-value, as text."""
    right, was = logits.argmax(1) == labels, other.argmax(1) == labels
    gained, lost = int((right & ~was).sum()), int((was & ~right).sum())
    return f"{points((gained - lost) / len(labels))} points, {p_sentence(mcnemar(gained, lost))}"
