"""Further facts for the neurons' cards: concept profile, activation by class, effect on the logits."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from emodissect.app.session import Session
from emodissect.app.stages.classifier import Trained
from emodissect.app.stages.dissection import Dissected, Plan
from emodissect.core.tensor_files import save_tensors
from emodissect.data.datamodule import stratified_rows
from emodissect.data.images import ImageSet
from emodissect.dissection.dissect import record_layers
from emodissect.dissection.responses import Responses, by_class, logit_effects
from emodissect.editing.edit import Edit
from emodissect.editing.operations import Scaling
from emodissect.recording import ActivationCollector

log = logging.getLogger(__name__)

IMAGES = 700
"""Number of probe images for the activations by class, where not all activations are kept."""
EFFECT_IMAGES = 140
"""Number of probe images for the effects on the logits."""


def with_facts(run: Session, plan: Plan, trained: Trained, found: Dissected) -> Dissected:
    """Add each neuron's concept profile and responses by class, cached."""
    key = {
        "labels": found.key,
        "images": [IMAGES, EFFECT_IMAGES, run.cfg.seed],
        "classes": list(run.data.splits.class_names),
    }

    def write(folder: Path) -> None:
        profiles = {layer: torch.from_numpy(v.copy()) for layer, v in _profiles(run, plan, found).items()}
        save_tensors(profiles, folder / "profiles.safetensors")
        for layer, responses in _responses(run, plan, trained, found).items():
            responses.save(folder / f"{layer}.safetensors")

    def read(folder: Path) -> Dissected:
        profiles = {layer: value.numpy() for layer, value in load_file(folder / "profiles.safetensors").items()}
        responses = {layer: Responses.load(folder / f"{layer}.safetensors") for layer in found.activations}
        return replace(found, profiles=profiles, responses=responses)

    return run.made("neuron-facts", key, write, read)


def _profiles(run: Session, plan: Plan, found: Dissected) -> dict[str, np.ndarray]:
    if run.cfg.labels_dir:  # given labels come from other scores
        return {}
    return {
        layer: plan.measure.of_layer(found.scores.at(activations.ids), activations).float().numpy()
        for layer, activations in found.activations.items()
    }


def _responses(run: Session, plan: Plan, trained: Trained, found: Dissected) -> dict[str, Responses]:
    probe, classifier = plan.probe, trained.classifier.cpu()
    classes = len(run.data.splits.class_names)
    some = _some(probe, IMAGES, run.cfg.seed)
    recorded = {layer: (a.values, probe.labels[probe.rows_of(a.ids)]) for layer, a in found.activations.items()}
    missing = [layer for layer, (values, _) in recorded.items() if values is None]
    effects: dict[str, Tensor] = {}
    with classifier.preprocess.single():
        if missing:
            collector = ActivationCollector(missing, plan.pool, 1, True, channels_last=run.cfg.layer.channels_last)
            batch_size = run.cfg.probe.batch_size
            fresh = record_layers(classifier.network, collector, some, classifier.preprocess, batch_size)
            for layer, activations in fresh.items():
                recorded[layer] = (activations.values, some.labels[some.rows_of(activations.ids)])
        if classifier.knows_classes:
            inputs = classifier.preprocess(_some(probe, EFFECT_IMAGES, run.cfg.seed).images)
            try:
                effects = logit_effects(
                    classifier.network, inputs, list(recorded), classifier.finished, run.cfg.layer.channels_last
                )
            except RuntimeError as error:  # e.g. an operation without a derivative
                log.info("The effects of neurons on the logits are skipped: %s", error)
    responses = {}
    for layer, (values, labels) in recorded.items():
        assert values is not None
        quantiles, mean = by_class(values, labels, classes)
        responses[layer] = Responses(quantiles, mean, values.float().std(0, correction=0), effects.get(layer))
    return responses


def _some(images: ImageSet, most: int, seed: int) -> ImageSet:
    rows = stratified_rows(images.labels, min(most, len(images)), seed)
    return replace(images, images=images.images[rows], labels=images.labels[rows], ids=images.ids[rows], annotations={})


def edited_neurons(edit: Edit) -> dict[tuple[str, int], str]:
    """(layer, neuron) -> what an edit does to it: ``× 1.5``, or the operation and its numbers."""
    values, operation = edit.operation.values, edit.operation
    neutral = torch.tensor(operation.neutral)
    changed = (values != neutral).reshape(len(values), -1).any(dim=1)

    def described(row: Tensor) -> str:
        numbers = ", ".join(f"{value:.4g}" for value in row.flatten().tolist())
        return f"× {numbers}" if isinstance(operation, Scaling) else f"{type(operation).__name__.lower()} {numbers}"

    return {(edit.layer, neuron): described(values[neuron]) for neuron in changed.nonzero().flatten().tolist()}
