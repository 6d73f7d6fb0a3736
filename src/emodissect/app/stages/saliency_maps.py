"""Activation maps for the neuron cards, saliency of chosen images, and accuracy without leaked images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.statistics import wilson
from emodissect.data.datamodule import FaceDataModule, stratified_rows
from emodissect.data.images import ImageSet
from emodissect.dissection.labels import Dissection
from emodissect.models.classifier import Classifier
from emodissect.models.predictions import Predictions
from emodissect.recording.pooling import ChannelsLast
from emodissect.report import Extra


def neuron_maps(
    classifier: Classifier,
    dissection: Dissection,
    probe: ImageSet,
    settings: DictConfig,
    channels_last: ChannelsLast = "auto",
) -> Mapping[tuple[str, int], Tensor]:
    """(layer, neuron) -> activation maps over its top images, for the ``saliency.maps`` clearest neurons of each layer.

    Layers whose output is not a map over the image have none.
    """
    from emodissect.dissection.saliency import (
        top_image_maps,  # captum takes a second to import; runs without maps skip it
    )

    if not settings.maps:
        return {}
    live = dissection.neurons[~dissection.neurons["dead"]]
    clearest = live.sort_values("z", ascending=False).groupby("layer", sort=False).head(int(settings.maps))
    return top_image_maps(classifier.cpu().network, classifier.preprocess, probe, clearest, channels_last=channels_last)


def chosen_ids(images: ImageSet, settings: DictConfig) -> list[int]:
    """``saliency.ids``. Raises UserError for an id that is not among the images."""
    named = [int(i) for i in settings.ids or ()]
    if unknown := sorted(set(named) - set(images.ids.tolist())):
        raise UserError(
            f"saliency.ids names images that do not exist: {', '.join(map(str, unknown[:5]))}. "
            f"The ids range from {int(images.ids.min())} to {int(images.ids.max())}."
        )
    return named


def saliency_maps(
    classifier: Classifier, images: ImageSet, settings: DictConfig, seed: int, ids: Sequence[int] = ()
) -> dict[int, Tensor]:
    """Image id -> gradient saliency, for the images in ``saliency.ids``, else in ``ids``, else for a few per class."""
    from emodissect.dissection.saliency import saliency_of  # as above

    named = chosen_ids(images, settings)
    if not named and not settings.images:
        return {}
    most = int(settings.images)
    some = images.ids[stratified_rows(images.labels, min(most, len(images)), seed)].tolist() if most else []
    chosen = named or [int(i) for i in ids][:most] or some
    network = classifier.cpu().network
    return saliency_of(network, classifier.preprocess, images, chosen, samples=int(settings.samples), seed=seed)


def leaked_accuracy(data: FaceDataModule, outputs: Predictions, split: str = "test") -> pd.DataFrame:
    """Accuracy on a split with and without the images whose exact pixels are also in the training splits.

    Returns:
        columns images, count, accuracy, low, high (Wilson, 95 %); empty if none leaked.
    """
    sources = [source for source in data.fitted_splits if source != split]
    found = [data.audit_report.leaked_into(split, source) for source in sources]
    leaked = torch.isin(outputs.ids, torch.cat(found)) if found else torch.zeros_like(outputs.ids, dtype=torch.bool)
    if not bool(leaked.any()):
        return pd.DataFrame()
    right = outputs.predicted == outputs.labels
    rows: list[dict[str, Any]] = []
    every = torch.ones_like(leaked)
    for name, chosen in ((f"all of {split}", every), ("without leaked", ~leaked), ("leaked only", leaked)):
        correct, count = int(right[chosen].sum()), int(chosen.sum())
        low, high = wilson(correct, count)
        rows.append(
            {"images": name, "count": count, "accuracy": correct / count, "low": float(low), "high": float(high)}
        )
    return pd.DataFrame(rows)


def audit_extras(data: FaceDataModule, outputs: Predictions | None) -> list[Extra]:
    """Sections of the report on the image audit; empty without ``data.audit``."""
    if not data.audit:
        return []
    report = data.audit_report
    faults = pd.DataFrame([{"fault": name.replace("_", " "), "images": n} for name, n in report.counts.items()])
    extras = [Extra("Audit of the images", report.summary(), frame=faults)]
    if outputs is not None and len(frame := leaked_accuracy(data, outputs)):
        where = " and ".join(data.fitted_splits)
        caption = (
            f"Test images whose exact pixels are also in {where} say little about new faces: trust the accuracy "
            "without them."
        )
        if data.clean:
            caption += f" With data.clean=true their copies in {where} are excluded from training."
        extras.append(Extra("With and without leaked images", caption, frame=frame))
    return extras
